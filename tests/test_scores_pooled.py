"""Pooled AUROC against every pair of pixels, box IoU by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.scores.controls import auroc
from maskmill.scores.pooled import BoxIoU, PooledAuroc


def slow_auroc(maps: list[np.ndarray], truths: list[np.ndarray]) -> float:
    """The share of (object pixel, other pixel) pairs of the whole set in which the object's is higher; ties half."""
    positive = [v for m, t in zip(maps, truths, strict=True) for v in m[t]]
    negative = [v for m, t in zip(maps, truths, strict=True) for v in m[~t]]
    return sum((p > n) + 0.5 * (p == n) for p in positive for n in negative) / (len(positive) * len(negative))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    truths = [rng.random((5, 6)) < 0.4 for _ in range(3)]
    maps = [np.round((rng.random((5, 6)) * 0.3 + 0.2 * t) * (k + 1) / 3, 1) for k, t in enumerate(truths)]  # ties
    return maps, truths


def scored(maps, truths, scaled: bool) -> dict:
    scores = PooledAuroc(scaled)
    for soft, truth in zip(maps, truths, strict=True):
        scores.update(soft, truth)
    return scores.result()


def test_it_is_the_share_of_pairs_over_the_whole_set(images):
    maps, truths = images
    raw = scored(maps, truths, scaled=False)
    assert raw["auroc_pooled"] == pytest.approx(slow_auroc(maps, truths), abs=1e-9) and raw["n"] == 3
    assert raw["auroc_pooled"] == pytest.approx(auroc(np.stack(maps), np.stack(truths)), abs=1e-9)
    stretched = [(m - m.min()) / (m.max() - m.min()) for m in maps]
    each = scored(maps, truths, scaled=True)
    assert each["auroc_pooled"] == pytest.approx(slow_auroc(stretched, truths), abs=1e-6)
    assert abs(each["auroc_pooled"] - raw["auroc_pooled"]) > 0.01  # the two protocols are not the same
    assert abs(raw["auroc_pooled"] - np.mean([auroc(m, t) for m, t in zip(*images, strict=True)])) > 0.01


def test_a_constant_map_is_no_better_than_chance():
    truth = np.eye(4, dtype=bool)
    for scaled in (True, False):
        assert scored([np.full((4, 4), 0.3)], [truth], scaled)["auroc_pooled"] == 0.5


def test_bad_maps_and_one_sided_sets_are_refused():
    truth = np.eye(3, dtype=bool)
    with pytest.raises(UserError, match="one shape"):
        PooledAuroc().update(np.zeros((2, 2)), truth)
    with pytest.raises(UserError, match="finite"):
        PooledAuroc().update(np.full((3, 3), np.nan), truth)
    with pytest.raises(UserError, match=r"within 0..1, got 0..8"):
        PooledAuroc(scaled=False).update(np.arange(9.0).reshape(3, 3), truth)
    with pytest.raises(UserError, match="only one of them"):
        scored([np.zeros((3, 3))], [np.zeros((3, 3), bool)], True)


def test_box_iou_is_of_the_largest_component_with_the_box_it_fits_best():
    mask = np.zeros((10, 10), bool)
    mask[2:6, 2:6] = True  # box (2, 2, 5, 5)
    mask[9, 9] = True
    scores = BoxIoU()
    assert scores.update(mask, [(2, 2, 5, 5)]) == 1.0
    assert scores.update(mask, [(0, 0, 0, 0), (4, 2, 7, 5)]) == pytest.approx(8 / 24)
    assert scores.update(np.zeros((10, 10), bool), [(2, 2, 5, 5)]) == 0.0
    result = scores.result()
    assert result["box_iou"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert (result["n"], result["no_prediction"]) == (3, 1) and "best" in result["protocol"]


def test_box_iou_needs_boxes_and_images():
    with pytest.raises(UserError, match="at least one true box"):
        BoxIoU().update(np.ones((2, 2), bool), [])
    with pytest.raises(UserError, match="at least one image"):
        BoxIoU().result()
