"""Runs stage scripts as processes of their own, forked from a server that has imported torch and diffusers once, and
says what they left."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = ["pytest", "maskmill.diffusion.passes", "maskmill.zeroshot", "maskmill.report.plots", "maskmill.scores.runs",
            "maskmill.training", "maskmill.segmenters.pairs"]  # fmt: skip
ENVIRONMENT = {"MASKMILL_DEVICE": "cpu", "MASKMILL_WORKERS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """A stage's exit code (negative: the signal that ended it) and what it wrote."""

    code: int
    out: str
    err: str


def files(folder: Path) -> dict[str, bytes]:
    """Relative name -> content of all files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(got: Finished, *parts: str, absent: Path) -> None:
    """Exit code 2, one line that has ``parts``, and neither the output ``absent`` nor its half left behind."""
    assert (got.code, got.err.count("\n"), got.err[:7]) == (2, 1, "error: "), got.err
    assert all(part in got.err for part in parts), got.err
    assert not absent.exists()
    if absent.parent.is_dir():
        assert not [p.name for p in absent.parent.iterdir() if p.name.endswith(".part")]


def small_params(folder: Path, changes: dict[str, object]) -> None:
    """Write params.yaml into a folder: the committed one with these changes (dotted key -> value)."""
    from maskmill import profiles

    text = profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), changes)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def server() -> multiprocessing.context.BaseContext:
    """Starts processes in which all of ``IMPORTED`` is imported already."""
    os.environ.update(ENVIRONMENT)  # the server takes them over when it starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def run_stage(
    name: str, *argv: object, cwd: Path, env: dict[str, str] | None = None, kill_after: str = "",
    settings: dict[str, object] | None = None,
) -> Finished:  # fmt: skip
    """Run ``stages/<name>.py`` in the folder ``cwd``.

    Args:
        kill_after: ``store.ShardFolder.put 2``: the process gets SIGKILL when this function of maskmill has returned
            for the second time; without a number for the first time.
        settings: constants of maskmill to run with: ``{"training.CHECKPOINT_SECONDS": 0.0}``.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [str(Path(folder) / name) for name in ("out", "err")]
        args = (name, [str(a) for a in argv], str(cwd), {**ENVIRONMENT, **(env or {})}, *places, kill_after,
                settings or {})  # fmt: skip
        process = server().Process(target=_stage, args=args)
        process.start()
        process.join()
        return Finished(process.exitcode, *(Path(p).read_text(encoding="utf-8") for p in places))


def _stage(
    name: str, argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, kill_after: str,
    settings: dict[str, object],
) -> None:  # fmt: skip
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, stream.fileno())
        stream.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.update(env)
    script = ROOT / "stages" / f"{name}.py"
    sys.argv = [str(script), *argv]
    for place, value in settings.items():
        setattr(*_found(place), value)
    if kill_after:
        _die_after(*kill_after.split())
    runpy.run_path(str(script), run_name="__main__")


def _found(place: str) -> tuple[object, str]:
    """``store.ShardFolder.put`` -> (the class, "put")."""
    module, *inner, last = place.split(".")
    owner = importlib.import_module(f"maskmill.{module}")
    for name in inner:
        owner = getattr(owner, name)
    return owner, last


def _die_after(place: str, times: str = "1") -> None:
    owner, name = _found(place)
    original, left = getattr(owner, name), [int(times)]

    def counted(*args, **kwargs):
        result = original(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)
