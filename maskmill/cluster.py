"""``maskmill.workers.run`` on a Ray cluster, for GPUs of several machines; Ray is an optional extra.

    pip install -e ".[ray]"
    MASKMILL_RAY=local dvc repro                       # workers of this machine, started by Ray and gone with the stage
    ray start --head                                   # or a cluster: this on one machine, and on each of the others
    ray start --address HEAD:6379                      # this; then where the repository is
    MASKMILL_RAY=HEAD:6379 dvc repro

Every machine must see the repository under the same path (a shared file system), with the same environment: workers
write their shards where a local worker would, so the files are the same. Scheduling, and finding out that a worker or a
machine is gone, are Ray's; a shard that it left is given to another worker.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from maskmill.errors import UserError
from maskmill.workers import DEATHS, _made

T = TypeVar("T")
PASSED_ON = ("MASKMILL_", "HF_", "OMP_", "CUBLAS_", "PYTORCH_")  # beginnings of the variables that workers get too
STORE = 100 * 2**20  # bytes of Ray's own object store: what jobs return is small


class _Worker:
    """In a process of Ray's. All is made before the first job and nothing earlier, as errors then reach the caller."""

    def __init__(self, what: bytes, place: str, folder: str, path: list[str]) -> None:
        self._what, self._place, self._folder, self._path, self._work = what, place, folder, path, None

    def do(self, job: bytes) -> Any:
        import ray

        if self._work is None:
            if not os.path.isdir(self._folder):
                raise UserError(f"{os.uname().nodename}: expected the folder {self._folder} as on the machine that "
                                "started the stage, found none; every machine must see the same files")  # fmt: skip
            os.chdir(self._folder)
            sys.path[:0] = [p for p in self._path if p not in sys.path]
            make, arguments = ray.cloudpickle.loads(self._what)
            self._work = _made(make, arguments, self._place)
        return self._work(ray.cloudpickle.loads(job))


def run(
    make: Callable[..., Callable[[T], Any]],
    arguments: Sequence[Any],
    jobs: Iterable[T],
    places: Sequence[str],
    done: Callable[[T, Any], None],
    address: str | None = None,
) -> None:
    """Do every job in one of the cluster's workers; see ``maskmill.workers.run``, whose arguments these are.

    Args:
        places: devices of this machine's workers. With the address ``local`` so many are started; on a cluster their
            kind counts: one worker for each of its GPUs, or for each of its cores if they are ``cpu``.
        address: of the cluster, or ``local``; None takes MASKMILL_RAY.

    Raises:
        UserError: what ``make`` or a job raised; Ray is not installed, or there is no such cluster; a job's workers
            died more than ``maskmill.workers.DEATHS`` times.
    """
    jobs = list(jobs)
    if not jobs:
        return
    address = os.environ.get("MASKMILL_RAY", "local") if address is None else address
    ray, ours = _connect(address, places)
    actors: dict[Any, Any] = {}
    try:
        gpus = places[0] != "cpu"
        count = len(places) if address == "local" else int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        if count < 1:
            kind = "GPUs" if gpus else "cores"
            raise UserError(f"MASKMILL_RAY {address}: expected a cluster with {kind}, it has none")
        _work_off(ray, make, arguments, jobs, min(count, len(jobs)), gpus, done, actors)
    finally:
        for actor in actors.values():
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _connect(address: str, places: Sequence[str]) -> tuple[Any, bool]:
    """The Ray module, connected, and whether it was connected here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError('MASKMILL_RAY: expected Ray to be installed, found none; pip install -e ".[ray]"') from None
    if " " in sys.executable:  # its workers would never start, and the stage would wait for them for ever
        raise UserError(f"MASKMILL_RAY: expected a Python whose path has no space, got {sys.executable}")
    if ray.is_initialized():
        return ray, False
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON) and k != "MASKMILL_RAY"}
    quiet = {"include_dashboard": False, "logging_level": "error", "runtime_env": {"env_vars": passed}}
    gpus = sum(place != "cpu" for place in places)
    try:
        if address == "local":
            ray.init(address="local", num_cpus=len(places), num_gpus=gpus, object_store_memory=STORE, **quiet)
        else:
            del quiet["include_dashboard"]
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises errors of any kind: bare ones too, where its processes do not start in time
        reason = " ".join(str(error).split())[:150]
        wanted = "Ray to start" if address == "local" else "local or a cluster's address"
        raise UserError(f"MASKMILL_RAY {address}: expected {wanted}, got: {reason}") from None
    return ray, True


def _work_off(
    ray: Any, make: Callable, arguments: Sequence[Any], jobs: list, count: int, gpus: bool,
    done: Callable[[Any, Any], None], actors: dict[Any, Any],
) -> None:  # fmt: skip
    """One job at a time for each actor; ``actors`` (slot -> actor) is kept up to date for the caller to end them."""
    kind = ray.remote(_Worker).options(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=0)
    what = ray.cloudpickle.dumps((make, tuple(arguments)))
    place, folder, path = "cuda:0" if gpus else "cpu", os.getcwd(), list(sys.path)  # Ray shows an actor its own GPU

    def start(slot: int) -> None:
        actors[slot] = kind.remote(what, place, folder, path)

    left = deque(range(len(jobs)))
    deaths: Counter[int] = Counter()
    running: dict[Any, tuple[int, int]] = {}  # what is waited for -> (slot, number of the job)

    def give(slot: int) -> None:
        if left:
            number = left.popleft()
            running[actors[slot].do.remote(ray.cloudpickle.dumps(jobs[number]))] = (slot, number)

    for slot in range(count):
        start(slot)
        give(slot)
    while running:
        finished, _ = ray.wait(list(running), num_returns=1)
        for reference in finished:
            slot, number = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:  # its process or machine is gone
                deaths[number] += 1
                print(f"a worker died; {len(left) + len(running) + 1} shards are left", file=sys.stderr)
                if deaths[number] > DEATHS:
                    raise UserError(
                        f"expected workers that live, one died {DEATHS + 1} times at the same shard; is there memory "
                        f"for {count} of them?"
                    ) from None
                left.append(number)
                start(slot)
                give(slot)
                continue
            done(jobs[number], result)
            give(slot)
        idle = set(range(count)) - {slot for slot, _ in running.values()}
        for slot in sorted(idle)[: len(left)]:  # a shard came back when others had run out of work already
            give(slot)
