"""Say that a row of a table is not measured, because what it needs is not at hand: a data set, a network, proposals.

Inputs:   --why: in words; --like: the scores of another row of the same table, where files of scores are to be written
Outputs:  --folders, comma-separated: each becomes an empty folder; --metrics, comma-separated: each becomes a file of
          scores with the images and draws of --like and without scores, so that the table shows the row without numbers
Command:  python stages/absent.py --folders data/x --why "benchmarks.ade20k names no folder"
Time:     under a second
Expect:   dvc.yaml calls it in the place of the stage that would measure the row; nothing is guessed, nothing random
"""

from __future__ import annotations

import json
from pathlib import Path

from maskmill.cli import die_with_parent, stage_arguments, write_atomically
from maskmill.errors import UserError, exit_cleanly
from maskmill.store import fresh_folder


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def without_scores(like: str, why: str) -> str:
    """A file of scores like another row's, with nothing measured. Read by hand: with the reader of scores every change
    of the reports would be a change of all stages that call this one."""
    try:
        datasets = json.loads(Path(like).read_text(encoding="utf-8"))["datasets"]
        same = {name: {"scores": {}, "images": own["images"], "draws": own["draws"]} for name, own in datasets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--like {like}: expected the scores of a row, as stage score writes them, got none") from None
    return json.dumps({"datasets": same, "protocol": {}, "absent": why}, indent=2) + "\n"


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(__doc__, (), {"why": "", "folders": "", "like": "", "metrics": ""})
    folders, metrics = listed(args.folders), listed(args.metrics)
    if not args.why or not folders + metrics:
        raise UserError("expected --why, and --folders or --metrics, got "
                        f"{'no reason' if not args.why else 'neither of them'}")  # fmt: skip
    text = without_scores(args.like, args.why) if metrics else ""
    for folder in folders:
        with fresh_folder(folder):
            pass
    for path in metrics:
        write_atomically(path, text)
    print(f"{', '.join(folders + metrics)}: not measured: {args.why}")


if __name__ == "__main__":
    exit_cleanly(main)
