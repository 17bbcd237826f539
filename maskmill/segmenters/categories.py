"""Which classes a picture is searched for (CLIP category filter), and what stuff takes from things (OVDiff 3.4).

``things.csv`` in ``maskmill/labels`` says for each class of the benchmarks whether it is a thing or stuff, and by which
words it is asked for where its name is no plain English. Its rows are in the order of the data sets' own labels. The
first is label 1 and 0 is the background, so files that count from 0 (COCO-Stuff's and Cityscapes' train ids) are one
below. Context's classes are in alphabetical order, as its label maps are numbered.

Sources of the kinds: COCO-Stuff, ADE20K (panoptic) and Cityscapes define them; of VOC all are things; for Context they
are ours (a thing is what can be counted); the miniature's follow ``maskmill.world``.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from maskmill.errors import UserError
from maskmill.segmenters.prototypes import ClassPrototypes
from maskmill.store import read_rows
from maskmill.zeroshot import ZeroShot, with_article

TABLE = Path(__file__).parents[1] / "labels" / "things.csv"
THING, STUFF = "thing", "stuff"
ETA = 10  # chosen classes at most: 2 to its power texts are compared with a picture
BATCH = 64  # texts that are encoded at once, always so many
KEPT = 100_000  # texts whose embedding is remembered
SIMILAR = 0.85  # OVDiff's, of a thing's background prototype to a stuff prototype


# --- things and stuff -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Category:
    """``name`` as the data set calls it, ``query`` as it is asked for, ``kind`` thing or stuff."""

    name: str
    query: str
    kind: str


def benchmark_names() -> list[str]:
    """The data sets of ``things.csv``, in its order."""
    return list(dict.fromkeys(row["dataset"] for _, row in _rows(TABLE)))


def load_categories(name: str | Path) -> list[Category]:
    """The classes of a benchmark, or those of the user.

    Args:
        name: a data set of ``things.csv``: voc, context, coco_object, coco_stuff, ade20k, cityscapes, world; or a CSV
            file with the columns ``class`` and, where it shall differ from that name, ``query``, and ``kind`` (thing
            or stuff; an empty one is a thing). A text file with a class per line is such a table of its own.

    Raises:
        UserError: no such data set or file, no class, one or its query twice, or another kind; names file and line.
    """
    known = benchmark_names()
    if str(name) in known:
        path, rows = TABLE, [(line, row) for line, row in _rows(TABLE) if row["dataset"] == str(name)]
    else:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: expected a data set among {', '.join(known)}, or a file of classes, found none")
        rows = _rows(path)
    out: list[Category] = []
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows:
        cls, kind = _plain(row["class"]), _plain(row.get("kind", "")) or THING
        query = _plain(row.get("query", "")) or cls
        if not cls or kind not in (THING, STUFF):
            raise UserError(f"{path}: line {line}: expected a class and thing or stuff, got {cls!r} and {kind!r}")
        for what, text in (("class", cls), ("query", query)):
            before = seen.setdefault((what, text.casefold()), line)
            if before != line:
                raise UserError(f"{path}: line {line}: expected each {what} once, got {text!r} again (first at line "
                                f"{before})")  # fmt: skip
        out.append(Category(cls, query, kind))
    if not out:
        raise UserError(f"{path}: expected at least one class, got none")
    return out


def _plain(text: str) -> str:
    return " ".join(text.split())


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Numbered rows of a CSV file with a column ``class``; without one, of a plain list of classes, # for comments."""
    header, rows = read_rows(path, "a table or list of classes")
    if "class" in header:
        return [(line, dict(zip(header, row, strict=True))) for line, row in rows]
    if len(header) > 1:
        raise UserError(f"{path}: expected the column class, or one class per line, got {','.join(header)}")
    lines = [(i, text.partition("#")[0]) for i, text in enumerate(path.read_text("utf-8-sig").splitlines(), 1)]
    return [(i, {"class": text}) for i, text in lines if text.strip()]


def stuff_filter(
    classes: Sequence[ClassPrototypes], stuff: Collection[str], similar: float = SIMILAR
) -> list[ClassPrototypes]:
    """Keep the background of things from being stuff that has a class of its own.

    Stuff classes give foreground prototypes only; of the others those background prototypes go whose cosine with any
    foreground prototype of a stuff class, of the same extractor, is above ``similar``.

    Args:
        classes: the whole vocabulary.
        stuff: names of its stuff classes.
        similar: -1..1; 1 removes none of the things' prototypes.
    """
    out = []
    for own in classes:
        vectors, links = {}, {}
        for key, x in own.vectors.items():
            ground = np.array([link.ground == "foreground" for link in own.links[key]], bool)
            keep = ground
            if own.name not in stuff:
                keep = ground | (_largest_cosines(x, _foregrounds(classes, stuff, key)) <= similar)
            vectors[key] = x[keep]
            links[key] = [link for link, stays in zip(own.links[key], keep, strict=True) if stays]
        out.append(replace(own, vectors=vectors, links=links))
    return out


def _foregrounds(classes: Sequence[ClassPrototypes], stuff: Collection[str], extractor: str) -> np.ndarray | None:
    """All foreground prototypes of stuff classes for one extractor, (P, C); None where there are none."""
    found = [
        c.vectors[extractor][[link.ground == "foreground" for link in c.links[extractor]]]
        for c in classes
        if c.name in stuff
    ]
    return np.concatenate(found) if found else None


def _largest_cosines(x: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    """(n, C), (m, C) -> (n,): the largest cosine with any of the others; -inf where there are none."""
    if others is None or not len(others):
        return np.full(len(x), -np.inf)
    x, others = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, others))
    return (x @ others.T).max(1)


# --- which classes a picture shows ------------------------------------------------------------------------------------


def subsets(count: int) -> list[tuple[int, ...]]:
    """All subsets of 0..count-1 but the empty one, small ones first, each in rising order: 2^count - 1."""
    return [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]


def joined_prompt(names: Sequence[str]) -> str:
    """``a bird and an orange and jeans``."""
    return " and ".join(with_article(name) for name in names)


class CategoryFilter:
    """CLIP's choice of the classes that a picture may show.

    First, classes whose probability (softmax over the vocabulary) is at least 1/|C|, the ``eta`` most probable at most.
    Then, of all subsets of those, the one whose text "a x and a y" is most similar to the picture. Texts are encoded
    once for all pictures. A text that is longer than the model's context is cut by its tokenizer.

    Args:
        zero_shot: the classifier over the vocabulary; its classes are the queries.
        model: what it was loaded from, as ``ZeroShot`` takes it.
        eta: at least 1.
        subsets: whether the second step is done.
    """

    def __init__(self, zero_shot: ZeroShot, model: str, eta: int = ETA, subsets: bool = True) -> None:
        if eta < 1:
            raise UserError(f"category filter, eta: expected a number of at least 1, got {eta}")
        self.zero_shot, self.eta, self.subsets = zero_shot, eta, subsets
        name = f"local-dir:{model}" if Path(model).is_dir() else model.partition("/")[0]
        self._tokenizer = open_clip.get_tokenizer(name)
        self._texts: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> list[int]:
        """A picture (H, W, 3) uint8 -> the numbers of the chosen classes, at least one, in rising order."""
        z = self.zero_shot
        x = z.preprocess(Image.fromarray(image))[None].to(z.device)  # (1, 3, h, w)
        feature = z.model.encode_image(x, normalize=True)[0].double()  # (d,)
        p = (z.scale * z.text.double() @ feature).softmax(0).cpu().numpy()  # (classes,)
        candidates = first_choice(p, self.eta)
        if not self.subsets or len(candidates) == 1:
            return sorted(candidates)
        groups = [[candidates[i] for i in s] for s in subsets(len(candidates))]
        texts = self._encoded([joined_prompt([z.classes[i] for i in sorted(group)]) for group in groups])
        return sorted(groups[int((texts @ feature).argmax())])

    def _encoded(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of length 1, (n, d) float64, each text encoded once, in batches of one size."""
        if len(self._texts) > KEPT:
            self._texts.clear()
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        for a in range(0, len(new), BATCH):
            part = new[a : a + BATCH]
            tokens = self._tokenizer(part + [part[-1]] * (BATCH - len(part))).to(self.zero_shot.device)
            rows = self.zero_shot.model.encode_text(tokens, normalize=True)  # (BATCH, d)
            self._texts |= dict(zip(part, rows, strict=False))
        return torch.stack([self._texts[p] for p in prompts]).double()


def first_choice(probabilities: np.ndarray, eta: int) -> list[int]:
    """The classes of probability at least 1/|C|, the most probable first, ``eta`` at most, never none.

    Args:
        probabilities: (classes,) float, sum 1.
    """
    order = np.argsort(-probabilities, kind="stable")
    enough = probabilities[order] >= 1 / len(probabilities)
    enough[0] = True  # the largest is at least the mean but for rounding
    return [int(i) for i in order[enough][:eta]]

