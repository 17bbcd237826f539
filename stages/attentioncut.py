"""Cut masks from attention records (DiffusionSeg 3.2.2, Eq. 2 to 6); no training.

Inputs:   an image set (folder with index.csv) and the attention records of its images
Outputs:  <out>/masks: 8-bit PNG 0/255; <out>/soft: objectness as 8-bit PNG; <out>/index.csv: area, seeds, energy and
          flags; <out>/postprocess.txt: what was done to the masks afterwards; the number of images that took a
          fallback goes to --metrics
Command:  python stages/attentioncut.py --images data/world --records data/inverted/world/records --out data/masks/world
Time:     about 3 seconds for 600 pictures of 64x64
Expect:   one mask per record; a picture's mask depends on nothing but its record, the parameters and the seed
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store
from maskmill.cli import die_with_parent, stage_arguments, worker_count, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_table, save_png
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks import refine
from maskmill.masks.attentioncut import CutParams, attention_cut
from maskmill.params import Params
from maskmill.spread import each

CHUNK = 50
FLAGS = ("no_boundary", "constant_map", "empty", "full")


class Cutter:
    """One worker: cuts some pictures and writes their files; -> their rows of index.csv."""

    def __init__(self, images: Path, records: Path, params: Params, out: Path, device: str) -> None:
        self.images, self.out, self.seed, self.postprocess = images, out, params.seed, params.postprocess
        self.records, self.settings = store.Store(records), CutParams(**vars(params.attentioncut))

    def __call__(self, items: list[Item]) -> list[dict]:
        layers, rows = self.records.meta["self_layers"], []
        for item in items:
            id, image = item.sample_id, read_image(self.images / item.image)
            cut = attention_cut(self.records.read(id), image, self.settings, item_rng(self.seed, id), layers)
            soft, mask = refine.refine(cut.objectness, cut.mask, image, self.postprocess)
            save_png(mask, self.out / "masks" / f"{id}.png")
            save_png(np.rint(soft * 255).astype(np.uint8), self.out / "soft" / f"{id}.png")
            rows.append({"sample_id": id, "area": round(float(mask.mean()), 6), "seeds": len(cut.boundary),
                         "energy": round(cut.energy, 4), "flags": " ".join(cut.flags)})  # fmt: skip
        return rows


def cut_all(items: list[Item], images: Path, records: Path, params: Params, out: Path) -> list[dict]:
    """Cut all pictures with as many processes as there are workers; -> their rows in the order of ``items``."""
    places, work = ["cpu"] * worker_count(), (images, records, params, out)
    return list(each(items, CHUNK, Cutter, work, "attentioncut", places, "mask").values())


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "attentioncut", "postprocess"),
        {"images": "data/world", "records": "data/inverted/world/records", "out": "data/masks/world",
         "metrics": "metrics/attentioncut-world.json"},
    )  # fmt: skip
    images, records, out = Path(args.images), Path(args.records), Path(args.out)
    known = set(store.Store(records).ids)
    items = [item for item in read_table(images) if item.sample_id in known]
    if not items:
        raise UserError(f"{records}: expected records of the images in {images}/index.csv, found none of them")
    with store.fresh_folder(out) as folder:
        rows = cut_all(items, images, records, params, folder)
        write_atomically(folder / "index.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        write_atomically(folder / "postprocess.txt", refine.describe(params.postprocess) + "\n")
    flags = Counter(flag for row in rows for flag in row["flags"].split())
    counts = {"count": len(rows), "postprocess": refine.describe(params.postprocess)}
    counts |= {flag: flags[flag] for flag in FLAGS}
    write_atomically(args.metrics, json.dumps(counts, indent=1) + "\n")
    print(f"{out}: {len(rows)} masks, {counts['no_boundary']} without a boundary at tau (fallback threshold)")


if __name__ == "__main__":
    exit_cleanly(main)
