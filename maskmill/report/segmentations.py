"""A folder of label maps, as stage segment leaves it, and what of an earlier run can stay.

    labels/<id>.png      label map of the picture's size, indexed with a palette
    overlays/<id>.png    the picture with the label map over it, and a legend
    annotations.json     COCO: one run-length mask per class and picture
    index.csv            a row per picture: classes found and searched for, shares, similarity, fingerprint
    classes.txt          the names of labels 1, 2, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskmill.datasets.pictures import Picture
from maskmill.datasets.table import read_labels
from maskmill.errors import UserError
from maskmill.report.labelmaps import labels_png, overlay, png
from maskmill.report.sets import annotation
from maskmill.store import write_atomically

KINDS = ("labels", "overlays")


@dataclass(frozen=True)
class Result:
    """One picture's files as bytes, and its row of index.csv."""

    labels: bytes
    overlays: bytes
    row: dict[str, Any]


def result(
    picture: Picture, image: np.ndarray, labels: np.ndarray, names: Sequence[str], facts: Mapping[str, Any]
) -> Result:
    """What is written of a picture.

    Args:
        image: (H, W, 3) uint8. labels: (H, W) uint8.
        names: of the labels, the background first.
        facts: further columns of its row.
    """
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    there = [k for k in range(1, len(names)) if shares[k]]
    row = {"sample_id": picture.sample_id, "image": picture.path.as_posix(), "height": picture.size[0],
           "width": picture.size[1], "classes": ";".join(names[k] for k in there),
           "shares": ";".join(f"{shares[k]:.4f}" for k in there), "background": round(float(shares[0]), 4),
           **facts}  # fmt: skip
    return Result(labels_png(labels), png(overlay(image, labels, names)), row)


def as_arrays(found: Result) -> dict[str, np.ndarray]:
    """A result as a sample of ``maskmill.store``; ``from_arrays`` reads it back."""
    data = {"labels": found.labels, "overlays": found.overlays, "row": json.dumps(found.row).encode()}
    return {name: np.frombuffer(value, np.uint8) for name, value in data.items()}


def from_arrays(sample: Mapping[str, np.ndarray]) -> Result:
    return Result(sample["labels"].tobytes(), sample["overlays"].tobytes(), json.loads(sample["row"].tobytes()))


def names_of(folder: str | Path) -> list[str]:
    """The names of the labels 1, 2, ... of a folder of label maps.

    Raises:
        UserError: no ``classes.txt``, none in it, or one twice.
    """
    path = Path(folder) / "classes.txt"
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UserError(f"{path}: expected the names of labels 1, 2, ..., one per line, got: {reason}") from None
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if not names or twice is not None:
        raise UserError(f"{path}: expected at least one name and each once, got {twice!r} again" if names else
                        f"{path}: expected at least one name, got none")  # fmt: skip
    return names


def kept(out: Path, stamps: Mapping[str, str], names: Sequence[str]) -> dict[str, Result]:
    """Pictures of an earlier run that would come out the same, by id: of the same fingerprint, with whole files.

    Args:
        out: the folder of that run, or anything else.
        stamps: id -> fingerprint of all that a picture's results depend on.
        names: of the labels, the background first.
    """
    found: dict[str, Result] = {}
    try:
        if names_of(out) != list(names[1:]):
            return {}
        rows = pd.read_csv(out / "index.csv", dtype=str, keep_default_na=False).to_dict("records")
    except (UserError, OSError, ValueError):
        return {}
    for row in rows:
        id, stamp = row.get("sample_id", ""), row.pop("fingerprint", "")
        files = [out / kind / f"{id}.png" for kind in KINDS]
        if id in stamps and stamps[id] == stamp and all(path.is_file() for path in files):
            found[id] = Result(*(path.read_bytes() for path in files), row)
    return found


def write(
    folder: Path, results: Iterable[tuple[Picture, Result]], names: Sequence[str], stamps: Mapping[str, str]
) -> None:
    """Fill an empty folder (use ``maskmill.store.fresh_folder``); one result at a time is in memory."""
    images, annotations, table = [], [], []
    for number, (picture, found) in enumerate(results, 1):
        id = picture.sample_id
        for kind in KINDS:
            path = folder / kind / f"{id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(getattr(found, kind))
        labels = read_labels(folder / "labels" / f"{id}.png")
        for k in np.unique(labels[labels > 0]):
            entry = {**annotation(labels == k, number), "id": len(annotations) + 1, "category_id": int(k)}
            annotations.append(entry)
        images.append({"id": number, "file_name": picture.path.as_posix(), "height": picture.size[0],
                       "width": picture.size[1]})  # fmt: skip
        table.append({**found.row, "image": picture.path.as_posix(), "fingerprint": stamps[id]})
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(names) if k]
    document = {"info": {"description": "one mask per class and picture"}, "licenses": [], "images": images,
                "annotations": annotations, "categories": categories}  # fmt: skip
    write_atomically(folder / "annotations.json", json.dumps(document, indent=1) + "\n")
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in names[1:]))
    write_atomically(folder / "index.csv", pd.DataFrame(table).to_csv(index=False, lineterminator="\n"))
