"""Runs stage scripts as processes of their own, forked from a server that has imported torch and diffusers once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = ["pytest", "maskmill.diffusion.passes", "maskmill.zeroshot", "maskmill.report.plots", "maskmill.scores.runs"]
ENVIRONMENT = {"MASKMILL_DEVICE": "cpu", "MASKMILL_WORKERS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """A stage's exit code (negative: the signal that ended it) and what it wrote."""

    code: int
    out: str
    err: str


def run_stage(
    name: str, *argv: object, cwd: Path, env: dict[str, str] | None = None, kill_after: str = ""
) -> Finished:
    """Run ``stages/<name>.py`` in the folder ``cwd``. ``kill_after`` names a ``ShardWriter`` method: the process gets
    SIGKILL when that has returned for the first time."""
    os.environ.update(ENVIRONMENT)  # the server takes them over when it starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        places = [str(Path(folder) / name) for name in ("out", "err")]
        args = (name, [str(a) for a in argv], str(cwd), {**ENVIRONMENT, **(env or {})}, *places, kill_after)
        process = context.Process(target=_stage, args=args)
        process.start()
        process.join()
        return Finished(process.exitcode, *(Path(p).read_text(encoding="utf-8") for p in places))


def _stage(name: str, argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, kill_after: str) -> None:
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, stream.fileno())
        stream.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.update(env)
    script = ROOT / "stages" / f"{name}.py"
    sys.argv = [str(script), *argv]
    if kill_after:
        _die_after(kill_after)
    runpy.run_path(str(script), run_name="__main__")


def _die_after(method: str) -> None:
    from maskmill.store import ShardWriter

    original = getattr(ShardWriter, method)

    def last(self, *args):
        original(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(ShardWriter, method, last)
