"""Score label maps against those of image sets: one row of a paper's table of semantic segmentation.

Inputs:   image sets with label maps (folders with index.csv), comma-separated; for each of them the folder that stage
          segment wrote of it; --truth: whose numbers the label maps have, a data set of maskmill/labels/things.csv
Output:   a JSON file: datasets {name, or "" for a set without: scores (miou, mean over the draws, with spread; also
          without the background, and the share of right pixels), images, draws, classes}, protocol, postprocess
Command:  python stages/score_semantic.py --images data/world,data/world_single --labels
          data/semantic/world,data/semantic/world_single --truth world --kinds thing --metrics row.json
Time:     about 3 seconds for 450 scenes of the miniature; 8 ms a picture of 500x375
Expect:   --kinds thing: stuff is background, in the truth and where it was predicted; all: stuff are classes too.
          --background void: label 0 is not scored, as benchmarks without a background do it (labels/protocols.csv)
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.semantic import class_table
from maskmill.datasets.table import Item, read_labels, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import to_json
from maskmill.scores.label_runs import joined, of_truth, of_vocabulary, score_draws, scored_classes, summarise
from maskmill.scores.semantic import PROTOCOL


def vocabulary_of(folder: Path) -> list[str]:
    """The classes of a folder of label maps."""
    path = folder / "classes.txt"
    if not path.is_file():
        raise UserError(f"{path}: expected the classes of the label maps, found none; run stages/segment.py first")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def truth_path(folder: Path, item: Item) -> Path:
    if not item.labels:
        raise UserError(f"{folder}/index.csv: {item.sample_id}: expected a label map, got none")
    return folder / item.labels


def listed(text: str) -> list[Path]:
    return [Path(part.strip()) for part in text.split(",") if part.strip()]


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (),
        {"images": "data/world", "labels": "data/semantic/world", "truth": "world", "kinds": "all",
         "background": "class", "metrics": "metrics/semantic.json"},
    )  # fmt: skip
    sets, folders, table = listed(args.images), listed(args.labels), class_table(args.truth)
    if len(sets) != len(folders) or not sets:
        raise UserError(f"--labels: expected one folder for each image set, got {len(folders)} for {len(sets)}")
    if not table:
        raise UserError(f"--truth: expected a data set of maskmill/labels/things.csv, got {args.truth!r}")
    if args.background not in PROTOCOL:
        raise UserError(f"--background: expected class or void, got {args.background!r}")
    scored, found = scored_classes(table, args.kinds), []
    for images, labels in zip(sets, folders, strict=True):
        maps = of_vocabulary(vocabulary_of(labels), scored), of_truth(table, scored)
        found.append(score_draws(
            progress(read_table(images), images.name, unit="image"),
            lambda item, labels=labels: read_labels(labels / "labels" / f"{item.sample_id}.png"),
            lambda item, images=images: read_labels(truth_path(images, item)),
            scored, args.background, maps,
        ))  # fmt: skip
    datasets = {name: summarise(draws) for name, draws in joined(found).items()}
    said = PROTOCOL[args.background]
    if len(scored) < len(table):
        said += f"; the {len(scored)} classes of kind {args.kinds}, all else is background"
    document = {"datasets": datasets, "protocol": {"miou": said}}
    write_atomically(args.metrics, to_json(document))
    for name, own in datasets.items():
        spread = f" ± {own['scores']['miou_std']:.3f}" if "miou_std" in own["scores"] else ""
        about = f"{name}{': ' * bool(name)}{own['images']:,} images"
        print(f"{args.metrics}: {about}: miou {own['scores']['miou']:.3f}{spread}")


if __name__ == "__main__":
    exit_cleanly(main)
