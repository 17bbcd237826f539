"""Post-processing of a mask and its soft map: bilateral solver, largest component, hole filling.

The DiffusionSeg paper names a bilateral solver for its synthetic masks without details (3.2.2); the rows "+ BS" of its
Table 1 are other methods after one. The solver follows Barron & Poole, "The Fast Bilateral Solver" (ECCV 2016).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from maskmill.errors import UserError
from maskmill.scores.localisation import largest_component

CONFIDENCE = 0.999  # c of every pixel; with one value for all, only smoothness / c matters
THRESHOLD = 0.5  # of the solved mask; the only one under which object and background change places symmetrically
_ROUNDS = 20  # of the bistochastisation
_TOLERANCE = 1e-8  # of the residual, relative; the soft map is kept in 8 bits


class Switches(Protocol):
    """What ``refine`` reads: the section ``postprocess`` of the parameters, or any object with these fields."""

    bilateral: bool
    sigma_xy: float
    sigma_luma: float
    sigma_chroma: float
    smoothness: float
    largest: bool
    fill: bool


def describe(params: Switches) -> str:
    """What is on, in the order in which it is done, for the metrics: ``none`` or ``bilateral solver, holes filled``."""
    steps = {"bilateral solver": params.bilateral, "largest component": params.largest, "holes filled": params.fill}
    return ", ".join(name for name, on in steps.items() if on) or "none"


def refine(
    soft: np.ndarray, mask: np.ndarray, image: np.ndarray, params: Switches
) -> tuple[np.ndarray, np.ndarray]:
    """Bilateral solver, then largest component, then hole filling; each only if it is on.

    The soft map and the mask of a method need not share a threshold (AttentionCut's mask is a cut, not a level set).
    So the solver takes the *mask* as its target, with the same confidence everywhere, and its answer is cut at one
    half, as LOST, TokenCut and SelfMask do. The soft map is solved as a second target of the same system: it keeps
    what it ranks, and both follow the picture's edges. Largest component and filled holes change the mask alone.

    Args:
        soft: (H, W) float32 in 0..1.
        mask: (H, W) bool.
        image: (H, W, 3) uint8 RGB.
        params: see ``Switches``.

    Returns:
        soft (H, W) float32 in 0..1 and mask (H, W) bool; the inputs themselves where everything is off.

    Raises:
        UserError: other shapes or types, or grid cells too small to be numbered.
    """
    shape = np.shape(mask)
    if len(shape) != 2 or mask.dtype != bool or np.shape(soft) != shape or np.shape(image) != (*shape, 3) \
            or image.dtype != np.uint8:  # fmt: skip
        raise UserError(
            "refine: expected a soft map (H, W), a mask (H, W) bool and an image (H, W, 3) uint8 of one size, got "
            f"{np.shape(soft)}, {shape} {mask.dtype} and {np.shape(image)} {image.dtype}"
        )
    if params.bilateral:
        soft, solved = bilateral_solver(
            np.stack([soft, mask]), image, params.sigma_xy, params.sigma_luma, params.sigma_chroma, params.smoothness
        )
        mask = solved > THRESHOLD
    if params.largest:
        mask = largest_component(mask)
    if params.fill:
        mask = ndimage.binary_fill_holes(mask)  # a hole: background that no path of 4-neighbours leads out of
    return soft, mask


# --- the bilateral solver ---------------------------------------------------------------------------------------------


def bilateral_solver(
    targets: np.ndarray,
    image: np.ndarray,
    sigma_xy: float,
    sigma_luma: float,
    sigma_chroma: float,
    smoothness: float,
    confidence: float = CONFIDENCE,
) -> np.ndarray:
    """The x that is near t and smooth where the picture is: Barron & Poole, Eq. 1, solved in bilateral space.

        min over x of  lambda / 2 sum_ij W_ij (x_i - x_j)^2 + sum_i c (x_i - t_i)^2

    W, bistochastic, is high for pixels that are near in place and colour; it is never formed. With x = S^T y, y one
    value per occupied cell of the grid, the problem is the sparse system (Eq. 5 to 8)

        (lambda (Dm - Dn B Dn) + diag(S c)) y = S (c t)

    which conjugate gradients with the diagonal as preconditioner solve from the cells' mean targets on. The rows of
    the first term sum to 0, so a constant target is its own answer, and every answer lies between the least and the
    largest t. The answer is linear in the target; all targets share one system.

    Args:
        targets: (K, H, W), numbers or bool; t of each problem.
        image: (H, W, 3) uint8 RGB.
        sigma_xy, sigma_luma, sigma_chroma: sides of a cell, see ``bilateral_grid``.
        smoothness: lambda, at least 0.
        confidence: c, above 0.

    Returns:
        x of each problem, (K, H, W) float32.
    """
    cell, blur = bilateral_grid(image, sigma_xy, sigma_luma, sigma_chroma)
    mass = np.bincount(cell).astype(float)  # S 1: pixels per cell, (V,)
    n, m = bistochastise(blur, mass)
    dn = sparse.diags_array(n)
    system = (smoothness * (sparse.diags_array(m) - dn @ blur @ dn) + sparse.diags_array(confidence * mass)).tocsr()
    preconditioner = sparse.diags_array(1 / system.diagonal())
    solved = np.empty(targets.shape, np.float32)
    for k, t in enumerate(targets):
        splat = np.bincount(cell, t.ravel().astype(float))
        y, _ = cg(system, confidence * splat, splat / mass, rtol=_TOLERANCE, atol=0, M=preconditioner)
        solved[k] = np.clip(y, t.min(), t.max())[cell].reshape(t.shape)
    return solved


def bilateral_grid(
    image: np.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float
) -> tuple[np.ndarray, sparse.csr_array]:
    """The simplified bilateral grid: every pixel belongs to one cell of (x, y, luma, chroma blue, chroma red).

    Args:
        image: (H, W, 3) uint8 RGB.
        sigma_xy: side of a cell in pixels.
        sigma_luma, sigma_chroma: in levels of 0..255 of the picture's YUV (JPEG's: Y, Cb, Cr).

    Returns:
        The cell of each pixel in row-major order, (H W,), cells that hold pixels numbered from 0 to V - 1; and the
        blur B (V, V): 2 for a cell with itself and 1 for each of its at most two neighbours, summed over the five axes.

    Raises:
        UserError: more cells than integers of 64 bits.
    """
    height, width = image.shape[:2]
    r, g, b = np.moveaxis(image.astype(np.int64), -1, 0)
    luma = 299 * r + 587 * g + 114 * b  # in thousandths; whole numbers, so that a grey is one exactly
    # Half a cell off, so that grey lies amid a chroma cell and hints of colour do not scatter over several.
    blue, red = ((1000 * c - luma) / (1000 * scale * sigma_chroma) + 0.5 for c, scale in ((b, 1.772), (r, 1.402)))
    y, x = np.mgrid[:height, :width]
    axes = [np.floor(a).ravel() for a in (x / sigma_xy, y / sigma_xy, luma / (1000 * sigma_luma), blue, red)]
    sides = [np.ptp(a) + 2 for a in axes]  # one to spare: the next cell along an axis never wraps around
    if np.prod(sides) >= 2.0**62:
        raise UserError("postprocess: sigma_xy, sigma_luma, sigma_chroma: expected larger cells, got a grid of "
                        f"{np.prod(sides):.0e} cells")  # fmt: skip
    keys, strides, stride = np.zeros(height * width, np.int64), [], 1
    for a, side in zip(axes, sides, strict=True):
        keys += stride * (a - a.min()).astype(np.int64)
        strides.append(stride)
        stride *= int(side)
    occupied, cell = np.unique(keys, return_inverse=True)
    blur = 2 * len(axes) * sparse.eye_array(len(occupied), format="csr")
    for stride in strides:
        _, here, there = np.intersect1d(occupied, occupied - stride, assume_unique=True, return_indices=True)
        step = sparse.csr_array((np.ones(len(here)), (here, there)), shape=blur.shape)
        blur = blur + step + step.T
    return cell, blur.tocsr()


def bistochastise(blur: sparse.csr_array, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dn and Dm of Barron & Poole, Algorithm 1, as vectors: n B n is near the mass, so that Dn B Dn has those row sums.

    m is what the row sums are after a fixed number of rounds, not what they tend to: the smoothness of a constant is
    then exactly 0.

    Args:
        blur: B, (V, V), symmetric.
        mass: pixels per cell, (V,).
    """
    n = np.ones_like(mass)
    for _ in range(_ROUNDS):
        n = np.sqrt(n * mass / (blur @ n))
    return n, n * (blur @ n)
