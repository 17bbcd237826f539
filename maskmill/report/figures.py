"""The look of all figures, and how they and their tables are written: PNG with byte-stable content, CSV or JSON.

The PNG holds no date and no version, so the same numbers give the same bytes with the same library versions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskmill.errors import UserError
from maskmill.report.summary import to_json
from maskmill.store import write_atomically

# Eight hues that stay apart for colour-blind readers and in print.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b")
INK, SOFT_INK, GRID = "#22272e", "#6a737d", "#e4e7eb"

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#b9c0c8",
    "xtick.color": SOFT_INK, "ytick.color": SOFT_INK, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10.0, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def new_axes(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no global state, with quiet axes."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(rows, 1, sharex=True)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color=GRID, linewidth=0.8)
        ax.tick_params(length=0)
    return figure, axes


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all, without any metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def save_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table for ``dvc plots``: ``.csv``, or ``.json`` as a list of records; six decimals."""
    path = Path(path)
    if path.suffix == ".csv":
        write_atomically(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    elif path.suffix == ".json":
        plain = frame.astype(object).where(frame.notna(), None)
        write_atomically(path, to_json(plain.to_dict("records")))
    else:
        raise UserError(f"{path}: expected a name that ends in .csv or .json")


def require(items: Mapping | Sequence, what: str) -> None:
    """Refuse a figure of nothing."""
    if not len(items):
        raise UserError(f"{what}: expected at least one series, got none")
