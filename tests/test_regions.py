"""Regions of support images, beside thresholds tried one by one, loops over proposals, and pictures known by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.masks.regions import (
    FALLBACK,
    Regions,
    Thresholds,
    at_shape,
    choose,
    class_thresholds,
    maskcut,
    selected,
    thresholded,
    with_complement,
)  # fmt: skip


def three_levels(seed: int, means=(0.1, 0.45, 0.85), spread=0.05, shape=(24, 20)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.repeat(means, np.prod(shape) // 3)
    return np.clip(rng.normal(level, spread), 0, 1).reshape(shape)


def between(counts: list[int], low: int, high: int) -> float:
    """Variance between the classes of bins ..low, low+1..high, high+1.., up to a constant: sum of w mean^2."""
    total = 0.0
    for part in (range(low + 1), range(low + 1, high + 1), range(high + 1, len(counts))):
        w = sum(counts[i] for i in part)
        m = sum(counts[i] * i for i in part)
        total += m * m / w if w else 0.0
    return total


# --- multi-Otsu -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_multi_otsu_is_the_best_of_all_pairs_of_thresholds(seed):
    rng = np.random.default_rng(seed)
    maps = [rng.choice(np.arange(0, 256, 8) / 256, (4, 5), p=rng.dirichlet(np.ones(32))) for _ in range(3)]
    counts = [0] * 32  # of the 256 bins, the others are empty
    for value in np.concatenate(maps).ravel():
        counts[round(float(value) * 32)] += 1
    best = max(between(counts, i, j) for i, j in itertools.combinations(range(31), 2))
    found = class_thresholds(maps)
    low, high = (math.ceil(t * 32) - 1 for t in (found.low, found.high))
    assert (found.low * 256) % 1 == (found.high * 256) % 1 == 0 and low < high and not found.fallback
    assert between(counts, low, high) == pytest.approx(best, rel=1e-4)  # the library adds in float32


def test_thresholds_lie_between_three_levels_and_belong_to_the_class():
    dim, bright = three_levels(0, (0.05, 0.2, 0.4), 0.01), three_levels(1, (0.3, 0.6, 0.95), 0.01)
    found = class_thresholds(iter([three_levels(0), three_levels(1)]))
    assert 0.2 < found.low < 0.4 and 0.5 < found.high < 0.8
    both = class_thresholds([dim, bright])
    assert both != class_thresholds([dim]) and both == class_thresholds([bright, dim])


@pytest.mark.parametrize(
    "maps",
    [[np.zeros((4, 4))], [np.full((4, 4), 0.7), np.full((4, 4), 0.1)], [np.full((2, 2), np.nan)],
     [three_levels(0), np.full((2, 2), np.nan)]],
)  # fmt: skip
def test_constant_maps_and_nan_fall_back(maps):
    found = class_thresholds(maps)
    assert found == Thresholds(*FALLBACK, fallback=True) == Thresholds(0.2, 0.5, True)


def test_three_values_are_enough():
    found = class_thresholds([np.array([[0.1, 0.5, 0.9]])])
    assert not found.fallback and 0.1 < found.low <= 0.5 < found.high <= 0.9


def test_no_map_is_refused():
    with pytest.raises(UserError, match="expected at least one attribution map"):
        class_thresholds([])


def test_thresholded_by_hand():
    found = thresholded(np.array([[0.1, 0.2, 0.5], [0.6, np.nan, 0.0]]), Thresholds(0.2, 0.5))
    assert found.foreground.tolist() == [[False, False, True], [True, False, False]]
    assert found.background.tolist() == [[True, False, False], [False, False, True]]
    assert found.flags == ()
    flat = thresholded(np.zeros((2, 2)), Thresholds(0.2, 0.5, True))
    assert flat.flags == ("no_foreground",)


# --- proposals and Eq. 1 ----------------------------------------------------------------------------------------------


def slow_choice(proposals: np.ndarray, attribution: np.ndarray) -> tuple[int, int] | None:
    means = []
    for p, mask in enumerate(proposals):
        values = [attribution[y, x] for y, x in np.ndindex(mask.shape) if mask[y, x]]
        if values:
            means.append((sum(values) / len(values), p))
    if not means or max(means)[0] == min(means)[0]:
        return None
    largest, smallest = max(m for m, _ in means), min(m for m, _ in means)
    return min(p for m, p in means if m == largest), min(p for m, p in means if m == smallest)


@pytest.mark.parametrize("seed", range(8))
def test_eq_1_beside_loops(seed):
    rng = np.random.default_rng(seed)
    attribution = np.round(rng.random((5, 6)) * 4) / 4  # sums of quarters are exact, and ties happen
    proposals = rng.random((6, 5, 6)) < rng.choice([0.0, 0.1, 0.5, 1.0], (6, 1, 1))
    assert choose(proposals, attribution) == slow_choice(proposals, attribution)


def test_eq_1_without_an_answer():
    a = np.linspace(0, 1, 12).reshape(3, 4)
    whole = np.ones((1, 3, 4), bool)
    assert choose(whole, a) is None  # one proposal is no choice
    assert choose(np.zeros((2, 3, 4), bool), a) is None
    assert choose(np.zeros((0, 3, 4), bool), a) is None
    left, right = np.zeros((2, 3, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    assert choose(np.stack([left, right]), np.full((3, 4), 0.5)) is None
    assert choose(np.stack([left, right]), np.full((3, 4), np.nan)) is None
    assert choose(np.stack([left, right]), a) == (1, 0)
    assert selected(whole, a).flags == ("no_foreground", "no_background")


def test_the_complement_is_what_nothing_covers():
    proposals = np.array([[[1, 0, 0]], [[1, 1, 0]]], bool)
    assert with_complement(proposals).astype(int).tolist() == [[[1, 0, 0]], [[1, 1, 0]], [[0, 0, 1]]]
    assert with_complement(np.zeros((0, 1, 3), bool)).all()


def background_example():
    """A bright square in the middle of 9x9; the ground is 0.1 but for a stripe of 0.3."""
    a = np.full((9, 9), 0.1)
    a[3:6, 3:6] = 0.9
    a[:, 0] = 0.3
    square = np.zeros((9, 9), bool)
    square[3:6, 3:6] = True
    return with_complement(square[None]), a, square


def test_background_of_each_pixel_and_of_the_region():
    proposals, a, square = background_example()
    plain = selected(proposals, a)
    assert (plain.foreground == square).all() and (plain.background == ~square).all()
    low = selected(proposals, a, below=0.2)
    assert (low.background == (~square & (a < 0.2))).all() and not low.background[:, 0].any()
    assert (selected(proposals, a, below=0.2, each="region").background == ~square).all()  # its mean is 0.125
    assert selected(proposals, a, below=0.12, each="region").flags == ("no_background",)
    with pytest.raises(UserError, match="expected pixel or region, got 'mean'"):
        selected(proposals, a, each="mean")


def test_background_is_eroded_but_not_by_the_frame():
    proposals, a, square = background_example()
    found = selected(proposals, a, below=0.2, erode=1).background
    before = ~square & (a < 0.2)
    wanted = np.zeros_like(before)
    for y, x in np.ndindex(before.shape):
        near = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        wanted[y, x] = all(before[p] for p in near if 0 <= p[0] < 9 and 0 <= p[1] < 9)
    assert (found == wanted).all() and found[0, 8] and not found[0, 1] and not found[2, 4]
    assert (selected(proposals, a, below=0.2, erode=1).foreground == square).all()


def test_masks_on_another_grid():
    mask = np.zeros((4, 6), bool)
    mask[:2, :2] = True
    mask[0, 4] = True
    assert at_shape(mask, (2, 3)).astype(int).tolist() == [[1, 0, 0], [0, 0, 0]]  # a quarter of a cell is too little
    assert at_shape(mask, (4, 6)) is mask
    assert (at_shape(at_shape(mask[None, :2, :4], (4, 8)), (2, 4)) == mask[None, :2, :4]).all()


def test_regions_flags():
    none, some = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert Regions(some, none).flags == ("no_background",) and Regions(some, some).flags == ()


# --- MaskCut ----------------------------------------------------------------------------------------------------------


def painted(shape=(8, 8)):
    """Two things of unlike features on a common ground. -> features, the two masks"""
    rng = np.random.default_rng(0)
    features = np.zeros((4, *shape), np.float32)
    one, two = np.zeros((2, *shape), bool)
    one[1:5, 1:4], two[5:7, 5:7] = True, True
    features[0] = 1
    features[:, one] = np.array([0, 1, 0, 0])[:, None]
    features[:, two] = np.array([0, 0, 1, 0])[:, None]
    features += rng.normal(0, 0.02, features.shape)
    return {f"feature_{shape[0]}_0": features.astype(np.float16)}, one, two


def test_maskcut_finds_one_thing_after_the_other():
    features, one, two = painted()
    found = maskcut(features, (8, 8))
    assert len(found) >= 2
    assert any((mask == one).all() for mask in found) and any((mask == two).all() for mask in found)
    assert (found.sum(0) <= 1).all()  # disjoint
    assert (maskcut(features, (8, 8)) == found).all()
    assert (maskcut(features, (8, 8), count=1) == found[:1]).all()


def test_maskcut_first_cut_beside_the_textbook():
    """The generalised eigenproblem solved as it stands, without any trick."""
    from scipy.linalg import eigh

    features, _, _ = painted()
    x = next(iter(features.values())).astype(np.float64).reshape(4, -1).T
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = np.where(x @ x.T > 0.15, 1.0, 1e-5)
    d = np.diag(w.sum(1))
    y = eigh(d - w, d)[1][:, 1]
    y *= np.sign(y[np.abs(y).argmax()])
    side = (y > y.mean()).reshape(8, 8)
    first = maskcut(features, (8, 8), count=1)[0]
    assert (first & ~side).sum() == 0 and first[np.unravel_index(y.argmax(), (8, 8))]


def test_maskcut_gives_the_thing_not_the_ground_around_it():
    """The eigenvector peaks on the smaller side, which here is the ground; it holds all corners."""
    features = np.zeros((2, 8, 8), np.float32)
    features[0] = 1
    features[:, 1:7, 1:7] = np.array([0, 1])[:, None, None]  # 36 of 64 cells
    thing = np.zeros((8, 8), bool)
    thing[1:7, 1:7] = True
    assert (maskcut({"feature_8_0": features}, (8, 8), count=1)[0] == thing).all()
    assert (maskcut({"feature_8_0": features}, (8, 8), count=1, corners=5)[0] == ~thing).all()


def test_maskcut_keeps_the_connected_part():
    features = np.zeros((2, 8, 8), np.float32)
    features[0] = 1
    features[:, 2:5, 2:4] = np.array([0, 1])[:, None, None]
    features[:, 6, 6] = [0, 1]  # alike, but apart
    found = maskcut({"feature_8_0": features}, (8, 8), count=2)
    sizes = sorted(int(mask.sum()) for mask in found)
    assert sizes[-1] == 6 and found[0].sum() in (1, 6) and not (found[0][6, 6] and found[0][2, 2])


@pytest.mark.parametrize("features", [np.ones((3, 4, 4)), np.eye(16).reshape(16, 4, 4)])
def test_maskcut_of_a_picture_without_two_sides(features):
    """All cells alike, or each unlike all others."""
    assert maskcut({"feature_4_0": features.astype(np.float32)}, (4, 4)).shape == (0, 4, 4)
