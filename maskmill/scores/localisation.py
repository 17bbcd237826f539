"""Single-object localisation: the box of a mask and CorLoc.

A box is ``(x0, y0, x1, y1)`` in pixel indices from 0, both ends *inclusive*: a single pixel at the origin is
(0, 0, 0, 0) and has area 1. Boxes of other conventions are brought to this one before they are compared
(``from_voc``, ``from_coco``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maskmill.errors import UserError

Box = tuple[float, float, float, float]

PROTOCOL = (
    "share of images whose one predicted box (tight box of the largest 8-connected component) has IoU > 0.5 with at "
    "least one ground-truth box; an image without a predicted box is a miss"
)
_EIGHT = np.ones((3, 3), bool)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected component of a (H, W) bool mask, as (H, W) bool.

    Pixels that touch at a corner belong together. Of two equally large ones the first in row-major order stays. An
    empty mask stays empty.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise UserError(f"largest component: expected a (H, W) bool mask, got {mask.shape} {mask.dtype}")
    labels, count = ndimage.label(mask, structure=_EIGHT)
    if count <= 1:
        return mask.copy()
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def tight_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the pixels of a (H, W) bool mask, inclusive; ``None`` for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def predicted_box(mask: np.ndarray) -> Box | None:
    """The box that CorLoc scores: tight around the largest component; ``None`` for an empty mask."""
    return tight_box(largest_component(mask))


def from_voc(box: Sequence[float]) -> Box:
    """VOC ``xmin, ymin, xmax, ymax`` (from 1, inclusive) -> from 0, inclusive."""
    x0, y0, x1, y1 = (float(v) - 1 for v in box)
    return x0, y0, x1, y1


def from_coco(box: Sequence[float]) -> Box:
    """COCO ``x, y, width, height`` (from 0, the far edge exclusive) -> from 0, inclusive."""
    x, y, width, height = (float(v) for v in box)
    return x, y, x + width - 1, y + height - 1


def box_iou(a: Box, b: Box) -> float:
    """IoU of two inclusive boxes; a side from x0 to x1 is x1 - x0 + 1 long. Raises ``UserError`` on x1 < x0 - 1."""
    area_a, area_b = _area(a), _area(b)
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inside = max(width, 0) * max(height, 0)
    union = area_a + area_b - inside
    return inside / union if union > 0 else 0.0


def _area(box: Box) -> float:
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    if not (width >= 0 and height >= 0):
        raise UserError(f"box {tuple(box)}: expected x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    return width * height


def is_hit(predicted: Box | None, truths: Iterable[Box], threshold: float = 0.5) -> bool:
    """True when the predicted box has IoU > ``threshold`` (strictly) with any ground-truth box."""
    return predicted is not None and any(box_iou(predicted, truth) > threshold for truth in truths)


@dataclass
class CorLoc:
    """Streaming CorLoc. Every image counts in the denominator, also one without a predicted or a true box."""

    n: int = 0
    hits: int = 0
    no_prediction: int = 0
    no_truth: int = 0

    def update(self, mask_or_box: np.ndarray | Box | None, truths: Sequence[Box]) -> bool:
        """Add one image: its predicted mask ((H, W) bool) or box, and all its true boxes. Returns hit or miss."""
        predicted = predicted_box(mask_or_box) if isinstance(mask_or_box, np.ndarray) else mask_or_box
        hit = is_hit(predicted, truths)
        self.n += 1
        self.hits += hit
        self.no_prediction += predicted is None
        self.no_truth += len(truths) == 0
        return hit

    def result(self) -> dict:
        """``corloc`` in 0..1, ``n``, ``hits``, the counts of images without a box, and ``protocol`` in words."""
        if self.n == 0:
            raise UserError("CorLoc: expected at least one image, got none")
        return {
            "corloc": self.hits / self.n, "n": self.n, "hits": self.hits, "no_prediction": self.no_prediction,
            "no_truth": self.no_truth, "protocol": PROTOCOL,
        }  # fmt: skip
