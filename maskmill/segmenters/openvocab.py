"""Open-vocabulary segmentation of a picture with a bank of prototypes (OVDiff 3.4).

    v = the vocabulary, or what the category filter leaves of it
    s_i = similarity of view i of the picture to v           (``matching``)
    s = mean of the views at each pixel, refined by PAMR     (``windows``, ``masks.pamr``)
    label(p) = argmax s(p)

``settings`` is the section ``segment`` of the parameters throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskmill.errors import UserError
from maskmill.masks.coco import encode
from maskmill.masks.pamr import pamr
from maskmill.params import Segment
from maskmill.segmenters.categories import STUFF, THING, Category, CategoryFilter, stuff_filter
from maskmill.segmenters.matching import Match, Vocabulary, common_grid, match
from maskmill.segmenters.prototypes import Bank, ClassPrototypes
from maskmill.segmenters.windows import Plan, cut, enlarge, label_map, merge, plan
from maskmill.zeroshot import ZeroShot

Extract = Callable[[Sequence[np.ndarray]], torch.Tensor]  # pictures of any sizes -> (B, C, h, w)


@dataclass(frozen=True)
class Found:
    """What was found in a picture.

    Attributes:
        labels: (H, W) uint8 in the numbers of the whole vocabulary, 0 for the background.
        similarity: (H, W) float32 of each pixel to its label.
        searched: names of the classes that the category filter left.
        views: how many views of the picture were matched.
    """

    labels: np.ndarray
    similarity: np.ndarray
    searched: tuple[str, ...]
    views: int


def chosen_classes(bank: Bank, categories: Sequence[Category]) -> tuple[list[Category], list[str]]:
    """The classes to look for, in the order of ``categories``, or all of the bank where there are none.

    Returns:
        Those that the bank has, by their name or their query and under the name that they have there; and the names
        of those that it does not: such as had no foreground in any support image and were kept out.

    Raises:
        UserError: the bank is empty or has none of them.
    """
    built = bank.names()
    if not built:
        raise UserError(f"{bank.folder}: expected prototypes of at least one class, found none; build the bank first")
    if not categories:
        return [Category(name, name, THING) for name in built], []
    named = [replace(c, name=c.name if c.name in built else c.query) for c in categories]
    found = [c for c in named if c.name in built]
    if not found:
        wanted = ", ".join(c.name for c in categories[:5]) + (", ..." if len(categories) > 5 else "")
        raise UserError(f"{bank.folder}: expected prototypes of {wanted}, found those of {', '.join(built[:8])}")
    return found, [c.name for c, own in zip(categories, named, strict=True) if own.name not in built]


class Segmenter:
    """A vocabulary of prototypes, and all that it takes to label pictures with it.

    Args:
        prototypes: of the classes, in the order of the labels 1, 2, ...
        categories: of the same classes: the words they are asked for and whether they are stuff.
        extractors: name -> callable, those of the prototypes; see ``maskmill.segmenters.features_of``. The grid of an
            extractor is the same for all views.
        settings: see the module.
        clip: CLIP model of the category filter, as ``ZeroShot`` takes it; not read where the filter is off.
        device: where features are matched.

    Attributes:
        names: the label's names; names[0] is "background".

    Raises:
        UserError: settings, model or prototypes do not go together.
    """

    def __init__(
        self,
        prototypes: Sequence[ClassPrototypes],
        categories: Sequence[Category],
        extractors: Mapping[str, Extract],
        settings: Segment,
        clip: str,
        device: str = "cpu",
    ) -> None:
        p = self.settings = settings
        self.extractors = dict(extractors)
        self.prototypes = {own.name: own for own in prototypes}
        kept = list(prototypes)
        if p.stuff:
            kept = stuff_filter(kept, [c.name for c in categories if c.kind == STUFF], p.similar)
        background = {"prototypes": True, "threshold": p.threshold, "none": False}[p.background]
        self.vocabulary = Vocabulary(kept, list(extractors), p.kinds, background, device)
        self.names = self.vocabulary.names
        self.filter: CategoryFilter | None = None
        if p.filter and len(categories) > 1:
            if not clip:
                raise UserError("model.clip: expected a CLIP model for the category filter, got ''; without it: "
                                "--no-segment.filter")  # fmt: skip
            judge = ZeroShot(clip, [c.query for c in categories], device=device)
            self.filter = CategoryFilter(judge, clip, p.eta, p.subsets)
        self._bytes = 0  # of the features of one view, once known

    @property
    def budget(self) -> int:
        """Bytes of similarities at a time: a quarter of the memory; features have twice as much, with a copy."""
        return self.settings.memory * 2**20 // 4

    def plan(self, image: np.ndarray) -> Plan:
        """The views of a picture; ``UserError`` where it is smaller than a window."""
        p = self.settings
        return plan(*image.shape[:2], p.short, p.sizes, p.stride, p.whole)

    def searched(self, image: np.ndarray) -> Vocabulary:
        """The vocabulary that a picture is searched for."""
        if self.filter is None:
            return self.vocabulary
        return self.vocabulary.select([self.names[1 + i] for i in self.filter(image)])

    def features(self, views: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """(H, W, 3) uint8 each -> extractor -> (n, C, h, w), all on the finest grid."""
        return common_grid({name: extract(views) for name, extract in self.extractors.items()})

    def _room(self, view: np.ndarray) -> int:
        """How many views' features fit into their share of the memory."""
        if not self._bytes:
            self._bytes = sum(x.nbytes for x in self.features([view]).values())
        return max(1, 2 * self.budget // self._bytes)

    def _groups(self, looked: Sequence[tuple[Plan, list[np.ndarray]]]) -> Iterator[list[tuple[int, list[np.ndarray]]]]:
        """Views to extract together: of whole pictures as far as they fit, of a large picture a part at a time. So
        what a picture's views are matched with never depends on the other pictures."""
        room, group, held = self._room(looked[0][1][0]), [], 0
        for k, (_, views) in enumerate(looked):
            parts = [views[a : a + room] for a in range(0, len(views), room)]
            for part in parts:
                if group and held + len(part) > room:
                    yield group
                    group, held = [], 0
                group.append((k, part))
                held += len(part)
        yield group

    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Label some pictures.

        Args:
            images: (H, W, 3) uint8 each, of any sizes. What is found in one does not depend on the others; several go
                through the extractors together, whose batches are then fuller.

        Raises:
            UserError: a picture is smaller than a window.
        """
        looked = []
        for image in images:
            p = self.plan(image)
            looked.append((p, [view for lattice in cut(image, p) for view in lattice]))
        words = [self.searched(image) for image in images]
        parts: list[list[torch.Tensor]] = [[] for _ in images]
        for group in self._groups(looked) if looked else ():
            x = self.features([view for _, part in group for view in part])
            start = 0
            for k, part in group:
                own = {name: v[start : start + len(part)] for name, v in x.items()}
                parts[k].append(match(own, words[k], budget=self.budget).similarity)  # (n, K, h, w)
                start += len(part)
        return [self._found(image, words[k], looked[k][0], torch.cat(parts[k])) for k, image in enumerate(images)]

    def merged(self, image: np.ndarray, views: Plan, similarity: torch.Tensor) -> torch.Tensor:
        """Similarities of the views (n, K, a, b) -> of the scaled picture's pixels, (K, h, w)."""
        p, s = self.settings, merge(similarity, views)
        if p.pamr:
            h, w = views.shape
            if image.shape[:2] != (h, w):
                image = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))
            s = pamr(s, image, p.iterations, p.dilations)
        return s

    def _found(self, image: np.ndarray, words: Vocabulary, views: Plan, similarity: torch.Tensor) -> Found:
        s, size = self.merged(image, views, similarity), image.shape[:2]
        labels = label_map(s, size, self.budget)  # (H, W) in the numbers of the selection
        sure = enlarge(s.max(0, keepdim=True).values, size)[0].cpu().numpy()  # (H, W)
        return Found(self.vocabulary.labels_of(words)[labels], sure, words.names[1:], len(views))

    # --- explanation --------------------------------------------------------------------------------------------------

    def explain(self, image: np.ndarray, region: np.ndarray, most: int = 3) -> dict[str, Any]:
        """Which prototypes decided for the label of a region, and which came next.

        The label is the one of most of the region's pixels, the runner-up the one that is next most similar to them
        on average, both after the views were merged. A merged similarity is a mean over views; prototypes are named
        for the view that holds most of those pixels and, of equal ones, is most similar to the label.

        Args:
            image: (H, W, 3) uint8.
            region: (H, W) bool; one pixel of it is that pixel's explanation.
            most: how many prototypes are named per extractor, those that decided in most cells first.

        Returns:
            JSON: ``label`` and ``runner_up`` (None where there is one label only), each with ``class``, ``similarity``
            (of the merged maps, mean over the pixels), ``view_similarity`` (of the view, mean over its cells) and
            ``prototypes``; ``pixels`` of the region with the label; ``region`` of them, run-length encoded; ``view``:
            its ``box`` (top, left, height, width) in the picture scaled to ``of`` (h, w), its ``grid`` and the
            ``cells`` (row, column) that were looked at; and ``searched``. A prototype is {extractor, class, kind,
            ground, image, region, cell, number, cells, cosine}: its place in the bank, see
            ``maskmill.segmenters.prototypes.Link``, the cells in which it decided, and its mean cosine there. A
            background that is a threshold has none.

        Raises:
            UserError: the region is empty or of another size than the picture.
        """
        if np.shape(region) != image.shape[:2] or not np.any(region):
            raise UserError(f"explanation: expected a region with at least one pixel of a picture {image.shape[:2]}, "
                            f"got {int(np.sum(region))} pixels of {np.shape(region)}")  # fmt: skip
        words, views = self.searched(image), self.plan(image)
        x = self.features([view for lattice in cut(image, views) for view in lattice])
        found = match(x, words, budget=self.budget)
        s = enlarge(self.merged(image, views, found.similarity), image.shape[:2]).cpu().numpy()  # (K, H, W)
        labels = s.argmax(0)
        label = int(np.bincount(labels[region]).argmax())
        own = np.asarray(region, bool) & (labels == label)
        means = s[:, own].mean(1, dtype=np.float64)  # (K,)
        there = [k for k in np.argsort(-means, kind="stable") if k != label and (k or words.background is not False)]
        view, cells = self._best_view(views, found, own, label)
        looked = {name: v[view][:, cells[:, 0], cells[:, 1]][None, :, None] for name, v in x.items()}  # (1, C, 1, n)
        box = views.boxes()[view]
        return {
            "label": self._decided(looked, words, label, float(means[label]), most),
            "runner_up": self._decided(looked, words, int(there[0]), float(means[there[0]]), most) if there else None,
            "pixels": int(own.sum()), "region": encode(own),
            "view": {"box": list(box), "of": list(views.shape), "grid": list(found.labels.shape[1:]),
                     "cells": cells.tolist()},
            "searched": list(words.names[1:]),
        }  # fmt: skip

    def _best_view(self, views: Plan, found: Match, own: np.ndarray, label: int) -> tuple[int, np.ndarray]:
        """The view to explain by, and its cells (n, 2) that hold pixels of ``own``."""
        grid = found.labels.shape[1:]
        rows, columns = np.nonzero(own)
        y, x = ((at + 0.5) / n * side for at, n, side in zip((rows, columns), own.shape, views.shape, strict=True))
        candidates = []
        for number, (top, left, height, width) in enumerate(views.boxes()):
            down, right = (y - top) / height, (x - left) / width
            inside = (down >= 0) & (down < 1) & (right >= 0) & (right < 1)
            if not inside.any():
                continue
            cells = np.stack([down[inside] * grid[0], right[inside] * grid[1]], 1).astype(int)  # (pixels, 2)
            cells = np.unique(cells, axis=0)
            sure = float(found.similarity[number, label][cells[:, 0], cells[:, 1]].mean())
            candidates.append((int(inside.sum()), sure, number, cells))
        _, _, number, cells = max(candidates, key=lambda c: c[:2])
        return number, cells

    def _decided(
        self, x: Mapping[str, torch.Tensor], words: Vocabulary, label: int, merged: float, most: int
    ) -> dict[str, Any]:
        """The prototypes with the largest cosines of one label in some cells. ``x``: extractor -> (1, C, 1, n)."""
        number, cosine = decisive(x, words, label, self.budget)  # (V, n) each
        named = []
        for v, extractor in enumerate(words.extractors):
            entries, counts = np.unique(number[v][number[v] >= 0], return_counts=True)
            for i in np.argsort(-counts, kind="stable")[:most]:
                entry = int(entries[i])
                name, _, link = words.links[entry]
                original = self.prototypes[name].links[extractor]
                named.append({
                    "extractor": extractor, "class": name, "kind": link.kind, "ground": link.ground,
                    "image": link.image, "region": link.region, "cell": list(link.cell),
                    "number": next(k for k, other in enumerate(original) if other is link),
                    "cells": int(counts[i]), "cosine": float(cosine[v][number[v] == entry].mean(dtype=np.float64)),
                })  # fmt: skip
        sure = float(cosine.mean(dtype=np.float64)) if (number >= 0).all() else float(self.settings.threshold)
        return {"class": words.names[label], "similarity": merged, "view_similarity": sure, "prototypes": named}


def decisive(
    x: Mapping[str, torch.Tensor], words: Vocabulary, label: int, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """The prototype of one label with the largest cosine in each cell, whether or not the label won there.

    ``match`` names those of the two best labels. With one class alone these are the class and the background; of the
    background of several classes the best is that of the best class.

    Args:
        x: extractor -> (1, C, 1, n).
        label: of ``words``.

    Returns:
        (V, n) int64 numbers in ``words.links``, -1 for a background without prototypes, and (V, n) float32 cosines.
    """
    classes = words.names[1:] if label == 0 else [words.names[label]]
    number = cosine = None
    for name in classes:
        found = match(x, words.select([name]), budget=budget)
        first = (found.labels == (0 if label == 0 else 1))[:, 0]  # (1, n)
        n = torch.where(first, found.winner[:, 0, 0], found.runner_up[:, 0, 0])  # (V, n)
        c = torch.where(first, found.winner_cosine[:, 0, 0], found.runner_up_cosine[:, 0, 0])
        better = torch.ones_like(c, dtype=torch.bool) if cosine is None else c > cosine
        number = torch.where(better, n, number if number is not None else n)
        cosine = torch.where(better, c, cosine if cosine is not None else c)
    return number.cpu().numpy(), cosine.cpu().numpy()
