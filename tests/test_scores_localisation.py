"""Boxes, components and CorLoc by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.scores.localisation import (
    CorLoc,
    box_iou,
    from_coco,
    from_voc,
    is_hit,
    largest_component,
    predicted_box,
    tight_box,
)


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def test_corners_connect_and_the_largest_stays():
    mask = grid("#....", ".#...", "..#..", "....#", "....#")
    # with corners: the diagonal joins, (2,2) does not touch (3,4); 3 pixels against 2
    assert (largest_component(mask) == grid("#....", ".#...", "..#..", ".....", ".....")).all()
    assert predicted_box(mask) == (0, 0, 2, 2)


def test_a_tie_keeps_the_first_and_input_is_not_changed():
    mask = grid("..#", "...", "#..")
    before = mask.copy()
    assert (largest_component(mask) == grid("..#", "...", "...")).all()
    assert (mask == before).all()
    assert not largest_component(np.zeros((3, 3), bool)).any()


def test_tight_box_is_inclusive():
    assert tight_box(grid("....", ".##.", "..#.")) == (1, 1, 2, 2)
    assert tight_box(grid("#")) == (0, 0, 0, 0)
    assert tight_box(np.zeros((2, 2), bool)) is None


def test_box_iou_by_hand():
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 1.0  # one pixel has area 1
    assert box_iou((0, 0, 1, 1), (1, 1, 2, 2)) == pytest.approx(1 / 7)  # 4 + 4 - 1
    assert box_iou((0, 0, 1, 1), (2, 0, 3, 1)) == 0.0  # neighbours share no pixel
    assert box_iou((0, 0, 9, 9), (0, 0, 9, 4)) == 0.5
    with pytest.raises(UserError):
        box_iou((5, 0, 1, 1), (0, 0, 1, 1))


def test_box_iou_equals_the_iou_of_painted_masks():
    rng = np.random.default_rng(0)
    for _ in range(30):
        boxes, painted = [], []
        for _ in range(2):
            x, y = np.sort(rng.integers(0, 12, 2)), np.sort(rng.integers(0, 12, 2))
            canvas = np.zeros((12, 12), bool)
            canvas[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
            boxes.append((x[0], y[0], x[1], y[1]))
            painted.append(canvas)
        a, b = painted
        assert box_iou(*boxes) == pytest.approx((a & b).sum() / (a | b).sum())


def test_conventions_of_the_data_sets():
    whole = (0, 0, 499, 374)  # a 500 x 375 photograph
    assert from_voc((1, 1, 500, 375)) == whole
    assert from_coco((0, 0, 500, 375)) == whole


def test_exactly_one_half_is_a_miss():
    assert not is_hit((0, 0, 9, 9), [(0, 0, 9, 4)])
    assert is_hit((0, 0, 9, 9), [(50, 50, 60, 60), (0, 0, 9, 5)])
    assert not is_hit(None, [(0, 0, 9, 9)])
    assert not is_hit((0, 0, 9, 9), [])


def test_corloc_counts_every_image():
    scores = CorLoc()
    mask = np.zeros((10, 10), bool)
    mask[2:6, 2:6] = True
    mask[9, 9] = True  # a speck that the largest component drops
    assert scores.update(mask, [(2, 2, 5, 5)])
    assert not scores.update(np.zeros((10, 10), bool), [(2, 2, 5, 5)])
    assert not scores.update((0, 0, 3, 3), [])
    assert scores.update((0, 0, 3, 3), [(0, 0, 3, 3), (8, 8, 9, 9)])
    got = scores.result()
    assert (got["corloc"], got["n"], got["hits"], got["no_prediction"], got["no_truth"]) == (0.5, 4, 2, 1, 1)
    with pytest.raises(UserError):
        CorLoc().result()
    with pytest.raises(UserError):
        largest_component(np.zeros((2, 2), np.uint8))
