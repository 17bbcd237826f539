"""Sample the pictures of the synthetic set D'_s from the fine-tuned U-Net under y_f (concept distillation 3.3).

Inputs:   the diffusion model, the U-Net that stage distill_inpaint fine-tuned
Output:   <out>: an image set without masks, which stages mean_attention and refine_masks mask as they mask real ones;
          stage export_set makes D'_s of it
Command:  python stages/concept_set.py --unet data/distill/bird/unet --out data/distill/bird/sampled
Time:     about 20 seconds for 200 pictures of the miniature on 2 cores; killed, it goes on at the last finished shard
Expect:   pictures that show the object; the same files whatever the number of workers
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from maskmill import store, workers
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, save_png, table_csv
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import ConceptSampler, object_prompt
from maskmill.errors import exit_cleanly
from maskmill.prompts import sample_seed
from maskmill.spread import fill

SHARD = 32
CODE = ("maskmill.diffusion.backbone", "maskmill.diffusion.concepts", "maskmill.diffusion.inpainting",
        "maskmill.diffusion.sampling")  # fmt: skip
STREAM = 29  # keeps the noise of these pictures apart from that of other stages


class Artist:
    """One worker: the model, and what it does with a shard."""

    def __init__(self, shards: store.ShardFolder, unet: Path, params, batch: int, device: str) -> None:
        m, d, p = params.model, params.distill, params.concept_set
        self.shards, self.batch, self.w = shards, batch, p.guidance
        prompts = (object_prompt(d.object, d.word), d.background)
        self.sampler = ConceptSampler(Backbone(m.id, m.revision, m.dtype, device), unet, prompts, params.generate.size,
                                      p.steps)  # fmt: skip

    def __call__(self, job: tuple[int, list[tuple[str, int]]]) -> None:
        shard, todo = job
        ids, seeds = [name for name, _ in todo], [seed for _, seed in todo]
        found = workers.in_batches(len(todo), self.batch, lambda rows: self.paint([seeds[i] for i in rows]))
        self.shards.put(shard, ids, {name: {"image": picture} for name, picture in zip(ids, found, strict=True)})

    def paint(self, seeds: list[int]) -> list[np.ndarray]:
        return list(self.sampler(seeds, self.w))


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "concept_set"),
        {"unet": "data/distill/bird/unet", "out": "data/distill/bird/sampled", "scratch": "scratch/concept_set"},
    )  # fmt: skip
    p, d, m, settings, unet = params.concept_set, params.distill, params.model, runtime(batch=8), Path(args.unet)
    seeds = {f"syn-{i:05d}": sample_seed(params.seed + STREAM, i) for i in range(p.count)}
    stamp = store.fingerprint(asdict(p), [d.word, d.object, d.background], asdict(m), params.generate.size, seeds,
                              store.model_stamp(m.id, m.revision), store.hash_tree(unet),
                              store.code_hashes(*CODE))  # fmt: skip
    pictures = Path(args.scratch) / "pictures"
    with store.ShardWriter(pictures, list(seeds), stamp, {}, SHARD, Path(args.scratch) / "shards") as writer:
        work = (writer.shard_folder, unet, params, settings.batch)
        fill([writer], {name: (name, seed) for name, seed in seeds.items()}, Artist, work, "concept_set", settings)
        writer.assemble()
        caption = object_prompt(d.object, d.word)
        items = []
        with store.fresh_folder(args.out) as folder:
            for name, sample in store.Store(pictures).items():
                save_png(np.asarray(sample["image"]), folder / "images" / f"{name}.png")
                items.append(Item(name, d.word, f"images/{name}.png", caption=caption))
            write_atomically(folder / "index.csv", table_csv(items))
    shutil.rmtree(args.scratch, ignore_errors=True)
    print(f"{args.out}: {len(items)} pictures of {d.word!r}")


if __name__ == "__main__":
    exit_cleanly(main)
