"""Work spread by stages: every sample once, in order, whatever the number of workers; only what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from maskmill import store
from maskmill.cli import Runtime
from maskmill.spread import computed, each, fill

IDS = [f"s{k}" for k in range(7)]
SIZE = 3


class Square:
    """Puts the squares of its samples into every store and notes which shards it was given."""

    def __init__(self, folders: list[store.ShardFolder], seen: Path, device: str) -> None:
        assert device == "cpu"
        self.folders, self.seen = folders, seen

    def __call__(self, job: tuple[int, list[int]]) -> None:
        shard, numbers = job
        (self.seen / str(shard)).touch(exist_ok=False)
        ids = [f"s{k}" for k in numbers]
        for folder in self.folders:
            folder.put(shard, ids, {id: {"x": np.array([k**2])} for id, k in zip(ids, numbers, strict=True)})


def spread(place: Path, count: int, workers: int) -> tuple[list[store.ShardWriter], set[str]]:
    """Fill ``count`` stores -> their writers, and the shards that were computed."""
    seen = place / "seen"
    seen.mkdir(parents=True)
    writers = [store.ShardWriter(place / f"out{k}", IDS, "made up", {}, SIZE, place.parent / f"scratch{k}")
               for k in range(count)]  # fmt: skip
    folders = [writer.shard_folder for writer in writers]
    fill(writers, {id: int(id[1:]) for id in IDS}, Square, (folders, seen), "square", Runtime("cpu", 1, workers))
    for writer in writers:
        writer.close()
    return writers, {p.name for p in seen.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_fill_computes_every_shard_once(tmp_path, workers):
    (writer,), seen = spread(tmp_path / "a", 1, workers)
    assert seen == {"0", "1", "2"}
    writer.assemble()
    found = store.Store(writer.out)
    assert found.ids == IDS and [int(sample["x"][0]) for _, sample in found.items()] == [k**2 for k in range(7)]


def test_fill_computes_what_either_store_lacks_and_nothing_else(tmp_path):
    writers, _ = spread(tmp_path / "a", 2, 1)
    (writers[0].folder / "00001.safetensors").unlink()
    (writers[1].folder / "00002.safetensors").write_bytes(b"half a shard")
    writers, seen = spread(tmp_path / "b", 2, 1)
    assert seen == {"1", "2"}
    writers, seen = spread(tmp_path / "c", 2, 1)
    assert seen == set()
    for writer in writers:
        writer.assemble()
        assert store.Store(writer.out).ids == IDS


class SquareOf(Square):
    def __init__(self, folder: store.ShardFolder, seen: Path, device: str) -> None:
        super().__init__([folder], seen, device)


def test_computed_is_the_store_and_goes_on_after_a_kill(tmp_path):
    numbers, settings = {id: int(id[1:]) for id in IDS}, Runtime("cpu", 1, 1)

    def seen(name: str, stamp: str) -> tuple[set[str], list[int]]:
        (tmp_path / name).mkdir()
        found = computed(tmp_path / "scratch", numbers, stamp, SIZE, SquareOf, (tmp_path / name,), "square", settings)
        return {p.name for p in (tmp_path / name).iterdir()}, [int(sample["x"][0]) for _, sample in found.items()]

    squares = [k**2 for k in range(7)]
    with pytest.raises(FileNotFoundError):  # in the first shard, after which nothing is left
        computed(tmp_path / "scratch", numbers, "a", SIZE, SquareOf, (tmp_path / "none",), "square", settings)
    assert seen("first", "a") == ({"0", "1", "2"}, squares)
    assert seen("again", "a") == (set(), squares)
    assert seen("other", "b") == ({"0", "1", "2"}, squares)


@dataclass(frozen=True)
class Thing:
    sample_id: str
    value: int


class Double:
    def __init__(self, most: int, device: str) -> None:
        self.most = most

    def __call__(self, things: list[Thing]) -> list[int]:
        assert 0 < len(things) <= self.most
        return [2 * thing.value for thing in things]


@pytest.mark.parametrize("places", [["cpu"], ["cpu", "cpu"]])
def test_each_has_the_results_in_the_order_of_the_items(places):
    things = [Thing(f"t{k}", k) for k in (5, 3, 9, 1, 4)]
    found = each(things, 2, Double, (2,), "double", places)
    assert list(found.items()) == [("t5", 10), ("t3", 6), ("t9", 18), ("t1", 2), ("t4", 8)]
    assert each([], 2, Double, (2,), "double", places) == {}


class Lazy(Double):
    def __call__(self, things: list[Thing]) -> list[int]:
        return super().__call__(things)[1:]


def test_each_wants_a_result_for_every_item():
    with pytest.raises(ValueError):
        each([Thing("a", 1), Thing("b", 2)], 2, Lazy, (2,), "lazy", ["cpu"])
