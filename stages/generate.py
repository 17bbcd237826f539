"""Synthesise the images of the prompts and record the attention of their class words (DiffusionSeg 3.2).

Inputs:   data/prompts.csv, the diffusion model, with generate.filter > 0 the CLIP model
Outputs:  data/generated/records: attention records; data/generated/set: images/, index.csv (with each image's CLIP
          probability of its own class; images below generate.filter are left out of it)
Command:  python stages/generate.py --prompts data/prompts.csv --out data/generated
Time:     about 20 seconds for 64 images of the miniature on 2 cores; killed, it goes on at the last finished shard
Expect:   images that show their class; the same files whatever MASKMILL_BATCH, up to the rounding of its kernels
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store
from maskmill.cli import Runtime, die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.diffusion import passes
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import Row, check_context, load_tokenizer, read_csv
from maskmill.spread import fill
from maskmill.synthesis import Synthesiser, save_pictures, set_table
from maskmill.zeroshot import ZeroShot

SHARD = 16  # small, as at the end workers wait for the last one; large, as a GPU takes no more pictures at once
CODE = ("maskmill.diffusion.passes", "maskmill.diffusion.capture", "maskmill.diffusion.sampling",
        "maskmill.diffusion.backbone", "maskmill.diffusion.features", "maskmill.zeroshot")  # fmt: skip


def check_prompts(rows: list[Row], negative: str, path: str, tokenizer) -> None:
    """Refuse prompts that the model would truncate, and class words outside of them, before anything is made."""
    try:
        check_context(tokenizer, negative)
    except UserError as error:
        raise UserError(f"generate.negative: {error}") from None
    for row in rows:
        try:
            check_context(tokenizer, row.prompt, row.token_end)
        except UserError as error:
            raise UserError(f"{path}: row {row.sample_id}: {error}") from None


class Work:
    """One worker: the models, and what it does with a shard. Images, and what CLIP says of them, are there before the
    shard that vouches for them."""

    def __init__(
        self, records: store.ShardFolder, features: store.ShardFolder | None, images: Path, classes: list[str], params,
        batch: int, device: str,
    ) -> None:  # fmt: skip
        g, clip = params.generate, params.model.clip
        self.records, self.features, self.images = records, features, images
        shape = passes.RecordShape(g.bins, g.cells)
        path = params.invert_features.path if features is not None else None
        self.synthesise = Synthesiser(params.model, g, g.negative, shape, batch, device, path)
        self.clip = ZeroShot(clip, classes, device=device) if clip else None

    def __call__(self, job: tuple[int, list[Row]]) -> None:
        shard, rows = job
        made = self.synthesise(rows)
        save_pictures(made, self.images)
        if self.clip is not None:
            found = judge(self.clip, rows, [made[row.sample_id].picture for row in rows])
            store.write_atomically(verdicts(self.images, shard), store.canonical_json(found))
        if self.features is not None:
            self.features.put(shard, list(made), {name: own.features for name, own in made.items()})
        self.records.describe(self.synthesise.meta)
        self.records.put(shard, list(made), {name: own.record for name, own in made.items()})


def verdicts(images: Path, shard: int) -> Path:
    """Where a worker keeps what CLIP says of a shard's images."""
    return images / f"{shard:05d}.json"


def judge(clip: ZeroShot, rows: list[Row], pictures: list[np.ndarray]) -> dict[str, tuple[float, str]]:
    """id -> the probability of the image's own class, and the class that CLIP would choose."""
    p, classes = clip.probabilities(pictures), clip.classes  # (images, classes)
    return {row.sample_id: (round(float(own[classes.index(row.cls)]), 6), classes[own.argmax()])
            for row, own in zip(rows, p, strict=True)}  # fmt: skip


def synthesise(rows: list[Row], records, features, images: Path, params, settings: Runtime) -> None:
    """Fill the shards that are missing in either store."""
    folders = [records.shard_folder, features.shard_folder if features is not None else None]
    writers = [records, *([features] if features is not None else [])]
    by_id = {row.sample_id: row for row in rows}
    work = (*folders, images, sorted({row.cls for row in rows}), params, settings.batch)
    fill(writers, by_id, Work, work, "generate", settings)


def check_filter(rows: list[Row], clip: str, share: float) -> None:
    """Refuse a noise filter that cannot tell good from bad, before anything is made."""
    if share > 0 and not clip:
        raise UserError("generate.filter: expected 0 without a CLIP model; set model.clip to use the noise filter")
    if share > 0 and len({row.cls for row in rows}) < 2:
        raise UserError("generate.filter: expected 0, or at least two classes for CLIP to choose from, got one")


def kept(rows: list[Row], images: Path, shards: int, params) -> pd.DataFrame:
    """The table of the set: with a CLIP model, the images that pass the noise filter and what CLIP said of each."""
    table = set_table(rows)
    if params.model.clip:
        found = {k: v for shard in range(shards) for k, v in json.loads(verdicts(images, shard).read_text()).items()}
        table["clip_own"], table["clip_best"] = zip(*(found[i] for i in table["sample_id"]), strict=True)
        table = table[table["clip_own"] >= params.generate.filter]
    if table.empty:
        raise UserError(f"generate.filter {params.generate.filter}: expected some images to pass, all were dropped")
    return table


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("model", "generate", "invert_features"),
        {"prompts": "data/prompts.csv", "out": "data/generated", "scratch": "scratch/generate"},
    )  # fmt: skip
    settings, out = runtime(batch=8), Path(args.out)
    rows = read_csv(args.prompts)
    check_prompts(rows, params.generate.negative, args.prompts, load_tokenizer(params.model.id, params.model.revision))
    check_filter(rows, params.model.clip, params.generate.filter)
    made_from = {k: v for k, v in asdict(params.generate).items() if k != "filter"}
    model = params.model
    stamp = store.fingerprint(
        made_from, params.invert_features.path, asdict(model), store.model_stamp(model.id, model.revision),
        store.model_stamp(model.clip, "") if model.clip else "", [asdict(r) for r in rows], store.code_hashes(*CODE),
    )  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)  # as DVC does; what is worth keeping waits in scratch
    ids = [r.sample_id for r in rows]
    with ExitStack() as stack:
        writer = stack.enter_context(store.ShardWriter(out / "records", ids, stamp, {}, SHARD, args.scratch))
        if out.joinpath("set").is_dir():
            return  # another process, waited for, has just made all of it
        features = None
        if params.generate.features:
            place = f"{args.scratch}-features"
            features = stack.enter_context(store.ShardWriter(out / "features", ids, stamp, {}, SHARD, place))
        images = writer.folder / "images"
        synthesise(rows, writer, features, images, params, settings)
        table = kept(rows, images, len(writer.shards), params)
        for name in table["image"]:
            target = out / "set" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(images / Path(name).name, target)
        write_atomically(out / "set" / "index.csv", table.to_csv(index=False, lineterminator="\n"))
        if features is not None:
            features.assemble()
        writer.assemble()
    print(f"{out}: {len(table)} of {len(rows)} images kept")


if __name__ == "__main__":
    exit_cleanly(main)
