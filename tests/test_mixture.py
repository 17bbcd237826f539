"""The mixture's masks against a slow expectation maximisation of our own and against filters written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from maskmill.errors import UserError
from maskmill.masks import mixture
from maskmill.masks.mixture import (
    contrast,
    difference,
    mean_filter,
    refined_mask,
    split,
    two_gaussians,
    two_means,
    upsample,
)


def slow_two_means(x: list[float]) -> int:
    """The split of sorted values with the least sum of squares within, every one tried."""

    def within(part: list[float]) -> float:
        mean = math.fsum(part) / len(part)
        return math.fsum((v - mean) ** 2 for v in part)

    places = [i for i in range(1, len(x)) if x[i] > x[i - 1]]
    return min(places, key=lambda i: within(x[:i]) + within(x[i:]))


def slow_mixture(x: list[float], tolerance: float, iterations: int) -> tuple[list[float], list[float]]:
    """Expectation maximisation, value by value: means and standard deviations by ascending mean."""
    first = slow_two_means(x)
    means, variances, weights = [], [], []
    for part in (x[:first], x[first:]):
        mean = math.fsum(part) / len(part)
        means.append(mean)
        variances.append(math.fsum((v - mean) ** 2 for v in part) / len(part) + 1e-6)
        weights.append(len(part) / len(x))
    before = -math.inf
    for _ in range(iterations):
        shares, likelihood = [], 0.0
        for v in x:
            densities = [w / math.sqrt(2 * math.pi * s) * math.exp(-((v - m) ** 2) / (2 * s))
                         for w, m, s in zip(weights, means, variances, strict=True)]  # fmt: skip
            likelihood += math.log(sum(densities))
            shares.append([d / sum(densities) for d in densities])
        for k in (0, 1):
            total = math.fsum(s[k] for s in shares)
            means[k] = math.fsum(s[k] * v for s, v in zip(shares, x, strict=True)) / total
            spread = math.fsum(s[k] * (v - means[k]) ** 2 for s, v in zip(shares, x, strict=True))
            variances[k], weights[k] = spread / total + 1e-6, total / len(x)
        if abs(likelihood / len(x) - before) < tolerance:
            break
        before = likelihood / len(x)
    order = sorted((0, 1), key=lambda k: means[k])
    return [means[k] for k in order], [math.sqrt(variances[k]) for k in order]


def standard(x: np.ndarray) -> np.ndarray:
    x = np.sort(np.ravel(x))
    return (x - x.mean()) / x.std()


def two_hills(seed: int = 0, side: int = 16, share: float = 0.2, apart: float = 4.0) -> np.ndarray:
    """A map whose left columns are object: two normal distributions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 1.0, (side, side))
    x[:, : round(share * side)] = rng.normal(apart, 0.7, (side, round(share * side)))
    return x


@pytest.mark.parametrize("seed", range(4))
def test_the_mixture_is_that_of_a_slow_expectation_maximisation(seed):
    rng = np.random.default_rng(seed)
    x = standard(np.concatenate([rng.normal(0, 1, 90), rng.normal(3, 0.5 + seed / 4, 40 + 10 * seed)]))
    means, deviations = two_gaussians(x)
    slow_means, slow_deviations = slow_mixture(list(x), mixture.TOLERANCE, mixture.ITERATIONS)
    assert means == pytest.approx(slow_means, abs=1e-6) and deviations == pytest.approx(slow_deviations, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_start_is_what_k_means_looks_for_and_no_seed_is_needed(seed):
    x = standard(np.random.default_rng(seed).gamma(1 + seed, size=60))
    first = two_means(x)
    assert first == slow_two_means(list(x))
    best = KMeans(2, n_init=20, random_state=0).fit(x[:, None])
    assert sorted(np.bincount(best.labels_)) == sorted((first, len(x) - first))
    hills = standard(two_hills(seed))
    usual = GaussianMixture(2, random_state=seed).fit(hills[:, None])
    assert np.sort(usual.means_[:, 0]) == pytest.approx(two_gaussians(hills)[0], abs=1e-3)


def test_two_means_never_tears_equal_values_apart():
    assert two_means(np.array([0.0, 0.0, 0.0, 1.0])) == 3
    assert two_means(np.array([0.0, 1.0, 1.0, 1.0, 1.0])) == 1
    assert two_means(np.array([0.0, 0.0, 5.0, 5.0, 5.0, 6.0])) == 2


def test_the_threshold_is_the_mean_of_the_means_and_the_mask_is_filtered():
    x = two_hills(apart=6.0)
    x[8, 12] = 9.0  # an orphan
    found = split(x)
    means, _ = two_gaussians(standard(x))
    assert found.means == pytest.approx(tuple(x.mean() + x.std() * means))
    assert found.threshold == pytest.approx(sum(found.means) / 2) and found.flags == ()
    assert (x > found.threshold)[8, 12] and not found.mask[8, 12]
    assert np.array_equal(found.mask, mean_filter(x > found.threshold))
    assert np.array_equal(found.mask, np.arange(16)[None].repeat(16, 0) < 3)


@pytest.mark.parametrize("change", [lambda x: 1e-4 * x + 0.013, lambda x: 300 * x - 7, lambda x: x.astype(np.float32)])
def test_scale_and_shift_do_not_matter(change):
    """Attention is of the order of 1/77 with a spread far below scikit-learn's floor of variances."""
    x = two_hills(3)
    assert np.array_equal(split(change(x)).mask, split(x).mask) and split(x).mask.any()


def test_the_place_of_the_pixels_does_not_change_the_threshold():
    x = two_hills(1)
    shuffled = np.random.default_rng(0).permutation(x.ravel()).reshape(x.shape)
    assert split(shuffled).threshold == split(x).threshold


def test_a_large_map_is_cut_where_all_its_values_say():
    x = two_hills(2, side=200)
    assert x.size > mixture.SAMPLE
    means, _ = two_gaussians(standard(x))
    assert split(x).means == pytest.approx(tuple(x.mean() + x.std() * means), abs=2e-3)


def test_a_constant_map_has_no_object_and_a_flag():
    for x in (np.zeros((4, 5)), np.full((4, 5), 0.3), 0.3 + 1e-9 * np.arange(20.0).reshape(4, 5)):
        found = split(x)
        assert found.flags == ("constant", "empty") and not found.mask.any() and found.mask.shape == (4, 5)


def test_one_mode_is_flagged_and_split_by_two_means():
    x = np.random.default_rng(0).laplace(size=(24, 24))  # one peak with tails: two components on the same place
    means, deviations = two_gaussians(standard(x))
    assert means[1] - means[0] < np.sqrt((deviations**2).mean())
    found = split(x)
    assert found.flags == ("one_mode",)
    ordered = sorted(x.ravel())
    first = slow_two_means(ordered)
    groups = math.fsum(ordered[:first]) / first, math.fsum(ordered[first:]) / (len(ordered) - first)
    assert found.threshold == pytest.approx(sum(groups) / 2) and found.means == pytest.approx(groups)


def test_a_map_of_two_values_is_cut_between_them():
    x = np.zeros((6, 6))
    x[:3] = 0.25
    found = split(x)
    assert found.threshold == pytest.approx(0.125) and found.flags == ()
    assert np.array_equal(found.mask, x > 0)


def test_a_mask_that_the_filter_empties_or_fills_is_flagged():
    x = np.zeros((8, 8))
    x[4, 4] = 1.0
    assert split(x).flags == ("empty",) and not split(x).mask.any()
    assert split(1 - x).flags == ("full",) and split(1 - x).mask.all()


def test_contrast_counts_even_shares():
    x = np.full((4, 4), 1 / 24)
    assert contrast(x, 24) == 0.0
    x[0, :2] = 3 / 24
    x[1, 0] = 6 / 24
    assert contrast(x, 24) == pytest.approx((3 + 3 + 6) / 3 - 1) and contrast(x, 48) == 2 * contrast(x, 24)
    assert contrast(x[::-1, ::-1], 24) == contrast(x, 24)


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan), np.zeros(4), np.zeros((0, 3)), np.array([[1.0, np.inf]])])
def test_what_is_no_map_is_refused_by_name(bad):
    with pytest.raises(UserError, match="attention of bird-7: expected a map"):
        split(bad, "attention of bird-7")


def test_the_mean_filter_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for shape in ((7, 9), (1, 5), (2, 2)):
        mask = rng.random(shape) < 0.5
        slow = np.zeros(shape, bool)
        for y in range(shape[0]):
            for x in range(shape[1]):
                near = [mask[min(max(y + j, 0), shape[0] - 1), min(max(x + i, 0), shape[1] - 1)]
                        for j in (-1, 0, 1) for i in (-1, 0, 1)]  # fmt: skip
                slow[y, x] = sum(near) / 9 >= 0.5
        assert np.array_equal(mean_filter(mask), slow)
    corner = np.zeros((4, 4), bool)
    corner[:2, :2] = True  # an object in the corner keeps it, all but its own outer corner
    assert mean_filter(corner).tolist() == [[True, True, False, False], [True, False, False, False],
                                            [False] * 4, [False] * 4]  # fmt: skip


def test_upsampling_makes_blocks_and_takes_any_size():
    mask = np.array([[True, False], [False, True]])
    assert np.array_equal(upsample(mask, (4, 6)), mask.repeat(2, 0).repeat(3, 1))
    assert upsample(mask, (3, 2)).tolist() == [[True, False], [True, False], [False, True]]
    assert np.array_equal(upsample(mask, (2, 2)), mask)


def test_the_difference_is_the_mean_over_the_colours():
    a = np.zeros((2, 2, 3), np.uint8)
    b = a.copy()
    b[0, 1] = 255, 0, 0
    b[1, 0] = 3, 255, 255
    a[1, 1], b[1, 1] = (200, 7, 9), (100, 7, 9)
    assert difference(a, b) == pytest.approx(np.array([[0, 1 / 3], [513 / 765, 100 / 765]]))
    assert np.array_equal(difference(a, b), difference(b, a))
    with pytest.raises(UserError, match=r"one size, got \(2, 2, 3\) and \(2, 1, 3\)"):
        difference(a, b[:, :1])


def test_the_refined_mask_is_the_product_at_the_images_resolution():
    rng = np.random.default_rng(0)
    image = rng.integers(100, 110, (16, 16, 3)).astype(np.uint8)
    background = (image + rng.integers(0, 3, image.shape)).astype(np.uint8)
    background[4:10, 2:8] = 220  # here the object was
    background[12:, 12:] = 220  # painted over, but no attention
    preliminary = np.zeros((4, 4), bool)
    preliminary[1:3, :3] = True
    refined = refined_mask(image, background, preliminary)
    changed = mean_filter(difference(image, background) > refined.split.threshold)
    expected = changed & preliminary.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(refined.mask, expected) and np.array_equal(refined.split.mask, changed)
    truth = np.zeros((16, 16), bool)
    truth[4:10, 2:8] = True
    assert not (refined.mask & ~truth).any() and (truth & ~refined.mask).sum() <= 4  # the filter takes corners


def test_a_background_that_changed_nothing_gives_an_empty_mask():
    image = np.full((8, 8, 3), 40, np.uint8)
    refined = refined_mask(image, image, np.ones((2, 2), bool))
    assert not refined.mask.any() and "constant" in refined.split.flags
