"""The sample store: what is written comes back, byte-stable, resumable, and never half or foreign."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from maskmill import store
from maskmill.errors import UserError
from maskmill.store import ShardWriter, Store

ROOT = Path(__file__).parents[1]
IDS = [f"{i:03d}-x" for i in range(7)]


def sample(id: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(id[:3]))
    return {
        "cross_8": rng.random((2, 3, 4, 4)).astype(np.float16),
        "near_8": rng.random((8, 4, 4)).astype(np.float32).transpose(0, 2, 1),  # not contiguous
        "flag": np.array(True),
        "area": np.float32(rng.random()),
        "none": np.zeros((0, 3), np.uint8),
    }


def write(tmp_path, out="out", ids=IDS, stamp="f1", size=3, stop_after=None, assemble=True, scratch="scratch"):
    """Write a store as a stage does; returns the shard numbers that were computed."""
    done = []
    with ShardWriter(tmp_path / out, ids, stamp, {"steps": 2}, size, tmp_path / scratch, patience=0) as writer:
        for shard, shard_ids in writer.missing():
            if stop_after is not None and len(done) == stop_after:
                return done
            writer.put(shard, {id: sample(id) for id in reversed(shard_ids)})
            writer.describe({"tokens": 24})
            done.append(shard)
        if assemble:
            writer.assemble()
    return done


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) and np.asarray(a[k]).dtype == b[k].dtype and np.shape(a[k]) == b[k].shape for k in a
    )


def test_what_is_written_comes_back(tmp_path):
    assert write(tmp_path) == [0, 1, 2]
    got = Store(tmp_path / "out")
    assert got.ids == IDS and len(got) == 7 and "003-x" in got and "9" not in got
    assert got.fingerprint == "f1" and got.meta == {"steps": 2, "tokens": 24}
    assert same(sample("006-x"), got.read("006-x")) and same(sample("000-x"), got.read("000-x"))
    listed = list(got.items())
    assert [id for id, _ in listed] == IDS
    assert all(same(sample(id), record) for id, record in listed)
    assert sorted(files(tmp_path / "out")) == [f"0000{i}.safetensors" for i in range(3)] + ["manifest.json"]
    assert not [p for p in (tmp_path / "scratch").iterdir() if p.is_dir()]


def test_ids_may_hold_slashes_and_any_letters(tmp_path):
    ids = ["a/b", "a", "Vögel/ü ?"]
    with ShardWriter(tmp_path / "out", ids, "f", {}, 2, tmp_path / "s") as writer:
        for shard, shard_ids in writer.missing():
            writer.put(shard, {id: {"x": np.array([ids.index(id)])} for id in shard_ids})
        writer.assemble()
    assert {id: int(r["x"][0]) for id, r in Store(tmp_path / "out").items()} == {"a/b": 0, "a": 1, "Vögel/ü ?": 2}
    assert list(Store(tmp_path / "out").read("a")) == ["x"]


def test_the_shard_size_changes_files_but_no_sample(tmp_path):
    write(tmp_path, "a", size=3)
    write(tmp_path, "b", size=7)
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    assert all(i == j and same(x, y) for (i, x), (j, y) in zip(a.items(), b.items(), strict=True))


def test_killed_and_resumed_equals_undisturbed_byte_for_byte(tmp_path):
    write(tmp_path, "undisturbed", scratch="s1")
    assert write(tmp_path, "resumed", stop_after=1) == [0]
    assert not (tmp_path / "resumed").exists()
    assert write(tmp_path, "resumed", stop_after=1) == [1]
    assert write(tmp_path, "resumed") == [2]
    assert files(tmp_path / "resumed") == files(tmp_path / "undisturbed")


def test_killed_between_the_last_shard_and_the_assembly(tmp_path):
    write(tmp_path, assemble=False)
    aside = tmp_path / ".out.part"  # what a kill in the middle of the assembly leaves
    aside.mkdir()
    (aside / "00000.safetensors").write_bytes(b"half")
    assert write(tmp_path) == []
    assert len(Store(tmp_path / "out")) == 7 and not aside.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from maskmill.store import ShardWriter
folder = Path(sys.argv[1])
writer = ShardWriter(folder / "out", [f"{i:03d}" for i in range(4)], "f", {}, 1, folder / "scratch")
for shard, ids in writer.missing():
    print(shard, flush=True)
    writer.put(shard, {id: {"b": np.full(5, shard, np.float16), "a": np.arange(3), "c": np.ones(2)} for id in ids})
    if shard == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
writer.assemble()
"""


def run_killed(folder: Path, kill_at: int) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    got = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(kill_at)], capture_output=True, text=True, env=env
    )
    return got.returncode, got.stdout.replace("\n", " ").strip()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_sigkill_keeps_finished_shards_frees_the_lock_and_bytes_are_stable_across_processes(tmp_path):
    assert run_killed(tmp_path / "a", 1) == (-signal.SIGKILL, "0 1")
    assert run_killed(tmp_path / "a", -1) == (0, "2 3")
    assert run_killed(tmp_path / "b", -1) == (0, "0 1 2 3")
    assert files(tmp_path / "a" / "out") == files(tmp_path / "b" / "out")


FACTS = {"tokens": 24, "layers": {"8": ["down", "up"]}}


def in_a_worker(part: store.ShardFolder, shard: int, ids: list[str]) -> int:
    """What one of several processes does with a shard."""
    part.describe(FACTS)
    part.put(shard, ids, {id: sample(id) for id in ids})
    return os.getpid()


def test_processes_that_write_side_by_side_leave_the_bytes_of_one(tmp_path):
    for name in ("alone", "together"):
        with ShardWriter(tmp_path / name, IDS, "f1", {"steps": 2}, 2, tmp_path / f"scratch {name}") as writer:
            jobs = list(writer.missing())
            if name == "alone":
                for job in jobs:
                    in_a_worker(writer.shard_folder, *job)
            else:
                with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
                    seen = list(pool.map(in_a_worker, [writer.shard_folder] * len(jobs), *zip(*jobs, strict=True)))
                assert os.getpid() not in seen
            assert list(writer.missing()) == [] and writer.shard_folder.described() == FACTS
            assert not list(writer.folder.glob(".*"))
            writer.assemble()
    assert files(tmp_path / "alone") == files(tmp_path / "together")
    assert Store(tmp_path / "together").meta == {"steps": 2, **FACTS}


def test_facts_add_up_and_survive_an_interruption(tmp_path):
    with ShardWriter(tmp_path / "out", IDS, "f1", {"a": 0, "b": 0}, 7, tmp_path / "scratch") as writer:
        assert writer.shard_folder.described() == {}
        writer.describe({"a": 1})
        place = writer.folder / "meta.json"
        written = place.stat().st_ino
        writer.describe({"a": 1})
        assert place.stat().st_ino == written  # said already: no reader sees it rewritten
    with ShardWriter(tmp_path / "out", IDS, "f1", {"a": 0, "b": 0}, 7, tmp_path / "scratch") as writer:
        writer.shard_folder.describe({"c": 2})
        writer.put(0, {id: sample(id) for id in IDS})
        writer.assemble()
    assert Store(tmp_path / "out").meta == {"a": 1, "b": 0, "c": 2}


def test_another_fingerprint_or_id_list_does_not_reuse_shards(tmp_path):
    write(tmp_path, assemble=False)
    assert write(tmp_path, stamp="f2", assemble=False) == [0, 1, 2]
    assert write(tmp_path, stamp="f2", ids=[*IDS[:6], "009-x"], assemble=False) == [2]
    assert write(tmp_path, assemble=False) == []


def test_a_finished_output_is_not_made_again_and_another_one_is_replaced(tmp_path):
    write(tmp_path)
    assert write(tmp_path) == []
    assert write(tmp_path, stamp="f2", ids=IDS[:2]) == [0]
    assert Store(tmp_path / "out").fingerprint == "f2"
    assert sorted(files(tmp_path / "out")) == ["00000.safetensors", "manifest.json"]


@pytest.mark.parametrize("damage", ["cut", "cut header", "empty", "text", "longer"])
def test_a_damaged_shard_in_scratch_is_made_again(tmp_path, damage):
    write(tmp_path, assemble=False)
    path = tmp_path / "scratch" / "f1-3" / "00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-1], "cut header": whole[:40], "empty": b"", "text": b"x" * len(whole),
                      "longer": whole + b"0"}[damage])  # fmt: skip
    assert write(tmp_path) == [1]
    assert all(same(sample(id), record) for id, record in Store(tmp_path / "out").items())


def test_only_few_leftovers_stay_in_scratch(tmp_path):
    for i in range(5):
        write(tmp_path, stamp=f"old{i}", stop_after=1)
        os.utime(tmp_path / "scratch" / f"old{i}-3", (i, i))
    write(tmp_path)
    assert sorted(p.name for p in (tmp_path / "scratch").iterdir() if p.is_dir()) == ["old3-3", "old4-3"]


def test_two_writers_do_not_work_side_by_side(tmp_path, capsys):
    with ShardWriter(tmp_path / "out", IDS, "f1", {}, 3, tmp_path / "scratch"):
        with pytest.raises(UserError, match=f"process {os.getpid()} is at the same stage"):
            ShardWriter(tmp_path / "out", IDS, "f2", {}, 3, tmp_path / "scratch", patience=0.3)
        assert "waiting for process" in capsys.readouterr().err
        ShardWriter(tmp_path / "other", IDS, "f1", {}, 3, tmp_path / "scratch2", patience=0).close()
    ShardWriter(tmp_path / "out", IDS, "f2", {}, 3, tmp_path / "scratch", patience=0).close()


def test_programming_errors_are_told(tmp_path):
    with ShardWriter(tmp_path / "out", IDS, "f1", {}, 3, tmp_path / "scratch") as writer:
        with pytest.raises(ValueError, match="these differ: \\['002-x'\\]"):
            writer.put(0, {id: sample(id) for id in IDS[:2]})
        with pytest.raises(ValueError, match="without '/'"):
            writer.put(0, {id: {"a/b": np.ones(1)} for id in IDS[:3]})
        with pytest.raises(RuntimeError, match="3 shards are missing, the first is 0"):
            writer.assemble()
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="'000-x' twice"):
        ShardWriter(tmp_path / "out", ["000-x", "000-x"], "f", {}, 3, tmp_path / "s2")
    with pytest.raises(UserError, match="at least one sample"):
        ShardWriter(tmp_path / "out", [], "f", {}, 3, tmp_path / "s2")


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        for _ in Store(folder).items():
            pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_store_that_is_not_whole_is_refused_with_the_file_named(tmp_path):
    write(tmp_path)
    folder = tmp_path / "out"
    kept = files(folder)

    def damaged(name: str, data: bytes | None) -> str:
        for other, whole in kept.items():
            (folder / other).write_bytes(whole)
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        return refusal(folder)

    shard, manifest = kept["00001.safetensors"], json.loads(kept["manifest.json"])
    assert "00001.safetensors: expected a shard of" in damaged("00001.safetensors", None)
    assert f"got {len(shard) - 1} bytes" in damaged("00001.safetensors", shard[:-1])
    assert "00001.safetensors: damaged shard" in damaged("00001.safetensors", b"x" * len(shard))
    swapped = kept["00000.safetensors"].ljust(len(shard))
    assert "00001.safetensors: expected the sample '003-x'" in damaged("00001.safetensors", swapped)
    assert "manifest.json: expected the manifest" in damaged("manifest.json", None)
    assert "manifest.json: expected JSON" in damaged("manifest.json", b"{")
    for key, value, part in [("schema", 99, "expected store schema 1, got 99"), ("count", 6, "count: expected 7"),
                             ("ids", "x", "ids: expected list"), ("fingerprint", "f9", "fingerprint")]:  # fmt: skip
        assert part in damaged("manifest.json", json.dumps({**manifest, key: value}).encode())
    (folder / "manifest.json").write_bytes(kept["manifest.json"])
    with pytest.raises(UserError, match="expected one of its 7 sample ids, got 'zz'"):
        Store(folder).read("zz")


def test_a_foreign_safetensors_file_is_no_shard(tmp_path):
    from safetensors.numpy import save_file

    write(tmp_path)
    path = tmp_path / "out" / "00002.safetensors"
    save_file({"x": np.ones(3)}, path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["shards"]["00002.safetensors"] = path.stat().st_size
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert "expected a shard of this program" in refusal(tmp_path / "out")


@dataclass(frozen=True)
class Settings:
    lambda_: float
    channels: tuple[int, ...]


def test_fingerprint_depends_on_content_alone():
    a = store.fingerprint(Settings(0.1, (1, 2)), {"b": 1, "a": np.int64(2)})
    assert a == store.fingerprint(Settings(0.1, (1, 2)), {"a": 2, "b": 1}) and len(a) == 32
    assert a != store.fingerprint(Settings(0.2, (1, 2)), {"b": 1, "a": 2})
    assert a != store.fingerprint({"b": 1, "a": 2}, Settings(0.1, (1, 2)))
    assert store.canonical_json(Settings(0.1, (1,))) == '{"channels":[1],"lambda":0.1}'
    with pytest.raises(TypeError):
        store.fingerprint(object())
    with pytest.raises(ValueError):
        store.fingerprint(float("nan"))


def test_hashes_of_files_and_trees(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.hash_files([tmp_path / "a" / "x.txt"]) == {(tmp_path / "a" / "x.txt").as_posix(): known}
    before = store.hash_tree(tmp_path / "a")
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert store.hash_tree(tmp_path / "a") == before
    (tmp_path / "a" / "x.txt").rename(tmp_path / "a" / "y.txt")
    assert store.hash_tree(tmp_path / "a") != before
    with pytest.raises(UserError, match="expected a readable file"):
        store.hash_files([tmp_path / "none"])
    with pytest.raises(UserError, match="expected a folder"):
        store.hash_tree(tmp_path / "none")
    assert list(store.code_hashes("maskmill.store")) == ["maskmill.store"]


def test_write_atomically_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.txt"
    store.write_atomically(path, "äh\n")
    assert path.read_bytes() == "äh\n".encode()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        store.write_atomically(path, b"new")
    assert path.read_bytes() == "äh\n".encode() and len(list(path.parent.iterdir())) == 1
