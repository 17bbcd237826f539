"""Semantic segmentation: mIoU from one confusion matrix of the whole data set.

Label 0 is the background (or what a data set leaves unlabelled), 1..C are the classes, 255 is void: pixels whose truth
is void are not scored, whatever is predicted there. With ``background="class"`` label 0 is a class like the others.
With ``"void"``, for benchmarks without one, its pixels are not scored either, and a prediction of 0 on a class's pixel
is a miss. A *prediction* of 255 always is.

IoU of a class is tp / (tp + fp + fn) over all scored pixels of all pictures together. A class that occurs neither in
the truth nor in the predictions has none and is left out of the means; one that is predicted but never true counts 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from maskmill.errors import UserError

VOID = 255
Background = Literal["class", "void"]

PROTOCOL = {
    "class": "mIoU over one confusion matrix of the whole set, background included, 255 not scored",
    "void": "mIoU over one confusion matrix of the whole set, without background: its pixels and 255 not scored",
}


class SemanticScores:
    """Streaming confusion matrix.

    Args:
        classes: names of labels 1..C, distinct, at most 254.
        background: see the module.

    Attributes:
        matrix: (C + 1, C + 2) int64, pixels by true label and predicted label; the last column is predicted void.
        images: how many pictures were added.
    """

    def __init__(self, classes: Sequence[str], background: Background = "class") -> None:
        if not 1 <= len(classes) < VOID or len(set(classes)) != len(classes):
            raise UserError(f"semantic scores: expected 1 to {VOID - 1} distinct classes, got {len(classes)} with "
                            f"{len(set(classes))} names")  # fmt: skip
        if background not in PROTOCOL:
            raise UserError(f"semantic scores: expected background as class or void, got {background!r}")
        self.classes, self.background = tuple(classes), background
        self.matrix = np.zeros((len(classes) + 1, len(classes) + 2), np.int64)
        self.images = 0

    def update(self, prediction: np.ndarray, truth: np.ndarray, name: str = "") -> None:
        """Add one picture.

        Args:
            prediction, truth: (H, W) integers, 0..C or 255.
            name: of the picture, for errors.

        Raises:
            UserError: sizes differ, no integers, or a label that is no class.
        """
        where = f"{name}: " if name else ""
        if np.ndim(truth) != 2 or np.shape(prediction) != np.shape(truth):
            raise UserError(f"{where}expected a label map of the size of the truth, {np.shape(truth)}, got "
                            f"{np.shape(prediction)}")  # fmt: skip
        self._check(truth, f"{where}truth")
        self._check(prediction, f"{where}prediction")
        count = len(self.classes)
        scored = truth != VOID if self.background == "class" else (truth != VOID) & (truth != 0)
        t = truth[scored].astype(np.int64)
        p = np.minimum(prediction[scored].astype(np.int64), count + 1)  # void -> the last column
        self.matrix += np.bincount(t * (count + 2) + p, minlength=self.matrix.size).reshape(self.matrix.shape)
        self.images += 1

    def _check(self, labels: np.ndarray, what: str) -> None:
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{what}: expected labels as integers, got {labels.dtype}")
        wrong = labels[((labels < 0) | (labels > len(self.classes))) & (labels != VOID)]
        if wrong.size:
            raise UserError(f"{what}: expected labels 0 to {len(self.classes)} or {VOID}, got {int(wrong[0])}")

    def merge(self, other: SemanticScores) -> None:
        """Add what another accumulator of the same classes saw."""
        if (other.classes, other.background) != (self.classes, self.background):
            raise ValueError("expected scores of the same classes and background")
        self.matrix += other.matrix
        self.images += other.images

    def table(self) -> pd.DataFrame:
        """One row per label that is scored: ``label, class, iou, recall, precision, truth, predicted``; the last two in
        pixels, the scores NaN where they divide by 0."""
        first = 0 if self.background == "class" else 1
        labels = np.arange(first, len(self.classes) + 1)
        names = ["background", *self.classes]
        tp = np.diag(self.matrix[:, :-1])[labels].astype(float)
        truth, predicted = self.matrix.sum(1)[labels], self.matrix.sum(0)[labels]
        with np.errstate(invalid="ignore"):
            return pd.DataFrame({
                "label": labels, "class": [names[i] for i in labels], "iou": tp / (truth + predicted - tp),
                "recall": tp / truth, "precision": tp / predicted, "truth": truth, "predicted": predicted,
            })  # fmt: skip

    def result(self, things: Collection[str] = ()) -> dict:
        """All scores.

        Args:
            things: names of the classes that are things, for the mean of those and of the others (the background is
                neither).

        Returns:
            ``miou``, ``miou_classes`` (without background), ``miou_things`` and ``miou_stuff`` where there are such,
            ``accuracy`` (share of scored pixels that are right), ``mean_accuracy`` (mean recall of the labels that
            occur), ``images``, ``classes`` {class: iou or None} and ``protocol``. All scores in 0..1.

        Raises:
            UserError: no pixel was scored.
        """
        if not self.matrix.any():
            raise UserError("semantic scores: expected at least one scored pixel, got none")
        table = self.table()
        iou = table.set_index("class")["iou"]
        of_classes = table[table["label"] > 0]
        is_thing = of_classes["class"].isin(list(things))
        means = {"miou": iou.mean(), "miou_classes": of_classes["iou"].mean()}
        if len(things):
            kinds = {"miou_things": is_thing, "miou_stuff": ~is_thing}
            means |= {key: of_classes["iou"][chosen].mean() for key, chosen in kinds.items()}
        means["accuracy"] = np.trace(self.matrix) / self.matrix.sum()
        means["mean_accuracy"] = table["recall"].mean()
        return {
            **{key: float(value) for key, value in means.items() if not np.isnan(value)},
            "images": self.images,
            "classes": {name: None if np.isnan(value) else float(value) for name, value in iou.items()},
            "protocol": PROTOCOL[self.background],
        }
