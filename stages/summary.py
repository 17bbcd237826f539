"""Bring the headline numbers of all methods into one flat file, which `dvc metrics show` and `dvc metrics diff` read.

Inputs:   --parts: flat JSON files of numbers, one per method, as the evaluating stages write them
Output:   metrics/summary.json
Command:  python stages/summary.py --parts metrics/diffusionseg.json,metrics/ovdiff.json,metrics/distillation.json
Time:     a moment
Expect:   every number of every part, sorted by name
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, stage_arguments, write_atomically
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import read_summary, to_json


def merge(parts: list[str]) -> dict[str, float]:
    """All numbers of the files. Raises ``UserError`` for an absent file, and for a name that two of them have."""
    merged: dict[str, float] = {}
    origin: dict[str, str] = {}
    for part in parts:
        if not Path(part).is_file():
            raise UserError(f"{part}: expected the numbers of an evaluating stage, found no such file")
        numbers = read_summary(part)
        for key in numbers:
            if origin.setdefault(key, part) != part:
                raise UserError(f"{part}: key {key!r}: expected a number of its own, {origin[key]} has it too")
        merged |= numbers
    return dict(sorted(merged.items()))


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(__doc__, (), {"parts": "metrics/diffusionseg.json", "out": "metrics/summary.json"})
    merged = merge([part for part in args.parts.split(",") if part])
    write_atomically(args.out, to_json(merged))
    print(f"{args.out}: {len(merged)} numbers")


if __name__ == "__main__":
    exit_cleanly(main)
