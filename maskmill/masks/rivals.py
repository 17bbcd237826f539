"""The rivals of AttentionCut: K-means, NCut and DenseCRF on diffusion features (DiffusionSeg, Table 5).

The paper moves the three methods from colours to the features with small changes that it does not name. Ours:

- All of them see the features F^l of a picture on one working grid and the same A_c as AttentionCut, which tells them
  which of the things they find is the named one.
- AttentionCut sees the picture's colours too, in D(p, q). A rival does so where its ``colour`` is not 0: Lab colours
  then stand beside the features, with that weight. With 0 it sees features and A_c alone, as the paper's table has it.
- Each method gives a soft map on the working grid, 0.5 where both labels are equally good. It is brought to the
  picture's size bilinearly and the mask is [soft > 0.5], so outlines are smooth and no cell has corners.
- Where A_c does not vary, nothing says which part is the object, and the mask is empty.

The model sees a square: the working grid lies over the squashed picture, and positions are shares of its two sides.
Results do not depend on the number of threads: linear algebra runs on one, and a stage works on several pictures.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, eigsh
from scipy.special import expit
from skimage.color import rgb2lab
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController

from maskmill.errors import UserError
from maskmill.masks.attentioncut import objectness, resize, working_image
from maskmill.masks.baselines import Baseline
from maskmill.params import RivalCrf, RivalKMeans, RivalNcut, Rivals

Features = Mapping[str, np.ndarray]
Message = Callable[[np.ndarray], np.ndarray]  # (n,) float32 -> (n,) float32

LARGEST_SIDE = 64  # of a working grid: the kernels below are (cells, cells)
DENSE_CELLS = 1024  # up to here all eigenvectors are computed directly, which no degeneracy disturbs


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra and K-means on one thread: several would add in another order each time."""
    with _threads().limit(limits=1):
        yield


# --- what the methods see ---------------------------------------------------------------------------------------------


def levels(features: Features) -> dict[str, np.ndarray]:
    """The arrays ``feature_{side}_{k}`` of a sample, finest first, their shapes and values checked.

    Raises:
        UserError: there is none, one is not (C, side, side), or one is not finite.
    """
    found = {}
    for name, value in features.items():
        kind, _, place = name.partition("_")
        side, _, k = place.partition("_")
        if kind == "feature" and side.isdigit() and k.isdigit():
            found[int(side), int(k)] = name, np.asarray(value)
    if not found:
        raise UserError(f"features: expected arrays feature_<side>_<k>, got {', '.join(sorted(features)) or 'none'}")
    for (side, _), (name, x) in found.items():
        if x.ndim != 3 or x.shape[1:] != (side, side) or not len(x):
            raise UserError(f"features, {name}: expected shape (C, {side}, {side}), got {x.shape}")
        if not np.isfinite(x).all():
            raise UserError(f"features, {name}: expected finite numbers, got NaN or infinity")
    return dict(found[key] for key in sorted(found, key=lambda key: (-key[0], key[1])))


def working_side(features: Features, size: int) -> int:
    """The side of the working grid: ``size``, or with 0 that of the finest features, at most ``LARGEST_SIDE``.

    Raises:
        UserError: a size of 1 to 3 or above ``LARGEST_SIDE``.
    """
    if size and not 4 <= size <= LARGEST_SIDE:
        raise UserError(f"rivals, size: expected 0 or a whole number from 4 to {LARGEST_SIDE}, got {size}")
    return size or min(LARGEST_SIDE, max(x.shape[-1] for x in levels(features).values()))


def joined(features: Features, shape: tuple[int, int], scale: str) -> np.ndarray:
    """F^l of all levels on one grid: one vector for each cell, in which every level weighs the same.

    Args:
        features: {``feature_{side}_{k}``: (C, side, side)}.
        shape: (h, w) of the working grid; levels are brought to it bilinearly.
        scale: how a level is scaled (ours). "l2": the vector of each cell has length 1; "centred": the same after the
            picture's mean vector is taken off; "standard": each channel has mean 0 and standard deviation 1 over the
            picture, divided by sqrt(C).

    Returns:
        (h*w, C_1 + ... + C_L) float32, rows of mean square length about 1.
    """
    parts = []
    for x in levels(features).values():
        x = resize(x, shape).reshape(len(x), -1).T  # (h*w, C)
        if scale != "l2":
            x = x - x.mean(0)
        if scale == "standard":
            spread = x.std(0)
            x = np.divide(x, spread, out=np.zeros_like(x), where=spread > 0) / np.float32(math.sqrt(x.shape[1]))
        else:
            x = _unit(x)
        parts.append(x)
    return np.concatenate(parts, 1) / np.float32(math.sqrt(len(parts)))


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def principal(x: np.ndarray, components: int, seed: int) -> np.ndarray:
    """(n, C) -> (n, components) float32: centred, projected on the leading principal components (0: all of the space),
    and divided by one number so that the mean square length of a row is 1. Constant rows become zeros."""
    x = x - x.mean(0)
    total = float((x.astype(np.float64) ** 2).sum(1).mean())
    if total <= 1e-12:
        return np.zeros((len(x), 1), np.float32)
    if 0 < components < min(x.shape):
        x = PCA(components, random_state=seed).fit_transform(x)
        total = float((x.astype(np.float64) ** 2).sum(1).mean())
    return (x / math.sqrt(total)).astype(np.float32)


def beside(
    image: np.ndarray, shape: tuple[int, int], colour: float, position: float = 0.0, attention: float = 0.0,
    cross: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """What a cell has beside its features, each with its weight: Lab / 100, the place as a share of each side, A_c.

    Args:
        image: (H, W, 3) uint8.
        shape: (h, w) of the working grid.
        colour, position, attention: weights, at least 0; what weighs nothing is left out.
        cross: A_c (h, w), read when ``attention`` is not 0.

    Returns:
        (h*w, 0..6) float32.
    """
    parts = [np.zeros((*shape, 0), np.float32)]
    if colour:
        parts.append(colour / 100 * rgb2lab(working_image(image, shape)))  # (h, w, 3)
    if position:
        parts.append(position * _places(shape))  # (h, w, 2)
    if attention:
        parts.append(attention * cross[..., None])
    return np.concatenate(parts, -1).reshape(shape[0] * shape[1], -1).astype(np.float32)


def _places(shape: tuple[int, int]) -> np.ndarray:
    """(h, w, 2) float64: the centres of the cells, 0..1 down and to the right."""
    return np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"), -1)


def squared_distances(x: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, n): |x_i - x_j|^2, at least 0, exactly 0 on the diagonal."""
    length = (x * x).sum(1)
    d = length[:, None] + length - 2 * (x @ x.T)
    np.fill_diagonal(d, 0)
    return np.maximum(d, 0, out=d)


# --- which part is the object -----------------------------------------------------------------------------------------


def named(labels: np.ndarray, cross: np.ndarray, clusters: int, keep: float) -> np.ndarray:
    """The clusters that are the object: mean A_c at least ``keep`` times that of the best cluster (ours).

    Args:
        labels: (n,) int in 0..clusters - 1; a cluster may be empty.
        cross: A_c (n,), 0..1, not all 0.
        keep: 0..1; 1 keeps the best cluster alone, 0 all.

    Returns:
        (clusters,) bool; an empty cluster is not among them.
    """
    counts = np.bincount(labels, minlength=clusters)
    means = np.bincount(labels, weights=cross, minlength=clusters) / np.maximum(counts, 1)
    return (counts > 0) & (means >= keep * means.max())


def margin(x: np.ndarray, cross: np.ndarray, clusters: int, keep: float, seed: int) -> np.ndarray:
    """K-means of cells, and how clearly each belongs to the object's clusters: b / (a + b), with a and b the distances
    to the nearest centre of the object and of the rest.

    Args:
        x: (n, d).
        cross: A_c (n,).
        clusters, keep: K, and see ``named``; with fewer than K different cells there are fewer clusters.
        seed: of the K-means start.

    Returns:
        (n,) float32, 0..1, above 0.5 on the object's clusters; ones when every cluster is the object's.
    """
    clusters = min(clusters, len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different cells than clusters
        found = KMeans(clusters, n_init="auto", random_state=seed).fit(x)
    used = np.bincount(found.labels_, minlength=clusters) > 0
    chosen = named(found.labels_, cross, clusters, keep)
    if chosen[used].all():
        return np.ones(len(x), np.float32)
    distances = found.transform(x)  # (n, clusters)
    a, b = distances[:, chosen].min(1), distances[:, used & ~chosen].min(1)
    return (b / np.maximum(a + b, np.finfo(np.float32).tiny)).astype(np.float32)


def _at_image(soft: np.ndarray, image: np.ndarray) -> Baseline:
    soft = np.clip(resize(soft, image.shape[:2]), 0, 1)
    return Baseline(soft, soft > 0.5)


def _nothing(image: np.ndarray) -> Baseline:
    return Baseline(np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], bool))


# --- the methods ------------------------------------------------------------------------------------------------------


def kmeans(features: Features, cross: np.ndarray, image: np.ndarray, params: RivalKMeans, seed: int = 0) -> Baseline:
    """K-means of the picture's cells; the object is the clusters with a high mean A_c.

    A cell is its features (``joined``, ``principal``: mean square length 1) beside its weighted colour, place and A_c.
    K-means starts once by k-means++; see ``named`` for the choice of clusters and ``margin`` for the soft map.

    Args:
        features: {``feature_{side}_{k}``: (C, side, side)}.
        cross: A_c (h, w) float, 0..1; its shape is the working grid's.
        image: (H, W, 3) uint8 RGB.
        params: ``scale, components, colour, position, attention, clusters, keep``; ``size`` is not read.
        seed: of the K-means start and of a randomised PCA.

    Raises:
        UserError: features are missing, of another shape or not finite, or the image is no RGB.
    """
    p, shape = params, cross.shape
    if not cross.any():
        return _nothing(image)
    with one_thread():
        x = principal(joined(features, shape, p.scale), p.components, seed)
        x = np.concatenate([x, beside(image, shape, p.colour, p.position, p.attention, cross)], 1)
        return _at_image(margin(x, cross.ravel(), p.clusters, p.keep, seed).reshape(shape), image)


def affinity(x: np.ndarray, extra: np.ndarray, tau: float, eps: float) -> np.ndarray:
    """W of the normalised cut, thresholded as TokenCut does: 1 where the cosine of two cells exceeds tau, else eps.

    Ours: where cells have something beside features, the 1 becomes exp(-|e_p - e_q|^2), but never less than eps.

    Args:
        x: (n, d) features.
        extra: (n, m) weighted colour, place and A_c; m = 0 for none.
        tau: -1..1.
        eps: above 0, keeps the graph connected.

    Returns:
        (n, n) float64, symmetric.
    """
    unit = _unit(x)
    alike = unit @ unit.T > tau
    np.fill_diagonal(alike, True)  # a row of zeros has no cosine, not even with itself
    if not extra.shape[1]:
        return np.where(alike, 1.0, eps)
    near = np.exp(-squared_distances(extra.astype(np.float64)))
    return np.maximum(near * alike, eps, out=near)


def eigenvectors(w: np.ndarray, count: int) -> np.ndarray:
    """The generalised eigenvectors of (D - W) y = lambda D y after the first, which is constant; D_pp = sum_q W_pq.

    They are D^-1/2 z for the largest eigenvalues of D^-1/2 W D^-1/2, whose first eigenvector, D^1/2 1, is known and
    moved out of the way. Up to ``DENSE_CELLS`` cells by a direct solver, beyond by Lanczos iterations.

    Args:
        w: (n, n) float64, symmetric, positive.
        count: how many, 1 to n - 1.

    Returns:
        (n, count) float64 in the order of lambda, of y^T D y = 1; the entry of largest size in each is positive.
    """
    n = len(w)
    root = np.sqrt(w.sum(1))
    normal = w / root[:, None] / root
    first = root / np.linalg.norm(root)
    normal -= 2 * first[:, None] * first  # its eigenvalue 1 becomes -1, the least there is
    z = None
    if n > DENSE_CELLS:
        try:
            start = np.random.default_rng(0).standard_normal(n)
            values, z = eigsh(normal, k=count, which="LA", v0=start, rng=0)
            z = z[:, np.argsort(-values, kind="stable")]
        except ArpackError:  # includes no convergence
            z = None
    if z is None:
        z = eigh(normal, subset_by_index=[n - count, n - 1])[1]
        if z.shape[1] != count:  # LAPACK's answer to many equal eigenvalues
            z = eigh(normal, driver="evd")[1][:, -count:]
        z = z[:, ::-1]
    y = z / root[:, None]
    peak = y[np.abs(y).argmax(0), np.arange(count)]
    return y * np.sign(peak)


def ncut(features: Features, cross: np.ndarray, image: np.ndarray, params: RivalNcut, seed: int = 0) -> Baseline:
    """Normalised cut of the graph of the picture's cells (Shi and Malik), on cosine affinities (``affinity``).

    With ``segments`` 2 it is the two-way cut of TokenCut: the second smallest generalised eigenvector, split at its
    mean; the object is the side with the higher mean A_c; the soft map takes the vector's least value, mean and largest
    value to 0, 0.5 and 1. With K segments it is Shi and Malik's simultaneous K-way cut: K-means of the cells in the
    space of the K - 1 eigenvectors after the first, then as in ``kmeans``. A picture with two objects needs it: a
    two-way cut parts both from the ground, or the sky from the land.

    Args:
        params: ``scale, colour, position, attention, tau, eps, segments, keep``; ``size`` is not read.
        features, cross, image, seed: as in ``kmeans``.
    """
    p, shape = params, cross.shape
    if not cross.any():
        return _nothing(image)
    with one_thread():
        x = joined(features, shape, p.scale)
        w = affinity(x, beside(image, shape, p.colour, p.position, p.attention, cross), p.tau, p.eps)
        segments = min(p.segments, len(w) - 1)
        y = eigenvectors(w, segments - 1)  # (h*w, segments - 1)
        if segments == 2:
            soft = _halved(y[:, 0], cross.ravel())
        else:
            y *= math.sqrt(w.sum())  # weighted mean square 1
            soft = margin(y, cross.ravel(), segments, p.keep, seed)
        return _at_image(soft.reshape(shape), image)


def _halved(y: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """(n,) -> (n,) float32, 0..1: least, mean, largest value at 0, 0.5, 1, turned so that A_c is higher above."""
    high = y > y.mean()
    if high.any() and cross[high].mean() < cross[~high].mean():
        y = -y
    if y.min() == y.max():
        return np.zeros(len(y), np.float32)
    return np.interp(y, (y.min(), y.mean(), y.max()), (0, 0.5, 1)).astype(np.float32)


def feature_messages(u: np.ndarray) -> Message:
    """One kernel of the CRF, v -> sum_{q != p} k(p, q) / sqrt(n_p n_q) v_q with k(p, q) = exp(-|u_p - u_q|^2 / 2).

    n_p is the sum of k(p, q) over all q, p among them; a cell sends no message to itself. This symmetric normalisation
    keeps a cell in the midst of many alike from drowning its own evidence, and makes a weight mean the same whatever
    the number of cells.

    Args:
        u: (n, d) float32, in units of the kernel's standard deviations.
    """
    half = (u * u).sum(1, keepdims=True) / 2  # -|u_p - u_q|^2 / 2 as one product
    one = np.ones_like(half)
    k = np.concatenate([u, -half, one], 1) @ np.concatenate([u, one, -half], 1).T  # (n, n)
    np.minimum(k, 0, out=k)
    np.fill_diagonal(k, 0)
    np.exp(k, out=k)
    scale = 1 / np.sqrt(k.sum(1))  # the diagonal is 1, so no sum is 0
    np.fill_diagonal(k, 0)
    return lambda v: scale * (k @ (scale * v))


def smoothness_messages(shape: tuple[int, int], sigma: float) -> Message:
    """``feature_messages`` of the places alone, whose Gaussian is a product of one along each axis.

    Args:
        shape: (h, w); vectors are of h*w cells, row-major.
        sigma: standard deviation as a share of each side.
    """
    places = (((np.arange(n) + 0.5) / n / sigma).astype(np.float32) for n in shape)
    down, right = (np.exp(-((x[:, None] - x) ** 2) / 2) for x in places)  # (h, h), (w, w)
    scale = 1 / np.sqrt(down.sum(1)[:, None] * right.sum(1))  # (h, w)

    def message(v: np.ndarray) -> np.ndarray:
        v = scale * v.reshape(shape)
        return (scale * (down @ v @ right - v)).ravel()

    return message


def mean_field(o: np.ndarray, kernels: Sequence[tuple[float, Message]], iterations: int) -> np.ndarray:
    """Mean-field updates of a two-label CRF with Potts compatibility, all cells at once.

    Q_p(l) ~ exp(-phi_p(l) - sum_q K_pq sum_{l' != l} Q_q(l')), phi = -log(o) for the object, -log(1 - o) for the rest.
    With two labels it is one number per cell: logit Q_p = logit o_p + sum_q K_pq (2 Q_q - 1).

    Args:
        o: (n,) probability of the object in (0, 1).
        kernels: (weight, message) of each kernel; K is their weighted sum.
        iterations: number of updates; 0 gives o.

    Returns:
        (n,) float64, probability of the object.
    """
    q = o = o.astype(np.float64)
    evidence = np.log(o) - np.log1p(-o)
    for _ in range(iterations):
        v = (2 * q - 1).astype(np.float32)
        q = expit(evidence + sum(weight * message(v).astype(np.float64) for weight, message in kernels))
    return q


def crf(features: Features, cross: np.ndarray, image: np.ndarray, params: RivalCrf, seed: int = 0) -> Baseline:
    """DenseCRF (Kraehenbuehl and Koltun): A_c as unary term, every pair of cells in the pairwise term.

    K(p, q) = w_1 exp(-|x_p - x_q|^2 / 2 sigma_xy^2 - |f_p - f_q|^2 / 2 sigma_features^2)
            + w_2 exp(-|x_p - x_q|^2 / 2 sigma_smooth^2)

    with x the place of a cell as a share of the sides and f its leading principal components (mean square length 1)
    beside its weighted colour, where DenseCRF has the colour alone. Kernels are exact and normalised symmetrically
    (``feature_messages``); the compatibility is Potts'. The unary probability is A_c, bent so that ``midpoint`` becomes
    0.5, and kept within eps..1 - eps, as in AttentionCut.

    Args:
        params: ``scale, components, colour, sigma_xy, sigma_features, sigma_smooth, weight_features, weight_smooth,
            midpoint, eps, iterations``; ``size`` is not read.
        features, cross, image: as in ``kmeans``.
        seed: of a randomised PCA.
    """
    p, shape = params, cross.shape
    if not cross.any():
        return _nothing(image)
    with one_thread():
        o = objectness(cross, None, 0.0, midpoint=p.midpoint, eps=p.eps).ravel()
        kernels = []
        if p.weight_features:
            f = principal(joined(features, shape, p.scale), p.components, seed)
            f = np.concatenate([f, beside(image, shape, p.colour)], 1)
            x = _places(shape).reshape(-1, 2).astype(np.float32)
            u = np.concatenate([x / np.float32(p.sigma_xy), f / np.float32(p.sigma_features)], 1)
            kernels.append((p.weight_features, feature_messages(u)))
        if p.weight_smooth:
            kernels.append((p.weight_smooth, smoothness_messages(shape, p.sigma_smooth)))
        return _at_image(mean_field(o, kernels, p.iterations).reshape(shape), image)


METHODS = {"kmeans": kmeans, "ncut": ncut, "crf": crf}


def segment(features: Features, cross: np.ndarray, image: np.ndarray, params: Rivals, seed: int = 0) -> Baseline:
    """The mask of the method that ``params.method`` names, with its own section of parameters."""
    return METHODS[params.method](features, cross, image, getattr(params, params.method), seed)
