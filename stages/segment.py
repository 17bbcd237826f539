"""Segment pictures of your own with a bank of prototypes (OVDiff), or with a trained decoder; no DVC needed.

Inputs:   pictures or folders of pictures, as first arguments or --images (an image set with index.csv keeps its ids);
          --bank: prototypes that stage build_prototypes wrote; --classes: which of its classes, and which of them are
          stuff: a data set of maskmill/labels/things.csv, a CSV file (class, query, kind) or a list; '' takes all.
          Or --decoder: a folder that stage train_decoder wrote, which finds the object and no classes
Outputs:  <out>/labels/<id>.png: label maps, indexed with a palette, of the picture's size; <out>/overlays/<id>.png;
          <out>/annotations.json: COCO with run-length masks, one per class and picture; <out>/index.csv: classes
          found and searched for, shares, similarity; <out>/classes.txt: the names of labels 1, 2, ...
Command:  python stages/segment.py holiday.jpg photos/ --bank data/prototypes --out segmented
Time:     about 0.2 to 0.3 s a scene of the miniature on one core; a killed run goes on where it was, and a finished one
          keeps what neither the picture nor the settings have changed
Expect:   a picture's label map depends on nothing but that picture, the bank and the parameters
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np

from maskmill import store, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments
from maskmill.datasets.pictures import Picture, find_pictures
from maskmill.datasets.table import read_image
from maskmill.errors import UserError, exit_cleanly
from maskmill.from_bank import open_segmenter
from maskmill.labels import load_labels, plain_labels
from maskmill.masks import refine
from maskmill.report import segmentations
from maskmill.segmenters.categories import Category, load_categories
from maskmill.segmenters.openvocab import Found, chosen_classes
from maskmill.segmenters.prototypes import Bank
from maskmill.segmenters.saliency import Saliency
from maskmill.segmenters.windows import plan
from maskmill.spread import fill

SHARD = 8
CODE = tuple(f"maskmill.{name}" for name in (
    "segmenters.openvocab", "segmenters.matching", "segmenters.windows", "segmenters.categories",
    "segmenters.features_of", "segmenters.extractors", "segmenters.saliency", "segmenters.models", "masks.pamr",
    "masks.refine", "report.labelmaps", "zeroshot", "diffusion.passes", "diffusion.backbone",
))  # fmt: skip
OBJECT = "object"  # what a decoder finds


class Work:
    """One worker: the models, and what it does with some pictures."""

    def __init__(
        self, bank: Path, classes: list[Category], decoder: str, names: list[str], shards: store.ShardFolder, params,
        batch: int, device: str,
    ) -> None:  # fmt: skip
        self.bank, self.classes, self.decoder, self.names, self.shards = bank, classes, decoder, names, shards
        self.params, self.batch, self.device = params, batch, device

    @cached_property
    def find(self) -> Callable[[list[np.ndarray]], list[Found]]:
        """Loaded by the first job, whose errors reach the user."""
        params = self.params
        if self.decoder:
            return self.by_decoder(params)
        return open_segmenter(Bank(self.bank), self.classes, params.model, params.extractors, params.segment,
                              self.batch, self.device)  # fmt: skip

    def by_decoder(self, params) -> Callable[[list[np.ndarray]], list[Found]]:
        p, labels = params.invert_features, None
        if params.segment.prior == "clip":
            labels = load_labels(p.labels) if p.labels else plain_labels(params.prompts.classes)
        net = Saliency(self.decoder, params.model, p, params.generate.size, labels, self.device)

        def find(images: list[np.ndarray]) -> list[Found]:
            words = net.words(images)
            inputs = workers.in_batches(len(images), self.batch, lambda index: net.inputs(
                [images[i] for i in index], [words[i] for i in index]))  # fmt: skip
            out = []
            for image, x, word in zip(images, inputs, words, strict=True):
                soft = net.soft(x, image.shape[:2])
                soft, mask = refine.refine(soft, soft > 0.5, image, params.postprocess)
                sure = np.where(mask, soft, 1 - soft)
                out.append(Found(mask.astype(np.uint8), sure, (word,) if word else (), 1))
            return out

        return find

    def __call__(self, job: tuple[int, list[Picture]]) -> None:
        shard, pictures = job
        images = [read_image(p.path) for p in pictures]
        done = {}
        for picture, image, found in zip(pictures, images, self.find(images), strict=True):
            facts = {"searched": ";".join(found.searched), "similarity": round(float(found.similarity.mean()), 4),
                     "views": found.views}  # fmt: skip
            made = segmentations.result(picture, image, found.labels, self.names, facts)
            done[picture.sample_id] = segmentations.as_arrays(made)
        self.shards.put(shard, [p.sample_id for p in pictures], done)


def recipe(args, params, classes: list[Category]) -> str:
    """Fingerprint of all that a label map depends on but the picture."""
    m, s = params.model, params.segment
    made = [asdict(m), store.model_stamp(m.id, m.revision), store.model_stamp(m.clip, "") if m.clip else "",
            asdict(s), store.code_hashes(*CODE)]  # fmt: skip
    if args.decoder:
        inverted = [asdict(params.invert_features), params.generate.size, params.prompts.classes]
        return store.fingerprint(made, store.hash_tree(args.decoder), inverted, asdict(params.postprocess))
    bank = Bank(args.bank)
    return store.fingerprint(made, asdict(params.extractors), [asdict(c) for c in classes],
                             [store.hash_files(bank.files(c.name)) for c in classes])  # fmt: skip


def refuse_small(pictures: list[Picture], p) -> None:
    """Pictures that no window fits into are found before anything is computed."""
    for picture in pictures:
        try:
            plan(*picture.size, p.short, p.sizes, p.stride, p.whole)
        except UserError as error:
            raise UserError(f"{picture.path}: {error}") from None


def main() -> None:
    die_with_parent()
    given = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    args, params = stage_arguments(
        __doc__, ("model", "extractors", "segment", "generate", "invert_features", "prompts", "postprocess"),
        {"images": "", "bank": "data/prototypes", "classes": "", "decoder": "", "out": "segmented", "scratch": None},
        sys.argv[1 + len(given) :],
    )  # fmt: skip
    out, places = Path(args.out), [*given, *([args.images] if args.images else [])]
    inside = next((p for p in places if Path(p).resolve() in (out.resolve(), *out.resolve().parents)), None)
    if inside:
        raise UserError(f"--out {out}: expected a folder outside of {inside}, whose pictures are read")
    pictures, classes, missing = find_pictures(places), [], []
    if not args.decoder:
        refuse_small(pictures, params.segment)
        classes, missing = chosen_classes(Bank(args.bank), load_categories(args.classes) if args.classes else [])
    names = ["background", *([OBJECT] if args.decoder else [c.name for c in classes])]
    made = recipe(args, params, classes)
    stamps = {p.sample_id: store.fingerprint(made, store.hash_file(p.path)) for p in pictures}
    old = segmentations.kept(out, stamps, names)
    todo = {p.sample_id: p for p in pictures if p.sample_id not in old}
    new, settings = None, runtime(batch=8)
    scratch = Path(args.scratch or f"scratch/segment/{'-'.join(p for p in out.parts if p not in ('/', '..'))}")
    finished = scratch.with_name(f"{scratch.name}-finished")
    if todo:
        stamp = store.fingerprint([stamps[i] for i in todo])
        with store.ShardWriter(finished, list(todo), stamp, {}, SHARD, scratch) as writer:
            work = (Path(args.bank), classes, args.decoder, names, writer.shard_folder, params, settings.batch)
            fill([writer], todo, Work, work, "segment", settings)
            writer.assemble()
        new = store.Store(finished)

    def result_of(id: str) -> segmentations.Result:
        return old[id] if id in old else segmentations.from_arrays(new.read(id))

    with store.fresh_folder(out) as folder:
        results = ((p, result_of(p.sample_id)) for p in progress(pictures, "write", unit="image"))
        segmentations.write(folder, results, names, stamps)
    shutil.rmtree(finished, ignore_errors=True)
    again = f", {len(old)} of them kept from before" if old else ""
    lacking = f"; not in the bank: {', '.join(missing)}" if missing else ""
    print(f"{out}: {len(pictures)} label maps of {len(names) - 1} classes{again}{lacking}")


if __name__ == "__main__":
    exit_cleanly(main)
