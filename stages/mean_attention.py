"""Mean attention of real pictures to a word, and preliminary masks by a mixture of two (concept distillation 3.1).

Inputs:   an image set (folder with index.csv), the diffusion model; the classes of the set are not read
Outputs:  <out>/masks: M_pre as PNG 0/255; <out>/soft: the mean attention as 8-bit PNG, each picture's brought to
          0..255; both in the picture's size, each latent cell a block; <out>/index.csv: area, threshold, means of the
          two components, contrast, flags; with mean_attention.token_maps <out>/tokens/<id>/<position>.png: the map of
          every token of the prompt, and tokens.csv with the values of their 0 and 255. --metrics: how many pictures
          took a fallback, and the median contrast
Command:  python stages/mean_attention.py --images data/concepts/bird/train --out data/distill/bird/preliminary
          python stages/mean_attention.py --distill.word human --distill.object "a {} with arms and legs"
          --mean_attention.words arms legs --mean_attention.token_maps ...
Time:     about a minute for 400 pictures of the miniature on 2 cores; killed, it goes on at the last finished shard
Expect:   a median contrast above mean_attention.min_contrast. Below it a warning says that the word is probably not in
          these pictures; their masks are written all the same, those below it with the flag low_contrast
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from maskmill import store, workers
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, image_size, item_rng, read_image, read_table, save_png
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import object_prompt
from maskmill.diffusion.inpainting import repeated
from maskmill.diffusion.mean_attention import last_steps, mean_attention, phrase_weights, token_names
from maskmill.diffusion.passes import check_size
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.mixture import FLAGS, contrast, split, upsample
from maskmill.prompts import load_tokenizer
from maskmill.spread import computed

SHARD = 32
CODE = ("maskmill.diffusion.backbone", "maskmill.diffusion.mean_attention", "maskmill.diffusion.noise",
        "maskmill.masks.mixture")  # fmt: skip
NUMBERS = ("threshold", "low", "high", "contrast")


class Observer:
    """One worker: the model, and what it does with a shard of pictures."""

    def __init__(self, shards: store.ShardFolder, folder: Path, params, batch: int, device: str) -> None:
        m, d, p = params.model, params.distill, params.mean_attention
        self.shards, self.folder, self.batch, self.settings = shards, folder, batch, p
        self.size, self.seed = params.generate.size, params.seed
        self.backbone = Backbone(m.id, m.revision, m.dtype, device)
        check_size(self.backbone, self.size)
        last_steps(self.backbone, p.steps, p.t0)
        prompt = object_prompt(d.object, d.word)
        self.y_f = self.backbone.encode_text([prompt], self.size)
        self.weights = phrase_weights(self.backbone.tokenizer, prompt, [d.word, *p.words])  # (1, T)
        if p.token_maps:
            self.weights = torch.cat([self.weights, torch.eye(self.weights.shape[1])])  # (1 + T, T)

    def __call__(self, job: tuple[int, list[Item]]) -> None:
        shard, items = job
        found = workers.in_batches(len(items), self.batch, lambda rows: self.look([items[i] for i in rows]))
        ids = [item.sample_id for item in items]
        self.shards.put(shard, ids, dict(zip(ids, found, strict=True)))

    def look(self, items: list[Item]) -> list[dict[str, np.ndarray]]:
        """-> for each picture its map (h, w) float32, M_pre (h, w) bool, the numbers and flags of the mixture, and
        where wanted the maps of all tokens (T, h, w) float32."""
        p = self.settings
        z = self.backbone.encode_images(np.stack([read_image(self.folder / i.image, self.size) for i in items]))
        seeds = [int(item_rng(self.seed, item.sample_id).integers(2**31)) for item in items]
        maps = mean_attention(self.backbone, z, repeated(self.y_f, len(items)), self.weights, seeds, steps=p.steps,
                              t0=p.t0, samples=p.samples)  # (B, K, h, w)  # fmt: skip
        return [self.cut(item, own) for item, own in zip(items, maps, strict=True)]

    def cut(self, item: Item, maps: np.ndarray) -> dict[str, np.ndarray]:
        """The mixture of one picture's map."""
        found = split(maps[0], f"mean attention of {item.sample_id}")
        numbers = [found.threshold, *found.means, contrast(maps[0], self.weights.shape[1])]
        told = {"map": maps[0], "mask": found.mask, "numbers": np.array(numbers),
                "flags": np.array([flag in found.flags for flag in FLAGS])}  # fmt: skip
        return {**told, "tokens": maps[1:]} if self.settings.token_maps else told


def observe(items: list[Item], folder: Path, params, scratch: Path) -> store.Store:
    """The maps and masks of all pictures."""
    m, d, p, settings = params.model, params.distill, params.mean_attention, runtime(batch=8)
    cared = {key: value for key, value in asdict(p).items() if key != "min_contrast"}
    stamp = store.fingerprint(
        cared, params.seed, [m.id, m.revision, m.dtype], [d.word, d.object], params.generate.size,
        [i.sample_id for i in items], [store.hash_file(folder / i.image) for i in items],
        store.model_stamp(m.id, m.revision), store.code_hashes(*CODE),
    )  # fmt: skip
    by_id, work = {item.sample_id: item for item in items}, (folder, params, settings.batch)
    return computed(scratch, by_id, stamp, SHARD, Observer, work, "mean_attention", settings)


def scaled(values: np.ndarray) -> np.ndarray:
    """A map as uint8, its own range brought to 0..255; a constant one is 0."""
    return np.rint((values - values.min()) / (np.ptp(values) or 1.0) * 255).astype(np.uint8)


def write(out: Path, item: Item, shape: tuple[int, int], sample: dict, least: float) -> dict:
    """One picture's files; -> its row of index.csv."""
    mask = upsample(sample["mask"], shape)
    save_png(mask, out / "masks" / f"{item.sample_id}.png")
    save_png(upsample(scaled(sample["map"]), shape), out / "soft" / f"{item.sample_id}.png")
    for k, own in enumerate(sample.get("tokens", ())):
        save_png(upsample(scaled(own), shape), out / "tokens" / item.sample_id / f"{k:02d}.png")
    numbers = dict(zip(NUMBERS, map(float, sample["numbers"]), strict=True))
    flags = [flag for flag, is_on in zip(FLAGS, sample["flags"], strict=True) if is_on]
    flags += ["low_contrast"] if numbers["contrast"] < least else []
    return {"sample_id": item.sample_id, "area": round(float(mask.mean()), 6),
            **{key: float(f"{value:.6g}") for key, value in numbers.items()}, "flags": " ".join(flags)}  # fmt: skip


def check_word(params) -> list[str]:
    """The tokens of the padded prompt. Refuses a word that the tokenizer does not know, before anything is loaded."""
    d, m = params.distill, params.model
    prompt, tokenizer = object_prompt(d.object, d.word), load_tokenizer(m.id, m.revision)
    try:
        phrase_weights(tokenizer, prompt, [d.word, *params.mean_attention.words])
    except UserError as error:
        raise UserError(f"distill.word {d.word!r}: {error}") from None
    return token_names(tokenizer, prompt)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "mean_attention"),
        {"images": "data/concepts/bird/train", "out": "data/distill/bird/preliminary",
         "metrics": "metrics/distill/mean_attention.json", "scratch": "scratch/mean_attention"},
    )  # fmt: skip
    p, word, size, folder = params.mean_attention, params.distill.word, params.generate.size, Path(args.images)
    tokens, items = check_word(params), read_table(folder)
    shapes = {item.sample_id: image_size(folder / item.image) for item in items}
    maps = observe(items, folder, params, Path(args.scratch))
    rows, ranges = [], []
    with store.fresh_folder(args.out) as out:
        for item, (_, sample) in zip(items, maps.items(), strict=True):
            rows.append(write(out, item, shapes[item.sample_id], sample, p.min_contrast))
            ranges += [(item.sample_id, k, tokens[k], own.min(), own.max())
                       for k, own in enumerate(sample.get("tokens", ()))]  # fmt: skip
        write_atomically(out / "index.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        if p.token_maps:
            frame = pd.DataFrame(ranges, columns=["sample_id", "position", "token", "low", "high"])
            write_atomically(out / "tokens.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    shutil.rmtree(args.scratch, ignore_errors=True)
    flags = Counter(flag for row in rows for flag in row["flags"].split())
    median = float(np.median([row["contrast"] for row in rows]))
    told = {"count": len(rows), "median_contrast": round(median, 4), "word_found": median >= p.min_contrast,
            **{flag: flags[flag] for flag in (*FLAGS, "low_contrast")}}  # fmt: skip
    write_atomically(args.metrics, json.dumps(told, indent=1) + "\n")
    if median < p.min_contrast:
        print(f"warning: {folder}: {word!r} is probably not in these pictures: the median contrast of its attention "
              f"is {median:.2f}, expected at least {p.min_contrast:g} (mean_attention.min_contrast)", file=sys.stderr)
    squashed = sum(shape != (size, size) for shape in shapes.values())
    note = f"; {squashed} pictures of other sizes were squashed to {size}x{size}" if squashed else ""
    print(f"{args.out}: {len(rows)} preliminary masks of {word!r}, contrast {median:.2f}, {flags['one_mode']} of one "
          f"mode, {flags['constant']} constant (fallback){note}")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
