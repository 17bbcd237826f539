"""Score label maps: mIoU from one confusion matrix per draw, with a table and a picture per class (OVDiff 4).

Inputs:   image sets with label maps (--images, with commas between), and for each the folder of label maps of each
          method (--methods ovdiff=DIR+DIR,ovdiff_nobg=DIR+DIR, one DIR per image set): labels/<id>.png, classes.txt,
          as stage segment writes them, or made by any other tool; --classes: what the true labels 1, 2, ... are, a
          data set of maskmill/labels/things.csv or a CSV file (class, query, kind)
Outputs:  <metrics>.json: <name>.<method>.miou with spread over the draws; <metrics>_classes.csv: per class;
          <metrics>_classes.png, and <metrics>_confusion.png of the first method
Command:  python stages/evaluate_semantic.py --images data/world,data/world_single
          --methods ovdiff=data/semantic/world+data/semantic/world_single
Time:     about 3 seconds for 450 scenes and three methods
Expect:   OVDiff above the same without background prototypes and above regions of colour named by CLIP
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.figures import save_table
from maskmill.report.perclass import class_bars, confusion_map
from maskmill.report.summary import to_json
from maskmill.scores.controls import summarise_seeds
from maskmill.scores.label_runs import Row, joined, score_folder, scored_classes
from maskmill.scores.semantic import SemanticScores
from maskmill.segmenters.categories import THING, load_categories

HEADLINES = ("miou", "miou_classes", "accuracy", "mean_accuracy")


def methods_of(text: str, sets: int) -> dict[str, list[Path]]:
    """``ovdiff=a+b,other=c+d`` -> the folders of each method, one per image set."""
    found = {}
    for part in text.split(","):
        name, _, places = part.partition("=")
        folders = [Path(place) for place in places.split("+") if place]
        if not name or len(folders) != sets or name in found:
            raise UserError(f"--methods: expected NAME={'+'.join(['DIR'] * sets)} with a new name, got {part!r}")
        found[name] = folders
    return found


def draws_of(sets: list[Path], folders: list[Path], truth: list[Row], scored: list[Row], background: str):
    """One method: its confusion matrix of each draw, the first draws of all sets together, then the second ones."""
    found = []
    for images, labels in zip(sets, folders, strict=True):
        items = [replace(item, dataset="") for item in read_table(images)]  # whose data set it is makes no difference
        found.append(score_folder(progress(items, labels.as_posix(), unit="image"), images, labels, truth, scored,
                                  background))  # fmt: skip
    return list(joined(found)[""].values())


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (),
        {"images": "data/world,data/world_single", "methods": "ovdiff=data/semantic/world+data/semantic/world_single",
         "classes": "world", "stuff": "background", "background": "class", "name": "world",
         "metrics": "metrics/ovdiff"},
    )  # fmt: skip
    sets, out = [Path(place) for place in args.images.split(",") if place], Path(args.metrics)
    for option, value, known in (("stuff", args.stuff, ("background", "class")),
                                 ("background", args.background, ("class", "void"))):  # fmt: skip
        if value not in known:
            raise UserError(f"--{option}: expected {' or '.join(known)}, got {value!r}")
    truth = [{"class": c.name, "query": c.query, "kind": c.kind} for c in load_categories(args.classes)]
    scored = scored_classes(truth, "all" if args.stuff == "class" else THING)
    methods = methods_of(args.methods, len(sets))
    runs: list[dict[str, dict]] = []
    tables, whole = [], {}
    for name, folders in methods.items():
        draws = draws_of(sets, folders, truth, scored, args.background)
        runs = runs or [{} for _ in draws]
        for run, scores in zip(runs, draws, strict=True):
            result = scores.result()
            run[name] = {key: result[key] for key in HEADLINES if key in result}
        pooled = whole[name] = SemanticScores(draws[0].classes, args.background)
        for scores in draws:
            pooled.merge(scores)
        ious = pd.DataFrame([s.table()["iou"].to_numpy() for s in draws])  # a draw may lack a class
        tables.append(pooled.table().assign(method=name, iou=ious.mean(), iou_std=ious.std()))
    headline = summarise_seeds(runs, args.name)
    columns = ["method", "label", "class", "iou", "iou_std", "recall", "precision", "truth", "predicted"]
    per_class = pd.concat(tables)[columns]
    write_atomically(out.with_name(f"{out.name}.json"), to_json(headline))
    save_table(per_class, out.with_name(f"{out.name}_classes.csv"))
    count = next(iter(whole.values())).images
    class_bars(per_class, out.with_name(f"{out.name}_classes.png"), f"IoU per class, {count} pictures")
    first = next(iter(methods))
    confusion_map(whole[first], out.with_name(f"{out.name}_confusion.png"), f"{first}: where true pixels went")
    for name in methods:
        key = f"{args.name}.{name}.miou"
        spread = f" ± {headline[f'{key}_std']:.3f}" if f"{key}_std" in headline else ""
        print(f"{key:36s} {headline[key]:.3f}{spread}")


if __name__ == "__main__":
    exit_cleanly(main)
