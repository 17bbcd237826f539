"""Draw the picture grid of an image set: image, A_c, r, objectness, minimum cut and, where there is any, ground truth.

Inputs:   an image set (folder with index.csv), its attention records, the masks that stage attentioncut cut, and masks
          of other methods (--others Decoder=data/masks/world_decoder,NCut=...), each a further column
Output:   one PNG
Command:  python stages/draw.py --images data/world --records data/inverted/world/records --masks data/masks/world
Time:     about 3 seconds
Expect:   the first picture of each class, then the second ...: neither the best nor the worst are chosen
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from maskmill import store
from maskmill.cli import die_with_parent, stage_arguments
from maskmill.datasets.table import Item, item_rng, read_image, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.attentioncut import CutParams, attention_cut
from maskmill.report.grids import ATTENTIONCUT_COLUMNS, Column, Row, picture_grid
from maskmill.scores.runs import saved_prediction, truth_of


def in_turns(items: list[Item], count: int) -> list[Item]:
    """The first item of each class, then the second of each, until there are ``count``."""
    nth, turns = Counter(), []
    for item in items:
        turns.append((nth[item.cls], item.cls, item))
        nth[item.cls] += 1
    return [item for _, _, item in sorted(turns, key=lambda turn: turn[:2])[:count]]


def overlap(mask: np.ndarray, truth: np.ndarray) -> str:
    """``IoU 0.71``, for the corner of a panel."""
    return f"IoU {(mask & truth).sum() / max(1, (mask | truth).sum()):.2f}"


def row_of(item: Item, folder: Path, masks: Path, others: dict[str, Path], records: store.Store, params) -> Row:
    """One picture's panels; its maps are computed again from the record, its mask is the one on disk."""
    image = read_image(folder / item.image)
    found = attention_cut(records.read(item.sample_id), image, CutParams(**vars(params.attentioncut)),
                          item_rng(params.seed, item.sample_id), records.meta["self_layers"])  # fmt: skip
    soft, mask = saved_prediction(masks, item)
    found_masks = {"cut": mask, **{name: saved_prediction(place, item)[1] for name, place in others.items()}}
    panels = {"ac": found.cross, "r": found.refined, "objectness": soft / 255.0, **found_masks}
    texts = {}
    if item.mask:
        panels["truth"] = truth_of(folder, item)
        texts = {name: overlap(m, panels["truth"]) for name, m in found_masks.items()}
    return Row(image, panels, item.caption if not item.mask and item.caption else f"a photo of a {item.cls}", item.cls,
               texts)  # fmt: skip


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "attentioncut", "evaluate"),
        {"images": "data/world", "records": "data/inverted/world/records", "masks": "data/masks/world",
         "others": "", "out": "metrics/grids/test.png", "title": "AttentionCut, no training"},
    )  # fmt: skip
    folder, records = Path(args.images), store.Store(args.records)
    items = [item for item in read_table(folder) if item.sample_id in records]
    if not items:
        raise UserError(f"{args.records}: expected records of the images in {folder}/index.csv, found none of them")
    chosen = in_turns(items, params.evaluate.grid_rows)
    others = {name: Path(place) for name, _, place in (o.partition("=") for o in args.others.split(",") if o)}
    rows = [row_of(item, folder, Path(args.masks), others, records, params) for item in chosen]
    with_truth = any("truth" in row.panels for row in rows)
    columns = [c for c in ATTENTIONCUT_COLUMNS if c.key != "truth"]
    columns += [Column(name, name, "mask") for name in others]
    columns += [c for c in ATTENTIONCUT_COLUMNS if with_truth and c.key == "truth"]
    picture_grid(rows, columns, path=args.out, title=args.title)
    print(f"{args.out}: {len(rows)} pictures")


if __name__ == "__main__":
    exit_cleanly(main)
