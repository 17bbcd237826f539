"""The control of OVDiff: regions that colour alone finds, each named by CLIP. No prototypes, no diffusion model.

The object is what ``maskmill.masks.baselines.colour_cut`` finds; it is parted where it is waisted (watershed of the
distance to its outline), as two objects that touch are, and each part is named by what CLIP sees in its crop.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from maskmill.masks.baselines import colour_cut
from maskmill.zeroshot import ZeroShot

LEAST = 0.02  # share of the picture below which a region is none
APART = 0.2  # of the shorter side: least distance between the centres of two parts; best of 8 on other scenes
MARGIN = 0.15  # of a region's longer side, around its crop


def colour_regions(
    image: np.ndarray, seed: int = 0, least: float = LEAST, apart: float = APART
) -> list[np.ndarray]:
    """Regions of a picture by its colours, without a word.

    Args:
        image: (H, W, 3) uint8.
        seed: of the K-means of the border's colours.
        least: see ``LEAST``. apart: see ``APART``; 0 parts nothing but connected components.

    Returns:
        (H, W) bool each, disjoint; none where the cut finds nothing.
    """
    mask = colour_cut(image, seed=seed).mask
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    if apart and mask.any():
        depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
        peaks = peak_local_max(depth, min_distance=max(1, round(apart * min(mask.shape))), labels=pieces,
                               exclude_border=False)  # fmt: skip
        markers = np.zeros(mask.shape, int)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        pieces = watershed(-depth, markers, mask=mask)
    masks = (pieces == k for k in range(1, pieces.max() + 1))
    return [m for m in masks if m.mean() >= least]


def crop_of(image: np.ndarray, mask: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """The square around a region, as far as it is in the picture. (H, W, 3), (H, W) bool -> (h, w, 3) uint8"""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    half = side * (0.5 + margin)
    y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    top, left = max(0, round(y - half)), max(0, round(x - half))
    return image[top : max(top + 1, round(y + half)), left : max(left + 1, round(x + half))]


def named(image: np.ndarray, judge: ZeroShot, seed: int = 0, apart: float = APART) -> np.ndarray:
    """Label map (H, W) uint8: 0 the background, k the k-th class of the judge."""
    labels = np.zeros(image.shape[:2], np.uint8)
    masks = colour_regions(image, seed, apart=apart)
    if masks:
        for mask, p in zip(masks, judge.probabilities([crop_of(image, m) for m in masks]), strict=True):
            labels[mask] = 1 + int(p.argmax())
    return labels
