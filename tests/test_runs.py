"""Scores of an image set draw by draw, on 4x4 pictures whose every number is counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmill.datasets.table import Item, save_png
from maskmill.errors import UserError
from maskmill.scores.runs import Run, pooled, saved_prediction, score_set, truth_of

TRUTH = np.zeros((4, 4), bool)
TRUTH[:2, :2] = True  # 4 of 16 pixels
TWICE = np.zeros((4, 4), bool)
TWICE[:2, :] = True  # all of it and 4 pixels more: IoU 4/8, right 12/16, box 2x4 against 2x2: IoU .5, no hit
NOTHING = np.zeros((4, 4), bool)  # IoU 0, right 12/16, no box
F_TWICE = 1.3 * 0.5 * 1 / (0.3 * 0.5 + 1)  # precision 1/2, recall 1


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abc":
        save_png(TRUTH, tmp_path / "truth" / f"{name}.png")
    return tmp_path


ITEMS = [
    Item("a", "bird", "-", "truth/a.png", seed="2"),
    Item("b", "dog", "-", "truth/b.png", seed="1"),
    Item("c", "bird", "-", "truth/c.png", seed="2"),
]
PREDICTIONS = {"a": (TRUTH, TRUTH), "b": (NOTHING, NOTHING), "c": (TWICE, TWICE)}


@pytest.fixture
def runs(folder) -> dict[str, Run]:
    return score_set(ITEMS, folder, lambda item: PREDICTIONS[item.sample_id])


def test_draws_are_kept_apart_in_the_order_of_their_first_image(runs):
    assert list(runs) == ["2", "1"]
    assert runs["2"].headline() == pytest.approx(
        {"iou": (1 + 0.5) / 2, "acc": (1 + 0.75) / 2, "maxf": (1 + F_TWICE) / 2, "corloc": 0.5}
    )
    assert runs["1"].headline() == pytest.approx({"iou": 0.0, "acc": 0.75, "maxf": 0.0, "corloc": 0.0})
    assert runs["1"].corloc.result()["no_prediction"] == 1


def test_pooled_is_as_if_all_images_had_been_in_one_draw(runs, folder):
    result = pooled(list(runs.values())).result()
    assert result["n"] == 3 and result["iou"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result["maxf"] == pytest.approx((1 + F_TWICE + 0) / 3)
    assert result["iou_pooled"] == pytest.approx(8 / 16)  # tp 4 + 4 + 0, union 4 + 8 + 4
    assert {k: (v["n"], v["iou"]) for k, v in result["classes"].items()} == {"bird": (2, 0.75), "dog": (1, 0.0)}
    undivided = [Item(i.sample_id, i.cls, i.image, i.mask) for i in ITEMS]
    one = score_set(undivided, folder, lambda item: PREDICTIONS[item.sample_id])
    assert list(one) == [""]
    alone = one[""].saliency.result()
    assert {k: v for k, v in alone.items() if isinstance(v, float)} == pytest.approx(
        {k: v for k, v in result.items() if isinstance(v, float)}
    )
    assert runs["2"].headline()["iou"] == 0.75  # pooling leaves the draws as they were


def test_the_true_box_is_that_of_the_whole_mask():
    """An object that another one cuts in two has one box around both halves."""
    split = np.zeros((4, 6), bool)
    split[1:3, :2] = split[1:3, 4:] = True
    run = Run()
    run.update((split, split), split, "car", "x")  # predicted: the box of one half, 2x2 of 2x6, IoU 1/3
    assert run.corloc.result()["hits"] == 0
    whole = split.copy()
    whole[1:3, 2:4] = True
    run.update((whole, whole), split, "car", "y")
    assert run.corloc.result()["hits"] == 1


def test_an_empty_truth_has_no_box_and_counts():
    run = Run()
    run.update((NOTHING, NOTHING), NOTHING, "car", "x")
    assert run.headline() == {"iou": 1.0, "acc": 1.0, "maxf": 1.0, "corloc": 0.0}
    assert run.corloc.result()["no_truth"] == 1


def test_saved_predictions_are_the_soft_map_and_the_mask(tmp_path):
    soft = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    save_png(soft, tmp_path / "soft" / "a.png")
    save_png(TRUTH, tmp_path / "masks" / "a.png")
    found_soft, found_mask = saved_prediction(tmp_path, ITEMS[0])
    assert np.array_equal(found_soft, soft) and np.array_equal(found_mask, TRUTH) and found_mask.dtype == bool


@pytest.mark.parametrize("kind", ["soft", "masks"])
def test_a_missing_prediction_is_named(tmp_path, kind):
    for name in {"soft", "masks"} - {kind}:
        save_png(TRUTH, tmp_path / name / "a.png")
    with pytest.raises(UserError, match=rf"{tmp_path / kind / 'a.png'}: expected an image, found no such file"):
        saved_prediction(tmp_path, ITEMS[0])


def test_an_image_without_ground_truth_is_named(folder):
    with pytest.raises(UserError, match=r"index.csv: a: expected a ground-truth mask"):
        truth_of(folder, Item("a", "bird", "-"))
    with pytest.raises(UserError, match="z.png: expected an image, found no such file"):
        truth_of(folder, Item("z", "bird", "-", "truth/z.png"))


def test_a_prediction_of_another_size_is_named(folder):
    small = np.ones((2, 2), bool)
    with pytest.raises(UserError, match="sample a: expected one size"):
        score_set(ITEMS[:1], folder, lambda item: (small, small))


def test_no_image_is_an_error_when_scored(folder):
    assert score_set([], folder, lambda item: PREDICTIONS["a"]) == {}
    with pytest.raises(UserError, match="at least one image"):
        pooled([]).result()
