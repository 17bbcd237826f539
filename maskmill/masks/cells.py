"""Masks on the grid of latent cells: what a preliminary mask is before ``maskmill.masks.mixture.upsample`` brings it to
its picture's size, and after it is read back."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from maskmill.masks.mixture import upsample


def to_cells(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (h, w) bool: the cells of which at least half the pixels are object.

    A pixel belongs to the cell that ``upsample`` fills it from, so this undoes ``upsample`` wherever the picture has at
    least as many pixels as there are cells. A cell without a pixel takes the nearest one before it.
    """
    y, x = (np.arange(n) * of // n for n, of in zip(mask.shape, shape, strict=True))
    object_, pixels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(object_, (y[:, None], x), mask)
    np.add.at(pixels, (y[:, None], x), 1)
    return np.where(pixels > 0, 2 * object_ >= np.maximum(pixels, 1), upsample(mask, shape))


def grow(mask: np.ndarray, cells: int) -> np.ndarray:
    """A (h, w) bool mask with all cells that are at most so many steps up, down, left or right of it; 0: as it is."""
    return ndimage.binary_dilation(mask, iterations=cells) if cells else mask
