"""Masks in COCO's form: run-length encoding both ways, and mask proposals from a file or folder (CutLER writes such).

A run-length encoded mask is ``{"size": [H, W], "counts": ...}``: the lengths of the runs of 0 and 1 in turn, 0 first,
down the columns one after the other. Counts are a list, or COCO's compressed text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon2mask

from maskmill.errors import UserError

Rle = dict[str, Any]


# --- run lengths ------------------------------------------------------------------------------------------------------


def encode(mask: np.ndarray) -> Rle:
    """(H, W) bool -> its compressed run-length encoding, character for character that of pycocotools."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    counts = [0, *runs.tolist()] if flat.size and flat[0] else runs.tolist()
    return {"size": [int(side) for side in np.shape(mask)], "counts": _compress(counts)}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """A run-length encoding, compressed or not -> (H, W) bool.

    Raises:
        ValueError: no such encoding, or the runs do not fill the size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _expand(counts) if isinstance(counts, str) else [int(n) for n in counts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"expected a run-length encoding with size and counts, got: {error!r}") from None
    if height < 0 or width < 0 or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"expected runs that fill {width}x{height} pixels, got {sum(runs)}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _compress(counts: Sequence[int]) -> str:
    """From the third run on the difference to the last but one, in groups of 5 bits, the lowest first; bit 6 of a
    character says that more follow."""
    out = []
    for i, value in enumerate(counts):
        rest = value - counts[i - 2] if i > 2 else value
        while True:
            group, rest = rest & 31, rest >> 5
            last = rest == (-1 if group & 16 else 0)  # bit 5 is the sign
            out.append(chr(48 + group + (0 if last else 32)))
            if last:
                break
    return "".join(out)


def _expand(text: str) -> list[int]:
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift = 0, 0
        while True:
            group = ord(text[at]) - 48
            if not 0 <= group < 64:
                raise ValueError(f"{text[at]!r} is no character of compressed counts")
            at += 1
            value |= (group & 31) << shift
            shift += 5
            if not group & 32:
                break
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _mask(segmentation: Any, shape: tuple[int, int] | None) -> np.ndarray:
    """A COCO segmentation, runs or polygons -> (H, W) bool; a polygon's outline to within a pixel of pycocotools'."""
    if isinstance(segmentation, Mapping):
        return decode(segmentation)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or shape is None:
        raise ValueError(f"expected runs, or polygons of an image of known size, got {type(segmentation).__name__}")
    mask = np.zeros(shape, bool)
    for points in segmentation:
        corners = np.asarray(points, float).reshape(-1, 2)[:, ::-1]  # x, y -> row, column
        mask |= polygon2mask(shape, corners - 0.5)  # COCO counts from a pixel's corner, skimage from its centre
    return mask


# --- proposals --------------------------------------------------------------------------------------------------------


class Proposals:
    """Mask proposals of a set of pictures, decoded as they are asked for.

    Args:
        path: a JSON file, or a folder whose ``*.json`` are read together. A file holds COCO's ``images`` and
            ``annotations``, or a list of results (``image_id, segmentation, score``) as detectors write them. A
            picture is known by its ``file_name`` without ending, or where no table of images names it by its id; an
            annotation without ``image_id`` is of the picture that the file is named after.
        score: proposals with a lower ``score`` are left out; one without a score stays.

    Raises:
        UserError: nothing to read, no COCO form, or no proposal of this score at all; names the file.
    """

    def __init__(self, path: str | Path, score: float = 0.35) -> None:
        self.path = Path(path)
        files = sorted(self.path.glob("*.json")) if self.path.is_dir() else [self.path]
        if not files:
            raise UserError(f"{self.path}: expected a folder with proposals as *.json, found none")
        documents = [(file, *_read(file)) for file in files]
        self._shapes = {name: shape for _, images, _ in documents for name, shape in images.values()}
        self._known = bool(self._shapes)
        self._found: dict[str, list[tuple[Path, Any]]] = {}
        everywhere: dict[str, set[str]] = {}  # results stand in another file than the table of their images
        for _, images, _ in documents:
            for id, (name, _) in images.items():
                everywhere.setdefault(id, set()).add(name)
        for file, images, listed in documents:
            for i, entry in enumerate(listed):
                try:
                    segmentation, sure = entry["segmentation"], float(entry.get("score", 1.0))
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise UserError(f"{file}: annotation {i}: expected an object with a segmentation, got {entry!r:.60}"
                                    ) from None  # fmt: skip
                if sure < score:
                    continue
                id = str(entry.get("image_id", file.stem))
                names = {images[id][0]} if id in images else everywhere.get(id, {id})
                if len(names) > 1:
                    raise UserError(f"{file}: annotation {i}: expected one picture with the id {id} in the tables of "
                                    f"{self.path}, got {', '.join(sorted(names))}")  # fmt: skip
                self._found.setdefault(min(names), []).append((file, segmentation))
        if not self._found:
            raise UserError(f"{self.path}: expected proposals with a score of at least {score}, found none")
        self._tails: dict[str, set[str]] = {}
        for name in {*self._found, *self._shapes}:
            parts = name.split("/")
            for i in range(len(parts)):
                self._tails.setdefault("/".join(parts[i:]), set()).add(name)

    def masks(self, sample_id: str, shape: tuple[int, int]) -> np.ndarray:
        """The proposals of one picture.

        Args:
            sample_id: its id in the image set: the file's name without ending, with or without its folders.
            shape: (H, W) of the picture.

        Returns:
            (P, H, W) bool; P = 0 where the segmenter found nothing.

        Raises:
            UserError: several pictures or, where there is a table of images, none go by this id; a mask is damaged or
                of another size.
        """
        names = self._tails.get(sample_id, set())
        if len(names) > 1:
            found = ", ".join(sorted(names))
            raise UserError(f"{self.path}: {sample_id}: expected one picture of this name, got {found}")
        if not names and self._known:
            raise UserError(f"{self.path}: expected the picture {sample_id} in its table of images, found none")
        out = []
        for name in names:
            for file, segmentation in self._found.get(name, []):
                try:
                    mask = _mask(segmentation, self._shapes.get(name))
                except ValueError as error:
                    raise UserError(f"{file}: {name}: {error}") from None
                if mask.shape != tuple(shape):
                    raise UserError(
                        f"{file}: {name}: expected masks of {shape[1]}x{shape[0]} pixels as the picture, got "
                        f"{mask.shape[1]}x{mask.shape[0]}"
                    )
                out.append(mask)
        return np.stack(out) if out else np.zeros((0, *shape), bool)


def _read(file: Path) -> tuple[dict[str, tuple[str, tuple[int, int] | None]], list[Any]]:
    """A JSON file -> {image id: (name, (H, W) if it says so)}, annotations."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected proposals in COCO's form as JSON, got: {error}") from None
    if isinstance(document, list):
        return {}, document
    if not isinstance(document, Mapping) or not {"images", "annotations"} & set(document):
        raise UserError(f"{file}: expected a list of results, or an object with images and annotations, got neither")
    images = {}
    for i, entry in enumerate(document.get("images", [])):
        try:
            shape = (int(entry["height"]), int(entry["width"])) if "height" in entry else None
            images[str(entry["id"])] = Path(entry["file_name"]).with_suffix("").as_posix(), shape
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: image {i}: expected id and file_name, got: {error!r}") from None
    annotations = document.get("annotations", [])
    if not isinstance(annotations, list):
        raise UserError(f"{file}: annotations: expected a list, got {type(annotations).__name__}")
    return images, annotations
