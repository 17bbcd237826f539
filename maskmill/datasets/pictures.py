"""Pictures of the user's own: files, folders, or an image set, as one list with an id for each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskmill.datasets.table import image_size, read_table
from maskmill.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Picture:
    """``sample_id`` names its results, ``path`` is the file, ``size`` its (H, W) in pixels."""

    sample_id: str
    path: Path
    size: tuple[int, int]


def find_pictures(places: Sequence[str | Path]) -> list[Picture]:
    """All pictures of some places.

    Args:
        places: each a file; a folder with ``index.csv``, whose ids are kept; or another folder, searched for pictures
            with all its sub-folders, whose ids are the files' names without ending. What an id may not hold becomes an
            underscore.

    Raises:
        UserError: no place, one that does not exist, a folder without pictures, a file that is no picture, or two
            pictures with one id.
    """
    if not places:
        raise UserError("pictures: expected at least one picture or folder, got none")
    found: dict[str, Path] = {}
    for place in map(Path, places):
        for id, path in _of_place(place):
            if id in found:
                raise UserError(f"{path}: expected pictures of different names, got {id!r} as of {found[id]}; segment "
                                "them into different folders")  # fmt: skip
            found[id] = path
    return [Picture(id, path, image_size(path)) for id, path in found.items()]


def _of_place(place: Path) -> list[tuple[str, Path]]:
    if place.is_file():
        return [(_id(place.with_suffix("").name), place)]
    if not place.is_dir():
        raise UserError(f"{place}: expected a picture or a folder of pictures, found no such file")
    if (place / "index.csv").is_file():
        return [(item.sample_id, place / item.image) for item in read_table(place)]
    below = sorted(Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    pictures = [p for p in below if p.suffix.lower() in ENDINGS and not p.name.startswith(".")]
    if not pictures:
        raise UserError(f"{place}: expected pictures ({', '.join(e[1:] for e in ENDINGS)}), found none")
    return [("/".join(_id(part) for part in p.relative_to(place).with_suffix("").parts), p) for p in pictures]


def _id(name: str) -> str:
    return _ODD.sub("_", name).lstrip("_.-") or "picture"
