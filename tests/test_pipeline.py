"""The pipeline as a whole: what dvc.yaml declares against what the scripts read, the direction of imports, and a whole
small ``dvc repro`` in a repository of its own."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import yaml

from maskmill import params, profiles
from tests import warm
from tests.closure import ROOT, imported_files
from tests.running import run_stage

PIPELINES = ["dvc.yaml", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tables/**/dvc.yaml"))]
SCRIPTS = sorted(p.stem for p in (ROOT / "stages").glob("*.py"))
SECTIONS = {f.name: f.type for f in dataclasses.fields(params.Params)}


# --- what dvc.yaml declares -------------------------------------------------------------------------------------------


def filled(value: object, known: dict[str, object]) -> object:
    """A part of dvc.yaml with its ``${...}`` replaced from ``known``."""
    if isinstance(value, dict):
        return {filled(k, known): filled(v, known) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, known) for v in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<!\\)\$\{([^}]*)\}", lambda m: str(known.get(m[1], "")), value)


def variables_of(file: Path, document: dict) -> dict[str, object]:
    """What ``${...}`` in a dvc.yaml may name: the params.yaml beside it and its ``vars``, inner keys joined by dots."""
    found: dict[str, object] = {}
    for entry in ["params.yaml", *document.get("vars", [])]:
        if isinstance(entry, dict):
            found |= entry
            continue
        name, _, keys = entry.partition(":")
        if (file.parent / name).is_file():
            loaded = yaml.safe_load((file.parent / name).read_text(encoding="utf-8"))
            found |= {key: loaded[key] for key in keys.split(",")} if keys else loaded
    return flat(found)


def flat(value: dict, prefix: str = "") -> dict[str, object]:
    """``{a: {b: 1}}`` -> ``{a: {b: 1}, a.b: 1}``."""
    found = {f"{prefix}{key}": inner for key, inner in value.items()}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
    return found


def read_pipeline(path: str) -> dict[str, dict]:
    """Stages of a dvc.yaml by name, ``foreach`` expanded; every path is relative to the root of the repository."""
    file = ROOT / path
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = variables_of(file, document)
    stages = {}
    for name, stage in document["stages"].items():
        if "foreach" not in stage:
            stages[name] = filled(stage, known)
            continue
        source = stage["foreach"]
        cases = known[source[2:-1]] if isinstance(source, str) else filled(source, known)
        for key, item in cases.items() if isinstance(cases, dict) else ((item, item) for item in cases):
            stages[f"{name}@{key}"] = filled(stage["do"], known | flat({"key": key, "item": item}))
    return stages


def paths_of(stage: dict, *kinds: str) -> list[str]:
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def scripts_of(stage: dict) -> list[str]:
    commands = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
    return [next(word for word in command.split() if word.startswith("stages/")) for command in commands]


def within(path: str, folder: str, mark: str = "/") -> bool:
    """Whether a path is a folder or below it; with mark "." whether a parameter is or belongs to another."""
    return path == folder or path.startswith(folder + mark)


# --- what a script reads ----------------------------------------------------------------------------------------------


@cache
def tree_of(script: str) -> ast.Module:
    return ast.parse((ROOT / script).read_text(encoding="utf-8"))


@cache
def library_files(script: str) -> frozenset[str]:
    return frozenset(imported_files(ROOT / script))


@cache
def sections_asked_for(script: str) -> frozenset[str]:
    """The sections in the call ``stage_arguments(__doc__, ("seed", ...), ...)``; none if there is no such call."""
    for node in ast.walk(tree_of(script)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "stage_arguments":
            return frozenset(ast.literal_eval(node.args[1]))
    return frozenset()


def section_named(node: ast.AST) -> str:
    """``params.generate`` -> "generate", anything else -> ""."""
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    return node.attr if named and node.attr in SECTIONS else ""


@cache
def values_read(script: str) -> frozenset[str]:
    """Parameters that a script reads: ``section.key``, or ``section`` where it hands one on that is read as a whole.

    Sections are found as ``params.generate`` and under the names that such an expression is given, as in
    ``p, g = params.prompts, params.generate``.
    """
    nodes = list(ast.walk(tree_of(script)))
    parent = {id(child): node for node in nodes for child in ast.iter_child_nodes(node)}
    named: dict[str, str] = {}
    naming = set()
    for node in nodes:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for name, part in zip(target.elts, value.elts, strict=True) if several else [(target, value)]:
                if isinstance(name, ast.Name) and section_named(part):
                    named[name.id] = section_named(part)
                    naming.add(id(part))
    read: set[str] = set()
    for node in nodes:
        is_name = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        section = named.get(node.id, "") if is_name else section_named(node)
        above = parent.get(id(node))
        if not section or id(node) in naming:
            continue
        if isinstance(above, ast.Attribute):
            read.add(f"{section}.{params.yaml_key(above.attr)}")
        else:
            read |= keys_read_by_library(section, script) or {section}
    return frozenset(read)


def keys_read_by_library(section: str, script: str) -> set[str]:
    """Keys that the library reads of a section which it gets under the section's own name, as in ``world.size``; none
    if it takes the section as a whole."""
    kind = getattr(params, str(SECTIONS[section]), None)
    keys = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in sorted(library_files(script)))
    if re.search(rf"\b(asdict|vars)\([^)]*\b{section}\b", text):
        return set()
    return {f"{section}.{params.yaml_key(m[1])}" for m in re.finditer(rf"\b{section}\.(\w+)", text) if m[1] in keys}


# --- the checks -------------------------------------------------------------------------------------------------------


PARAMETERS = frozenset(key for key, _ in params.leaves(params.Params))


def outputs(pipelines: dict[str, dict[str, dict]]) -> list[str]:
    every = [stage for stages in pipelines.values() for stage in stages.values()]
    return [out for stage in every for out in paths_of(stage, "outs", "metrics")]


def complaints(pipelines: dict[str, dict[str, dict]]) -> Iterator[str]:
    """What is wrong with the declarations of all stages, one line each."""
    made = outputs(pipelines)
    for path, stages in pipelines.items():
        for name, stage in stages.items():
            yield from (f"{path}: {name}: {line}" for line in complaints_of(stage, made))


def complaints_of(stage: dict, made: list[str]) -> Iterator[str]:
    """What is wrong with the declarations of one stage. ``made``: the outputs of all stages."""
    deps, declared = paths_of(stage, "deps"), set(stage.get("params", []))
    for dep in deps:
        if not (ROOT / dep).exists() and not any(within(dep, out) or within(out, dep) for out in made):
            yield f"dep {dep} does not exist and no stage makes it"
    for key in declared:
        if not any(within(leaf, key, ".") for leaf in PARAMETERS):
            yield f"parameter {key} does not exist"
    needed, read = set(), set()
    for script in scripts_of(stage):
        needed |= {script, *library_files(script)}
        values, asked = values_read(script), sections_asked_for(script)
        yield from (f"{script} reads params.{v} without asking for its section" for v in values
                    if v.split(".")[0] not in asked)  # fmt: skip
        yield from (f"{script} asks for the section {s} and does not read it" for s in asked
                    if not any(within(v, s, ".") for v in values))  # fmt: skip
        read |= values
    for file in sorted(needed):
        if not any(within(file, dep) for dep in deps):
            yield f"dep {file} is missing"
    for dep in deps:
        if dep.startswith(("maskmill", "stages")) and not any(within(file, dep) for file in needed):
            yield f"dep {dep} is not imported"
    for value in sorted(read):
        if not any(within(value, key, ".") for key in declared):
            yield f"parameter {value} is read and not declared"
    for key in declared:
        if not any(within(value, key, ".") or within(key, value, ".") for value in read):  # fmt: skip
            yield f"parameter {key} is declared and not read"


@pytest.fixture(scope="module")
def pipelines() -> dict[str, dict[str, dict]]:
    return {path: read_pipeline(path) for path in PIPELINES}


def test_every_dep_and_parameter_is_declared(pipelines):
    assert len(PIPELINES) >= 2 and "attentioncut@test" in pipelines["dvc.yaml"]
    assert list(complaints(pipelines)) == []


def test_the_check_notices_each_library_dep_script_and_parameter_that_is_removed(pipelines):
    made = outputs(pipelines)
    for path, stages in pipelines.items():
        for name, stage in stages.items():
            ours = [d for d in paths_of(stage, "deps") if d.startswith(("maskmill", "stages"))]
            for kind, entries in (("deps", ours), ("params", stage.get("params", []))):
                for entry in entries:
                    changed = copy.deepcopy(stage)
                    changed[kind].remove(entry)
                    assert any(entry in line for line in complaints_of(changed, made)), (path, name, entry)


@pytest.mark.parametrize(
    ("kind", "entry", "said"),
    [("deps", "maskmill/none.py", "does not exist"), ("deps", "data/none", "does not exist"),
     ("deps", "maskmill/report", "is not imported"), ("params", "attentioncut.lamda", "does not exist"),
     ("params", "evaluate", "declared and not read")],
)  # fmt: skip
def test_the_check_notices_what_is_declared_and_not_there(pipelines, kind, entry, said):
    changed = copy.deepcopy(pipelines)
    changed["dvc.yaml"]["attentioncut@test"][kind].append(entry)
    assert any(entry in line and said in line for line in complaints(changed))


def test_our_reading_of_dvc_yaml_is_dvcs_own(pipelines):
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        for path, stages in pipelines.items():
            theirs = {s.name: s for s in repo.stage.load_file(path)}
            assert theirs.keys() == stages.keys()
            for name, stage in stages.items():
                deps = {Path(d.fs_path).relative_to(ROOT).as_posix() for d in theirs[name].deps}
                assert deps == {*paths_of(stage, "deps"), *(["params.yaml"] if "params" in stage else [])}


# --- the direction of imports -----------------------------------------------------------------------------------------

LAYERS = [  # a module may import from its own line and from those below
    ["spread", "synthesis", "from_bank"],  # what stages have in common
    ["cli", "profiles", "workers", "cluster", "plan", "verify"],
    ["segmenters", "masks", "scores", "report", "pretraining", "datasets"],
    ["diffusion", "prompts", "zeroshot", "labels"],
    ["store", "training"],
    ["params", "world", "hub", "errors"],
]


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def library() -> list[Path]:
    return sorted((ROOT / "maskmill").rglob("*.py"))


def test_imports_run_one_way():
    for path in library():
        own = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for name in imports_of(path):
            assert name.split(".")[0] not in ("stages", "tests", "bench"), f"{own} imports {name}"
            if name.startswith("maskmill.") and path.name != "__init__.py":
                assert layer_of(name) >= layer_of(own), f"{own} imports {name}, which lies above it"
    for path in [*(ROOT / "stages").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        assert not {name for name in imports_of(path) if name.split(".")[0] in ("stages", "tests", "bench")}


def test_the_library_reads_no_parameter_file_and_knows_no_path_of_data():
    for path in library():
        if path.parent.name == "plan":
            continue  # which is about the pipeline itself
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        notes = {id(n.body[0].value) for n in documented if n.body and isinstance(n.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in notes:
                continue
            assert not re.match(r"(data|metrics|scratch)/", node.value), f"{path}: {node.value!r}"
            if "params.yaml" in node.value:  # as the default of an option, or in a message, never opened
                assert path.name in ("cli.py", "profiles.py", "params.py"), f"{path}: {node.value!r}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_docstring(name, tmp_path):
    got = run_stage(name, "--help", cwd=tmp_path)
    assert (got.code, got.err) == (0, "")
    doc = ast.get_docstring(ast.parse((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")))
    assert doc.strip() in got.out and f"python stages/{name}.py" in doc


# --- a whole run ------------------------------------------------------------------------------------------------------

HEADLINE = ["ac.auroc", "ac.iou", "attentioncut.iou", "attentioncut.acc", "attentioncut.maxf", "attentioncut.corloc",
            "attentioncut_noprior.iou", "decoder.iou", "decoder_noprior.iou", "kmeans.iou", "ncut.iou", "crf.iou",
            "colour.iou", "colourcut.iou", "centre.iou", "wrong_word.auroc", "own_object_rate"]  # fmt: skip
SCRATCH_ENVIRONMENT = ("DVC_STAGE", "DVC_ROOT", "LAUNCH", "MASKMILL_BATCH")


class Clone:
    """A fresh repository with the files of this one, smoke profile, and a random miniature as pretrain's output."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.path = folder, f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                check=True, capture_output=True, text=True)  # fmt: skip
        for name in listed.stdout.split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith(("data/", "metrics/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        shutil.copytree(model, folder / "data/mini")
        (folder / "metrics/pretrain").mkdir(parents=True)
        (folder / "metrics/pretrain/unet.csv").write_text("step,loss\n1,1.0\n2,0.5\n")
        self.call("git", "init", "-q")
        self.python("-m", "maskmill.profiles", "smoke")
        self.dvc("commit", "-f", "-q", "pretrain")

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k not in SCRATCH_ENVIRONMENT}
        return env | {"PATH": self.path, "OMP_NUM_THREADS": "1", "MASKMILL_DEVICE": "cpu", "HF_HUB_OFFLINE": "1",
                      "PYTHONPATH": str(self.folder), "DVC_NO_ANALYTICS": "1"}  # fmt: skip

    @contextmanager
    def with_warm_stages(self) -> Iterator[None]:
        """Stages start from a process that has imported this clone's library, see ``tests.warm``."""
        with tempfile.TemporaryDirectory() as place:  # a short path, as a socket needs
            server = warm.start(Path(place), self.environment())
            before, self.path = self.path, f"{place}{os.pathsep}{self.path}"
            try:
                yield
            finally:
                self.path = before
                if server is not None:
                    server.kill()
                    server.wait()

    def call(self, *command: str) -> str:
        got = subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True)
        assert got.returncode == 0, f"{' '.join(command)}\n{got.stdout}\n{got.stderr}"
        return got.stdout

    def python(self, *argv: str) -> str:
        return self.call(sys.executable, *argv)

    def dvc(self, *argv: str) -> str:
        return self.python("-m", "dvc", *argv)


def ran(printed: str) -> list[str]:
    return re.findall(r"^Running stage '([^']+)'", printed, re.MULTILINE)


def test_a_whole_run_twice_and_after_a_change(tmp_path, tiny_model):
    clone = Clone(tmp_path / "a path with spaces", tiny_model)
    weights = (clone.folder / "data/mini/unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    with clone.with_warm_stages():
        first = ran(clone.dvc("repro"))
    classes = profiles.read(ROOT / "profiles/smoke.yaml")["vocabulary.classes"]
    expected = {s for s in read_pipeline("dvc.yaml") if not s.startswith(("support@", "build_prototypes@"))}
    expected |= {f"{stage}@{name}" for stage in ("support", "build_prototypes") for name in classes}
    assert sorted(first) == sorted(expected - {"pretrain"})
    assert (clone.folder / "data/mini/unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == weights
    assert ran(clone.dvc("repro")) == []

    summary = json.loads((clone.folder / "metrics/summary.json").read_text())
    for key in HEADLINE:
        assert 0 <= summary[f"world.{key}"] <= 1 and summary[f"world.{key}_std"] >= 0, key
    for picture in ("metrics/grids/test.png", "metrics/grids/generated.png", "metrics/plots/pr.png",
                    "metrics/plots/iou.png", "metrics/loss/pretrain.png", "metrics/training/decoder.png"):  # fmt: skip
        assert (clone.folder / picture).stat().st_size > 1000

    changed = clone.folder / "params.yaml"
    text = changed.read_text(encoding="utf-8")
    changed.write_text(profiles.patch(text, {"attentioncut.lambda": 0.4321}), encoding="utf-8")
    assert sorted(ran(clone.dvc("repro", "--dry"))) == [
        "attentioncut@generated", "attentioncut@noprior", "attentioncut@test", "draw", "draw_generated", "evaluate"
    ]
