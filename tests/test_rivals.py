"""K-means, NCut and DenseCRF on features: against slow references, and on pictures whose answer is plain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from maskmill.errors import UserError
from maskmill.masks import rivals
from maskmill.masks.attentioncut import objectness, resize
from maskmill.params import RivalCrf, RivalKMeans, RivalNcut, Rivals

KMEANS = RivalKMeans(
    size=0, scale="centred", components=0, colour=0.0, position=0.0, attention=0.0, clusters=3, keep=0.8
)
NCUT = RivalNcut(
    size=0, scale="centred", colour=0.0, position=0.0, attention=0.0, tau=0.5, eps=1e-3, segments=3, keep=0.8
)
CRF = RivalCrf(
    size=0, scale="centred", components=0, colour=0.0, sigma_xy=0.3, sigma_features=0.3, sigma_smooth=0.1,
    weight_features=3.0, weight_smooth=0.3, midpoint=0.4, eps=0.01, iterations=5,
)  # fmt: skip
EVERY = [("kmeans", KMEANS), ("ncut", NCUT), ("crf", CRF)]


def blocks(side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Ground, and two objects of which the first is named. -> labels (side, side) 0, 1, 2; A_c (side, side)"""
    labels = np.zeros((side, side), int)
    labels[side // 8 : side * 5 // 8, side // 8 : side // 2] = 1
    labels[side * 3 // 8 : side * 7 // 8, side * 5 // 8 : side * 7 // 8] = 2
    rng = np.random.default_rng(5)
    cross = np.choose(labels, (0.05, 0.9, 0.2)) + rng.uniform(-0.05, 0.1, labels.shape)
    cross[labels == 1] *= rng.uniform(0.3, 1, (labels == 1).sum())  # the named object has weak spots
    return labels, np.clip(cross, 0, 1).astype(np.float32)


def features_of(labels: np.ndarray, channels: int = 12, noise: float = 0.1, seed: int = 0) -> dict[str, np.ndarray]:
    """Two levels, each with one vector per label and noise, as the feature store holds them."""
    rng = np.random.default_rng(seed)
    found = {}
    for k, step in ((0, 1), (1, 1), (0, 2)):
        seen = labels[::step, ::step]
        vectors = rng.normal(size=(3, channels * step)) + 1
        x = vectors[seen] + noise * rng.normal(size=(*seen.shape, channels * step))  # (s, s, C)
        found[f"feature_{seen.shape[0]}_{k}"] = np.moveaxis(x, -1, 0).astype(np.float16)
    return found


def grey(height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


# --- what the methods see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["l2", "centred", "standard"])
def test_joined_against_loops_over_cells_and_channels(scale):
    features = {f"feature_{s}_{k}": np.random.default_rng(s + k).normal(2, 1, (c, s, s)).astype(np.float16)
                for s, k, c in ((8, 0, 3), (8, 1, 5), (4, 0, 2))}  # fmt: skip
    got = rivals.joined(features, (8, 6), scale)
    assert got.dtype == np.float32 and got.shape == (48, 10)
    expected = []
    for name in ("feature_8_0", "feature_8_1", "feature_4_0"):
        x = resize(features[name].astype(np.float32), (8, 6)).astype(float)
        out = np.zeros_like(x)
        for c in range(len(x)):
            out[c] = x[c] - (0 if scale == "l2" else x[c].mean())
            if scale == "standard":
                out[c] = out[c] / x[c].std() / np.sqrt(len(x))
        if scale != "standard":
            for i in range(8):
                for j in range(6):
                    out[:, i, j] /= np.sqrt((out[:, i, j] ** 2).sum())
        expected.append(out.reshape(len(x), 48).T / np.sqrt(3))
    np.testing.assert_allclose(got, np.concatenate(expected, 1), atol=2e-5)
    assert (got.astype(float) ** 2).sum(1).mean() == pytest.approx(1, abs=1e-3)


def test_every_level_weighs_the_same_whatever_its_size_and_its_number_of_channels():
    labels, _ = blocks()
    features = features_of(labels)
    louder = {k: (v * 4 if k == "feature_8_0" else v) for k, v in features.items()}
    for scale in ("l2", "centred", "standard"):
        np.testing.assert_allclose(rivals.joined(features, (16, 16), scale),
                                   rivals.joined(louder, (16, 16), scale), atol=1e-4)  # fmt: skip


def test_principal_is_the_singular_value_decomposition_scaled_by_one_number():
    x = np.random.default_rng(0).normal(3, 1, (50, 8)).astype(np.float32) * np.arange(1, 9)
    got = rivals.principal(x, 3, 0)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = u[:, :3] * s[:3]
    expected *= np.sqrt(50 / (s[:3] ** 2).sum())
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-3)
    every = rivals.principal(x, 0, 0)
    assert every.shape == x.shape and (every**2).sum(1).mean() == pytest.approx(1, abs=1e-4)
    assert not rivals.principal(np.full((6, 4), 0.1, np.float32), 2, 0).any()


def test_beside_by_hand():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 255  # black is L = 0, white L = 100
    cross = np.arange(8, dtype=np.float32).reshape(2, 4) / 10
    got = rivals.beside(image, (2, 4), 0.5, 2.0, 3.0, cross).reshape(2, 4, 6)
    np.testing.assert_allclose(got[0, 0], [0, 0, 0, 0.5, 0.25, 0], atol=1e-3)
    np.testing.assert_allclose(got[1, 3], [0.5, 0, 0, 1.5, 1.75, 2.1], atol=1e-3)
    assert rivals.beside(image, (2, 4), 0.0).shape == (8, 0)


def test_squared_distances_against_loops():
    x = np.random.default_rng(0).normal(size=(7, 3))
    expected = [[((a - b) ** 2).sum() for b in x] for a in x]
    np.testing.assert_allclose(rivals.squared_distances(x), expected, atol=1e-12)


def test_working_side_and_what_is_refused():
    labels, cross = blocks()
    features = features_of(labels)
    assert rivals.working_side(features, 0) == 16 and rivals.working_side(features, 8) == 8
    assert rivals.working_side({"feature_96_0": np.zeros((1, 96, 96))}, 0) == 64
    bad = np.array(features["feature_8_0"])
    bad[0, 3, 3] = np.nan
    for wrong, said in (
        ({}, "got none"), ({"records": np.zeros(3)}, "got records"),
        ({"feature_8_0": bad}, "feature_8_0: expected finite"),
        ({"feature_8_0": np.zeros((4, 8, 7))}, r"feature_8_0: expected shape \(C, 8, 8\), got \(4, 8, 7\)"),
    ):  # fmt: skip
        for method, params in EVERY:
            with pytest.raises(UserError, match=said):
                rivals.METHODS[method](wrong, cross, grey(), params)
    for size in (1, 3, 65):
        with pytest.raises(UserError, match=f"from 4 to 64, got {size}"):
            rivals.working_side(features, size)
    with pytest.raises(UserError, match="image: expected"):
        rivals.kmeans(features, cross, np.zeros((8, 8), np.uint8), replace(KMEANS, colour=1.0))


# --- K-means ----------------------------------------------------------------------------------------------------------


def test_named_clusters_by_hand():
    labels = np.array([0, 0, 1, 1, 3, 3])  # cluster 2 is empty
    cross = np.array([0.2, 0.4, 0.8, 1.0, 0.6, 0.7])  # means .3, .9, -, .65
    assert rivals.named(labels, cross, 4, 1.0).tolist() == [False, True, False, False]
    assert rivals.named(labels, cross, 4, 0.7).tolist() == [False, True, False, True]
    assert rivals.named(labels, cross, 4, 0.0).tolist() == [True, True, False, True]


def test_margin_by_hand():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])  # centres .5 and 10.5
    cross = np.array([0.1, 0.1, 0.9, 0.9])
    soft = rivals.margin(x, cross, 2, 1.0, 0)
    np.testing.assert_allclose(soft, [0.5 / 11, 0.5 / 10, 9.5 / 10, 10.5 / 11], rtol=1e-6)
    assert (rivals.margin(x, cross, 2, 0.0, 0) == 1).all()
    assert (rivals.margin(np.zeros((4, 2)), cross, 3, 1.0, 0) == 1).all()  # one cluster, so it is the object
    two = rivals.margin(np.array([[0.0], [0.0], [1.0], [1.0]]), cross, 3, 1.0, 0)  # fewer cells than clusters
    np.testing.assert_allclose(two, [0, 0, 1, 1])


# --- NCut -------------------------------------------------------------------------------------------------------------


def test_affinity_against_loops():
    rng = np.random.default_rng(0)
    x, extra = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(9, 2)).astype(np.float32)
    x[4] = 0
    plain, weighted = rivals.affinity(x, extra[:, :0], 0.2, 0.01), rivals.affinity(x, extra, 0.2, 0.01)
    for i in range(9):
        for j in range(9):
            length = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
            alike = i == j or (length > 0 and x[i] @ x[j] / length > 0.2)
            assert plain[i, j] == (1 if alike else 0.01)
            near = np.exp(-((extra[i].astype(float) - extra[j]) ** 2).sum())
            assert weighted[i, j] == pytest.approx(max(near, 0.01) if alike else 0.01)


@pytest.mark.parametrize("dense_cells", [0, 1000], ids=["Lanczos", "direct"])
def test_eigenvectors_against_the_dense_generalised_solver(monkeypatch, dense_cells):
    monkeypatch.setattr(rivals, "DENSE_CELLS", dense_cells)
    rng = np.random.default_rng(0)
    w = rng.uniform(0.01, 1, (60, 60)) ** 3
    w = w + w.T
    got = rivals.eigenvectors(w, 4)
    d = np.diag(w.sum(1))
    values, expected = eigh(d - w, d)
    assert values[0] == pytest.approx(0, abs=1e-9) and np.ptp(expected[:, 0]) < 1e-9
    for k in range(4):
        y = expected[:, k + 1]
        y = y * np.sign(y[np.abs(y).argmax()])
        np.testing.assert_allclose(got[:, k], y, atol=1e-7)
        assert y @ d @ y == pytest.approx(1)
    assert (got == rivals.eigenvectors(w, 4)).all()


@pytest.mark.parametrize("dense_cells", [0, 1000], ids=["Lanczos", "direct"])
def test_a_graph_of_equal_affinities_has_eigenvectors_too(monkeypatch, dense_cells):
    monkeypatch.setattr(rivals, "DENSE_CELLS", dense_cells)
    y = rivals.eigenvectors(np.ones((20, 20)), 2)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.sum(0), 0, atol=1e-9)  # orthogonal to the first, which is constant
    np.testing.assert_allclose(20 * y.T @ y, np.eye(2), atol=1e-9)


def test_two_way_cut_is_the_second_eigenvector_split_at_its_mean():
    labels, cross = blocks()
    features = features_of(labels, noise=1.0)
    found = rivals.ncut(features, cross, grey(), replace(NCUT, segments=2, tau=0.3))
    x = rivals.joined(features, (16, 16), "centred").astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = np.where(x @ x.T > 0.3, 1.0, 1e-3)
    d = np.diag(w.sum(1))
    y = eigh(d - w, d)[1][:, 1]
    high = (y > y.mean()).reshape(16, 16)
    expected = high if cross[high].mean() > cross[~high].mean() else ~high
    assert 0.05 < expected.mean() < 0.95
    assert (found.mask == expected).all()
    turned = rivals.ncut(features, 1 - cross, grey(), replace(NCUT, segments=2, tau=0.3))
    assert (turned.mask == ~expected).all()
    assert found.soft.min() == 0 and found.soft.max() == 1


def test_a_two_way_cut_cannot_part_three_things_but_more_segments_can():
    labels, cross = blocks()
    features = features_of(labels)
    assert (rivals.ncut(features, cross, grey(), NCUT).mask == (labels == 1)).all()
    assert (rivals.ncut(features, cross, grey(), replace(NCUT, segments=2)).mask != (labels == 1)).any()


# --- DenseCRF ---------------------------------------------------------------------------------------------------------


def slow_crf(o: np.ndarray, kernels: list[tuple[float, np.ndarray]], iterations: int) -> np.ndarray:
    """Mean field of two labels, cell by cell: kernels are (weight, u (n, d)); -> probability of label 1."""
    n = len(o)
    phi = -np.log(np.stack([1 - o, o], 1))  # (n, 2)
    pairwise = np.zeros((n, n))
    for weight, u in kernels:
        k = np.array([[np.exp(-((u[p] - u[q]) ** 2).sum() / 2) for q in range(n)] for p in range(n)])
        for p in range(n):
            for q in range(n):
                if p != q:
                    pairwise[p, q] += weight * k[p, q] / np.sqrt(k[p].sum() * k[q].sum())
    q_now = np.exp(-phi) / np.exp(-phi).sum(1, keepdims=True)
    for _ in range(iterations):
        new = np.zeros_like(q_now)
        for p in range(n):
            for label in (0, 1):
                other = sum(pairwise[p, q] * q_now[q, 1 - label] for q in range(n))
                new[p, label] = np.exp(-phi[p, label] - other)
            new[p] /= new[p].sum()
        q_now = new
    return q_now[:, 1]


@pytest.mark.parametrize("colour", [0.0, 2.0])
def test_crf_against_a_loop_over_pairs_of_cells(colour):
    rng = np.random.default_rng(0)
    features = {"feature_8_0": rng.normal(size=(4, 8, 8)).astype(np.float16)}
    cross = rng.random((5, 6)).astype(np.float32)
    image = rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)
    params = replace(CRF, colour=colour, components=2)
    found = rivals.crf(features, cross, np.asarray(image), params)
    x = np.array([[(i + 0.5) / 5, (j + 0.5) / 6] for i in range(5) for j in range(6)])
    f = rivals.principal(rivals.joined(features, (5, 6), "centred"), 2, 0)
    f = np.concatenate([f, rivals.beside(image, (5, 6), colour)], 1)
    o = objectness(cross, None, 0.0, midpoint=0.4, eps=0.01).ravel().astype(float)
    kernels = [(3.0, np.concatenate([x / 0.3, f / 0.3], 1)), (0.3, x / 0.1)]
    q = slow_crf(o, kernels, 5).reshape(5, 6)
    assert np.abs(q - o.reshape(5, 6)).max() > 0.05  # the neighbours say something
    np.testing.assert_allclose(found.soft, resize(q, (10, 12)), atol=2e-4)
    assert (found.mask == (found.soft > 0.5)).all()


def test_smoothness_messages_are_those_of_the_places_and_symmetric():
    places = np.array([[(i + 0.5) / 5, (j + 0.5) / 7] for i in range(5) for j in range(7)], np.float32)
    dense, quick = rivals.feature_messages(places / 0.2), rivals.smoothness_messages((5, 7), 0.2)
    eye = np.eye(35, dtype=np.float32)
    a, b = (np.stack([message(v) for v in eye], 1) for message in (dense, quick))
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(a, a.T, atol=1e-6)
    assert (np.diag(a) == 0).all() and (a.sum(1) < 1.5).all() and (a > 0).sum() == 35 * 34


def test_without_pairwise_term_the_crf_is_its_unary_term():
    labels, cross = blocks()
    features = features_of(labels)
    alone = replace(CRF, weight_features=0.0, weight_smooth=0.0)
    bent = objectness(cross, None, 0.0, midpoint=0.4, eps=0.01)
    for params in (alone, replace(CRF, iterations=0)):
        np.testing.assert_allclose(rivals.crf(features, cross, grey(), params).soft, bent, atol=1e-6)
    weak = (labels == 1) & (cross < 0.35)
    assert weak.any() and not rivals.crf(features, cross, grey(), alone).mask[weak].any()
    assert rivals.crf(features, cross, grey(), CRF).mask[weak].all()  # what looks alike is labelled alike


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params"), EVERY)
def test_the_named_one_of_two_objects_is_found_whole(method, params):
    labels, cross = blocks()
    features = features_of(labels)
    found = rivals.METHODS[method](features, cross, grey(), params)
    assert (found.mask == (labels == 1)).all()
    assert found.soft.dtype == np.float32 and found.mask.dtype == bool
    assert found.soft.min() >= 0 and found.soft.max() <= 1
    other = np.where(labels == 2, 0.9, np.where(labels == 1, 0.2, 0.05)).astype(np.float32)
    assert (rivals.METHODS[method](features, other, grey(), params).mask == (labels == 2)).all()


@pytest.mark.parametrize(("method", "params"), EVERY)
def test_masks_flip_with_the_picture_and_do_not_depend_on_threads(method, params):
    labels, cross = blocks()
    features = features_of(labels, noise=0.4)
    image = np.random.default_rng(3).integers(0, 256, (40, 24, 3)).astype(np.uint8)
    params = replace(params, colour=0.1)
    first = rivals.METHODS[method](features, cross, image, params)
    with threadpool_limits(1):
        again = rivals.METHODS[method](features, cross, image, params)
    assert (first.soft == again.soft).all() and (first.mask == again.mask).all()
    flipped = {k: v[..., ::-1] for k, v in features.items()}
    turned = rivals.METHODS[method](flipped, np.ascontiguousarray(cross[:, ::-1]), image[:, ::-1], params)
    assert first.mask.shape == (40, 24) and 0.05 < first.mask.mean() < 0.6
    assert (turned.mask[:, ::-1] == first.mask).mean() > 0.995  # K-means starts elsewhere


@pytest.mark.parametrize(("method", "params"), EVERY)
def test_features_of_stable_diffusions_sides_and_a_picture_that_is_no_square(method, params):
    labels, _ = blocks(64)
    rng = np.random.default_rng(0)
    features = {}
    for side, channels in ((16, 320), (32, 160), (64, 80)):
        vectors = rng.normal(size=(3, channels))
        x = vectors[labels[:: 64 // side, :: 64 // side]] + 0.3 * rng.normal(size=(side, side, channels))
        features[f"feature_{side}_0"] = np.moveaxis(x, -1, 0).astype(np.float16)
    cross = resize(np.choose(labels, (0.05, 0.9, 0.2)), (32, 32))
    image = np.random.default_rng(1).integers(0, 256, (90, 140, 3)).astype(np.uint8)
    params = replace(params, tau=0.2) if method == "ncut" else replace(params, components=8)
    found = rivals.METHODS[method](features, cross, image, params)
    truth = resize(labels == 1, (90, 140)) > 0.5
    assert found.mask.shape == found.soft.shape == (90, 140)
    assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.9


@pytest.mark.parametrize(("method", "params"), EVERY)
def test_nothing_is_named_and_nothing_varies(method, params):
    labels, cross = blocks()
    run = rivals.METHODS[method]
    unnamed = run(features_of(labels), np.zeros_like(cross), grey(20, 30), params)
    assert unnamed.soft.shape == (20, 30) and not unnamed.soft.any() and not unnamed.mask.any()
    flat = {k: np.ones_like(v) for k, v in features_of(labels).items()}
    for scale in ("l2", "centred", "standard"):
        found = run(flat, cross, grey(), replace(params, scale=scale))
        assert np.isfinite(found.soft).all() and found.mask.shape == (16, 16)


def test_segment_takes_the_method_that_is_named():
    labels, cross = blocks()
    features = features_of(labels, noise=0.8)
    for method, params in EVERY:
        chosen = Rivals(method=method, kmeans=KMEANS, ncut=NCUT, crf=CRF)
        expected = rivals.METHODS[method](features, cross, grey(), params, 3)
        assert (rivals.segment(features, cross, grey(), chosen, 3).soft == expected.soft).all()
