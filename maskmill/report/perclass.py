"""Semantic scores per class as pictures: IoU bars of several methods, and where the pixels of each class went."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from maskmill.errors import UserError
from maskmill.report.figures import INK, PALETTE, STYLE, new_axes, save_png
from maskmill.scores.semantic import SemanticScores

MOST = 40  # classes of which a picture shows the numbers


def class_bars(table: pd.DataFrame, png: str | Path, title: str) -> None:
    """Horizontal bars, methods beside each other in each class.

    Args:
        table: rows ``method, class, iou, iou_std``; a class that a method has no IoU of is left out there.
        png: the picture to write.
    """
    if not len(table):
        raise UserError("class bars: expected at least one row, got none")
    methods, classes = list(dict.fromkeys(table["method"])), list(dict.fromkeys(table["class"]))
    thick = 0.8 / len(methods)
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = new_axes(6.6, 1.0 + (0.12 * len(methods) + 0.12) * len(classes))
        for j, method in enumerate(methods):
            own = table[table["method"] == method].set_index("class")["iou"].reindex(classes)
            spread = table[table["method"] == method].set_index("class")["iou_std"].reindex(classes)
            y = np.arange(len(classes)) + (j - (len(methods) - 1) / 2) * thick
            ax.barh(y, own.fillna(0), thick * 0.9, color=PALETTE[j % len(PALETTE)], xerr=spread.fillna(0),
                    error_kw={"ecolor": INK, "elinewidth": 0.8}, label=method)  # fmt: skip
        ax.set_yticks(range(len(classes)), classes)
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.set_xlim(0, 1)
        ax.set_xlabel("IoU, mean and spread over the draws")
        ax.set_title(title)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.5 / len(classes)), ncols=1)
        save_png(figure, png)


def confusion_map(scores: SemanticScores, png: str | Path, title: str) -> None:
    """The confusion matrix with each row divided by its sum: rows are true labels, columns what was predicted.

    Labels that never occur are left out; of many classes the numbers are not written into the cells.
    """
    names = ["background", *scores.classes]
    first = 0 if scores.background == "class" else 1
    rows = [k for k in range(first, len(names)) if scores.matrix[k].any()]
    if not rows:
        raise UserError("confusion map: expected at least one scored pixel, got none")
    columns = [k for k in range(len(names) + 1) if k in rows or scores.matrix[:, k].any()]
    counts = scores.matrix[rows][:, columns].astype(float)
    share = counts / scores.matrix[rows].sum(1, keepdims=True)
    shown = [*names, "void"]
    with matplotlib.rc_context(STYLE):
        side = 1.8 + 0.42 * min(len(rows), MOST)
        figure, (ax,) = new_axes(side + 0.6, side)
        ax.grid(False)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(columns)), [shown[k] for k in columns], rotation=45, ha="right")
        ax.set_yticks(range(len(rows)), [shown[k] for k in rows])
        for i, row in enumerate(share if len(rows) <= MOST else ()):
            for j, value in enumerate(row):
                if value >= 0.005:
                    ax.text(j, i, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                            color="white" if value > 0.55 else INK)  # fmt: skip
        ax.set_ylabel("true")
        ax.set_xlabel("predicted")
        ax.set_title(title)
        save_png(figure, png)
