"""Score the predictions of a whole image set, draw by draw, so that mean and spread over the draws can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskmill.datasets.table import Item, read_labels, read_mask
from maskmill.errors import UserError
from maskmill.scores.localisation import CorLoc, tight_box
from maskmill.scores.saliency import SaliencyScores

Prediction = tuple[np.ndarray, np.ndarray]  # soft map (H, W) uint8 or float 0..1, mask (H, W) bool


@dataclass
class Run:
    """The scores of one draw of an image set."""

    saliency: SaliencyScores = field(default_factory=SaliencyScores)
    corloc: CorLoc = field(default_factory=CorLoc)

    def update(self, prediction: Prediction, truth: np.ndarray, cls: str, name: str) -> None:
        """Add one image; its true box is the tight box of the ground-truth mask."""
        soft, mask = prediction
        self.saliency.update(soft, mask, truth, cls, name)
        box = tight_box(truth)
        self.corloc.update(mask, [] if box is None else [box])

    def headline(self) -> dict[str, float]:
        """``iou, acc, maxf, corloc`` of the draw."""
        result = self.saliency.result()
        return {"iou": result["iou"], "acc": result["acc"], "maxf": result["maxf"],
                "corloc": self.corloc.result()["corloc"]}  # fmt: skip


def saved_prediction(masks: Path, item: Item) -> Prediction:
    """What stage attentioncut (or a later segmenter) wrote for an image.

    Raises:
        UserError: the mask or the soft map is missing or unreadable.
    """
    name = f"{item.sample_id}.png"
    return read_labels(masks / "soft" / name), read_mask(masks / "masks" / name)


def truth_of(folder: Path, item: Item) -> np.ndarray:
    """The ground-truth mask of an image, (H, W) bool."""
    if not item.mask:
        raise UserError(f"{folder}/index.csv: {item.sample_id}: expected a ground-truth mask, got none")
    return read_mask(folder / item.mask)


def score_set(
    items: Iterable[Item], folder: Path, predict: Callable[[Item], Prediction]
) -> dict[str, Run]:
    """Score every image; -> draw ("" where the set has none) -> its run, in the order of first appearance."""
    runs: dict[str, Run] = {}
    for item in items:
        runs.setdefault(item.seed, Run()).update(predict(item), truth_of(folder, item), item.cls, item.sample_id)
    return runs


def pooled(runs: Sequence[Run]) -> SaliencyScores:
    """All draws as one accumulator, for curves and per-class scores."""
    every = SaliencyScores()
    for run in runs:
        every.merge(run.saliency)
    return every
