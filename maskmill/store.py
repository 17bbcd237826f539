"""Shards of samples on disk: written whole or not at all, resumable, and told apart by a fingerprint.

A store is a folder of safetensors shards ``00000.safetensors``, ``00001...`` with ``shard_size`` samples each and one
``manifest.json``. A sample is a dict of named arrays, addressed by its id. The same samples give the same bytes.

A long stage writes shards into ``scratch/<fingerprint>/`` and assembles the output at the end, because DVC deletes a
stage's outputs before it starts. Killed at any point, the stage finds every finished shard again, as long as what the
fingerprint covers (parameters, inputs, code) is unchanged.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from maskmill.errors import UserError
from maskmill.params import plain

try:
    import fcntl
except ImportError:  # Windows: no lock, everything else works
    fcntl = None

SCHEMA = 1
MANIFEST = "manifest.json"
LEFTOVERS = 2  # unfinished folders of other fingerprints that stay in a scratch folder, the newest

Sample = Mapping[str, np.ndarray]


# --- small tools ------------------------------------------------------------------------------------------------------


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file that is there with all its bytes or not at all: write aside, flush to disk, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")  # A fixed name: the next run overwrites what a kill leaves.
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # Some network file systems refuse this for folders.
    finally:
        os.close(handle)


@contextmanager
def fresh_folder(out: str | Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``out`` at the end; an error removes it and leaves ``out``."""
    out = Path(out)
    aside = out.with_name(f".{out.name}.part")  # A fixed name: the next run clears what a kill leaves.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)
        os.replace(aside, out)
        _flush_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_rows(path: str | Path, what: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """A CSV file in UTF-8 -> its header, and its rows each with the number of the line it ends on; blank lines skipped.

    Raises:
        UserError: no readable file, not UTF-8, no header, a column twice, or a row of another length; ``what`` says
            what was expected.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(f"{path}: expected {what}, got: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a CSV table in UTF-8, got: {error}") from None
    if not rows:
        raise UserError(f"{path}: expected a CSV table with a header, got an empty file")
    (_, header), *rows = rows
    if len(set(header)) != len(header):
        raise UserError(f"{path}: expected each column once, got {','.join(header)}")
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}: line {line} ({row[0]}): expected {len(header)} fields, got {len(row)}")
    return header, rows


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks; dataclasses become dicts, tuples lists, numpy numbers plain ones.

    Raises:
        TypeError, ValueError: something that has no exact JSON form (an object, NaN); never silently its ``repr``.
    """

    def other(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return plain(x)
        if isinstance(x, np.generic):
            return x.item()
        raise TypeError(f"cannot fingerprint {type(x).__name__}: {x!r}")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=other)


def fingerprint(*parts: Any) -> str:
    """32 hex digits of the SHA-256 over the canonical JSON of parameters, input hashes and code hashes."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got: {error.strerror}") from None


def hash_files(paths: Iterable[str | Path]) -> dict[str, str]:
    """File name as given (with forward slashes) -> SHA-256 of its bytes."""
    return {Path(p).as_posix(): hash_file(p) for p in sorted(map(Path, paths))}


def hash_tree(folder: str | Path) -> str:
    """SHA-256 over the relative names and bytes of all files below a folder, byte-compiled Python left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing there'}")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    rows = [(p.relative_to(folder).as_posix(), hash_file(p)) for p in files]
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()


def model_stamp(model_id: str, revision: str) -> object:
    """What identifies a model's weights: the files of a local folder, or the hub id and revision."""
    return hash_tree(model_id) if Path(model_id).is_dir() else [model_id, revision]


def code_hashes(*modules: str) -> dict[str, str]:
    """Module name -> SHA-256 of its source file, for fingerprints; the modules must be imported already."""
    return {name: hash_file(sys.modules[name].__file__) for name in sorted(modules)}


# --- shards -----------------------------------------------------------------------------------------------------------


def _shard_name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


def _encode(samples: Mapping[str, Sample], ids: Sequence[str], stamp: str) -> bytes:
    """One shard as safetensors bytes. One metadata entry only: their order is not fixed by the format's writer."""
    arrays = {f"{id}/{name}": np.asarray(a, order="C") for id in ids for name, a in samples[id].items()}
    note = canonical_json({"schema": SCHEMA, "fingerprint": stamp, "ids": list(ids)})
    return save(arrays, metadata={"maskmill": note})


def _whole_size(path: Path) -> int | None:
    """The size a safetensors file must have by its own header, or None when the header itself is damaged."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def _shard_note(path: Path) -> dict:
    """Schema, fingerprint and ids that a shard carries.

    Raises:
        UserError: no shard, truncated, or damaged.
    """
    try:
        expected, size = _whole_size(path), path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: expected a shard, got: {error.strerror}") from None
    if expected is None or expected != size:
        wanted = "a safetensors header" if expected is None else f"{expected} bytes"
        raise UserError(f"{path}: damaged shard, expected {wanted}, got a file of {size} bytes; run its stage again")
    try:
        with safe_open(path, framework="np") as file:
            return json.loads((file.metadata() or {})["maskmill"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: expected a shard of this program, got: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class ShardFolder:
    """The unfinished shards of one run: what a worker process needs to write its part. Holds no lock."""

    folder: Path
    fingerprint: str

    def put(self, shard: int, ids: Sequence[str], samples: Mapping[str, Sample]) -> None:
        """Write one whole shard; ``samples`` has exactly these ids, each with at least one named array."""
        if set(samples) != set(ids):
            odd = sorted(set(samples) ^ set(ids))
            raise ValueError(f"shard {shard}: expected the ids {ids[0]}..{ids[-1]}, these differ: {odd[:3]}")
        for id in ids:
            if not samples[id] or any("/" in name for name in samples[id]):
                raise ValueError(f"sample {id}: expected named arrays without '/', got {list(samples[id])}")
        write_atomically(self.folder / _shard_name(shard), _encode(samples, ids, self.fingerprint))

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Keep facts for the manifest that only computing shows; they survive an interruption beside the shards.

        All workers of a run see the same facts, so the first one writes them and it does not matter which that is.
        """
        known = self.described()
        if {**known, **facts} != known:
            aside = self.folder / f".meta.{os.getpid()}.json"  # of this process: another may write at the same time
            aside.write_text(canonical_json({**known, **facts}))
            os.replace(aside, self.folder / "meta.json")

    def described(self) -> dict[str, Any]:
        """All that ``describe`` was given so far."""
        path = self.folder / "meta.json"
        return json.loads(path.read_text()) if path.exists() else {}


class ShardWriter:
    """Writes the shards of one run into scratch and assembles them into ``out``; holds the scratch folder's lock.

    >>> with ShardWriter(out, ids, stamp, {"steps": 20}, 64, Path("scratch/generate")) as writer:
    ...     for shard, shard_ids in writer.missing():
    ...         writer.put(shard, {id: compute(id) for id in shard_ids})
    ...     writer.assemble()

    Args:
        out: the output folder; replaced as a whole by ``assemble``.
        ids: ids of all samples in order; distinct, not empty.
        fingerprint: of everything the samples depend on, see ``fingerprint``.
        meta: JSON facts for the manifest; ``describe`` adds what is only known while computing.
        shard_size: samples per shard (the last may hold fewer); has to be part of the fingerprint only if the samples
            depend on it, the writer keeps different sizes apart by itself.
        scratch: folder for unfinished work of this stage, on the same disk as ``out`` if possible.
        patience: seconds to wait for another process that holds the lock; None waits for ever.
    """

    def __init__(
        self,
        out: str | Path,
        ids: Sequence[str],
        fingerprint: str,
        meta: Mapping[str, Any],
        shard_size: int,
        scratch: str | Path,
        patience: float | None = None,
    ):
        self.out, self.ids, self.fingerprint, self.meta = Path(out), [str(i) for i in ids], fingerprint, dict(meta)
        self.shard_size = shard_size
        if not self.ids:
            raise UserError(f"{out}: expected at least one sample to write, got none")
        if len(set(self.ids)) != len(self.ids):
            twice = next(i for k, i in enumerate(self.ids) if i in self.ids[:k])
            raise UserError(f"{out}: expected distinct sample ids, got {twice!r} twice")
        if shard_size < 1:
            raise UserError(f"{out}: expected a shard size of at least 1, got {shard_size}")
        self.scratch = Path(scratch)
        self.folder = self.scratch / f"{fingerprint}-{shard_size}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.scratch / "lock", patience)
        self.folder.mkdir(exist_ok=True)
        os.utime(self.folder)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the finished shards stay in scratch."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def shards(self) -> list[list[str]]:
        """The ids of each shard."""
        return [self.ids[i : i + self.shard_size] for i in range(0, len(self.ids), self.shard_size)]

    def missing(self) -> Iterator[tuple[int, list[str]]]:
        """(shard number, its ids) of each shard that is not yet there whole; nothing if ``out`` is finished already."""
        if self._finished():
            return
        for shard, ids in enumerate(self.shards):
            if not self._complete(shard, ids):
                yield shard, ids

    def _complete(self, shard: int, ids: list[str]) -> bool:
        path = self.folder / _shard_name(shard)
        if not path.exists():
            return False
        try:
            note = _shard_note(path)
        except UserError:
            return False
        return note == {"schema": SCHEMA, "fingerprint": self.fingerprint, "ids": ids}

    def _finished(self) -> bool:
        """Whether ``out`` already holds this very result: a process that was waited for has written it."""
        try:
            store = Store(self.out)
            return (store.fingerprint, store.ids, store.shard_size) == (self.fingerprint, self.ids, self.shard_size)
        except UserError:
            return False

    @property
    def shard_folder(self) -> ShardFolder:
        """Where the shards go, for a worker process to write them."""
        return ShardFolder(self.folder, self.fingerprint)

    def put(self, shard: int, samples: Mapping[str, Sample]) -> None:
        """Write one whole shard; ``samples`` has exactly its ids, each with at least one named array."""
        self.shard_folder.put(shard, self.shards[shard], samples)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """See ``ShardFolder.describe``."""
        self.shard_folder.describe(facts)

    def assemble(self) -> None:
        """Make ``out`` from the finished shards, in one rename, and clear this run's scratch.

        Raises:
            RuntimeError: a shard is missing.
        """
        if self._finished():
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        missing = [shard for shard, _ in self.missing()]
        if missing:
            raise RuntimeError(f"{len(missing)} shards are missing, the first is {missing[0]}")
        names = [_shard_name(shard) for shard in range(len(self.shards))]
        with fresh_folder(self.out) as aside:
            for name in names:
                _link(self.folder / name, aside / name)
            manifest = {
                "schema": SCHEMA,
                "fingerprint": self.fingerprint,
                "count": len(self.ids),
                "shard_size": self.shard_size,
                "shards": {name: (aside / name).stat().st_size for name in names},
                "meta": {**self.meta, **self.shard_folder.described()},
                "ids": self.ids,
            }
            write_atomically(aside / MANIFEST, json.dumps(json.loads(canonical_json(manifest)), indent=1) + "\n")
        shutil.rmtree(self.folder)
        others = sorted((p for p in self.scratch.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for stale in others[: max(0, len(others) - LEFTOVERS)]:
            shutil.rmtree(stale)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes; a copy where the disk or its format has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _take_lock(path: Path, patience: float | None) -> int | None:
    """Open ``path`` and hold it exclusively; the system lets go when this process ends, however it ends."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(handle, False)
    waited_from = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            if patience is not None and time.monotonic() - waited_from >= patience:
                os.close(handle)
                raise UserError(f"{path}: expected to be alone, but process {owner} is at the same stage") from None
            if not told:
                print(f"waiting for process {owner}, which is at the same stage ({path})", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.2)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


# --- reading ----------------------------------------------------------------------------------------------------------


class Store:
    """A finished store, read by id.

    Attributes:
        ids: ids of all samples in order.
        meta: facts the writer left.
        fingerprint: of what the samples were made from.
        shard_size: samples per shard.

    Raises:
        UserError: no manifest, another schema version, a shard that is missing or has another size than written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder / MANIFEST)
        self.ids: list[str] = manifest["ids"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.fingerprint: str = manifest["fingerprint"]
        self.shard_size: int = manifest["shard_size"]
        self._checked: set[int] = set()
        self._place = {id: i // self.shard_size for i, id in enumerate(self.ids)}
        for name, size in manifest["shards"].items():
            path = self.folder / name
            actual = path.stat().st_size if path.is_file() else None
            if actual != size:
                got = "no such file" if actual is None else f"{actual} bytes"
                raise UserError(f"{path}: expected a shard of {size} bytes, got {got}; run its stage again")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self._place

    def read(self, id: str) -> dict[str, np.ndarray]:
        """The arrays of one sample by name."""
        if id not in self._place:
            raise UserError(f"{self.folder}: expected one of its {len(self.ids)} sample ids, got {id!r}")
        return next(self._read_shard(self._place[id], [id]))[1]

    def items(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """(id, arrays) in order; each shard is opened once and one sample is in memory at a time."""
        for start in range(0, len(self.ids), self.shard_size):
            yield from self._read_shard(start // self.shard_size, self.ids[start : start + self.shard_size])

    def _read_shard(self, shard: int, ids: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        path = self.folder / _shard_name(shard)
        if shard not in self._checked:
            if _shard_note(path)["fingerprint"] != self.fingerprint:
                raise UserError(f"{path}: expected a shard with the manifest's fingerprint, got one of another run")
            self._checked.add(shard)
        with safe_open(path, framework="np") as file:
            names: dict[str, list[str]] = {}
            for key in file.keys():
                id, _, name = key.rpartition("/")
                names.setdefault(id, []).append(name)
            for id in ids:
                if id not in names:
                    raise UserError(f"{path}: expected the sample {id!r}, got a shard without it; run its stage again")
                yield id, {name: file.get_tensor(f"{id}/{name}") for name in sorted(names[id])}


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: expected the manifest of a finished store, got none; run its stage first") from None
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, got: {error}") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: expected store schema {SCHEMA}, got {schema!r}; run its stage again")
    kinds = {"fingerprint": str, "count": int, "shard_size": int, "shards": dict, "meta": dict, "ids": list}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise UserError(f"{path}: {key}: expected {kind.__name__}, got {type(manifest.get(key)).__name__}")
    if manifest["count"] != len(manifest["ids"]):
        raise UserError(f"{path}: count: expected {len(manifest['ids'])}, the number of ids, got {manifest['count']}")
    return manifest
