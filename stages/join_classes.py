"""The classes of several data sets as one list, each class once, so that support sets and prototypes serve all of them.

Inputs:   <folder>/<set>/classes.txt of the --sets, comma-separated, as stage semantic_benchmarks writes them; an empty
          one is of a data set that is not at hand, and is left out
Output:   a text file with a class per line, for --classes-file of stages support and build_prototypes
Command:  python stages/join_classes.py --folder data/semantic_benchmarks --sets voc,context --out classes.txt
Time:     under a second
Expect:   the six data sets of semantic segmentation have 499 classes, of which 265 differ
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, stage_arguments, write_atomically
from maskmill.datasets.semantic import at_hand
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import read_classes


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (), {"folder": "data/semantic_benchmarks", "sets": "voc", "out": "classes.txt"}
    )  # fmt: skip
    folders = {name: Path(args.folder, name) for name in (part.strip() for part in args.sets.split(",")) if name}
    found = {name: read_classes(folder / "classes.txt") for name, folder in folders.items() if at_hand(folder)}
    if not found:
        raise UserError(f"--sets: expected at least one data set at hand among {', '.join(folders)}, got none; name "
                        f"its folder under benchmarks in {args.params}")  # fmt: skip
    classes = list(dict.fromkeys(name for own in found.values() for name in own))
    write_atomically(args.out, "".join(f"{name}\n" for name in classes))
    print(f"{args.out}: {len(classes)} classes of {', '.join(found)}")


if __name__ == "__main__":
    exit_cleanly(main)
