"""One training loop for every small model of the miniature: stateless batches, EMA, checkpoints that resume exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from maskmill.errors import UserError

Curve = list[tuple[int, float]]

CHECKPOINT_SECONDS = 90.0
LOG_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """``steps`` of AdamW: linear warm-up, constant ``lr``, linear decay to zero over the last ``decay_share``.

    Because the rate is constant until the decay, a run can be made longer and resumed from its checkpoint as long as
    that checkpoint lies before the decay of the shorter run.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    decay_share: float = 0.2
    ema: float = 0.999

    @property
    def decay_from(self) -> int:
        """The first step of the decay."""
        return int(self.steps * (1 - self.decay_share))

    def rate(self, step: int) -> float:
        """Learning rate of a step, 0 <= step < steps."""
        if step >= self.decay_from:
            return self.lr * (self.steps - step) / max(1, self.steps - self.decay_from)
        return self.lr * min(1.0, (step + 1) / self.warmup)


def batch_rng(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators that depend on the step alone, so that a resumed run draws what the undisturbed one would have."""
    rng = np.random.default_rng([seed, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def share() -> slice:
    """This process's part of a batch: all of it alone, every n-th row among n processes of torchrun or accelerate."""
    return slice(dist.get_rank(), None, dist.get_world_size()) if dist.is_initialized() else slice(None)


def join_launcher() -> bool:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started. -> whether this one writes the files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpu = torch.cuda.is_available() and os.environ.get("MASKMILL_DEVICE", "cuda").startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """The first process goes through the block and leaves its files; then the others go through it and find them."""
    alone = not dist.is_initialized()
    if not alone and dist.get_rank() > 0:
        dist.barrier()
    yield
    if not alone and dist.get_rank() == 0:
        dist.barrier()


@torch.no_grad()
def _average_gradients(model: nn.Module) -> None:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], torch.Tensor],
    schedule: Schedule,
    checkpoint: Path,
    device: torch.device,
    half: bool,
) -> Curve:
    """Train ``model`` in place and leave the exponential moving average of its weights in it.

    Args:
        loss_of: (model, step) -> scalar loss; draws its whole batch from ``batch_rng``, never from a global generator,
            and computes the mean over the rows of ``share()``; gradients are averaged over the processes.
        checkpoint: file that is rewritten about every 90 s and read at the start when it exists.
        half: run the forward pass under bfloat16 autocast; weights and optimiser stay in float32.

    Returns:
        The loss curve as (step, mean loss of the last ``LOG_EVERY`` steps).

    Raises:
        UserError: the loss is no longer finite; names the step and the learning rate.
    """
    model.to(device).train()
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.01)
    start, curve, recent = 0, [], []
    state = _usable(checkpoint, schedule, device)
    if state is not None:
        model.load_state_dict(state["model"])
        average, start, curve, recent = state["average"], state["step"], state["curve"], state["recent"]
        optimiser.load_state_dict(state["optimiser"])
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    saved_at = time.monotonic()
    writes = not dist.is_initialized() or dist.get_rank() == 0
    bar = tqdm(range(start, schedule.steps), desc=name, initial=start, total=schedule.steps, unit="step", mininterval=2,
               disable=not writes)  # fmt: skip
    for step in bar:
        rate = schedule.rate(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model, step)
        loss.backward()
        value = _mean_over_processes(loss.detach())
        if dist.is_initialized():
            _average_gradients(model)
        if not np.isfinite(value):
            raise UserError(f"{name}: loss is {value} at step {step} with learning rate {rate:g}; lower pretrain.*.lr")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        keep = min(schedule.ema, (1 + step) / (10 + step))
        _update_average(average, model, keep)
        recent.append(value)
        if (step + 1) % LOG_EVERY == 0:
            curve.append((step + 1, float(np.mean(recent))))
            recent = []
            bar.set_postfix(loss=f"{curve[-1][1]:.4f}", refresh=False)
        if writes and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            _save(checkpoint, model, average, optimiser, schedule, step + 1, curve, recent)
            saved_at = time.monotonic()
    if writes:
        _save(checkpoint, model, average, optimiser, schedule, schedule.steps, curve, recent)
    model.load_state_dict(average)
    model.eval()
    return curve


def _mean_over_processes(value: torch.Tensor) -> float:
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], model: nn.Module, keep: float) -> None:
    state = model.state_dict()
    floats = [k for k, v in state.items() if v.is_floating_point()]
    torch._foreach_lerp_([average[k] for k in floats], [state[k] for k in floats], 1 - keep)


def _usable(path: Path, schedule: Schedule, device: torch.device) -> dict | None:
    """The checkpoint at ``path`` if this schedule, undisturbed, would have passed through it."""
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    written_by = (state["steps"], state["decay_from"])
    same = written_by == (schedule.steps, schedule.decay_from)
    return state if same or state["step"] <= min(schedule.decay_from, state["decay_from"]) else None


def _save(path: Path, model, average, optimiser, schedule: Schedule, step: int, curve: list, recent: list) -> None:
    state = {"model": model.state_dict(), "average": average, "optimiser": optimiser.state_dict(), "step": step,
             "steps": schedule.steps, "decay_from": schedule.decay_from, "curve": curve, "recent": recent}  # fmt: skip
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    os.replace(aside, path)
