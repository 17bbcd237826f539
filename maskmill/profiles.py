"""Write a profile into params.yaml: ``python -m maskmill.profiles NAME [--print] [--params params.yaml]``.

A profile, ``profiles/NAME.yaml``, is a sparse patch: only the keys whose values differ from the committed ones, or with
``extends: OTHER`` from those of the profile OTHER beside it. The comments and the layout of params.yaml stay, the whole
result is checked before anything is written, and the difference is shown. With ``--print`` nothing is written and the
same values come out as flags:

    dvc exp run -n paper $(python -m maskmill.profiles sd14 --print)

`git checkout params.yaml` brings the committed values back.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from maskmill import params as parameters
from maskmill.errors import UserError, exit_cleanly
from maskmill.store import write_atomically

EXTENDS = "extends"


def read(path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A profile as dotted key -> plain value, with those of the profile that it extends.

    Args:
        below: names of the profiles that extend this one.

    Raises:
        UserError: no such profile (names those that there are), no YAML, a key that params.yaml cannot have or
            that is given twice, profiles that extend each other.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: no such profile; expected one of: {known}")
    try:
        data = parameters._parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got other bytes at position {error.start}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a section with keys, got {type(data).__name__}")
    known = dict(parameters.leaves(parameters.Params))
    base = data.pop(EXTENDS, None)
    flat = dict(_flatten(data))
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: {EXTENDS}: expected the name of a profile, got {base!r}")
    if base is not None and base in (*below, path.stem):
        raise UserError(f"{path}: {EXTENDS}: expected a profile that does not extend this one, got {base!r}")
    inherited = read(path.with_name(f"{base}.yaml"), (*below, path.stem)) if base is not None else {}
    for key in flat:
        if key not in known:
            raise UserError(f"{path}: {key}: unknown key; expected keys of maskmill/params.py")
    return inherited | flat


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def patch(text: str, changes: Mapping[str, Any]) -> str:
    """The text of a params.yaml with some values replaced; comments, order and layout stay."""
    editor = _editor()
    document = editor.load(text)
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        place = document
        for section in sections:
            place = place[section]
        if plain(place[last]) != value or type(plain(place[last])) is not type(value):
            place[last] = _flow(value)
    out = io.StringIO()
    editor.dump(document, out)
    return out.getvalue()


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 10_000  # never wrap a list
    return editor


def _flow(value: Any) -> Any:
    """Lists as [a, b] on one line, as params.yaml has them."""
    if not isinstance(value, list):
        return value
    row = CommentedSeq(value)
    row.fa.set_flow_style()
    return row


def plain(value: Any) -> Any:
    """A value without the marks that the editor keeps on it."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def differences(old: str, new: str) -> list[str]:
    """Lines ``key: old -> new`` between two texts of params.yaml."""
    before, after = (dict(_flatten(yaml.safe_load(text))) for text in (old, new))
    changed = [key for key in after if before.get(key) != after[key]]
    return [f"{key}: {_typed(before.get(key))} -> {_typed(after[key])}" for key in changed]


def _typed(value: Any) -> str:
    """A value as a Hydra override takes it: JSON without blanks, text bare where it can be."""
    if isinstance(value, list):
        return "[" + ",".join(_typed(v) for v in value) + "]"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def flags(changes: Mapping[str, Any], name: str) -> list[str]:
    """``-S key=value`` arguments of ``dvc exp run``.

    Raises:
        UserError: a text that a shell would split or that the override's grammar reads otherwise.
    """
    result = []
    for key, value in changes.items():
        texts = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
        for text in texts:
            if any(c.isspace() or c in "'\"\\$`*?#&;|<>(){}[],=:" for c in text):
                raise UserError(f"{name}: {key}: expected text that can be a flag, got {text!r}; run without --print")
        result += ["-S", f"{key}={_typed(value)}"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="profile, a file in --folder without .yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("profiles"), help="(default: %(default)s)")
    parser.add_argument("--print", action="store_true", dest="show", help="print flags for dvc exp run, write nothing")
    args = parser.parse_args()
    parameters.load(args.params)
    old = args.params.read_text(encoding="utf-8")
    path = args.folder / f"{args.name}.yaml"
    changes = read(path)
    new = patch(old, changes)
    parameters.loads(new, str(path))
    if args.show:
        print(" ".join(flags(changes, str(path))))
        return
    lines = differences(old, new)
    if lines:
        write_atomically(args.params, new)
    print("\n".join(lines) if lines else f"{args.params} has the values of {args.name} already")


if __name__ == "__main__":
    exit_cleanly(main)
