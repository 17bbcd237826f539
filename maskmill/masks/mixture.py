"""Masks by a two-component Gaussian mixture (concept distillation, 3.1 and Eq. 5).

One rule makes both kinds of mask: of the mean attention of an image its preliminary mask M_pre, of the difference
between the image and its inpainted background the second factor g of the refined mask

    M = up(M_pre) * g(|x - m'(z~_0, y_b)|).

The threshold is the mean of the two components' means, and a 3x3 mean filter >= 0.5 removes orphan pixels. The paper
says of the mixture's failure only that it occurs. Here it has flags, so that it can be counted, and a fallback:

    constant   the map has one value (to 1 part in 10^6): nothing is object
    one_mode   the means lie less than one standard deviation apart, so the middle between them means nothing:
               the threshold is that of the best split of the values in two groups (2-means, which is Otsu's)
    empty, full   what is left after the filter, whatever the threshold was
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from maskmill.errors import UserError

FLAGS = ("constant", "one_mode", "empty", "full")
SEPARATION = 1.0  # (mu_1 - mu_0) / sqrt((s_0^2 + s_1^2) / 2) below which a map counts as one mode
SAMPLE = 1 << 14  # values that a mixture is fitted to; of a larger map, so many at even ranks
TOLERANCE, ITERATIONS = 1e-3, 200  # of expectation maximisation; the tolerance is scikit-learn's default


@dataclass(frozen=True)
class Split:
    """A map cut in two.

    Attributes:
        mask: (H, W) bool, after the mean filter.
        threshold: in the map's units; pixels above it are object before the filter.
        means: of the lower and the higher component, or of the two groups under the flag one_mode.
        flags: of ``FLAGS``.
    """

    mask: np.ndarray
    threshold: float
    means: tuple[float, float]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refined:
    """``mask`` (H, W) bool is M; ``difference`` (H, W) float64 in 0..1; ``split`` is g of it."""

    mask: np.ndarray
    difference: np.ndarray
    split: Split


def split(values: np.ndarray, name: str = "map") -> Split:
    """Cut a map by the mixture of its own values. A map times a number, or plus one, is cut in the same place.

    Args:
        values: (H, W) of any real type and scale; higher is object.
        name: names the map in errors.

    Raises:
        UserError: no (H, W) map, or one with values that are not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        what = f"shape {x.shape}" if x.ndim != 2 or not x.size else "NaN or infinity"
        raise UserError(f"{name}: expected a map (H, W) of finite values, got {what}")
    low, high = float(x.min()), float(x.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return Split(np.zeros(x.shape, bool), high, (low, high), ("constant", "empty"))
    ordered = np.sort(x.ravel())  # not the order of pixels, so that it cannot matter
    if len(ordered) > SAMPLE:
        ordered = ordered[np.linspace(0, len(ordered) - 1, SAMPLE).round().astype(int)]
    centre, scale = ordered.mean(), ordered.std() or high - low
    standard = (ordered - centre) / scale
    means, deviations = two_gaussians(standard)
    flags: tuple[str, ...] = ()
    if means[1] - means[0] < SEPARATION * np.sqrt((deviations**2).mean()):
        first = two_means(standard)
        means, flags = np.array([standard[:first].mean(), standard[first:].mean()]), ("one_mode",)
    means = centre + scale * means
    threshold = float(means.mean())
    mask = mean_filter(x > threshold)
    flags += ("empty",) if not mask.any() else ("full",) if mask.all() else ()
    return Split(mask, threshold, (float(means[0]), float(means[1])), flags)


def contrast(attention: np.ndarray, tokens: int) -> float:
    """How far a word's attention stands out, in even shares: T (mean of the upper group - mean of the lower one).

    The groups are those of ``two_means``; an even share of a pixel's attention is 1 / T, so 0 is a flat map. One map
    says little, the median over a set tells whether the word occurs in it: on the miniature's scenes it is 1.7 to 1.9
    for the word of an object and 0.9 to 1.1 for the word of one that is absent.

    Args:
        attention: (H, W), mean attention in 0..1. tokens: T, length of the padded prompt.
    """
    ordered = np.sort(np.asarray(attention, np.float64).ravel())
    if not np.isfinite(ordered).all() or ordered[0] == ordered[-1]:
        return 0.0
    first = two_means(ordered)
    return tokens * float(ordered[first:].mean() - ordered[:first].mean())


def two_gaussians(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the two components of a Gaussian mixture, (2,) each, the lower mean first.

    Expectation maximisation starts from the best split in two groups. That is what K-means, scikit-learn's usual start,
    looks for with random tries; in one dimension it can be had exactly, so there is no seed.

    Args:
        x: (n,) sorted, not constant, of unit variance: scikit-learn adds 1e-6 to variances, whatever their scale.
    """
    first = two_means(x)
    parts = x[:first], x[first:]
    mixture = GaussianMixture(
        2,
        tol=TOLERANCE,
        max_iter=ITERATIONS,
        weights_init=[first / len(x), 1 - first / len(x)],
        means_init=[[part.mean()] for part in parts],
        precisions_init=[[[1 / (part.var() + 1e-6)]] for part in parts],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that crawls is still a fit
        mixture.fit(x[:, None])
    order = np.argsort(mixture.means_[:, 0], kind="stable")
    return mixture.means_[order, 0], np.sqrt(mixture.covariances_[order, 0, 0])


def two_means(x: np.ndarray) -> int:
    """Where sorted values (n,) fall into two groups of least squares within: the second group is x[i:], 1 <= i < n.

    Equal values stay together: each is nearer to one of the two means.
    """
    count = np.arange(1, len(x))
    below = np.cumsum(x)[:-1]
    above = x.sum() - below
    between = below**2 / count + above**2 / (len(x) - count)  # what is not within is between
    return 1 + int(np.argmax(between))


def mean_filter(mask: np.ndarray) -> np.ndarray:
    """3x3 mean of a (H, W) bool mask >= 0.5; beyond the border its outermost pixels go on."""
    around = ndimage.convolve(mask.astype(np.int32), np.ones((3, 3), np.int32), mode="nearest")
    return 2 * around >= 9


def upsample(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (H, W), nearest neighbour: the cell in which a pixel's corner lies. For whole multiples: each cell
    becomes a block."""
    y, x = (np.arange(to) * of // to for to, of in zip(shape, mask.shape, strict=True))
    return mask[y[:, None], x]


def difference(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the colours of two (H, W, 3) uint8 images, (H, W) float64 in 0..1."""
    if image.shape != other.shape:
        raise UserError(f"difference: expected images of one size, got {image.shape} and {other.shape}")
    return np.abs(image.astype(np.int32) - other.astype(np.int32)).sum(2) / (3 * 255)


def refined_mask(image: np.ndarray, background: np.ndarray, preliminary: np.ndarray, name: str = "image") -> Refined:
    """M = up(M_pre) * g(|x - x_b|), at the image's resolution.

    g's mixture sees the whole difference image, of which what M_pre leaves is the same picture twice, but for the
    autoencoder's error: its lower component.

    Args:
        image: x, (H, W, 3) uint8. background: the same with the object painted over, x_b.
        preliminary: M_pre, (h, w) bool.
    """
    change = difference(image, background)
    found = split(change, f"difference of {name}")
    return Refined(upsample(preliminary, change.shape) & found.mask, change, found)
