"""Damage of every kind, in cache, workspace and a remote in a folder: each file is found, named, and can be mended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskmill import verify
from maskmill.errors import UserError

PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs:
      - data/set
      - data/table.csv
      - metrics/curves: {cache: false}
      - metrics/score.json: {cache: false}
  later:
    cmd: python later.py
    outs: [data/later]
"""
MAKE = """
from pathlib import Path
for folder in ("data/set/images", "metrics/curves"):
    Path(folder).mkdir(parents=True, exist_ok=True)
for k in range(5):
    Path(f"data/set/images/{k}.txt").write_text(f"picture {k} " * (40 + k))
Path("data/set/index.csv").write_text("sample_id\\n" * 9)
Path("data/table.csv").write_text("a,b\\n" * 60)
for name in "ab":
    Path(f"metrics/curves/{name}.csv").write_text(name * 30)
Path("metrics/score.json").write_text("{}\\n")
"""
SET = "data/set, made by stage make:"


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {k: v for k, v in os.environ.items() if not k.startswith("DVC_") or k == "DVC_SITE_CACHE_DIR"} | {
        "PATH": path, "DVC_NO_ANALYTICS": "1"}  # fmt: skip


def call(folder: Path, *command: str) -> str:
    got = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert got.returncode == 0, f"{' '.join(command)}\n{got.stdout}\n{got.stderr}"
    return got.stdout


def dvc(folder: Path, *argv: str) -> str:
    return call(folder, sys.executable, "-m", "dvc", *argv)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository with a finished stage, everything committed and pushed to a remote in the folder ``store``."""
    top = tmp_path_factory.mktemp("verify")
    before = os.environ.get("DVC_SITE_CACHE_DIR")
    os.environ["DVC_SITE_CACHE_DIR"] = str(top / "site")
    folder = top / "a repository"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "make.py").write_text(MAKE)
    call(folder, "git", "init", "-q")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(
        "[core]\n    analytics = false\n    autostage = false\n    remote = store\n"
        "['remote \"store\"']\n    url = ../../store\n"
    )
    (folder / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
    dvc(folder, "repro", "-q", "make")
    call(folder, "git", "add", "-A")
    call(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "made")
    dvc(folder, "push", "-q")
    yield folder
    os.environ.pop("DVC_SITE_CACHE_DIR") if before is None else os.environ.update(DVC_SITE_CACHE_DIR=before)


@pytest.fixture
def folder(template, tmp_path):
    shutil.copytree(template, tmp_path / template.name)
    shutil.copytree(template.parent / "store", tmp_path / "store")
    return tmp_path / template.name


def object_of(folder: Path, file: str, place: str = ".dvc/cache") -> Path:
    """The cache object of a workspace file, or of a folder's list of files."""
    if (folder / file).is_dir():
        lock = (folder / "dvc.lock").read_text()
        md5 = next(line.split()[-1] for line in lock[lock.index(f"path: {file}") :].splitlines() if "md5: " in line)
    else:
        md5 = hashlib.md5((folder / file).read_bytes()).hexdigest()
    return folder / place / "files/md5" / md5[:2] / md5[2:]


def change(path: Path, data: bytes) -> None:
    """New bytes in the same file, with the time and the mode that it had, as a failing disk leaves them."""
    at = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(at.st_mode)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    change(path, bytes(data))


def name_of(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def test_all_is_well(folder):
    text, code = verify.verify(folder)
    assert code == 0
    assert text == ("cache and workspace: as dvc.lock says; 4 outputs, 18 files read\nnever made yet: data/later")


def test_a_truncated_object_that_dvc_serves(folder):
    """Through DVC itself: it checks the object out and calls the result up to date."""
    thing = object_of(folder, "data/set/images/3.txt")
    whole = thing.read_bytes()
    change(thing, whole[:11])
    right, code = verify.verify(folder)
    line = f"    {name_of(folder, thing)}: truncated to 11 of {len(whole)} bytes; the cache of data/set/images/3.txt"
    assert code == 1 and right.splitlines()[:2] == [SET, line] and "verify --mend   (right copies are" in right

    shutil.rmtree(folder / "data/set")
    dvc(folder, "checkout", "-q", "data/set")
    assert (folder / "data/set/images/3.txt").read_bytes() == whole[:11]
    assert "up to date" in dvc(folder, "status", "make")
    text, code = verify.verify(folder)
    assert code == 1 and text.splitlines() == [
        SET, line, f"    data/set/images/3.txt: truncated to 11 of {len(whole)} bytes",
        "    what to do: python -m maskmill.verify --mend   (removes what is damaged), then: dvc pull make   "
        "(where no remote has it: dvc repro make)",
        "cache and workspace: not as dvc.lock says: 2 named above, in 1 of 4 outputs, 18 files read",
        "never made yet: data/later"]  # fmt: skip

    text, code = verify.verify(folder, mending=True)
    assert code == 1 and not thing.exists() and not (folder / "data/set/images/3.txt").exists()
    dvc(folder, "pull", "-q", "make")
    assert verify.verify(folder)[1] == 0 and thing.read_bytes() == whole


def test_without_a_remote_the_stage_makes_it_again(folder):
    config = folder / ".dvc/config"
    config.write_text(config.read_text().split("    remote = store")[0])
    thing = object_of(folder, "data/set/images/3.txt")
    for path in (thing, folder / "data/set/images/3.txt"):
        flip(path)
    text, code = verify.verify(folder)
    size = thing.stat().st_size
    assert code == 1 and f"{name_of(folder, thing)}: damaged, {size} bytes that are not those that were made" in text
    assert "(removes what is damaged), then: dvc repro make\n" in text and "dvc pull" not in text
    verify.verify(folder, mending=True)
    dvc(folder, "repro", "-q", "make")
    assert verify.verify(folder)[1] == 0


@pytest.mark.parametrize("file", ["data/set/images/0.txt", "data/set/index.csv", "data/table.csv", "data/set"])
@pytest.mark.parametrize("harm", ["flip", "empty", "remove"])
def test_each_kind_of_object_is_named_and_put_back_from_the_workspace(folder, file, harm):
    thing = object_of(folder, file)
    whole = thing.read_bytes()
    if harm == "flip":
        flip(thing)
    elif harm == "empty":
        change(thing, b"")
    else:
        thing.unlink()
    text, code = verify.verify(folder)
    what = {"flip": "damaged, ", "empty": "truncated to 0 of ", "remove": "missing; "}[harm]
    lines = [line for line in text.splitlines() if line.startswith("    ") and "what to do" not in line]
    assert code == 1 and len(lines) == 1 and lines[0].startswith(f"    {name_of(folder, thing)}: {what}")
    assert lines[0].endswith(f"the cache of {file}" if file != "data/set" else "list of the files of data/set")
    assert ("data/table.csv, made by stage make:" if "table" in file else SET) in text
    assert "python -m maskmill.verify --mend   (right copies are at hand)\n" in text
    text, code = verify.verify(folder, mending=True)
    assert code == 0 and f"{name_of(folder, thing)}: put back from {file}" in text
    assert thing.read_bytes() == whole and thing.stat().st_mode & 0o777 == 0o444
    assert verify.verify(folder)[1] == 0


def test_what_was_changed_in_the_workspace_is_named_and_never_removed(folder):
    flip(folder / "data/set/images/1.txt")  # a byte that DVC does not see: size and time are as they were
    (folder / "data/set/images/2.txt").unlink()
    (folder / "data/set/new.txt").write_text("new")
    (folder / "data/table.csv").unlink()
    text, code = verify.verify(folder, mending=True)
    size = (folder / "data/set/images/1.txt").stat().st_size
    assert code == 1 and text.splitlines()[:8] == [
        SET, f"    data/set/images/1.txt: damaged, {size} bytes that are not those that were made",
        "    data/set/images/2.txt: missing", "    data/set/new.txt: not made by the stage",
        "    what to do: remove what is named (keep a copy if the change was meant), then: dvc checkout data/set",
        "data/table.csv, made by stage make:", "    data/table.csv: missing",
        "    what to do: dvc checkout data/table.csv"]  # fmt: skip
    assert (folder / "data/set/images/1.txt").exists() and (folder / "data/set/new.txt").exists()


def test_outputs_that_lie_in_git(folder):
    flip(folder / "metrics/curves/b.csv")
    (folder / "metrics/curves/a.csv").unlink()
    (folder / "metrics/score.json").write_text("{}")
    text, code = verify.verify(folder)
    assert code == 1 and "    metrics/curves/b.csv: damaged, it is not as in the last commit" in text
    assert "    metrics/curves/a.csv: missing" in text and "    metrics/score.json: truncated to 2 of 3 bytes" in text
    assert "git checkout -- metrics/curves   (it lies in git), or: dvc repro make" in text
    call(folder, "git", "checkout", "-q", "--", "metrics")
    assert verify.verify(folder)[1] == 0
    shutil.rmtree(folder / "metrics/curves")
    assert "    metrics/curves: missing" in verify.verify(folder)[0]


def test_a_fresh_clone_is_one_line_an_output(folder):
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / ".dvc/cache")
    text, code = verify.verify(folder)
    assert code == 1 and text.splitlines()[:6] == [
        SET, "    data/set: missing, here and in the cache",
        "    what to do: dvc pull make   (where no remote has it: dvc repro make)",
        "data/table.csv, made by stage make:", "    data/table.csv: missing, here and in the cache",
        "    what to do: dvc pull make   (where no remote has it: dvc repro make)"]  # fmt: skip


def test_a_lost_list_with_a_changed_folder(folder):
    object_of(folder, "data/set").unlink()
    flip(folder / "data/set/index.csv")
    text, code = verify.verify(folder)
    assert code == 1
    assert "data/set: its files are not those that dvc.lock names; the cache's list of them is lost" in text
    assert f"    {name_of(folder, object_of(folder, 'data/set'))}: missing; the cache's list of the files" in text


def test_links_into_the_cache_are_read_once(folder, monkeypatch):
    thing = object_of(folder, "data/table.csv")
    (folder / "data/table.csv").unlink()
    os.link(thing, folder / "data/table.csv")
    seen = []
    monkeypatch.setattr(verify, "digest", lambda path, name, real=verify.digest: seen.append(path) or real(path, name))
    assert verify.verify(folder)[1] == 0 and len(seen) == 17
    flip(thing)
    text, _ = verify.verify(folder)
    assert f"    {name_of(folder, thing)}: damaged" in text and "    data/table.csv: damaged" in text


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("file", ["data/set/images/4.txt", "data/table.csv", "data/set"])
@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_remote(folder, file, harm, quick):
    well = "remote store: as dvc.lock says; 4 outputs\nnever made yet: data/later"
    assert verify.verify(folder, "store", quick) == (well, 0)
    thing = object_of(folder, file, "../store").resolve()
    whole = thing.read_bytes()
    if harm == "truncate":
        change(thing, whole[:-1])
    else:
        thing.unlink()
    text, code = verify.verify(folder, "store", quick)
    what = "missing" if harm == "remove" else f"truncated to {len(whole) - 1} of {len(whole)} bytes"
    if (file, harm) == ("data/set", "truncate"):
        what = f"damaged, {len(whole) - 1} bytes that are not those that were made"
    role = "the list of the files of data/set" if file == "data/set" else file
    assert code == 1 and f"    {thing}: {what}; {role}\n" in text
    assert "python -m maskmill.verify --remote store --mend   (uploads the cache's right copies" in text
    text, code = verify.verify(folder, "store", mending=True)
    assert code == 0 and f"{thing}: uploaded" in text and thing.read_bytes() == whole
    assert verify.verify(folder, "store")[1] == 0


def test_dvc_push_holds_what_a_folder_lists_for_present(folder):
    """Why --mend uploads by itself."""
    thing = object_of(folder, "data/set/images/4.txt", "../store").resolve()
    thing.unlink()
    dvc(folder, "push", "-q")
    assert not thing.exists() and f"    {thing}: missing; data/set/images/4.txt" in verify.verify(folder, "store")[0]


def test_a_remote_without_a_right_copy_here(folder):
    for place in (".dvc/cache", "../store"):
        flip(object_of(folder, "data/table.csv", place))
    text, code = verify.verify(folder, "store", mending=True)
    assert code == 1 and "what to do: dvc repro make   (the cache has no right copy), then: python -m" in text
    assert "uploaded" not in text


def test_a_remote_that_was_never_pushed_to_and_one_that_is_not_there(folder):
    with (folder / ".dvc/config").open("a") as file:
        file.write("['remote \"other\"']\n    url = ../../other\n")
    text, code = verify.verify(folder, "other")
    assert code == 1 and text.count("missing") == 2 and ": missing; data/table.csv\n" in text
    assert "    data/set: missing in the remote, its list and all 6 files\n" in text
    with pytest.raises(UserError, match="remote 'nowhere' doesn't exist"):
        verify.verify(folder, "nowhere")


def test_no_repository_and_a_broken_pipeline(folder, tmp_path):
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        verify.verify(tmp_path)
    (folder / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match="dvc.yaml"):
        verify.verify(folder)


def test_of_what_was_never_made_a_few_are_named(folder):
    with (folder / "dvc.yaml").open("a") as file:
        file.writelines(f"  more{k}:\n    cmd: 'true'\n    outs: [data/more{k}]\n" for k in range(6))
    last = "never made yet: data/later, data/more0, data/more1, data/more2, data/more3 and 2 more"
    text, code = verify.verify(folder)
    assert code == 0 and text.splitlines()[-1] == last


def test_the_program(folder):
    command = [sys.executable, "-m", "maskmill.verify"]
    env = environment() | {"PYTHONPATH": str(Path(verify.__file__).parents[1])}
    flip(object_of(folder, "data/table.csv"))
    got = subprocess.run(command, cwd=folder / "data", env=env, capture_output=True, text=True)
    assert got.returncode == 1 and got.stderr == "" and "the cache of data/table.csv" in got.stdout
    got = subprocess.run([*command, "--quick"], cwd=folder, env=env, capture_output=True, text=True)
    assert (got.returncode, got.stdout) == (2, "") and got.stderr.startswith("error: --quick: expected --remote NAME")


def test_digests_against_hashlib_and_what_cannot_be_read(tmp_path):
    files = {str(tmp_path / f"{n}"): "md5" for n in (0, 1, verify.CHUNK, verify.CHUNK + 1)}
    for path in files:
        Path(path).write_bytes(os.urandom(int(Path(path).name)))
    found = verify.digests(files | {str(tmp_path / "none"): "md5"}, workers=3)
    for path in files:
        data = Path(path).read_bytes()
        assert found[path] == verify.Digest(hashlib.md5(data).hexdigest(), len(data))
    assert found[str(tmp_path / "none")] == verify.GONE == verify.digest(tmp_path)
    text = tmp_path / "text"
    text.write_bytes(b"a\r\nb\r\n")
    assert verify.digest(text, "md5-dos2unix").md5 == hashlib.md5(b"a\nb\n").hexdigest()


def test_a_list_of_files_is_dvcs_own(folder):
    data = object_of(folder, "data/set").read_bytes()
    entries = verify.entries_of(data, "x")
    assert list(entries)[0] == "images/0.txt" and verify.folder_bytes(entries, "md5") == data
    with pytest.raises(UserError, match="x: expected DVC's list"):
        verify.entries_of(json.dumps([1]).encode(), "x")
