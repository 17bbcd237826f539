"""The bilateral solver against a dense solve of the same problem and against what it must leave alone, and the order of
the steps after it."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.masks.refine import bilateral_grid, bilateral_solver, bistochastise, describe, refine

OFF = {"bilateral": False, "sigma_xy": 4.0, "sigma_luma": 16.0, "sigma_chroma": 16.0, "smoothness": 32.0,
       "largest": False, "fill": False}  # fmt: skip


def switches(**on) -> SimpleNamespace:
    return SimpleNamespace(**{**OFF, **on})


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def blocks(height: int = 6, width: int = 7, seed: int = 0) -> np.ndarray:
    """A small picture of few colours, so that cells hold several pixels. -> (H, W, 3) uint8"""
    rng = np.random.default_rng(seed)
    colours = np.array([(200, 40, 30), (190, 60, 40), (40, 70, 210), (128, 128, 128)])
    return colours[rng.integers(0, 4, (height, width))].astype(np.uint8)


def two_halves(side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Red beside blue; the mask of the red half. -> (H, W, 3) uint8, (H, W) bool"""
    mask = np.zeros((side, side), bool)
    mask[:, : side // 2] = True
    return np.where(mask[..., None], (200, 40, 30), (40, 70, 210)).astype(np.uint8), mask


def dense_solver(targets, image, sigma_xy, sigma_luma, sigma_chroma, smoothness, confidence=0.999):
    """The slow reference: cells in a dictionary, matrices written out, a direct solve."""
    cells, of_pixel = {}, []
    for y, x in product(range(image.shape[0]), range(image.shape[1])):
        r, g, b = (int(v) for v in image[y, x])
        luma = (299 * r + 587 * g + 114 * b) / 1000
        place = (x / sigma_xy, y / sigma_xy, luma / sigma_luma, (b - luma) / 1.772 / sigma_chroma + 0.5,
                 (r - luma) / 1.402 / sigma_chroma + 0.5)  # fmt: skip
        of_pixel.append(cells.setdefault(tuple(int(np.floor(v)) for v in place), len(cells)))
    size = len(cells)
    blur = np.zeros((size, size))
    for a, b in product(cells, cells):
        steps = [abs(i - j) for i, j in zip(a, b, strict=True)]
        blur[cells[a], cells[b]] = 10 if sum(steps) == 0 else 1 if sum(steps) == 1 else 0
    splat = np.zeros((size, len(of_pixel)))
    splat[of_pixel, np.arange(len(of_pixel))] = 1
    n, mass = np.ones(size), splat.sum(1)
    for _ in range(20):
        n = np.sqrt(n * mass / (blur @ n))
    weights = n[:, None] * blur * n
    system = smoothness * (np.diag(weights.sum(1)) - weights) + confidence * np.diag(mass)
    solved = [np.linalg.solve(system, splat @ (confidence * t.ravel())) for t in targets]
    return np.stack([(splat.T @ y).reshape(t.shape) for t, y in zip(targets, solved, strict=True)]), weights, of_pixel


@pytest.mark.parametrize("cell", [(3, 16, 16), (2.5, 40, 7), (100, 255, 255), (1, 2, 2)])
@pytest.mark.parametrize("smoothness", [0.0, 2.0, 500.0])
def test_the_solver_equals_a_dense_solve(cell, smoothness):
    image = blocks()
    targets = np.random.default_rng(1).random((2, *image.shape[:2]))
    expected, _, _ = dense_solver(targets, image, *cell, smoothness)
    found = bilateral_solver(targets, image, *cell, smoothness)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_answer_is_where_the_papers_objective_is_least():
    image, smoothness = blocks(seed=2), 3.0
    targets = np.random.default_rng(3).random((1, *image.shape[:2]))
    solved, weights, of_pixel = dense_solver(targets, image, 3, 16, 16, smoothness)
    y = np.zeros(len(weights))
    y[of_pixel] = bilateral_solver(targets, image, 3, 16, 16, smoothness)[0].ravel()

    def objective(y: np.ndarray) -> float:
        smooth = (weights * (y[:, None] - y) ** 2).sum()
        return smoothness / 2 * smooth + 0.999 * ((y[of_pixel] - targets[0].ravel()) ** 2).sum()

    least = objective(y)
    for cell, step in product(range(len(y)), (-0.02, 0.02)):
        moved = y.copy()
        moved[cell] += step
        assert objective(moved) > least


def test_the_grid_by_hand():
    image = np.array([[(0, 0, 0), (0, 0, 0), (8, 8, 8), (255, 255, 255)]], np.uint8)
    cell, blur = bilateral_grid(image, 2, 8, 8)  # x cells 0 0 1 1, luma cells 0 0 1 31, a grey's chroma 0
    assert cell[0] == cell[1] and len(set(cell)) == 3
    assert (blur.toarray() == 10 * np.eye(3)).all()  # the second cell differs from the first along two axes
    image[0, 2] = 0
    cell, blur = bilateral_grid(image, 2, 8, 8)
    black, near, white = cell[0], cell[2], cell[3]
    assert blur[black, near] == blur[near, black] == 1
    assert blur[black, white] == blur[near, white] == 0


def test_neighbours_do_not_wrap_from_the_end_of_one_axis_to_the_start_of_the_next():
    image = np.zeros((2, 5, 3), np.uint8)
    cell, blur = bilateral_grid(image, 1, 8, 8)
    ends = cell.reshape(2, 5)[0, -1], cell.reshape(2, 5)[1, 0]
    assert blur[ends] == 0
    assert blur.sum() == 10 * 10 + 2 * (2 * 4 + 5)  # 8 pairs along x and 5 along y


def test_neighbouring_greys_share_a_chroma_cell():
    image = np.repeat(np.arange(120, 136, dtype=np.uint8)[:, None, None], 3, axis=2)
    image[::2, :, 0] += 1  # a hint of red on every second row: on the other side of 0, and yet the same cell
    cell, _ = bilateral_grid(image, 100, 1000, 8)
    assert len(set(cell)) == 1


def test_bistochastic_row_sums():
    cell, blur = bilateral_grid(blocks(12, 12), 3, 16, 16)
    mass = np.bincount(cell).astype(float)
    n, m = bistochastise(blur, mass)
    np.testing.assert_allclose(m, n * (blur.toarray() @ n), rtol=1e-12)
    np.testing.assert_allclose(m, mass, rtol=1e-3)


def test_what_the_solver_leaves_alone():
    image, mask = two_halves()
    cell = (4, 16, 16, 128.0)
    constant = np.full((1, *mask.shape), 0.37)
    np.testing.assert_allclose(bilateral_solver(constant, image, *cell), 0.37, atol=1e-6)
    # Colours that no chain of neighbouring cells links cannot pull at each other, so the edge stays exactly.
    np.testing.assert_allclose(bilateral_solver(mask[None], image, *cell)[0], mask, atol=1e-6)
    targets = np.random.default_rng(4).random((1, *mask.shape))
    solved = bilateral_solver(targets, image, *cell)
    assert targets.min() <= solved.min() and solved.max() <= targets.max()
    # what one colour holds on average stays: the smoothness moves value about and makes none
    for part in (mask, ~mask):
        assert solved[0][part].mean() == pytest.approx(targets[0][part].mean(), abs=1e-6)
    np.testing.assert_allclose(bilateral_solver(1 - targets, image, *cell), 1 - solved, atol=1e-6)


def test_a_mask_that_leaks_over_a_colour_edge_is_pulled_back_and_one_that_falls_short_is_filled():
    image, truth = two_halves()
    rng = np.random.default_rng(5)
    image = np.clip(image.astype(int) + rng.integers(-4, 5, image.shape), 0, 255).astype(np.uint8)
    for column in (6, 10):
        given = np.zeros_like(truth)
        given[:, :column] = True
        soft, mask = refine(given.astype(np.float32), given, image, switches(bilateral=True, sigma_xy=8.0))
        assert (mask == truth).all() and (given != truth).any()
        assert soft[truth].min() > soft[~truth].max()


def test_the_mask_is_solved_as_it_is_and_the_soft_map_keeps_its_own_level():
    image, truth = two_halves()
    quiet = truth * np.float32(0.2)  # a method whose mask is no level set of one half
    soft, mask = refine(quiet, truth, image, switches(bilateral=True))
    assert (mask == truth).all()
    np.testing.assert_allclose(soft, quiet, atol=1e-6)
    assert soft.dtype == np.float32 and mask.dtype == bool


def test_everything_off_gives_back_the_inputs():
    image, mask = two_halves()
    soft = mask.astype(np.float32)
    found = refine(soft, mask, image, switches())
    assert found[0] is soft and found[1] is mask


def test_largest_component_comes_before_the_holes():
    mask = grid("#####......", "#...#.#####", "#.#.#.#####", "#...#.#####", "#####.###..")  # 16, 1 and 18 pixels
    image, soft = np.zeros((*mask.shape, 3), np.uint8), mask.astype(np.float32)
    block = grid("...........", *["......#####"] * 3, "......###..")
    assert (refine(soft, mask, image, switches(largest=True))[1] == block).all()
    after = refine(soft, mask, image, switches(largest=True, fill=True))  # a filled ring would have been the larger one
    assert (after[1] == block).all() and after[0] is soft
    both = grid("#####......", *["#####.#####"] * 3, "#####.###..")
    assert (refine(soft, mask, image, switches(fill=True))[1] == both).all()


def test_a_diagonal_fence_closes_a_hole_as_it_links_a_component():
    mask = grid(".#.", "#.#", ".#.")
    found = refine(mask.astype(np.float32), mask, np.zeros((3, 3, 3), np.uint8), switches(largest=True, fill=True))[1]
    assert (found == grid(".#.", "###", ".#.")).all()


def test_the_largest_component_is_that_of_the_solved_mask():
    image, truth = two_halves()
    given = truth.copy()
    given[7:9, 12:14] = True  # a speck on the other colour, which the solver dissolves
    given[:3] = False
    mask = refine(given.astype(np.float32), given, image, switches(bilateral=True, largest=True))[1]
    assert (mask == truth).all()


def test_empty_and_full_masks_stay():
    image, truth = two_halves()
    for value in (False, True):
        mask = np.full(truth.shape, value)
        soft, found = refine(mask.astype(np.float32), mask, image, switches(bilateral=True, largest=True, fill=True))
        assert (found == value).all() and (soft == value).all()


def test_describe():
    assert describe(switches()) == "none"
    assert describe(switches(fill=True, bilateral=True)) == "bilateral solver, holes filled"
    assert describe(switches(largest=True)) == "largest component"


def test_bad_input_is_refused():
    image, mask = two_halves()
    soft = mask.astype(np.float32)
    for wrong in ((soft[1:], mask, image), (soft, soft, image), (soft, mask, image[1:]), (soft, mask, image / 255)):
        with pytest.raises(UserError, match=r"refine: expected a soft map \(H, W\)"):
            refine(*wrong, switches())
    with pytest.raises(UserError, match="sigma_xy, sigma_luma, sigma_chroma: expected larger cells"):
        refine(soft, mask, image, switches(bilateral=True, sigma_chroma=1e-9, sigma_luma=1e-9))
