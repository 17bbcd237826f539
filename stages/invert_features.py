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
from typing import NamedTuple

import numpy as np
import pandas as pd

from maskmill import store, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_image, read_table
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.features import FeatureMean
from maskmill.errors import UserError, exit_cleanly
from maskmill.labels import load_labels, plain_labels
from maskmill.prompts import load_tokenizer, word_span
from maskmill.spread import fill
from maskmill.zeroshot import PRIOR_TEMPLATES, ZeroShot, pick_words

SHARD = 32
CODE = ("maskmill.diffusion.passes", "maskmill.diffusion.capture", "maskmill.diffusion.sampling",
        "maskmill.diffusion.backbone", "maskmill.diffusion.features")  # fmt: skip
PRIOR_BATCH = 32  # a constant: another batch size rounds CLIP's probabilities another way
NO_WORD = (1, 2)  # without a class word: the first token after the start, which is the end token of the empty prompt


class Word(NamedTuple):
    """What the model is told of an image: the word, the caption with it, the word's tokens (end exclusive)."""

    text: str
    caption: str
    span: tuple[int, int]


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


def words_of(items: list[Item], prior: str, table: Path) -> list[str]:
    """The word that the model is told of each image, by a prior that needs no classifier.

    ``dataset`` and ``scene``: the image's class; ``absent``: a class that the set says it does not show, the wrong-word
    control; ``none``: no word.
    """
    if prior == "none":
        return [""] * len(items)
    column = "absent" if prior == "absent" else "class"
    words = [item.absent if prior == "absent" else item.cls for item in items]
    for item, word in zip(items, words, strict=True):
        if not word:
            raise UserError(f"{table}: {item.sample_id}: expected a value in the column {column!r}, got none")
    return words


def by_clip(items: list[Item], p) -> bool:
    """Whether CLIP finds the words: under ``clip``, and under ``absent`` where the set names no absent classes but CLIP
    has words to choose among."""
    choice = bool(p.labels) or len({item.cls for item in items}) > 1
    return p.prior == "clip" or (p.prior == "absent" and choice and not all(item.absent for item in items))


def clip_words(items: list[Item], folder: Path, params, device: str) -> list[str]:
    """The CLIP-classifiable prior: what CLIP sees in each image, among the words of ``invert_features.labels``; under
    the prior ``absent``, what it sees least."""
    name, clip, prior = params.invert_features.labels, params.model.clip, params.invert_features.prior
    if not clip:
        raise UserError(f"model.clip: expected a CLIP model for invert_features.prior {prior}, got ''")
    if not name and any(not item.cls for item in items):
        raise UserError(f"invert_features.labels: expected imagenet or a label file, as {folder}/index.csv names no "
                        "classes, got ''")  # fmt: skip
    labels = load_labels(name) if name else plain_labels(item.cls for item in items)
    workers.pin(device)
    judge = ZeroShot(clip, labels.labels, PRIOR_TEMPLATES, device, batch=PRIOR_BATCH)
    pictures = (read_image(folder / item.image) for item in progress(items, "prior", unit="image"))
    return [word for word, _ in pick_words(judge, pictures, labels.words, least=prior == "absent")]


def captioned(
    items: list[Item], words: list[str], prior: str, template: str, tokenizer, table: Path
) -> list[Word]:
    """Caption and token span of each word: the word in the template; under ``scene`` the image's own caption."""
    if "{}" not in template:
        raise UserError(f"invert_features.template: expected text with {{}} where the class goes, got {template!r}")
    out = []
    for item, word in zip(items, words, strict=True):
        if not word:
            out.append(Word("", "", NO_WORD))
            continue
        caption = item.caption if prior == "scene" else template.replace("{}", word)
        if not caption:
            raise UserError(f"{table}: {item.sample_id}: expected a value in the column 'caption', got none")
        try:
            out.append(Word(word, caption, word_span(tokenizer, caption, word)))
        except UserError as error:
            raise UserError(f"{table}: {item.sample_id}: {error}") from None
    return out


class Inverter:
    """One worker: the model, and what it does with a shard."""

    def __init__(
        self, folder: Path, records: store.ShardFolder, features: store.ShardFolder | None, params, batch: int, device
    ) -> None:
        p, g, m = params.invert_features, params.generate, params.model
        self.folder, self.records, self.features, self.params, self.batch = folder, records, features, params, batch
        self.backbone = Backbone(m.id, m.revision, m.dtype, device)
        self.capture = passes.open_capture(self.backbone, passes.RecordShape(g.bins, g.cells))
        self.means = FeatureMean(self.backbone.unet, p.path) if features is not None else None

    def __call__(self, job: tuple[int, list[tuple[Item, Word]]]) -> None:
        shard, todo = job
        p, g = self.params.invert_features, self.params.generate

        def follow(index: list[int]) -> list[tuple]:
            chosen = [todo[i] for i in index]
            images = np.stack([read_image(self.folder / item.image, g.size) for item, _ in chosen])
            found, vectors, errors = passes.invert(
                self.backbone, self.capture, images, [word.caption for _, word in chosen],
                [word.span for _, word in chosen], steps=p.steps, bins=g.bins, features=self.means,
            )  # fmt: skip
            records = [{**record, "latent_error": errors[k : k + 1]} for k, record in enumerate(found)]
            return list(zip(records, vectors or [None] * len(chosen), strict=True))

        ids = [item.sample_id for item, _ in todo]
        done = dict(zip(ids, workers.in_batches(len(todo), self.batch, follow), strict=True))
        if self.features is not None:
            self.features.put(shard, ids, {i: f for i, (_, f) in done.items()})
        self.records.describe(self.capture.meta)
        self.records.put(shard, ids, {i: r for i, (r, _) in done.items()})


def invert_missing(jobs: dict[str, tuple[Item, Word]], folder: Path, params, records, features) -> None:
    """Fill the shards that are missing in either store."""
    settings = runtime(batch=8)
    places = [records.shard_folder, features.shard_folder if features is not None else None]
    # Both: a kill between the two assemblies leaves one of them finished and its scratch cleared.
    writers = [records, *([features] if features is not None else [])]
    fill(writers, jobs, Inverter, (folder, *places, params, settings.batch), "invert", settings)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("model", "generate", "invert_features"),
        {"images": "data/world", "out": "data/inverted/world", "scratch": "scratch/invert_features/world"},
    )  # fmt: skip
    p, g, m = params.invert_features, params.generate, params.model
    folder, out = Path(args.images), Path(args.out)
    items = select(read_table(folder), p.limit)
    table = folder / "index.csv"
    device = runtime().device
    words = clip_words(items, folder, params, device) if by_clip(items, p) else words_of(items, p.prior, table)
    words = captioned(items, words, p.prior, p.template, load_tokenizer(m.id, m.revision), table)
    stamp = store.fingerprint(
        asdict(p), asdict(m), [g.size, g.bins, g.cells], words,
        store.model_stamp(m.id, m.revision),
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
    rows = [(i, jobs[i][1].text, jobs[i][1].caption, float(record["latent_error"][0]))
            for i, record in store.Store(out / "records").items()]  # fmt: skip
    table = pd.DataFrame(rows, columns=["sample_id", "word", "caption", "latent_error"])
    write_atomically(out / "index.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    error = f", mean latent error {table['latent_error'].mean():.4f}" if p.features else ""
    print(f"{out}: {len(table)} images{error}")


if __name__ == "__main__":
    exit_cleanly(main)
