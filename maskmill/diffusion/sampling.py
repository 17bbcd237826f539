"""DDIM sampling and inversion (DiffusionSeg, Eq. 7; eta = 0) as pure functions of a noise predictor, and sampling by a
solver of diffusers.

``eps(x, t)`` returns the predicted noise for latents x (B, C, h, w) at integer time t. ``abar`` holds the cumulative
products of the noise schedule, ``timesteps`` is ascending. A callback is the only hook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import SchedulerMixin

Predictor = Callable[[torch.Tensor, int], torch.Tensor]
Callback = Callable[[int, torch.Tensor], None]


def _move(x: torch.Tensor, eps: torch.Tensor, a_from: float, a_to: float) -> torch.Tensor:
    """x_{t'} = sqrt(abar_t') f + sqrt(1 - abar_t') eps with f = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)"""
    f = (x - (1 - a_from) ** 0.5 * eps) / a_from**0.5
    return a_to**0.5 * f + (1 - a_to) ** 0.5 * eps


def ddim_sample(
    eps: Predictor, x: torch.Tensor, timesteps: Sequence[int], abar: torch.Tensor, callback: Callback | None = None
) -> torch.Tensor:
    """Deterministic reverse pass x_T -> x_0. ``callback(t, x_t)`` is called after each prediction."""
    times = list(timesteps)
    for i in range(len(times) - 1, -1, -1):
        e = eps(x, times[i])
        if callback is not None:
            callback(times[i], x)
        a_to = float(abar[times[i - 1]]) if i > 0 else 1.0
        x = _move(x, e, float(abar[times[i]]), a_to)
    return x


def multistep_sample(
    eps: Predictor, x: torch.Tensor, scheduler: SchedulerMixin, callback: Callback | None = None
) -> torch.Tensor:
    """Reverse pass x_T -> x_0 by a deterministic diffusers scheduler that takes predicted noise and whose time steps
    are set (DPM-Solver++ in OVDiff). It keeps its last predictions, so every call needs one of its own."""
    for time in scheduler.timesteps:
        t = int(time)
        e = eps(x, t)
        if callback is not None:
            callback(t, x)
        x = scheduler.step(e, time, x).prev_sample
    return x


def ddim_invert(
    eps: Predictor, x: torch.Tensor, timesteps: Sequence[int], abar: torch.Tensor, callback: Callback | None = None
) -> torch.Tensor:
    """Deterministic forward pass x_0 -> x_T: the reverse pass's steps run backwards.

    The step from t_{i-1} to t_i would need the noise at the unknown x_{t_i}; as in DDIM it is predicted at the known
    x_{t_{i-1}} instead, with the time of the step's target, so that every t_1 .. t_T is visited once.
    """
    times = list(timesteps)
    for i, t in enumerate(times):
        e = eps(x, t)
        if callback is not None:
            callback(t, x)
        a_from = float(abar[times[i - 1]]) if i > 0 else 1.0
        x = _move(x, e, a_from, float(abar[t]))
    return x


def guided(
    eps: Callable[[torch.Tensor, int, object], torch.Tensor], condition, negative, w: float, join: Callable
) -> Predictor:
    """Classifier-free guidance eps_n + w (eps_c - eps_n) in one call on the joined batch [negative, condition].

    w = 1 is the plain conditional model and costs one half.
    """
    if w == 1.0:
        return lambda x, t: eps(x, t, condition)
    both = join(negative, condition)

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        e_n, e_c = eps(torch.cat([x, x]), t, both).chunk(2)
        return e_n + w * (e_c - e_n)

    return predict
