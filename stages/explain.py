"""Say why a pixel or a region of a picture got its label: the prototype that won, its support image and region, and
the runner-up (OVDiff 3.4).

Inputs:   a picture as first argument, or --images and --sample (default: the first picture there); --bank and --classes
          as for stage segment; --support: the support images, '' where they are not at hand.
          What to explain: --at X,Y (a pixel), --box X0,Y0,X1,Y1 (both ends included), --label NAME (all of a class) or
          --mask FILE (above half its range); without any of them the pixel deepest inside the largest class found
Outputs:  <out>.json: the explanation; <out>.png: the place on the picture beside the support regions
Command:  python stages/explain.py holiday.jpg --at 120,80 --bank data/prototypes --out explained
Time:     about 10 seconds, most of them for loading libraries
Expect:   the named prototype's cosine with the picture's feature is the winning score
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from scipy import ndimage

from maskmill import workers
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.pictures import find_pictures
from maskmill.datasets.table import read_image, read_mask
from maskmill.errors import UserError, exit_cleanly
from maskmill.from_bank import open_segmenter
from maskmill.report.explained import explained
from maskmill.report.labelmaps import png
from maskmill.segmenters.categories import load_categories
from maskmill.segmenters.openvocab import chosen_classes
from maskmill.segmenters.prototypes import Bank
from maskmill.segmenters.support import picture_of


def numbers(text: str, option: str, count: int, shape: tuple[int, int]) -> list[int]:
    """``12,40`` -> pixels of a picture of this (H, W), x and y in turn."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    inside = all(0 <= value < shape[1 - i % 2] for i, value in enumerate(found))
    if len(found) != count or not inside:
        raise UserError(f"{option}: expected {count} whole numbers with commas, pixels of a picture of "
                        f"{shape[1]}x{shape[0]}, got {text!r}")  # fmt: skip
    return found


def region_of(args, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What is asked about, (H, W) bool."""
    shape, asked = labels.shape, [o for o in ("at", "box", "label", "mask") if getattr(args, o)]
    if len(asked) > 1:
        raise UserError(f"expected one of --at, --box, --label and --mask, got {' and '.join('--' + o for o in asked)}")
    region = np.zeros(shape, bool)
    if args.at:
        x, y = numbers(args.at, "--at", 2, shape)
        region[y, x] = True
    elif args.box:
        x0, y0, x1, y1 = numbers(args.box, "--box", 4, shape)
        region[y0 : y1 + 1, x0 : x1 + 1] = True
    elif args.mask:
        region = read_mask(args.mask)
    elif args.label:
        if args.label not in names:
            raise UserError(f"--label: expected one of {', '.join(names)}, got {args.label!r}")
        region = labels == names.index(args.label)
    else:
        counts = np.bincount(labels.ravel(), minlength=len(names))
        largest = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
        depth = ndimage.distance_transform_edt(np.pad(labels == largest, 1))[1:-1, 1:-1]
        region.flat[int(depth.argmax())] = True
    if region.shape != shape or not region.any():
        raise UserError(f"--{asked[0]}: expected at least one pixel of a picture of {shape[1]}x{shape[0]}, got "
                        f"{int(region.sum())} of {region.shape[1]}x{region.shape[0]}")  # fmt: skip
    return region


def main() -> None:
    die_with_parent()
    given = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    args, params = stage_arguments(
        __doc__, ("model", "extractors", "segment"),
        {"images": "", "sample": "", "bank": "data/prototypes", "classes": "", "support": "data/support", "at": "",
         "box": "", "label": "", "mask": "", "out": "explained"},
        sys.argv[1 + len(given) :],
    )  # fmt: skip
    settings = runtime(batch=8)
    workers.pin(settings.device)
    pictures = find_pictures([*given, *([args.images] if args.images else [])])
    picture = next((p for p in pictures if p.sample_id == args.sample), None) if args.sample else pictures[0]
    if picture is None:
        raise UserError(f"--sample: expected an id of {args.images or given[0]}, got {args.sample!r}")
    bank = Bank(args.bank)
    classes, _ = chosen_classes(bank, load_categories(args.classes) if args.classes else [])
    segmenter = open_segmenter(bank, classes, params.model, params.extractors, params.segment, settings.batch,
                               settings.device)  # fmt: skip
    image = read_image(picture.path)
    try:
        labels = segmenter([image])[0].labels
    except UserError as error:
        raise UserError(f"{picture.path}: {error}") from None
    found = segmenter.explain(image, region_of(args, labels, segmenter.names))
    supports = {}
    for side in filter(None, (found["label"], found["runner_up"])):
        for p in side["prototypes"] if args.support else ():
            p["file"] = picture_of(args.support, p["class"], p["image"]).as_posix()
            supports[p["class"], p["image"]] = read_image(p["file"])
    document = {"picture": picture.path.as_posix(), "sample_id": picture.sample_id, **found}
    out = Path(args.out)
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(document, indent=1) + "\n")
    drawn = explained(image, labels, segmenter.names, found, supports)
    write_atomically(out.with_name(f"{out.name}.png"), png(drawn))
    best, second = found["label"], found["runner_up"]
    then = f", then {second['class']} {second['similarity']:.3f}" if second else ""
    by = "; ".join(f"{p['extractor']}: {p['kind']} prototype of {p['class']}, {p['image']}, cosine {p['cosine']:.3f}"
                   for p in best["prototypes"][:1])  # fmt: skip
    print(f"{out}.json, {out}.png: {best['class']} {best['similarity']:.3f}{then}{'; ' * bool(by)}{by}")


if __name__ == "__main__":
    exit_cleanly(main)
