"""A synthetic set of pictures with masks, written so that other tools can read it (concept distillation, D'_s).

    images/<id>.png        the picture
    masks/<id>.png         0/255
    foregrounds/<id>.png   RGBA: the object alone, transparent and black elsewhere
    backgrounds/<id>.png   the picture with the object painted over
    annotations.json       COCO: one object per picture, run-length encoded and compressed; file names lie in images/
    index.csv              the same set for this project's own stages, see ``maskmill.datasets.table``

A picture with an empty mask has no annotation, as COCO's tools expect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmill.datasets.table import Item, save_png, table_csv
from maskmill.errors import UserError
from maskmill.masks.coco import encode
from maskmill.scores.localisation import tight_box
from maskmill.store import write_atomically


@dataclass(frozen=True)
class Sample:
    """One picture: image and background (H, W, 3) uint8, mask (H, W) bool."""

    sample_id: str
    image: np.ndarray
    mask: np.ndarray
    background: np.ndarray


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The object alone: (H, W, 4) uint8, alpha 255 on the mask; all else is 0, colours too."""
    alpha = mask[..., None].astype(np.uint8)
    return np.concatenate([image * alpha, 255 * alpha], axis=2)


def annotation(mask: np.ndarray, number: int) -> dict | None:
    """COCO's annotation of the one object of image ``number``, or None for an empty mask."""
    box = tight_box(mask)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    return {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], "segmentation": encode(mask)}  # fmt: skip


def write_set(folder: Path, samples: Iterable[Sample], word: str, description: str, dataset: str = "") -> list[Item]:
    """Write a set, picture by picture, into a folder (use ``maskmill.store.fresh_folder``).

    Args:
        samples: read once; one at a time is in memory.
        word: the one class. description: goes into the JSON's ``info``.
        dataset: value of that column of index.csv.

    Returns:
        The rows of index.csv.

    Raises:
        UserError: no sample, an id twice, or pictures and mask of different sizes.
    """
    items: dict[str, Item] = {}
    images, annotations = [], []
    for number, sample in enumerate(samples, 1):
        id, shape = sample.sample_id, sample.mask.shape
        if id in items:
            raise UserError(f"{folder}: sample {id}: expected each id once")
        if sample.mask.dtype != bool or not sample.image.shape == sample.background.shape == (*shape, 3):
            got = f"{sample.image.shape}, {sample.background.shape}, {shape} {sample.mask.dtype}"
            raise UserError(f"{folder}: sample {id}: expected image, background, bool mask of one size, got {got}")
        file = f"{id}.png"
        save_png(sample.image, folder / "images" / file)
        save_png(sample.mask, folder / "masks" / file)
        save_png(cut_out(sample.image, sample.mask), folder / "foregrounds" / file)
        save_png(sample.background, folder / "backgrounds" / file)
        images.append({"id": number, "file_name": file, "height": shape[0], "width": shape[1]})
        found = annotation(sample.mask, number)
        annotations += [found] if found else []
        items[id] = Item(id, word, f"images/{file}", f"masks/{file}", dataset=dataset)
    if not items:
        raise UserError(f"{folder}: expected at least one sample, got none")
    document = {"info": {"description": description}, "licenses": [], "images": images, "annotations": annotations,
                "categories": [{"id": 1, "name": word, "supercategory": ""}]}  # fmt: skip
    write_atomically(folder / "annotations.json", json.dumps(document, indent=1) + "\n")
    write_atomically(folder / "index.csv", table_csv(list(items.values())))
    return list(items.values())
