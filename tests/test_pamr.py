"""PAMR beside loops over pixels and neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskmill.errors import UserError
from maskmill.masks.pamr import pamr


def slow(masks: np.ndarray, image: np.ndarray, iterations: int, dilations) -> np.ndarray:
    k, h, w = masks.shape
    x = image.astype(np.float64) / 255
    weights = {}
    for r in range(h):
        for c in range(w):
            places = [(min(max(r + d * dy, 0), h - 1), min(max(c + d * dx, 0), w - 1))
                      for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]  # fmt: skip
            score = []
            for place in places:
                of_colours = []
                for channel in range(3):
                    values = [x[p][channel] for p in places] + [x[r, c][channel]] * len(dilations)
                    mean = sum(values) / len(values)
                    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
                    of_colours.append(-abs(x[r, c][channel] - x[place][channel]) / (1e-8 + 0.1 * sigma))
                score.append(sum(of_colours) / 3)
            exps = [math.exp(s - max(score)) for s in score]
            weights[r, c] = [(p, e / sum(exps)) for p, e in zip(places, exps, strict=True)]
    m = masks.astype(np.float64)
    for _ in range(iterations):
        new = np.zeros_like(m)
        for (r, c), near in weights.items():
            for p, weight in near:
                new[:, r, c] += weight * m[:, p[0], p[1]]
        m = new
    return m


def example(seed: int = 0, shape=(6, 7)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((2, *shape)).astype(np.float32), rng.integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize(("iterations", "dilations"), [(1, (1,)), (3, (1, 2)), (2, (1, 2, 4, 8, 12, 24)), (1, (5, 3))])
def test_beside_loops(iterations, dilations):
    masks, image = example()
    assert pamr(masks, image, iterations, dilations).numpy() == pytest.approx(
        slow(masks, image, iterations, dilations), abs=1e-5
    )


def test_a_mask_follows_the_colours():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 9:] = (200, 180, 40)
    image += np.random.default_rng(0).integers(0, 6, image.shape, np.uint8)
    mask = np.zeros((1, 20, 20), np.float32)
    mask[0, :, 11:] = 1  # two columns short of the edge
    refined = pamr(mask, image)[0].numpy()
    assert (refined[:, 9:] > 0.5).all() and (refined[:, :9] < 0.5).all()


def test_means_stay_means():
    masks, image = example(1, (9, 8))
    masks = np.concatenate([masks, 1 - masks.sum(0, keepdims=True)])
    refined = pamr(masks, image, 4)
    assert refined.sum(0).numpy() == pytest.approx(np.ones((9, 8)), abs=1e-5)
    assert refined.min() >= masks.min() - 1e-6 and refined.max() <= masks.max() + 1e-6
    assert (pamr(masks, image, 0).numpy() == masks).all()
    assert pamr(masks, image[:, ::-1], 2).shape == (3, 9, 8)
    mirrored = pamr(np.ascontiguousarray(masks[:, :, ::-1]), np.ascontiguousarray(image[:, ::-1]), 3)
    assert mirrored.flip(2).numpy() == pytest.approx(pamr(masks, image, 3).numpy(), abs=1e-5)


def test_a_picture_of_one_colour_blurs():
    mask = np.zeros((1, 5, 5), np.float32)
    mask[0, 2, 2] = 8
    flat = pamr(mask, np.full((5, 5, 3), 9, np.uint8), 1, (1,))[0]
    assert flat[1:4, 1:4].numpy() == pytest.approx(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))


def test_what_is_refused():
    masks, image = example()
    with pytest.raises(UserError, match="expected masks .K, h, w. and a picture .h, w, 3. of one size"):
        pamr(masks, image[:-1])
    with pytest.raises(UserError, match="of one size"):
        pamr(masks[0], image)
    for wrong in ((), (0,), (1, -2)):
        with pytest.raises(UserError, match="expected dilations of at least 1"):
            pamr(torch.from_numpy(masks), image, 1, wrong)
