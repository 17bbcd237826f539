"""Invert images into the diffusion model: attention records and features F^l of real images (DiffusionSeg 3.3.1).

Inputs:   an image set (folder with index.csv, see maskmill.datasets.table), the diffusion model
Outputs:  <out>/records: attention records; <out>/features: F^l (with invert_features.features); <out>/index.csv: id,
          class, caption used, relative error of the latent after inversion and reverse pass
Command:  python stages/invert_features.py --images data/world --out data/inverted/world
Time:     about 3 minutes for 600 scenes of the miniature on 2 cores; killed, it goes on at the last finished shard
Expect:   a relative error that falls with steps (bench/inversion.py prints it against T)
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_image, read_table
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.features import FeatureMean
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import load_tokenizer, word_span

SHARD = 32
CODE = ("maskmill.diffusion.passes", "maskmill.diffusion.capture", "maskmill.diffusion.sampling",
        "maskmill.diffusion.backbone", "maskmill.diffusion.features")  # fmt: skip
NO_WORD = (1, 2)  # without a class word: the first token after the start, which is the end token of the empty prompt


def select(items: list[Item], limit: int) -> list[Item]:
    """The first ``limit`` images of each draw (0: all of them)."""
    if not limit:
        return items
    taken: dict[str, int] = {}
    kept = []
    for item in items:
        taken[item.seed] = taken.get(item.seed, 0) + 1
        if taken[item.seed] <= limit:
            kept.append(item)
    return kept


def captioned(
    items: list[Item], mode: str, template: str, tokenizer, table: Path
) -> list[tuple[str, str, tuple[int, int]]]:
    """(word, caption, token span of the word) of each image.

    ``class``: the class in the template; ``scene``: the scene's own caption; ``absent``: a class that the picture does
    not show, the wrong-word control; ``none``: the empty prompt.
    """
    if "{}" not in template:
        raise UserError(f"invert_features.template: expected text with {{}} where the class goes, got {template!r}")
    out = []
    for item in items:
        word = {"absent": item.absent, "none": ""}.get(mode, item.cls)
        if mode == "none":
            out.append((word, "", NO_WORD))
            continue
        caption = item.caption if mode == "scene" else template.replace("{}", word)
        column = {"scene": "caption", "absent": "absent"}.get(mode, "class")
        if not word or not caption:
            raise UserError(f"{table}: {item.sample_id}: expected a value in the column {column!r}, got none")
        try:
            out.append((word, caption, word_span(tokenizer, caption, word)))
        except UserError as error:
            raise UserError(f"{table}: {item.sample_id}: {error}") from None
    return out


def invert_missing(jobs: dict[str, tuple[Item, tuple]], folder: Path, params, records, features) -> None:
    """Fill the shards that are missing in either store."""
    p, g, m, settings = params.invert_features, params.generate, params.model, runtime(batch=8)
    # Of both: a kill between the two assemblies leaves one of them finished and its scratch cleared.
    missing = sorted({**dict(records.missing()), **(dict(features.missing()) if features else {})}.items())
    if not missing:
        return
    backbone = Backbone(m.id, m.revision, m.dtype, settings.device)
    capture = passes.open_capture(backbone, passes.RecordShape(g.bins, g.columns_rows, g.anchors))
    means = FeatureMean(backbone.unet, p.path) if features is not None else None
    with progress(None, "invert", total=sum(len(ids) for _, ids in missing), unit="image") as bar:
        for shard, ids in missing:
            done: dict[str, tuple] = {}
            for index, new in passes.padded_batches(len(ids), settings.batch):
                chosen = [jobs[ids[i]] for i in index]
                images = np.stack([read_image(folder / item.image, g.size) for item, _ in chosen])
                found, vectors, errors = passes.invert(
                    backbone, capture, images, [caption for _, (_, caption, _) in chosen],
                    [span for _, (_, _, span) in chosen], steps=p.steps, bins=g.bins, features=means,
                )  # fmt: skip
                for k in range(new):
                    record = {**found[k], "latent_error": errors[k : k + 1]}
                    done[chosen[k][0].sample_id] = (record, vectors[k] if vectors else None)
                bar.update(new)
            if features is not None:
                features.put(shard, {i: f for i, (_, f) in done.items()})
            records.describe(capture.meta)
            records.put(shard, {i: r for i, (r, _) in done.items()})


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("model", "generate", "invert_features"),
        {"images": "data/world", "out": "data/inverted/world", "scratch": "scratch/invert_features/world"},
    )  # fmt: skip
    p, g, m = params.invert_features, params.generate, params.model
    folder, out = Path(args.images), Path(args.out)
    items = select(read_table(folder), p.limit)
    words = captioned(items, p.caption, p.template, load_tokenizer(m.id, m.revision), folder / "index.csv")
    stamp = store.fingerprint(
        asdict(p), asdict(m), [g.size, g.bins, g.columns_rows, g.anchors], words,
        store.hash_tree(m.id) if Path(m.id).is_dir() else "",
        [store.hash_file(folder / item.image) for item in items], store.code_hashes(*CODE),
    )  # fmt: skip
    jobs = {item.sample_id: (item, word) for item, word in zip(items, words, strict=True)}
    shutil.rmtree(out, ignore_errors=True)  # as DVC does; what is worth keeping waits in scratch
    with ExitStack() as stack:
        records = stack.enter_context(store.ShardWriter(out / "records", list(jobs), stamp, {}, SHARD, args.scratch))
        features = None
        if p.features:
            place = f"{args.scratch}-features"
            features = stack.enter_context(store.ShardWriter(out / "features", list(jobs), stamp, {}, SHARD, place))
        invert_missing(jobs, folder, params, records, features)
        if features is not None:
            features.assemble()
        records.assemble()
    rows = [(i, jobs[i][1][0], jobs[i][1][1], float(record["latent_error"][0]))
            for i, record in store.Store(out / "records").items()]  # fmt: skip
    table = pd.DataFrame(rows, columns=["sample_id", "word", "caption", "latent_error"])
    write_atomically(out / "index.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    print(f"{out}: {len(table)} images, mean latent error {table['latent_error'].mean():.4f}")


if __name__ == "__main__":
    exit_cleanly(main)
