"""Masks without any learning: the controls beside every result of AttentionCut.

They see the pixels only, never a word or the attention, so they say how far colour and position alone go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from skimage.color import rgb2lab

from maskmill.masks.attentioncut import objectness, otsu, scaled, unary, working_image
from maskmill.masks.graph import geodesic, minimum_cut


@dataclass(frozen=True)
class Baseline:
    """``soft`` (H, W) float32 in 0..1, higher is more likely object; ``mask`` (H, W) bool."""

    soft: np.ndarray
    mask: np.ndarray


def colour_distance(image: np.ndarray, clusters: int = 3, border: float = 0.05, seed: int = 0) -> Baseline:
    """How far the colour of each pixel is from the colours of the picture's border.

    The Lab colours of a frame of the picture are grouped by K-means; the distance of a pixel is the Euclidean distance
    in Lab to the nearest centre, min-max scaled; the mask is what lies above Otsu's threshold. The frame stands for
    the background, whose regions mostly touch it.

    Args:
        image: (H, W, 3) uint8 RGB.
        clusters: number of colours of the border, at least 1. A control should be as strong as it can be: 3 scored
            best of 2 to 12 on scenes of the miniature's world.
        border: width of the frame as a share of the shorter side, at least one pixel.
        seed: of the K-means start; the same seed gives the same mask.
    """
    height, width = image.shape[:2]
    lab = rgb2lab(working_image(image, (height, width))).astype(np.float32)  # (H, W, 3)
    edge = max(1, round(border * min(height, width)))
    frame = np.ones((height, width), bool)
    frame[edge:-edge, edge:-edge] = False
    colours = np.unique(lab[frame], axis=0)
    if len(colours) > clusters:
        centres, _ = kmeans2(lab[frame].astype(np.float64), clusters, minit="++", rng=seed)
    else:
        centres = colours
    soft = scaled(np.linalg.norm(lab[:, :, None] - centres, axis=-1).min(-1))  # (H, W, clusters, 3) -> (H, W)
    threshold = otsu(soft)
    return Baseline(soft, soft > (1.0 if threshold is None else threshold))


def colour_cut(
    image: np.ndarray,
    lambda_: float = 0.1,
    sigma: float = 0.1,
    neighbours: int = 8,
    clusters: int = 3,
    border: float = 0.05,
    seed: int = 0,
) -> Baseline:
    """The soft map of ``colour_distance`` under AttentionCut's minimum cut, with spatial coherence exp(-D) alone.

    Otsu's threshold of the soft map is where both labels cost the same, so with ``lambda_`` = 0 the mask is that of
    ``colour_distance``.

    Args:
        lambda_, sigma, neighbours: as in ``maskmill.masks.attentioncut.CutParams``.
        image, clusters, border, seed: as in ``colour_distance``.
    """
    soft = colour_distance(image, clusters, border, seed).soft
    psi = tuple(np.exp(-d) for d in geodesic(working_image(image, soft.shape), sigma, neighbours))
    o = objectness(soft, None, 0.0, midpoint=0)
    return Baseline(soft, minimum_cut(unary(o), psi, lambda_))


def centre_prior(height: int, width: int, spread: float = 0.2, threshold: float = 0.5) -> Baseline:
    """A Gaussian in the middle of the picture, and where it exceeds ``threshold``.

    Args:
        height, width: of the picture in pixels.
        spread: standard deviation along each axis as a share of that side. The default's mask, an ellipse, covers
            0.17 of the picture.
        threshold: in 0..1.
    """
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    soft = np.exp(-(y[:, None] ** 2 + x**2) / (2 * spread**2)).astype(np.float32)
    return Baseline(soft, soft > threshold)
