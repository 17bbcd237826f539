"""Readers of the public benchmarks of semantic segmentation, in the layouts in which they are distributed.

The part that is scored, and how many images it has:

* VOC, 1,449: ``VOCdevkit``, or what holds it, with ``VOC2012/ImageSets/Segmentation/val.txt``,
  ``VOC2012/JPEGImages/*.jpg`` and ``VOC2012/SegmentationClass/*.png``
* Context, 5,104 (5,105 in the first release): ``VOCdevkit`` with ``VOC2010/ImageSets/SegmentationContext/val.txt``,
  ``VOC2010/JPEGImages/*.jpg`` and ``VOC2010/SegmentationClassContext/*.png``, 0 the background and 1 to 59 the classes
* COCO-Object and COCO-Stuff, 5,000: ``coco_stuff164k`` with ``images/val2017/*.jpg`` and ``annotations/val2017``:
  ``*_instanceTrainIds.png`` and ``*_labelTrainIds.png``; without those the maps ``*.png`` as COCO-Stuff has them
* ADE20K, 2,000: ``ADEChallengeData2016`` with ``images/validation/*.jpg`` and ``annotations/validation/*.png``
* Cityscapes, 500: ``leftImg8bit/val/<city>/*_leftImg8bit.png`` and ``gtFine/val/<city>/*_gtFine_labelIds.png``

Label maps are brought to one convention: 1..C are the classes in the order of ``labels/things.csv``, 255 is void, and 0
is the background, or, where a data set has none, what it leaves unlabelled. Maps that already are so stay where they
are; the others (COCO-Stuff and Cityscapes, whose ids count from 0, and COCO-Stuff's raw maps, whose ids have gaps) are
looked up value by value, see ``label_map``. A value that the data set does not know is an error, never void.

``labels/protocols.csv`` says for each way of scoring which data set it is of and whether the background is a class:
VOC and Context are scored with it and without, COCO-Object with it, the others without.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import maskmill.labels
from maskmill.datasets.benchmarks import PHOTOGRAPHS, first_folder, refuse_faults, text_lines
from maskmill.datasets.table import SAMPLE_ID, Item, image_size, read_image, read_labels
from maskmill.errors import UserError
from maskmill.params import Benchmarks
from maskmill.store import read_rows, write_atomically

LABELS = Path(maskmill.labels.__file__).parent
VOID = 255
UNKNOWN = -1  # of a look-up: a value that no file of the data set holds

NAMES = {"voc": "VOC", "context": "Context", "coco_object": "Object", "coco_stuff": "Stuff", "ade20k": "ADE20K",
         "cityscapes": "Cityscapes"}  # fmt: skip
COUNTS = {"voc": (1_449,), "context": (5_104, 5_105), "coco_object": (5_000,), "coco_stuff": (5_000,),
          "ade20k": (2_000,), "cityscapes": (500,)}  # fmt: skip
CLASSES = {"voc": 20, "context": 59, "coco_object": 80, "coco_stuff": 171, "ade20k": 150, "cityscapes": 19}
FOLDERS = {"voc": "voc12", "context": "context", "coco_object": "coco_stuff164k", "coco_stuff": "coco_stuff164k",
           "ade20k": "ade20k", "cityscapes": "cityscapes"}  # fmt: skip

# Of COCO's ids less one, as its raw maps hold them, 80 of 0..90 are things and 91..181 stuff; the rest is not in use.
COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_THINGS = tuple(value for value in range(91) if value not in COCO_UNUSED)
COCO_STUFF = tuple(range(91, 182))
# The ids of Cityscapes' 19 scored classes, in the order of their train ids.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Semantic:
    """One data set as it was found.

    Attributes:
        key, name: as in ``NAMES``.
        items: ``labels`` is the absolute path of the data set's own file.
        lookup: (256,) int16, label of each value of such a file, ``UNKNOWN`` where it may not occur.
        note: what the reader had to find out, or nothing.
    """

    key: str
    name: str
    items: list[Item]
    lookup: np.ndarray = field(repr=False, compare=False)
    note: str = ""

    @property
    def as_it_is(self) -> bool:
        """The files hold the labels themselves."""
        known = self.lookup != UNKNOWN
        return bool((self.lookup == np.arange(256))[known].all())


@dataclass(frozen=True)
class Protocol:
    """A way of scoring: ``background`` is ``class`` or ``void``, as ``maskmill.scores.semantic`` takes it."""

    protocol: str
    dataset: str
    name: str
    classes: int
    background: str

    @property
    def title(self) -> str:
        """As tables call it: VOC with the background, VOC-20 without; a set that is scored in one way has its name."""
        return f"{self.name}-{self.classes}" if self.protocol.endswith("_nobg") else self.name


def protocols() -> dict[str, Protocol]:
    """The rows of ``labels/protocols.csv`` by their name: ``voc``, ``voc_nobg``, ``context``, ..."""
    header, rows = read_rows(LABELS / "protocols.csv", "the table of protocols")
    found = (dict(zip(header, row, strict=True)) for _, row in rows)
    return {row["protocol"]: Protocol(row["protocol"], row["dataset"], row["name"], int(row["classes"]),
                                      row["background"]) for row in found}  # fmt: skip


def class_table(key: str) -> list[dict[str, str]]:
    """A data set's classes in the order of their labels, from 1: ``label, class, query, kind``.

    ``class`` is the data set's own name, ``query`` what is asked for in its place (airplane for aeroplane), ``kind``
    thing or stuff.
    """
    header, rows = read_rows(LABELS / "things.csv", "the table of classes")
    found = [dict(zip(header, row, strict=True)) for _, row in rows]
    own = [row for row in found if row["dataset"] == key]
    return [{"label": str(i), "class": row["class"], "query": row["query"] or row["class"], "kind": row["kind"]}
            for i, row in enumerate(own, 1)]  # fmt: skip


def read_semantic(key: str, settings: Benchmarks) -> Semantic:
    """Read one data set.

    Args:
        key: of ``NAMES``.
        settings: the parameters' section: the folders, and whether another number of images than the published one is
            admitted.

    Raises:
        UserError: a file or folder that is expected is not there, images have no label map, or their number is not the
            published one and ``settings.partial`` is off.
    """
    if key not in NAMES:
        raise UserError(f"{key}: expected a data set among {', '.join(NAMES)}")
    name, folder = NAMES[key], f"benchmarks.{FOLDERS[key]}"
    root = Path(getattr(settings, FOLDERS[key])).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{folder}: {root}: expected the folder of {name}, found none")
    note = ""
    if key in ("voc", "context"):
        found, lookup = _read_voc(key, root)
    elif key in ("coco_object", "coco_stuff"):
        found, lookup, note = _read_coco(key, root)
    elif key == "ade20k":
        found, lookup = _read_ade20k(root)
    else:
        found, lookup = _read_cityscapes(root)
    for stem, image, _ in found:
        if not SAMPLE_ID.fullmatch(f"{name}/{stem}"):
            raise UserError(f"{image}: expected a name of letters, digits, '-' and '.', got {stem!r}")
    if not found or (len(found) not in COUNTS[key] and not settings.partial):
        counts = " or ".join(f"{count:,}" for count in COUNTS[key])
        raise UserError(f"{folder}: {root}: expected the {counts} images of {name}, got {len(found):,}; "
                        "benchmarks.partial admits another number")  # fmt: skip
    refuse_faults(name, (f"{path} is missing" for _, *paths in found for path in paths if not path.is_file()))
    items = [Item(f"{name}/{stem}", "", str(image), labels=str(labels), dataset=name) for stem, image, labels in found]
    return Semantic(key, name, items, lookup, note)


def label_map(item: Item, lookup: np.ndarray) -> np.ndarray:
    """The labels of a picture in the project's convention, (H, W) uint8.

    Raises:
        UserError: no label map, one of another size than the picture, or with a value that ``lookup`` does not know.
    """
    values = read_labels(item.labels)  # (H, W)
    height, width = image_size(item.image)
    if values.shape != (height, width):
        raise UserError(f"{item.labels}: expected {width}x{height} pixels as its photograph has, got "
                        f"{values.shape[1]}x{values.shape[0]}")  # fmt: skip
    labels = lookup[values]  # (H, W)
    if (labels == UNKNOWN).any():
        raise UserError(f"{item.labels}: expected {_known(lookup)}, got {values[labels == UNKNOWN].min()}")
    return labels.astype(np.uint8)


def fault(item: Item, lookup: np.ndarray) -> str:
    """What is wrong with an item's files, in one line that names them; empty if nothing is."""
    try:
        read_image(item.image)
        label_map(item, lookup)
    except UserError as error:
        return str(error)
    return ""


def write_classes(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Write a class table as ``classes.csv`` and its queries as ``classes.txt``, which are vocabularies for any stage
    that takes a file of classes. No rows at all mark a data set that is not at hand, see ``at_hand``."""
    with open(folder / "classes.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["label", "class", "query", "kind"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(folder / "classes.txt", "".join(f"{row['query']}\n" for row in rows))


def at_hand(folder: str | Path) -> bool:
    """Whether stage semantic_benchmarks found the data set that this image set is of.

    Raises:
        UserError: there is no such image set.
    """
    path = Path(folder) / "classes.txt"
    if not path.is_file():
        raise UserError(f"{path}: expected the classes of a data set, found none; run stages/semantic_benchmarks.py")
    return bool(path.read_text(encoding="utf-8").strip())


# --- what the values mean ---------------------------------------------------------------------------------------------


def lookup_of(values: Sequence[int], to: Sequence[int]) -> np.ndarray:
    """(256,) int16: ``to[i]`` where ``values[i]`` is, 255 where 255 is, ``UNKNOWN`` elsewhere."""
    table = np.full(256, UNKNOWN, np.int16)
    table[VOID] = VOID
    table[list(values)] = list(to)
    return table


def identity(classes: int) -> np.ndarray:
    """0 is background or unlabelled, 1..C are the classes."""
    return lookup_of(range(classes + 1), range(classes + 1))


def from_zero(classes: int) -> np.ndarray:
    """0..C-1 are the classes."""
    return lookup_of(range(classes), range(1, classes + 1))


def coco_raw(objects: bool) -> np.ndarray:
    """Of COCO-Stuff's own maps. With ``objects`` stuff and what is unlabelled are background, as in the maps that
    GroupViT's converter makes; without, stuff follows the things and unlabelled is void."""
    things, stuff = range(1, 81), range(81, 172)
    if not objects:
        return lookup_of((*COCO_THINGS, *COCO_STUFF), (*things, *stuff))
    return lookup_of((*COCO_THINGS, *COCO_STUFF, VOID), (*things, *(0 for _ in COCO_STUFF), 0))


def cityscapes_ids() -> np.ndarray:
    """Of ids 0..33: the 19 scored classes, all others void."""
    table = lookup_of(range(34), [VOID] * 34)
    table[list(CITYSCAPES_IDS)] = range(1, 20)
    return table


def _known(lookup: np.ndarray) -> str:
    values = np.flatnonzero(lookup != UNKNOWN)
    values = values[values != VOID]
    gaps = "" if len(values) == values[-1] - values[0] + 1 else " with gaps"
    return f"labels {values[0]} to {values[-1]}{gaps} or {VOID}"


# --- layouts ----------------------------------------------------------------------------------------------------------

Found = list[tuple[str, Path, Path]]  # name, picture, label map


def _read_voc(key: str, root: Path) -> tuple[Found, np.ndarray]:
    year, part, labels = {"voc": ("VOC2012", "Segmentation", "SegmentationClass"),
                          "context": ("VOC2010", "SegmentationContext", "SegmentationClassContext")}[key]  # fmt: skip
    root = first_folder(root, (year, f"VOCdevkit/{year}"), NAMES[key])
    stems = _lines(root / "ImageSets" / part / "val.txt")
    first_folder(root, (labels,), NAMES[key])
    found = [(stem, root / "JPEGImages" / f"{stem}.jpg", root / labels / f"{stem}.png") for stem in stems]
    return found, identity(CLASSES[key])


def _read_coco(key: str, root: Path) -> tuple[Found, np.ndarray, str]:
    images = first_folder(root, ("images/val2017",), NAMES[key])
    labels = first_folder(root, ("annotations/val2017",), NAMES[key])
    stems = [path.stem for path in _pictures(images)]
    ending = {"coco_object": "_instanceTrainIds.png", "coco_stuff": "_labelTrainIds.png"}[key]
    if any((labels / f"{stem}{ending}").is_file() for stem in stems):
        lookup = identity(80) if key == "coco_object" else from_zero(171)
        note = f"label maps *{ending}"
    else:
        ending, lookup = ".png", coco_raw(key == "coco_object")
        note = "label maps as COCO-Stuff has them"
    return [(stem, images / f"{stem}.jpg", labels / f"{stem}{ending}") for stem in stems], lookup, note


def _read_ade20k(root: Path) -> tuple[Found, np.ndarray]:
    images = first_folder(root, ("images/validation", "ADEChallengeData2016/images/validation"), "ADE20K")
    labels = images.parents[1] / "annotations/validation"
    first_folder(labels.parent, (labels.name,), "ADE20K")
    return [(path.stem, path, labels / f"{path.stem}.png") for path in _pictures(images)], identity(150)


def _read_cityscapes(root: Path) -> tuple[Found, np.ndarray]:
    images = first_folder(root, ("leftImg8bit/val",), "Cityscapes")
    labels = first_folder(root, ("gtFine/val",), "Cityscapes")
    ending, found = "_leftImg8bit.png", []
    for path in sorted(images.glob(f"*/*{ending}")):
        if not path.name.startswith("."):
            city, stem = path.parent.name, path.name.removesuffix(ending)
            found.append((f"{city}/{stem}", path, labels / city / f"{stem}_gtFine_labelIds.png"))
    if not found:
        raise UserError(f"{images}: expected pictures <city>/*{ending}, found none")
    return found, cityscapes_ids()


def _pictures(folder: Path) -> list[Path]:
    """A folder's pictures by name; hidden ones, as some archives hold, left out."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in PHOTOGRAPHS and not p.name.startswith("."))
    found = sorted((p for p in files if p.is_file()), key=lambda p: p.name)
    if not found:
        raise UserError(f"{folder}: expected pictures, found none")
    return found


def _lines(path: Path) -> list[str]:
    """The names that a text file lists, one a line, each once."""
    found = [line.strip() for line in text_lines(path)]
    seen: set[str] = set()
    for name in found:
        if name in seen:
            raise UserError(f"{path}: expected each of its lines once, got {name!r} again")
        seen.add(name)
    return found
