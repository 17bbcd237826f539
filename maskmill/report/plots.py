"""Figures of scores as PNG with byte-stable content, and the same numbers as CSV or JSON for ``dvc plots``.

Every function takes the numbers, writes the picture and the table beside it, and returns the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from maskmill.errors import UserError
from maskmill.report.claims import number_in, show
from maskmill.report.figures import INK, PALETTE, STYLE, new_axes, require, save_png, save_table


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
    require(curves, "precision-recall plot")
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = new_axes(5.4, 4.6)
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
    require(ious, "IoU distribution")
    edges = np.linspace(0, 1, bins + 1)
    frames = []
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(6.0, 0.7 + 0.95 * len(ious), len(ious))
        shares = {}
        for name, values in ious.items():
            require(values, f"IoU distribution, {name}")
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


def guidance_curves(frame: pd.DataFrame, word: str, png: str | Path, table: str | Path) -> pd.DataFrame:
    """Quality of generated pictures over the guidance w between two concepts: the distance to real ones, and below it
    the share of pictures that show the object.

    Args:
        frame: columns ``w``, one with the distance under its metric's name, ``found``; one row per w, ascending.

    Returns:
        The frame.
    """
    metric = next(name for name in frame.columns if name not in ("w", "found"))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(6.0, 4.8, 2)
        for ax, name, colour in zip(axes, (metric, "found"), PALETTE, strict=False):
            ax.plot(frame["w"], frame[name], "o-", color=colour, linewidth=2, markersize=4)
        axes[0].set(ylabel=metric, ylim=(0, None), title=f"Pictures of {word!r} against guidance")
        axes[1].set(xlabel="w: 0 is the background's prompt alone, 1 the object's", ylabel=f"{word} found")
        axes[1].set_ylim(0, 1.02)
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
    frame = _values(result, metric)
    labels = {r["row"]: r["row"] + (f":  {r['what']}" if r["what"] else "") for r in result["rows"]}
    _draw_bars(frame, labels, metric, result["units"][metric], _title(result, metric, frame), png)
    save_table(frame, table)
    return frame


def table_curve(
    result: Mapping, metric: str, axis: str, png: str | Path, table: str | Path, log: bool = False
) -> pd.DataFrame:
    """Rows of a table that is a sweep, as a curve over the number in each row's name; others are left out.

    Args:
        result: what ``tables.compare`` returns.
        axis: what the numbers are.
        log: whether their axis is logarithmic.

    Returns:
        As ``table_bars``, with the number of the row as ``x``, ascending.

    Raises:
        UserError: no row's name holds a number.
    """
    frame = _values(result, metric)
    frame.insert(1, "x", [number_in(row) for row in frame["row"]])
    frame = frame.dropna(subset="x").sort_values(["series", "x"], kind="stable", ignore_index=True)
    if frame.empty:
        raise UserError(f"{result['table']}: axis {axis!r}: expected rows whose names hold a number, got none")
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = new_axes(6.0, 3.6)
        for (name, part), colour in zip(frame.groupby("series", sort=True), PALETTE, strict=False):
            mark = "o" if len(part) > 1 else "D"
            errors = part["std"].fillna(0).to_numpy(float) if part["std"].notna().any() else None
            ax.errorbar(part["x"], part["value"], yerr=errors, fmt=f"{mark}-", color=colour, linewidth=2, markersize=5,
                        capsize=3, elinewidth=1, label=name)  # fmt: skip
        if log:
            ax.set_xscale("log")
        xs = sorted(set(frame["x"]))
        ax.set_xticks(xs, [f"{x:g}" for x in xs])
        ax.minorticks_off()
        ax.set(xlabel=axis, ylabel=f"{metric}, %" if result["units"][metric] == "percent" else metric)
        ax.set_title(_title(result, metric, frame))
        ax.legend(loc="best")
        save_png(figure, png)
    save_table(frame, table)
    return frame


def _values(result: Mapping, metric: str) -> pd.DataFrame:
    """All values of one metric in a table, ours and the published; ``row, series, value, std``."""
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
    return frame


def _title(result: Mapping, metric: str, frame: pd.DataFrame) -> str:
    beside = frame["series"].str.startswith("published").any()
    return f"{result['table']}: {metric}{', ours beside the published' * bool(beside)}"


def _draw_bars(frame: pd.DataFrame, labels: Mapping[str, str], metric: str, unit: str, title: str, png) -> None:
    rows, series = list(dict.fromkeys(frame["row"])), sorted(set(frame["series"]))  # "ours" sorts before "published"
    greys = ("#9aa5b1", "#b9c2cb", "#d5dbe1", "#e6eaee")
    ours = [s for s in series if s.startswith("ours")]
    colours = {s: PALETTE[i % len(PALETTE)] for i, s in enumerate(ours)}
    colours |= {s: greys[i % len(greys)] for i, s in enumerate(s for s in series if s not in colours)}
    thick = 0.8 / len(series)
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = new_axes(6.6, 1.0 + (0.13 * len(series) + 0.12) * len(rows))
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
        ax.set(xlabel=metric)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")  # the axes may be narrow
        figure.legend(loc="outside lower center", ncols=min(len(series), 2), handlelength=1.0, columnspacing=1.4)
        save_png(figure, png)
