"""Draw label maps beside the truth: picture, one column per method, true label map, and a legend.

Inputs:   an image set with label maps, the folders of label maps of one or several methods (--methods
          OVDiff=DIR,Control=DIR), what the true labels are (--classes, as for stage evaluate_semantic)
Output:   one PNG
Command:  python stages/draw_semantic.py --images data/world --methods OVDiff=data/semantic/world
Time:     about 3 seconds
Expect:   the first picture of each class, then the second ...: neither the best nor the worst are chosen
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.cli import die_with_parent, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_image, read_labels, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.grids import Column, Row, picture_grid
from maskmill.report.labelmaps import legend, png, read_label_map, tinted
from maskmill.report.segmentations import names_of
from maskmill.scores.semantic import VOID
from maskmill.segmenters.categories import THING, load_categories

PANEL = 192


def in_turns(items: list[Item], count: int) -> list[Item]:
    """The first item of each class, then the second of each, until there are ``count``."""
    nth, turns = Counter(), []
    for item in items:
        turns.append((nth[item.cls], item.cls, item))
        nth[item.cls] += 1
    return [item for _, _, item in sorted(turns, key=lambda turn: turn[:2])[:count]]


def renamed(labels: np.ndarray, names: list[str], shown: list[str]) -> np.ndarray:
    """Labels in the numbers of the classes that are shown; of all others the background, but for void."""
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    for k, name in enumerate(names, 1):
        table[k] = shown.index(name) + 1 if name in shown else 0
    return table[labels]


def agreement(labels: np.ndarray, truth: np.ndarray) -> str:
    """``mIoU 0.71`` of one picture, over the labels that occur in either map."""
    scored = truth != VOID
    ious = [((labels == k) & (truth == k))[scored].sum() / ((labels == k) | (truth == k))[scored].sum()
            for k in np.union1d(labels[scored], truth[scored])]  # fmt: skip
    return f"mIoU {np.mean(ious):.2f}" if ious else ""


def row_of(item: Item, folder: Path, methods: dict[str, Path], truth: list[str], shown: list[str]) -> Row:
    image, target = read_image(folder / item.image), read_labels(folder / item.labels)
    true = renamed(target, truth, shown)
    maps = {"truth": true}
    for name, place in methods.items():
        names = names_of(place)
        found = read_label_map(place / "labels" / f"{item.sample_id}.png", len(names), target.shape)
        maps[name] = renamed(found, names, shown)
    size = (max(1, round(PANEL * image.shape[0] / image.shape[1])), PANEL)
    panels = {name: tinted(image, found, size, 3) for name, found in maps.items()}
    texts = {name: agreement(maps[name], true) for name in methods}
    return Row(image, panels, item.caption or item.sample_id, item.cls, texts)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("evaluate",),
        {"images": "data/world", "methods": "OVDiff=data/semantic/world", "classes": "world", "stuff": "background",
         "out": "metrics/grids/ovdiff.png", "title": "OVDiff: named classes, no training and no labels"},
    )  # fmt: skip
    folder = Path(args.images)
    given = (part.partition("=") for part in args.methods.split(",") if part)
    methods = {name: Path(place) for name, _, place in given}
    categories = load_categories(args.classes)
    shown = [c.name for c in categories if args.stuff == "class" or c.kind == THING]
    items = [item for item in read_table(folder) if item.labels]
    if not items or not methods:
        raise UserError(f"{folder}/index.csv: expected images with label maps, and --methods NAME=DIR, got none")
    rows = [row_of(item, folder, methods, [c.name for c in categories], shown)
            for item in in_turns(items, params.evaluate.grid_rows)]  # fmt: skip
    columns = [Column("image", "Picture", "image"), *(Column(name, name, "image") for name in methods),
               Column("truth", "Truth", "image")]  # fmt: skip
    grid = picture_grid(rows, columns, title=args.title, panel=PANEL)
    strip = Image.fromarray(legend(list(enumerate(shown, 1)), grid.width, 16))
    canvas = Image.new("RGB", (grid.width, grid.height + strip.height), "white")
    canvas.paste(grid, (0, 0))
    canvas.paste(strip, (0, grid.height))
    write_atomically(args.out, png(canvas))
    print(f"{args.out}: {len(rows)} pictures")


if __name__ == "__main__":
    exit_cleanly(main)
