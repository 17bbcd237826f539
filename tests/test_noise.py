"""Keyed noise and the forward process."""

from __future__ import annotations

import pytest
import torch

from maskmill.diffusion.noise import diffuse, keyed_noise


def test_noise_depends_on_seed_and_key_alone():
    one = keyed_noise([5, 6, 7], (4, 8, 8), 21, 0)
    assert torch.equal(keyed_noise([7], (4, 8, 8), 21, 0)[0], one[2])
    others = [keyed_noise([5], (4, 8, 8), *key)[0] for key in ((21, 1), (41, 0), (21,), (), (0, 21))]
    assert all(not torch.equal(a, b) for i, a in enumerate([one[0], one[1], *others])
               for b in [one[0], one[1], *others][:i])  # fmt: skip
    large = keyed_noise([1], (4, 64, 64))
    assert abs(float(large.mean())) < 0.03 and float(large.std()) == pytest.approx(1, abs=0.02)


def test_diffusion_keeps_the_variance():
    x, n = torch.tensor([[[[3.0]]]]), torch.tensor([[[[2.0]]]])
    assert float(diffuse(x, n, 0.36)) == pytest.approx(0.6 * 3 + 0.8 * 2)
    assert diffuse(x, n, torch.tensor([0.36]).reshape(1, 1, 1, 1)) == pytest.approx(diffuse(x, n, 0.36))
    assert float(diffuse(x, n, 1.0)) == 3.0
