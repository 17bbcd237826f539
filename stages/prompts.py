"""Write the prompts of the synthetic set (DiffusionSeg 3.2.1).

Inputs:   the image model's tokenizer; with prompts.file a class list, with prompts.source llm a language model
Output:   data/prompts.csv: sample_id, class, prompt, token_start, token_end, seed
Command:  python stages/prompts.py --model data/mini --out data/prompts.csv
Time:     about 2 seconds; with a language model, as long as it takes to write per_class descriptions of each class
Expect:   960 rows, 120 for each of the eight classes; the same rows on every machine
"""

from __future__ import annotations

from maskmill import prompts
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.errors import exit_cleanly


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "prompts"), {"model": None, "out": "data/prompts.csv"}
    )
    settings = params.prompts
    tokenizer = prompts.load_tokenizer(args.model or params.model.id, params.model.revision)
    generate = None
    if settings.source == "llm" and settings.llm:
        generate = prompts.language_model(settings.llm, settings.llm_revision, runtime().device)
    with progress(None, "prompts", total=len(prompts.chosen_classes(settings)), unit="class") as bar:
        rows = prompts.make_rows(settings, params.seed, tokenizer, generate, done=lambda _: bar.update())
    write_atomically(args.out, prompts.to_csv(rows))
    print(f"{args.out}: {len(rows)} prompts for {len({row.cls for row in rows})} classes")


if __name__ == "__main__":
    exit_cleanly(main)
