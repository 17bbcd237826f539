"""Figures as PNG with byte-stable content, and the same numbers as CSV or JSON for ``dvc plots``.

Every function takes the numbers, writes the picture and the table beside it, and returns the table. The PNG holds no
date and no version, so the same numbers give the same bytes with the same library versions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from maskmill.errors import UserError
from maskmill.report.claims import show
from maskmill.report.summary import to_json
from maskmill.store import write_atomically

# Eight hues that stay apart for colour-blind readers and in print.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b")
INK, SOFT_INK, GRID = "#22272e", "#6a737d", "#e4e7eb"

_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#b9c0c8",
    "xtick.color": SOFT_INK, "ytick.color": SOFT_INK, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10.0, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def _axes(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
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


def _require(items: Mapping | Sequence, what: str) -> None:
    if not len(items):
        raise UserError(f"{what}: expected at least one series, got none")


def pr_curves(
    curves: Mapping[str, pd.DataFrame], png: str | Path, table: str | Path, title: str = "Precision and recall"
) -> pd.DataFrame:
    """Precision-recall curves, one per method, with a dot where F is largest.

    Args:
        curves: method -> frame with ``threshold, precision, recall, f`` (``SaliencyScores.curve``).
        png, table: output paths; the table is CSV or JSON by its ending.

    Returns:
        ``method, threshold, precision, recall, f``, stacked.
    """
    _require(curves, "precision-recall plot")
    with matplotlib.rc_context(_STYLE):
        figure, (ax,) = _axes(5.4, 4.6)
        for i, (name, curve) in enumerate(curves.items()):
            colour = PALETTE[i % len(PALETTE)]
            seen = curve[(curve["precision"] > 0) | (curve["recall"] > 0)]
            best = curve.loc[curve["f"].idxmax()]
            label = f"{name}   maxF {best['f']:.3f}"
            ax.plot(seen["recall"], seen["precision"], color=colour, linewidth=2, label=label)
            ax.plot(best["recall"], best["precision"], "o", color=colour, markersize=6, markeredgecolor="white")
        ax.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
        ax.legend(loc="lower left", handlelength=1.4)
        save_png(figure, png)
    stacked = pd.concat([c.assign(method=name) for name, c in curves.items()], ignore_index=True)
    stacked = stacked[["method", "threshold", "precision", "recall", "f"]]
    save_table(stacked, table)
    return stacked


def iou_distribution(
    ious: Mapping[str, Sequence[float]], png: str | Path, table: str | Path, title: str = "IoU per picture",
    bins: int = 20,
) -> pd.DataFrame:  # fmt: skip
    """Histogram of the per-image IoU of each method, one strip per method on a common axis, with its mean.

    Args:
        ious: method -> IoU values in 0..1.
        bins: equal bins of 0..1; the last holds 1 itself.

    Returns:
        ``method, iou_from, iou_to, count, share``.
    """
    _require(ious, "IoU distribution")
    edges = np.linspace(0, 1, bins + 1)
    frames = []
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.0, 0.7 + 0.95 * len(ious), len(ious))
        shares = {}
        for name, values in ious.items():
            _require(values, f"IoU distribution, {name}")
            counts, _ = np.histogram(values, edges)
            shares[name] = counts / len(values)
            frames.append(pd.DataFrame({"method": name, "iou_from": edges[:-1], "iou_to": edges[1:], "count": counts,
                                        "share": shares[name]}))  # fmt: skip
        top = 1.12 * max(float(s.max()) for s in shares.values())
        for i, (ax, (name, values)) in enumerate(zip(axes, ious.items(), strict=True)):
            colour, mean = PALETTE[i % len(PALETTE)], float(np.mean(values))
            ax.bar(edges[:-1], shares[name], width=0.92 / bins, align="edge", color=colour, alpha=0.85)
            ax.axvline(mean, color=INK, linewidth=1.2)
            right = mean < 0.8
            ax.annotate(f"mean {mean:.3f}", (mean, top), xytext=(5 if right else -5, -3), textcoords="offset points",
                        ha="left" if right else "right", va="top", fontsize=8)  # fmt: skip
            ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
            ax.set(ylim=(0, top), xlim=(0, 1), yticks=[])
            ax.spines["left"].set_visible(False)
        axes[0].set_title(title)
        axes[-1].set_xlabel(f"IoU with the ground truth ({len(next(iter(ious.values())))} pictures)")
        save_png(figure, png)
    stacked = pd.concat(frames, ignore_index=True)
    save_table(stacked, table)
    return stacked


def smoothed(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """Running mean over a centred window of ``share`` of the length; at the ends over what there is of the window."""
    values = np.asarray(values, float)
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def loss_curve(
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]], png: str | Path, table: str | Path,
    title: str = "Training loss", log: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Loss against the step: the raw values faint, their running mean strong.

    Args:
        losses: series -> (steps, losses), of one length and not empty; losses finite.
        log: logarithmic loss axis.

    Returns:
        ``series, step, loss``, stacked.
    """
    _require(losses, "loss curve")
    frames = []
    with matplotlib.rc_context(_STYLE):
        figure, (ax,) = _axes(6.4, 3.6)
        for i, (name, (steps, values)) in enumerate(losses.items()):
            if len(steps) != len(values) or not len(steps) or not np.isfinite(values).all():
                raise UserError(f"loss curve, {name}: expected as many finite losses as steps, got {len(steps)} steps "
                                f"and {len(values)} losses")  # fmt: skip
            colour, mean = PALETTE[i % len(PALETTE)], smoothed(values)
            ax.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            ax.plot(steps, mean, color=colour, linewidth=2, label=f"{name}   {mean[-1]:.4g}")
            frames.append(pd.DataFrame({"series": name, "step": steps, "loss": values}))
        ax.set(xlabel="step", ylabel="loss", title=title, yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.legend(loc="upper right", handlelength=1.4)
        save_png(figure, png)
    stacked = pd.concat(frames, ignore_index=True)
    save_table(stacked, table)
    return stacked


def training_curve(
    history: Sequence[Mapping[str, float]], png: str | Path, table: str | Path, title: str = "Training"
) -> pd.DataFrame:
    """Loss against the step and, where there was a validation, its loss and IoU.

    Args:
        history: rows of ``maskmill.training.fit``: step, lr, loss and perhaps val_loss, val_iou.

    Returns:
        The rows as a table.
    """
    if not history:
        raise UserError("training curve: expected at least one row, got none")
    frame = pd.DataFrame(history)
    dot = "o" if len(frame) == 1 else ""  # a line needs two
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.4, 3.6) if "val_iou" not in frame else _axes(6.4, 5.4, 2)
        for i, name in enumerate(n for n in ("loss", "val_loss") if n in frame):
            label = {"loss": "trained on", "val_loss": "left out"}[name]
            axes[0].plot(frame["step"], frame[name], dot, color=PALETTE[i], linewidth=2,
                         label=f"{label}   {frame[name].iloc[-1]:.4g}")  # fmt: skip
        axes[0].set(xlabel="step", ylabel="loss", title=title)
        axes[0].legend(loc="upper right", handlelength=1.4)
        if "val_iou" in frame:
            axes[1].plot(frame["step"], frame["val_iou"], dot, color=PALETTE[1], linewidth=2)
            axes[1].set(xlabel="step", ylabel="IoU", ylim=(0, 1), title="IoU on pairs left out of the training")
        for ax in axes:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        save_png(figure, png)
    save_table(frame, table)
    return frame


def table_bars(result: Mapping, metric: str, png: str | Path, table: str | Path) -> pd.DataFrame:
    """Rows of a paper table as horizontal bars, ours beside each published data set.

    Args:
        result: what ``tables.compare`` returns.
        metric: one of its metrics.

    Returns:
        ``row, series, value, std`` (std empty for published numbers), rows without any value left out.
    """
    records = []
    for row in result["rows"]:
        for dataset, scores in row["ours"].items():
            if metric in scores:
                records.append((row["row"], f"ours: {dataset}", scores[metric]["mean"], scores[metric].get("std")))
        for dataset, scores in row["published"].items():
            if scores.get(metric) is not None:
                records.append((row["row"], f"published: {dataset}", scores[metric], None))
    frame = pd.DataFrame(records, columns=["row", "series", "value", "std"])
    if metric not in result["units"] or frame.empty:
        raise UserError(f"{result['table']}: metric {metric!r}: expected at least one value, got none")
    labels = {r["row"]: r["row"] + (f":  {r['what']}" if r["what"] else "") for r in result["rows"]}
    title = f"{result['table']}: {metric}, ours beside the published"
    _draw_bars(frame, labels, metric, result["units"][metric], title, png)
    save_table(frame, table)
    return frame


def _draw_bars(frame: pd.DataFrame, labels: Mapping[str, str], metric: str, unit: str, title: str, png) -> None:
    rows, series = list(dict.fromkeys(frame["row"])), sorted(set(frame["series"]))  # "ours" sorts before "published"
    greys = ("#9aa5b1", "#b9c2cb", "#d5dbe1", "#e6eaee")
    ours = [s for s in series if s.startswith("ours")]
    colours = {s: PALETTE[i % len(PALETTE)] for i, s in enumerate(ours)}
    colours |= {s: greys[i % len(greys)] for i, s in enumerate(s for s in series if s not in colours)}
    thick = 0.8 / len(series)
    with matplotlib.rc_context(_STYLE):
        figure, (ax,) = _axes(6.6, 1.0 + (0.13 * len(series) + 0.12) * len(rows))
        for j, name in enumerate(series):
            part = frame[frame["series"] == name]
            y = [rows.index(r) + (j - (len(series) - 1) / 2) * thick for r in part["row"]]
            errors = part["std"].fillna(0).to_numpy(float) if part["std"].notna().any() else None
            ax.barh(y, part["value"], height=thick * 0.9, color=colours[name], label=name, xerr=errors,
                    error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
            if name in ours:
                ends = part["value"] if errors is None else part["value"] + errors
                for value, end, height in zip(part["value"], ends, y, strict=True):
                    ax.annotate(show(value, unit), (end, height), xytext=(4, 0), textcoords="offset points",
                                va="center", fontsize=7.5)  # fmt: skip
        ax.set_yticks(range(len(rows)), [labels[row] for row in rows])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set(xlabel=metric, title=title)
        figure.legend(loc="outside lower center", ncols=min(len(series), 2), handlelength=1.0, columnspacing=1.4)
        save_png(figure, png)
