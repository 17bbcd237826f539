"""Which files of the library a script imports, directly or through others, read from the source text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "maskmill/labels"

# Modules that carry values and work but compute no result: command line, parameters (their values are tracked one by
# one), errors, worker processes. Were they deps, a new parameter of one stage would train the miniature again.
PLUMBING = {"maskmill/cli.py", "maskmill/cluster.py", "maskmill/errors.py", "maskmill/hub.py",
            "maskmill/params.py", "maskmill/spread.py", "maskmill/workers.py"}  # fmt: skip


def module_file(name: str) -> Path | None:
    """The file of a dotted module of the library, or None for one that is not the library's."""
    if name.split(".")[0] != "maskmill":
        return None
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imported_files(script: Path) -> set[str]:
    """Library files (relative, forward slashes) that ``script`` needs, the tables of labels that they name among them;
    plumbing and empty ``__init__.py`` left out."""
    found: set[Path] = set()
    queue = [script]
    while queue:
        tree = ast.parse(queue.pop().read_text())
        names: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for path in filter(None, map(module_file, names)):
            plumbing = path.relative_to(ROOT).as_posix() in PLUMBING
            if path not in found and path.stat().st_size and not plumbing:
                found.add(path)
                queue.append(path)
    named = {name for path in found for name in re.findall(r'"(\w+\.csv)"', path.read_text())}
    found |= {TABLES / name for name in named if (TABLES / name).is_file()}
    return {p.relative_to(ROOT).as_posix() for p in found}
