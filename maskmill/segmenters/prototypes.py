"""Prototypes of a class from its support images, and the bank that keeps them (OVDiff 3.3, Eq. 2 and 3).

Of the foreground, and in the same way of the background, of each class there are

- one *class* prototype, the mean of the instance prototypes weighted by the size of their masks;
- an *instance* prototype for each support image, the mean feature within its mask (Eq. 2);
- *part* prototypes, the centroids of K-means over the masked features of all support images.

Features are not normalised before they are averaged; only matching compares directions. Each prototype knows the
support image and the region there that it stands for. A bank holds the prototypes of several feature extractors side by
side, one pair of files per class and nothing else: a class that is added or removed touches no other class's files.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from maskmill.datasets.table import item_rng
from maskmill.errors import UserError
from maskmill.masks.attentioncut import resize
from maskmill.masks.coco import encode
from maskmill.masks.regions import at_shape
from maskmill.masks.rivals import levels, one_thread
from maskmill.store import canonical_json, write_atomically

Kind = Literal["class", "instance", "part"]
Ground = Literal["foreground", "background"]

KINDS: tuple[Kind, ...] = ("class", "instance", "part")
GROUNDS: tuple[Ground, ...] = ("foreground", "background")
SCHEMA = 1


@dataclass(frozen=True)
class Support:
    """One support image: ``features`` {extractor: (C, h, w)}, the grid of each its own; masks (H, W) bool of the image
    at any size."""

    image: str
    features: Mapping[str, np.ndarray]
    foreground: np.ndarray
    background: np.ndarray


@dataclass(frozen=True)
class Link:
    """What a prototype stands for.

    Attributes:
        kind: class, instance or part.
        ground: foreground or background.
        image: id of the support image: its own for an instance, otherwise the one that is nearest to the prototype.
        region: run-length encoded mask on the extractor's grid (``maskmill.masks.coco.decode``): the image's region of
            this ground; for a part only those of its cells that are nearest to this centroid.
        cell: (row, column) of the region's cell nearest to the prototype.
        cells: how many cells of all support images it is the mean of.
    """

    kind: Kind
    ground: Ground
    image: str
    region: dict[str, Any]
    cell: tuple[int, int]
    cells: int


@dataclass(frozen=True)
class ClassPrototypes:
    """All prototypes of one class.

    Attributes:
        name: of the class.
        vectors: extractor -> (P, C) float32; foreground before background, class before instances before parts.
        links: extractor -> P links, in the same order.
        images: ids of the support images, in the order in which they came.
        without: ids of those that gave no foreground on the grid of any extractor.
    """

    name: str
    vectors: Mapping[str, np.ndarray]
    links: Mapping[str, list[Link]]
    images: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether every extractor has foreground; otherwise the class must be kept out."""
        return bool(self.links) and all(any(link.ground == "foreground" for link in own) for own in self.links.values())


def feature_map(features: Mapping[str, np.ndarray], side: int = 0) -> np.ndarray:
    """The levels of one picture (``feature_{side}_{k}``) as one map, channels beside each other, none of them scaled.

    Args:
        features: {``feature_{side}_{k}``: (C, side, side)}, as ``maskmill.segmenters.extractors`` and
            ``maskmill.diffusion.features`` give them.
        side: of the result; 0 takes the finest level's. Other levels are brought to it bilinearly.

    Returns:
        (C_1 + ... + C_L, side, side) float32, finest level first.

    Raises:
        UserError: no level, another shape, or a value that is not finite.
    """
    found = levels(features)
    side = side or max(x.shape[-1] for x in found.values())
    return np.concatenate([resize(x, (side, side)) for x in found.values()])


# --- building ---------------------------------------------------------------------------------------------------------


@dataclass
class _Cells:
    """The masked cells of one extractor and ground: per image its id, mask (h, w) bool, and rows (n, C)."""

    images: list[str] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)


def build_class(
    name: str, supports: Iterable[Support], parts: int = 32, seed: int = 0, sample: int = 0
) -> ClassPrototypes:
    """The prototypes of one class from its support images, which are read once.

    Args:
        name: of the class.
        supports: in a fixed order, which K-means depends on. All have the same extractors.
        parts: K, clusters of foreground and of background; with fewer different cells there are fewer. 0: none.
        seed: of K-means and of ``sample``.
        sample: K-means sees at most so many cells of an image, drawn at random; 0: all. Bounds its time and memory.

    Returns:
        The prototypes. See ``ClassPrototypes.usable``: where all images lack foreground there are none of it.

    Raises:
        UserError: no image, one given twice, features that are not finite, of another width or of other extractors
            than the first image's.
    """
    cells: dict[tuple[str, Ground], _Cells] = {}
    images: list[str] = []
    widths: dict[str, int] = {}
    for support in supports:
        if support.image in images:
            raise UserError(f"class {name}: expected each support image once, got {support.image} again")
        got = {key: len(x) for key, x in support.features.items()}
        widths = widths or got
        if got != widths or not got:
            raise UserError(f"class {name}: {support.image}: expected features {_said(widths)}, got {_said(got)}")
        images.append(support.image)
        for extractor, x in support.features.items():
            if not np.isfinite(x).all():
                raise UserError(f"class {name}: {support.image}: {extractor}: expected finite features, got NaN or inf")
            for ground in GROUNDS:
                mask = at_shape(getattr(support, ground), x.shape[1:])
                own = cells.setdefault((extractor, ground), _Cells())
                if mask.any():
                    own.images.append(support.image)
                    own.masks.append(mask)
                    own.rows.append(x[:, mask].T)  # (n, C)
    if not images:
        raise UserError(f"class {name}: expected at least one support image, got none")
    vectors, links = {}, {}
    for extractor, width in widths.items():
        made = [_prototypes(cells[extractor, ground], ground, parts, seed, sample) for ground in GROUNDS]
        vectors[extractor] = np.array([v for own, _ in made for v in own], np.float32).reshape(-1, width)
        links[extractor] = [link for _, own in made for link in own]
    with_one = {image for extractor in widths for image in cells[extractor, "foreground"].images}
    return ClassPrototypes(name, vectors, links, tuple(images), tuple(i for i in images if i not in with_one))


def _said(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{key} of {width} channels" for key, width in widths.items()) or "of no extractor"


def _prototypes(
    cells: _Cells, ground: Ground, parts: int, seed: int, sample: int
) -> tuple[list[np.ndarray], list[Link]]:
    """Class, instance and part prototypes of one ground. -> P vectors (C,) and their links; none without cells."""
    if not cells.rows:
        return [], []
    sizes = np.array([len(rows) for rows in cells.rows])
    instances = np.stack([rows.mean(0, dtype=np.float64) for rows in cells.rows])  # (N, C), Eq. 2
    mean = (sizes[:, None] * instances).sum(0) / sizes.sum()  # (C,)
    nearest = int(_cosines(instances, mean).argmax())
    vectors = [mean, *instances]
    links = [_link("class", ground, cells, nearest, cells.masks[nearest], mean, int(sizes.sum()))]
    links += [_link("instance", ground, cells, i, cells.masks[i], p, int(sizes[i])) for i, p in enumerate(instances)]
    if parts:
        centres, assigned = _part_centres(cells, parts, seed, sample)
        for k, centre in enumerate(centres):
            closest, region = _closest(cells, centre, [labels == k for labels in assigned])
            total = sum(int((labels == k).sum()) for labels in assigned)
            vectors.append(centre)
            links.append(_link("part", ground, cells, closest, region, centre, total))
    return vectors, links


def _part_centres(cells: _Cells, parts: int, seed: int, sample: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """K-means over the masked cells of all images.

    Returns:
        The centroids (K, C), those left out that are nearest to no cell; and per image the nearest centroid of each of
        its cells, (n,).
    """
    chosen = []
    for image, rows in zip(cells.images, cells.rows, strict=True):
        if 0 < sample < len(rows):
            rows = rows[np.sort(item_rng(seed, image).choice(len(rows), sample, replace=False))]
        chosen.append(rows)
    x = np.concatenate(chosen).astype(np.float32)  # (cells, C)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different cells than clusters
        found = KMeans(min(parts, len(x)), n_init="auto", random_state=seed).fit(x)
        nearest = [found.predict(rows.astype(np.float32)) for rows in cells.rows]
    used = np.unique(np.concatenate(nearest))
    return found.cluster_centers_[used], [np.searchsorted(used, labels) for labels in nearest]


def _closest(cells: _Cells, centre: np.ndarray, own: list[np.ndarray]) -> tuple[int, np.ndarray]:
    """The image with the cell nearest to a centroid among those of its cluster, and the cluster's region there.

    Args:
        own: per image which of its masked cells belong to the cluster, (n,) bool.

    Returns:
        The number of the image, (h, w) bool.
    """
    distances = [
        ((rows[of].astype(np.float64) - centre) ** 2).sum(1).min() if of.any() else np.inf
        for rows, of in zip(cells.rows, own, strict=True)
    ]
    image = int(np.argmin(distances))
    region = np.zeros_like(cells.masks[image])
    region[cells.masks[image]] = own[image]
    return image, region


def _link(
    kind: Kind, ground: Ground, cells: _Cells, image: int, region: np.ndarray, prototype: np.ndarray, count: int
) -> Link:
    """The link to an image's region; its cell is the nearest: by distance for a part, else by cosine."""
    inside = region[cells.masks[image]]  # (n,) of the image's masked cells
    rows = cells.rows[image][inside].astype(np.float64)
    if kind == "part":
        best = ((rows - prototype) ** 2).sum(1).argmin()
    else:
        best = _cosines(rows, prototype).argmax()
    row, column = np.argwhere(region)[best]
    return Link(kind, ground, cells.images[image], encode(region), (int(row), int(column)), count)


def _cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(n, C), (C,) -> (n,); 0 where one of the two is all zeros."""
    length = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    return np.divide(rows @ vector, length, out=np.zeros(len(rows)), where=length > 0)


# --- the bank ---------------------------------------------------------------------------------------------------------


class Bank:
    """A folder with two files per class: ``<name>.safetensors`` with the vectors, ``<name>.json`` with all else.

    A class's files say themselves which extractors they were made with; there is no list of classes to keep in step.
    The JSON is written last and holds the hash of its partner, so that half a pair is noticed. Classes that were
    written into folders of their own within this one are read as if they were here.

    Args:
        folder: need not exist before the first ``write``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def files(self, name: str) -> tuple[Path, Path]:
        """Where a class's vectors and the rest lie, or would be written. Letters and digits of the name, and 8 digits
        of its hash, so that names that differ in anything have files of their own on every file system."""
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        stem = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40] or "class"
        stem = f"{stem}-{hashlib.sha256(unicodedata.normalize('NFC', name).encode()).hexdigest()[:8]}"
        folder = self.folder
        if not (folder / f"{stem}.json").is_file():
            folder = next((path.parent for path in sorted(folder.glob(f"[!.]*/{stem}.json"))), folder)
        return folder / f"{stem}.safetensors", folder / f"{stem}.json"

    def names(self) -> list[str]:
        """The classes in the folder, in alphabetical order."""
        paths = [path for pattern in ("*.json", "[!.]*/*.json") for path in self.folder.glob(pattern)]
        return sorted({_document(path)["class"] for path in paths})

    def fingerprint(self, name: str) -> str | None:
        """What ``write`` was told of the class that is here whole, or None: not here, damaged, or another schema."""
        try:
            return self._whole(name)[0]["fingerprint"]
        except UserError:
            return None

    def write(
        self, prototypes: ClassPrototypes, fingerprint: str, extractors: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Add a class, or replace it.

        Args:
            prototypes: ``usable``.
            fingerprint: of all that they depend on, see ``maskmill.store.fingerprint``.
            extractors: for each extractor JSON facts that tell it from others: family, id, revision, facet, layers,
                size, hashes of its files. ``read`` compares them.
        """
        if not prototypes.usable or set(extractors) != set(prototypes.vectors):
            raise ValueError(f"class {prototypes.name}: expected foreground, and facts of {set(prototypes.vectors)}")
        vectors, rest = self.files(prototypes.name)
        data = save({key: np.ascontiguousarray(v) for key, v in prototypes.vectors.items()})
        document = {
            "schema": SCHEMA,
            "class": prototypes.name,
            "fingerprint": fingerprint,
            "vectors": hashlib.sha256(data).hexdigest(),
            "extractors": extractors,
            "images": list(prototypes.images),
            "without_foreground": list(prototypes.without),
            "prototypes": {key: [asdict(link) for link in own] for key, own in prototypes.links.items()},
        }
        write_atomically(vectors, data)
        write_atomically(rest, json.dumps(json.loads(canonical_json(document)), indent=1) + "\n")

    def read(self, name: str, extractors: Mapping[str, Mapping[str, Any]]) -> ClassPrototypes:
        """The prototypes of a class for the extractors asked for.

        Args:
            name: of the class.
            extractors: name -> the facts that ``write`` was given; facts that are left out here are not compared.

        Raises:
            UserError: no such class, damaged files, an extractor that is not in it, or one with other facts; names the
                file, the fact, and both values.
        """
        document, tensors = self._whole(name)
        path = self.files(name)[1]
        for key, facts in extractors.items():
            if key not in tensors:
                raise UserError(
                    f"{path}: class {name!r}: expected prototypes of the extractor {key}, got those of "
                    f"{', '.join(sorted(tensors))}; build the class again with it"
                )
            made = document["extractors"][key]
            for fact, value in json.loads(canonical_json(facts)).items():
                if made.get(fact) != value:
                    raise UserError(
                        f"{path}: class {name!r}: expected prototypes made with {key} {fact} {_short(value)}, got "
                        f"{_short(made.get(fact))}; build the bank again, or ask for what it was built with"
                    )
        links = {
            key: [Link(**{**row, "cell": tuple(row["cell"])}) for row in document["prototypes"][key]]
            for key in extractors
        }
        return ClassPrototypes(
            document["class"], {key: tensors[key] for key in extractors}, links, tuple(document["images"]),
            tuple(document["without_foreground"]),
        )  # fmt: skip

    def facts(self, name: str) -> dict[str, dict[str, Any]]:
        """Extractor -> the facts that a class was written with; what to compare the others of the bank with."""
        return self._whole(name)[0]["extractors"]

    def _whole(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        vectors, rest = self.files(name)
        document = _document(rest, name)
        try:
            data = vectors.read_bytes()
        except OSError as error:
            raise UserError(f"{vectors}: expected the vectors of {name!r}, got: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != document["vectors"]:
            raise UserError(f"{vectors}: expected the vectors that {rest.name} was written with, got other ones; build "
                            f"the class {name!r} again")  # fmt: skip
        try:
            return document, load(data)
        except SafetensorError as error:
            raise UserError(f"{vectors}: expected safetensors, got: {str(error).splitlines()[0]}") from None


def _document(path: Path, name: str = "") -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: expected prototypes of the class {name!r}, found none; build it first") from None
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, got: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else None
        raise UserError(f"{path}: expected a class of schema {SCHEMA}, got {got!r}; build the class again")
    return document


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
