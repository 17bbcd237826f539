"""Score the predictions of a whole image set, data set by data set and draw by draw, so that mean and spread over the
draws can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskmill.datasets.table import Item, image_size, parse_boxes, read_labels, read_mask
from maskmill.errors import UserError
from maskmill.scores import controls, localisation, saliency
from maskmill.scores.localisation import Box, CorLoc, tight_box
from maskmill.scores.saliency import SaliencyScores

Prediction = tuple[np.ndarray, np.ndarray]  # soft map (H, W) uint8 or float 0..1, mask (H, W) bool

PROTOCOL = {
    **saliency.PROTOCOL,
    "corloc": f"{localisation.PROTOCOL}; true boxes are the data set's own, or else the tight box of the true mask",
    "std": controls.PROTOCOL["std"],
}


@dataclass
class Run:
    """The scores of one draw of one data set."""

    saliency: SaliencyScores = field(default_factory=SaliencyScores)
    corloc: CorLoc = field(default_factory=CorLoc)

    def update(
        self, prediction: Prediction, truth: np.ndarray | None, cls: str, name: str, boxes: Sequence[Box] = ()
    ) -> None:
        """Add one image.

        Args:
            prediction: soft map and mask, both (H, W).
            truth: ground-truth mask (H, W) bool; ``None`` where the data set has boxes alone: only CorLoc is scored.
            cls, name: class and id of the image.
            boxes: the data set's true boxes; without any, the true box is the tight box of the ground-truth mask.
        """
        soft, mask = prediction
        if truth is not None:
            self.saliency.update(soft, mask, truth, cls, name)
            whole = tight_box(truth)
            boxes = boxes or ([] if whole is None else [whole])
        self.corloc.update(mask, boxes)

    def headline(self) -> dict[str, float]:
        """``iou, acc, maxf`` of the draw where there are masks, and ``corloc``.

        Raises:
            UserError: no images, or some have a mask and some have boxes alone: the scores would be of different ones.
        """
        masked = len(self.saliency.rows)
        if 0 < masked < self.corloc.n:
            raise UserError(f"scores: expected a ground-truth mask for every image of a data set or for none, got "
                            f"{masked} for {self.corloc.n} images")  # fmt: skip
        result = self.saliency.result() if masked else {}
        return {**{key: result[key] for key in ("iou", "acc", "maxf") if key in result},
                "corloc": self.corloc.result()["corloc"]}  # fmt: skip


def saved_prediction(masks: Path, item: Item) -> Prediction:
    """What stage attentioncut (or a later segmenter) wrote for an image.

    Raises:
        UserError: the mask or the soft map is missing or unreadable.
    """
    name = f"{item.sample_id}.png"
    return read_labels(masks / "soft" / name), read_mask(masks / "masks" / name)


def postprocessing_of(masks: Path) -> str:
    """What was done to a folder's masks after the method: the line in ``postprocess.txt``, which whoever does anything
    leaves beside them; ``none`` without such a file."""
    path = masks / "postprocess.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "none"


def truth_of(folder: Path, item: Item) -> np.ndarray:
    """The ground-truth mask of an image, (H, W) bool."""
    if not item.mask:
        raise UserError(f"{folder}/index.csv: {item.sample_id}: expected a ground-truth mask, got none")
    return read_mask(folder / item.mask)


def score_item(run: Run, item: Item, folder: Path, prediction: Prediction) -> None:
    """Add one image to a draw's scores.

    Raises:
        UserError: an image with neither mask nor boxes, unreadable ground truth, or maps of another size than that.
    """
    boxes = parse_boxes(item.boxes)
    if item.mask or not boxes:
        run.update(prediction, truth_of(folder, item), item.cls, item.sample_id, boxes)
        return
    size = image_size(folder / item.image)
    if prediction[1].shape != size:
        raise UserError(f"sample {item.sample_id}: expected a mask of the image's size {size}, got "
                        f"{prediction[1].shape}")  # fmt: skip
    run.update(prediction, None, item.cls, item.sample_id, boxes)


def score_set(
    items: Iterable[Item], folder: Path, predict: Callable[[Item], Prediction]
) -> dict[str, Run]:
    """Score every image as of one data set; -> draw ("" where the set has none) -> its run, in the order of first
    appearance."""
    runs: dict[str, Run] = {}
    for item in items:
        score_item(runs.setdefault(item.seed, Run()), item, folder, predict(item))
    return runs


def score_datasets(
    items: Iterable[Item], folder: Path, predict: Callable[[Item], Prediction]
) -> dict[str, dict[str, Run]]:
    """Score every image; -> data set ("" where the column has none) -> draw -> its run, in the order of first
    appearance."""
    datasets: dict[str, dict[str, Run]] = {}
    for item in items:
        run = datasets.setdefault(item.dataset, {}).setdefault(item.seed, Run())
        score_item(run, item, folder, predict(item))
    return datasets


def summarise_datasets(datasets: Mapping[str, Mapping[str, Run]]) -> dict:
    """What stage score writes of ``score_datasets``: the headlines, with the number of images and the draws.

    Returns:
        ``datasets`` {name: {``scores``: means over the draws, and ``<key>_std`` where there are several, ``images``,
        ``draws``}}, and ``protocol`` in words for each score that occurs.
    """
    found = {
        name: {
            "scores": controls.summarise_seeds([run.headline() for run in runs.values()], ""),
            "images": sum(run.corloc.n for run in runs.values()),
            "draws": list(runs),
        }
        for name, runs in datasets.items()
    }
    told = {"std" if key.endswith("_std") else key for entry in found.values() for key in entry["scores"]}
    return {"datasets": found, "protocol": {key: words for key, words in PROTOCOL.items() if key in told}}


def pooled(runs: Sequence[Run]) -> SaliencyScores:
    """All draws as one accumulator, for curves and per-class scores."""
    every = SaliencyScores()
    for run in runs:
        every.merge(run.saliency)
    return every
