"""Masks by a rival of AttentionCut on the same features and A_c: K-means, NCut or DenseCRF (DiffusionSeg, Table 5).

Inputs:   an image set (folder with index.csv), the attention records of its images and their features F^l
Outputs:  <out>/masks: 8-bit PNG 0/255; <out>/soft: 8-bit PNG, 128 where both labels are equally good; <out>/index.csv:
          area and flags; <out>/postprocess.txt: what was done to the masks afterwards
Command:  python stages/rivals.py --rivals.method crf --out data/masks/world_crf
Time:     300 pictures of the miniature on two cores: about 10 seconds; with Stable Diffusion's features and a working
          grid of 64x64 cells, on one core: kmeans 1 second a picture, crf 0.5, ncut 6
Expect:   one mask per record that also has features; what method does what is told in maskmill/masks/rivals.py, A_c is
          made with attentioncut.top_k and .t_max
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store
from maskmill.cli import die_with_parent, stage_arguments, worker_count, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_table, save_png
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks import rivals
from maskmill.masks.attentioncut import cross_map
from maskmill.masks.refine import describe, refine
from maskmill.params import Params
from maskmill.spread import each

CHUNK = 20


class Rival:
    """One worker: segments some pictures and writes their files; -> their rows of index.csv."""

    def __init__(self, images: Path, records: Path, features: Path, params: Params, out: Path, device: str) -> None:
        self.images, self.out, self.seed, self.postprocess = images, out, params.seed, params.postprocess
        self.top_k, self.t_max = params.attentioncut.top_k, params.attentioncut.t_max
        self.settings = params.rivals
        self.attention, self.levels = store.Store(records), store.Store(features)

    def __call__(self, items: list[Item]) -> list[dict]:
        p, rows = self.settings, []
        for item in items:
            id, image = item.sample_id, read_image(self.images / item.image)
            vectors = self.levels.read(id)
            start = int(item_rng(self.seed, id).integers(2**31))
            try:
                side = rivals.working_side(vectors, getattr(p, p.method).size)
                cross = cross_map(self.attention.read(id), (side, side), self.top_k, self.t_max)
                found = rivals.segment(vectors, cross, image, p, start)
            except UserError as error:
                raise UserError(f"{id}: {error}") from None
            soft, mask = refine(found.soft, found.mask, image, self.postprocess)
            save_png(mask, self.out / "masks" / f"{id}.png")
            save_png(np.rint(soft * 255).astype(np.uint8), self.out / "soft" / f"{id}.png")
            flags = [] if cross.any() else ["constant_map"]
            if not mask.any() or mask.all():
                flags.append("full" if mask.any() else "empty")
            rows.append({"sample_id": id, "area": round(float(mask.mean()), 6), "flags": " ".join(flags)})
        return rows


def segment_all(items: list[Item], *inputs: object) -> list[dict]:
    """All pictures with as many processes as there are workers; -> their rows in the order of ``items``."""
    return list(each(items, CHUNK, Rival, inputs, "rivals", ["cpu"] * worker_count(), "mask").values())


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "attentioncut", "rivals", "postprocess"),
        {"images": "data/world", "records": "data/inverted/world/records",
         "features": "data/inverted/world/features", "out": "data/masks/world_rival"},
    )  # fmt: skip
    images, records, features, out = (Path(p) for p in (args.images, args.records, args.features, args.out))
    known = set(store.Store(records).ids) & set(store.Store(features).ids)
    items = [item for item in read_table(images) if item.sample_id in known]
    if not items:
        raise UserError(f"{records}, {features}: expected samples of the images in {images}/index.csv, found none")
    with store.fresh_folder(out) as folder:
        rows = segment_all(items, images, records, features, params, folder)
        write_atomically(folder / "index.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        write_atomically(folder / "postprocess.txt", describe(params.postprocess) + "\n")
    flags = Counter(flag for row in rows for flag in row["flags"].split())
    print(f"{out}: {len(rows)} masks by {params.rivals.method}, {flags['empty']} empty, {flags['full']} full")


if __name__ == "__main__":
    exit_cleanly(main)
