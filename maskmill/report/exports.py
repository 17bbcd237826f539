"""A set of pictures with masks or label maps in the forms that other tools read.

    coco          images/<id>.png, annotations.json: one run-length mask per class and picture, as COCO-Stuff has them
    imagefolder   train/images, train/masks, train/metadata.jsonl, README.md: Hugging Face datasets loads the folder
    indexed       images/<id>.png, labels/<id>.png (indexed PNG: the pixel's value is its class), classes.txt

Pictures are copied byte for byte and keep their ending. Label 0 is the background, label k the k-th class, 255 void.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmill.datasets.pictures import find_pictures
from maskmill.datasets.table import Item, image_size, read_labels, read_mask
from maskmill.errors import UserError
from maskmill.report.labelmaps import VOID, labels_png
from maskmill.report.sets import annotation
from maskmill.store import write_atomically

OBJECT = "object"  # the class of a picture whose class is not known


@dataclass(frozen=True)
class Example:
    """One picture: its file, its label map (H, W) uint8, and the caption if there is one."""

    sample_id: str
    picture: Path
    labels: np.ndarray
    caption: str = ""


# --- what is exported -------------------------------------------------------------------------------------------------


def class_names(items: Iterable[Item]) -> list[str]:
    """The classes of an image set in the order of the alphabet: the names of labels 1, 2, ...

    Raises:
        UserError: more than a label map of 8 bits can number.
    """
    names = sorted({item.cls or OBJECT for item in items})
    if len(names) >= VOID:
        raise UserError(f"classes: expected at most {VOID - 1}, which is what 8 bits number, got {len(names)}")
    return names


def masked(items: Sequence[Item], images: Path, masks: Path | None, names: Sequence[str]) -> Iterator[Example]:
    """Pictures each with the mask of the one object that their class names.

    Args:
        items: rows of ``images``/index.csv.
        masks: a masks folder (``masks/<id>.png``); pictures that have none there are left out. None takes the set's
            own masks.
        names: of the labels 1, 2, ..., see ``class_names``.

    Raises:
        UserError: a set without masks of its own, a mask that is not readable, or none at all.
    """
    number, found = {name: k for k, name in enumerate(names, 1)}, 0
    for item in items:
        if masks is None and not item.mask:
            raise UserError(f"{images}/index.csv: {item.sample_id}: expected a mask, got an empty field; --masks or "
                            "--labels names a folder with masks")  # fmt: skip
        path = masks / "masks" / f"{item.sample_id}.png" if masks else images / item.mask
        if masks and not path.is_file():
            continue
        found += 1
        labels = read_mask(path).astype(np.uint8) * number[item.cls or OBJECT]
        yield Example(item.sample_id, images / item.image, labels, item.caption)
    if not found:
        raise UserError(f"{masks}: expected masks/<id>.png of the pictures in {images}/index.csv, found none")


def labelled(images: Path, labels: Path) -> Iterator[Example]:
    """Pictures of a set or of a plain folder, each with its label map ``labels/labels/<id>.png``; those without one are
    left out.

    Raises:
        UserError: no label map at all.
    """
    found = 0
    for picture in find_pictures([images]):
        path = labels / "labels" / f"{picture.sample_id}.png"
        if path.is_file():
            found += 1
            yield Example(picture.sample_id, picture.path, read_labels(path))
    if not found:
        raise UserError(f"{labels}: expected labels/<id>.png of the pictures in {images}, found none")


# --- the forms --------------------------------------------------------------------------------------------------------


def regions(labels: np.ndarray, number: int, first: int = 1) -> list[dict]:
    """COCO's annotations of the classes in a label map (H, W), of image ``number``, with ids from ``first`` on."""
    present = [int(k) for k in np.unique(labels) if k not in (0, VOID)]
    return [{**annotation(labels == k, number), "id": first + i, "category_id": k} for i, k in enumerate(present)]


def write_coco(folder: Path, examples: Iterable[Example], names: Sequence[str], description: str) -> int:
    """Write ``images/`` and ``annotations.json``; -> the number of pictures. See ``check`` for errors of all forms."""
    images, annotations = [], []
    for number, (example, file) in enumerate(copied(examples, folder / "images", names), 1):
        height, width = example.labels.shape
        images.append({"id": number, "file_name": file, "height": height, "width": width})
        if example.caption:
            images[-1]["caption"] = example.caption
        annotations += regions(example.labels, number, len(annotations) + 1)
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(names, 1)]
    document = {"info": {"description": description}, "licenses": [], "images": images, "annotations": annotations,
                "categories": categories}  # fmt: skip
    write_atomically(folder / "annotations.json", json.dumps(document) + "\n")
    return len(images)


def write_image_folder(folder: Path, examples: Iterable[Example], names: Sequence[str], description: str) -> int:
    """Write a folder for ``datasets.load_dataset``; -> the number of pictures.

    Columns: ``image``, ``mask`` (indexed picture), ``sample_id``, ``caption``, ``objects``: per class in the picture
    its name (``categories``), ``bbox`` (x, y, width, height) and ``area`` in pixels.
    """
    rows = []
    for number, (example, file) in enumerate(copied(examples, folder / "train/images", names), 1):
        mask = f"masks/{example.sample_id}.png"
        save(labels_png(example.labels), folder / "train" / mask)
        found = regions(example.labels, number)
        rows.append({
            "file_name": f"images/{file}", "mask_file_name": mask, "sample_id": example.sample_id,
            "caption": example.caption,
            "objects": {"categories": [names[entry["category_id"] - 1] for entry in found],
                        "bbox": [entry["bbox"] for entry in found], "area": [entry["area"] for entry in found]},
        })  # fmt: skip
    write_atomically(folder / "train/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "README.md", card(names, description, len(rows)))
    return len(rows)


def card(names: Sequence[str], description: str, count: int) -> str:
    """The data card: what the values of a mask mean."""
    listed = "\n".join(f"| {k} | {name} |" for k, name in [(0, "background"), *enumerate(names, 1), (VOID, "void")])
    return (f"---\ntask_categories:\n- image-segmentation\n---\n# {description}\n\n{count} pictures. A pixel of `mask` "
            f"holds the number of its class:\n\n| value | class |\n|---:|---|\n{listed}\n")  # fmt: skip


def write_indexed(folder: Path, examples: Iterable[Example], names: Sequence[str], description: str) -> int:
    """Write ``images/``, ``labels/`` and ``classes.txt``; -> the number of pictures."""
    count = 0
    for example, _ in copied(examples, folder / "images", names):
        save(labels_png(example.labels), folder / "labels" / f"{example.sample_id}.png")
        count += 1
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    write_atomically(folder / "about.txt", f"{description}\n")
    return count


FORMATS: dict[str, Callable[[Path, Iterable[Example], Sequence[str], str], int]] = {
    "coco": write_coco, "imagefolder": write_image_folder, "indexed": write_indexed}  # fmt: skip


# --- shared -----------------------------------------------------------------------------------------------------------


def copied(examples: Iterable[Example], images: Path, names: Sequence[str]) -> Iterator[tuple[Example, str]]:
    """Check each example and copy its picture; -> the example and the picture's name below ``images``."""
    for example in examples:
        check(example, names)
        file = f"{example.sample_id}{example.picture.suffix.lower()}"
        (images / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(example.picture, images / file)
        yield example, file


def check(example: Example, names: Sequence[str]) -> None:
    """Raises ``UserError`` where picture and label map differ in size, or a label has no name."""
    size, shape = image_size(example.picture), example.labels.shape
    if size != shape:
        raise UserError(f"{example.picture}: expected a label map of {size[1]}x{size[0]} pixels as the picture, got "
                        f"{shape[1]}x{shape[0]}")  # fmt: skip
    highest = int(example.labels[example.labels != VOID].max(initial=0))
    if highest > len(names):
        raise UserError(f"{example.sample_id}: expected labels 0 to {len(names)}, one per class, or {VOID}, got "
                        f"{highest}")  # fmt: skip


def save(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
