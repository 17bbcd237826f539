"""Paint the object over with the fine-tuned model and refine masks by what changed (concept distillation 3.2, Eq. 5).

Inputs:   an image set and the masks folder of its preliminary masks M_pre; the diffusion model and the U-Net that stage
          distill_inpaint fine-tuned (--unet "": the model's own)
Outputs:  <out>/masks: M = M_pre times the mixture of the difference, PNG 0/255; <out>/soft: the difference within
          M_pre, each picture's brought to 0..255; <out>/difference: |picture - background|, 8 bit; <out>/backgrounds:
          the pictures with the object painted over; all in the picture's size. <out>/index.csv: area, that of M_pre,
          threshold, means of the two components, flags; --metrics: how many pictures took a fallback
Command:  python stages/refine_masks.py --images data/concepts/bird/train --masks data/distill/bird/preliminary
          --unet data/distill/bird/unet --out data/distill/bird/refined
Time:     about 0.3 s for a picture of the miniature on one core; killed, it goes on at the last finished shard
Expect:   masks within M_pre; where nothing of it has changed, M_pre itself, with the flag kept_preliminary
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from maskmill import store, workers
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_mask, read_table, save_png
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import object_prompt
from maskmill.diffusion.inpainting import paint_over, use_unet
from maskmill.diffusion.passes import check_size
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.cells import grow, to_cells
from maskmill.masks.mixture import FLAGS, difference, refined_mask, upsample
from maskmill.spread import computed

SHARD = 32
CODE = ("maskmill.diffusion.backbone", "maskmill.diffusion.inpainting", "maskmill.diffusion.noise",
        "maskmill.diffusion.sampling", "maskmill.masks.cells", "maskmill.masks.mixture")  # fmt: skip
NUMBERS = ("threshold", "low", "high")
KEPT = "kept_preliminary"


class Painter:
    """One worker: the model, and what it does with a shard of pictures."""

    def __init__(
        self, shards: store.ShardFolder, folder: Path, masks: Path, unet: str, params, batch: int, device: str
    ) -> None:
        m, d = params.model, params.distill
        self.shards, self.folder, self.masks, self.batch = shards, folder, masks, batch
        self.size, self.seed, self.settings = params.generate.size, params.seed, params.refine_masks
        self.backbone = Backbone(m.id, m.revision, m.dtype, device)
        check_size(self.backbone, self.size)
        if unet:
            use_unet(self.backbone, Path(unet))
        self.concepts = [self.backbone.encode_text([prompt], self.size)
                         for prompt in (object_prompt(d.object, d.word), d.background)]  # fmt: skip

    def __call__(self, job: tuple[int, list[Item]]) -> None:
        shard, items = job
        found = workers.in_batches(len(items), self.batch, lambda rows: self.refine([items[i] for i in rows]))
        ids = [item.sample_id for item in items]
        self.shards.put(shard, ids, dict(zip(ids, found, strict=True)))

    def refine(self, items: list[Item]) -> list[dict[str, np.ndarray]]:
        """-> for each picture, all of the model's size: its background (S, S, 3) uint8, the mask (S, S) bool, M_pre's
        share of the picture, and the numbers and flags of the mixture."""
        p, side = self.settings, self.size // self.backbone.scale
        images = np.stack([read_image(self.folder / item.image, self.size) for item in items])
        found = [read_mask(self.masks / "masks" / f"{item.sample_id}.png") for item in items]
        holes = np.stack([grow(to_cells(mask, (side, side)), p.grow) for mask in found])
        seeds = [int(item_rng(self.seed, item.sample_id).integers(2**31)) for item in items]
        z = paint_over(self.backbone, self.backbone.encode_images(images), holes, *self.concepts, seeds,
                       w=p.guidance, steps=p.steps)  # fmt: skip
        backgrounds = self.backbone.decode(z)
        return [self.cut(*each) for each in zip(items, images, backgrounds, holes, strict=True)]

    def cut(self, item: Item, image: np.ndarray, background: np.ndarray, hole: np.ndarray) -> dict[str, np.ndarray]:
        """The mixture of one picture's difference. Every picture shows the object: where the product leaves nothing,
        M_pre stays."""
        result = refined_mask(image, background, hole, item.sample_id)
        kept = bool(hole.any() and not result.mask.any())
        flags = [flag in result.split.flags for flag in FLAGS] + [kept]
        return {"background": background, "mask": upsample(hole, image.shape[:2]) if kept else result.mask,
                "hole": hole, "numbers": np.array([result.split.threshold, *result.split.means]),
                "flags": np.array(flags)}  # fmt: skip


def paint(items: list[Item], folder: Path, masks: Path, unet: str, params, scratch: Path) -> store.Store:
    """Backgrounds and masks of all pictures."""
    m, d, settings = params.model, params.distill, runtime(batch=8)
    stamp = store.fingerprint(
        asdict(params.refine_masks), params.seed, [m.id, m.revision, m.dtype], [d.word, d.object, d.background],
        params.generate.size, [i.sample_id for i in items], [store.hash_file(folder / i.image) for i in items],
        [store.hash_file(masks / "masks" / f"{i.sample_id}.png") for i in items],
        store.model_stamp(m.id, m.revision), store.hash_tree(unet) if unet else "", store.code_hashes(*CODE),
    )  # fmt: skip
    by_id, work = {item.sample_id: item for item in items}, (folder, masks, unet, params, settings.batch)
    return computed(scratch, by_id, stamp, SHARD, Painter, work, "refine_masks", settings)


def write(out: Path, item: Item, picture: np.ndarray, size: int, sample: dict) -> dict:
    """One picture's files, in its own size; -> its row of index.csv."""
    shape = picture.shape[:2]
    background, hole = Image.fromarray(sample["background"]), upsample(sample["hole"], (size, size))
    squashed = np.asarray(Image.fromarray(picture).resize((size, size), Image.BICUBIC))
    change = difference(squashed if shape != (size, size) else picture, sample["background"])
    inside = np.where(hole, change, 0.0)
    mask, name = upsample(sample["mask"], shape), f"{item.sample_id}.png"
    save_png(mask, out / "masks" / name)
    save_png(upsample(np.rint(inside / (inside.max() or 1.0) * 255).astype(np.uint8), shape), out / "soft" / name)
    save_png(upsample(np.rint(change * 255).astype(np.uint8), shape), out / "difference" / name)
    if shape != (size, size):
        background = background.resize(shape[::-1], Image.BICUBIC)
    save_png(np.asarray(background), out / "backgrounds" / name)
    numbers = {key: float(f"{float(v):.6g}") for key, v in zip(NUMBERS, sample["numbers"], strict=True)}
    flags = [flag for flag, is_on in zip((*FLAGS, KEPT), sample["flags"], strict=True) if is_on]
    return {"sample_id": item.sample_id, "area": round(float(mask.mean()), 6),
            "painted": round(float(hole.mean()), 6), **numbers, "flags": " ".join(flags)}  # fmt: skip


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "refine_masks"),
        {"images": "data/concepts/bird/train", "masks": "data/distill/bird/preliminary",
         "unet": "data/distill/bird/unet", "out": "data/distill/bird/refined",
         "metrics": "metrics/distill/refine_masks.json", "scratch": "scratch/refine_masks"},
    )  # fmt: skip
    size, folder, masks = params.generate.size, Path(args.images), Path(args.masks)
    items = read_table(folder)
    if args.unet and not Path(args.unet).is_dir():
        raise UserError(f"--unet {args.unet}: expected the folder of a fine-tuned U-Net, found none; run stage "
                        "distill_inpaint first")  # fmt: skip
    painted, rows = paint(items, folder, masks, args.unet, params, Path(args.scratch)), []
    with store.fresh_folder(args.out) as out:
        for item, (_, sample) in zip(items, painted.items(), strict=True):
            rows.append(write(out, item, read_image(folder / item.image), size, sample))
        write_atomically(out / "index.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    shutil.rmtree(args.scratch, ignore_errors=True)
    flags = Counter(flag for row in rows for flag in row["flags"].split())
    told = {"count": len(rows), **{flag: flags[flag] for flag in (*FLAGS, KEPT)}}
    write_atomically(args.metrics, json.dumps(told, indent=1) + "\n")
    print(f"{args.out}: {len(rows)} refined masks, {flags['one_mode']} of one mode, {flags[KEPT]} kept as they were "
          "(fallbacks)")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
