"""Every step of AttentionCut by hand, and the invariances of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskmill.errors import UserError
from maskmill.masks.attentioncut import (
    OFFSETS,
    CutParams,
    attention_cut,
    boundary,
    boundary_seeds,
    coherence,
    cross_map,
    objectness,
    otsu,
    refined_map,
    resize,
    scaled,
    semantic_edges,
    unary,
)
from maskmill.masks.graph import FORWARD, energy, geodesic

SEEDED = 5


def rng() -> np.random.Generator:
    return np.random.default_rng(SEEDED)


def near_of(a: np.ndarray, r: int) -> np.ndarray:
    """near_{r} of a full A_s (r*r, r*r), one pair at a time."""
    near = np.zeros((8, r, r))
    for o, (dy, dx) in enumerate(OFFSETS):
        for y in range(r):
            for x in range(r):
                if 0 <= y + dy < r and 0 <= x + dx < r:
                    near[o, y, x] = a[y * r + x, (y + dy) * r + x + dx]
    return near


def pairs_of(a: np.ndarray) -> np.ndarray:
    """What a record keeps of A (n, n): the mean with its transposed, above the diagonal and on it."""
    return ((a + a.T) / 2)[np.triu_indices(len(a))]


def scene(flip: bool = False, turn: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """An object left of the middle, its attention record at 8 and 4, a picture of 16 x 16, and the object's mask.

    ``flip`` mirrors everything left to right, ``turn`` exchanges rows and columns.
    """
    def placed(x: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
        x = np.flip(x, axes[1]) if flip else x
        return np.swapaxes(x, *axes) if turn else x

    noise = np.random.default_rng(0)
    mask = np.zeros((16, 16), bool)
    mask[3:14, 2:8] = True
    image = np.where(mask[..., None], (200, 60, 50), (70, 120, 190)) + noise.integers(-9, 10, (16, 16, 3))
    record = {}
    for r in (8, 4):
        soft = resize(mask, (r, r))
        cross = (0.3 + 2 * soft) * noise.gamma(20, 0.05, (3, 2, r, r))
        value = placed(soft + 0.1 * noise.random((r, r)), (0, 1)).ravel()
        a = np.exp(-4 * np.abs(value[:, None] - value))  # not symmetric after the softmax's division
        a = a / a.mean(1, keepdims=True)
        record |= {f"cross_{r}": placed(cross, (2, 3)), f"near_{r}": near_of(a, r), f"pairs_{r}": pairs_of(a)}
    record = {key: x.astype(np.float16) for key, x in record.items()}
    return record, np.ascontiguousarray(placed(image, (0, 1)).astype(np.uint8)), placed(mask, (0, 1))


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (11, 5), (3, 4), (7, 20)])
def test_resize_equals_torch(size):
    x = rng().random((2, 7, 6)).astype(np.float32)
    torch.set_num_threads(1)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x)[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    np.testing.assert_allclose(resize(x, size), expected.numpy(), atol=2e-6)


def test_resize_keeps_a_ramp_and_the_places_between_pixels():
    r, n = 4, 16
    ramp = (np.arange(r) + 0.5) / r
    assert resize(ramp[None], (1, n))[0, 2:-2] == pytest.approx(((np.arange(n) + 0.5) / n)[2:-2])
    between = (np.arange(r - 1) + 1.0) / r  # the value of the ramp halfway between two pixels
    found = resize(between[:, None], (n, 1), (1, 0))[:, 0]
    assert found.shape == (n - 1,)
    assert found[3:-3] == pytest.approx(((np.arange(n - 1) + 1.0) / n)[3:-3])
    assert resize(between[None], (1, r), (0, 1)) == pytest.approx(between[None])


def test_scaled_and_otsu():
    assert scaled(np.array([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert not scaled(np.full((2, 2), 7.0)).any()
    assert otsu(np.array([0.1, 0.1, 0.9])) == pytest.approx(0.5, abs=0.01)
    assert otsu(np.full(9, 0.3)) is None
    x = rng().random(500) ** 2
    x = np.concatenate([x * 0.4, 0.7 + 0.3 * x])
    best = min(np.arange(1, 256) / 256, key=lambda t: (x < t).sum() * x[x < t].var() + (x >= t).sum() * x[x >= t].var())
    assert ((x > otsu(x)) == (x > best)).mean() > 0.995


# --- Eq. 2 ------------------------------------------------------------------------------------------------------------


def test_cross_map_takes_the_layers_that_vary_most():
    flat, weak, strong = np.ones((2, 2)), np.array([[1.0, 1.2], [1.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 9.0]])
    record = {"cross_2": np.stack([[flat, strong, weak]])}
    assert cross_map(record, (2, 2), 1).tolist() == [[0, 0], [0, 1]]
    both = (strong + weak) / 2
    np.testing.assert_allclose(cross_map(record, (2, 2), 2), (both - 1) / (both.max() - 1), rtol=1e-6)
    with_flat = cross_map(record, (2, 2), 99)
    np.testing.assert_allclose(with_flat, cross_map(record, (2, 2), 3))
    np.testing.assert_allclose(with_flat, cross_map(record, (2, 2), 2), rtol=1e-6)  # a flat layer adds a constant


def test_cross_map_chooses_layers_across_resolutions():
    small, large = np.array([[0.0, 8.0], [0.0, 0.0]]), np.zeros((4, 4))
    large[3, 3] = 1.0
    record = {"cross_4": large[None, None], "cross_2": small[None, None]}
    np.testing.assert_allclose(cross_map(record, (4, 4), 1), scaled(resize(small, (4, 4))))


def test_cross_map_uses_the_bins_below_t_max():
    bins = np.zeros((4, 1, 2, 2))
    for i, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        bins[i, 0, y, x] = 1
    used = {t: (cross_map({"cross_2": bins}, (2, 2), 1, t) > 0).sum() for t in (0.01, 0.25, 0.5, 0.8)}
    assert used == {0.01: 1, 0.25: 1, 0.5: 2, 0.8: 3}
    assert cross_map({"cross_2": bins}, (2, 2), 1, 0.25)[0, 0] == 1  # bin 0 is t nearest 0
    assert not cross_map({"cross_2": bins}, (2, 2), 1, 1.0).any()  # all four together are constant


# --- Eq. 3 ------------------------------------------------------------------------------------------------------------


def test_boundary_is_the_inner_rim_without_the_frame_of_the_picture():
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    assert len(boundary(mask)) == 8 and [2, 2] not in boundary(mask).tolist()
    half = np.zeros((4, 4), bool)
    half[:, :2] = True
    assert boundary(half).tolist() == [[0, 1], [1, 1], [2, 1], [3, 1]]
    assert not len(boundary(np.ones((3, 3), bool))) and not len(boundary(np.zeros((3, 3), bool)))


def test_seeds_are_a_random_subset_of_the_boundary():
    cross = np.zeros((16, 16), np.float32)
    cross[4:12, 4:12] = 1
    rim = {tuple(p) for p in boundary(cross > 0.16)}
    points, found = boundary_seeds(cross, 0.16, 7, rng())
    assert found and len({tuple(p) for p in points}) == 7 and {tuple(p) for p in points} <= rim
    assert (points == boundary_seeds(cross, 0.16, 7, rng())[0]).all()
    others = [boundary_seeds(cross, 0.16, 7, np.random.default_rng(s))[0].tolist() for s in range(4)]
    assert any(o != points.tolist() for o in others)
    assert {tuple(p) for p in boundary_seeds(cross, 0.16, 99, rng())[0]} == rim


def test_seeds_fall_back_where_tau_leaves_no_boundary():
    cross = np.full((6, 6), 0.4, np.float32)
    cross[2:4, 2:4] = 0.9
    points, found = boundary_seeds(cross, 0.2, 99, rng())  # all above tau: Otsu
    assert not found and points.tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert boundary_seeds(cross, 1.0, 99, rng())[0].tolist() == points.tolist()  # none above tau
    flat, found = boundary_seeds(np.zeros((5, 7), np.float32), 0.16, 99, rng())
    assert not found and flat.tolist() == [[2, 3]]  # the centre


def test_refined_map_is_the_mean_of_the_seeds_columns_and_rows():
    a = rng().random((16, 16)).astype(np.float32)
    seeds, at = np.array([[0, 0], [0, 1], [3, 2]]), [0, 1, 14]
    both = (a[:, at].mean(1) + a[at].mean(0)).reshape(4, 4) / 2
    np.testing.assert_allclose(refined_map({"pairs_4": pairs_of(a)}, seeds, (4, 4)), scaled(both), atol=1e-6)
    fine = seeds * 2 + 1  # the same cells at twice the working size
    at_8 = refined_map({"pairs_4": pairs_of(a)}, fine, (8, 8))
    np.testing.assert_allclose(at_8, scaled(resize(both, (8, 8))), atol=1e-6)


def test_a_seed_counts_for_the_coarse_cell_it_lies_in():
    pairs = np.arange(10.0)  # of 2 x 2 cells; the row of the upper right one, number 1, is 1 4 5 6
    wanted = scaled(resize(np.array([[1.0, 4.0], [5.0, 6.0]]), (4, 4)))
    for seeds in ([[0, 2]], [[1, 3]], [[0, 3], [1, 2]]):
        np.testing.assert_allclose(refined_map({"pairs_4": pairs}, np.array(seeds), (4, 4)), wanted, atol=1e-6)
    three_to_one = scaled(resize(np.array([[0.75, 3.25], [4.25, 5.25]]), (4, 4)))  # row 0 is 0 1 2 3
    found = refined_map({"pairs_4": pairs}, np.array([[0, 0], [0, 2], [0, 3], [1, 3]]), (4, 4))
    np.testing.assert_allclose(found, three_to_one, atol=1e-6)


def test_refined_map_weighs_resolutions_by_their_layers():
    fine, coarse = rng().random((16, 16)), rng().random((4, 4))
    record, seeds = {"pairs_4": pairs_of(fine), "pairs_2": pairs_of(coarse)}, np.array([[0, 0]])
    parts = (fine[:, 0] + fine[0]).reshape(4, 4), resize((coarse[:, 0] + coarse[0]).reshape(2, 2), (4, 4))
    for layers, (u, v) in (({4: 3, 2: 1}, (0.75, 0.25)), ({"4": 3, "2": 1}, (0.75, 0.25)), (None, (0.5, 0.5))):
        found = refined_map(record, seeds, (4, 4), layers)
        np.testing.assert_allclose(found, scaled(u * parts[0] + v * parts[1]), atol=1e-6)
    with pytest.raises(UserError, match="resolution 2"):
        refined_map(record, seeds, (4, 4), {4: 3})


def test_a_percentile_of_r_cuts_spikes_and_dips_off_and_a_hundred_changes_nothing():
    matrix = np.zeros((100, 100), np.float32)
    matrix[0] = matrix[:, 0] = np.arange(100)
    matrix[0, 99] = matrix[99, 0] = 1000  # as a seed's attention to itself
    record, seeds = {"pairs_10": pairs_of(matrix)}, np.array([[0, 0]])
    spiky = refined_map(record, seeds, (10, 10)).ravel()
    assert np.array_equal(spiky, scaled(matrix[0])) and spiky[98] < 0.1
    assert np.array_equal(refined_map(record, seeds, (10, 10), None, 100.0).ravel(), spiky)
    # 1 halfway between the values of rank 89 and 90, which are 89 and 90, 0 halfway between those of rank 9 and 10
    cut = refined_map(record, seeds, (10, 10), None, 100 * 89.5 / 99).ravel()
    np.testing.assert_allclose(cut, (np.clip(np.arange(100), 9.5, 89.5) - 9.5) / 80, atol=1e-6)
    whole, image, _ = scene()
    result = attention_cut(whole, image, CutParams(r_percentile=90.0, tau=0.5), rng())
    assert np.array_equal(result.refined, refined_map(whole, result.boundary, image.shape[:2], None, 90.0))


# --- Eq. 4 ------------------------------------------------------------------------------------------------------------


def test_objectness_by_hand():
    cross, refined = np.array([[0.2, 1.0, 0.0]], np.float32), np.array([[0.4, 1.0, 0.0]], np.float32)
    assert objectness(cross, refined, 2.5).ravel() == pytest.approx([1.2 / 3.5, 0.999, 0.001])
    assert objectness(cross, refined, 0.5, "clip").ravel() == pytest.approx([0.4, 0.999, 0.001])
    assert objectness(cross / 2, refined / 2, 2.5, "max").ravel() == pytest.approx([1.2 / 3.5, 0.999, 0.001])
    assert objectness(cross, None, 2.5).ravel() == pytest.approx([0.2, 0.999, 0.001])
    assert objectness(None, refined, 2.5).ravel() == pytest.approx([0.4, 0.999, 0.001])
    assert objectness(None, refined, 2.5, "clip", eps=0.01).ravel() == pytest.approx([0.99, 0.99, 0.01])


def test_midpoint_moves_the_tie_and_keeps_the_order():
    x = np.linspace(0, 1, 11, dtype=np.float32)[None]
    moved = objectness(x, None, 0, midpoint=0.2, eps=1e-6)
    assert moved[0, [1, 2, 6]] == pytest.approx([0.25, 0.5, 0.75])
    assert (np.diff(moved) > 0).all()
    two = np.array([[0.1, 0.1, 0.1, 0.3, 0.3]], np.float32)
    assert (objectness(two, None, 0, midpoint=0) > 0.5).tolist() == [[False, False, False, True, True]]


def test_unary_by_hand():
    phi = unary(np.array([[0.25]], np.float32))
    assert phi.ravel() == pytest.approx([-np.log(0.75), -np.log(0.25)])


# --- Eq. 5 ------------------------------------------------------------------------------------------------------------


def test_semantic_edges_average_both_directions():
    a = rng().random((9, 9)) * 0.01
    a[0, 1], a[1, 0] = 4.0, 2.0  # right of the first pixel: mean 3
    a[1, 3], a[3, 1] = 1.0, 2.0  # (0,1) and (1,0), down-left: mean 1.5
    edges = semantic_edges({"near_3": near_of(a, 3)}, (3, 3))
    raw = [(a + a.T) / 2]
    values = []
    for d, (dy, dx) in enumerate(FORWARD):
        for y in range(3 - dy):
            for x in range(max(0, -dx), 3 - max(0, dx)):
                pair = raw[0][y * 3 + x, (y + dy) * 3 + x + dx]
                values.append((edges[d][y, min(x, x + dx)], pair))
    found, expected = np.array(values).T
    top = np.percentile(expected, 99)
    np.testing.assert_allclose(found, np.minimum(expected / top, 1), atol=1e-6)
    assert edges[0][0, 0] == 1 and edges[3][0, 0] == pytest.approx(1.5 / top, rel=1e-5)
    assert [len(semantic_edges({"near_3": near_of(a, 3)}, (3, 3), n)) for n in (4, 8)] == [2, 4]


def test_semantic_edges_keep_their_place_at_another_size():
    near = np.zeros((8, 4, 4))
    near[OFFSETS.index((0, 1)), :, 1] = near[OFFSETS.index((0, -1)), :, 2] = 1  # across the vertical middle line
    right = semantic_edges({"near_4": near}, (16, 16), 4)[0]
    assert right.shape == (16, 15) and (right.argmax(1) == 7).all()
    np.testing.assert_allclose(right, right[:, ::-1])  # symmetric about the middle
    assert not any(e.any() for e in semantic_edges({"near_4": np.zeros((8, 4, 4))}, (8, 8)))


def test_coherence_adds_the_terms_that_are_on():
    record, image, _ = scene()
    image = image / 255.0
    both, semantic, spatial = (coherence(record, image, s, d, 0.1) for s, d in ((1, 1), (1, 0), (0, 1)))
    assert coherence(record, image, False, False, 0.1) == ()
    for d in range(4):
        np.testing.assert_allclose(both[d], semantic[d] + spatial[d], rtol=1e-6)
        np.testing.assert_allclose(spatial[d], np.exp(-geodesic(image, 0.1)[d]))
        assert 0 <= both[d].min() and both[d].max() <= 2


# --- Eq. 6 and the whole ----------------------------------------------------------------------------------------------


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_the_cut_finds_the_object_and_reports_its_energy():
    record, image, mask = scene()
    params = CutParams(tau=0.5, midpoint=0)  # of so coarse a map, the rim at 0.16 lies outside the object
    result = attention_cut(record, image, params, rng(), {8: 2, 4: 2})
    assert iou(result.mask, mask) > 0.85 and result.flags == ()
    assert result.mask.shape == (16, 16) and result.mask.dtype == bool
    assert result.objectness.dtype == np.float32 and 0 <= result.objectness.min() and result.objectness.max() <= 1
    phi = unary(objectness(result.cross, result.refined, params.beta, midpoint=0))
    psi = coherence(record, image / 255.0, True, True, params.sigma, 8, {8: 2, 4: 2})
    assert result.energy == pytest.approx(energy(result.mask, phi, psi, params.lambda_), rel=1e-5)
    for other in (result.objectness > 0.5, mask, ~mask, np.zeros_like(mask)):
        assert result.energy <= energy(other, phi, psi, params.lambda_) * (1 + 1e-6)


def test_the_same_rng_gives_the_same_mask_and_another_other_seeds():
    record, image, _ = scene()
    params = CutParams(seeds=3)
    first, again = (attention_cut(record, image, params, rng()) for _ in range(2))
    assert (first.boundary == again.boundary).all() and (first.objectness == again.objectness).all()
    assert (first.mask == again.mask).all() and first.energy == again.energy
    other = attention_cut(record, image, params, np.random.default_rng(SEEDED + 1))
    assert first.boundary.tolist() != other.boundary.tolist()


@pytest.mark.parametrize("size", [0, 8, 24])
@pytest.mark.parametrize("change", ["flip", "turn"])
def test_flipping_or_turning_everything_does_the_same_to_the_mask(size, change):
    params = CutParams(size=size, seeds=10_000, midpoint=0, lambda_=0.5)
    plain = attention_cut(*scene()[:2], params, rng())
    other = attention_cut(*scene(**{change: True})[:2], params, rng())
    for name in ("mask", "objectness", "cross", "refined"):
        x, y = getattr(plain, name), getattr(other, name)
        back = y[:, ::-1] if change == "flip" else y.T
        np.testing.assert_allclose(back.astype(float), x.astype(float), atol=5e-3)
    assert (plain.mask != plain.mask[:, ::-1]).any() and (plain.mask != plain.mask.T).any()


def test_scale_of_the_record_and_order_of_its_arrays_do_not_matter():
    record, image, _ = scene()
    plain = attention_cut(record, image, CutParams(), rng())
    louder = {key: x.astype(np.float32) * 3 for key, x in record.items()}
    for changed in (louder, dict(reversed(record.items()))):
        other = attention_cut(changed, image, CutParams(), rng())
        assert (other.mask == plain.mask).all()
        np.testing.assert_allclose(other.objectness, plain.objectness, atol=1e-5)


def test_a_smooth_map_is_the_same_recorded_at_two_resolutions():
    maps = {}
    for r in (8, 16):
        y, x = (np.mgrid[0:r, 0:r] + 0.5) / r
        maps[r] = cross_map({f"cross_{r}": (x + 2 * y)[None, None]}, (32, 32), 1)
    inner = np.s_[4:-4, 4:-4]
    slope = [np.diff(m[inner], axis=0).mean() / np.diff(m[inner], axis=1).mean() for m in maps.values()]
    assert slope == pytest.approx([2, 2], rel=1e-3)
    np.testing.assert_allclose(maps[8][16, 16], maps[16][16, 16], atol=0.01)


def test_the_mask_does_not_depend_on_the_picture_when_no_term_reads_it():
    record, image, _ = scene()
    params = CutParams(spatial=False)
    one, other = (attention_cut(record, picture, params, rng()) for picture in (image, 255 - image // 3))
    assert (one.mask == other.mask).all() and one.energy == other.energy


def test_switches_do_what_the_equations_say():
    record, image, _ = scene()
    base = CutParams(midpoint=0, lambda_=2.0)
    full = attention_cut(record, image, base, rng())
    off = {"semantic": False, "spatial": False}
    bare = attention_cut(record, image, replace(base, **off), rng())
    assert (bare.mask == (bare.objectness > 0.5)).all()
    assert (attention_cut(record, image, replace(base, lambda_=0.0), rng()).mask == bare.mask).all()
    assert bare.energy == pytest.approx(np.minimum(*unary(bare.objectness)).sum(), rel=1e-5)
    one_off = {attention_cut(record, image, replace(base, **{key: False}), rng()).energy for key in off}
    assert bare.energy < min(one_off) and max(one_off) < full.energy and len(one_off) == 2
    assert attention_cut(record, image, replace(base, threshold=0.8, **off), rng()).mask.sum() < bare.mask.sum()
    only_cross = attention_cut(record, image, replace(base, midpoint=0.5, use_refined=False, **off), rng())
    np.testing.assert_allclose(only_cross.objectness, np.clip(only_cross.cross, 1e-3, 1 - 1e-3))
    assert not len(only_cross.boundary) and not only_cross.refined.any()
    only_refined = attention_cut(record, image, replace(base, midpoint=0.5, use_cross=False, **off), rng())
    np.testing.assert_allclose(only_refined.objectness, np.clip(only_refined.refined, 1e-3, 1 - 1e-3), atol=1e-6)
    assert (full.cross == only_refined.cross).all() and (full.refined == only_refined.refined).all()


def test_arrays_of_terms_that_are_off_may_be_absent():
    record, image, _ = scene()
    cross = {k: x for k, x in record.items() if k.startswith("cross")}
    attention_cut(cross, image, CutParams(use_refined=False, semantic=False), rng())
    for params, name in ((CutParams(semantic=False), "pairs_"), (CutParams(use_refined=False), "near_")):
        with pytest.raises(UserError, match=name):
            attention_cut(cross, image, params, rng())


def test_working_size_and_pictures_that_are_not_square():
    record, image, mask = scene()
    for size in (8, 32):
        result = attention_cut(record, image, CutParams(tau=0.5, size=size, midpoint=0), rng())
        assert result.cross.shape == (size, size) and result.mask.shape == result.objectness.shape == (16, 16)
        assert iou(result.mask, mask) > 0.8
    wide = np.repeat(image, 2, axis=1)
    result = attention_cut(record, wide, CutParams(tau=0.5, midpoint=0), rng())
    assert result.mask.shape == result.cross.shape == (16, 32)
    assert iou(result.mask, np.repeat(mask, 2, axis=1)) > 0.7


def test_what_went_another_way_is_flagged():
    record, image, _ = scene()
    assert attention_cut(record, image, CutParams(tau=1.0), rng()).flags == ("no_boundary",)
    flat = record | {k: np.ones_like(x) for k, x in record.items() if k.startswith("cross")}
    result = attention_cut(flat, image, CutParams(), rng())
    assert result.flags[:2] == ("constant_map", "no_boundary") and result.boundary.tolist() == [[7, 7]]
    flags = attention_cut(flat, image, CutParams(use_refined=False), rng()).flags
    assert flags == ("constant_map", "empty")


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 0}, {"tau": -0.1}, {"tau": 1.1}, {"beta": -1.0}, {"beta": float("nan")}, {"lambda_": -0.1},
        {"seeds": 0}, {"use_cross": False, "use_refined": False}, {"size": 1}, {"size": -8}, {"t_max": 0.0},
        {"t_max": 1.5}, {"r_percentile": 50.0}, {"r_percentile": 100.1}, {"normalise": "mean"}, {"midpoint": 1.0},
        {"eps": 0.0}, {"eps": 0.5}, {"sigma": 0.0}, {"neighbours": 6}, {"threshold": 0.0},
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(values):
    with pytest.raises(UserError, match=f"^attentioncut.{list(values)[-1].rstrip('_')}: expected .*, got"):
        CutParams(**values)


def test_a_wrong_record_or_picture_is_named():
    record, image, _ = scene()
    wrong = {
        "cross_8": record["cross_8"][0],
        "near_8": record["near_8"][:4],
        "pairs_8": record["pairs_8"][:-1],
        "pairs_4": np.full_like(record["pairs_4"], np.nan),
    }
    for key, x in wrong.items():
        with pytest.raises(UserError, match=key):
            attention_cut(record | {key: x}, image, CutParams(), rng())
    with pytest.raises(UserError, match="cross_<r>"):
        attention_cut({}, image, CutParams(), rng())
    with pytest.raises(UserError, match="image: expected"):
        attention_cut(record, image / 255.0, CutParams(), rng())
