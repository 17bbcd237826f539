"""Write which classes of a list are things and which are stuff (OVDiff 3.4), for the stuff filter.

Inputs:   a text file with a class per line; with kinds.source llm a language model
Output:   <out>: class, query, kind, source; correct it by hand where it is wrong
Command:  python stages/kinds.py --classes-file classes.txt --out kinds.csv
Time:     about 2 seconds; with a language model, one short answer for each class that the table does not have
Expect:   classes of the benchmarks come from maskmill/labels/things.csv; others are things, or what the model says
"""

from __future__ import annotations

from maskmill import prompts
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.errors import UserError, exit_cleanly
from maskmill.segmenters.kinds import counted, kinds_of, to_csv


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(__doc__, ("seed", "kinds"), {"classes-file": None, "out": "kinds.csv"})
    settings, generate = params.kinds, None
    if args.classes_file is None:
        raise UserError("--classes-file: expected a text file with a class per line, got none")
    classes = prompts.read_classes(args.classes_file)
    if settings.source == "llm":
        if not settings.llm:
            raise UserError("kinds.llm: expected a language model for kinds.source llm, got ''")
        generate = prompts.language_model(settings.llm, settings.llm_revision, runtime().device)
    found = kinds_of(classes, generate, settings.tries, params.seed)
    write_atomically(args.out, to_csv(found))
    print(f"{args.out}: {counted(found)}")


if __name__ == "__main__":
    exit_cleanly(main)
