"""Work spread over processes: the same results however many there are, and what becomes of those that die."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskmill import workers
from maskmill.cli import Runtime
from maskmill.errors import UserError

JOBS = list(range(7))


class Square:
    """Writes the square of a job into a file of its own, and keeps count of itself; sees to some jobs in other ways."""

    def __init__(self, folder: Path, how: str, device: str) -> None:
        self.folder, self.how, self.device, self.seen = folder, how, device, 0
        if how == "no model":
            raise UserError("model.id nowhere: expected a model")
        if how == "broken":
            raise ZeroDivisionError("not the user's fault")
        (folder / f"made-{os.getpid()}").touch()

    def __call__(self, job: int) -> tuple[int, str]:
        import torch

        assert torch.get_num_threads() == 1
        self.seen += 1
        if job == 3 and self.how == "refuses":
            raise UserError("sample 3: expected an image")
        if job == 3 and (self.how == "always dies" or self.how == "dies once" and not self.mark()):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.folder / f"job-{job}", "a") as file:
            file.write(str(job**2))
        return job**2, self.device

    def mark(self) -> bool:
        """Whether it was there already."""
        path = self.folder / "died"
        there = path.exists()
        path.touch()
        return there


def run(folder: Path, how: str, count: int, jobs: list[int] = JOBS) -> list[tuple[int, tuple[int, str]]]:
    """-> (job, result) in order of completion."""
    found = []
    workers.run(Square, (folder, how), jobs, ["cpu"] * count, lambda job, result: found.append((job, result)))
    return found


def written(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("job-*")}


def made(folder: Path) -> set[int]:
    """The processes in which a worker was made."""
    return {int(p.name.removeprefix("made-")) for p in folder.glob("made-*")}


@pytest.fixture(autouse=True)
def threads():
    """``run`` in one process leaves it with one thread; so do these tests."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


EXPECTED = [(job, (job**2, "cpu")) for job in JOBS]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_job_is_done_once_however_many_workers(tmp_path, count):
    assert sorted(run(tmp_path, "", count)) == EXPECTED
    assert written(tmp_path) == {f"job-{job}": str(job**2) for job in JOBS}
    if count == 1:
        assert made(tmp_path) == {os.getpid()}
    else:
        assert os.getpid() not in made(tmp_path) and 1 <= len(made(tmp_path)) <= min(count, len(JOBS))


def test_one_worker_keeps_to_the_order_and_one_job_needs_no_process(tmp_path):
    assert run(tmp_path, "", 1) == EXPECTED
    assert run(tmp_path, "", 3, [5]) == [(5, (25, "cpu"))] and made(tmp_path) == {os.getpid()}


def test_without_jobs_nothing_is_made(tmp_path):
    assert run(tmp_path, "broken", 3, []) == []


def test_a_worker_that_dies_once_is_replaced_and_nothing_is_lost(tmp_path, capfd):
    assert sorted(run(tmp_path, "dies once", 3)) == EXPECTED
    assert set(written(tmp_path)) == {f"job-{job}" for job in JOBS} and (tmp_path / "died").exists()
    assert "a worker died; " in capfd.readouterr().err


def test_workers_that_always_die_end_in_one_line(tmp_path, capfd):
    with pytest.raises(UserError, match=r"4 times one died; is there memory for 3.*MASKMILL_WORKERS=1") as error:
        run(tmp_path, "always dies", 3)
    assert "\n" not in str(error.value) and capfd.readouterr().err.count("a worker died") == workers.DEATHS + 1
    assert "job-3" not in written(tmp_path)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [("refuses", UserError, "sample 3: expected an image"), ("no model", UserError, "model.id nowhere: expected a mod"),
     ("broken", ZeroDivisionError, "not the user's fault")],
)  # fmt: skip
def test_an_error_in_a_job_or_in_the_making_of_a_worker_comes_through_as_itself(
    tmp_path, capfd, how, kind, said, count
):
    with pytest.raises(kind, match=said):
        run(tmp_path, how, count)
    assert "died" not in capfd.readouterr().err


def test_what_done_raises_ends_the_run(tmp_path):
    def full(job, result):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        workers.run(Square, (tmp_path, ""), JOBS, ["cpu"] * 2, full)


def test_places(monkeypatch):
    import torch

    assert workers.devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert workers.devices("cuda", 8) == ["cuda:0", "cuda:1"]
    assert workers.devices("cuda:1", 8) == ["cuda:1"] and workers.devices("mps", 8) == ["mps"]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch):
    """What a process has learnt of its GPU does not outlive a test."""
    monkeypatch.setattr(workers, "_fits", None)
    monkeypatch.setattr(workers, "_place", "cpu")
    monkeypatch.delenv("MASKMILL_BATCH", raising=False)


@pytest.mark.parametrize(("count", "batch"), [(0, 4), (1, 4), (4, 4), (5, 4), (9, 2), (3, 1)])
def test_batches_have_one_size_and_every_index_comes_once(count, batch, fits):
    seen = []

    def compute(index):
        seen.append(list(index))
        return [i * 10 for i in index]

    assert workers.in_batches(count, batch, compute) == [i * 10 for i in range(count)]
    assert all(len(index) == batch for index in seen)


def test_batches_by_hand(fits):
    seen = []
    workers.in_batches(5, 3, lambda index: seen.append(index) or index)
    assert seen == [[0, 1, 2], [3, 4, 4]]


def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(fits, capfd):
    import torch

    tried = []

    def compute(index):
        tried.append(len(index))
        if len(index) > 3:
            raise torch.OutOfMemoryError("no memory")
        return index

    assert workers.in_batches(5, 12, compute) == list(range(5))
    assert tried == [12, 6, 3, 3]
    assert workers.in_batches(4, 12, compute) == list(range(4)) and tried[4:] == [3, 3]  # what was learnt is kept
    assert capfd.readouterr().err.splitlines() == [
        "out of memory with a batch of 12; going on with 6", "out of memory with a batch of 6; going on with 3"
    ]  # fmt: skip


@pytest.fixture
def gpu(fits, monkeypatch):
    """A worker on a GPU with memory for so many samples: what it is asked for is kept in ``tried``."""
    import torch

    state = {"tried": [], "memory": 0}

    def compute(index):
        state["tried"].append(len(index))
        if len(index) > state["memory"]:
            raise torch.OutOfMemoryError("no memory")
        return [i * 10 for i in index]

    monkeypatch.setattr(workers, "_place", "cuda:1")
    monkeypatch.setattr(workers, "_begin", lambda place: 0)
    monkeypatch.setattr(workers, "_room", lambda place, before: state["memory"] / state["tried"][-1])
    return SimpleNamespace(compute=compute, state=state, tried=state["tried"])


@pytest.mark.parametrize(
    ("memory", "counts", "tried"),
    [(100, (32, 32, 20), [8, 24, 32, 20]),  # found with the first batch: room for 80, and 32 in a shard
     (25, (32, 32, 3), [8, 12, 12, 16, 16, 8]),  # room for 20, in equal parts; 3 are filled up to what was asked for
     (8, (32, 9), [8, 8, 8, 8, 8, 8]),  # room for no more
     (5, (9, 9), [8, 4, 4, 4, 4, 4, 4]),  # not even for that
     (2, (3,), [8, 4, 2, 2])],
)  # fmt: skip
def test_on_a_gpu_the_size_is_found_with_the_first_batch(gpu, memory, counts, tried):
    gpu.state["memory"] = memory
    for count in counts:
        assert workers.in_batches(count, 8, gpu.compute) == [i * 10 for i in range(count)]
    assert gpu.tried == tried


def test_a_size_that_was_found_and_does_not_fit_later_is_halved(gpu):
    gpu.state["memory"] = 100
    workers.in_batches(8, 8, gpu.compute)
    gpu.state["memory"] = 20  # another program has come
    assert workers.in_batches(32, 8, gpu.compute) == [i * 10 for i in range(32)]
    assert gpu.tried == [8, 32, 16, 16]


def test_a_size_that_was_asked_for_is_kept_to_and_a_cpu_has_no_other(gpu, monkeypatch):
    gpu.state["memory"] = 100
    monkeypatch.setenv("MASKMILL_BATCH", "4")
    workers.in_batches(32, 4, gpu.compute)
    monkeypatch.delenv("MASKMILL_BATCH")
    monkeypatch.setattr(workers, "_place", "cpu")
    workers.in_batches(32, 4, gpu.compute)
    assert set(gpu.tried) == {4}


def test_no_memory_for_one_sample_is_one_line(fits):
    import torch

    def compute(index):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(UserError, match="out of memory with one sample at a time") as error:
        workers.in_batches(2, 2, compute)
    assert "\n" not in str(error.value)


def test_a_cpu_computes_with_one_thread(monkeypatch):
    import torch

    torch.set_num_threads(2)
    workers.pin("cuda:0")
    assert torch.get_num_threads() == 2
    workers.pin("cpu")
    assert torch.get_num_threads() == 1
    monkeypatch.delitem(workers.sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    workers.pin("cpu")
    assert os.environ["OMP_NUM_THREADS"] == "1"


# --- training ---------------------------------------------------------------------------------------------------------


def test_two_processes_train_for_two_parts_on_a_cpu_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = Runtime("cpu", 8, 2)
    assert workers.trainers(cpu, 2) == (2 if sys.platform.startswith("linux") else 1)
    assert workers.trainers(cpu, 1) == workers.trainers(cpu, 4) == workers.trainers(Runtime("cpu", 8, 1), 2) == 1
    assert workers.trainers(Runtime("cuda", 8, 2), 2) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.trainers(cpu, 2) == 1
