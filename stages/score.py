"""Score a folder of masks against an image set's ground truth: one row of a paper's table.

Inputs:   an image set with masks (folder with index.csv), predictions as stage attentioncut writes them
Output:   a JSON file: iou, acc, maxf, corloc as mean over the set's draws, with spread, count and protocol
Command:  python stages/score.py --images data/world --masks data/masks/world --metrics row.json
Time:     about 3 seconds for 600 pictures of 64x64
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import read_table
from maskmill.errors import exit_cleanly
from maskmill.report.summary import to_json
from maskmill.scores.controls import summarise_seeds
from maskmill.scores.runs import saved_prediction, score_set
from maskmill.scores.saliency import PROTOCOL


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (), {"images": "data/world", "masks": "data/masks/world", "metrics": "metrics/score.json"}
    )
    folder, masks = Path(args.images), Path(args.masks)
    items = read_table(folder)
    runs = score_set(progress(items, "score", unit="image"), folder, lambda item: saved_prediction(masks, item))
    scores = summarise_seeds([run.headline() for run in runs.values()], "")
    document = {"scores": scores, "images": len(items), "draws": list(runs), "protocol": PROTOCOL}
    write_atomically(args.metrics, to_json(document))
    print(f"{args.metrics}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if not k.endswith("_std")))


if __name__ == "__main__":
    exit_cleanly(main)
