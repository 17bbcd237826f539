"""A set of images as a folder: ``index.csv`` beside ``images/``, and ground truth where there is any.

Columns of index.csv: ``sample_id, class, image`` and, optional, ``mask`` (PNG, object above half its range), ``labels``
(PNG label map), ``caption`` (of the whole scene), ``absent`` (a class that is not in the picture), ``seed`` (of the
draw that the image belongs to). Paths are relative to the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from maskmill.errors import UserError

REQUIRED = ("sample_id", "cls", "image")


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


def read_table(folder: str | Path) -> list[Item]:
    """Read ``folder/index.csv``.

    Raises:
        UserError: the file is missing or no such table, or an id is empty or given twice; names the file and the line.
    """
    path = Path(folder) / "index.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").rename(columns={"class": "cls"})
    except OSError:
        raise UserError(f"{path}: expected the table of an image set, found none") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a CSV table in UTF-8, got: {str(error).strip().splitlines()[0]}") from None
    missing = [c for c in REQUIRED if c not in frame.columns]
    if missing or frame.empty:
        what = f"without the column {missing[0].replace('cls', 'class')!r}" if missing else "without rows"
        raise UserError(f"{path}: expected the columns sample_id, class, image and at least one row, got a table {what}")
    known = [f.name for f in fields(Item) if f.name in frame.columns]
    items = [Item(**dict(zip(known, row, strict=True))) for row in frame[known].itertuples(index=False, name=None)]
    seen: set[str] = set()
    for line, item in enumerate(items, 2):
        if not item.sample_id or item.sample_id in seen:
            raise UserError(f"{path}: line {line}: expected a distinct sample_id, got {item.sample_id!r}")
        seen.add(item.sample_id)
    return items


def table_csv(items: Sequence[Item]) -> str:
    """The text of index.csv; columns that no row fills are left out."""
    frame = pd.DataFrame([asdict(item) for item in items])
    frame = frame[[c for c in frame.columns if c in REQUIRED or (frame[c] != "").any()]]
    return frame.rename(columns={"cls": "class"}).to_csv(index=False, lineterminator="\n")


def read_image(path: str | Path, side: int = 0) -> np.ndarray:
    """An image as (H, W, 3) uint8, resized to a square of ``side`` pixels when that is not 0 (bicubic).

    Raises:
        UserError: the file is missing, empty or no image; names it.
    """
    image = _open(path).convert("RGB")
    if side and image.size != (side, side):
        image = image.resize((side, side), Image.BICUBIC)
    return np.asarray(image)


def read_mask(path: str | Path) -> np.ndarray:
    """A ground-truth mask as (H, W) bool: above half of the range of its type."""
    values = np.asarray(_open(path).convert("L"))
    return values > 127


def read_labels(path: str | Path) -> np.ndarray:
    """A label map as (H, W) uint8."""
    return np.asarray(_open(path).convert("L"))


def save_png(array: np.ndarray, path: Path) -> None:
    """Write (H, W[, 3]) uint8, or bool as 0/255; the same pixels give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(path, compress_level=6)


def _open(path: str | Path) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected an image, found no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: expected an image, got an empty file")
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: expected a readable image, got: {str(error).splitlines()[0]}") from None
    return image
