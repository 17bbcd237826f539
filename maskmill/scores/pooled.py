"""Scores of the single-class sets (concept distillation) that pool a whole set: AUROC of soft maps, IoU of boxes.

Acc, IoU and mIoU pooled over all pixels are in ``maskmill.scores.saliency``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maskmill.errors import UserError
from maskmill.scores.localisation import Box, box_iou, predicted_box

LEVELS = 1 << 20

PROTOCOL = {
    "auroc_pooled": "area under the ROC curve over all pixels of the set together; ties, to 1 part in 2^20, count half",
    "box_iou": "IoU of the one predicted box (tight box of the largest 8-connected component) with the true box that "
               "it fits best, averaged over images; an image without a predicted box counts 0",
}  # fmt: skip


@dataclass
class PooledAuroc:
    """Streaming AUROC over the pixels of many images; two histograms, no map is kept.

    Attributes:
        scaled: bring each map to 0..1 first, as the paper does for its better number; a constant map becomes 0.
    """

    scaled: bool = True
    n: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((2, LEVELS), np.int64))

    def update(self, soft: np.ndarray, truth: np.ndarray) -> None:
        """Add one image: soft map (H, W) in 0..1 (any scale if ``scaled``), ground truth (H, W) bool.

        Raises:
            UserError: shapes that differ, values that are not finite, or unscaled ones outside 0..1.
        """
        x = np.asarray(soft, np.float64)
        if x.shape != truth.shape or truth.dtype != bool or not np.isfinite(x).all():
            raise UserError(f"AUROC: expected a finite map and a bool mask of one shape, got {x.shape} and "
                            f"{truth.shape} {truth.dtype}")  # fmt: skip
        if self.scaled:
            x = (x - x.min()) / (np.ptp(x) or 1.0)
        elif x.min() < 0 or x.max() > 1:
            raise UserError(f"AUROC: expected a map within 0..1, got {x.min():.4g}..{x.max():.4g}")
        level = np.minimum((x * LEVELS).astype(np.int64), LEVELS - 1)
        for k in (0, 1):
            self.histogram[k] += np.bincount(level[truth == bool(k)], minlength=LEVELS)
        self.n += 1

    def result(self) -> dict:
        """``auroc_pooled`` in 0..1, ``n`` images, ``protocol``. Raises ``UserError`` without both kinds of pixels."""
        negative, positive = self.histogram
        if not negative.any() or not positive.any():
            raise UserError("AUROC: expected foreground and background pixels in the set, got only one of them")
        below = np.cumsum(negative) - negative
        wins = float((positive * (below + negative / 2)).sum())
        return {"auroc_pooled": wins / (float(positive.sum()) * float(negative.sum())), "n": self.n,
                "protocol": PROTOCOL["auroc_pooled"]}  # fmt: skip


@dataclass
class BoxIoU:
    """Streaming mean box IoU, for sets that have boxes alone."""

    n: int = 0
    total: float = 0.0
    no_prediction: int = 0

    def update(self, mask: np.ndarray, truths: Sequence[Box]) -> float:
        """Add one image: its predicted mask (H, W) bool and its true boxes; -> its IoU.

        Raises:
            UserError: no true box.
        """
        if not truths:
            raise UserError("box IoU: expected at least one true box, got none")
        box = predicted_box(mask)
        value = 0.0 if box is None else max(box_iou(box, truth) for truth in truths)
        self.n += 1
        self.total += value
        self.no_prediction += box is None
        return value

    def result(self) -> dict:
        """``box_iou`` in 0..1, ``n``, ``no_prediction``, ``protocol``. Raises ``UserError`` without images."""
        if not self.n:
            raise UserError("box IoU: expected at least one image, got none")
        return {"box_iou": self.total / self.n, "n": self.n, "no_prediction": self.no_prediction,
                "protocol": PROTOCOL["box_iou"]}  # fmt: skip
