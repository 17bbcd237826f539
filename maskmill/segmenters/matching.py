"""Matching features with prototypes (OVDiff 3.4, Eq. 4).

    s(c, p) = max over the prototypes of class c of cos(prototype, feature at p),   label(p) = argmax_c s(c, p)

Label 0 is the background, whose prototypes are the union of all classes' background prototypes. With several feature
extractors s is averaged over them; as each has prototypes of its own, the maximum comes before the average.

All similarities are one matrix product per extractor and block of cells, reduced to the maximum of each class while the
block is in the cache; ``budget`` bounds the size of a block. The prototypes that decide come out of the same block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskmill.errors import UserError
from maskmill.segmenters.prototypes import KINDS, ClassPrototypes, Link

BACKGROUND = "background"
BUDGET = 64 * 2**20  # bytes of similarities at a time: quickest where a block still fits into the cache
LANES = 16  # cells in a block are a multiple of it: where rows of a product do not begin aligned, it takes 1.5x as long
THRESHOLD = 0.72  # OVDiff's, on the similarity to foreground prototypes, where background prototypes are left out


@dataclass(frozen=True)
class _Table:
    """The prototypes of one extractor, ordered by group; a group is what one class gives to one label.

    ``vectors`` (P, d) of length 1; ``start`` (G + 1,) where each group begins; ``label`` and ``source`` (G,) the label
    that a group stands for and the class it comes from, counted from 1; ``entry`` (P,) number of each prototype in the
    list of links that all parts of a vocabulary share.
    """

    vectors: torch.Tensor
    start: torch.Tensor
    label: torch.Tensor
    source: torch.Tensor
    entry: torch.Tensor

    @cached_property
    def group(self) -> torch.Tensor:
        """(P,) the group of each prototype."""
        return torch.repeat_interleave(torch.arange(len(self.label), device=self.start.device), self.start.diff())

    def picked(self, groups: torch.Tensor, label: torch.Tensor, source: torch.Tensor) -> _Table:
        """The table of some groups, with new labels and sources."""
        rows = torch.isin(self.group, groups).nonzero()[:, 0]
        sizes = self.start.diff()[groups]
        start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return _Table(self.vectors[rows], start, label, source, self.entry[rows])


class Vocabulary:
    """The prototypes of some classes, ready to be matched.

    Args:
        classes: of a bank, in the order of the labels 1, 2, ...; all with the same extractors.
        extractors: those to use; None: all of the first class.
        kinds: of class, instance, part: the prototypes to use.
        background: True: label 0 has the background prototypes of all classes. A number: it has none, and wins where no
            class is more similar than this (OVDiff's ablation, ``THRESHOLD``). False: there is no background.
        device: where the vectors are, in float32.

    Attributes:
        names: the label's names; names[0] is "background".
        extractors: their names.

    Raises:
        UserError: no class, one twice, an extractor that a class does not have, or a class without foreground
            prototypes of these kinds.
    """

    def __init__(
        self,
        classes: Sequence[ClassPrototypes],
        extractors: Sequence[str] | None = None,
        kinds: Sequence[str] = KINDS,
        background: bool | float = True,
        device: str | torch.device = "cpu",
    ) -> None:
        if not classes:
            raise UserError("vocabulary: expected at least one class, got none")
        names = [c.name for c in classes]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise UserError(f"vocabulary: expected each class once, got {twice!r} again")
        if odd := set(kinds) - set(KINDS):
            raise UserError(f"vocabulary: expected kinds of prototypes among {', '.join(KINDS)}, got {min(odd)!r}")
        self.names = (BACKGROUND, *names)
        self.extractors = tuple(classes[0].vectors if extractors is None else extractors)
        self.background = background
        self.device = torch.device(device)
        self.links: list[tuple[str, str, Link]] = []  # class, extractor, link
        self.numbers: list[int] = []  # of each of them among the class's own prototypes of that extractor
        self._tables = {key: self._table(classes, key, set(kinds)) for key in self.extractors}

    def _table(self, classes: Sequence[ClassPrototypes], extractor: str, kinds: set[str]) -> _Table:
        vectors, label, source, start, entry = [], [], [], [0], []
        grounds = ("foreground", "background") if self.background is True else ("foreground",)
        for ground in grounds:
            for c, own in enumerate(classes, 1):
                if extractor not in own.vectors:
                    raise UserError(f"class {own.name!r}: expected prototypes of the extractor {extractor}, got those "
                                    f"of {', '.join(own.vectors)}")  # fmt: skip
                links = own.links[extractor]
                rows = [i for i, link in enumerate(links) if link.ground == ground and link.kind in kinds]
                if not rows and ground == "foreground":
                    raise UserError(f"class {own.name!r}: expected foreground prototypes of {extractor}, got none; "
                                    "keep the class out")  # fmt: skip
                if rows:
                    vectors.append(own.vectors[extractor][rows])
                    label.append(c if ground == "foreground" else 0)
                    source.append(c)
                    start.append(start[-1] + len(rows))
                    entry += range(len(self.links), len(self.links) + len(rows))
                    self.links += [(own.name, extractor, links[i]) for i in rows]
                    self.numbers += rows
        x = torch.from_numpy(np.concatenate(vectors)).to(self.device, torch.float32)  # (P, d)
        integers = (torch.tensor(v, device=self.device) for v in (start, label, source, entry))
        return _Table(F.normalize(x, dim=1), *integers)

    def select(self, names: Sequence[str]) -> Vocabulary:
        """The vocabulary of some of the classes, with labels in their order; background prototypes are theirs alone.

        Raises:
            UserError: none, one twice, or one that is not here.
        """
        places = {name: i for i, name in enumerate(self.names) if i}
        if not names or len(set(names)) != len(names) or not set(names) <= set(places):
            raise UserError(f"vocabulary: expected distinct classes among {', '.join(places)}, got {list(names)}")
        new = torch.zeros(len(self.names), dtype=torch.long, device=self.device)
        for i, name in enumerate(names, 1):
            new[places[name]] = i
        out = object.__new__(Vocabulary)
        out.names, out.extractors = (BACKGROUND, *names), self.extractors
        out.background, out.device = self.background, self.device
        out.links, out.numbers = self.links, self.numbers
        out._tables = {}
        for key, table in self._tables.items():
            groups = (new[table.source] > 0).nonzero()[:, 0]
            out._tables[key] = table.picked(groups, new[table.label[groups]], new[table.source[groups]])
        return out

    def labels_of(self, other: Vocabulary) -> np.ndarray:
        """(labels of ``other``,) uint8: what each label of a selection is here: ``labels_of(picked)[label_map]``."""
        return np.array([self.names.index(name) for name in other.names], np.uint8)

    def vectors(self, extractor: str) -> torch.Tensor:
        """(P, C) float32, the prototypes of an extractor in this vocabulary, of length 1."""
        return self._tables[extractor].vectors


@dataclass(frozen=True)
class Match:
    """Labels of B views on one grid (h, w), with V extractors and K labels (0 is the background); tensors on the
    vocabulary's device.

    Attributes:
        labels: (B, h, w) int64.
        similarity: (B, K, h, w) float32 in -1..1, s averaged over the extractors. The background's is the threshold
            where it has no prototypes, and -1 where there is no background at all.
        winner: (V, B, h, w) int64, number of the prototype that decided for the label; -1 for a background without any.
        winner_cosine: (V, B, h, w) float32, its cosine; the mean over V is the similarity of the label. -1 for none.
        second: (B, h, w) int64, the label that came next; -1 where there is only one.
        runner_up, runner_up_cosine: (V, B, h, w), the same of the second label.
    """

    labels: torch.Tensor
    similarity: torch.Tensor
    winner: torch.Tensor
    winner_cosine: torch.Tensor
    second: torch.Tensor
    runner_up: torch.Tensor
    runner_up_cosine: torch.Tensor


def common_grid(features: Mapping[str, torch.Tensor], shape: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    """(B, C_v, h_v, w_v) of each extractor -> (B, C_v, h, w) float32, bilinear; None: the largest height and width."""
    grids = [x.shape[-2:] for x in features.values()]
    h, w = shape or (max(g[0] for g in grids), max(g[1] for g in grids))
    resized = {}
    for key, x in features.items():
        x = x.float()
        if x.shape[-2:] != (h, w):
            x = F.interpolate(x, (h, w), mode="bilinear", align_corners=False, antialias=True)
        resized[key] = x
    return resized


@torch.inference_mode()
def match(
    features: Mapping[str, torch.Tensor | np.ndarray],
    vocabulary: Vocabulary,
    shape: tuple[int, int] | None = None,
    budget: int = BUDGET,
) -> Match:
    """Label the cells of some views of a picture, or of several pictures.

    Args:
        features: extractor -> (B, C_v, h_v, w_v), float of any kind, not normalised; at least the vocabulary's
            extractors.
        vocabulary: the prototypes.
        shape: (h, w) of the grid that all features are brought to before they are compared; None: the finest.
        budget: bytes of similarities that are held at a time; at least those of 16 cells are. It changes no more than
            rounding.

    Raises:
        UserError: an extractor's features are missing or of another width than its prototypes.
    """
    device, tables = vocabulary.device, vocabulary._tables
    x = {}
    for key, table in tables.items():
        if key not in features:
            raise UserError(f"matching: expected features of {key}, got those of {', '.join(features)}")
        x[key] = torch.as_tensor(features[key]).to(device)
        if x[key].ndim != 4 or x[key].shape[1] != table.vectors.shape[1]:
            raise UserError(f"matching: {key}: expected features (B, {table.vectors.shape[1]}, h, w) as its prototypes "
                            f"have, got {tuple(x[key].shape)}")  # fmt: skip
    x = common_grid(x, shape)
    views, _, h, w = next(iter(x.values())).shape
    used, labels, count = views * h * w, len(vocabulary.names), len(tables)
    columns = {key: F.pad(v.transpose(0, 1).flatten(1), (0, -used % LANES)) for key, v in x.items()}  # (C_v, cells)
    cells = used + -used % LANES
    similarity = torch.empty(labels, cells, device=device)
    winner = torch.empty(2, count, cells, dtype=torch.long, device=device)
    cosine = torch.empty(2, count, cells, device=device)
    top = torch.empty(2, cells, dtype=torch.long, device=device)
    width = max(1, budget // (4 * sum(len(t.vectors) for t in tables.values())) // LANES) * LANES
    for a in range(0, cells, width):
        part = slice(a, min(a + width, cells))
        similarity[:, part], top[:, part], winner[..., part], cosine[..., part] = _of_cells(
            [_Block(table, columns[key][:, part]) for key, table in tables.items()], labels, vocabulary.background
        )

    def as_maps(y: torch.Tensor) -> torch.Tensor:
        return y[..., :used].unflatten(-1, (views, h, w))  # (..., cells) -> (..., B, h, w)

    (winner, runner_up), (winner_cosine, runner_up_cosine), (first, second) = map(as_maps, (winner, cosine, top))
    return Match(first, as_maps(similarity).transpose(0, 1), winner, winner_cosine, second, runner_up, runner_up_cosine)


def _of_cells(
    blocks: list[_Block], labels: int, background: bool | float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of the V extractors -> similarity (K, n), first and second label (2, n), and for both of them the number
    of the deciding prototype and its cosine, (2, V, n) each."""
    s = torch.stack([block.of_labels(labels) for block in blocks]).mean(0)  # (K, n)
    if background is not True:
        s[0] = -torch.inf if background is False else float(background)
    top = _top_two(s)
    decisive = [[block.decisive(label) for block in blocks] for label in top]
    winner, cosine = (torch.stack([torch.stack([d[i] for d in row]) for row in decisive]) for i in range(2))
    return s.clamp_(min=-1), top, winner, cosine


def _top_two(s: torch.Tensor) -> torch.Tensor:
    """(K, n) -> (2, n): the rows of the largest and the second largest values, of equal ones the first; -1 where there
    is no second but -inf."""
    first = s.argmax(0)
    value, second = s.scatter(0, first[None], -torch.inf).max(0)
    return torch.stack([first, torch.where(value > -torch.inf, second, -1)])


class _Block:
    """All cosines of one extractor with n cells, and what is read off them.

    A maximum does not change when all its numbers are divided by the same length, so that is done after it.
    """

    def __init__(self, table: _Table, x: torch.Tensor) -> None:
        self.table = table
        self.products = table.vectors @ x  # (P, n)
        length = x.square().sum(0).sqrt()  # (n,); ten times as quick as norm(dim=0)
        self.scale = torch.where(length > 0, 1 / length, torch.zeros_like(length))  # (n,)
        groups = x.new_full((len(table.label), x.shape[1]), -torch.inf)  # (G, n)
        self.groups = groups.scatter_reduce_(0, table.group[:, None].expand_as(self.products), self.products, "amax")

    def of_labels(self, count: int) -> torch.Tensor:
        """-> (K, n): the largest cosine of each label; -1 for one without prototypes."""
        best = self.groups.new_full((count, self.groups.shape[1]), -torch.inf)
        best.scatter_reduce_(0, self.table.label[:, None].expand_as(self.groups), self.groups, "amax")
        return torch.where(best > -torch.inf, (best * self.scale).clamp_(-1, 1), -1.0)

    def decisive(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prototype with the largest cosine of each cell's label: its number and its cosine; -1, -1 for none.

        First the best group of the label, then the best row of that group, so that no cell looks at all rows again.
        """
        table, n = self.table, len(labels)
        own = table.label[:, None] == labels  # (G, n)
        group = self.groups.masked_fill(~own, -torch.inf).argmax(0)  # (n,)
        sizes = table.start.diff()
        step = torch.arange(int(sizes.max()), device=labels.device)
        rows = table.start[group][:, None] + torch.minimum(step, sizes[group][:, None] - 1)  # (n, largest group)
        values, best = self.products[rows, torch.arange(n, device=labels.device)[:, None]].max(1)
        row = rows.gather(1, best[:, None])[:, 0]
        there = own.any(0)
        return torch.where(there, table.entry[row], -1), torch.where(there, values * self.scale, -1.0)


# --- explanation ------------------------------------------------------------------------------------------------------


def explain(found: Match, vocabulary: Vocabulary, region: np.ndarray, view: int = 0, most: int = 3) -> dict[str, Any]:
    """Which prototypes decided for the label of a cell or of a region, and what came next; plain JSON.

    Args:
        found: of ``match`` with this vocabulary, or with a selection from it.
        vocabulary: see there.
        region: (h, w) bool on the grid of the match; one cell of it is a pixel's explanation.
        view: which of the B views.
        most: how many prototypes are named per extractor, those that decided in most cells first.

    Returns:
        ``cells``, and for ``label`` (the one of most cells) and ``runner_up`` (the one that came second in most of
        those cells; None where there is one label only): ``class``, ``cells``, ``similarity`` (mean over these cells)
        and ``prototypes``, a list of {extractor, class, kind, ground, image, region, cell, cells, cosine, number}:
        ``cells`` in which it decided, its mean ``cosine`` there, and its ``number`` in the class's vectors in the bank.

    Raises:
        UserError: the region is empty or on another grid.
    """
    grid = tuple(found.labels.shape[1:])
    mask = torch.as_tensor(np.asarray(region, bool), device=found.labels.device)
    if tuple(mask.shape) != grid or not mask.any():
        raise UserError(f"explanation: expected a region with at least one cell of a grid {grid}, got "
                        f"{int(mask.sum())} cells of {tuple(mask.shape)}")  # fmt: skip
    label = int(found.labels[view][mask].mode().values)
    won = mask & (found.labels[view] == label)
    out = {"cells": int(mask.sum()), "label": _explained(vocabulary, label, won, found.winner[:, view],
                                                        found.winner_cosine[:, view], found.similarity[view], most),
           "runner_up": None}  # fmt: skip
    second = int(found.second[view][won].mode().values)
    if second >= 0:
        near = won & (found.second[view] == second)
        out["runner_up"] = _explained(vocabulary, second, near, found.runner_up[:, view],
                                      found.runner_up_cosine[:, view], found.similarity[view], most)  # fmt: skip
    return out


def _explained(
    vocabulary: Vocabulary, label: int, where: torch.Tensor, numbers: torch.Tensor, cosines: torch.Tensor,
    similarity: torch.Tensor, most: int,
) -> dict[str, Any]:  # fmt: skip
    prototypes = []
    for v, extractor in enumerate(vocabulary.extractors):
        entries, values = numbers[v][where], cosines[v][where].double()
        found, counts = entries[entries >= 0].unique(return_counts=True)  # in rising order, so ties are settled
        for i in counts.sort(descending=True, stable=True).indices[:most].tolist():
            entry = int(found[i])
            name, _, link = vocabulary.links[entry]
            prototypes.append({
                "extractor": extractor, "class": name, "kind": link.kind, "ground": link.ground, "image": link.image,
                "region": link.region, "cell": list(link.cell), "cells": int(counts[i]),
                "cosine": float(values[entries == entry].mean()), "number": vocabulary.numbers[entry],
            })  # fmt: skip
    return {"class": vocabulary.names[label], "cells": int(where.sum()),
            "similarity": float(similarity[label][where].double().mean()), "prototypes": prototypes}  # fmt: skip
