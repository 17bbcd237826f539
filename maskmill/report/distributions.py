"""Figures that lay two sets of masks side by side: densities, centres, polygons (DiffusionSeg Figures 3 to 5).

As in ``maskmill.report.plots``: every function takes the numbers, writes a byte-stable PNG and the table beside it, and
returns the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from maskmill.errors import UserError
from maskmill.report.figures import GRID, INK, PALETTE, STYLE, save_png, save_table

POINTS = 256  # of a density curve
COLUMNS = 6  # polygons in a row, per set


def density(
    values: Sequence[float], at: np.ndarray, bounds: tuple[float | None, float | None] = (None, None)
) -> np.ndarray:
    """Gaussian kernel density of a sample.

    The bandwidth is Silverman's rule of thumb, 0.9 min(std, interquartile range / 1.34) n^(-1/5), at least a hundredth
    of the range of ``at``. What a kernel would put beyond a bound is reflected back, so that the density of a share
    integrates to 1 over 0..1.

    Args:
        values: the sample, finite and not empty, within the bounds.
        at: (m,) where the density is wanted, ascending.
        bounds: least and largest possible value; None: unbounded.

    Returns:
        (m,) float64, at least 0.
    """
    values = np.asarray(values, float)
    if not len(values) or not np.isfinite(values).all():
        raise UserError(f"density: expected finite values, got {len(values)}, of which {np.isfinite(values).sum()} are")
    quarter, three_quarters = np.quantile(values, (0.25, 0.75))
    spreads = [s for s in (values.std(), (three_quarters - quarter) / 1.34) if s > 0]
    width = max(0.9 * min(spreads, default=0.0) * len(values) ** -0.2, np.ptp(at) / 100)
    mirrored = [values, *(2 * bound - values for bound in bounds if bound is not None)]
    total = np.zeros(len(at))
    for sample in mirrored:
        for part in np.array_split(sample, max(1, len(sample) // 1000)):
            total += np.exp(-(((at[:, None] - part) / width) ** 2) / 2).sum(1)  # (m, n) -> (m,)
    return total / (len(values) * width * np.sqrt(2 * np.pi))


def density_curves(
    samples: Mapping[str, Sequence[float]], png: str | Path, table: str | Path, label: str, title: str,
    bounds: tuple[float | None, float | None] = (None, None),
) -> pd.DataFrame:  # fmt: skip
    """Density curves of several sets on one axis, each with its mean as a dashed line.

    Args:
        samples: set -> its values.
        label: of the axis of values.
        bounds: see ``density``; the curves end there.

    Returns:
        ``set, value, density``, stacked.
    """
    _require(samples, title)
    every = np.concatenate([np.asarray(v, float) for v in samples.values()])
    margin = 0.12 * (np.ptp(every) or 1.0)
    low, high = every.min() - margin, every.max() + margin
    low = low if bounds[0] is None else max(low, bounds[0])
    high = high if bounds[1] is None else min(high, bounds[1])
    at = np.linspace(low, high, POINTS)
    frames = []
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(1, 6.0, 3.6)
        for i, (name, values) in enumerate(samples.items()):
            colour, curve = PALETTE[i % len(PALETTE)], density(values, at, bounds)
            mean, std = float(np.mean(values)), float(np.std(values))
            ax.plot(at, curve, color=colour, linewidth=2, label=f"{name}   {mean:.3g} ± {std:.2g}")
            ax.fill_between(at, curve, color=colour, alpha=0.12, linewidth=0)
            ax.axvline(mean, color=colour, linewidth=1, linestyle=(0, (4, 3)))
            frames.append(pd.DataFrame({"set": name, "value": at, "density": curve}))
        ax.set(xlim=(low, high), xlabel=label, ylabel="density", title=title)
        ax.set_ylim(bottom=0)
        ax.legend(loc="upper right", handlelength=1.4)
        save_png(figure, png)
    return _stacked(frames, table)


def centre_scatter(
    centres: Mapping[str, np.ndarray], png: str | Path, table: str | Path, title: str = "Centres of the objects"
) -> pd.DataFrame:
    """Centres of boxes in their pictures, one panel per set, with their mean and an ellipse of one standard deviation.

    Args:
        centres: set -> (n, 2), x and y from the upper left corner in 0..1, at least one.

    Returns:
        ``set, x, y``, stacked.
    """
    _require(centres, title)
    frames = []
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(centres), 3.4 * len(centres), 3.9)
        for i, (ax, (name, points)) in enumerate(zip(axes, centres.items(), strict=True)):
            colour = PALETTE[i % len(PALETTE)]
            points = np.asarray(points, float)
            (x, y), (sx, sy) = points.mean(0), points.std(0)
            faint = float(np.clip(20 / np.sqrt(len(points)), 0.08, 0.7))
            ax.scatter(points[:, 0], points[:, 1], s=11, color=colour, alpha=faint, linewidths=0)
            ax.add_patch(Ellipse((x, y), 2 * sx, 2 * sy, fill=False, edgecolor=INK, linewidth=1.2))
            ax.plot(x, y, "+", color=INK, markersize=9, markeredgewidth=1.4)
            ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=np.arange(0, 1.1, 0.2),
                   yticks=np.arange(0, 1.1, 0.2), xlabel=f"spread {np.sqrt((sx**2 + sy**2) / 2):.3f}")  # fmt: skip
            ax.set_title(f"{name}  ({len(points):,})", fontsize=9, fontweight="normal")
            frames.append(pd.DataFrame({"set": name, "x": points[:, 0], "y": points[:, 1]}))
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        save_png(figure, png)
    return _stacked(frames, table)


def polygon_panels(
    polygons: Mapping[str, Sequence[np.ndarray]], png: str | Path, table: str | Path, title: str = "Polygons"
) -> pd.DataFrame:
    """Polygons of several sets, one panel per set, with their vertices as dots and their number below each.

    Args:
        polygons: set -> (V, 2) each, x and y (downwards) in the unit square, at least one.

    Returns:
        ``set, polygon, x, y``, one row per vertex, stacked; ``polygon`` counts from 0 in each set.
    """
    _require(polygons, title)
    step = np.array([1.3, 1.45])  # width and height of a place, of which a polygon fills 1 x 1
    rows = max(-(-len(shapes) // COLUMNS) for shapes in polygons.values())
    frames = []
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(polygons), 4.4 * len(polygons), 0.6 + 0.82 * rows)
        for i, (ax, (name, shapes)) in enumerate(zip(axes, polygons.items(), strict=True)):
            colour = PALETTE[i % len(PALETTE)]
            corners = [step * (k % COLUMNS, k // COLUMNS) for k in range(len(shapes))]
            placed = [shape + at + (1 - np.ptp(shape, axis=0)) / 2 for shape, at in zip(shapes, corners, strict=True)]
            fill = matplotlib.colors.to_rgba(colour, 0.15)
            ax.add_collection(PolyCollection(placed, facecolors=[fill], edgecolors=colour, linewidths=1.0))
            dots = np.concatenate(placed)
            ax.plot(dots[:, 0], dots[:, 1], ".", color=colour, markersize=2.6)
            for shape, (x, y) in zip(shapes, corners, strict=True):
                ax.annotate(f"{len(shape)}", (x + 0.5, y + 1.06), ha="center", va="top", fontsize=6.5)
            ax.set(xlim=(-0.1, COLUMNS * step[0] - 0.2), ylim=(rows * step[1] - 0.1, -0.1), aspect="equal")
            ax.axis("off")
            ax.set_title(name, fontsize=9, fontweight="normal")
            frames += [pd.DataFrame({"set": name, "polygon": k, "x": s[:, 0], "y": s[:, 1]})
                       for k, s in enumerate(shapes)]  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        save_png(figure, png)
    return _stacked(frames, table)


def _panels(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no global state, with quiet axes side by side."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color=GRID, linewidth=0.8)
        ax.tick_params(length=0)
    return figure, axes


def _stacked(frames: Sequence[pd.DataFrame], table: str | Path) -> pd.DataFrame:
    stacked = pd.concat(frames, ignore_index=True)
    save_table(stacked, table)
    return stacked


def _require(sets: Mapping[str, Sequence], what: str) -> None:
    if not sets or not all(len(values) for values in sets.values()):
        empty = [name for name, values in sets.items() if not len(values)]
        raise UserError(f"{what}: expected at least one value per set, got none{f' of {empty[0]}' if empty else ''}")
