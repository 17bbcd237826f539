"""The stages that a run consists of, as DVC itself expands them from dvc.yaml and parameters; nothing is run."""

from __future__ import annotations

import ast
import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import yaml

from maskmill import params as parameters
from maskmill.errors import UserError
from maskmill.params import Params

SCRIPT = re.compile(r"(?:^|\s)(stages/(\w+)\.py)(?=\s|$)")
TEST = re.compile(r'test -([nz]) "([^"]*)"')  # is a text not empty, or empty: DVC has filled it in, so it can be said
MADE = ("data/", "metrics/", "tables/")  # where stages write
SKIPPED = (".venv", ".git", ".dvc", "data", "scratch")


@dataclass(frozen=True)
class Command:
    """One call of a stage script: its name, what each option was given (``--no-x`` as x: ['false']), and the folders
    that the script itself names for options that were given none."""

    script: str
    options: Mapping[str, list[str]]
    defaults: Mapping[str, str] = field(default_factory=dict)

    def option(self, name: str) -> str:
        """The first value of a folder option, else the script's own default, else ''."""
        return (self.options.get(name) or [self.defaults.get(name, "")])[0]

    def parameters(self, text: str, name: str) -> Params:
        """The parameters as this command overrides them."""
        kinds = _kinds()
        given: list[tuple[str, str | tuple[str, ...]]] = []
        for key, values in sorted(self.options.items()):
            if key in kinds:
                listed = parameters.describe(kinds[key]).startswith("a list")
                given.append((key, tuple(values) if listed else (values[0] if values else _bare(kinds[key]))))
        return _loaded(text, name, tuple(given))


@cache
def _kinds() -> dict[str, Any]:
    return dict(parameters.leaves(Params))


@cache
def _loaded(text: str, name: str, given: tuple[tuple[str, Any], ...]) -> Params:
    """Most of a pipeline's commands override nothing: the file is read once for all of them."""
    return parameters.loads(text, name, {k: list(v) if isinstance(v, tuple) else v for k, v in given})


def _bare(kind: Any) -> str:
    """What an option without a value means."""
    return "" if parameters.is_text(kind) else "true"


@cache
def defaults(path: Path) -> Mapping[str, str]:
    """The folders that a stage script names as defaults of its options, read from its source: the literal entries of
    the third argument of ``stage_arguments``. Empty for a script that has none or is not there."""
    if not path.is_file():
        return {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "stage_arguments"
        if called and len(node.args) > 2 and isinstance(node.args[2], ast.Dict):
            pairs = zip(node.args[2].keys, node.args[2].values, strict=True)
            return {k.value: v.value for k, v in pairs
                    if isinstance(k, ast.Constant) and isinstance(v, ast.Constant) and v.value is not None}  # fmt: skip
    return {}


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, expanded. Paths are relative to the repository; ``outs``: path -> is it in DVC's cache."""

    name: str
    commands: tuple[Command, ...]
    deps: tuple[str, ...]
    outs: Mapping[str, bool]


def read(root: Path, text: str, targets: Iterable[str] = ("dvc.yaml",)) -> list[Stage]:
    """The stages of some targets and all that they need, those that need nothing first.

    Args:
        root: the repository.
        text: of params.yaml, for instance with a profile's values.
        targets: as ``dvc repro`` takes them: dvc.yaml files or their folders, relative to ``root``; stages, as
            ``generate`` or ``tables/x/dvc.yaml:rows@a``, without @ all of a family.

    Raises:
        UserError: a target is not there, or DVC cannot read one of the files.
    """
    files = sorted(p for p in root.rglob("dvc.yaml") if not set(p.relative_to(root).parts) & set(SKIPPED))
    chosen: list[tuple[str, str, str]] = []  # target, its file, its stage
    for target in targets:
        place, _, name = target.rpartition(":") if ":" in target else (target, "", "")
        if place == target and "/" not in target and not (root / target).exists():
            place, name = "dvc.yaml", target
        path = root / place / "dvc.yaml" if (root / place).is_dir() else root / place
        if path not in files:
            raise UserError(f"{target}: expected a dvc.yaml of this repository, found none")
        chosen.append((target, path.relative_to(root).as_posix(), name))
    wanted = list(dict.fromkeys(file for _, file, _ in chosen))
    stages: dict[str, dict[str, Stage]] = {}
    with tempfile.TemporaryDirectory() as aside:
        for path in files:
            copy = Path(aside) / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        Path(aside, "params.yaml").write_text(text, encoding="utf-8")
        # Expanding a file takes a second: others than the wanted ones only where these need what nobody has made.
        names = [path.relative_to(root).as_posix() for path in files]
        for name in dict.fromkeys([*wanted, *names]):
            if name in wanted:
                stages[name] = _resolve(root, Path(aside), name)
            elif _unmade(stages):
                try:
                    stages[name] = _resolve(root, Path(aside), name)
                except UserError:
                    continue  # a broken file that nobody asked for
    made_by = {out: s for found in stages.values() for s in found.values() for out in s.outs}
    order: dict[str, Stage] = {}
    for target, file, name in chosen:
        found = [s for s in stages[file].values() if not name or name in (own := s.name.rpartition(":")[2],
                                                                          own.partition("@")[0])]  # fmt: skip
        if name and not found:
            raise UserError(f"{target}: expected a dvc.yaml of this repository or a stage of {file}, found neither")
        for stage in found:
            _visit(stage, made_by, order)
    return list(order.values())


def _unmade(stages: Mapping[str, Mapping[str, Stage]]) -> bool:
    """Whether a stage needs data or metrics that no stage makes which is known so far."""
    known = [s for found in stages.values() for s in found.values()]
    outs = [out for s in known for out in s.outs]
    needed = {dep for s in known for dep in s.deps if dep.startswith(MADE)}
    return any(not any(_within(dep, out) or _within(out, dep) for out in outs) for dep in needed)


def _resolve(root: Path, aside: Path, name: str) -> dict[str, Stage]:
    """The stages of one dvc.yaml by their full names."""
    from dvc.config import Config  # late: a second that the rest does without
    from dvc.exceptions import DvcException
    from dvc.fs import LocalFileSystem
    from dvc.parsing import DataResolver

    try:
        config = Config(str(root / ".dvc"), validate=False) if (root / ".dvc").is_dir() else {}
        repo = SimpleNamespace(fs=LocalFileSystem(), config=config)
        folder = aside / PurePosixPath(name).parent
        definition = yaml.safe_load((aside / name).read_text(encoding="utf-8")) or {}
        found = DataResolver(repo, str(folder), definition).resolve()["stages"]
    except (DvcException, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{name}: expected a file that DVC can read, got: {' '.join(str(error).split())}") from None
    prefix = "" if name == "dvc.yaml" else f"{PurePosixPath(name).parent}:"
    place = PurePosixPath(name).parent
    return {prefix + key: _stage(prefix + key, value, place, root) for key, value in found.items()}


def _stage(name: str, definition: Mapping[str, Any], folder: PurePosixPath, root: Path) -> Stage:
    base = folder / definition.get("wdir", ".")
    lines = definition["cmd"] if isinstance(definition["cmd"], list) else [definition["cmd"]]
    outs: dict[str, bool] = {}
    for kind in ("outs", "metrics", "plots"):
        entries = definition.get(kind, [])
        for entry in entries.items() if isinstance(entries, Mapping) else entries:
            for path, settings in _entry(entry):
                outs[_plain(base / path)] = settings.get("cache", True)
    deps = tuple(_plain(base / path) for path in definition.get("deps", []))
    return Stage(name, tuple(c for line in lines for c in commands(line, root)), deps, outs)


def _entry(entry: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """``path``, ``{path: settings}`` or ``(path, settings)`` -> [(path, settings)]."""
    if isinstance(entry, str):
        return [(entry, {})]
    pairs = entry.items() if isinstance(entry, Mapping) else [entry]
    return [(path, settings or {}) for path, settings in pairs]


def _plain(path: PurePosixPath) -> str:
    """A relative path without ``.`` and ``..``."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def commands(line: str, root: Path | None = None) -> list[Command]:
    """The stage scripts that a command line calls; other programs are left out, and what ``test -n "text" ||`` rules
    out. ``root``: where the scripts are."""
    found = []
    for statement in re.split(r"\n|\s(?:&&|;)\s", line):
        *conditions, part = re.split(r"\s\|\|\s+", statement)
        tests = filter(None, (TEST.fullmatch(c.strip()) for c in conditions))
        if any(bool(test[2]) == (test[1] == "n") for test in tests):
            continue
        place = SCRIPT.search(part)
        if not place:
            continue
        options: dict[str, list[str]] = {}
        name = ""
        for word in shlex.split(part[place.end() :]):
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                if name.startswith("no-") and "." in name:
                    name, equals, value = name[3:], "=", "false"
                options[name] = [value] if equals else []
            elif name:
                options[name].append(word)
        found.append(Command(place[2], options, defaults(root / place[1]) if root else {}))
    return found


def _visit(stage: Stage, made_by: Mapping[str, Stage], order: dict[str, Stage]) -> None:
    """Put the stages that a stage needs into ``order``, then itself."""
    if stage.name in order:
        return
    for dep in stage.deps:
        maker = next((s for out, s in made_by.items() if _within(dep, out) or _within(out, dep)), None)
        if maker is not None and maker.name != stage.name:
            _visit(maker, made_by, order)
    order.setdefault(stage.name, stage)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
