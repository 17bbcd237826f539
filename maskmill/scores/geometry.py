"""Statistics of what masks look like, to compare a synthetic set with a real one: DiffusionSeg Table 2, Figures 3 to 5.

Per mask a polygon, whose vertices are counted (SC) and whose length is taken (PL), the share of the picture that it
covers, the centre of its box, and the contrast of the picture; over a set how much the polygons differ (SD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp
from skimage.measure import approximate_polygon, find_contours

from maskmill.errors import UserError
from maskmill.scores.localisation import largest_component, predicted_box

TOLERANCE = 0.01  # of Douglas-Peucker, in the unit square
PAIRS = 50_000
_CELLS = 500_000  # distances in memory at a time

PROTOCOL = {
    "polygon": "outer border of the largest 8-connected component through the centres of its pixels, moved and scaled "
    "(one factor for both axes) so that its longer side is 0..1, Douglas-Peucker",
    "SC": "vertices of the polygon, mean over masks",
    "PL": "perimeter of the polygon, mean over masks",
    "SD": "mean over pairs of masks of the sum over the vertices of both polygons of the squared distance to the other "
    "polygon's nearest vertex",
    "contrast": "root mean square over R, G and B of the standard deviation of the picture's levels 0..255",
    "size": "object pixels / all pixels",
    "centre": "of the tight box of the largest component, in shares of the picture's width and height; centre_std is "
    "the root of the mean of the variances of x and y",
    "_std": "population standard deviation over the set",
    "distance": "two-sample Kolmogorov-Smirnov statistic, 0 for equal distributions to 1 for distributions apart",
    "n": "masks; empty masks are left out and counted",
}


@dataclass(frozen=True)
class Geometry:
    """What is measured of one mask and its picture.

    Attributes:
        polygon: (V, 2) float64, x and y in 0..1, see ``polygon``.
        contrast: 0..127.5, see ``contrast``.
        size: share of the pixels, above 0 to 1.
        centre: x and y of the middle of the box, from the upper left corner, in 0..1.
    """

    polygon: np.ndarray
    contrast: float
    size: float
    centre: tuple[float, float]

    @property
    def vertices(self) -> int:
        """SC of this mask."""
        return len(self.polygon)

    @property
    def length(self) -> float:
        """PL of this mask."""
        return perimeter(self.polygon)


def measure(mask: np.ndarray, image: np.ndarray, tolerance: float = TOLERANCE) -> Geometry | None:
    """All that is measured of one mask; ``None`` for an empty one.

    Args:
        mask: (H, W) bool.
        image: (H, W, 3) uint8.
        tolerance: see ``polygon``.

    Raises:
        UserError: the two are not of one size.
    """
    if image.shape != (*mask.shape, 3):
        raise UserError(f"geometry: expected an image of the mask's size, got {image.shape} and {mask.shape}")
    box = predicted_box(mask)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    height, width = mask.shape
    centre = (x0 + x1 + 1) / 2 / width, (y0 + y1 + 1) / 2 / height
    return Geometry(polygon(mask, tolerance), contrast(image), float(mask.mean()), centre)


def contrast(image: np.ndarray) -> float:
    """Colour contrast of a picture (H, W, 3) uint8: how far its pixels are from its mean colour.

    The paper's Figure 3 does not define it; its axis reads "std" and runs from 20 to 100. This is the standard
    deviation of the levels 0..255 of each of R, G and B, as a root mean square over the three. Of a grey picture it is
    the standard deviation of the grey (RMS contrast); two colours of the same brightness have contrast too.
    """
    return float(np.sqrt(image.reshape(-1, 3).var(0).mean()))


# --- polygons ---------------------------------------------------------------------------------------------------------


def outline(mask: np.ndarray) -> np.ndarray:
    """The outer border of the largest component: the pixels that one passes walking once around it.

    The paper traces external contours by OpenCV, which visits the centres of the border's pixels, 8-connected; a part
    one pixel thick is walked there and back. The walk here has the same corners: contour lines at a level between
    object and ground (scikit-image, objects 8-connected) pass the border's pixels in order, close to their centres.
    Of several objects the paper does not say which contour counts: the largest component's does, as for the box.

    Args:
        mask: (H, W) bool.

    Returns:
        (n, 2) int64, x and y, each point one step (also diagonal) from the one before it, the first not repeated at
        the end; (0, 2) for an empty mask.
    """
    padded = np.pad(largest_component(mask), 1)
    if not padded.any():
        return np.zeros((0, 2), np.int64)
    # Holes have contours too. The outer one comes first: the search runs in row-major order and what lies in a row
    # above every hole is the outer border.
    walk = find_contours(padded.astype(float), 0.75, fully_connected="high")[0]  # within 0.25 of a pixel's centre
    points = np.rint(walk[:-1, ::-1]).astype(np.int64) - 1
    moved = (points != np.roll(points, 1, axis=0)).any(1)
    return points[moved] if moved.any() else points[:1]


def polygon(mask: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """The simplified polygon of a mask in the unit square: ``outline``, moved to 0, scaled, Douglas-Peucker.

    The outline is scaled by its longer side, so that the shape keeps its proportions. That is a reading: the paper says
    "unit square" and "own min/max", which could also mean each axis by itself. But a closed line that touches all four
    sides of the unit square is at least 2 sqrt(2) = 2.83 long, and the paper prints a mean length of 2.78.

    Args:
        mask: (H, W) bool.
        tolerance: largest distance of the outline from the polygon, in the unit square; above 0. At 0.01 the steps of
            a slanted line, half a pixel high, count as shape if the object's longer side has fewer than 50 pixels:
            SC compares sets of one resolution only.

    Returns:
        (V, 2) float64, x and y in 0..1, the first vertex not repeated; one vertex for a single pixel, (0, 2) for an
        empty mask.
    """
    points = outline(mask)
    if len(points) == 0:
        return points.astype(float)
    scaled = (points - points.min(0)) / max(1, np.ptp(points, axis=0).max())
    return simplify(scaled, tolerance)


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas-Peucker of a closed line through ``points`` (n, 2), the first not repeated; -> some of them, in order.

    A closed line has no ends to start from. This starts at the point farthest from the mean of all, which is a corner
    of the shape whatever the tolerance.
    """
    if len(points) < 2:
        return points
    start = ((points - points.mean(0)) ** 2).sum(1).argmax()
    closed = np.concatenate([points[start:], points[: start + 1]])
    return approximate_polygon(closed, tolerance)[:-1]


def perimeter(polygon: np.ndarray) -> float:
    """Length of the closed line through the vertices (V, 2), in their unit."""
    return float(np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1).sum())


# --- over a set -------------------------------------------------------------------------------------------------------


def chamfer(a: np.ndarray, b: np.ndarray, weight_a: np.ndarray, weight_b: np.ndarray) -> np.ndarray:
    """Two-sided squared Chamfer distance of a batch of pairs of point sets.

        sum over p in A of min over q in B |p - q|^2  +  sum over q in B of min over p in A |p - q|^2

    Sums, not means: with means no two polygons of the unit square come near the 2 that the paper prints.

    Args:
        a, b: (N, V, 2) and (N, W, 2); shorter sets filled up with copies of one of their own points.
        weight_a, weight_b: (N, V) and (N, W), 1 for a point that counts and 0 for a copy.

    Returns:
        (N,) float64.
    """
    x, y = (a[:, :, None, axis] - b[:, None, :, axis] for axis in (0, 1))
    squared = x * x + y * y  # (N, V, W)
    return (squared.min(2) * weight_a).sum(1) + (squared.min(1) * weight_b).sum(1)


def shape_diversity(
    polygons: Sequence[np.ndarray], pairs: int = PAIRS, rng: np.random.Generator | None = None
) -> tuple[float, int]:
    """SD of a set: the mean ``chamfer`` distance over its pairs of polygons.

    Args:
        polygons: (V, 2) each, at least one vertex.
        pairs: most pairs; a set with more is judged by this many drawn at random, with replacement.
        rng: draws them; not needed where all pairs are taken.

    Returns:
        SD (0 for fewer than two polygons) and the number of pairs that it is the mean of.
    """
    count = len(polygons)
    if count < 2:
        return 0.0, 0
    if count * (count - 1) // 2 <= pairs:
        first, second = np.triu_indices(count, 1)
    else:
        if rng is None:
            raise UserError(f"shape diversity: expected a generator to draw {pairs} pairs of {count} polygons with")
        first, second = rng.integers(count, size=pairs), rng.integers(count - 1, size=pairs)
        second = second + (second >= first)  # any but the first
    lengths = np.array([len(p) for p in polygons])
    longest = int(lengths.max())
    points = np.stack([np.pad(p, ((0, longest - len(p)), (0, 0)), mode="edge") for p in polygons])  # (n, longest, 2)
    weights = (np.arange(longest) < lengths[:, None]).astype(float)
    sides = np.maximum(lengths[first], lengths[second])
    order = np.argsort(-sides, kind="stable")  # pairs of long polygons first, so that a batch's first is its largest
    total = 0.0
    while len(order):
        side = int(sides[order[0]])
        batch, order = np.split(order, [max(1, _CELLS // side**2)])
        i, j = first[batch], second[batch]
        total += chamfer(points[i, :side], points[j, :side], weights[i, :side], weights[j, :side]).sum()
    return float(total / len(first)), len(first)


def summarise(measured: Sequence[Geometry | None], pairs: int = PAIRS, rng: np.random.Generator | None = None) -> dict:
    """Means and spreads of a set; the keys are explained in ``PROTOCOL``.

    Args:
        measured: what ``measure`` gave for each mask; None is an empty mask.
        pairs, rng: see ``shape_diversity``.

    Returns:
        ``SC, PL, SD, contrast, contrast_std, size, size_std, centre_x, centre_y, centre_std, n, empty, pairs``.

    Raises:
        UserError: no mask that is not empty.
    """
    found = [g for g in measured if g is not None]
    if not found:
        raise UserError("mask statistics: expected at least one mask that is not empty, got none")
    contrasts, sizes = np.array([g.contrast for g in found]), np.array([g.size for g in found])
    centres = np.array([g.centre for g in found])  # (n, 2)
    diversity, pairs = shape_diversity([g.polygon for g in found], pairs, rng)
    return {
        "SC": float(np.mean([g.vertices for g in found])), "PL": float(np.mean([g.length for g in found])),
        "SD": diversity,
        "contrast": float(contrasts.mean()), "contrast_std": float(contrasts.std()),
        "size": float(sizes.mean()), "size_std": float(sizes.std()),
        "centre_x": float(centres[:, 0].mean()), "centre_y": float(centres[:, 1].mean()),
        "centre_std": float(np.sqrt(centres.var(0).mean())),
        "n": len(found), "empty": len(measured) - len(found), "pairs": pairs,
    }  # fmt: skip


def distances(a: Sequence[Geometry | None], b: Sequence[Geometry | None]) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov statistic, 0..1, of each quantity between two sets; empty masks are left out."""

    def values(measured: Sequence[Geometry | None]) -> dict[str, list[float]]:
        found = [g for g in measured if g is not None]
        return {"contrast": [g.contrast for g in found], "size": [g.size for g in found],
                "centre_x": [g.centre[0] for g in found], "centre_y": [g.centre[1] for g in found],
                "SC": [g.vertices for g in found], "PL": [g.length for g in found]}  # fmt: skip

    of_a, of_b = values(a), values(b)
    return {name: float(ks_2samp(of_a[name], of_b[name], method="asymp").statistic) for name in of_a}
