"""The controls on pictures whose answer is plain to see."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.masks.baselines import centre_prior, colour_cut, colour_distance


def square_on_two_grounds() -> tuple[np.ndarray, np.ndarray]:
    """A red square before blue and green, with a little noise. -> (32, 32, 3) uint8, (32, 32) bool"""
    rng = np.random.default_rng(0)
    image = np.full((32, 32, 3), (40, 80, 200), np.int64)
    image[18:] = (60, 160, 60)
    mask = np.zeros((32, 32), bool)
    mask[10:24, 8:20] = True
    image[mask] = (210, 40, 40)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8), mask


def test_colour_distance_finds_the_colour_that_the_border_lacks():
    image, mask = square_on_two_grounds()
    found = colour_distance(image)
    assert (found.mask == mask).all()
    assert found.soft.dtype == np.float32 and found.soft.min() == 0 and found.soft.max() == 1
    assert found.soft[mask].min() > found.soft[~mask].max()


def test_one_border_colour_cannot_explain_two_grounds():
    image, mask = square_on_two_grounds()
    spread = [colour_distance(image, clusters=k).soft[~mask].mean() for k in (1, 2)]
    assert spread[0] > 2 * spread[1]


def test_colour_baselines_are_deterministic_and_flip_with_the_picture():
    image, _ = square_on_two_grounds()
    for method in (colour_distance, colour_cut):
        first, again, flipped = method(image), method(image), method(image[:, ::-1])
        assert (first.soft == again.soft).all() and (first.mask == again.mask).all()
        assert (flipped.mask[:, ::-1] == first.mask).all()


def test_the_cut_mends_a_hole_that_the_threshold_leaves():
    image, mask = square_on_two_grounds()
    image[16, 13] = (40, 80, 200)  # one pixel of background colour inside
    assert not colour_distance(image).mask[16, 13]
    assert (colour_cut(image, lambda_=0.0).mask == colour_distance(image).mask).all()
    assert colour_cut(image, lambda_=1.0, sigma=10.0).mask[16, 13]  # 8 edges of 1 against -log(eps) = 6.9
    assert (colour_cut(image).soft == colour_distance(image).soft).all()


def test_without_coherence_the_cut_is_otsus_threshold():
    rng = np.random.default_rng(1)
    dark = (rng.random((24, 24, 3)) ** 3 * 255).astype(np.uint8)  # its threshold is far from one half
    found = colour_distance(dark)
    assert 0.1 < np.mean(found.mask != (found.soft > 0.5))
    assert (colour_cut(dark, lambda_=0.0).mask == found.mask).all()


def test_a_picture_of_one_colour_has_no_object():
    flat = np.full((16, 16, 3), 90, np.uint8)
    assert not colour_distance(flat).soft.any()
    assert not colour_distance(flat).mask.any() and not colour_cut(flat).mask.any()


def test_centre_prior_by_hand():
    found = centre_prior(5, 5, spread=0.2)
    assert found.soft[2, 2] == 1
    assert found.soft[2, 3] == pytest.approx(np.exp(-0.5))  # one standard deviation away
    assert found.soft[1, 3] == pytest.approx(np.exp(-1.0))
    assert found.mask.tolist() == (found.soft > 0.5).tolist()
    assert found.mask.sum() == 5  # the middle and its four neighbours
    wide = centre_prior(20, 40)
    assert (wide.mask == wide.mask[::-1]).all() and (wide.mask == wide.mask[:, ::-1]).all()
    assert wide.mask.mean() == pytest.approx(2 * np.pi * 0.2**2 * np.log(2), abs=0.02)


def test_what_is_no_rgb_picture_is_refused():
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(UserError, match="image: expected"):
            colour_distance(wrong)
