"""DDIM by hand, against diffusers' own schedulers, and there and back."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler

from maskmill.diffusion.sampling import ddim_invert, ddim_sample, guided, multistep_sample

ABAR = torch.tensor([0.81, 0.36, 0.09, 0.04], dtype=torch.float64)  # square roots .9 .6 .3 .2


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def test_one_step_by_hand():
    # From abar .36 to 1 with eps .5: f = (1 - .8 * .5) / .6 = 1.
    assert ddim_sample(lambda x, t: one(0.5), one(1.0), [1], ABAR).item() == pytest.approx(1.0, abs=1e-12)
    # From 1 to abar .36: .6 * 1 + .8 * .5 = 1.
    assert ddim_invert(lambda x, t: one(0.5), one(1.0), [1], ABAR).item() == pytest.approx(1.0, abs=1e-12)


def test_two_steps_by_hand():
    """Times 1 and 3 with eps = x / 2 at time 3 and eps = 1 at time 1."""

    def eps(x, t):
        return x / 2 if t == 3 else one(1.0)

    # t = 3: f = (2 - sqrt(.96) * 1) / .2, x = .6 f + .8 * 1; then t = 1: f = (x - .8) / .6 = the same f.
    f = (2 - 0.96**0.5) / 0.2
    assert ddim_sample(eps, one(2.0), [1, 3], ABAR).item() == pytest.approx(f, rel=1e-12)
    # Up: x_1 = .6 * 2 + .8 * 1 = 2, then eps(x_1, 3) = 1: f = (2 - .8) / .6 = 2, x_3 = .2 * 2 + sqrt(.96).
    assert ddim_invert(eps, one(2.0), [1, 3], ABAR).item() == pytest.approx(0.4 + 0.96**0.5, rel=1e-12)


def test_the_callback_sees_each_step_once_with_the_latent_that_was_predicted_from():
    for walk, order in ((ddim_sample, [3, 2, 0]), (ddim_invert, [0, 2, 3])):
        asked, told = [], []

        def eps(x, t, asked=asked):
            asked.append((t, x.item()))
            return 0.3 * x

        walk(eps, one(1.5), [0, 2, 3], ABAR, lambda t, x, told=told: told.append((t, x.item())))
        assert told == asked and [t for t, _ in told] == order


def test_no_step_changes_nothing():
    assert ddim_sample(lambda x, t: x, one(0.7), [], ABAR).item() == 0.7
    assert ddim_invert(lambda x, t: x, one(0.7), [], ABAR).item() == 0.7


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
            "set_alpha_to_one": True, "steps_offset": 1}  # fmt: skip


def toy(x: torch.Tensor, t: int) -> torch.Tensor:
    """Some smooth, time-dependent 'network'."""
    return torch.tanh(0.7 * x + 0.001 * t) + 0.1 * x.flip(-1)


@pytest.mark.parametrize("steps", [1, 4, 20, 37])
def test_the_reverse_pass_is_diffusers_ddim_step(steps):
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(toy(x, int(t)), t, x, eta=0.0).prev_sample
    times = sorted(int(t) for t in scheduler.timesteps)
    ours = ddim_sample(toy, start, times, scheduler.alphas_cumprod.double())
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, start, rtol=0.1)


@pytest.mark.parametrize("steps", [4, 20])
def test_the_inversion_is_diffusers_inverse_step(steps):
    scheduler = DDIMInverseScheduler.from_config(DDIMScheduler(**SCHEDULE).config)
    scheduler.set_timesteps(steps)
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(toy(x, int(t)), t, x).prev_sample
    times = sorted(int(t) for t in scheduler.timesteps)
    ours = ddim_invert(toy, start, times, scheduler.alphas_cumprod.double())
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-6)


def test_inversion_then_reverse_returns_with_an_error_that_falls_with_the_number_of_steps():
    """Data from N(0, s^2): the exact predictor is eps(x, t) = sqrt(1 - abar) x / (abar s^2 + 1 - abar)."""
    scheduler = DDIMScheduler(**SCHEDULE)
    abar, s2 = scheduler.alphas_cumprod.double(), 0.25

    def eps(x, t):
        a = float(abar[t])
        return (1 - a) ** 0.5 * x / (a * s2 + 1 - a)

    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors, ends = [], []
    for steps in (5, 10, 20, 40, 80):
        scheduler.set_timesteps(steps)
        times = sorted(int(t) for t in scheduler.timesteps)
        noise = ddim_invert(eps, x, times, abar)
        back = ddim_sample(eps, noise, times, abar)
        errors.append(float((back - x).norm() / x.norm()))
        ends.append(float(noise.norm() / x.norm()))
    # First order in the step: halving it about halves the error.
    assert all(1.5 < a / b < 2.6 for a, b in zip(errors, errors[1:], strict=False)), errors
    assert errors[-1] < 0.1
    # The flow's own answer: x_T / x_0 = sqrt((abar_T s^2 + 1 - abar_T) / s^2).
    a = float(abar[times[-1]])
    assert ends[-1] == pytest.approx(((a * s2 + 1 - a) / s2) ** 0.5, rel=0.05)


def test_a_multistep_solver_comes_nearer_than_ddim_with_as_many_steps():
    """Data ~ N(2, 0.5^2), whose best predictor is known."""
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                             timestep_spacing="trailing")  # fmt: skip
    abar = schedule.alphas_cumprod.double()

    def eps(x, t):
        a = abar[t]
        return (1 - a) ** 0.5 * (x - a**0.5 * 2) / (a * 0.25 + 1 - a)

    def times(steps):
        schedule.set_timesteps(steps)
        return sorted(int(t) for t in schedule.timesteps)

    x = torch.tensor([-1.0, 0.0, 1.5], dtype=torch.float64).reshape(3, 1, 1, 1)
    limit = ddim_sample(eps, x, times(1000), abar)
    solver = DPMSolverMultistepScheduler.from_config(schedule.config, algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(40)
    asked = []
    few = multistep_sample(eps, x, solver, lambda t, _: asked.append(t))
    plain = ddim_sample(eps, x, times(40), abar)
    assert (few - limit).abs().max() < 0.55 * (plain - limit).abs().max()
    assert asked == times(40)[::-1]


def test_a_predictor_that_ignores_x_is_inverted_exactly():
    """eps = eps(t): the noise that inversion adds at a step is the very noise that the reverse step removes."""
    abar = DDIMScheduler(**SCHEDULE).alphas_cumprod.double()
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def eps(x, t):
        return torch.full_like(x, (t % 7) / 7)

    times = [1, 201, 401, 601, 801]
    assert torch.allclose(ddim_sample(eps, ddim_invert(eps, x, times, abar), times, abar), x, atol=1e-12)


def _predict(x: torch.Tensor, t: int, condition: torch.Tensor) -> torch.Tensor:
    return torch.sin(x + condition[:, None, None, None]) * (1 + t)


def test_guidance_of_one_is_the_plain_model_bit_for_bit_in_one_call_of_the_plain_batch():
    x, c, n = torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3)
    batches = []

    def counted(x, t, condition):
        batches.append(len(x))
        return _predict(x, t, condition)

    predict = guided(counted, c, n, 1.0, lambda a, b: torch.cat([a, b]))
    assert torch.equal(predict(x, 5), _predict(x, 5, c)) and batches == [3]


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0, 7.5])
def test_guidance_formula(w):
    x, c, n = torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.2, 0.3]), torch.full((3,), -1.0)
    predict = guided(_predict, c, n, w, lambda a, b: torch.cat([a, b]))
    e_c, e_n = _predict(x, 5, c), _predict(x, 5, n)
    assert torch.allclose(predict(x, 5), w * e_c + (1 - w) * e_n, atol=1e-5)


def test_guidance_by_hand():
    """eps_c = 2, eps_n = 1, w = 3: 1 + 3 (2 - 1) = 4."""

    def eps(x, t, condition):
        return condition[:, None, None, None].expand_as(x)

    predict = guided(eps, torch.tensor([2.0]), torch.tensor([1.0]), 3.0, lambda a, b: torch.cat([a, b]))
    assert predict(torch.zeros(1, 1, 1, 1), 0).item() == 4.0
