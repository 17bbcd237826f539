"""Re-hash what dvc.lock names, in cache, workspace and on request a remote, and name what is not as it was made.

    python -m maskmill.verify                  cache and workspace, every byte
    python -m maskmill.verify --mend           and put right what a right copy is at hand for
    python -m maskmill.verify --remote NAME    the objects in a remote: each is read as a whole
    python -m maskmill.verify --remote NAME --quick    their presence, size and, on S3, MD5, without reading them

DVC asks only whether a file is there: a cache object that is write-protected counts as right, and so does a workspace
file of known size and time. So a truncated object is checked out again and again, ``dvc status`` and ``dvc repro`` call
it up to date, ``dvc pull`` does not replace it, and ``dvc push`` holds whatever a remote's folder lists for present.

Exit code 0: all is as dvc.lock says. 1: files are damaged or missing; they are named on stdout, each output with the
stage that made it and what to do, seen from the root of the repository. 2: nothing could be checked. A pipeline that
runs meanwhile shows as missing files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maskmill.cli import progress, worker_count
from maskmill.errors import UserError, exit_cleanly

if TYPE_CHECKING:
    from dvc.repo import Repo

T = TypeVar("T")
Entries = dict[str, str]  # path below an output ('' for a single file) -> MD5
CHUNK = 1 << 20  # bytes read at a time
SHOWN = 5  # outputs that were never made and are named; all that is damaged is
STREAMS = 16  # objects of a remote that are read side by side


@dataclass(frozen=True)
class Digest:
    """MD5 (32 hex digits) and size in bytes of a file; ``md5`` is empty where there is none to read."""

    md5: str = ""
    size: int = 0


GONE = Digest()


@dataclass(frozen=True)
class Output:
    """An output as dvc.lock names it.

    Attributes:
        path: relative to the root of the repository. stage: as ``dvc repro`` takes it there.
        oid: MD5, for a folder that of its list of files with ".dir" behind it. size: in bytes, of a folder in all.
        cached: False for what lies in git. pushed: where ``dvc push`` sends it: "" the remote asked for, None nowhere.
    """

    path: str
    stage: str
    oid: str
    hash_name: str
    size: int | None
    cached: bool
    pushed: str | None

    @property
    def folder(self) -> bool:
        return self.oid.endswith(".dir")

    def member(self, name: str) -> str:
        """The path of one of its files."""
        return f"{self.path}/{name}" if name else self.path


@dataclass
class Finding:
    """What is wrong with one output: lines of (path, what), and what to do."""

    output: Output
    files: list[tuple[str, str]] = field(default_factory=list)
    advice: str = ""


# --- what dvc.lock says -----------------------------------------------------------------------------------------------


@contextmanager
def opened(folder: str | Path = ".") -> Iterator[Repo]:
    """The DVC repository that a folder belongs to.

    Raises:
        UserError: there is none, or DVC refuses its files or a remote; the message is DVC's.
    """
    from dvc.exceptions import DvcException  # late: half a second that --help and an import need not wait for
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(" ".join(str(error).split())) from None


def outputs(repo: Repo) -> tuple[list[Output], list[str]]:
    """All outputs that have been made, and the paths of those that never were, of all dvc.yaml and .dvc files."""
    made, never = [], []
    for stage in repo.index.stages:
        address = ":".join([*([] if stage.path_in_repo == "dvc.yaml" else [stage.path_in_repo]),
                            *([stage.name] if getattr(stage, "name", None) else [])])  # fmt: skip
        for out in stage.outs:
            if not out.is_in_repo:
                continue
            path, info = Path(out.fs_path).relative_to(repo.root_dir).as_posix(), out.hash_info
            if not info:
                never.append(path)
                continue
            pushed = (out.remote or "") if out.use_cache and out.can_push else None
            made.append(Output(path, address, info.value, info.name, out.meta.size, out.use_cache, pushed))
    return made, never


def entries_of(data: bytes, name: str) -> Entries:
    """The list of files that a ``.dir`` object holds. Raises ``UserError`` where right bytes hold no such list."""
    try:
        return {entry["relpath"]: entry["md5"] for entry in json.loads(data)}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{name}: expected DVC's list of a folder's files, got: {error!r}") from None


def folder_bytes(entries: Entries, hash_name: str) -> bytes:
    """What DVC writes into the ``.dir`` object of a folder with these files."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name, md5 in entries.items():
        tree.add(tuple(name.split("/")), None, HashInfo(hash_name, md5))
    return tree.as_bytes()


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# --- hashing ----------------------------------------------------------------------------------------------------------


def digest(path: str | Path, hash_name: str = "md5") -> Digest:
    """MD5 and size of a file as DVC computes them; ``GONE`` for none, or a link to nowhere.

    Raises:
        UserError: there is a file that cannot be read.
    """
    try:
        if hash_name != "md5":  # outputs that an older DVC locked: line ends of text do not count
            from dvc_data.hashfile.hash import file_md5

            return Digest(file_md5(str(path), name=hash_name), os.path.getsize(path))
        with open(path, "rb", buffering=0) as file:
            return _read(file, lambda size: None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return GONE
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got: {error.strerror or error}") from None


def _read(file: Any, count: Callable[[int], None]) -> Digest:
    hasher, size = hashlib.md5(usedforsecurity=False), 0
    while data := file.read(CHUNK):
        hasher.update(data)
        size += len(data)
        count(len(data))
    return Digest(hasher.hexdigest(), size)


def digests(files: Mapping[str, str], workers: int) -> dict[str, Digest]:
    """Hash files side by side: path -> name of the hash becomes path -> digest. Links to one file are read once."""
    same: dict[object, list[str]] = {}
    total = 0
    for path, hash_name in files.items():
        try:
            at = os.stat(path)
        except OSError:
            same[path] = [path]
            continue
        same.setdefault((at.st_dev, at.st_ino, hash_name), []).append(path)
        total += at.st_size * (len(same[(at.st_dev, at.st_ino, hash_name)]) == 1)
    firsts = [paths[0] for paths in same.values()]
    found: dict[str, Digest] = {}
    with progress(None, "verify", total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        every = _side_by_side(lambda path: digest(path, files[path]), firsts, workers)
        for paths, got in zip(same.values(), every, strict=True):
            found |= dict.fromkeys(paths, got)
            bar.update(got.size)
    return found


def _side_by_side(work: Callable[[str], T], jobs: Sequence[str], workers: int) -> Iterator[T]:
    """``map`` over threads: hashing and waiting for a disk or a network both let other threads go on."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            yield from pool.map(work, jobs)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def fault(found: Digest, md5: str, size: int | None) -> str:
    """What is wrong with a file that should have this MD5 and, where it is known, size; nothing: an empty text."""
    if found.md5 == md5:
        return ""
    if found == GONE:
        return "missing"
    if not found.size or size is not None and found.size < size:
        return f"truncated to {found.size} of {'?' if size is None else size} bytes"
    if size is not None and found.size > size:
        return f"damaged, {found.size} bytes in the place of {size}"
    return f"damaged, {found.size} bytes that are not those that were made"


# --- cache and workspace ----------------------------------------------------------------------------------------------


@dataclass
class Local:
    """All that was read here.

    Attributes:
        objects: (hash name, oid) -> path of the cache object. files: output's path -> path below it -> path.
        read: path -> digest. right: (hash name, MD5) -> a path with these bytes. entries: oid -> list of files, of all
        folders for which the cache or the workspace has it.
    """

    objects: dict[tuple[str, str], str]
    files: dict[str, dict[str, str]]
    read: dict[str, Digest]
    right: dict[tuple[str, str], str]
    entries: dict[str, Entries]

    def object(self, output: Output, oid: str) -> Digest:
        return self.read.get(self.objects.get((output.hash_name, oid), ""), GONE)

    def file(self, output: Output, name: str) -> Digest:
        return self.read.get(self.files[output.path].get(name, ""), GONE)


def read_local(repo: Repo, made: Iterable[Output], workers: int, cache_only: bool = False) -> Local:
    """Hash every object and every file that these outputs name.

    Args:
        cache_only: leave out the workspace.
    """
    made = list(made)
    odbs = {"md5": repo.cache.local}

    def place(output: Output, oid: str) -> str:
        odb = odbs.setdefault(output.hash_name, repo.cache.legacy)
        return odb.oid_to_path(oid)

    objects = {(o.hash_name, o.oid): place(o, o.oid) for o in made if o.cached}
    entries: dict[str, Entries] = {}
    for output in made:
        if output.folder and output.cached and output.oid not in entries:
            path = objects[output.hash_name, output.oid]
            try:
                data = Path(path).read_bytes()
            except OSError:
                continue
            if f"{md5_of(data)}.dir" == output.oid:
                entries[output.oid] = entries_of(data, path)
                for md5 in entries[output.oid].values():
                    objects[output.hash_name, md5] = place(output, md5)
    files = {output.path: {} if cache_only else workspace_files(repo, output) for output in made}
    jobs = {path: "md5" if oid.endswith(".dir") else name for (name, oid), path in objects.items()}
    jobs |= {path: output.hash_name for output in made for path in files[output.path].values()}
    local = Local(objects, files, digests(jobs, workers), {}, entries)
    for output in made:
        found = {name: local.read[path].md5 for name, path in files[output.path].items()}
        if output.folder and output.oid not in entries and found:
            if f"{md5_of(folder_bytes(found, output.hash_name))}.dir" == output.oid:
                entries[output.oid] = found
    late = {}  # objects of folders whose list only the workspace knows
    for output in made:
        for md5 in entries.get(output.oid, {}).values() if output.cached else ():
            if (output.hash_name, md5) not in objects:
                late[place(output, md5)] = output.hash_name
                objects[output.hash_name, md5] = place(output, md5)
    local.read.update(digests(late, workers))
    names = {path: name for (name, _), path in objects.items()} | jobs
    local.right.update({(names[path], got.md5): path for path, got in local.read.items() if got.md5})
    return local


def workspace_files(repo: Repo, output: Output) -> dict[str, str]:
    """The files of an output that are there: path below it ('' for a single file) -> path; not what DVC ignores."""
    top = os.path.join(repo.root_dir, *output.path.split("/"))
    if not os.path.isdir(top):
        return {"": top} if os.path.lexists(top) else {}
    from dvc.fs import LocalFileSystem

    found = {}
    for folder, _, names in repo.dvcignore.walk(LocalFileSystem(), top):
        below = os.path.relpath(folder, top).replace(os.sep, "/")
        for name in names:
            found[name if below == "." else f"{below}/{name}"] = os.path.join(folder, name)
    return dict(sorted(found.items()))


def check_local(repo: Repo, made: Iterable[Output], local: Local) -> list[Finding]:
    """What is wrong in cache and workspace, output by output."""
    return [finding for output in made if (finding := _check_output(repo, output, local)).files]


def _check_output(repo: Repo, output: Output, local: Local) -> Finding:
    known = not output.folder or output.oid in local.entries
    entries = local.entries.get(output.oid, {}) if output.folder else {"": output.oid}
    there, sizes = local.files[output.path], _sizes(output, entries, local)
    bad_cache = {name: what for name, md5 in entries.items()
                 if output.cached and (what := fault(local.object(output, md5), md5, sizes.get(name)))}  # fmt: skip
    bad_files = {name: what for name, md5 in entries.items()
                 if (what := fault(local.file(output, name), md5, sizes.get(name)))}  # fmt: skip
    extra = sorted(set(there) - set(entries)) if known else []
    listed = output.cached and output.folder
    bad_list = fault(local.object(output, output.oid), output.oid.removesuffix(".dir"), None) if listed else ""

    def at(oid: str) -> str:
        return _shown(repo, local.objects[output.hash_name, oid])

    finding = Finding(output)
    here_at_all = there or any(local.object(output, md5) != GONE for md5 in entries.values())
    if not here_at_all and bad_list in ("", "missing") and (entries or not known):
        finding.files.append((output.path, "missing, here and in the cache" if output.cached else "missing"))
    else:
        if bad_list:
            finding.files.append((at(output.oid), f"{bad_list}; the cache's list of the files of {output.path}"))
        finding.files += [(at(entries[name]), f"{what}; the cache of {output.member(name)}")
                          for name, what in bad_cache.items()]  # fmt: skip
        if bad_files and not there:
            finding.files.append((output.path, "missing"))
        else:
            finding.files += [(output.member(name), what) for name, what in bad_files.items()]
        finding.files += [(output.member(name), "not made by the stage") for name in extra]
        if not known and there:
            finding.files += _against_git(repo, output, there)
    right = known and not extra and not any(name in there for name in bad_files)
    finding.advice = _advice(repo, output, local, entries, bool(bad_cache or bad_list), bool(bad_files), right)
    return finding


def _sizes(output: Output, entries: Entries, local: Local) -> dict[str, int]:
    """Sizes that the files of an output should have: of right copies, or what the others leave of the whole."""
    if not output.folder:
        return {} if output.size is None else {"": output.size}
    sizes = {n: local.read[p].size for n, md5 in entries.items() if (p := local.right.get((output.hash_name, md5)))}
    left = set(entries) - set(sizes)
    if len(left) == 1 and output.size is not None:
        sizes[left.pop()] = output.size - sum(sizes.values())
    return sizes


def _against_git(repo: Repo, output: Output, there: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name what differs from the last commit in a folder of which dvc.lock knows the hash alone."""
    listed = _git(repo, "ls-tree", "-r", "-z", "HEAD", "--", output.path)
    blobs = {name: line.split()[2] for entry in listed.split("\0") if entry for line, name in [entry.split("\t", 1)]}
    names = [output.member(name) for name in there]
    hashed = _git(repo, "hash-object", "--no-filters", "--stdin-paths", given="\n".join(names)).split() if blobs else []
    here = dict(zip(names, hashed, strict=False))
    found = [(name, "missing") for name in blobs if name not in here]
    found += [(name, "damaged, it is not as in the last commit") for name, blob in here.items()
              if blobs.get(name, blob) != blob]  # fmt: skip
    found += [(name, "not made by the stage") for name in here if name not in blobs]
    where = "the cache's list of them is lost" if output.cached else "yet as in the last commit"
    return found or [(output.path, f"its files are not those that dvc.lock names; {where}")]


def _git(repo: Repo, *command: str, given: str = "") -> str:
    got = subprocess.run(["git", *command], cwd=repo.root_dir, input=given, capture_output=True, text=True)
    return got.stdout if got.returncode == 0 else ""


def _advice(
    repo: Repo, output: Output, local: Local, entries: Entries, cache: bool, files: bool, right: bool
) -> str:
    """What to do. ``cache`` and ``files``: these are at fault; ``right``: what is in the workspace is right."""
    if not output.cached:
        return f"git checkout -- {_quoted(output.path)}   (it lies in git), or: dvc repro {output.stage}"
    remote = output.pushed is not None and bool(repo.config["remote"])
    again = f"dvc repro {output.stage}"
    if remote:
        again = f"dvc pull {output.stage}   (where no remote has it: dvc repro {output.stage})"
    checkout = f"dvc checkout {_quoted(output.path)}"
    if not cache:
        return checkout if right else f"remove what is named (keep a copy if the change was meant), then: {checkout}"
    if entries and all((output.hash_name, md5) in local.right for md5 in entries.values()):
        then = f", then: {checkout}" if files else ""
        return f"python -m maskmill.verify --mend   (right copies are at hand){then}"
    damaged = any(local.object(output, oid) != GONE and local.object(output, oid).md5 != oid.removesuffix(".dir")
                  for oid in (output.oid, *entries.values()))  # fmt: skip
    return f"python -m maskmill.verify --mend   (removes what is damaged), then: {again}" if damaged else again


def _shown(repo: Repo, path: str) -> str:
    inside = os.path.relpath(path, repo.root_dir)
    return path if inside.startswith("..") else Path(inside).as_posix()


def _quoted(path: str) -> str:
    return f"'{path}'" if any(c.isspace() for c in path) else path


def mend(repo: Repo, made: Iterable[Output], local: Local) -> list[str]:
    """Remove damaged cache objects and the copies of them that were served, and put right copies in their place.

    A workspace file is removed only where its bytes are those of the damaged object, so that ``dvc pull`` and ``dvc
    repro`` make it again; one that was changed by hand stays.

    Returns:
        Lines that say what was done.
    """
    from dvc.fs import localfs

    done: list[str] = []
    for output in made:
        if not output.cached:
            continue
        odb = repo.cache.legacy if output.hash_name != "md5" else repo.cache.local
        entries = local.entries.get(output.oid, {}) if output.folder else {"": output.oid}
        for name, md5 in [*entries.items(), *([(None, output.oid)] if output.folder else [])]:
            path, found = odb.oid_to_path(md5), local.object(output, md5)
            if found.md5 == md5.removesuffix(".dir"):
                continue
            if found != GONE:
                _remove(path)
                done.append(f"{_shown(repo, path)}: removed")
                if name is not None and local.file(output, name) == found:
                    _remove(local.files[output.path][name])
                    done.append(f"{output.member(name)}: removed, it is a copy of the damaged object")
            copy = local.right.get((output.hash_name, md5))
            if copy:
                odb.add(copy, localfs, md5, check_exists=False)
            elif md5 == output.oid and output.folder and entries:
                odb.add_bytes(md5, folder_bytes(entries, output.hash_name))
                odb.protect(path)
            else:
                continue
            done.append(f"{_shown(repo, path)}: put back from {_shown(repo, copy) if copy else output.path}")
    return list(dict.fromkeys(done))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


# --- a remote ---------------------------------------------------------------------------------------------------------


def check_remote(
    repo: Repo, made: Iterable[Output], name: str, local: Local, quick: bool = False, put: bool = False
) -> tuple[list[Finding], list[str]]:
    """What a remote lacks or holds damaged, output by output; objects that it should hold, see ``Output.pushed``.

    Args:
        local: the cache, for the lists of folders and the sizes.
        quick: ask for presence, size and S3's MD5 (ETag) only; an ETag that differs is settled by reading the object.
        put: upload again what the cache has right.

    Returns:
        Findings, and lines that say what was uploaded.

    Raises:
        UserError: the remote cannot be reached or keeps no objects by hash.
    """
    made = [o for o in made if o.pushed is not None and o.pushed in ("", name)]
    odbs = {h: repo.cloud.get_remote_odb(name, "verify", hash_name=h) for h in {o.hash_name for o in made}}
    remote = Remote(name, odbs, local)
    entries, read = _read_remote(remote, made, quick)
    findings, done = [], []
    for output in made:
        wanted = {None: output.oid} if output.folder else {}
        wanted |= entries.get(output.oid, {}) if output.folder else {"": output.oid}
        sizes = _sizes(output, {n: m for n, m in wanted.items() if n is not None}, local)
        bad = {n: f for n, m in wanted.items()
               if (f := fault(read[output.hash_name, m], m.removesuffix(".dir"), sizes.get(n)))}  # fmt: skip
        at_hand = {n for n in bad if local.object(output, wanted[n]).md5 == wanted[n].removesuffix(".dir")}
        if put:
            for n in sorted(at_hand, key=lambda n: (n is None, n or "")):  # a folder's list last, as dvc push has it
                key = output.hash_name, wanted[n]
                if remote.upload(key):
                    done.append(f"{remote.path(key)}: uploaded")
                read[key] = local.read[local.objects[key]]
            bad = {n: what for n, what in bad.items() if n not in at_hand}
        if bad:
            files = _named_in_remote(remote, output, wanted, bad)
            findings.append(Finding(output, files, _remote_advice(repo, name, output, at_hand == set(bad))))
    return findings, list(dict.fromkeys(done))


@dataclass
class Remote:
    """A DVC remote and how its objects are read. A key is (hash name, oid).

    Attributes:
        odbs: hash name -> DVC's object store. local: the cache, which says how large objects should be.
    """

    name: str
    odbs: dict[str, Any]
    local: Local

    def path(self, key: tuple[str, str]) -> str:
        return self.odbs[key[0]].oid_to_path(key[1])

    def look(self, key: tuple[str, str], whole: bool = True) -> tuple[Digest, bytes]:
        """The digest of an object, and of a folder's list its bytes; without ``whole`` what the store says of it.

        Raises:
            UserError: the object is there and cannot be read, or nobody can tell.
        """
        odb, path = self.odbs[key[0]], self.path(key)
        try:
            if not whole and (told := self._told(key, odb.fs.info(path))):
                return told, b""
            if key[1].endswith(".dir"):
                with odb.fs.open(path, "rb") as file:
                    data = file.read()
                return Digest(md5_of(data), len(data)), data
            if key[0] != "md5":
                from dvc_data.hashfile.hash import file_md5

                return Digest(file_md5(path, odb.fs, name=key[0]), odb.fs.size(path)), b""
            with odb.fs.open(path, "rb") as file:
                return _read(file, lambda size: None), b""
        except FileNotFoundError:
            return GONE, b""
        except Exception as error:  # whatever a store's client raises for a wrong key, host or permission
            raise UserError(f"remote {self.name}: {path}: cannot be read: {' '.join(str(error).split())[:200]}"
                            ) from None  # fmt: skip

    def _told(self, key: tuple[str, str], info: Mapping[str, Any]) -> Digest | None:
        """The digest that an object has by its size and ETag; None: these are not what they should be."""
        tag, size = str(info.get("ETag", "")).strip('"'), info.get("size")
        right = self.local.read[known].size if (known := self.local.right.get(key)) else size
        no_md5 = "-" in tag or len(tag) != 32  # S3's tag of an upload in parts, another store's, or none
        as_told = size == right and (no_md5 or tag == key[1].split(".")[0])
        return Digest(key[1].removesuffix(".dir"), size or 0) if as_told else None

    def upload(self, key: tuple[str, str]) -> bool:
        """Put the cache's object in its place; -> whether anything was written."""
        from dvc.fs import localfs

        odb, path = self.odbs[key[0]], self.path(key)
        try:
            if odb.fs.protocol == "local":
                _remove(path)
            return odb.add(self.local.objects[key], localfs, key[1], check_exists=False) > 0
        except Exception as error:
            raise UserError(f"remote {self.name}: {path}: cannot be written: {error}") from None


def _read_remote(
    remote: Remote, made: Sequence[Output], quick: bool
) -> tuple[dict[str, Entries], dict[tuple[str, str], Digest]]:
    """The lists of folders that the cache or the remote has right, by oid, and the digests of all objects, by key."""
    entries, read = dict(remote.local.entries), {}
    folders = list({(o.hash_name, o.oid): None for o in made if o.folder})
    for key, (got, data) in zip(folders, _side_by_side(remote.look, folders, STREAMS), strict=True):
        read[key] = got
        if f"{got.md5}.dir" == key[1]:
            entries[key[1]] = entries_of(data, f"remote {remote.name}: {key[1]}")
    members = {(o.hash_name, md5): None for o in made if o.folder for md5 in entries.get(o.oid, {}).values()}
    members |= {(o.hash_name, o.oid): None for o in made if not o.folder}
    keys = list(members)
    with progress(None, f"verify {remote.name}", total=len(keys), unit="object") as bar:
        every = _side_by_side(lambda key: remote.look(key, not quick), keys, STREAMS)
        for key, (got, _) in zip(keys, every, strict=True):
            read[key] = got
            bar.update()
    return entries, read


def _named_in_remote(
    remote: Remote, output: Output, wanted: Mapping[str | None, str], bad: Mapping[str | None, str]
) -> list[tuple[str, str]]:
    """Lines (path, what) on an output's faults. ``wanted``: its files, and None for their list, -> oid."""
    if output.folder and len(bad) == len(wanted) and set(bad.values()) == {"missing"}:
        return [(output.path, f"missing in the remote, its list and all {len(bad) - 1} files")]
    roles = {n: f"the list of the files of {output.path}" if n is None else output.member(n) for n in bad}
    return [(remote.path((output.hash_name, wanted[n])), f"{what}; {roles[n]}") for n, what in bad.items()]


def _remote_advice(repo: Repo, name: str, output: Output, at_hand: bool) -> str:
    """What to do. ``at_hand``: the cache has right copies of all that is at fault."""
    mending = f"python -m maskmill.verify --remote {name} --mend"
    if at_hand:
        return f"{mending}   (uploads the cache's right copies; dvc push may hold them for present)"
    default = repo.config["core"].get("remote")
    pull = f"dvc pull {output.stage}, or: " if default and default != name else ""
    return f"{pull}dvc repro {output.stage}   (the cache has no right copy), then: {mending}"


# --- the program ------------------------------------------------------------------------------------------------------


def report(findings: Sequence[Finding]) -> str:
    """The findings as text: each output with its stage, its files, and what to do."""
    blocks = []
    for finding in findings:
        lines = [f"{finding.output.path}, made by stage {finding.output.stage}:"]
        lines += [f"    {path}: {what}" for path, what in finding.files]
        blocks.append("\n".join([*lines, f"    what to do: {finding.advice}"]))
    return "\n".join(blocks)


def verify(
    folder: str | Path = ".", remote: str = "", quick: bool = False, mending: bool = False, workers: int = 0
) -> tuple[str, int]:
    """Check a repository; -> what to print, and the exit code 0 or 1.

    Args:
        folder: anywhere in the repository. remote: name of the remote to check in the place of the workspace.
        quick: see ``check_remote``. mending: put right what can be. workers: threads; 0: as many as cores.

    Raises:
        UserError: no repository, a broken dvc.yaml or dvc.lock, an unknown or unreachable remote.
    """
    with opened(folder) as repo:
        made, never = outputs(repo)
        workers = workers or worker_count()
        local = read_local(repo, made, workers, cache_only=bool(remote))
        done: list[str] = []
        if remote:
            findings, done = check_remote(repo, made, remote, local, quick, put=mending)
        else:
            findings = check_local(repo, made, local)
            if mending and findings:
                done = mend(repo, made, local)
                local = read_local(repo, made, workers)
                findings = check_local(repo, made, local)
    lines = [*done, *([report(findings)] if findings else [])]
    named = len({path for finding in findings for path, _ in finding.files})
    where = f"remote {remote}" if remote else "cache and workspace"
    checked = f"{len(made)} outputs" + ("" if remote else f", {len(local.read)} files read")
    lines.append(f"{where}: not as dvc.lock says: {named} named above, in {len(findings)} of {checked}" if findings
                 else f"{where}: as dvc.lock says; {checked}")  # fmt: skip
    if never:
        more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
        lines.append(f"never made yet: {', '.join(never[:SHOWN])}{more}")
    return "\n".join(lines), int(bool(findings))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maskmill.verify", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--remote", default="", metavar="NAME", help="check this DVC remote, not the workspace")
    parser.add_argument("--quick", action="store_true", help="of a remote: do not read the objects")
    parser.add_argument("--mend", action="store_true", help="put right copies into the cache or the remote; remove "
                        "damaged cache objects, and workspace files that are copies of them")  # fmt: skip
    args = parser.parse_args()
    if args.quick and not args.remote:
        raise UserError("--quick: expected --remote NAME beside it; a cache is read as a whole")
    text, code = verify(remote=args.remote, quick=args.quick, mending=args.mend)
    print(text)
    sys.exit(code)


if __name__ == "__main__":
    exit_cleanly(main)
