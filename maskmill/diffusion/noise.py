"""Gaussian noise that is a function of its seed and place alone, and the forward process q(x_t | x_0)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def keyed_noise(seeds: Sequence[int], shape: Sequence[int], *key: int) -> torch.Tensor:
    """N(0, 1) per sample, (B, *shape) float32 on the CPU.

    A sample's noise depends on its seed and the key and on nothing else: not on the batch, nor on what was drawn before
    it. So a sum over 10 steps is part of the sum over 40, and one noise sample is the first of four.

    Args:
        seeds: one per sample, >= 0.
        key: what the noise is for, such as (t, n), >= 0.
    """
    noise = []
    for seed in seeds:
        number = int(np.random.default_rng([seed, len(key), *key]).integers(2**62))
        noise.append(torch.randn(tuple(shape), generator=torch.Generator().manual_seed(number)))
    return torch.stack(noise)  # (B, *shape)


def diffuse(x0: torch.Tensor, noise: torch.Tensor, abar: float | torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; ``abar`` a number, or (B, 1, 1, 1)."""
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
