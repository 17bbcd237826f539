"""The cut against every labelling of small grids, the geodesic distance against Dijkstra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from maskmill.masks.graph import DIRECTIONS, FORWARD, Edges, ends, energy, geodesic, minimum_cut


def slow_energy(mask: np.ndarray, phi: np.ndarray, psi: Edges, lambda_: float) -> float:
    """Eq. 6, pixel by pixel and pair by pair."""
    h, w = mask.shape
    total = 0.0
    for y, x in itertools.product(range(h), range(w)):
        total += phi[int(mask[y, x]), y, x]
        for d in range(len(psi)):
            dy, dx = FORWARD[d]
            if 0 <= y + dy < h and 0 <= x + dx < w and mask[y, x] != mask[y + dy, x + dx]:
                total += lambda_ * psi[d][y, min(x, x + dx)]
    return total


def random_graph(rng: np.random.Generator, h: int, w: int, neighbours: int) -> tuple[np.ndarray, Edges]:
    phi = rng.exponential(1.0, (2, h, w))
    psi = tuple(rng.exponential(1.0, ends(phi[0], d)[0].shape) for d in DIRECTIONS[neighbours])
    return phi, psi


def test_ends_pair_every_pixel_with_the_neighbour_of_its_direction():
    y, x = np.mgrid[0:3, 0:4]
    for d, (dy, dx) in enumerate(FORWARD):
        (py, qy), (px, qx) = ends(y, d), ends(x, d)
        assert py.shape == (3 - dy, 4 - abs(dx))
        assert (qy - py == dy).all() and (qx - px == dx).all()


@pytest.mark.parametrize("neighbours", [4, 8])
def test_the_cut_is_the_best_of_all_512_labellings(neighbours):
    rng = np.random.default_rng(neighbours)
    labellings = [np.array(bits, bool).reshape(3, 3) for bits in itertools.product((0, 1), repeat=9)]
    changed = 0
    for trial in range(40):
        phi, psi = random_graph(rng, 3, 3, neighbours)
        if trial % 4 == 0:
            phi -= 1.0  # costs may be negative
        lambda_ = (0.1, 0.5, 2.0)[trial % 3]
        mask = minimum_cut(phi, psi, lambda_)
        costs = [energy(m, phi, psi, lambda_) for m in labellings]
        assert energy(mask, phi, psi, lambda_) == pytest.approx(min(costs), abs=1e-9)
        changed += (mask != (phi[1] < phi[0])).any()
    assert changed > 10  # the pairwise term had a say


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (3, 4)])
def test_energy_equals_the_sum_over_pixels_and_pairs(shape):
    rng = np.random.default_rng(1)
    phi, psi = random_graph(rng, *shape, 8)
    mask = rng.random(shape) < 0.5
    assert energy(mask, phi, psi, 0.7) == pytest.approx(slow_energy(mask, phi, psi, 0.7))
    cut = minimum_cut(phi, psi, 0.7)
    others = (mask, ~mask, mask | cut, mask & cut)
    assert energy(cut, phi, psi, 0.7) <= min(energy(m, phi, psi, 0.7) for m in others) + 1e-9


def test_foreground_is_where_foreground_is_cheap():
    phi = np.array([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
    psi = (np.ones((2, 1)), np.ones((1, 2)))
    for lambda_ in (0.0, 1.0):
        assert minimum_cut(phi, psi, lambda_).tolist() == [[True, False], [True, False]]
    assert energy(minimum_cut(phi, psi, 1.0), phi, psi, 1.0) == 2.0  # two cut edges
    assert not minimum_cut(np.zeros((2, 2, 2)), psi, 1.0).any()  # ties are background


def test_a_strong_edge_carries_the_label_across_and_a_weak_one_does_not():
    phi = np.array([[[3.0, 0.0]], [[0.0, 1.0]]])  # left wants foreground by 3, right background by 1
    assert minimum_cut(phi, (np.array([[2.0]]), np.zeros((0, 2))), 1.0).tolist() == [[True, True]]
    assert minimum_cut(phi, (np.array([[0.5]]), np.zeros((0, 2))), 1.0).tolist() == [[True, False]]


@pytest.mark.parametrize("neighbours", [4, 8])
def test_geodesic_equals_dijkstra_over_the_whole_picture(neighbours):
    rng = np.random.default_rng(2)
    for image in (rng.random((5, 6, 3)), rng.integers(0, 2, (6, 5, 3)).astype(float)):
        h, w, _ = image.shape
        node = np.arange(h * w).reshape(h, w)
        tails, heads, costs = [], [], []
        for d in DIRECTIONS[neighbours]:
            p, q = (a.ravel() for a in ends(node, d))
            flat = image.reshape(-1, 3)
            tails.append(p), heads.append(q)
            costs.append(np.abs(flat[p] - flat[q]).mean(1) + 1e-12)  # csgraph takes 0 for "no edge"
        data = (np.concatenate(costs), (np.concatenate(tails), np.concatenate(heads)))
        shortest = dijkstra(coo_matrix(data, shape=(h * w, h * w)).tocsr(), directed=False)
        for d, found in enumerate(geodesic(image, 0.2, neighbours)):
            p, q = ends(node, d)
            np.testing.assert_allclose(found, shortest[p, q] / 0.2, atol=1e-6)


def test_geodesic_by_hand():
    image = np.zeros((2, 2, 3))
    image[0, 1] = (0.3, 0.0, 0.0)
    image[1, 0] = (0.0, 0.6, 0.3)
    right, down, down_right, down_left = geodesic(image, 0.1)
    np.testing.assert_allclose(right, [[1.0], [3.0]], rtol=1e-6)
    np.testing.assert_allclose(down, [[3.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(down_right, [[0.0]])
    np.testing.assert_allclose(down_left, [[4.0]], rtol=1e-6)
    assert len(geodesic(image, 0.1, 4)) == 2
