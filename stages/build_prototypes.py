"""Build the prototypes of classes from their support sets (OVDiff 3.3); no training.

Inputs:   one class (--class), or a text file with a class per line (--classes-file); the folder of support sets; the
          feature extractors; with build_prototypes.regions proposals, COCO files of proposals
Outputs:  <out>/<class>: the class's prototypes (<out> is a bank, see maskmill.segmenters.prototypes) and support.csv,
          what became of each support image; <metrics>/support-<class>.json: counts and thresholds, and
          <metrics>/support-<class>.png: the support images with their regions
Command:  python stages/build_prototypes.py --classes-file classes.txt --support data/support --out data/prototypes
Time:     about 2 seconds a class of the miniature on one core, and 5 for loading libraries, once
Expect:   a class's files are the same whatever other classes there are. A class none of whose support images has a
          foreground is reported, counted and kept out of the bank. Classes that are finished stay as they are
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_image, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.regions import Regions
from maskmill.params import BuildPrototypes, Extractors, Model
from maskmill.segmenters.features_of import FeatureExtractor, open_extractors
from maskmill.segmenters.prototypes import Bank, ClassPrototypes, Support, build_class
from maskmill.segmenters.support import class_folder, wanted
from maskmill.segmenters.support_regions import RegionFinder, attribution, draw_support, open_proposals

CODE = tuple(f"maskmill.{name}" for name in (
    "segmenters.features_of", "segmenters.extractors", "segmenters.support_regions", "segmenters.prototypes",
    "masks.regions", "masks.attentioncut", "masks.coco", "masks.rivals", "diffusion.backbone", "diffusion.noise",
))  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to know."""

    model: Model
    extractors: Extractors
    settings: BuildPrototypes
    seed: int
    support: Path
    out: Path
    metrics: Path
    batch: int


class Builder:
    """One worker: the extractors, and what it does with a class."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.proposals = open_proposals(recipe.settings)

    @cached_property
    def extractors(self) -> dict[str, FeatureExtractor]:
        r = self.recipe
        return open_extractors(r.model, r.extractors.names, r.extractors, self.device)

    def features(self, images: list[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Of each picture {extractor: (C, h, w) float32}, as they are needed: a batch of them is in memory."""
        for first in range(0, len(images), self.recipe.batch):
            part = images[first : first + self.recipe.batch]

            def compute(index: list[int], part=part) -> list[dict[str, np.ndarray]]:
                chosen = [part[i] for i in index]
                maps = {name: extract(chosen).cpu().numpy() for name, extract in self.extractors.items()}
                return [{name: x[k] for name, x in maps.items()} for k in range(len(chosen))]

            yield from workers.in_batches(len(part), self.recipe.batch, compute)

    def __call__(self, name: str) -> str:
        """Build one class; -> built, finished (it was there already) or kept out."""
        r = self.recipe
        folder, out = r.support / class_folder(name), r.out / class_folder(name)
        items, records = read_table(folder / "set"), store.Store(folder / "records")
        facts = {key: extract.facts for key, extract in self.extractors.items()}
        stamp = store.fingerprint(
            name, asdict(r.settings), r.seed, facts, records.fingerprint,
            [[item.sample_id, store.hash_file(folder / "set" / item.image)] for item in items],
            hashed(r.settings.proposals if r.settings.regions == "proposals" else ""),
            store.code_hashes(*CODE),
        )  # fmt: skip
        report, grid = (r.metrics / f"support-{class_folder(name)}.{end}" for end in ("json", "png"))
        if Bank(out).fingerprint(name) == stamp and report.is_file() and grid.is_file():
            return "finished"
        images = [read_image(folder / "set" / item.image) for item in items]
        maps = [attribution(records.read(item.sample_id), image, r.settings)
                for item, image in zip(items, images, strict=True)]  # fmt: skip
        find = RegionFinder(r.settings, maps, self.proposals)
        regions: list[Regions] = []

        def supports() -> Iterator[Support]:
            for item, a, x, image in zip(items, maps, self.features(images), images, strict=True):
                regions.append(find(item.sample_id, a, x, image.shape[:2]))
                yield Support(item.sample_id, x, regions[-1].foreground, regions[-1].background)

        found = build_class(name, supports(), r.settings.parts, r.seed, r.settings.sample)
        with store.fresh_folder(out) as aside:
            write_atomically(aside / "support.csv", table(items, regions))
            if found.usable:
                Bank(aside).write(found, stamp, facts)
        counts = summary(found, find)
        draw_support(grid, name, images, regions, r.settings.grid_rows, note(counts))
        write_atomically(report, json.dumps(counts, indent=1) + "\n")
        return "built" if found.usable else "kept out"


def hashed(path: str) -> str:
    """What tells the user's proposals from others; empty for none."""
    if not path:
        return ""
    return store.hash_tree(path) if Path(path).is_dir() else store.hash_file(path)


def table(items: list[Item], regions: list[Regions]) -> str:
    """support.csv: the share of each support image that is foreground and background, and flags."""
    rows = [{"sample_id": item.sample_id, "image": item.image, "foreground": round(float(own.foreground.mean()), 6),
             "background": round(float(own.background.mean()), 6), "flags": " ".join(own.flags)}
            for item, own in zip(items, regions, strict=True)]  # fmt: skip
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def summary(found: ClassPrototypes, find: RegionFinder) -> dict:
    """Counts and thresholds of one class, for its JSON file."""
    facts = {"class": found.name, "kept_out": not found.usable, "images": len(found.images),
             "without_foreground": len(found.without)}  # fmt: skip
    if find.thresholds is not None:
        low, high, fallback = find.thresholds.low, find.thresholds.high, find.thresholds.fallback
        facts |= {"threshold_background": low, "threshold_foreground": high, "fallback": fallback}
    for key, links in found.links.items():
        counts = Counter(f"{link.ground}_{link.kind}" for link in links)
        facts[f"prototypes_{key}"] = dict(sorted(counts.items()))
    return facts


def note(counts: dict) -> str:
    """What the grid's title says beside the class."""
    with_one = counts["images"] - counts["without_foreground"]
    return f"{with_one} of {counts['images']} support images with a foreground" + (
        ", kept out" if counts["kept_out"] else ""
    )


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "extractors", "build_prototypes"),
        {"class": None, "classes-file": None, "support": "data/support", "out": "data/prototypes",
         "metrics": "metrics/ovdiff"},
    )  # fmt: skip
    classes, run, settings = wanted(vars(args)["class"], args.classes_file), runtime(batch=8), params.build_prototypes
    support = Path(args.support)
    for name in classes:
        if not (support / class_folder(name) / "set/index.csv").is_file():
            raise UserError(f"{support / class_folder(name)}: expected the support set of the class {name!r}, found "
                            "none; run stages/support.py first")  # fmt: skip
    if settings.regions == "maskcut" and settings.maskcut.extractor not in params.extractors.names:
        raise UserError(f"build_prototypes.maskcut.extractor: expected one of extractors.names "
                        f"({', '.join(params.extractors.names)}), got {settings.maskcut.extractor!r}")  # fmt: skip
    recipe = Recipe(params.model, params.extractors, settings, params.seed, support, Path(args.out),
                    Path(args.metrics), run.batch)  # fmt: skip
    became: dict[str, list[str]] = {"built": [], "finished": [], "kept out": []}
    with progress(None, "prototypes", total=len(classes), unit="class") as bar:

        def done(name: str, how: str) -> None:
            became[how].append(name)
            bar.update()

        workers.run(Builder, (recipe,), classes, workers.devices(run.device, run.workers), done)
    for name in sorted(became["kept out"]):
        print(f"class {name!r}: kept out, none of its support images has a foreground; see {args.metrics}",
              file=sys.stderr)  # fmt: skip
    print(f"{args.out}: {len(became['built'])} classes built, {len(became['finished'])} were finished already, "
          f"{len(became['kept out'])} kept out")  # fmt: skip
    if args.classes_file is not None and len(became["kept out"]) == len(classes):
        raise UserError(f"{args.classes_file}: expected a class whose support images have a foreground, found none")


if __name__ == "__main__":
    exit_cleanly(main)
