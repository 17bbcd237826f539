"""Saliency scores against hand-computed answers and slow, obvious references."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.errors import UserError
from maskmill.scores.saliency import SaliencyScores, aggregate, binarise, curves, quantise

REAL = os.environ.get("MASKMILL_REAL")


def slow_prf(soft01: np.ndarray, truth: np.ndarray, k: int) -> tuple[float, float, float]:
    """Precision, recall, F at one threshold, straight from the definitions."""
    mask = soft01 >= (k - 0.5) / 255
    tp, predicted, positive = int((mask & truth).sum()), int(mask.sum()), int(truth.sum())
    if predicted == 0 and positive == 0:
        return 1.0, 1.0, 1.0
    if tp == 0:
        return 0.0, 0.0, 0.0
    p, r = tp / predicted, tp / positive
    return p, r, 1.3 * p * r / (0.3 * p + r)


def slow_scores(samples: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    accs, ious, table = [], [], []
    pooled_hit = pooled_union = pooled_right = pixels = 0
    for soft01, mask, truth in samples:
        union = (mask | truth).sum()
        accs.append((mask == truth).mean())
        ious.append((mask & truth).sum() / union if union else 1.0)
        table.append([slow_prf(soft01, truth, k)[2] for k in range(1, 256)])
        pooled_hit, pooled_union = pooled_hit + (mask & truth).sum(), pooled_union + union
        pooled_right, pixels = pooled_right + (mask == truth).sum(), pixels + truth.size
    table = np.array(table)
    return {
        "acc": np.mean(accs), "iou": np.mean(ious), "maxf": table.mean(0).max(), "maxf_per_image": table.max(1).mean(),
        "iou_pooled": pooled_hit / pooled_union, "acc_pooled": pooled_right / pixels,
    }  # fmt: skip


def test_random_maps_agree_with_the_slow_reference():
    rng = np.random.default_rng(0)
    samples, scores = [], SaliencyScores()
    for i in range(6):
        shape = (9 + i, 13)
        truth = rng.random(shape) < 0.3
        soft = np.clip(0.4 * truth + 0.6 * rng.random(shape), 0, 1).astype((np.float64, np.float32)[i % 2])
        samples.append((soft, soft > 0.5, truth))
        scores.update(soft, soft > 0.5, truth, cls="ab"[i % 2])
    got, want = scores.result(), slow_scores(samples)
    for key, value in want.items():
        assert got[key] == pytest.approx(value, abs=1e-9), key
    for cls, part in (("a", samples[::2]), ("b", samples[1::2])):
        for key, value in slow_scores(part).items():
            assert got["classes"][cls][key] == pytest.approx(value, abs=1e-9), (cls, key)
    assert got["n"] == 6 and got["classes"]["a"]["n"] == 3


@pytest.mark.skipif(not REAL or not Path(REAL, "sod/predictions/Amulet").is_dir(), reason="MASKMILL_REAL not set")
def test_real_maps_agree_with_the_slow_reference():
    samples, scores = [], SaliencyScores()
    for path in sorted(Path(REAL, "sod/predictions/Amulet").glob("*.png"))[::4]:
        soft = np.asarray(Image.open(path).convert("L"))
        truth = np.asarray(Image.open(Path(REAL, "sod/ground_truth_mask", path.name)).convert("L"))
        samples.append((soft / 255, soft > 127.5, truth > 127.5))
        scores.update(soft, soft, truth)
    got = scores.result()
    for key, value in slow_scores(samples).items():
        assert got[key] == pytest.approx(value, abs=1e-6), key
    assert got["maxf_per_image"] > got["maxf"] + 0.01


def test_hand_computed_image():
    truth = np.array([[1, 1, 0, 0]], bool)
    soft = np.array([[1.0, 0.4, 0.6, 0.0]])
    scores = SaliencyScores()
    scores.update(soft, soft > 0.5, truth)
    got = scores.result()
    # mask 1010: tp 1, fp 1, fn 1, tn 1
    assert (got["acc"], got["iou"]) == (0.5, pytest.approx(1 / 3))
    assert got["miou_pooled"] == pytest.approx(1 / 3)
    # 0.4 or lower: P 2/3, R 1, F = 1.3 * 2/3 / (0.2 + 1) = .7222; above 0.6: P 1, R .5, F = .65 / .8 = .8125
    assert got["maxf"] == pytest.approx(0.8125)
    assert got["maxf_threshold"] == pytest.approx(154 / 255)  # 0.6 is 153
    curve = scores.curve()
    assert len(curve) == 255
    assert tuple(curve.iloc[0][["precision", "recall"]]) == pytest.approx((2 / 3, 1.0))
    assert tuple(curve.iloc[-1][["precision", "recall", "f"]]) == pytest.approx((1.0, 0.5, 0.8125))


def test_the_two_maxf_protocols_differ():
    truth = np.array([[1, 0]], bool)
    scores = SaliencyScores()
    # Each image has a perfect threshold of its own, (.2, .4] and (.6, .8], but no threshold is perfect for both.
    for soft in (np.array([[0.4, 0.2]]), np.array([[0.8, 0.6]])):
        scores.update(soft, soft > 0.5, truth)
    got = scores.result()
    assert got["maxf_per_image"] == 1.0
    both_whole = 1.3 * 0.5 / (0.3 * 0.5 + 1)  # F of an image that is all foreground, P .5, R 1
    assert got["maxf"] == pytest.approx((1 + both_whole) / 2)


def test_conventions_for_empty_maps():
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    both, missed, invented = SaliencyScores(), SaliencyScores(), SaliencyScores()
    both.update(None, empty, empty)
    missed.update(None, empty, full)
    invented.update(None, full, empty)
    assert [both.result()[k] for k in ("acc", "iou", "maxf", "maxf_per_image")] == [1, 1, 1, 1]
    for one_sided in (missed, invented):
        assert [one_sided.result()[k] for k in ("acc", "iou", "maxf", "maxf_per_image")] == [0, 0, 0, 0]
    assert np.isfinite(missed.curve().to_numpy()).all() and np.isfinite(invented.curve().to_numpy()).all()


def test_quantisation_and_half_of_the_range():
    assert quantise(np.array([[0.0, 0.5, 1.0, 0.00195, 0.00197]])).tolist() == [[0, 128, 255, 0, 1]]
    every = np.arange(256, dtype=np.uint8)[None]
    for dtype in (np.float64, np.float32):
        assert (quantise((every / 255).astype(dtype)) == every).all()  # an 8-bit map survives the round trip
    assert (quantise((every / 255).astype(np.float32)) == quantise(every)).all()
    assert binarise(np.array([[127, 128]], np.uint8)).tolist() == [[False, True]]
    assert binarise(np.array([[0.5, 0.51]])).tolist() == [[False, True]]


def test_merge_equals_one_pass_and_order_does_not_matter():
    rng = np.random.default_rng(1)
    samples = [(s := rng.random((5, 7)), s > 0.4, rng.random((5, 7)) < 0.5, "xy"[i % 2]) for i in range(6)]
    whole, left, right, back = (SaliencyScores() for _ in range(4))
    for i, sample in enumerate(samples):
        whole.update(*sample)
        (left if i < 2 else right).update(*sample)
    left.merge(right)
    for sample in reversed(samples):
        back.update(*sample)
    for key in ("acc", "iou", "maxf", "maxf_per_image", "iou_pooled"):
        assert left.result()[key] == pytest.approx(whole.result()[key], abs=1e-12)
        assert back.result()[key] == pytest.approx(whole.result()[key], abs=1e-12)


def test_aggregate_rows():
    scores = SaliencyScores()
    truth = np.array([[1, 1, 0, 0]], bool)
    scores.update(None, np.array([[1, 0, 0, 0]], bool), truth, "b")  # iou .5
    scores.update(None, truth, truth, "a")  # iou 1
    table = aggregate(scores.per_image())
    assert list(table.index) == ["a", "b", "all"]
    assert table["iou"].tolist() == [1.0, 0.5, 0.75]
    assert table.loc["all", "iou_pooled"] == pytest.approx(3 / 4)
    assert table["n"].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("soft", "mask", "truth", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), bool), np.zeros((2, 3), bool), "one size"),
        (np.full((2, 2), 1.5), np.zeros((2, 2), bool), np.zeros((2, 2), bool), "within 0..1"),
        (np.full((2, 2), np.nan), np.zeros((2, 2), bool), np.zeros((2, 2), bool), "within 0..1"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), np.eye(2, dtype=np.uint8), "values 0 and 1"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.int64), np.zeros((2, 2), bool), "int64"),
        (np.zeros((2, 2, 3)), np.zeros((2, 2), bool), np.zeros((2, 2), bool), "(2, 2, 3)"),
    ],
)
def test_bad_input_names_the_sample(soft, mask, truth, message):
    scores = SaliencyScores()
    with pytest.raises(UserError) as caught:
        scores.update(soft, mask, truth, name="0042")
    assert "0042" in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
    assert scores.rows == [] and scores.sums == {}
    with pytest.raises(UserError):
        scores.result()


def test_curves_are_fast_enough():
    import time

    rng = np.random.default_rng(2)
    soft, truth = rng.integers(0, 256, (300, 400), dtype=np.uint8), rng.random((300, 400)) < 0.2
    curves(soft, truth)
    start = time.process_time()
    for _ in range(20):
        curves(soft, truth)
    assert (time.process_time() - start) / 20 < 0.012  # 5,019 such images in 60 s
