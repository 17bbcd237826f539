"""AUROC against all pairs, own-object preference and the spread over seeds by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.scores.controls import auroc, mean_auroc, own_and_other, own_object_rate, summarise_seeds


def slow_auroc(soft: np.ndarray, mask: np.ndarray) -> float:
    """Every foreground pixel against every background pixel; a tie counts half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in soft[mask] for b in soft[~mask]]
    return sum(pairs) / len(pairs)


def test_auroc_equals_all_pairs_with_ties():
    rng = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        soft, mask = rng.integers(0, levels, (7, 9)) / levels, rng.random((7, 9)) < 0.4
        assert auroc(soft, mask) == pytest.approx(slow_auroc(soft, mask), abs=1e-12)


def test_auroc_by_hand():
    mask = np.array([[True, True, False, False]])
    assert auroc(np.array([[4, 3, 2, 1]]), mask) == 1.0
    assert auroc(np.array([[1, 2, 3, 4]]), mask) == 0.0
    assert auroc(np.array([[7, 7, 7, 7]]), mask) == 0.5
    assert auroc(np.array([[4, 1, 2, 1]]), mask) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_auroc_depends_on_order_only_and_stands_half_precision():
    rng = np.random.default_rng(1)
    soft, mask = rng.random((64, 64)).astype(np.float16), rng.random((64, 64)) < 0.2
    wide = soft.astype(np.float64)
    assert auroc(soft, mask) == auroc(wide, mask) == auroc(np.exp(3 * wide) - 7, mask)
    assert auroc(-wide, mask) == pytest.approx(1 - auroc(wide, mask))


def test_mean_auroc_is_per_image_and_skips_undefined():
    mask = np.array([[True, False]])
    got = mean_auroc([
        (np.array([[2, 1]]), mask), (np.array([[1, 2]]), mask), (np.array([[2, 1]]), mask),
        (np.array([[2, 1]]), np.array([[True, True]])),
    ])  # fmt: skip
    assert got == {"auroc": pytest.approx(2 / 3), "n": 3, "skipped": 1}
    with pytest.raises(UserError):
        mean_auroc([(np.zeros((1, 2)), np.zeros((1, 2), bool))])


def test_own_object_rate_by_hand():
    own, other = np.array([[True, True, False, False]]), np.array([[False, False, True, False]])
    likes, ties, dislikes = np.array([[4.0, 2, 1, 9]]), np.array([[1.0, 1, 1, 9]]), np.array([[0.0, 1, 2, 9]])
    assert own_and_other(likes, own, other) == (3.0, 1.0)
    got = own_object_rate([(likes, own, other), (ties, own, other), (dislikes, own, other), (likes, own, other)])
    assert got == {"own_object_rate": 0.5, "n": 4, "ties": 1}
    with pytest.raises(UserError):
        own_object_rate([])
    with pytest.raises(UserError):
        own_and_other(likes, own, np.zeros((1, 4), bool))
    with pytest.raises(UserError):
        auroc(np.array([[np.nan, 1]]), np.array([[True, False]]))
    with pytest.raises(UserError):
        auroc(np.zeros((2, 2)), np.zeros((2, 3), bool))


def test_half_precision_means_do_not_overflow():
    soft = np.full((64, 64), 60.0, np.float16)  # sums to 245,760, beyond float16
    half = np.zeros((64, 64), bool)
    half[:32] = True
    assert own_and_other(soft, half, ~half) == (60.0, 60.0)


def test_summary_over_seeds_by_hand():
    runs = [{"attentioncut": {"iou": x}, "own_object_rate": 0.8} for x in (0.5, 0.6, 0.7)]
    got = summarise_seeds(runs)
    assert got == {
        "world.attentioncut.iou": pytest.approx(0.6), "world.attentioncut.iou_std": pytest.approx(0.1),
        "world.own_object_rate": pytest.approx(0.8), "world.own_object_rate_std": pytest.approx(0.0, abs=1e-12),
    }  # fmt: skip
    assert summarise_seeds(runs[:1]) == {"world.attentioncut.iou": 0.5, "world.own_object_rate": 0.8}
    assert math.isclose(summarise_seeds([{"a.b": 1}, {"a.b": 3}], prefix="")["a.b_std"], math.sqrt(2))


@pytest.mark.parametrize("runs", [[], [{"a": 1.0}, {"b": 1.0}], [{"a": math.nan}], [{"a": "x"}], [{"a": True}]])
def test_summary_refuses(runs):
    with pytest.raises(UserError):
        summarise_seeds(runs)
