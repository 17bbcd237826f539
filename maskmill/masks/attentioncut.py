"""AttentionCut: from the attention record of one picture to the mask of one word (DiffusionSeg, Eq. 2 to 6).

    A_c   cross-attention of the word, mean over time of the k layers whose map varies most            (Eq. 2)
    B     random points on the boundary of [A_c > tau];  r(p) = 1/|B| sum_{b in B} A_s(p, b)           (Eq. 3)
    phi   -log(o) for foreground, -log(1 - o) for background, with o = A_c + beta r scaled to (0, 1)   (Eq. 4)
    psi   A_s(p, q) + exp(-D(p, q)) on neighbouring pixels                                             (Eq. 5)
    E(M)  sum_p phi(p) + lambda sum_{M(p) != M(q)} psi(p, q); the mask is the minimum cut              (Eq. 6)

The paper leaves scalings, sizes and counts open. Each choice of ours is a field of ``CutParams`` or a named constant
below, and its docstring says so. All maps are float32; "working size" (h, w) is the resolution of the cut; points are
(row, column) at working size. Pixel centres lie at (i + 0.5) / n of the picture at every resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import binary_erosion

from maskmill.errors import UserError
from maskmill.masks.graph import DIRECTIONS, FORWARD, Edges, ends, energy, geodesic, minimum_cut

Record = Mapping[str, np.ndarray]

# Order of the eight neighbour offsets (dy, dx) in near_{r}.
OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# A_s(p, q) reaches 1 at this percentile of its values on the edges of the picture: the maximum itself is one
# outlying pair, often at the frame of the picture, and would press all others towards 0.
SEMANTIC_PERCENTILE = 99.0
NORMALISE = ("sum", "clip", "max")


@dataclass(frozen=True)
class CutParams:
    """The parameters of AttentionCut. A wrong value raises ``UserError`` naming its key.

    The paper prints 0.16, 2.5 and 0.1 with their symbols lost; the defaults of tau, beta and lambda read them by order
    of introduction. Everything marked "ours" is not stated in the paper.

    Attributes:
        top_k: k of Eq. 2; more than there are layers means all of them (value ours).
        tau: threshold of A_c whose boundary bears the seeds, 0..1.
        beta: weight of r in Eq. 4, at least 0.
        lambda_: weight of the pairwise term in Eq. 6, at least 0. It weighs a length (number of cut edges) against an
            area (number of pixels), so the same value smooths less at a larger working size.
        seeds: |B|, the most seeds drawn from the boundary (value ours).
        use_cross, use_refined: whether A_c and r stand in the unary term (columns of Table 6).
        semantic, spatial: whether A_s and exp(-D) stand in the pairwise term (columns of Table 6). With neither, the
            mask is [o > threshold].
        size: working resolution h = w, 0 = that of the image (ours). A_c and r are smooth, the image is not: a larger
            size buys finer outlines through D alone.
        t_max: share of the diffusion time, in (0, 1], whose bins enter A_c (ours; 1 = all, as Eq. 2).
        r_percentile: P, percentile of its values in the picture at which r reaches 1, in (50, 100] (ours); 0 is reached
            at 100 - P. 100 is the maximum and the minimum, as everywhere else. On fine grids these are single pixels: a
            seed's attention to itself, which presses r on the rest of the object towards 0, and a dip that a coarser
            record does not have, which shifts all of r. A lower P cuts both off.
        normalise: how A_c + beta r, up to 1 + beta, is brought to 0..1 (ours): "sum" divides by 1 + beta, "clip" cuts
            off at 1 (Eq. 4 to the letter), "max" divides by the largest value in the picture.
        midpoint: value of the normalised sum at which both labels cost the same (ours), in [0, 1). 0.5 leaves it as
            it is; 0 takes the picture's own Otsu threshold. See ``objectness``.
        eps: o is clipped to (eps, 1 - eps), in (0, 0.5) (ours). -log(eps) is the most a pixel can pay.
        sigma: mean change of R, G and B, as a share of their range, that is worth D = 1, above 0 (ours).
        neighbours: 4 or 8 neighbours in the pixel graph (ours).
        threshold: of the binarisation without pairwise term, in (0, 1); None is 0.5, the minimum of the unary term
            alone (ours).
    """

    top_k: int = 4
    tau: float = 0.16
    beta: float = 2.5
    lambda_: float = 0.1
    seeds: int = 32
    use_cross: bool = True
    use_refined: bool = True
    semantic: bool = True
    spatial: bool = True
    size: int = 0
    t_max: float = 1.0
    r_percentile: float = 100.0
    normalise: str = "sum"
    midpoint: float = 0.5
    eps: float = 1e-3
    sigma: float = 0.1
    neighbours: int = 8
    threshold: float | None = None

    def __post_init__(self) -> None:
        rules = (
            ("top_k", self.top_k >= 1, "a whole number of at least 1"),
            ("tau", 0 <= self.tau <= 1, "a number in 0..1"),
            ("beta", 0 <= self.beta < math.inf, "a number of at least 0"),
            ("lambda", 0 <= self.lambda_ < math.inf, "a number of at least 0"),
            ("seeds", self.seeds >= 1, "a whole number of at least 1"),
            ("use_refined", self.use_cross or self.use_refined, "true when use_cross is false"),
            ("size", self.size == 0 or self.size >= 2, "0 (image size) or a whole number of at least 2"),
            ("t_max", 0 < self.t_max <= 1, "a number above 0 and at most 1"),
            ("r_percentile", 50 < self.r_percentile <= 100, "a number above 50 and at most 100"),
            ("normalise", self.normalise in NORMALISE, f"one of {', '.join(NORMALISE)}"),
            ("midpoint", 0 <= self.midpoint < 1, "0 (Otsu) or a number below 1"),
            ("eps", 0 < self.eps < 0.5, "a number above 0 and below 0.5"),
            ("sigma", 0 < self.sigma < math.inf, "a number above 0"),
            ("neighbours", self.neighbours in DIRECTIONS, "4 or 8"),
            ("threshold", self.threshold is None or 0 < self.threshold < 1, "none or a number above 0 and below 1"),
        )
        for key, good, expected in rules:
            if not good:
                got = getattr(self, "lambda_" if key == "lambda" else key)
                raise UserError(f"attentioncut.{key}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class CutResult:
    """The mask of one word in one picture of H x W pixels, and what led to it.

    Attributes:
        mask: (H, W) bool.
        objectness: (H, W) float32, o of Eq. 4 in 0..1, the soft map.
        cross: (h, w) float32, A_c in 0..1.
        refined: (h, w) float32, r in 0..1; zeros when ``use_refined`` is off.
        boundary: (n, 2) int, the seeds B; n = 0 when ``use_refined`` is off.
        energy: E(M) of the mask at working size, in nats.
        flags: of "constant_map" (A_c does not vary), "no_boundary" (tau left none), "empty" and "full" (the mask).
    """

    mask: np.ndarray
    objectness: np.ndarray
    cross: np.ndarray
    refined: np.ndarray
    boundary: np.ndarray
    energy: float
    flags: tuple[str, ...]


# --- maps and their sizes ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _linear(n_in: int, n_out: int, step: int) -> np.ndarray:
    """(n_out - step, n_in - step) float32, rows of sum 1: linear interpolation along one axis, see ``resize``."""
    at_in = (np.arange(n_in - step) + (1 + step) / 2) / n_in
    at_out = (np.arange(n_out - step) + (1 + step) / 2) / n_out
    reach = max(1 / n_in, 1 / n_out)  # a wider triangle where the axis shrinks, against aliasing
    weights = np.maximum(0, 1 - np.abs(at_out[:, None] - at_in) / reach)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def resize(maps: np.ndarray, shape: tuple[int, int], step: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Bilinear resize with pixel centres aligned, anti-aliased where an axis shrinks.

    Equal to torch's ``interpolate(mode="bilinear", align_corners=False, antialias=True)``. Written as two small matrix
    products because the values on edges need it too: ``step`` (dy, dx) says that values lie between a pixel and the
    one (dy, dx) away, which moves the points by half a pixel and leaves one fewer of them along that axis.

    Args:
        maps: (..., a - dy, b - dx), float, of a picture seen at a x b.
        shape: (h, w) to see it at.
        step: (0 or 1, 0 or 1).

    Returns:
        (..., h - dy, w - dx) float32.
    """
    maps = np.asarray(maps, np.float32)
    (dy, dx), (h, w) = step, shape
    a, b = maps.shape[-2] + dy, maps.shape[-1] + dx
    if a != h:
        maps = _linear(a, h, dy) @ maps  # (..., h - dy, b - dx)
    if b != w:
        maps = maps @ _linear(b, w, dx).T  # (..., h - dy, w - dx)
    return maps


def scaled(x: np.ndarray) -> np.ndarray:
    """Min-max scaling to 0..1, float32; a constant map becomes zeros."""
    x = np.asarray(x, np.float32)
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else np.zeros_like(x)


def otsu(x: np.ndarray) -> float | None:
    """Otsu's threshold of the values of a map in 0..1, in 256 equal bins; None when all fall into one bin.

    The threshold is the middle between the two bins that it parts, averaged over all partings that do equally well
    (an empty valley), so that turning the map over mirrors its threshold.
    """
    counts = np.bincount(np.minimum(np.asarray(x).ravel() * 256, 255).astype(np.intp), minlength=256)
    if np.count_nonzero(counts) < 2:
        return None
    values = (np.arange(256) + 0.5) / 256
    below, moment = np.cumsum(counts)[:-1], np.cumsum(counts * values)[:-1]
    total, whole = counts.sum(), (counts * values).sum()
    apart = (below > 0) & (below < total)
    b, m = below[apart], moment[apart]
    between = (whole * b / total - m) ** 2 / (b * (total - b))  # variance between the classes, up to a factor
    best = np.flatnonzero(apart)[between >= between.max() * (1 - 1e-9)]
    return float((best + 1).mean() / 256)


def _resolutions(record: Record, kind: str) -> dict[int, np.ndarray]:
    """The arrays ``{kind}_{r}`` of a record as float32, by r, largest first; their shapes are checked."""
    found = {}
    for key, value in record.items():
        name, _, r = key.rpartition("_")
        if name == kind and r.isdigit():
            found[int(r)] = np.asarray(value, np.float32)
    if not found:
        raise UserError(f"attention record: expected arrays {kind}_<r>, got {', '.join(sorted(record)) or 'none'}")
    for r, x in found.items():
        if kind == "pairs":
            good = x.ndim == 1 and _triangle(math.isqrt(_cells(x.size)) ** 2) == x.size
        else:
            good = x.shape[-2:] == (r, r) and (x.ndim == 4 if kind == "cross" else x.shape[:-2] == (8,))
        wanted = {"cross": f"(bins, layers, {r}, {r})", "near": f"(8, {r}, {r})", "pairs": "(n(n+1)/2,), n = c*c"}[kind]
        if not good or not x.size:
            raise UserError(f"attention record, {kind}_{r}: expected shape {wanted}, got {x.shape}")
        if not np.isfinite(x).all():
            raise UserError(f"attention record, {kind}_{r}: expected finite numbers, got NaN or infinity")
    return dict(sorted(found.items(), reverse=True))


def _triangle(n: int) -> int:
    """Entries of an n x n matrix on and above the diagonal."""
    return n * (n + 1) // 2


def _cells(entries: int) -> int:
    """n of ``_triangle``, rounded down."""
    return (math.isqrt(8 * entries + 1) - 1) // 2


@lru_cache(maxsize=8)
def _places(n: int) -> np.ndarray:
    """(n, n) int32: where the entry (a, b) of a symmetric matrix stands in its packed upper triangle."""
    places = np.zeros((n, n), np.int32)
    rows, columns = np.triu_indices(n)
    places[rows, columns] = places[columns, rows] = np.arange(_triangle(n))
    places.setflags(write=False)
    return places


def _layer_weights(resolutions: Mapping[int, np.ndarray], layers: Mapping[int, int] | None) -> dict[int, float]:
    """The share of each resolution in the mean over all self-attention layers; equal when the counts are unknown."""
    counts = {r: 1 if layers is None else layers.get(r, layers.get(str(r), 0)) for r in resolutions}
    if missing := [r for r, n in counts.items() if n < 1]:
        raise UserError(f"attention record: self_layers names no layer at resolution {missing[0]}, got {dict(layers)}")
    return {r: n / sum(counts.values()) for r, n in counts.items()}


# --- the steps --------------------------------------------------------------------------------------------------------


def cross_map(record: Record, shape: tuple[int, int], top_k: int, t_max: float = 1.0) -> np.ndarray:
    """A_c of Eq. 2: the mean over time of the k layers whose map has the largest standard deviation.

    Ours: the standard deviation of a layer is taken over the pixels of its map at its own resolution, after the mean
    over time (values count in multiples of uniform attention, so resolutions compare); a time bin enters when its
    middle lies below t_max, the lowest always; the result is min-max scaled.

    Args:
        record: with ``cross_{r}`` (bins, layers, r, r).
        shape: working size (h, w).
        top_k: k, at least 1.
        t_max: share of the diffusion time, in (0, 1].

    Returns:
        (h, w) float32, 0..1; zeros when the mean does not vary.
    """
    maps: list[np.ndarray] = []
    for x in _resolutions(record, "cross").values():
        bins = x.shape[0]
        used = max(1, int(np.count_nonzero((np.arange(bins) + 0.5) / bins < t_max)))
        maps += list(x[:used].mean(0))  # each (r, r)
    spread = [float(m.std()) for m in maps]
    top = sorted(range(len(maps)), key=lambda i: -spread[i])[:top_k]
    return scaled(np.mean([resize(maps[i], shape) for i in top], axis=0))


def boundary(mask: np.ndarray) -> np.ndarray:
    """(n, 2) int, the pixels of a mask with one of their four neighbours outside it, row-major.

    They lie inside, so that their self-attention belongs to the object. The frame of the picture is no boundary.
    """
    return np.argwhere(mask & ~binary_erosion(mask, border_value=1))


def boundary_seeds(cross: np.ndarray, tau: float, count: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """B of Eq. 3: a random subset of the boundary of [A_c > tau].

    Where tau leaves no boundary (no pixel or every pixel above it), the boundary of [A_c > Otsu's threshold] takes its
    place; where the map is constant, the single pixel of the largest value that is nearest to the picture's centre.

    Args:
        cross: A_c, (h, w) float, 0..1.
        tau: threshold.
        count: |B|; a shorter boundary is taken whole.
        rng: drawn from only when the boundary is longer than ``count``.

    Returns:
        (n, 2) int, 1 <= n <= count, in row-major order, and whether tau itself left a boundary.
    """
    points = boundary(cross > tau)
    found = len(points) > 0
    if not found and (threshold := otsu(cross)) is not None:
        points = boundary(cross > threshold)
    if not len(points):
        peaks = np.argwhere(cross == cross.max())
        off = np.abs(peaks + 0.5 - np.array(cross.shape) / 2).sum(1)
        points = peaks[[int(off.argmin())]]
    if len(points) > count:
        points = points[np.sort(rng.choice(len(points), count, replace=False))]
    return points, found


def _share_of_cells(points: np.ndarray, shape: tuple[int, int], n: int) -> np.ndarray:
    """Share of the points in each cell of an n x n grid laid over the working grid, (n*n,) float32."""
    cells = (2 * points + 1) * n // (2 * np.array(shape))  # floor of the pixel centre's place on the grid, (k, 2)
    hits = np.bincount(cells[:, 0] * n + cells[:, 1], minlength=n * n)
    return (hits / len(points)).astype(np.float32)


def refined_map(
    record: Record,
    seeds: np.ndarray,
    shape: tuple[int, int],
    self_layers: Mapping[int, int] | None = None,
    percentile: float = 100.0,
) -> np.ndarray:
    """r of Eq. 3: r(p) = 1/|B| sum over b in B of A_s(p, b), cut off at two percentiles and scaled (ours).

    The paper takes A_s as symmetric, which attention is not: who looks at a seed and where the seed looks differ. Ours
    is the mean of both, as the record holds it between the cells of a c x c grid; a seed counts for the cell it lies
    in. A_s is the mean over all layers: resolutions count by their number of layers.

    Args:
        record: with ``pairs_{r}``, see ``maskmill.diffusion.capture``.
        seeds: B, (n, 2) int at working size, n at least 1.
        shape: working size (h, w).
        self_layers: r -> number of self-attention layers; None counts all resolutions alike.
        percentile: P of r, where it reaches 1, see ``CutParams.r_percentile``.

    Returns:
        (h, w) float32, 0..1.
    """
    pairs = _resolutions(record, "pairs")
    shares = _layer_weights(pairs, self_layers)
    refined = np.zeros(shape, np.float32)
    for r, x in pairs.items():
        n = _cells(x.size)
        side, share = math.isqrt(n), _share_of_cells(seeds, shape, math.isqrt(n))
        met = np.flatnonzero(share)  # the cells that seeds lie in, k of n
        mean = share[met] @ x[_places(n)[met]]  # A_s(B, p), (n,)
        refined += shares[r] * resize(mean.reshape(side, side), shape)
    low, high = np.percentile(refined, (100 - percentile, percentile))
    return scaled(np.clip(refined, np.float32(low), np.float32(high)))


def objectness(
    cross: np.ndarray | None,
    refined: np.ndarray | None,
    beta: float,
    normalise: str = "sum",
    midpoint: float = 0.5,
    eps: float = 1e-3,
) -> np.ndarray:
    """o of Eq. 4: A_c + beta r, brought to (eps, 1 - eps).

    The sum of two maps in 0..1 reaches 1 + beta, so Eq. 4 needs a scale that the paper does not give. Ours: "sum"
    divides by 1 + beta (beta alone where A_c is off), which keeps every order; "clip" takes the sum as printed and cuts
    it off at 1; "max" divides by its largest value. Where ``midpoint`` is not 0.5, a line with one bend then takes
    0, midpoint, 1 to 0, 0.5, 1: it moves the value at which both labels cost the same and keeps every order.

    Args:
        cross: A_c (h, w) in 0..1, or None to leave it out.
        refined: r (h, w) in 0..1, or None to leave it out; not both.
        beta: weight of r.
        normalise: "sum", "clip" or "max".
        midpoint: in (0, 1), or 0 for Otsu's threshold of the normalised sum (0.5 when that is constant).
        eps: in (0, 0.5).

    Returns:
        (h, w) float32.
    """
    if refined is None:
        total, most = np.asarray(cross, np.float32), 1.0
    elif cross is None:
        total, most = np.float32(beta) * refined, beta
    else:
        total, most = cross + np.float32(beta) * refined, 1.0 + beta
    if normalise == "max":
        most = float(total.max())
    if normalise != "clip" and most > 0:
        total = total / np.float32(most)
    total = np.clip(total, 0, 1)
    if midpoint == 0:
        midpoint = otsu(total) or 0.5
    if midpoint != 0.5:
        total = np.interp(total, (0, midpoint, 1), (0, 0.5, 1)).astype(np.float32)
    return np.clip(total, np.float32(eps), np.float32(1 - eps))


def unary(o: np.ndarray) -> np.ndarray:
    """phi of Eq. 4: (h, w) objectness in (0, 1) -> (2, h, w) float64, -log(1 - o) background, -log(o) foreground."""
    o = o.astype(np.float64)  # 1 - o of a float32 would shift the tie at 0.5
    return -np.log(np.stack([1 - o, o]))


def semantic_edges(
    record: Record, shape: tuple[int, int], neighbours: int = 8, self_layers: Mapping[int, int] | None = None
) -> Edges:
    """A_s(p, q) of Eq. 5 between neighbouring pixels, scaled to 0..1.

    Ours: A_s(p, q) and A_s(q, p) are averaged (the cut knows only undirected edges); the pair of neighbours at a
    record's resolution stands for its direction at the place halfway between them and is interpolated from there to
    the pairs of the working size; the mean over resolutions counts their layers; the result is divided by its
    ``SEMANTIC_PERCENTILE`` and cut off at 1. A map without attention between neighbours stays 0.

    Args:
        record: with ``near_{r}`` (8, r, r), offsets in the order of ``OFFSETS``.
        shape: working size (h, w).
        neighbours: 4 or 8.
        self_layers: as in ``refined_map``.

    Returns:
        Edges, float32.
    """
    near = _resolutions(record, "near")
    shares = _layer_weights(near, self_layers)
    edges = []
    for d in DIRECTIONS[neighbours]:
        dy, dx = FORWARD[d]
        there, back = OFFSETS.index((dy, dx)), OFFSETS.index((-dy, -dx))
        total = np.float32(0)
        for r, x in near.items():
            both = (ends(x[there], d)[0] + ends(x[back], d)[1]) / 2  # (r - dy, r - |dx|)
            total = total + np.float32(shares[r]) * resize(both, shape, (dy, abs(dx)))
        edges.append(total)
    top = np.percentile(np.concatenate([e.ravel() for e in edges]), SEMANTIC_PERCENTILE)
    return tuple(np.minimum(e / np.float32(top), 1) if top > 0 else np.zeros_like(e) for e in edges)


def coherence(
    record: Record,
    image: np.ndarray,
    semantic: bool,
    spatial: bool,
    sigma: float,
    neighbours: int = 8,
    self_layers: Mapping[int, int] | None = None,
) -> Edges:
    """psi of Eq. 5: psi(p, q) = A_s(p, q) + exp(-D(p, q)) between neighbouring pixels; either term can be off.

    Args:
        record: with ``near_{r}``; not read when ``semantic`` is off.
        image: (h, w, 3) float, 0..1, at working size.
        semantic, spatial: whether A_s and exp(-D) stand in it.
        sigma: see ``maskmill.masks.graph.geodesic``.
        neighbours: 4 or 8.
        self_layers: as in ``refined_map``.

    Returns:
        Edges, float32, 0..2; empty when both terms are off.
    """
    terms = []
    if semantic:
        terms.append(semantic_edges(record, image.shape[:2], neighbours, self_layers))
    if spatial:
        terms.append(tuple(np.exp(-distance) for distance in geodesic(image, sigma, neighbours)))
    return tuple(sum(of_direction) for of_direction in zip(*terms, strict=True))


# --- the whole --------------------------------------------------------------------------------------------------------


def working_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (h, w, 3) float32 in 0..1, by ``resize``."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 2:
        raise UserError(f"image: expected (H, W, 3) uint8 of at least 2 x 2 pixels, got {image.shape} {image.dtype}")
    channels = resize(np.moveaxis(image, -1, 0), shape) / np.float32(255)  # (3, h, w)
    return np.moveaxis(channels, 0, -1)


def attention_cut(
    record: Record,
    image: np.ndarray,
    params: CutParams,
    rng: np.random.Generator,
    self_layers: Mapping[int, int] | None = None,
) -> CutResult:
    """AttentionCut, Eq. 2 to 6: the mask of the word whose cross-attention the record holds.

    Without pairwise term (``semantic`` and ``spatial`` off) the mask is [o > threshold], which at 0.5 is the minimum of
    the unary term. Where the working size is not the image's, the mask is resized bilinearly and cut at one half.

    Args:
        record: ``cross_{r}``; ``pairs_{r}`` for r; ``near_{r}`` for A_s. What is switched off may be absent.
        image: (H, W, 3) uint8 RGB, at least 2 x 2.
        params: the parameters.
        rng: draws the seeds B; the same state gives the same mask.
        self_layers: r -> number of self-attention layers, from the record's manifest; None counts resolutions alike.

    Raises:
        UserError: the record lacks an array, an array has another shape or is not finite, or the image is no RGB.
    """
    height, width = image.shape[:2]
    shape = (params.size, params.size) if params.size else (height, width)
    small = working_image(image, shape)
    cross = cross_map(record, shape, params.top_k, params.t_max)
    flags = [] if cross.any() else ["constant_map"]
    refined, seeds = np.zeros(shape, np.float32), np.zeros((0, 2), np.intp)
    if params.use_refined:
        seeds, found = boundary_seeds(cross, params.tau, params.seeds, rng)
        flags += [] if found else ["no_boundary"]
        refined = refined_map(record, seeds, shape, self_layers, params.r_percentile)
    o = objectness(
        cross if params.use_cross else None,
        refined if params.use_refined else None,
        params.beta, params.normalise, params.midpoint, params.eps,
    )  # fmt: skip
    phi = unary(o)
    psi = coherence(record, small, params.semantic, params.spatial, params.sigma, params.neighbours, self_layers)
    if psi:
        mask = minimum_cut(phi, psi, params.lambda_)
    else:
        mask = o > (0.5 if params.threshold is None else params.threshold)
    cost = energy(mask, phi, psi, params.lambda_)
    if shape != (height, width):
        mask = resize(mask, (height, width)) > 0.5
    if not mask.any() or mask.all():
        flags.append("full" if mask.any() else "empty")
    soft = np.clip(resize(o, (height, width)), 0, 1)
    return CutResult(mask, soft, cross, refined, seeds, cost, tuple(flags))
