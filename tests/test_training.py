"""The training loop against a plain loop, resumed anywhere, in parts, in two processes; and what stops it."""

from __future__ import annotations

import copy
import math
import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from maskmill import training, workers
from maskmill.errors import UserError
from maskmill.training import Recipe
from tests.running import server

COUNT, STEPS = 11, 9
RECIPE = Recipe(STEPS, 4, 0.05, decay_share=0.5, ema=0.8, log_every=4)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((COUNT, 3)).astype(np.float32))
    return x, (x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3).tanh()


def small(norm: bool = True, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(5)
    layers = [nn.Linear(3, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)]
    return nn.Sequential(*layers)


def noisy_loss(model: nn.Module, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """Squared error, with noise from the step's generator on the inputs."""
    x, y = data()
    noise = 0.1 * torch.randn(len(rows), 3, generator=generator)
    return (model(x[rows] + noise) - y[rows]).pow(2).mean()


def plain_loss(model: nn.Module, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    x, y = data()
    return (model(x[rows]) - y[rows]).pow(2).mean()


def fit(
    folder: Path, model: nn.Module, recipe: Recipe = RECIPE, loss_of=noisy_loss, seed: int = 3, stamp: str = "s", **more
) -> training.History:
    return training.fit(model, COUNT, loss_of, recipe, seed=seed, checkpoint=folder / "deep/c.pt", stamp=stamp,
                        accelerator=training.accelerator("cpu", recipe.precision), **more)  # fmt: skip


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# --- which rows, which rate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch"), [(11, 4), (8, 4), (3, 7), (1, 2)])
def test_every_epoch_has_each_row_once(count, batch):
    epochs = 4
    drawn = np.concatenate([training.rows_of(0, s, batch, count) for s in range(-(-epochs * count // batch))])
    parts = [drawn[k * count : (k + 1) * count].tolist() for k in range(epochs)]
    assert all(sorted(part) == list(range(count)) for part in parts)
    assert count < 8 or len({tuple(part) for part in parts}) == epochs


def test_rows_depend_on_seed_and_step_alone():
    late = training.rows_of(2, 40, 4, 11)
    training.rows_of(2, 0, 4, 11)
    assert late.shape == (4,) and np.array_equal(training.rows_of(2, 40, 4, 11), late)
    assert not np.array_equal(training.rows_of(3, 40, 4, 11), late)


def test_the_rate_is_constant_and_then_falls_linearly_to_zero():
    recipe = Recipe(10, 4, 0.8, decay_share=0.4)  # the last four steps: 4/4, 3/4, 2/4, 1/4
    assert [recipe.rate(s) for s in range(10)] == pytest.approx([0.8] * 7 + [0.6, 0.4, 0.2])
    assert [replace(recipe, decay_share=1.0).rate(s) for s in (0, 5, 9)] == pytest.approx([0.8, 0.4, 0.08])
    assert {replace(recipe, decay_share=0.0).rate(s) for s in range(10)} == {0.8}
    assert replace(recipe, steps=3, decay_share=0.1).rate(2) == 0.8  # less than one step of decay is none


# --- against a plain loop ---------------------------------------------------------------------------------------------


def test_fit_is_adam_on_those_rows_and_returns_the_average_weights(tmp_path):
    model, seen = small(dropout=0.0), []
    history = fit(tmp_path, model, loss_of=plain_loss, validate=lambda m: {"mode": float(m.training),
                  "weight": float(next(m.parameters())[0, 0])})  # fmt: skip
    theirs = small(dropout=0.0)
    optimiser, average = torch.optim.Adam(theirs.parameters()), None
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RECIPE.rate(step)
        optimiser.zero_grad()
        loss = plain_loss(theirs, training.rows_of(3, step, 4, COUNT), None)
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
        now = copy.deepcopy(theirs.state_dict())
        for name, _ in theirs.named_parameters():  # the norm's running statistics are not averaged
            now[name] = 0.8 * average[name] + 0.2 * now[name] if average else now[name]
        average = now
        if step == 3:
            middle = float(now["0.weight"][0, 0])
    assert not model.training
    for name, value in model.state_dict().items():
        if name not in ("0.bias", "1.running_mean"):  # the norm takes that bias away: its gradient is rounding alone,
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)  # which Adam scales to full steps
    assert not torch.allclose(average["0.weight"], theirs.state_dict()["0.weight"], atol=1e-3)
    assert [row["step"] for row in history] == [4, 8, 9]
    assert [row["lr"] for row in history] == [RECIPE.rate(s) for s in (3, 7, 8)]
    means = [np.mean(seen[:4]), np.mean(seen[4:8]), seen[8]]
    assert [row["loss"] for row in history] == pytest.approx(means, rel=1e-5)
    assert [row["mode"] for row in history] == [0.0] * 3  # validated in eval mode, on the average weights
    assert history[0]["weight"] == pytest.approx(middle, rel=1e-5)
    assert history[2]["weight"] == float(model.state_dict()["0.weight"][0, 0])


def test_without_an_average_the_last_weights_are_returned_and_validation_leaves_training_as_it_is(tmp_path):
    models = [small(), small()]
    plain = replace(RECIPE, ema=0.0)
    first = fit(tmp_path / "a", models[0], plain)
    second = fit(tmp_path / "b", models[1], replace(plain, log_every=2), validate=lambda m: {"v": float(m.training)})
    assert same(*models) and len(first) == 3 and [row["v"] for row in second] == [0.0] * 5


def test_frozen_weights_stay(tmp_path):
    model = small()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    fit(tmp_path, model)
    after = model.state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"]) and not torch.equal(before["4.weight"], after["4.weight"])


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(tmp_path, parts):
    whole, split = small(norm=False, dropout=0.0), small(norm=False, dropout=0.0)
    a = fit(tmp_path / "a", whole, loss_of=plain_loss)
    b = fit(tmp_path / "b", split, replace(RECIPE, accumulate=parts), plain_loss)
    for x, y in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert [row["loss"] for row in a] == pytest.approx([row["loss"] for row in b], rel=1e-5)


def test_seed_rows_dropout_and_noise_decide_and_the_global_generator_does_not(tmp_path):
    models = [small() for _ in range(4)]
    fit(tmp_path / "a", models[0])
    torch.manual_seed(99)
    fit(tmp_path / "b", models[1], replace(RECIPE, precision="bfloat16"))  # on a GPU; a CPU computes in float32
    assert same(models[0], models[1])
    fit(tmp_path / "c", models[2], seed=4)
    assert not same(models[0], models[2])
    fit(tmp_path / "d", models[3], loss_of=plain_loss)
    assert not same(models[0], models[3])


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def dies_at(step: int, loss_of=noisy_loss):
    """A loss that ends the run in its (step + 1)-th call."""
    calls = []

    def loss(model, rows, generator):
        calls.append(rows)
        if len(calls) > step:
            raise Killed
        return loss_of(model, rows, generator)

    return loss


@pytest.fixture
def always_saved(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)


@pytest.mark.parametrize("ema", [0.8, 0.0])
@pytest.mark.parametrize("moment", [1, 3, 4, 6, 8])
def test_killed_and_resumed_anywhere_is_the_undisturbed_run_bit_for_bit(tmp_path, always_saved, moment, ema):
    """With dropout, running statistics, noise, the average, Adam's moments, and means over steps before the kill."""
    recipe = replace(RECIPE, ema=ema)

    def validate(model):
        return {"val": float(noisy_loss(model, np.arange(COUNT), torch.Generator().manual_seed(0)))}

    whole = small()
    history = fit(tmp_path / "whole", whole, recipe, validate=validate)
    with pytest.raises(Killed):
        fit(tmp_path, small(), recipe, dies_at(moment), validate=validate)
    torch.manual_seed(moment)
    other = nn.Sequential(*(copy.deepcopy(layer) for layer in small()))
    for p in other.parameters():
        p.data.normal_()  # what it starts from no longer matters
    left = dies_at(STEPS - moment)
    assert fit(tmp_path, other, recipe, left, validate=validate) == history
    assert same(whole, other) and not other.training


def test_killed_twice_and_a_last_save_that_was_never_finished(tmp_path, always_saved):
    whole = small()
    fit(tmp_path / "whole", whole)
    for part in (2, 3):
        with pytest.raises(Killed):
            fit(tmp_path, small(), loss_of=dies_at(part))
    (tmp_path / "deep/c.part").write_bytes(b"half")
    model = small()
    fit(tmp_path, model, loss_of=dies_at(STEPS - 5))
    assert same(whole, model)


def test_a_finished_run_is_not_repeated(tmp_path):
    model, again = small(), small()
    history = fit(tmp_path, model)
    assert fit(tmp_path, again, loss_of=dies_at(0)) == history and same(model, again)


@pytest.mark.parametrize("damage", ["another run's", "cut", "text", "pickle"])
def test_a_checkpoint_of_another_run_or_a_broken_one_is_not_used(tmp_path, damage):
    path = tmp_path / "deep/c.pt"
    fit(tmp_path, small(), stamp="old" if damage == "another run's" else "s", seed=8)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_bytes(b"no checkpoint")
    elif damage == "pickle":
        torch.save({"stamp": "s", "step": Recipe(1, 1, 1.0)}, path)  # an object: not what weights_only admits
    fresh, model = small(), small()
    fit(tmp_path / "fresh", fresh)
    fit(tmp_path, model)
    assert same(fresh, model)


def test_checkpoints_are_a_minute_apart_and_at_the_end(tmp_path, monkeypatch):
    clock, saved = iter(range(0, 10_000, 25)), []
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(training, "_save", lambda path, stamp, run, *rest: saved.append(run.step))
    fit(tmp_path, small())
    assert saved[-1] == STEPS and 2 < len(saved) < STEPS


def test_progress_goes_on_where_the_run_was(tmp_path, always_saved):
    class Bar:
        def __init__(self):
            self.steps, self.said = [], []

        def update(self, n):
            self.steps.append(n)

        def set_postfix(self, **facts):
            self.said.append(facts["loss"])

    with pytest.raises(Killed):
        fit(tmp_path, small(), loss_of=dies_at(5))
    bar = Bar()
    history = fit(tmp_path, small(), bar=bar)
    assert bar.steps == [5, 1, 1, 1, 1]
    assert bar.said == [f"{row['loss']:.4f}" for row in history[1:]]


# --- what stops it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_rate_and_checkpoint(tmp_path, value):
    calls = []

    def breaks(model, rows, generator):
        calls.append(1)
        return noisy_loss(model, rows, generator) * (value if len(calls) == 8 else 1.0)

    with pytest.raises(UserError, match=rf"step 8 of 9: the loss is {value} at learning rate 0.0222222; ") as error:
        fit(tmp_path, small(), loss_of=breaks)
    assert str(tmp_path / "deep/c.pt") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 3), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, batch, accumulate):
    said = rf"batch {batch}: expected equal parts for equal processes, got {accumulate} parts \(accumulate\) for 1"
    with pytest.raises(UserError, match=said):
        fit(tmp_path, small(), replace(RECIPE, batch=batch, accumulate=accumulate))


# --- several processes ------------------------------------------------------------------------------------------------


def one_of_two(rank: int, folder: Path, port: int) -> None:
    """What ``accelerate launch`` starts: trains its share of every batch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    torch.set_num_threads(1)
    model, seen, refused = small(norm=False, dropout=0.0), [], ""

    def loss_of(model, rows, generator):
        seen.append(rows.tolist())
        return plain_loss(model, rows, generator)

    history = fit(folder, model, loss_of=loss_of)
    try:
        fit(folder, model, replace(RECIPE, batch=3))
    except UserError as error:
        refused = str(error)
    state = {"history": history, "model": model.state_dict(), "refused": refused, "rows": seen}
    torch.save(state, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_train_what_one_does(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = server()
    processes = [context.Process(target=one_of_two, args=(rank, tmp_path, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    one = small(norm=False, dropout=0.0)
    history = fit(tmp_path / "one", one, loss_of=plain_loss)
    both = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for step in range(STEPS):
        shares = [two["rows"][step] for two in both]
        assert [len(share) for share in shares] == [2, 2]
        assert sorted(sum(shares, [])) == sorted(training.rows_of(3, step, 4, COUNT))
    for two in both:
        assert two["refused"].endswith("got 2 parts (accumulate) for 2")
        assert [row["loss"] for row in two["history"]] == pytest.approx([row["loss"] for row in history], rel=1e-5)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-6)


def two_on_cores(folder: Path, damage: str) -> None:
    """Trains in two forked processes and then goes on from what they left, as a stage does; or says what stopped it."""
    torch.set_num_threads(1)
    model, calls = small(norm=False), []

    def loss_of(model, rows, generator):
        calls.append(rows.tolist())
        if damage == "error" and len(calls) == 3:
            raise UserError("rows: expected better ones")
        if damage == "death" and len(calls) == 3:
            os.kill(os.getpid(), 9)
        return noisy_loss(model, rows, generator)

    def train() -> training.History:
        return fit(folder, model, replace(RECIPE, accumulate=2), loss_of)

    try:
        workers.train_together(2, train)
        state = {"history": train(), "model": model.state_dict(), "calls": len(calls)}
    except UserError as error:
        state = {"refused": str(error)}
    torch.save(state, folder / "state.pt")


def run_on_cores(folder: Path, damage: str = "") -> dict:
    folder.mkdir()
    process = server().Process(target=two_on_cores, args=(folder, damage))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return torch.load(folder / "state.pt", weights_only=True)


def test_two_cores_train_what_one_does_to_the_bit(tmp_path):
    two, one = run_on_cores(tmp_path / "two"), small(norm=False)
    history = fit(tmp_path / "one", one, replace(RECIPE, accumulate=2))
    assert two["calls"] == 0  # the last ``fit`` only takes over the finished run
    assert two["history"] == history
    assert all(torch.equal(two["model"][name], value) for name, value in one.state_dict().items())
    other = small(norm=False)
    fit(tmp_path / "whole", other)
    assert not same(one, other)  # parts draw their own noise


@pytest.mark.parametrize(("damage", "said"), [("error", "rows: expected better ones"), ("death", "one died")])
def test_what_stops_training_on_two_cores_is_one_line(tmp_path, damage, said):
    refused = run_on_cores(tmp_path / damage, damage)["refused"]
    assert said in refused and "\n" not in refused
