"""Readers of the image sets that concept distillation learns from: every image shows the one object.

* Stanford Dogs, 20,580: ``Images/n02085620-Chihuahua/*.jpg``, ``Annotation/n02085620-Chihuahua/n02085620_10074`` (XML
  without an ending); its split, 12,000 and 8,580: ``train_list.mat``, ``test_list.mat``, also within ``lists``
* Stanford Cars, 8,144 and 8,041: ``cars_train/*.jpg``, ``cars_test/*.jpg``, ``devkit/cars_train_annos.mat``,
  ``devkit/cars_test_annos.mat`` (or ``cars_test_annos_withlabels.mat``, here or in the folder itself)
* CUB, 10,788 that are no test images: as in ``maskmill.datasets.benchmarks``, which reads the 1,000 test images
* Human3.6M: a folder of crops, ``images/**.jpg`` or png (or these in the folder itself); beside ``images``, under the
  same names, ``masks/**.png`` or ``boxes/**.txt`` with one ``x0 y0 x1 y1`` a line, in pixels from 0, ends inclusive
* pictures: any folder of pictures, and a word

Nothing is copied: items hold absolute paths, an id is the set's name and the file's, and the class is the word that the
diffusion model is told. Boxes of Dogs count from 0 and are taken as they stand, both ends inclusive (the set does not
say, and one pixel is the most that they can be off); those of Cars are MATLAB's, from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import loadmat

from maskmill.datasets.benchmarks import (
    PHOTOGRAPHS,
    Benchmark,
    check_items,
    columns,
    first_folder,
    held_out_part,
    refuse_faults,
    voc_boxes,
)
from maskmill.datasets.table import Item, boxes_text, parse_boxes
from maskmill.errors import UserError
from maskmill.scores.localisation import Box, from_voc

Part = Literal["train", "test", "all"]

NAMES = {"dogs": "Dogs", "cars": "Cars", "cub": "CUB", "human36m": "Human3.6M", "pictures": "pictures"}
WORDS = {"dogs": "dog", "cars": "car", "cub": "bird", "human36m": "human"}
COUNTS = {("dogs", "all"): 20_580, ("dogs", "train"): 12_000, ("dogs", "test"): 8_580, ("cars", "all"): 16_185,
          ("cars", "train"): 8_144, ("cars", "test"): 8_041, ("cub", "train"): 10_788}  # fmt: skip


def read_single_class(
    key: str, root: str | Path, part: Part = "all", *, word: str = "", split: str | Path = "", partial: bool = False
) -> Benchmark:
    """Read one set.

    Args:
        key: of ``NAMES``.
        root: its folder.
        part: of Dogs and Cars; CUB has only ``train`` here, the others only ``all``.
        word: what the object is called; empty for the paper's word. Folders of pictures need one.
        split: CUB's split file.
        partial: admit another number of images than the published one.

    Raises:
        UserError: a file or folder that is expected is not there or is none, a listed picture is missing, or the number
            of pictures is another than the published one.
    """
    if key not in NAMES:
        raise UserError(f"{key}: expected a set among {', '.join(NAMES)}")
    root = Path(root).expanduser().absolute()
    word = word or WORDS.get(key, "")
    if not root.is_dir():
        raise UserError(f"{root}: expected the folder of {NAMES[key]}, found none")
    if not word:
        raise UserError(f"{root}: expected a word for what every picture shows, got none")
    parts = {"dogs": ("all", "train", "test"), "cars": ("all", "train", "test"), "cub": ("train",)}.get(key, ("all",))
    if part not in parts:
        raise UserError(f"{NAMES[key]}: expected the part {' or '.join(parts)}, got {part!r}")
    if key == "dogs":
        items = read_dogs(root, word, part)
    elif key == "cars":
        items = read_cars(root, word, part)
    elif key == "cub":
        items = read_cub_training(root, word, Path(split))
    else:
        items = read_pictures(root, word, NAMES[key], truths=key == "human36m")
    check_items(items)
    wanted = COUNTS.get((key, part))
    if not items or (wanted and len(items) != wanted and not partial):
        raise UserError(f"{root}: expected {f'the {wanted:,}' if wanted else 'the'} pictures of {NAMES[key]} "
                        f"({part}), got {len(items):,}")  # fmt: skip
    return Benchmark(NAMES[key], items)


def read_dogs(root: Path, word: str, part: Part) -> list[Item]:
    """Stanford Dogs, in the order of the files' names or of the list; boxes of all dogs in a picture."""
    images, annotations = (first_folder(root, (name,), "Dogs") for name in ("Images", "Annotation"))
    if part == "all":
        names = [p.relative_to(images).with_suffix("").as_posix() for p in _pictures(images)]
    else:
        table = _first([root / f"{part}_list.mat", root / "lists" / f"{part}_list.mat"], f"the {part} split of Dogs")
        names = [str(Path(name).with_suffix("")) for name in _strings(table, "file_list")]
    missing = (images / f"{name}.jpg" for name in names if not (images / f"{name}.jpg").is_file())
    refuse_faults("Dogs", (f"{path} is missing" for path in missing))
    items = []
    for name in names:
        # voc_boxes counts from 1, as VOC does.
        boxes = [tuple(value + 1 for value in box) for box in voc_boxes(annotations / name)]
        items.append(Item(f"Dogs/{name}", word, f"{images / name}.jpg", dataset="Dogs", boxes=boxes_text(boxes)))
    return items


def read_cars(root: Path, word: str, part: Part) -> list[Item]:
    """Stanford Cars in the order of the annotations; one box each. Ids are ``Cars/train/00001``."""
    items = []
    for one in ("train", "test") if part == "all" else (part,):
        images = first_folder(root, (f"cars_{one}",), "Cars")
        names = [f"cars_{one}_annos.mat", f"cars_{one}_annos_withlabels.mat"]
        table = _first([place / name for place in (root / "devkit", root) for name in names],
                       f"the boxes of Cars ({one})")  # fmt: skip
        for name, box in _car_boxes(table):
            items.append(Item(f"Cars/{one}/{Path(name).stem}", word, str(images / name), dataset="Cars",
                              boxes=boxes_text([box])))  # fmt: skip
    refuse_faults("Cars", (f"{item.image} is missing" for item in items if not Path(item.image).is_file()))
    return items


def _car_boxes(table: Path) -> list[tuple[str, Box]]:
    """File name and box of each row of an annotation file."""
    rows = np.atleast_1d(_variable(table, "annotations"))
    sides = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    try:
        return [(Path(str(row["fname"])).name, from_voc([float(row[side]) for side in sides])) for row in rows]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{table}: expected annotations with fname, {', '.join(sides)}, got: {error}") from None


def read_cub_training(root: Path, word: str, split: Path) -> list[Item]:
    """The images of CUB-200-2011 that no test is made on: those outside the split's test part, without masks and boxes,
    which nobody who learns from them is to see."""
    if not split.is_file():
        raise UserError(f"CUB: expected the file of the split with 1,000 test images, got {str(split)!r}")
    root = root if (root / "images.txt").is_file() else root / "CUB_200_2011"
    paths = dict(columns(root / "images.txt", 2))
    parts = dict(columns(split, 2))
    test = held_out_part(parts.values(), split)
    strange = [id for id in parts if id not in paths]
    if strange:
        raise UserError(f"{root / 'images.txt'}: expected a line of image {strange[0]}, as {split} has one, found none")
    items = [Item(f"CUB/{Path(paths[id]).with_suffix('').as_posix()}", word, str(root / "images" / paths[id]),
                  dataset="CUB") for id, part in parts.items() if part != test]  # fmt: skip
    refuse_faults("CUB", (f"{item.image} is missing" for item in items if not Path(item.image).is_file()))
    return items


def read_pictures(root: Path, word: str, name: str, truths: bool = False) -> list[Item]:
    """All pictures below a folder, by name.

    Args:
        truths: look for ``masks`` and ``boxes`` beside ``images``; where there is such a folder, every picture is
            expected in it, and the masks go first.
    """
    images = root / "images" if (root / "images").is_dir() else root
    beside = {kind: root / kind for kind in ("masks", "boxes") if truths and (root / kind).is_dir()}
    found = [p for p in _pictures(images) if not any(folder in p.parents for folder in beside.values())]
    stems = [p.relative_to(images).with_suffix("").as_posix() for p in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if twice:
        raise UserError(f"{images}: expected one picture of each name, got {twice[0]!r} with several endings")
    if "masks" in beside:
        masks = [f"{beside['masks'] / stem}.png" for stem in stems]
        refuse_faults(name, (f"{mask} is missing" for mask in masks if not Path(mask).is_file()))
    else:
        masks = [""] * len(stems)
    boxes = [""] * len(stems)
    if "boxes" in beside:
        boxes = [boxes_text(_box_file(beside["boxes"] / f"{stem}.txt")) for stem in stems]
    return [Item(f"{name}/{stem}", word, str(path), mask, dataset=name, boxes=box)
            for stem, path, mask, box in zip(stems, found, masks, boxes, strict=True)]  # fmt: skip


def _box_file(path: Path) -> list[Box]:
    """``x0 y0 x1 y1`` a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        boxes = parse_boxes(";".join(line for line in lines if line.strip()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: expected boxes x0 y0 x1 y1, one a line, got: {reason}") from None
    if not boxes:
        raise UserError(f"{path}: expected at least one box, got none")
    return boxes


# --- small tools ------------------------------------------------------------------------------------------------------


def _first(places: Sequence[Path], what: str) -> Path:
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]}: expected {what}, found none")


def _pictures(folder: Path) -> list[Path]:
    """Pictures at any depth, by path; hidden ones, as some archives hold, left out."""
    files: Iterable[Path] = (p for p in folder.rglob("*") if p.suffix.lower() in PHOTOGRAPHS and p.is_file())
    shown = (p for p in files if not any(part.startswith((".", "__MACOSX")) for part in p.relative_to(folder).parts))
    return sorted(shown, key=lambda p: p.relative_to(folder).as_posix())


def _variable(path: Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file, single cells unwrapped."""
    try:
        return loadmat(path, squeeze_me=True)[name]
    except Exception as error:  # a broken file makes scipy raise errors of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{path}: expected a MATLAB file with {name!r}, got: {reason}") from None


def _strings(path: Path, name: str) -> list[str]:
    return [str(value) for value in np.atleast_1d(_variable(path, name))]
