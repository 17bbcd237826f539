"""What every stage script shares: its command line, its progress bar, its runtime settings, and dying with its parent.

    args, params = stage_arguments(__doc__, ("seed", "generate"), {"prompts": "data/prompts.csv", "out": "data/images"})

gives ``python stages/generate.py --params params.yaml --prompts ... --out ... --generate.guidance 5``. DVC expands a
table row ``{attentioncut: {lambda: 0.1, semantic: false}}`` to ``--attentioncut.lambda 0.1 --no-attentioncut.semantic``
(with ``dvc config parsing.bool boolean_optional``); these options take it as it comes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, get_origin

from tqdm import tqdm

from maskmill import params as parameters
from maskmill.errors import UserError
from maskmill.params import Params
from maskmill.store import write_atomically

__all__ = ["Runtime", "die_with_parent", "progress", "runtime", "stage_arguments", "worker_count", "write_atomically"]

# The libraries of a stage make half a million objects while they are imported. To look for garbage among them after
# every 700, as Python does, takes a sixth of that time.
gc.set_threshold(20_000)


def stage_arguments(
    doc: str | None, sections: Sequence[str], folders: Mapping[str, str | None], argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Params]:
    """Parse a stage's command line.

    Args:
        doc: the script's docstring, shown by ``--help``.
        sections: sections of params.yaml that the stage reads (``seed`` too); each of their parameters becomes an
            option ``--section.key``.
        folders: option name -> default of each input and output; None means that the stage derives it.
        argv: the command line without the program's name; None takes the process's.

    Returns:
        Namespace with ``params`` and the ``folders`` as attributes, and the parameters with all overrides applied.

    Raises:
        UserError: params.yaml or an override is wrong, see ``maskmill.params.load``.
        SystemExit: an unknown option (code 2), or ``--help``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--params", default="params.yaml")
    path = first.parse_known_args(argv)[0].params
    helping = any(a in ("-h", "--help") for a in argv)
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="parameter file (default: params.yaml)")
    places = parser.add_argument_group("inputs and outputs")
    for name, default in folders.items():
        shown = "set by the parameters" if default is None else default
        places.add_argument(f"--{name}", default=default, metavar="PATH", help=f"(default: {shown})")
    _add_parameters(parser, sections, path if helping and os.path.isfile(path) else None)
    given = vars(parser.parse_args(argv))
    overrides = {key: value for key, value in given.items() if key.startswith("=")}
    args = argparse.Namespace(**{k.replace("-", "_"): v for k, v in given.items() if k not in overrides})
    return args, parameters.load(path, {key[1:]: value for key, value in overrides.items()})


def _add_parameters(parser: argparse.ArgumentParser, sections: Sequence[str], path: str | None) -> None:
    """One option per parameter; ``path`` is where ``--help`` finds the present values and their comments."""
    present = parameters.load(path) if path else None
    said = parameters.comments(path) if path else {}
    kinds = {key: kind for key, kind in parameters.leaves(Params) if key.split(".")[0] in sections}
    for section in sections:
        if not any(key.split(".")[0] == section for key in kinds):
            raise ValueError(f"no section {section!r} in maskmill.params.Params")
    group = parser.add_argument_group("parameters (default: what the parameter file says)")
    for key, kind in kinds.items():
        about = [said.get(key, ""), parameters.describe(kind)]
        if present is not None:
            about.append(f"now {_as_typed(parameters.get(present, key)) or repr('')}")
        text = "; ".join(part for part in about if part).replace("%", "%%")
        dest, base = f"={key}", parameters.base_type(kind)  # '=' keeps parameters apart from the folders' names
        options: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": text}
        metavar = key.rsplit(".", 1)[-1].upper()
        if base is bool:
            group.add_argument(f"--{key}", nargs="?", const="true", metavar="true|false", **options)
            options["help"] = argparse.SUPPRESS
            group.add_argument(f"--no-{key}", action="store_const", const="false", **options)
        elif get_origin(base) is tuple:
            group.add_argument(f"--{key}", nargs="*", metavar=metavar, **options)
        elif parameters.is_text(kind):
            group.add_argument(f"--{key}", nargs="?", const="", metavar=metavar, **options)
        else:
            group.add_argument(f"--{key}", metavar=metavar, **options)


def _as_typed(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


# --- runtime ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime:
    """Settings that change how long a result takes, never the result. ``device`` is a torch device string."""

    device: str
    batch: int
    workers: int


def runtime(batch: int = 8, environ: Mapping[str, str] | None = None) -> Runtime:
    """Read MASKMILL_DEVICE (default: cuda where there is one, else cpu), MASKMILL_BATCH (default: ``batch``, which the
    stage chooses) and MASKMILL_WORKERS (default: the cores this process may use).

    Raises:
        UserError: a variable is no positive integer, or names a device that torch does not know or cannot reach.
    """
    environ = os.environ if environ is None else environ
    return Runtime(
        device=_device(environ.get("MASKMILL_DEVICE", "")),
        batch=_positive(environ, "MASKMILL_BATCH", batch),
        workers=worker_count(environ),
    )


def worker_count(environ: Mapping[str, str] | None = None) -> int:
    """MASKMILL_WORKERS alone, see ``runtime``; for a stage without a device, which then need not wait for torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _positive(os.environ if environ is None else environ, "MASKMILL_WORKERS", cores)


def _positive(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"{name}: expected an integer of at least 1, got {text!r}")
    return int(text)


def _device(text: str) -> str:
    import torch  # late: prompts, evaluate and --help do without it and start sooner

    if not text:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=torch.device(text))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"MASKMILL_DEVICE: expected a device like cpu or cuda:1, got {text!r}: {reason}") from None
    return text


def die_with_parent(always: bool = False) -> None:
    """Ask Linux to kill this process when DVC dies, so that ``kill -9`` of dvc leaves no stage running behind it.

    Only under DVC, unless ``always`` (for the workers of a stage): a stage started by hand with nohup shall outlive its
    shell. Elsewhere than on Linux nothing happens, and the lock of ``maskmill.store.ShardWriter`` keeps a second run
    from working beside the first.
    """
    if not sys.platform.startswith("linux") or not (always or "DVC_STAGE" in os.environ):
        return
    set_parent_death_signal = 1
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It died just before the request, which then would never come true.
        os.kill(os.getpid(), signal.SIGKILL)


# --- progress ---------------------------------------------------------------------------------------------------------


class _Lines:
    """A stream for tqdm that turns its redrawn bar into plain lines, for logs."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(iterable: Iterable | None, desc: str, total: int | None = None, unit: str = "sample", **more: Any) -> tqdm:
    """A progress bar with rate and time left on stderr; iterate over it, or ``update(n)`` it when ``iterable`` is None.

    On a terminal it appears after half a second; in a log it is a line every 30 seconds; quicker work stays silent.
    """
    terminal = sys.stderr.isatty()
    pace = {"mininterval": 0.2, "delay": 0.5} if terminal else {"mininterval": 30.0, "maxinterval": 60.0, "delay": 10.0}
    stream = sys.stderr if terminal else _Lines(sys.stderr)
    return tqdm(iterable, desc=desc, total=total, unit=unit, file=stream, dynamic_ncols=terminal, **{**pace, **more})
