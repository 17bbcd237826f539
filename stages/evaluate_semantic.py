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

from pathlib import Path

import numpy as np
import pandas as pd

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_labels, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.figures import save_table
from maskmill.report.labelmaps import read_label_map
from maskmill.report.perclass import class_bars, confusion_map
from maskmill.report.segmentations import names_of
from maskmill.report.summary import to_json
from maskmill.scores.controls import summarise_seeds
from maskmill.scores.semantic import VOID, SemanticScores
from maskmill.segmenters.categories import THING, Category, load_categories

HEADLINES = ("miou", "miou_classes", "accuracy", "mean_accuracy")


def look_up(names: list[str], scored: list[Category]) -> np.ndarray:
    """(256,) uint8: number among the scored classes of each label of a map with these names; others become 0."""
    places = {word: k for k, c in enumerate(scored, 1) for word in (c.query, c.name)}
    out = np.zeros(256, np.uint8)
    out[1 : 1 + len(names)] = [places.get(name, 0) for name in names]
    out[VOID] = VOID
    return out


def draws_of(folders: list[Path]) -> list[list[tuple[int, Item]]]:
    """The images of each draw: the first draws of all sets together, then the second ones ..., each image with the
    number of its set.

    Raises:
        UserError: the sets have different numbers of draws, or an image without a label map.
    """
    drawn: list[list[list[tuple[int, Item]]]] = []
    for k, folder in enumerate(folders):
        by_seed: dict[str, list[tuple[int, Item]]] = {}
        for item in read_table(folder):
            if not item.labels:
                raise UserError(f"{folder}/index.csv: {item.sample_id}: expected a label map in the column 'labels', "
                                "got none")  # fmt: skip
            by_seed.setdefault(item.seed, []).append((k, item))
        drawn.append(list(by_seed.values()))
    if len({len(own) for own in drawn}) > 1:
        raise UserError(f"{folders[-1]}: expected {len(drawn[0])} draws as {folders[0]} has, got {len(drawn[-1])}")
    return [sum(parts, []) for parts in zip(*drawn, strict=True)]


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


def score(
    draw: list[tuple[int, Item]], sets: list[Path], folders: list[Path], truth: list[Category],
    scored: list[Category], background: str,
) -> SemanticScores:  # fmt: skip
    """One draw of one method."""
    scores = SemanticScores([c.name for c in scored], background)
    of_truth = look_up([c.name for c in truth], scored)
    found = [(len(names := names_of(folder)), look_up(names, scored)) for folder in folders]
    for k, item in draw:
        target = read_labels(sets[k] / item.labels)
        odd = target[(target > len(truth)) & (target != VOID)]
        if odd.size:
            raise UserError(f"{sets[k] / item.labels}: expected labels 0 to {len(truth)} or {VOID}, got {int(odd[0])}")
        count, of_prediction = found[k]
        path = folders[k] / "labels" / f"{item.sample_id}.png"
        scores.update(of_prediction[read_label_map(path, count, target.shape)], of_truth[target], item.sample_id)
    return scores


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
    truth = load_categories(args.classes)
    scored = [c for c in truth if args.stuff == "class" or c.kind == THING]
    methods, draws = methods_of(args.methods, len(sets)), draws_of(sets)
    runs: list[dict[str, dict]] = [{} for _ in draws]
    tables, whole = [], {}
    for name, folders in methods.items():
        for run, draw in zip(runs, progress(draws, name, unit="draw"), strict=True):
            scores = score(draw, sets, folders, truth, scored, args.background)
            result = scores.result()
            run[name] = {key: result[key] for key in HEADLINES if key in result}
            whole.setdefault(name, []).append(scores)
        pooled = SemanticScores([c.name for c in scored], args.background)
        for scores in whole[name]:
            pooled.merge(scores)
        ious = pd.DataFrame([s.table()["iou"].to_numpy() for s in whole[name]])  # a draw may lack a class
        tables.append(pooled.table().assign(method=name, iou=ious.mean(), iou_std=ious.std()))
        whole[name] = pooled
    headline = summarise_seeds(runs, args.name)
    columns = ["method", "label", "class", "iou", "iou_std", "recall", "precision", "truth", "predicted"]
    per_class = pd.concat(tables)[columns]
    write_atomically(out.with_name(f"{out.name}.json"), to_json(headline))
    save_table(per_class, out.with_name(f"{out.name}_classes.csv"))
    count = sum(map(len, draws))
    class_bars(per_class, out.with_name(f"{out.name}_classes.png"), f"IoU per class, {count} pictures")
    first = next(iter(methods))
    confusion_map(whole[first], out.with_name(f"{out.name}_confusion.png"), f"{first}: where true pixels went")
    for name in methods:
        key = f"{args.name}.{name}.miou"
        spread = f" ± {headline[f'{key}_std']:.3f}" if f"{key}_std" in headline else ""
        print(f"{key:36s} {headline[key]:.3f}{spread}")


if __name__ == "__main__":
    exit_cleanly(main)
