"""Spread shards of work over processes: one per core on a CPU, one per GPU otherwise.

Every worker builds its own model once and computes whole shards, each of which is a function of its samples alone; so
the files are the same whatever the number of workers. On a CPU a worker computes with one thread: small kernels gain
little from a second one, and their rounding would depend on how many there are. Within a worker samples go through the
model in batches of one size; on a GPU that size is found.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from maskmill.cli import Runtime, die_with_parent
from maskmill.errors import UserError

T = TypeVar("T")
DEATHS = 3  # times that dead workers are replaced before a stage gives up
SHARE = 0.8  # of a GPU's free memory that a batch may take: the next one's peak may be higher than the first one's

_work: Callable[[Any], Any] | None = None  # in a worker process: what it does with a shard
_fits: int | None = None  # in a worker on a GPU: the samples at once that it has memory for, once that is known
_place = ""  # of this process, where it is a worker


def pin(device: str) -> None:
    """One thread on a CPU, for stages that compute in their own process: their rounding would depend on how many there
    are, and a second one is little gain for a small model and a loss beside other work."""
    if device == "cpu" and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    elif device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which some stages never do


def in_batches(count: int, batch: int, compute: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """``compute`` on the indices 0..count-1, always ``batch`` of them: the last ones are filled up by repeating.

    Kernels round differently for different batch sizes; with one size a sample is the same bits wherever it stands.
    On a GPU that holds for the rounding alone, and the size is found: the memory that the first batch took says how
    many samples there is room for, and later calls take as many of theirs at once (unless MASKMILL_BATCH is set, which
    is kept to). One that runs out of memory gets half as many from then on, in this process, down to one.

    Args:
        compute: indices -> one result for each of them.

    Raises:
        UserError: there is not even memory for one sample.
    """
    import torch

    global _fits
    results: list[T] = []
    while len(results) < count:
        size = _size(count - len(results), batch)
        new = list(range(len(results), min(count, len(results) + size)))
        unknown = _fits is None and _place.startswith("cuda") and not os.environ.get("MASKMILL_BATCH", "").strip()
        before = _begin(_place) if unknown else 0
        try:
            found = compute(new + [new[-1]] * (size - len(new)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(f"out of memory with one sample at a time (MASKMILL_BATCH is {batch}): expected a GPU "
                                "with more, model.dtype float16, or a smaller generate.size") from None  # fmt: skip
            found = None
        if found is None:  # out of the handler, whose traceback would keep the batch's memory
            _fits = size // 2
            torch.cuda.empty_cache()
            print(f"out of memory with a batch of {size}; going on with {_fits}", file=sys.stderr)
            continue
        if unknown:
            _fits = max(size, int(size * SHARE * _room(_place, before)))
        results += found[: len(new)]
    return results


def _size(left: int, batch: int) -> int:
    """Samples at once: ``batch`` until more is known; then no more than fit, and no more than are left."""
    if _fits is None or _fits == batch:
        return batch
    if _fits < batch:
        return _fits
    parts = -(-left // _fits)
    return max(batch, -(-left // parts))  # equal parts: little is filled up


def _begin(place: str) -> int:
    """Bytes that are in use before a batch whose peak is to be measured."""
    import torch

    torch.cuda.reset_peak_memory_stats(place)
    return torch.cuda.memory_allocated(place)


def _room(place: str, before: int) -> float:
    """How many times the memory that the batch took, at its peak, there is."""
    import torch

    took = torch.cuda.max_memory_allocated(place) - before
    kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)  # free too, but held by torch
    return (torch.cuda.mem_get_info(place)[0] + kept) / max(took, 1)


def devices(device: str, workers: int) -> list[str]:
    """The device of each worker: all GPUs for ``cuda``, the one that is named for ``cuda:1``, ``workers`` CPU cores."""
    if device == "cpu":
        return ["cpu"] * workers
    if device == "cuda":
        import torch

        return [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return [device]


def run(
    make: Callable[..., Callable[[T], Any]],
    arguments: Sequence[Any],
    jobs: Iterable[T],
    places: Sequence[str],
    done: Callable[[T, Any], None],
) -> None:
    """Do every job in one of the workers.

    Args:
        make: ``make(*arguments, device)`` -> what a worker does with a job; called in each worker before its first
            one. It, the jobs and what they return must be picklable.
        jobs: each a whole unit of work whose result is on disk when it returns.
        places: device of each worker; with one of them, or one job, everything runs in this process. With MASKMILL_RAY
            set the workers are Ray's, see ``maskmill.cluster``.
        done: called in this process with each finished job and what it returned, in order of completion.

    Raises:
        UserError: what ``make`` or a job raised; or workers died, of memory for instance, more than ``DEATHS`` times.
            Jobs that a dead worker left are done by others.
    """
    jobs = list(jobs)
    if not jobs:
        return
    if os.environ.get("MASKMILL_RAY"):
        from maskmill import cluster  # an optional extra

        cluster.run(make, arguments, jobs, places, done)
        return
    if len(places) == 1 or len(jobs) == 1:
        work = _made(make, arguments, places[0])
        for job in jobs:
            done(job, work(job))
        return
    places = places[: len(jobs)]
    forks = places[0] == "cpu" and sys.platform.startswith("linux")  # CUDA does not survive a fork
    context = multiprocessing.get_context("fork" if forks else "spawn")
    left = dict(enumerate(jobs))
    for _ in range(DEATHS + 1):
        taken = context.SimpleQueue()
        for place in places:
            taken.put(place)
        with ProcessPoolExecutor(len(places), context, _join, (make, arguments, taken)) as pool:
            futures = {pool.submit(_do, job): k for k, job in left.items()}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    done(left.pop(futures[future]), result)
                return
            except BrokenProcessPool:
                print(f"a worker died; {len(left)} shards are left", file=sys.stderr)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # one bad sample is enough: do not compute the rest first
                raise
    raise UserError(
        f"expected workers that live, {DEATHS + 1} times one died; is there memory for {len(places)} of them? "
        "MASKMILL_WORKERS=1 asks for one"
    )


def _do(job: Any) -> Any:
    return _work(job)


def _join(make: Callable, arguments: Sequence[Any], places: Any) -> None:
    """Make a new process a worker."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    die_with_parent(always=True)
    place = places.get()

    def first(job: Any) -> Any:  # an error in the first job reaches the caller, one in this function would not
        global _work
        _work = _made(make, arguments, place)
        return _work(job)

    _work = first


def _made(make: Callable, arguments: Sequence[Any], place: str) -> Callable[[Any], Any]:
    global _place
    _place = place
    pin(place)
    return make(*arguments, place)


# --- training ---------------------------------------------------------------------------------------------------------


def trainers(settings: Runtime, parts: int) -> int:
    """How many processes shall train together: two on a CPU of two cores for batches in two parts, else one.

    No more than two, because the gradients of two are summed in one order only; and none beside a launcher's.

    Args:
        parts: of a batch, ``maskmill.training.Recipe.accumulate``.
    """
    alone = settings.device == "cpu" and "WORLD_SIZE" not in os.environ and sys.platform.startswith("linux")
    return 2 if alone and settings.workers > 1 and parts == 2 else 1


def train_together(processes: int, train: Callable[[], Any]) -> None:
    """Run ``train``, which calls ``maskmill.training.fit`` with an accelerator of its own, in forked processes of one
    thread each that share the batches. They leave the finished run's checkpoint: ``fit`` in this process, which must
    not have asked for an accelerator before, then ends at once.

    Raises:
        UserError: what ``train`` raised; or a process died.
    """
    from accelerate import debug_launcher  # accelerate's only launcher of CPU processes from within a program
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    def share() -> None:
        die_with_parent(always=True)
        pin("cpu")
        os.environ["OMP_NUM_THREADS"] = "1"  # or accelerate warns that it chooses another number
        train()

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells of every process that it ends
    try:
        debug_launcher(share, num_processes=processes)
    except ProcessRaisedException as error:
        _, ours, said = str(error).rstrip().rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
        if not ours:
            raise
        raise UserError(said) from None
    except ProcessExitedException as error:
        raise UserError(f"expected training processes that live, one died ({error}); run this again: it goes on at the "
                        "last checkpoint. MASKMILL_WORKERS=1 takes a single one") from None  # fmt: skip
