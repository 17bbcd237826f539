"""One training loop for all that is trained on pairs: decoder, end-to-end nets, the fine-tuned diffusion model.

Devices, processes and mixed precision are ``accelerate``'s: the same script runs alone on a CPU and under ``accelerate
launch`` on many GPUs. What belongs to this project is that a step's rows and its random numbers depend on the seed and
the step alone, so that a run that was killed and resumed ends, on a CPU, with the weights of an undisturbed one. A
batch is made of parts that are the same whichever process computes them, so two parts on two cores
(``maskmill.workers.train_together``) give, to the bit, what one core gives.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskmill.errors import UserError

CHECKPOINT_SECONDS = 60.0
MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}

History = list[dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """``steps`` of Adam on batches of ``batch`` rows.

    Attributes:
        lr: learning rate, constant until the last ``decay_share`` of the steps, over which it falls linearly to zero.
        ema: kept share of the moving average of the weights per step, which is what training returns; 0: no average.
        precision: of the forward pass on a GPU; a CPU always computes in float32.
        accumulate: parts in which a batch is computed, each with random numbers of its own. One process computes them
            one after the other, which saves memory; several share them.
        log_every: steps between two rows of the history, at each of which the validation runs.
    """

    steps: int
    batch: int
    lr: float
    decay_share: float = 0.0
    ema: float = 0.0
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    accumulate: int = 1
    log_every: int = 100

    def rate(self, step: int) -> float:
        """Learning rate of a step, 0 <= step < steps."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.lr * min(1.0, left) if self.decay_share else self.lr


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([17, seed, epoch]).permutation(count)


def rows_of(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """The rows of a step: (batch,) indices below ``count``. Every epoch is a permutation; a batch may span two."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array([_order(seed, int(p) // count, count)[p % count] for p in places])


def accelerator(device: str, precision: str) -> Accelerator:
    """The launcher's view of this process. ``device``: as ``maskmill.cli.runtime`` gives it."""
    on_cpu, threads = device == "cpu", torch.get_num_threads()
    found = Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else MIXED[precision])
    torch.set_num_threads(threads)  # of several processes accelerate would give each a thread per core
    return found


@dataclass
class _Run:
    """How far training is: steps done, the rows so far, and the losses since the last row."""

    step: int = 0
    history: History = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


@dataclass
class _Learner:
    """What training changes: the weights, their average and the optimiser's moments; with ``_Run`` a checkpoint.

    Attributes:
        model: as the launcher wraps it. inner: the caller's own. average: None where ``Recipe.ema`` is 0.
    """

    model: nn.Module
    inner: nn.Module
    average: AveragedModel | None
    optimiser: torch.optim.Optimizer
    accelerator: Accelerator

    @property
    def result(self) -> nn.Module:
        """The model with the weights as they would be returned now."""
        return self.inner if self.average is None else self.average

    def set_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def update(self) -> None:
        """One step along the gradients."""
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.inner)

    def state(self) -> dict[str, Any]:
        average, scaler = self.average, self.accelerator.scaler
        return {"model": self.inner.state_dict(), "average": average.state_dict() if average is not None else None,
                "optimiser": self.optimiser.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None}  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.inner.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def fit(
    model: nn.Module,
    count: int,
    loss_of: Callable[[nn.Module, np.ndarray, torch.Generator], torch.Tensor],
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    stamp: str,
    accelerator: Accelerator,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    bar: Any = None,
) -> History:
    """Train ``model`` in place; it ends in eval mode on the accelerator's device, as float32.

    Args:
        count: training rows.
        loss_of: (model, rows, generator) -> mean loss over those rows; whatever else it draws (times, noise,
            rectangles) comes from the CPU generator, which depends on the seed, the step and the part of the batch.
        checkpoint: file that is rewritten about every minute and read at the start if its stamp is ``stamp``; removed
            never, so a finished run is not repeated.
        stamp: fingerprint of all that decides the result.
        validate: called with the weights as they would be returned; its numbers join the history.
        bar: tqdm-like, ``update`` and ``set_postfix``.

    Returns:
        Rows {step, lr, loss: mean since the last row, and what ``validate`` gave}.

    Raises:
        UserError: the loss is no longer finite, with the step and the learning rate; a batch that cannot be shared
            equally among the processes.
    """
    _check_shares(recipe, accelerator)
    bar = _NoBar() if bar is None else bar
    learner = _prepared(model, recipe, accelerator)
    run = _resume(checkpoint, stamp, learner)
    bar.update(run.step)
    saved_at = time.monotonic()
    learner.model.train()
    for step in range(run.step, recipe.steps):
        learner.set_rate(recipe.rate(step))
        parts = _own_parts(rows_of(seed, step, recipe.batch, count), recipe, accelerator)
        run.recent.append(_step(learner.model, loss_of, parts, (seed, step), accelerator))
        _check_loss(run.recent[-1], step, recipe, checkpoint)
        learner.update()
        run.step = step + 1
        if run.step % recipe.log_every == 0 or run.step == recipe.steps:
            run.history.append(_report(run, recipe.rate(step), learner.result, validate))
            learner.model.train()
            bar.set_postfix(loss=f"{run.history[-1]['loss']:.4f}", refresh=False)
        bar.update(1)
        due = time.monotonic() - saved_at > CHECKPOINT_SECONDS or run.step == recipe.steps
        if accelerator.is_main_process and due:
            _save(checkpoint, stamp, run, learner)
            saved_at = time.monotonic()
    if learner.average is not None:
        learner.inner.load_state_dict(learner.average.module.state_dict())
    learner.inner.eval()
    return run.history


class _NoBar:
    """Stands in for the progress bar that the caller does not want."""

    def update(self, n: int) -> None: ...

    def set_postfix(self, **_: Any) -> None: ...


def _parts(recipe: Recipe, accelerator: Accelerator) -> int:
    """Of a batch, over all processes: at least one for each."""
    return max(recipe.accumulate, accelerator.num_processes)


def _check_shares(recipe: Recipe, accelerator: Accelerator) -> None:
    parts, processes = _parts(recipe, accelerator), accelerator.num_processes
    if recipe.batch % parts or parts % processes:
        raise UserError(f"batch {recipe.batch}: expected equal parts for equal processes, got {parts} parts "
                        f"(accumulate) for {processes}")  # fmt: skip


def _own_parts(rows: np.ndarray, recipe: Recipe, accelerator: Accelerator) -> list[tuple[int, np.ndarray]]:
    """The number and the rows of each part of the batch that is this process's to compute."""
    parts = list(enumerate(np.split(rows, _parts(recipe, accelerator))))
    share = len(parts) // accelerator.num_processes
    return parts[accelerator.process_index * share :][:share]


def _prepared(model: nn.Module, recipe: Recipe, accelerator: Accelerator) -> _Learner:
    """Hand model and optimiser to the launcher, which may wrap both, and start the average."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=recipe.lr, fused=True)  # one pass over each weight instead of ten
    model, optimiser = accelerator.prepare(model, optimiser)
    inner = accelerator.unwrap_model(model)
    average = AveragedModel(inner, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
    return _Learner(model, inner, average, optimiser, accelerator)


def _check_loss(loss: float, step: int, recipe: Recipe, checkpoint: Path) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"step {step + 1} of {recipe.steps}: the loss is {loss} at learning rate {recipe.rate(step):g}; lower the "
            f"rate, the last checkpoint is {checkpoint}"
        )


def _generator(seed: int, step: int, part: int) -> torch.Generator:
    """A part's own generator; dropout, which draws from the global one, gets a seed of the part's too."""
    number = int(np.random.default_rng([19, seed, step, part]).integers(2**62))
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)


def _step(model, loss_of, parts: list[tuple[int, np.ndarray]], key: tuple[int, int], accelerator: Accelerator) -> float:
    """Gradients of one batch, of whose equal parts these are this process's; -> its mean loss over all of them."""
    total = torch.zeros((), device=accelerator.device)
    for part, rows in parts:
        with nullcontext() if part == parts[-1][0] else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = loss_of(model, rows, _generator(*key, part)) / len(parts)
            accelerator.backward(loss)
            total += loss.detach().float()
    return float(accelerator.reduce(total, "mean"))


def _report(run: _Run, rate: float, model: nn.Module, validate) -> dict[str, float]:
    row = {"step": run.step, "lr": rate, "loss": math.fsum(run.recent) / len(run.recent)}
    run.recent = []
    if validate is not None:
        model.eval()
        with torch.no_grad():
            row |= validate(model)
    return row


def _save(path: Path, stamp: str, run: _Run, learner: _Learner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save({"stamp": stamp, **vars(run), **learner.state()}, aside)
    os.replace(aside, path)


def _resume(path: Path, stamp: str, learner: _Learner) -> _Run:
    """Load the checkpoint of this very run, if there is one that can be read."""
    if not path.is_file():
        return _Run()
    try:
        state = torch.load(path, map_location=learner.accelerator.device, weights_only=True)
    except Exception:  # noqa: BLE001 - whatever is wrong with a checkpoint, the run can start afresh
        return _Run()
    if state.get("stamp") != stamp:
        return _Run()
    learner.load(state)
    return _Run(state["step"], state["history"], state["recent"])
