"""How stages spread their work: shards of a store, or chunks of a list, over ``maskmill.workers`` under a progress bar.

They compute nothing themselves: what becomes of a sample is the worker's business, so results depend on none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from maskmill import workers
from maskmill.cli import Runtime, progress
from maskmill.store import ShardWriter, Store

T = TypeVar("T")
R = TypeVar("R")


class Named(Protocol):
    """``maskmill.datasets.table.Item``, ``maskmill.datasets.pictures.Picture``."""

    @property
    def sample_id(self) -> str: ...


Known = TypeVar("Known", bound=Named)


def fill(
    writers: Sequence[ShardWriter],
    samples: Mapping[str, T],
    make: Callable[..., Callable[[tuple[int, list[T]]], Any]],
    arguments: Sequence[Any],
    desc: str,
    settings: Runtime,
) -> None:
    """Compute the shards that are missing in one of the stores; the caller assembles them.

    Args:
        writers: of stores of the same ids in shards of the same size. Those that a killed run left may differ: its end
            can lie between two of them.
        samples: id -> what a worker is told of it.
        make: ``make(*arguments, device)`` -> what a worker does with a job (shard number, its samples): compute them
            and put them into ``ShardWriter.shard_folder`` of every writer. See ``maskmill.workers.run``.
        desc: title of the progress bar.
    """
    missing = {shard: ids for writer in writers for shard, ids in writer.missing()}
    jobs = [(shard, [samples[i] for i in ids]) for shard, ids in sorted(missing.items())]
    with progress(None, desc, total=sum(len(part) for _, part in jobs), unit="image") as bar:
        workers.run(make, arguments, jobs, workers.devices(settings.device, settings.workers),
                    lambda job, _: bar.update(len(job[1])))  # fmt: skip


def computed(
    scratch: Path,
    samples: Mapping[str, T],
    stamp: str,
    size: int,
    make: Callable[..., Callable[[tuple[int, list[T]]], Any]],
    arguments: Sequence[Any],
    desc: str,
    settings: Runtime,
) -> Store:
    """A store in a scratch folder of what the workers find for each sample; after a kill it goes on at the last shard.

    Args:
        stamp: fingerprint of all that decides the result. size: samples of a shard.
        make: ``make(shards, *arguments, device)`` with the ``maskmill.store.ShardFolder`` to put shards into; as for
            ``fill``.
    """
    out = scratch / "found"
    with ShardWriter(out, list(samples), stamp, {}, size, scratch / "shards") as writer:
        fill([writer], samples, make, (writer.shard_folder, *arguments), desc, settings)
        writer.assemble()
    return Store(out)


def each(
    items: Sequence[Known],
    size: int,
    make: Callable[..., Callable[[list[Known]], Sequence[R]]],
    arguments: Sequence[Any],
    desc: str,
    places: Sequence[str],
    unit: str = "image",
) -> dict[str, R]:
    """What the workers find for each item.

    Args:
        size: items that a worker takes at a time.
        make: ``make(*arguments, device)`` -> what a worker does with some items: one result for each, in their order.
        places: device of each worker.

    Returns:
        id -> result, in the order of ``items``.
    """
    found: dict[str, R] = {}
    with progress(None, desc, total=len(items), unit=unit) as bar:

        def done(chunk: list[Known], results: Sequence[R]) -> None:
            found.update((item.sample_id, result) for item, result in zip(chunk, results, strict=True))
            bar.update(len(chunk))

        chunks = [list(items[a : a + size]) for a in range(0, len(items), size)]
        workers.run(make, arguments, chunks, places, done)
    return {item.sample_id: found[item.sample_id] for item in items}
