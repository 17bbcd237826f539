"""Polygons, their statistics and their distance: by hand, and against slow references."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from maskmill.errors import UserError
from maskmill.scores import geometry
from maskmill.scores.geometry import (
    Geometry,
    chamfer,
    contrast,
    distances,
    measure,
    outline,
    perimeter,
    polygon,
    shape_diversity,
    simplify,
    summarise,
)
from maskmill.scores.localisation import largest_component


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def rectangle(height: int, width: int, top: int = 2, left: int = 3, size: int = 24) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def blob(seed: int, size: int = 30, share: float = 0.45) -> np.ndarray:
    """A random shape with holes and islands."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((size, size)), 1.5)
    return noise > np.quantile(noise, 1 - share)


def trace(mask: np.ndarray) -> np.ndarray:
    """The slow reference: Moore's walk round the largest component, a hand always on the object. -> (n, 2) x, y"""
    mask = np.pad(largest_component(mask), 1)
    ring = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)]  # (dy, dx), clockwise from the left
    start = tuple(int(v) for v in np.argwhere(mask)[0])  # reached from the left, so the pixel left of it is ground
    here, back, states = start, 0, []
    while (here, back) not in states:
        states.append((here, back))
        for turn in range(1, 9):
            k = (back + turn) % 8
            there = here[0] + ring[k][0], here[1] + ring[k][1]
            if mask[there]:
                before = here[0] + ring[k - 1][0], here[1] + ring[k - 1][1]  # ground, the last looked at
                here, back = there, ring.index((before[0] - there[0], before[1] - there[1]))
                break
        else:
            break  # a single pixel
    once = states[states.index((here, back)) if len(states) > 1 else 0 :]  # from where the walk repeats itself
    return np.array([(x - 1, y - 1) for (y, x), _ in once])


def round_trip(points: np.ndarray) -> tuple[tuple[int, int], ...]:
    """A closed walk whatever its start and direction: the least of all ways to write it down."""
    ways = [tuple(map(tuple, np.roll(p, k, axis=0).tolist())) for p in (points, points[::-1]) for k in range(len(p))]
    return min(ways)


# --- outline ----------------------------------------------------------------------------------------------------------


def test_outline_of_a_square_by_hand():
    expected = [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (2, 3), (1, 3), (1, 2)]
    found = outline(grid("......", ".###..", ".###..", ".###..", "......"))
    assert found.dtype == np.int64 and round_trip(found) == round_trip(np.array(expected))


def test_a_concave_corner_is_cut_and_a_thin_part_is_walked_there_and_back():
    corner = outline(grid("#..", "#..", "###"))
    assert round_trip(corner) == round_trip(np.array([(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (1, 2), (0, 1)]))
    tail = outline(grid("##..", "####"))
    assert round_trip(tail) == round_trip(np.array([(0, 0), (1, 0), (2, 1), (3, 1), (2, 1), (1, 1), (0, 1)]))


@pytest.mark.parametrize("seed", range(12))
def test_outline_equals_a_walk_round_the_object(seed):
    for share in (0.15, 0.45, 0.7):
        mask = blob(seed, share=share)
        assert round_trip(outline(mask)) == round_trip(trace(mask))
    rough = np.random.default_rng(seed).random((9, 9)) < 0.5  # pixels that touch at corners, dead ends
    assert round_trip(outline(rough)) == round_trip(trace(rough))


def test_outline_is_a_closed_walk_of_single_steps_that_ignores_holes_and_smaller_parts():
    mask = blob(3)
    points = outline(mask)
    assert (np.abs(points - np.roll(points, 1, axis=0)).max(1) == 1).all()
    whole = ndimage.binary_fill_holes(largest_component(mask))
    assert (whole != mask).any() and (outline(whole) == points).all()
    assert whole[points[:, 1], points[:, 0]].all()


def test_small_outlines():
    assert outline(np.zeros((4, 4), bool)).shape == (0, 2)
    assert outline(grid("...", ".#.", "...")).tolist() == [[1, 1]]
    assert round_trip(outline(grid("##"))) == ((0, 0), (1, 0))
    assert len(outline(np.ones((4, 5), bool))) == 14  # the picture's edge bounds an object too


# --- polygon ----------------------------------------------------------------------------------------------------------


def same_vertices(found: np.ndarray, expected: list[tuple[float, float]]) -> bool:
    return np.allclose(np.array(sorted(map(tuple, found.tolist()))), np.array(sorted(expected)))


def test_square_triangle_and_rectangle_by_hand():
    square = polygon(rectangle(11, 11))
    assert same_vertices(square, [(0, 0), (0, 1), (1, 0), (1, 1)]) and perimeter(square) == pytest.approx(4)
    triangle = polygon(np.pad(np.tri(11, dtype=bool), 3))
    assert same_vertices(triangle, [(0, 0), (0, 1), (1, 1)])
    assert perimeter(triangle) == pytest.approx(2 + np.sqrt(2))
    wide = polygon(rectangle(6, 11))  # keeps its proportions: 5 steps high, 10 wide
    assert same_vertices(wide, [(0, 0), (0, 0.5), (1, 0), (1, 0.5)]) and perimeter(wide) == pytest.approx(3)
    line = polygon(rectangle(1, 9))
    assert same_vertices(line, [(0, 0), (1, 0)]) and perimeter(line) == pytest.approx(2)
    assert polygon(rectangle(1, 1)).tolist() == [[0, 0]] and perimeter(polygon(rectangle(1, 1))) == 0
    assert polygon(np.zeros((5, 5), bool)).shape == (0, 2)


def test_a_notch_counts_when_it_is_deeper_than_the_tolerance():
    mask = rectangle(21, 21)
    mask[2, 13] = False  # one pixel of 20 steps: 0.05 deep
    assert len(polygon(mask, 0.04)) > 4 and same_vertices(polygon(mask, 0.06), [(0, 0), (0, 1), (1, 0), (1, 1)])


def douglas_peucker(points: np.ndarray, tolerance: float) -> list[tuple[float, float]]:
    """The slow reference, by recursion; both ends stay."""
    a, b = points[0], points[-1]
    along = np.clip([(p - a) @ (b - a) / max((b - a) @ (b - a), 1e-300) for p in points], 0, 1)
    far = np.linalg.norm(points - (a + along[:, None] * (b - a)), axis=1)
    k = int(far[1:-1].argmax()) + 1 if len(points) > 2 else 0
    if len(points) <= 2 or far[k] <= tolerance:
        return [tuple(a), tuple(b)]
    return douglas_peucker(points[: k + 1], tolerance)[:-1] + douglas_peucker(points[k:], tolerance)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [0.3, 1.0, 3.0])
def test_simplify_equals_slow_douglas_peucker(seed, tolerance):
    points = outline(blob(seed))
    points = points + np.random.default_rng(seed).normal(0, 1e-3, points.shape)  # no two equally far from a line
    start = int(np.linalg.norm(points - points.mean(0), axis=1).argmax())
    closed = np.concatenate([np.roll(points, -start, axis=0), points[start : start + 1]])
    expected = np.array(douglas_peucker(closed, tolerance)[:-1])
    assert 3 < len(expected) < len(points)
    assert np.array_equal(simplify(points, tolerance), expected)


def test_every_point_of_the_outline_is_within_the_tolerance_of_the_polygon():
    for seed in range(5):
        points = outline(blob(seed))
        scaled = (points - points.min(0)) / np.ptp(points, axis=0).max()
        found = polygon(blob(seed), 0.05)
        assert found.min() == 0 and found.max() <= 1 and set(map(tuple, found)) <= set(map(tuple, scaled))
        sides = zip(found, np.roll(found, -1, axis=0), strict=True)
        dense = np.concatenate([a + np.linspace(0, 1, 200)[:, None] * (b - a) for a, b in sides])
        assert cKDTree(dense).query(scaled)[0].max() < 0.052


def test_a_polygon_does_not_depend_on_place_or_frame():
    mask = blob(1)
    expected = polygon(mask)
    for moved in (np.pad(mask, ((7, 0), (3, 9))), np.pad(mask, 1)):
        assert np.array_equal(polygon(moved), expected)
    turned = polygon(np.rot90(mask))
    assert perimeter(turned) == pytest.approx(perimeter(expected), rel=0.02)


# --- distance between polygons ----------------------------------------------------------------------------------------


def slow_chamfer(a: np.ndarray, b: np.ndarray) -> float:
    return (cKDTree(b).query(a)[0] ** 2).sum() + (cKDTree(a).query(b)[0] ** 2).sum()


def some_polygons(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((int(n), 2)) for n in rng.integers(1, 40, count)]


def test_chamfer_by_hand():
    a, b = np.array([[[0.0, 0.0]]]), np.array([[[1.0, 0.0], [0.0, 2.0]]])
    assert chamfer(a, b, np.ones((1, 1)), np.ones((1, 2))).tolist() == [1 + (1 + 4)]
    filled = np.array([[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])  # two copies that do not count
    assert chamfer(filled, b, np.array([[1.0, 0, 0]]), np.ones((1, 2))).tolist() == [6]
    square = np.array([[[0.0, 0], [1, 0], [1, 1], [0, 1]]])
    triangle = np.array([[[0.0, 0], [0, 1], [1, 1]]])
    assert chamfer(square, triangle, np.ones((1, 4)), np.ones((1, 3))).tolist() == [1]  # (1, 0) alone has no partner


@pytest.mark.parametrize("cells", [1, 3000, 500_000])
def test_shape_diversity_equals_a_loop_over_pairs(monkeypatch, cells):
    monkeypatch.setattr(geometry, "_CELLS", cells)
    polygons = some_polygons(14)
    expected = np.mean([slow_chamfer(a, b) for a, b in combinations(polygons, 2)])
    found, pairs = shape_diversity(polygons)
    assert pairs == 14 * 13 // 2 and found == pytest.approx(expected, rel=1e-12)
    assert shape_diversity(polygons[::-1])[0] == pytest.approx(expected, rel=1e-12)


def test_shape_diversity_of_copies_and_of_too_few():
    one = some_polygons(1)
    assert shape_diversity(one * 5) == (0.0, 10)
    assert shape_diversity(one) == (0.0, 0) and shape_diversity([]) == (0.0, 0)


def test_drawn_pairs_are_of_two_different_masks_and_come_from_the_generator():
    corners = [np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([[0.5, np.sqrt(0.75)]])]  # all 1 apart
    for seed in range(20):
        found, pairs = shape_diversity(corners, 2, np.random.default_rng(seed))
        assert pairs == 2 and found == pytest.approx(2)
    polygons = some_polygons(200)
    first, again, other = (shape_diversity(polygons, 4000, np.random.default_rng(s)) for s in (0, 0, 1))
    assert first == again and first[0] != other[0] and first[1] == 4000
    assert first[0] == pytest.approx(shape_diversity(polygons)[0], rel=0.05)
    with pytest.raises(UserError, match="expected a generator"):
        shape_diversity(polygons, 10)


# --- pictures and sets ------------------------------------------------------------------------------------------------


def test_contrast_by_hand():
    image = np.zeros((2, 4, 3), np.uint8)
    assert contrast(image) == 0
    image[0] = 255
    assert contrast(image) == pytest.approx(127.5)
    image[0], image[1] = (100, 0, 0), (0, 100, 0)  # red and green: 50 in two of three channels
    assert contrast(image) == pytest.approx(np.sqrt((50**2 + 50**2) / 3))
    assert contrast(image[::-1]) == contrast(image) == contrast(image + np.uint8(20))


def test_measure_by_hand():
    mask = rectangle(4, 8, top=2, left=4, size=16)
    mask[15, 0] = True  # counts for the size, not for the box or the polygon
    image = np.zeros((16, 16, 3), np.uint8)
    image[8:] = 40
    found = measure(mask, image)
    assert (found.size, found.centre) == (33 / 256, (8 / 16, 4 / 16))
    assert found.contrast == pytest.approx(20)
    assert found.vertices == 4 and found.length == pytest.approx(2 * (1 + 3 / 7))
    assert measure(np.zeros((16, 16), bool), image) is None
    with pytest.raises(UserError, match="expected an image of the mask's size"):
        measure(mask, image[1:])


SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
TRIANGLE = np.array([[0.0, 0], [0, 1], [1, 1]])


def test_summary_by_hand():
    measured = [Geometry(SQUARE, 40.0, 0.1, (0.2, 0.5)), None, Geometry(TRIANGLE, 60.0, 0.5, (0.8, 0.5))]
    found = summarise(measured)
    assert found == pytest.approx({
        "SC": 3.5, "PL": (4 + 2 + np.sqrt(2)) / 2, "SD": 1.0, "contrast": 50.0, "contrast_std": 10.0, "size": 0.3,
        "size_std": 0.2, "centre_x": 0.5, "centre_y": 0.5, "centre_std": np.sqrt(0.3**2 / 2), "n": 2, "empty": 1,
        "pairs": 1,
    })  # fmt: skip
    with pytest.raises(UserError, match="at least one mask that is not empty"):
        summarise([None])


def test_distances_are_0_for_equal_sets_and_1_for_sets_apart():
    a = [Geometry(SQUARE, c, c / 100, (0.5, 0.5)) for c in (10.0, 20.0, 30.0, 40.0)]
    b = [Geometry(TRIANGLE, c, c / 100, (0.5, 0.6)) for c in (30.0, 40.0, 50.0, 60.0)]
    assert set(distances(a, a[::-1]).values()) == {0.0}
    found = distances([*a, None], b)
    assert found == {"contrast": 0.5, "size": 0.5, "centre_x": 0.0, "centre_y": 1.0, "SC": 1.0, "PL": 1.0}
