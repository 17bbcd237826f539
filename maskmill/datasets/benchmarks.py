"""Readers of the public saliency and localisation benchmarks, in the layouts in which they are distributed.

With masks (in brackets: what mirrors call the folders), and how many images there are:

* ECSSD, 1,000: ``images/*.jpg``, ``ground_truth_mask/*.png`` (``img``, ``gt``)
* DUTS-TE, 5,019, and DUTS-TR, 10,553: ``DUTS-TE-Image/*.jpg``, ``DUTS-TE-Mask/*.png`` (``img``, ``gt``)
* DUT-OMRON, 5,168: ``DUT-OMRON-image/*.jpg``, ``pixelwiseGT-new-PNG/*.png`` (``img``, ``gt``)
* CUB, 1,000, also with a box: ``CUB_200_2011`` with ``images.txt``, ``bounding_boxes.txt`` and ``images``;
  ``segmentations`` within or beside it; a split file

With boxes:

* VOC07, 5,011, and VOC12, 11,540: ``VOCdevkit``, or what holds it, with ``VOC2007/Annotations``,
  ``VOC2007/ImageSets/Main/trainval.txt`` and ``VOC2007/JPEGImages``
* COCO20K, 19,817: ``train2014/*.jpg`` (``images/train2014``), ``annotations/instances_train2014.json``; a list of names

Nothing is copied: items hold absolute paths. An id is the data set's name and the file's: ``ECSSD/0001``. Only CUB has
a class, "bird": the class column is what a method is told of a picture, and nobody tells it what the others show.

Boxes are those that LOST and TokenCut score against: of VOC all objects, the difficult and truncated ones too; of COCO
all that are not of a crowd, with edges rounded to whole pixels. A listed image that has no box but a crowd's is left
out, which is how the 20,000 images drawn for COCO20K became 19,817.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from maskmill.datasets.table import SAMPLE_ID, Item, boxes_text, parse_boxes, read_image, read_mask
from maskmill.errors import UserError
from maskmill.params import Benchmarks
from maskmill.scores.localisation import Box, from_coco, from_voc

COUNTS = {"ECSSD": 1_000, "DUTS-TE": 5_019, "DUTS-TR": 10_553, "DUT-OMRON": 5_168, "CUB": 1_000, "VOC07": 5_011,
          "VOC12": 11_540, "COCO20K": 19_817}  # fmt: skip
# Key of the parameters -> name. No set has both roles, so what a method learns from is never scored.
ROLES = {
    "test": {"ecssd": "ECSSD", "duts_te": "DUTS-TE", "dut_omron": "DUT-OMRON", "cub": "CUB", "voc07": "VOC07",
             "voc12": "VOC12", "coco20k": "COCO20K"},
    "train": {"duts_tr": "DUTS-TR"},
}  # fmt: skip
PAIRS = {  # folders of the photographs and of the masks, the first that exists
    "ECSSD": (("images", "img"), ("ground_truth_mask", "gt")),
    "DUTS-TE": (("DUTS-TE-Image", "img"), ("DUTS-TE-Mask", "gt")),
    "DUTS-TR": (("DUTS-TR-Image", "img"), ("DUTS-TR-Mask", "gt")),
    "DUT-OMRON": (("DUT-OMRON-image", "img"), ("pixelwiseGT-new-PNG", "gt")),
}
YEARS = {"VOC07": "VOC2007", "VOC12": "VOC2012"}
PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
SHOWN = 5  # faults that one message names


@dataclass(frozen=True)
class Benchmark:
    """One data set as it was found; ``note`` says what the reader had to find out, or nothing."""

    name: str
    items: list[Item]
    note: str = ""


def read_benchmark(key: str, settings: Benchmarks) -> Benchmark:
    """Read one data set.

    Args:
        key: of the parameters' section, see ``ROLES``.
        settings: that section: the folders, and whether another number of images than the published one is admitted.

    Raises:
        UserError: a file or folder that is expected is not there or is none, photographs have no mask, or their number
            is not the published one and ``settings.partial`` is off.
    """
    name = {**ROLES["test"], **ROLES["train"]}[key]
    root = Path(getattr(settings, key)).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"benchmarks.{key}: {root}: expected the folder of {name}, found none")
    note = ""
    if name in PAIRS:
        items = read_pairs(name, root)
    elif name in YEARS:
        items = read_voc(name, root)
    elif name == "CUB":
        split = _file_of(settings.cub_split, "cub_split", "the file of the split with 1,000 test images")
        items, note = read_cub(root, split)
    else:
        names = _file_of(settings.coco20k_list, "coco20k_list", "the text file of the 19,817 image names")
        items, note = read_coco20k(root, names)
    check_items(items)
    if not items or (len(items) != COUNTS[name] and not settings.partial):
        raise UserError(f"benchmarks.{key}: {root}: expected the {COUNTS[name]:,} images of {name}, got "
                        f"{len(items):,}; benchmarks.partial admits another number")  # fmt: skip
    return Benchmark(name, items, note)


def check_items(items: Iterable[Item]) -> None:
    """Refuse ids that an image set cannot have, and boxes that are none; names the photograph."""
    for item in items:
        if not SAMPLE_ID.fullmatch(item.sample_id):
            raise UserError(f"{item.image}: expected a name of letters, digits, '-' and '.', got {item.sample_id!r}")
        try:
            parse_boxes(item.boxes)
        except ValueError as error:
            raise UserError(f"{item.image}: box in pixels from 0: {error}") from None


def fault(item: Item) -> str:
    """What is wrong with an item's files, in one line that names them; empty if nothing is.

    The photograph and its mask can be decoded and are of one size; boxes lie within the photograph, give or take one
    pixel (another one's boxes, or those of the size before it was scaled, seldom do).
    """
    try:
        height, width = read_image(item.image).shape[:2]
        if item.mask and (size := read_mask(item.mask).shape) != (height, width):
            return f"{item.mask}: expected {width}x{height} pixels as its photograph has, got {size[1]}x{size[0]}"
    except UserError as error:
        return str(error)
    for x0, y0, x1, y1 in parse_boxes(item.boxes):
        if x0 < -1 or y0 < -1 or x1 > width or y1 > height:
            return f"{item.image}: expected boxes within {width}x{height} pixels, got {x0:g} {y0:g} {x1:g} {y1:g}"
    return ""


def refuse_faults(name: str, found: Iterable[str]) -> None:
    """Raise one ``UserError`` that counts a data set's faults and names the first few, if there are any."""
    faults = [line for line in found if line]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{name}: expected readable pictures that fit their ground truth, got {len(faults)} that do "
                        f"not: {'; '.join(faults[:SHOWN])}{more}")  # fmt: skip


# --- saliency ---------------------------------------------------------------------------------------------------------


def read_pairs(name: str, root: Path) -> list[Item]:
    """Photographs and masks in two folders, paired by name; masks that no photograph has are not looked at."""
    images, masks = (first_folder(root, names, name) for names in PAIRS[name])
    photographs = _files(images, PHOTOGRAPHS)
    if not photographs:
        raise UserError(f"{images}: expected photographs *.jpg, found none")
    twice = [stem for stem, count in Counter(p.stem for p in photographs).items() if count > 1]
    if twice:
        raise UserError(f"{images}: expected one photograph of each name, got {twice[0]!r} with several endings")
    truths = {p.stem: p for p in _files(masks, (".png",))}
    refuse_faults(name, (f"{p} has no {masks / p.stem}.png" for p in photographs if p.stem not in truths))
    return [Item(f"{name}/{p.stem}", "", str(p), str(truths[p.stem]), dataset=name) for p in photographs]


# --- CUB --------------------------------------------------------------------------------------------------------------


def read_cub(root: Path, split: Path) -> tuple[list[Item], str]:
    """The test images of a split of CUB-200-2011, each with its mask and its one box (x, y, width, height from 0).

    The split file has one line "id part" per image. In ReDO's the parts are 0 train, 1 val, 2 test; another in use has
    0 test, 1 train, 2 val. Which it is is told by its count: the test part has 1,000 images. If neither part has, as in
    a part of the data set, the training part is the largest.

    Returns:
        The items, and which numbering was found.
    """
    root = root if (root / "images.txt").is_file() else root / "CUB_200_2011"
    paths = dict(columns(root / "images.txt", 2))
    boxes = {id: values for id, *values in columns(root / "bounding_boxes.txt", 5)}
    parts = dict(columns(split, 2))
    test = held_out_part(parts.values(), split)
    beside = root.parent / "segmentations"
    masks = beside if beside.is_dir() and not (root / "segmentations").is_dir() else root / "segmentations"
    if not masks.is_dir():
        raise UserError(f"{masks}: expected the folder of CUB's masks, which is an archive of its own; found none")
    items = []
    for id in (i for i, part in parts.items() if part == test):
        if id not in paths or id not in boxes:
            table = root / ("bounding_boxes.txt" if id in paths else "images.txt")
            raise UserError(f"{table}: expected a line of image {id}, which {split} names, found none")
        relative = Path(paths[id]).with_suffix("")
        box = _numbers(boxes[id], f"{root / 'bounding_boxes.txt'}: image {id}", "x, y, width and height")
        items.append(Item(f"CUB/{relative.as_posix()}", "bird", str(root / "images" / paths[id]),
                          f"{masks / relative}.png", dataset="CUB", boxes=boxes_text([from_coco(box)])))  # fmt: skip
    paths_needed = (path for item in items for path in (item.image, item.mask))
    refuse_faults("CUB", (f"{path} is missing" for path in paths_needed if not Path(path).is_file()))
    return items, f"the test part is {test} in {split}"


def held_out_part(parts: Iterable[str], split: Path) -> str:
    """The number of the test part in a split of CUB, "2" or "0"; see ``read_cub``."""
    counts = Counter(parts)
    odd = sorted(set(counts) - {"0", "1", "2"})
    if odd:
        raise UserError(f"{split}: expected the parts 0, 1 and 2, got {odd[0]!r}")
    candidates = [part for part in ("2", "0") if counts[part] == COUNTS["CUB"]]
    if not candidates:
        candidates = [part for part, train in (("2", "0"), ("0", "1")) if counts[train] > counts.total() / 2]
    if len(candidates) != 1 or not counts[candidates[0]]:
        shown = ", ".join(f"{counts[part]:,} of part {part}" for part in ("0", "1", "2"))
        raise UserError(f"{split}: expected {COUNTS['CUB']:,} test images as part 2 or as part 0, got {shown}")
    return candidates[0]


# --- localisation -----------------------------------------------------------------------------------------------------


def read_voc(name: str, root: Path) -> list[Item]:
    """The images of ``ImageSets/Main/trainval.txt`` with the boxes of all their objects."""
    root = first_folder(root, (YEARS[name], f"VOCdevkit/{YEARS[name]}"), name)
    items = []
    for (stem,) in columns(root / "ImageSets/Main/trainval.txt", 1):
        boxes = voc_boxes(root / "Annotations" / f"{stem}.xml")
        items.append(Item(f"{name}/{stem}", "", str(root / "JPEGImages" / f"{stem}.jpg"), dataset=name,
                          boxes=boxes_text(boxes)))  # fmt: skip
    refuse_faults(name, (f"{item.image} is missing" for item in items if not Path(item.image).is_file()))
    return items


def voc_boxes(path: Path) -> list[Box]:
    """The boxes of all objects of a VOC annotation, from 0 and inclusive; those of an object's parts are not meant.

    Raises:
        UserError: no XML, no object, or an object without four numbers.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: expected a VOC annotation, got: {reason}") from None
    if not objects:
        raise UserError(f"{path}: expected at least one object, got none")
    sides = ("xmin", "ymin", "xmax", "ymax")
    texts = [[found.findtext(f"bndbox/{side}", "") for side in sides] for found in objects]
    return [from_voc(_numbers(text, f"{path}: object {i}", ", ".join(sides))) for i, text in enumerate(texts, 1)]


def read_coco20k(root: Path, names: Path) -> tuple[list[Item], str]:
    """The listed images of COCO 2014's training part with the boxes of all objects that are no crowd.

    Returns:
        The items in the order of the list, and how many of it were left out for having no such box.
    """
    path = root / "annotations/instances_train2014.json"
    images = first_folder(root, ("train2014", "images/train2014"), "COCO20K")
    listed = [Path(line).name for (line,) in columns(names, 1)]
    try:
        document = json.loads(path.read_bytes())
        ids = {entry["file_name"]: entry["id"] for entry in document["images"]}
        boxes: dict[int, list[Box]] = {}
        for found in document["annotations"]:
            if not found["iscrowd"]:
                boxes.setdefault(found["image_id"], []).append(_whole(found["bbox"]))
    except OSError as error:
        raise UserError(f"{path}: expected the annotations of COCO, got: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected COCO's images and annotations as JSON, got: {error!r}") from None
    strange = [file for file in listed if file not in ids]
    if strange:
        raise UserError(f"{path}: expected the images that {names} lists, did not find {len(strange):,} of them, the "
                        f"first is {strange[0]}")  # fmt: skip
    items = [Item(f"COCO20K/{Path(file).stem}", "", str(images / file), dataset="COCO20K",
                  boxes=boxes_text(boxes[ids[file]])) for file in listed if ids[file] in boxes]  # fmt: skip
    refuse_faults("COCO20K", (f"{item.image} is missing" for item in items if not Path(item.image).is_file()))
    left_out = len(listed) - len(items)
    return items, f"{left_out} listed images have no box but a crowd's and are left out" if left_out else ""


def _whole(box: Sequence[float]) -> Box:
    """A COCO box with its edges rounded to whole pixels."""
    x, y, width, height = box
    left, top = round(x), round(y)
    return from_coco((left, top, round(x + width) - left, round(y + height) - top))


# --- small tools ------------------------------------------------------------------------------------------------------


def _file_of(path: str, key: str, what: str) -> Path:
    if not path or not Path(path).expanduser().is_file():
        raise UserError(f"benchmarks.{key}: expected {what}, got {f'no file {path}' if path else 'nothing'}")
    return Path(path).expanduser().absolute()


def first_folder(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of some folders that exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    others = " or ".join(str(root / name) for name in names[1:])
    seen = f"found neither it nor {others}" if others else "found none"
    raise UserError(f"{root / names[0]}: expected this folder of {what}, {seen}")


def _files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """A folder's files with one of these endings, by name; hidden ones, as some archives hold, left out."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in endings and not p.name.startswith(".") and p.is_file())
    return sorted(files, key=lambda p: p.name)


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, blank ones left out."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: expected a text file, got: {reason}") from None


def columns(path: Path, count: int) -> list[list[str]]:
    """The first ``count`` words of each line of a text file; the first words are distinct."""
    rows = [line.split()[:count] for line in text_lines(path)]
    short = next((row for row in rows if len(row) < count), None)
    if short:
        raise UserError(f"{path}: expected {count} words a line, got {' '.join(short)!r}")
    twice = [word for word, times in Counter(row[0] for row in rows).items() if times > 1]
    if twice:
        raise UserError(f"{path}: expected each of its lines once, got {twice[0]!r} again")
    return rows


def _numbers(texts: Sequence[str], where: str, what: str) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError(f"{where}: expected {what} as numbers, got {' '.join(texts)!r}") from None
