"""Curves of trainings as PNG, with their numbers as CSV or JSON beside them; a module of its own, as every training is
run again when the code that it uses changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from maskmill.errors import UserError
from maskmill.report.figures import PALETTE, STYLE, new_axes, require, save_png, save_table


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
    require(losses, "loss curve")
    frames = []
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = new_axes(6.4, 3.6)
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
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(6.4, 3.6) if "val_iou" not in frame else new_axes(6.4, 5.4, 2)
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
