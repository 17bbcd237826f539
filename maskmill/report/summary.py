"""``metrics/summary.json``: the headline numbers of every stage in one flat, stable file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from maskmill.errors import UserError

DECIMALS = 6


def rounded(value: object, decimals: int = DECIMALS) -> object:
    """The same structure with every float rounded and -0.0 made 0.0. Raises ``UserError`` on NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): rounded(inner, decimals) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, decimals) for inner in value]
    if hasattr(value, "item") and not isinstance(value, float | int):
        value = value.item()  # a numpy scalar
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"expected a finite number, got {value}")
        return round(value, decimals) + 0.0
    return value


def to_json(value: object) -> str:
    """JSON with rounded floats, two spaces, keys in the order given, and a newline at the end."""
    return json.dumps(rounded(value), indent=2, ensure_ascii=False) + "\n"


def read_summary(path: str | Path) -> dict[str, float]:
    """The numbers of a summary file; an absent file is an empty summary. Raises ``UserError`` on anything else."""
    path = Path(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected one flat object of numbers, got {type(found).__name__}")
    return {key: _number(path, key, value) for key, value in found.items()}


def _number(where: object, key: str, value: object) -> float:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: key {key!r}: expected a finite number, got {value!r}")
    return value
