"""The pixel graph of a cut: its edges, the geodesic distance along them, the energy of a mask and its minimum.

Values on edges are kept as one array per direction (``Edges``): ``edges[d]`` holds one number for every pair of
neighbours (p, q) with q = p + FORWARD[d], each undirected pair once, in the row-major order of the pair. ``ends`` gives
the two views of a pixel array that belong to it, so what is computed on pairs is written once for all directions.
"""

from __future__ import annotations

import maxflow
import numpy as np

FORWARD = ((0, 1), (1, 0), (1, 1), (1, -1))  # (dy, dx): right, down, down-right, down-left
DIRECTIONS = {4: (0, 1), 8: (0, 1, 2, 3)}  # neighbourhood -> indices into FORWARD

Edges = tuple[np.ndarray, ...]


def ends(x: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of every edge of direction ``d``.

    Args:
        x: (..., h, w), any dtype.
        d: index into ``FORWARD``.

    Returns:
        Two views (..., h - dy, w - |dx|): x at p and x at q = p + FORWARD[d].
    """
    if d == 0:
        return x[..., :, :-1], x[..., :, 1:]
    if d == 1:
        return x[..., :-1, :], x[..., 1:, :]
    if d == 2:
        return x[..., :-1, :-1], x[..., 1:, 1:]
    return x[..., :-1, 1:], x[..., 1:, :-1]


def geodesic(image: np.ndarray, sigma: float, neighbours: int = 8) -> Edges:
    """D(p, q) of Eq. 5 between neighbouring pixels: the least integral of |grad I . v| ds over all paths from p to q.

    On the pixel graph a step from a to b costs ||I(a) - I(b)||, the change of colour along it. That is a norm, so by
    the triangle inequality every detour p, a, b, ..., q costs at least ||I(p) - I(q)||, which is the cost of the
    direct edge. Between neighbours the minimum over all paths is therefore the direct edge itself, exactly and without
    a search. (A continuous path integrates the same norm of the change and is bounded in the same way.)

    Our choices where the paper is silent: the change is the mean of the absolute changes of R, G and B (the colours as
    they are, gamma-encoded), and I is measured in units of ``sigma``: a change by sigma of the full range is worth
    D = 1. Without such a unit D <= 1 always and exp(-D) would hardly tell an edge from texture.

    Args:
        image: (h, w, 3) float, 0..1.
        sigma: colour change that counts as distance 1, above 0.
        neighbours: 4 or 8.

    Returns:
        Edges, float32, 0..1/sigma.
    """
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)  # (3, h, w)
    pairs = (ends(channels, d) for d in DIRECTIONS[neighbours])
    return tuple(np.abs(p - q).mean(0) * np.float32(1 / sigma) for p, q in pairs)


def energy(mask: np.ndarray, phi: np.ndarray, psi: Edges, lambda_: float) -> float:
    """E(M) of Eq. 6: sum over p of phi(p) + lambda * sum over neighbours with M(p) != M(q) of psi(p, q).

    Args:
        mask: (h, w) bool, True is foreground.
        phi: (2, h, w): cost of the label background, cost of the label foreground.
        psi: 2 (right, down) or 4 arrays of ``Edges``; an empty tuple is no pairwise term.
        lambda_: weight of the pairwise term, at least 0.
    """
    cost = float(np.where(mask, phi[1], phi[0]).sum(dtype=np.float64))
    for d, weights in enumerate(psi):
        p, q = ends(mask, d)
        cost += lambda_ * float(weights[p != q].sum(dtype=np.float64))
    return cost


def minimum_cut(phi: np.ndarray, psi: Edges, lambda_: float) -> np.ndarray:
    """The mask of least energy (Eq. 6), by a minimum cut of the pixel graph.

    A pixel whose labels cost the same, and that no neighbour pulls, becomes background.

    Args:
        phi, psi, lambda_: as in ``energy``; psi must not be negative, phi may.

    Returns:
        (h, w) bool.
    """
    _, h, w = phi.shape
    # Only the difference of the two costs matters; without the common part less flow has to be pushed.
    common = phi.min(0)
    background, foreground = (np.asarray(phi[label] - common, np.float64) for label in (0, 1))
    if lambda_ == 0 or not psi:
        return foreground < background
    graph = maxflow.GraphFloat(h * w, len(psi) * h * w)
    nodes = graph.add_grid_nodes((h, w))
    for d, weights in enumerate(psi):
        p, q = ends(nodes, d)
        capacity = lambda_ * weights.ravel().astype(np.float64)
        graph.add_edges(p.ravel(), q.ravel(), capacity, capacity)
    # A node on the sink side is cut from the source and pays the source's capacity. get_grid_segments is True on
    # the sink side, so the sink side is made the foreground.
    graph.add_grid_tedges(nodes, foreground, background)
    graph.maxflow()
    return graph.get_grid_segments(nodes)
