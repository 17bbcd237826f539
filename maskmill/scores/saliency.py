"""Saliency scores: Acc, IoU, maxF by two protocols, the precision-recall curve; per class and overall.

Conventions, the same everywhere in this module:

* Ground truth is foreground above 0.5 of its range: bool as it is, uint8 > 127.5, floats in 0..1 > 0.5.
* Soft maps are floats in 0..1 or uint8 0..255. A float s is quantised to floor(255 s + 0.5), which is also what a
  rounded 8-bit PNG of it holds, so a map scores the same in memory and read back. There is no min-max per image.
* The 255 thresholds are k = 1..255 on that scale: foreground at k is q >= k (s >= (k - 0.5) / 255). k = 0, where
  everything is foreground, is not a threshold.
* Both truth and prediction empty: IoU, F, precision and recall are 1 (nothing to find, nothing claimed). Only one of
  them empty: all four are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from maskmill.errors import UserError

BETA2 = 0.3
THRESHOLDS = np.arange(1, 256)

PROTOCOL = {
    "acc": "share of right pixels, per image, then averaged",
    "iou": "foreground IoU, per image, then averaged",
    "maxf": "beta^2 = 0.3, 255 thresholds, F averaged over images per threshold, then the maximum (primary)",
    "maxf_per_image": "beta^2 = 0.3, 255 thresholds, per-image maximum, averaged (secondary, optimistic)",
    "acc_pooled": "share of right pixels, pooled over all pixels of the set",
    "iou_pooled": "foreground IoU, pooled over all pixels of the set",
    "miou_pooled": "mean of foreground and background IoU, pooled over all pixels of the set",
}


def _checked(array: np.ndarray, what: str) -> np.ndarray:
    """The array, if it is (H, W) bool, uint8, or float within 0..1; a ``UserError`` that names ``what`` otherwise."""
    array = np.asarray(array)
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{what}: expected a map of shape (H, W), got {array.shape}")
    if array.dtype == bool or array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{what}: expected bool, uint8 0..255 or float 0..1, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also false for NaN
        raise UserError(f"{what}: expected floats within 0..1, got {low:.4g}..{high:.4g}")
    return array


def quantise(soft: np.ndarray, name: str = "soft map") -> np.ndarray:
    """A soft map on the 8-bit scale: (H, W) uint8, floor(255 s + 0.5) for floats. Raises ``UserError`` off 0..1."""
    soft = _checked(soft, name)
    if soft.dtype == np.uint8:
        return soft
    if soft.dtype == bool:
        return soft.astype(np.uint8) * 255
    wide = soft.astype(np.float64 if soft.dtype == np.float64 else np.float32)
    return np.clip(wide * 255 + 0.5, 0, 255).astype(np.uint8)


def binarise(mask: np.ndarray, name: str = "mask") -> np.ndarray:
    """Foreground above 0.5 of the range: (H, W) bool.

    A uint8 map whose largest value is 1 is refused: it is a 0/1 mask, which the 0..255 scale would call empty.
    """
    mask = _checked(mask, name)
    if mask.dtype == bool:
        return mask
    if mask.dtype == np.uint8:
        if mask.max() == 1:
            raise UserError(f"{name}: expected uint8 0..255 or bool, got uint8 with values 0 and 1")
        return mask > 127
    return mask > 0.5


def confusion(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, int]:
    """Pixel counts (tp, fp, fn, tn) of two (H, W) bool masks."""
    tp = int(np.count_nonzero(mask & truth))
    predicted, positive = int(np.count_nonzero(mask)), int(np.count_nonzero(truth))
    return tp, predicted - tp, positive - tp, mask.size - predicted - positive + tp


def accuracy(tp: int, fp: int, fn: int, tn: int) -> float:
    """Share of right pixels, (tp + tn) / all."""
    return (tp + tn) / (tp + fp + fn + tn)


def iou(tp: int, fp: int, fn: int) -> float:
    """tp / (tp + fp + fn); 1 when truth and prediction are both empty."""
    union = tp + fp + fn
    return tp / union if union else 1.0


def curves(soft: np.ndarray, truth: np.ndarray, beta2: float = BETA2) -> np.ndarray:
    """Precision, recall and F of one soft map at each of the 255 thresholds, from one joint histogram.

    F = (1 + beta^2) P R / (beta^2 P + R) = (1 + beta^2) tp / (beta^2 positives + predicted).

    Args:
        soft: (H, W) uint8 on the scale of ``quantise``.
        truth: (H, W) bool.

    Returns:
        (3, 255) float64: precision, recall, F at ``THRESHOLDS``.
    """
    joint = truth.astype(np.uint16) * np.uint16(256) + soft
    histogram = np.bincount(joint.ravel(), minlength=512).reshape(2, 256)
    at_least = np.cumsum(histogram[:, ::-1], 1)[:, ::-1][:, 1:].astype(np.float64)  # (2, 255) pixels with q >= k
    tp, predicted, positive = at_least[1], at_least.sum(0), float(histogram[1].sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.stack([tp / predicted, tp / positive, (1 + beta2) * tp / (beta2 * positive + predicted)])
    scores[:, tp == 0] = 0.0
    if positive == 0:
        scores[:, predicted == 0] = 1.0
    return scores


def aggregate(frame: pd.DataFrame, by: str = "cls") -> pd.DataFrame:
    """Scores per class and overall from per-image rows.

    Args:
        frame: columns ``acc, iou, f_best, tp, fp, fn, tn`` and the column ``by``, one row per image.

    Returns:
        One row per class in sorted order, then ``all``: ``n``, per-image means, and the pooled scores.
    """
    groups = {str(key): part for key, part in frame.groupby(by, sort=True)} | {"all": frame}
    return pd.DataFrame({key: _group_scores(part) for key, part in groups.items()}).T.astype({"n": int})


def _group_scores(part: pd.DataFrame) -> dict[str, float]:
    tp, fp, fn, tn = (int(part[key].sum()) for key in ("tp", "fp", "fn", "tn"))
    foreground = iou(tp, fp, fn)
    return {
        "n": len(part), "acc": part["acc"].mean(), "iou": part["iou"].mean(), "maxf_per_image": part["f_best"].mean(),
        "acc_pooled": accuracy(tp, fp, fn, tn), "iou_pooled": foreground,
        "miou_pooled": (foreground + iou(tn, fn, fp)) / 2,
    }  # fmt: skip


@dataclass
class SaliencyScores:
    """Streaming accumulator: one (3, 255) sum of curves per class and one small row per image; maps are not kept."""

    beta2: float = BETA2
    rows: list[tuple] = field(default_factory=list)
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def update(
        self, soft: np.ndarray | None, mask: np.ndarray, truth: np.ndarray, cls: str = "object", name: str = ""
    ) -> None:
        """Add one image.

        Args:
            soft: (H, W) soft map, uint8 0..255 or float 0..1; ``None`` scores the mask as its own soft map.
            mask: (H, W) predicted mask, bool, uint8 0..255 or float 0..1 (> 0.5 of the range).
            truth: (H, W) ground truth, the same types.
            cls: class for the per-class scores; ``all`` is reserved.
            name: names the sample in errors and in ``per_image``.

        Raises:
            UserError: wrong shape, type or range, or maps of different sizes.
        """
        label = f"sample {name or len(self.rows)}"
        if cls == "all":
            raise UserError(f"{label}: class 'all' is reserved for the overall row")
        hard, real = binarise(mask, f"{label}, mask"), binarise(truth, f"{label}, ground truth")
        levels = quantise(hard if soft is None else soft, f"{label}, soft map")
        if not hard.shape == real.shape == levels.shape:
            raise UserError(f"{label}: expected one size, got soft {levels.shape}, mask {hard.shape}, "
                            f"ground truth {real.shape}")  # fmt: skip
        counts = confusion(hard, real)
        curve = curves(levels, real, self.beta2)
        self.rows.append((name, cls, accuracy(*counts), iou(*counts[:3]), float(curve[2].max()), *counts))
        self.sums[cls] = self.sums.get(cls, 0.0) + curve

    def merge(self, other: SaliencyScores) -> None:
        """Add what another accumulator saw, as if its images had been added here after the present ones."""
        self.rows.extend(other.rows)
        for cls, curve in other.sums.items():
            self.sums[cls] = self.sums.get(cls, 0.0) + curve

    def per_image(self) -> pd.DataFrame:
        """One row per image: ``name, cls, acc, iou, f_best, tp, fp, fn, tn``."""
        return pd.DataFrame(self.rows, columns=["name", "cls", "acc", "iou", "f_best", "tp", "fp", "fn", "tn"])

    def curve(self, cls: str | None = None) -> pd.DataFrame:
        """Precision, recall and F averaged over the images of a class (all: ``None``) at each threshold.

        Returns:
            255 rows: ``threshold`` in (0, 1] (k / 255), ``precision``, ``recall``, ``f``.
        """
        self._require_images()
        if cls is not None and cls not in self.sums:
            raise UserError(f"class {cls!r}: expected one of {', '.join(sorted(self.sums))}")
        picked = sorted(self.sums) if cls is None else [cls]
        n = sum(row[1] in picked for row in self.rows)
        precision, recall, f = sum(self.sums[c] for c in picked) / n
        return pd.DataFrame({"threshold": THRESHOLDS / 255, "precision": precision, "recall": recall, "f": f})

    def result(self) -> dict:
        """All scores of the set: the overall ones flat, ``classes`` per class, ``protocol`` in words.

        Returns:
            ``n, acc, iou, maxf, maxf_threshold, maxf_per_image, acc_pooled, iou_pooled, miou_pooled``,
            ``classes`` {class: the same keys} and ``protocol``. All scores lie in 0..1.
        """
        self._require_images()
        table = aggregate(self.per_image())
        scores = {key: self._with_maxf(table.loc[key], None if key == "all" else key) for key in table.index}
        overall = scores.pop("all")
        return {**overall, "classes": scores, "protocol": dict(PROTOCOL)}

    def _with_maxf(self, row: pd.Series, cls: str | None) -> dict:
        curve = self.curve(cls)
        best = int(curve["f"].argmax())
        out = {key: float(value) for key, value in row.items()}
        out["n"] = int(row["n"])
        out["maxf"], out["maxf_threshold"] = float(curve["f"][best]), float(curve["threshold"][best])
        return out

    def _require_images(self) -> None:
        if not self.rows:
            raise UserError("saliency scores: expected at least one image, got none")
