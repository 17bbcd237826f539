"""mIoU beside sets of pixels counted one by one, and its conventions by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from maskmill.errors import UserError
from maskmill.scores.semantic import SemanticScores

CLASSES = ("bird", "dog", "sky")


def pictures(seed: int = 0, count: int = 5):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(rng.integers(2, 9, 2))
        yield (rng.choice([0, 1, 2, 3, 255], shape, p=[0.3, 0.3, 0.2, 0.15, 0.05]).astype(np.uint8),
               rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8))  # fmt: skip


def slow(pairs, background: str) -> dict[int, float]:
    """IoU of each label from the pixels of all pictures, one at a time."""
    predicted, true = {c: set() for c in range(4)}, {c: set() for c in range(4)}
    for n, (prediction, truth) in enumerate(pairs):
        for p in np.ndindex(truth.shape):
            if truth[p] == 255 or (background == "void" and truth[p] == 0):
                continue
            true[int(truth[p])].add((n, p))
            if prediction[p] != 255:
                predicted[int(prediction[p])].add((n, p))
    labels = range(0 if background == "class" else 1, 4)
    return {c: len(predicted[c] & true[c]) / len(predicted[c] | true[c]) for c in labels if predicted[c] | true[c]}


def scored(pairs, background="class", classes=CLASSES) -> SemanticScores:
    scores = SemanticScores(classes, background)
    for prediction, truth in pairs:
        scores.update(prediction, truth)
    return scores


@pytest.mark.parametrize("background", ["class", "void"])
@pytest.mark.parametrize("seed", range(3))
def test_beside_sets_of_pixels(background, seed):
    found = scored(pictures(seed), background).result()
    wanted = slow(pictures(seed), background)
    assert found["miou"] == pytest.approx(np.mean(list(wanted.values())))
    names = ["background", *CLASSES]
    assert found["classes"] == pytest.approx({names[c]: v for c, v in wanted.items()})
    assert found["miou_classes"] == pytest.approx(np.mean([v for c, v in wanted.items() if c]))
    assert found["images"] == 5 and "whole set" in found["protocol"]


def test_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], np.uint8)
    prediction = np.array([[0, 1, 1, 255], [2, 0, 3, 0]], np.uint8)
    scores = scored([(prediction, truth)])
    found = scores.result(things=["bird", "dog"])
    # background: 2 right of 3 true and 3 predicted; bird: 1 of 2 true, 2 predicted; dog: 1 of 2 true, 1 predicted
    assert found["classes"] == {"background": 2 / 4, "bird": 1 / 3, "dog": 1 / 2, "sky": None}
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert found["miou_things"] == pytest.approx((1 / 3 + 1 / 2) / 2) and "miou_stuff" not in found
    assert found["accuracy"] == pytest.approx(4 / 7)
    assert found["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    table = scores.table().set_index("class")
    assert table.loc["dog", ["recall", "precision", "truth", "predicted"]].tolist() == [0.5, 1.0, 2, 1]
    assert pd.isna(table.loc["sky", "iou"])

    without = scored([(prediction, truth)], "void").result()
    # 4 pixels are scored; bird: 1 right of 2 true, 1 predicted among them; dog as before
    assert without["classes"] == {"bird": 1 / 2, "dog": 1 / 2, "sky": None} and without["accuracy"] == 0.5


def test_the_set_is_one_matrix_not_a_mean_over_pictures():
    large = np.ones((10, 10), np.uint8)
    small = np.ones((1, 1), np.uint8)
    found = scored([(large, large), (small * 2, small)]).result()
    assert found["classes"]["bird"] == 100 / 101 and found["classes"]["dog"] == 0.0  # predicted, never true
    assert found["miou"] == pytest.approx((100 / 101 + 0) / 2)


def test_order_and_merging_change_nothing():
    pairs = list(pictures(3, 6))
    whole = scored(pairs)
    assert (scored(pairs[::-1]).matrix == whole.matrix).all()
    first, second = scored(pairs[:2]), scored(pairs[2:])
    first.merge(second)
    assert first.result() == whole.result()
    with pytest.raises(ValueError, match="same classes"):
        first.merge(scored(pairs, "void"))


def test_perfect_and_all_wrong():
    truth = np.array([[0, 1], [2, 3]])
    assert scored([(truth, truth)]).result(things=CLASSES[:2])["miou_stuff"] == 1.0
    assert scored([(np.full_like(truth, 255), truth)]).result()["miou"] == 0.0
    assert scored([(truth, truth)]).result()["miou"] == 1.0


def test_what_is_refused():
    scores = SemanticScores(CLASSES)
    good = np.zeros((2, 3), np.uint8)
    for prediction, truth, said in (
        (good.T, good, r"a/1: expected a label map of the size of the truth, \(2, 3\), got \(3, 2\)"),
        (good, good + 4, "a/1: truth: expected labels 0 to 3 or 255, got 4"),
        (good + 254, good, "a/1: prediction: expected labels 0 to 3 or 255, got 254"),
        (good.astype(np.int64) - 1, good, "a/1: prediction: expected labels 0 to 3 or 255, got -1"),
        (good.astype(float), good, "a/1: prediction: expected labels as integers, got float64"),
        (good[0], good[0], "expected a label map of the size of the truth"),
    ):
        with pytest.raises(UserError, match=said):
            scores.update(prediction, truth, "a/1")
    assert scores.images == 0 and not scores.matrix.any()
    with pytest.raises(UserError, match="expected at least one scored pixel, got none"):
        scores.result()
    with pytest.raises(UserError, match="expected 1 to 254 distinct classes, got 2 with 1 names"):
        SemanticScores(["dog", "dog"])
    with pytest.raises(UserError, match="expected background as class or void, got 'none'"):
        SemanticScores(["dog"], "none")
