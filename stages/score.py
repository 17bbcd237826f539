"""Score a folder of masks against an image set's ground truth, data set by data set: one row of a paper's table.

Inputs:   an image set with masks or boxes (folder with index.csv), predictions as stage attentioncut writes them
Output:   a JSON file: datasets {name, or "" for a set without: scores (iou, acc and maxf where there are masks, corloc;
          mean over the draws, with spread), images, draws}, the classes that were asked for, protocol, postprocess
Command:  python stages/score.py --images data/world --masks data/masks/world --metrics row.json
          python stages/score.py --images data/world --masks data/masks/world --metrics birds.json --classes bird
Time:     about 3 seconds for 600 pictures of 64x64, a minute for 5,019 of 400x300
Expect:   a mask for every picture that has ground truth; a missing one, or one of another size, is an error
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import to_json
from maskmill.scores.runs import postprocessing_of, saved_prediction, score_datasets, summarise_datasets


def of_classes(items: list[Item], classes: list[str]) -> list[Item]:
    """The items of some classes; all of them if none are named."""
    known = {item.cls for item in items}
    for name in classes:
        if name not in known:
            shown = ", ".join(sorted(known - {""})) or "none"
            raise UserError(f"--classes: expected classes of the image set ({shown}), got {name!r}")
    return [item for item in items if not classes or item.cls in classes]


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (),
        {"images": "data/world", "masks": "data/masks/world", "metrics": "metrics/score.json", "classes": ""},
    )  # fmt: skip
    folder, masks = Path(args.images), Path(args.masks)
    classes = [name.strip() for name in args.classes.split(",") if name.strip()]
    items = of_classes(read_table(folder), classes)
    scored = score_datasets(
        progress(items, "score", unit="image"), folder, lambda item: saved_prediction(masks, item)
    )  # fmt: skip
    summary = summarise_datasets(scored)
    document = {"datasets": summary["datasets"], "classes": classes, "protocol": summary["protocol"],
                "postprocess": postprocessing_of(masks)}  # fmt: skip
    write_atomically(args.metrics, to_json(document))
    for name, found in summary["datasets"].items():
        scores = "  ".join(f"{k} {v:.3f}" for k, v in found["scores"].items() if not k.endswith("_std"))
        print(f"{args.metrics}: {name}{': ' * bool(name)}{found['images']:,} images: {scores}")


if __name__ == "__main__":
    exit_cleanly(main)
