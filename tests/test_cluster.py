"""Ray in the place of the local pool: the same results, and what becomes of workers that die."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")
if " " in sys.executable:
    pytest.skip("Ray starts no workers from a path with a space", allow_module_level=True)

from maskmill import cluster, store, workers  # noqa: E402
from maskmill.errors import UserError  # noqa: E402

JOBS = list(range(7))


class Square:
    """Writes the square of a job into a file of its own; sees to job 3 in other ways."""

    def __init__(self, folder: Path, how: str, device: str) -> None:
        self.folder, self.how, self.device = folder, how, device
        if how == "no model":
            raise UserError("model.id nowhere: expected a model")
        (folder / f"made-{os.getpid()}").touch()

    def __call__(self, job: int) -> tuple[int, str]:
        if job == 3 and self.how == "refuses":
            raise UserError("sample 3: expected an image")
        if job == 3 and self.how == "broken":
            raise ZeroDivisionError("not the user's fault")
        if job == 3 and (self.how == "always dies" or self.how == "dies once" and not self.mark()):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "slow":
            time.sleep(0.15)
        (self.folder / f"job-{job}").write_text(str(job**2))
        return job**2, self.device

    def mark(self) -> bool:
        path = self.folder / "died"
        there = path.exists()
        path.touch()
        return there


class Shards:
    """Writes shards as the stages do: a sample is a function of its id."""

    def __init__(self, shards: store.ShardFolder, device: str) -> None:
        import torch

        assert device == "cpu" and torch.get_num_threads() == 1
        self.shards = shards
        (shards.folder.parent / f"pid-{os.getpid()}").touch()

    def __call__(self, job: tuple[int, list[str]]) -> None:
        shard, ids = job
        time.sleep(0.05)
        self.shards.put(shard, ids, {i: {"x": np.random.default_rng(int(i)).random(50)} for i in ids})


@pytest.fixture(scope="module", autouse=True)
def connected():
    """One cluster for the module: starting Ray takes seconds."""
    ray, ours = cluster._connect("local", ["cpu"] * 2)
    assert ours
    yield ray
    ray.shutdown()


def run(folder: Path, how: str, jobs: list[int] = JOBS) -> list[tuple[int, tuple[int, str]]]:
    found = []
    cluster.run(Square, (folder, how), jobs, ["cpu"] * 2, lambda job, result: found.append((job, result)), "local")
    return found


def made(folder: Path) -> set[int]:
    return {int(p.name.removeprefix("made-")) for p in folder.glob("made-*")}


def test_every_job_is_done_once_in_processes_of_their_own(tmp_path):
    assert sorted(run(tmp_path, "slow")) == [(job, (job**2, "cpu")) for job in JOBS]
    assert {p.name: p.read_text() for p in tmp_path.glob("job-*")} == {f"job-{j}": str(j**2) for j in JOBS}
    assert len(made(tmp_path)) == 2 and os.getpid() not in made(tmp_path)


def test_without_jobs_nothing_is_made(tmp_path):
    assert run(tmp_path, "no model", []) == []


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_doubled(tmp_path, capfd):
    assert sorted(run(tmp_path, "dies once")) == [(job, (job**2, "cpu")) for job in JOBS]
    assert (tmp_path / "died").exists() and "a worker died; " in capfd.readouterr().err


def test_a_job_whose_workers_always_die_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match=rf"one died {workers.DEATHS + 1} times at the same shard") as error:
        run(tmp_path, "always dies")
    assert "\n" not in str(error.value) and not (tmp_path / "job-3").exists()


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [("refuses", UserError, "^sample 3: expected an image$"), ("no model", UserError, "^model.id nowhere: expected"),
     ("broken", ZeroDivisionError, "not the user's fault")],
)  # fmt: skip
def test_errors_of_a_job_and_of_the_making_of_a_worker_come_through_as_themselves(tmp_path, how, kind, said):
    with pytest.raises(kind, match=said):
        run(tmp_path, how)


def test_what_done_raises_ends_the_run(tmp_path):
    def full(job, result):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cluster.run(Square, (tmp_path, ""), JOBS, ["cpu"] * 2, full, "local")


def write(out: Path, run, places: list[str], victim: float | None = None) -> dict[str, bytes]:
    """Eleven shards of three samples; ``victim``: seconds after which one of the workers gets SIGKILL."""
    ids = [str(k) for k in range(32)]
    with store.ShardWriter(out / "store", ids, "f" * 32, {}, 3, out / "scratch") as writer:
        jobs, counted = list(writer.missing()), []
        stop = threading.Event()

        def kill() -> None:
            time.sleep(victim)
            while not stop.is_set():
                for path in (out / "scratch").glob("pid-*"):
                    os.kill(int(path.name.removeprefix("pid-")), signal.SIGKILL)
                    return
                time.sleep(0.01)

        killer = threading.Thread(target=kill) if victim is not None else None
        if killer:
            killer.start()
        run(Shards, (writer.shard_folder,), jobs, places, lambda job, _: counted.append(job[0]))
        stop.set()
        if killer:
            killer.join()
        assert sorted(counted) == list(range(11))  # each shard is reported once, whoever was killed
        writer.assemble()
    return {p.name: p.read_bytes() for p in (out / "store").iterdir()}


def test_shards_are_the_same_files_as_of_one_local_worker_whenever_a_worker_is_killed(tmp_path, capfd):
    import torch

    before = torch.get_num_threads()
    alone = write(tmp_path / "alone", workers.run, ["cpu"])
    torch.set_num_threads(before)

    def on_ray(*args):
        cluster.run(*args, "local")

    assert write(tmp_path / "two", on_ray, ["cpu"] * 2) == alone
    rng = np.random.default_rng()
    for attempt in range(2):  # of a second's work, at a random moment
        assert write(tmp_path / f"killed {attempt}", on_ray, ["cpu"] * 2, float(rng.uniform(0, 0.15))) == alone
    assert len(alone) == 12 and "a worker died" in capfd.readouterr().err


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, connected):
    monkeypatch.setattr(connected, "is_initialized", lambda: False)

    def refuse(**options):
        assert options["address"] == "nowhere:6379" and "include_dashboard" not in options
        raise ConnectionError("ray could not\nbe reached")

    monkeypatch.setattr(connected, "init", refuse)
    with pytest.raises(UserError, match="^MASKMILL_RAY nowhere:6379: expected local or a cluster's address, got: ray"):
        cluster.run(Square, (tmp_path, ""), JOBS, ["cpu"], print, "nowhere:6379")


def test_a_ray_that_does_not_start_is_one_line(tmp_path, monkeypatch, connected):
    monkeypatch.setattr(connected, "is_initialized", lambda: False)

    def refuse(**options):
        raise Exception("The current node timed out\nduring startup.")  # as Ray does on a machine that is too busy

    monkeypatch.setattr(connected, "init", refuse)
    with pytest.raises(UserError, match="^MASKMILL_RAY local: expected Ray to start, got: The current node timed out d"):
        cluster.run(Square, (tmp_path, ""), JOBS, ["cpu"], print, "local")


def test_settings_reach_the_workers_but_not_the_switch_itself(monkeypatch, connected):
    seen = {}
    monkeypatch.setattr(connected, "is_initialized", lambda: False)
    monkeypatch.setattr(connected, "init", lambda **options: seen.update(options))
    monkeypatch.setenv("MASKMILL_RAY", "local")
    monkeypatch.setenv("MASKMILL_BATCH", "4")
    cluster._connect("local", ["cuda:0", "cuda:1", "cuda:2"])
    passed = seen["runtime_env"]["env_vars"]
    assert passed["MASKMILL_BATCH"] == "4" and "MASKMILL_RAY" not in passed and "PATH" not in passed
    assert seen["num_gpus"] == 3 and seen["num_cpus"] == 3
