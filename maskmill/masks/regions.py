"""Foreground and background of support images: attribution maps, multi-Otsu, proposals, and Eq. 1 (OVDiff 3.3).

The attribution A of a class word in a support image is ``maskmill.masks.attentioncut.cross_map`` over all layers and
the whole of the diffusion time, min-max scaled to 0..1 per image. Two ways lead from it to regions:

- ``thresholded``: without a segmenter. Three-class multi-Otsu over all maps of the class (``class_thresholds``); the
  lowest class is background, the highest foreground, and what lies between belongs to neither.
- ``selected``: with one. Of the proposals, the one with the largest mean attribution is foreground, the one with the
  smallest is background (Eq. 1). The complement of their union is one more proposal (``with_complement``). Proposals
  come from ``maskcut`` or, where the user ran CutLER or the like, from ``maskmill.masks.coco.Proposals``.

Maps and masks of one image share one grid (h, w); ``at_shape`` brings masks to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from maskmill.errors import UserError
from maskmill.masks.attentioncut import resize
from maskmill.masks.rivals import Features, affinity, eigenvectors, joined, one_thread

BINS = 256
FALLBACK = (0.2, 0.5)  # OVDiff's, where multi-Otsu has no answer


@dataclass(frozen=True)
class Thresholds:
    """Background is A < ``low``, foreground A >= ``high``; ``fallback`` tells that they are not the maps' own."""

    low: float
    high: float
    fallback: bool = False


@dataclass(frozen=True)
class Regions:
    """``foreground`` and ``background`` (h, w) bool, disjoint unless proposals overlap; either may be empty.

    ``flags``: of "no_foreground" and "no_background".
    """

    foreground: np.ndarray
    background: np.ndarray

    @property
    def flags(self) -> tuple[str, ...]:
        parts = {"no_foreground": self.foreground, "no_background": self.background}
        return tuple(flag for flag, mask in parts.items() if not mask.any())


# --- without a segmenter ----------------------------------------------------------------------------------------------


def class_thresholds(maps: Iterable[np.ndarray]) -> Thresholds:
    """Three-class multi-Otsu over the values of all attribution maps of one class together.

    The two thresholds maximise the variance between the three classes of a histogram of 256 equal bins over 0..1, and
    lie on edges of bins. Maps that fill fewer than three bins, or hold NaN, have no such thresholds: then ``FALLBACK``.

    Args:
        maps: (h, w) float each, 0..1, of any sizes; read one at a time.

    Raises:
        UserError: there is no map.
    """
    counts, finite, seen = np.zeros(BINS, np.int64), True, False
    for a in maps:
        values = np.asarray(a, np.float64).ravel()
        seen, finite = True, finite and bool(np.isfinite(values).all())
        if finite:
            counts += np.bincount(np.clip(values * BINS, 0, BINS - 1).astype(np.intp), minlength=BINS)
    if not seen:
        raise UserError("multi-Otsu: expected at least one attribution map of the class, got none")
    if not finite or np.count_nonzero(counts) < 3:
        return Thresholds(*FALLBACK, fallback=True)
    low, high = threshold_multiotsu(classes=3, hist=(counts, np.arange(BINS)))  # last bin of the lower classes
    return Thresholds((int(low) + 1) / BINS, (int(high) + 1) / BINS)


def thresholded(attribution: np.ndarray, thresholds: Thresholds) -> Regions:
    """Regions of one image from its attribution alone. (h, w) float; NaN belongs to neither."""
    return Regions(attribution >= thresholds.high, attribution < thresholds.low)


# --- with proposals ---------------------------------------------------------------------------------------------------


def with_complement(proposals: np.ndarray) -> np.ndarray:
    """(P, h, w) bool -> (P + 1, h, w): the last is what no proposal covers."""
    return np.concatenate([proposals, ~proposals.any(0)[None]])


def at_shape(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(..., H, W) bool -> (..., h, w) bool: a cell belongs to a mask that covers more than half of it."""
    masks = np.asarray(masks, bool)
    return masks if masks.shape[-2:] == tuple(shape) else resize(masks, shape) > 0.5


def choose(proposals: np.ndarray, attribution: np.ndarray) -> tuple[int, int] | None:
    """Eq. 1: the proposals with the largest and with the smallest mean attribution; of equal ones the first.

    Args:
        proposals: (P, h, w) bool; empty ones are never chosen.
        attribution: (h, w) float.

    Returns:
        Their numbers; None where the means do not differ, so that nothing tells object from ground.
    """
    sizes = proposals.sum((1, 2))
    sums = np.where(proposals, attribution.astype(np.float64), 0).sum((1, 2))
    filled = np.flatnonzero(sizes)
    means = sums[filled] / sizes[filled]
    if not len(filled) or not means.max() > means.min():  # also false for NaN
        return None
    return int(filled[means.argmax()]), int(filled[means.argmin()])


def selected(
    proposals: np.ndarray, attribution: np.ndarray, below: float = 1.0, each: str = "pixel", erode: int = 0
) -> Regions:
    """Regions of one image by Eq. 1, the background cut down to where it is sure.

    Args:
        proposals: (P, h, w) bool, the complement among them if it shall be a candidate.
        attribution: (h, w) float, 0..1.
        below: the background's attribution must be lower; OVDiff with CutLER: 0.2. 1 asks for nothing.
        each: what must be: every "pixel" of it (others leave it), or the mean of the "region" (or it is dropped).
        erode: times the background is eroded by one pixel up, down, left and right, after that; OVDiff with CutLER: 1.
            The frame of the picture does not erode.

    Returns:
        The regions; both empty where Eq. 1 has no answer.
    """
    if each not in ("pixel", "region"):
        raise UserError(f"regions, each: expected pixel or region, got {each!r}")
    chosen = choose(proposals, attribution)
    if chosen is None:
        nothing = np.zeros(attribution.shape, bool)
        return Regions(nothing, nothing)
    foreground, background = proposals[chosen[0]], proposals[chosen[1]]
    if below < 1:
        low = attribution < below if each == "pixel" else attribution[background].mean() < below
        background = background & low
    if erode:
        background = ndimage.binary_erosion(background, iterations=erode, border_value=1)
    return Regions(foreground, background)


def maskcut(
    features: Features,
    shape: tuple[int, int],
    count: int = 3,
    tau: float = 0.15,
    eps: float = 1e-5,
    scale: str = "l2",
    corners: int = 3,
) -> np.ndarray:
    """Proposals by iterated normalised cuts (MaskCut of CutLER): one object per cut, which then leaves the graph.

    W_pq = 1 where the cosine of two cells exceeds tau, else eps. The second smallest generalised eigenvector of
    (D - W) y = lambda D y is split at its mean. The object is the side that holds the entry of largest size, or the
    other one when that side holds so many of the picture's corners; of it stays the part that is connected with its
    own largest entry. CutLER gives the cells of found objects the affinity eps; here they leave the graph.

    Args:
        features: {``feature_{side}_{k}``: (C, side, side)} of one picture, from any self-supervised or diffusion
            network.
        shape: (h, w) of the working grid.
        count: the most objects.
        tau, eps: see above; CutLER's values for the keys of DINO.
        scale: how the levels are scaled and joined, see ``maskmill.masks.rivals.joined``.
        corners: from how many of the four corners on the sides change places.

    Returns:
        (P, h, w) bool, disjoint, P <= count; fewer when the rest of the picture has no two sides.
    """
    found: list[np.ndarray] = []
    rest = np.ones(shape, bool)
    with one_thread():
        x = joined(features, shape, scale)  # (h*w, C)
        w = affinity(x, np.zeros((len(x), 0)), tau, eps)  # (h*w, h*w)
        while len(found) < count and rest.sum() >= 2:
            cells = np.flatnonzero(rest)
            graph = w[np.ix_(cells, cells)]  # (n, n)
            if np.ptp(graph[~np.eye(len(cells), dtype=bool)]) == 0:  # all alike, or none: every cut is as good
                break
            y = eigenvectors(graph, 1)[:, 0]  # (n,), its entry of largest size is positive
            side = y > y.mean()
            if not side.any():
                break
            mask = np.zeros(shape, bool)
            mask.flat[cells] = side
            if mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= corners:
                y, side = -y, ~side
                mask = rest & ~mask
            labels, _ = ndimage.label(mask)
            seed = cells[np.where(side, y, -np.inf).argmax()]
            mask = labels == labels.flat[seed]
            found.append(mask)
            rest = rest & ~mask
    return np.stack(found) if found else np.zeros((0, *shape), bool)

