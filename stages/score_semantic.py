"""Score label maps against those of image sets: one row of a paper's table of semantic segmentation.

Inputs:   image sets with label maps (folders with index.csv), comma-separated; for each of them the folder that stage
          segment wrote of it; --truth: whose numbers the label maps have, a data set of maskmill/labels/things.csv.
          Or --protocols, rows of maskmill/labels/protocols.csv, comma-separated, and one path of image sets and one of
          label maps, in which {dataset} and {protocol} stand for each of them in turn
Output:   a JSON file: datasets {name, or "" for a set without: scores (miou, mean over the draws, with spread; also
          without the background, and the share of right pixels), images, draws, classes}, protocol, postprocess
Command:  python stages/score_semantic.py --images data/world,data/world_single --labels
          data/semantic/world,data/semantic/world_single --truth world --kinds thing --metrics row.json
          python stages/score_semantic.py --images data/semantic_benchmarks/{dataset} --labels my/{dataset} --protocols
          voc,context,ade20k --metrics row.json
Time:     about 3 seconds for 450 scenes of the miniature; 8 ms a picture of 500x375
Expect:   --kinds thing: stuff is background, in the truth and where it was predicted; all: stuff are classes too.
          --background void: label 0 is not scored, as benchmarks without a background do it; protocols say so
          themselves. Of the protocols, a data set that is not at hand is left out, and one without label maps has no
          scores
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.semantic import Protocol, at_hand, class_table, protocols
from maskmill.datasets.table import read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import to_json
from maskmill.scores.label_runs import joined, score_folder, scored_classes, summarise, unmeasured
from maskmill.scores.semantic import PROTOCOL


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def one_truth(args) -> tuple[dict[str, dict], str]:
    """Image sets whose label maps have the same numbers -> scores by data set, and the protocol in words."""
    sets, folders = ([Path(place) for place in listed(text)] for text in (args.images, args.labels))
    table = class_table(args.truth)
    if len(sets) != len(folders) or not sets:
        raise UserError(f"--labels: expected one folder for each image set, got {len(folders)} for {len(sets)}")
    if not table:
        raise UserError(f"--truth: expected a data set of maskmill/labels/things.csv, got {args.truth!r}")
    if args.background not in PROTOCOL:
        raise UserError(f"--background: expected class or void, got {args.background!r}")
    scored = scored_classes(table, args.kinds)
    found = [
        score_folder(progress(read_table(images), images.name, unit="image"), images, labels, table, scored,
                     args.background)
        for images, labels in zip(sets, folders, strict=True)
    ]  # fmt: skip
    said = PROTOCOL[args.background]
    if len(scored) < len(table):
        said += f"; the {len(scored)} classes of kind {args.kinds}, all else is background"
    return {name: summarise(draws) for name, draws in joined(found).items()}, said


def by_protocol(args) -> tuple[dict[str, dict], str]:
    """Public data sets, each in its own way -> scores by the data set's name in the tables, and the protocols."""
    known, datasets = protocols(), {}
    said: dict[str, list[str]] = {}
    absent, empty = [], []
    for name in listed(args.protocols):
        if name not in known:
            raise UserError(f"--protocols: expected some of {', '.join(known)}, got {name!r}")
        own = known[name]
        images, labels = (filled(place, own) for place in (args.images, args.labels))
        if not at_hand(images):
            absent.append(own.title)
            continue
        said.setdefault(own.background, []).append(own.title)
        if (labels / "classes.txt").is_file():
            datasets[own.title] = of_protocol(own, images, labels)
        else:
            empty.append(own.title)
            datasets[own.title] = unmeasured(read_table(images))
    for what, names in (("not at hand", absent), ("no label maps, so no scores", empty)):
        if names:
            print(f"{args.metrics}: {', '.join(names)}: {what}")
    if not datasets:
        raise UserError(f"--protocols {args.protocols}: expected at least one data set at hand, got none; name its "
                        f"folder under benchmarks in {args.params}")  # fmt: skip
    return datasets, "; ".join(f"{', '.join(names)}: {PROTOCOL[how]}" for how, names in said.items())


def filled(place: str, own: Protocol) -> Path:
    return Path(place.replace("{dataset}", own.dataset).replace("{protocol}", own.protocol))


def of_protocol(own: Protocol, images: Path, labels: Path) -> dict:
    table = class_table(own.dataset)
    items = progress(read_table(images), own.title, unit="image")
    found = score_folder(items, images, labels, table, table, own.background)
    return summarise({seed: scores for (_, seed), scores in found.items()})


def tell(metrics: str, datasets: Mapping[str, dict]) -> None:
    for name, own in datasets.items():
        if own["scores"]:
            spread = f" ± {own['scores']['miou_std']:.3f}" if "miou_std" in own["scores"] else ""
            about = f"{name}{': ' * bool(name)}{own['images']:,} images"
            print(f"{metrics}: {about}: miou {own['scores']['miou']:.3f}{spread}")


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (),
        {"images": "data/world", "labels": "data/semantic/world", "truth": "world", "kinds": "all",
         "background": "class", "protocols": "", "metrics": "metrics/semantic.json"},
    )  # fmt: skip
    datasets, said = by_protocol(args) if args.protocols else one_truth(args)
    write_atomically(args.metrics, to_json({"datasets": datasets, "protocol": {"miou": said}}))
    tell(args.metrics, datasets)


if __name__ == "__main__":
    exit_cleanly(main)
