"""A set of images as a folder: ``index.csv`` beside ``images/``, and ground truth where there is any.

Columns of index.csv: ``sample_id, class, image`` (the class is empty where none is known) and, optional, ``mask`` (PNG,
object above half its range), ``labels`` (PNG label map), ``caption`` (of the whole scene), ``absent`` (a class that is
not in the picture), ``seed`` (of the draw that the image belongs to), ``dataset`` (the name of the data set that the
image belongs to; each is scored apart), ``boxes`` (true boxes ``x0 y0 x1 y1;...`` in pixels from 0, both ends
inclusive, as in ``maskmill.scores.localisation``). Paths are relative to the folder, or absolute where a set leaves the
images in the place where they are.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from maskmill.errors import UserError
from maskmill.store import read_rows

REQUIRED = ("sample_id", "class", "image")
SAMPLE_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")


@dataclass(frozen=True)
class Item:
    """One row of index.csv; what a set does not have is an empty string."""

    sample_id: str
    cls: str
    image: str
    mask: str = ""
    labels: str = ""
    caption: str = ""
    absent: str = ""
    seed: str = ""
    dataset: str = ""
    boxes: str = ""


def read_table(folder: str | Path) -> list[Item]:
    """Read ``folder/index.csv``.

    Raises:
        UserError: the file is missing or no such table, an id is empty, no file name or given twice, a row names no
            image, or its boxes are none; says which file and line.
    """
    path = Path(folder) / "index.csv"
    header, rows = read_rows(path, "the table of an image set")
    missing = [c for c in REQUIRED if c not in header]
    if missing or not rows:
        what = f"without the column {missing[0]!r}" if missing else "without rows"
        raise UserError(f"{path}: expected the columns {', '.join(REQUIRED)} and at least one row, got a table {what}")
    names = [name.replace("class", "cls") for name in header]
    known = {f.name for f in fields(Item)}
    items: dict[str, Item] = {}
    for line, row in rows:
        item = Item(**{name: value for name, value in zip(names, row, strict=True) if name in known})
        if not SAMPLE_ID.fullmatch(item.sample_id) or item.sample_id in items:
            raise UserError(
                f"{path}: line {line}: expected a distinct sample_id of letters, digits, '-', '.' and '/', "
                f"got {item.sample_id!r}"
            )
        if not item.image:
            raise UserError(f"{path}: line {line} ({item.sample_id}): expected an image, got an empty field")
        try:
            parse_boxes(item.boxes)
        except ValueError as error:
            raise UserError(f"{path}: line {line} ({item.sample_id}): boxes: {error}") from None
        items[item.sample_id] = item
    return list(items.values())


def table_csv(items: Sequence[Item]) -> str:
    """The text of index.csv; columns that no row fills are left out."""
    frame = pd.DataFrame([asdict(item) for item in items])
    frame = frame.rename(columns={"cls": "class"})
    frame = frame[[c for c in frame.columns if c in REQUIRED or (frame[c] != "").any()]]
    return frame.to_csv(index=False, lineterminator="\n")


def boxes_text(boxes: Iterable[Sequence[float]]) -> str:
    """Boxes as the column ``boxes`` holds them: ``173 100 348 350;5 5 9 9``; no boxes are an empty text."""
    return ";".join(" ".join(f"{value:.10g}" for value in box) for box in boxes)


def parse_boxes(text: str) -> list[tuple[float, float, float, float]]:
    """What ``boxes_text`` wrote -> (x0, y0, x1, y1) per box. Raises ``ValueError`` on anything else, or x1 < x0 - 1."""
    boxes = []
    for part in text.split(";") if text else []:
        try:
            x0, y0, x1, y1 = map(float, part.split())
        except ValueError:
            raise ValueError(f"expected x0 y0 x1 y1, got {part!r}") from None
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 - 1 or y1 < y0 - 1:
            raise ValueError(f"expected x0 y0 x1 y1 with x0 <= x1 and y0 <= y1, got {part!r}")
        boxes.append((x0, y0, x1, y1))
    return boxes


def item_rng(seed: int, sample_id: str) -> np.random.Generator:
    """The generator of one image: it depends on the global seed and the image's id, not on its place in the set."""
    return np.random.default_rng([seed, zlib.crc32(sample_id.encode())])


def read_image(path: str | Path, side: int = 0) -> np.ndarray:
    """An image as (H, W, 3) uint8, resized to a square of ``side`` pixels when that is not 0 (bicubic).

    Raises:
        UserError: the file is missing, empty or no image; names it.
    """
    image = _open(path)
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip to white
        image = Image.fromarray((_values(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if side and image.size != (side, side):
        image = image.resize((side, side), Image.BICUBIC)
    return np.asarray(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image from its header alone. Raises ``UserError`` as ``read_image`` does."""
    width, height = _open(path, load=False).size
    return height, width


def read_mask(path: str | Path) -> np.ndarray:
    """A ground-truth mask as (H, W) bool: above half of the range of its type.

    Raises:
        UserError: no readable image, or one that has values but none above half, as masks of 0 and 1 do.
    """
    image = _open(path)
    deep = image.mode.startswith("I")
    values, half = (_values(image), 32767) if deep else (np.asarray(image.convert("L")), 127)
    mask = values > half
    if values.any() and not mask.any():
        raise UserError(f"{path}: expected a mask of 0 and {2 * half + 1}, got values of at most {values.max()}")
    return mask


def read_labels(path: str | Path) -> np.ndarray:
    """A label map as (H, W) uint8; of a palette image the indices, not the colours.

    Raises:
        UserError: no readable image, one in colour, or labels above 255.
    """
    image = _open(path)
    values = _values(image)
    if values.ndim != 2 or values.max(initial=0) > 255:
        got = f"mode {image.mode}" if values.ndim != 2 else f"the value {values.max()}"
        raise UserError(f"{path}: expected a label map of one channel within 0..255, got {got}")
    return values.astype(np.uint8)


def save_png(array: np.ndarray, path: Path) -> None:
    """Write (H, W[, 3]) uint8, or bool as 0/255; the same pixels give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(path, compress_level=6)


def _open(path: str | Path, load: bool = True) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected an image, found no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: expected an image, got an empty file")
    try:
        image = Image.open(path)
        if load:
            image.load()
        else:
            image.close()  # its size stays known
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: expected a readable image, got: {reason}") from None
    return image


def _values(image: Image.Image) -> np.ndarray:
    """An image's numbers as they are stored, (H, W[, channels]); 16 bits as int32, a palette's indices as uint8."""
    return np.asarray(image).astype(np.int32) if image.mode.startswith("I") else np.asarray(image)
