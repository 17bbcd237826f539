"""Features of images from a frozen network beside the diffusion model: CLIP, DINO, MAE, MoCo (DiffusionSeg Table 4).

Inputs:   an image set (folder with index.csv, see maskmill.datasets.table), the network's folder, hub id or name/tag
Outputs:  <out>: a store of features in the form of invert_features' own, so that the decoder takes either; its manifest
          says which layer each of them comes from
Command:  python stages/extract_features.py --images data/world --out data/extracted/clip/world
Time:     about 10 seconds for 300 scenes with the miniature's CLIP, nearly all of it for loading libraries
Expect:   one sample per image, whatever its size: pictures are squashed to a square of extract_features.size
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from maskmill import store, workers
from maskmill.cli import die_with_parent, runtime, stage_arguments
from maskmill.datasets.table import Item, read_image, read_table
from maskmill.errors import exit_cleanly
from maskmill.params import ExtractFeatures
from maskmill.segmenters.extractors import Extractor, Source, locate
from maskmill.spread import fill

SHARD = 32
CODE = ("maskmill.segmenters.extractors", "maskmill.datasets.table")


class ShardOfFeatures:
    """One worker: the network, and what it does with a shard."""

    def __init__(
        self, source: Source, folder: Path, shards: store.ShardFolder, params: ExtractFeatures, batch: int, device: str
    ) -> None:
        self.source, self.folder, self.shards, self.params = source, folder, shards, params
        self.batch, self.device = batch, device

    @cached_property
    def extractor(self) -> Extractor:
        """Loaded by the first job, whose errors reach the user; those of a worker's start do not."""
        p = self.params
        return Extractor(self.source, p.facet, p.layers, p.size, self.device)

    def __call__(self, job: tuple[int, list[Item]]) -> None:
        shard, items = job

        def extract(index: list[int]) -> list[dict]:
            return self.extractor([read_image(self.folder / items[i].image, self.params.size) for i in index])

        ids = [item.sample_id for item in items]
        done = dict(zip(ids, workers.in_batches(len(items), self.batch, extract), strict=True))
        self.shards.describe(self.extractor.meta)
        self.shards.put(shard, ids, done)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("extract_features",),
        {"images": "data/world", "out": "data/extracted/clip/world", "scratch": "scratch/extract_features/clip/world"},
    )  # fmt: skip
    p, folder, settings = params.extract_features, Path(args.images), runtime(batch=8)
    items = {item.sample_id: item for item in read_table(folder)}
    source = locate(p.family, p.id, p.revision)
    stamp = store.fingerprint(
        asdict(p), source.stamp(), [store.hash_file(folder / item.image) for item in items.values()],
        store.code_hashes(*CODE),
    )  # fmt: skip
    with store.ShardWriter(args.out, list(items), stamp, {}, SHARD, args.scratch) as writer:
        work = (source, folder, writer.shard_folder, p, settings.batch)
        fill([writer], items, ShardOfFeatures, work, "extract", settings)
        writer.assemble()
    made = ", ".join(f"{name} from {layer}" for name, layer in store.Store(args.out).meta["features"].items())
    print(f"{args.out}: {len(items)} images; {made}")


if __name__ == "__main__":
    exit_cleanly(main)
