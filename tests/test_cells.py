"""Masks on the grid of cells against loops, and there and back."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.masks.cells import grow, to_cells
from maskmill.masks.mixture import upsample


def random_mask(h: int, w: int, seed: int = 0, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random((h, w)) < share


@pytest.mark.parametrize("shape", [(64, 64), (16, 16), (17, 40), (500, 333), (31, 16)])
def test_it_undoes_upsample_for_any_picture_with_a_pixel_per_cell(shape):
    for seed in range(4):
        cells = random_mask(16, 16, seed)
        assert (to_cells(upsample(cells, shape), (16, 16)) == cells).all()


def test_a_cell_is_object_where_half_of_its_pixels_are():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = mask[1, 1] = True  # 2 of the 6 pixels of the first cell
    mask[0:2, 3] = mask[0, 4] = True  # 3 of 6 of the second
    mask[2:4, 3:6] = True
    assert to_cells(mask, (2, 2)).tolist() == [[False, True], [False, True]]


def slow_cells(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, bool)
    for i in range(shape[0]):
        for j in range(shape[1]):
            inside = [mask[y, x] for y in range(len(mask)) for x in range(len(mask[0]))
                      if y * shape[0] // len(mask) == i and x * shape[1] // len(mask[0]) == j]  # fmt: skip
            out[i, j] = sum(inside) >= len(inside) / 2
    return out


@pytest.mark.parametrize("size", [(9, 14), (16, 8), (11, 7)])
def test_it_is_the_count_of_each_cells_pixels(size):
    mask = random_mask(*size, seed=3, share=0.5)
    assert (to_cells(mask, (4, 5)) == slow_cells(mask, (4, 5))).all()


def test_a_picture_with_fewer_pixels_than_cells_is_enlarged():
    mask = random_mask(5, 7)
    assert (to_cells(mask, (10, 14)) == np.repeat(np.repeat(mask, 2, 0), 2, 1)).all()


def test_growing_goes_so_many_steps_and_stays_in_the_picture():
    mask = np.zeros((6, 6), bool)
    mask[0, 2] = True
    y, x = np.mgrid[:6, :6]
    for cells in (0, 1, 3):
        assert (grow(mask, cells) == (y + abs(x - 2) <= cells)).all()
    assert not grow(np.zeros((4, 4), bool), 2).any()
