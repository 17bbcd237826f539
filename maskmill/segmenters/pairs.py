"""Image-mask pairs to train on: features or pictures on one side, masks of any origin on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from maskmill.datasets.table import Item, read_image, read_mask
from maskmill.errors import UserError
from maskmill.segmenters.models import IMAGE
from maskmill.store import Store

IN_MEMORY = 6 * 2**30  # bytes of a training set that is read once and kept


def mask_path(folder: Path, item: Item, masks: str) -> Path:
    """Where a pair's mask lies: ``own``: what the image set names; else ``<masks>/masks/<id>.png``.

    Raises:
        UserError: the set names no mask for the image.
    """
    if masks != "own":
        return Path(masks) / "masks" / f"{item.sample_id}.png"
    if not item.mask:
        raise UserError(f"{folder}/index.csv: {item.sample_id}: expected a mask of the set's own, got none")
    return folder / item.mask


class Pairs:
    """Random access to pairs (inputs by name, mask).

    Args:
        items, folder: rows of an image set, and where it lies.
        masks: ``own`` or a masks folder, see ``mask_path``.
        features: store of the images' features, or None: the input is the picture itself.
        size: side to which pictures are brought as inputs (squashed to a square) and masks as targets.
    """

    def __init__(
        self, items: Sequence[Item], folder: Path, masks: str, features: Store | None, size: int
    ) -> None:
        self.items, self.folder, self.masks, self.features, self.size = list(items), folder, masks, features, size
        self._kept: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] | None = {}
        if not self.items:
            raise UserError(f"{folder}: expected at least one pair to train on, got none")
        inputs, target = self._read(0)
        if (sum(v.nbytes for v in inputs.values()) + target.nbytes) * len(self.items) > IN_MEMORY:
            self._kept = None

    def __len__(self) -> int:
        return len(self.items)

    def inputs(self, item: Item) -> dict[str, np.ndarray]:
        """Features (C, side, side) float16 by name, or ``image`` (3, size, size) float16 in 0..1."""
        return inputs_of(self.folder, item, self.features, self.size)

    def _read(self, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        item = self.items[row]
        mask = read_mask(mask_path(self.folder, item, self.masks)).astype(np.float32)  # (H, W)
        if mask.shape != (self.size, self.size):
            resized = interpolate(torch.from_numpy(mask)[None, None], size=(self.size, self.size), mode="area")
            mask = resized[0, 0].numpy()
        return self.inputs(item), mask.astype(np.float16)

    def __getitem__(self, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if self._kept is None:
            return self._read(row)
        if row not in self._kept:
            self._kept[row] = self._read(row)
        return self._kept[row]

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """-> inputs by name, each (B, ...), and targets (B, 1, size, size) in 0..1; float32."""
        pairs = [self[int(row)] for row in rows]
        inputs = {name: np.stack([p[0][name] for p in pairs]) for name in pairs[0][0]}
        targets = np.stack([p[1] for p in pairs])[:, None]
        return ({name: torch.from_numpy(v).to(device).float() for name, v in inputs.items()},
                torch.from_numpy(targets).to(device).float())  # fmt: skip


def inputs_of(folder: Path, item: Item, features: Store | None, size: int) -> dict[str, np.ndarray]:
    """What a segmenter reads of an image: its features, or the picture as ``image`` (3, size, size) float16 in 0..1."""
    if features is not None:
        return features.read(item.sample_id)
    picture = read_image(folder / item.image, size)  # (size, size, 3)
    return {IMAGE: (picture.transpose(2, 0, 1) / 255.0).astype(np.float16)}


def segment_loss(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy; logits are brought to the targets' size (B, 1, S, S) bilinearly. The paper names no
    loss."""
    logits = model(inputs)
    if logits.shape[-2:] != targets.shape[-2:]:
        logits = interpolate(logits.float(), size=targets.shape[-2:], mode="bilinear", align_corners=False)
    return binary_cross_entropy_with_logits(logits.float(), targets)


def channel_statistics(
    pairs: Pairs, limit: int = 256
) -> tuple[dict[str, int], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Channels, mean and standard deviation of each feature over the first ``limit`` pairs, which of a large set are
    enough and cost seconds instead of a pass over everything."""
    sums: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    count: dict[str, int] = {}
    for row in range(min(limit, len(pairs))):
        for name, value in pairs[row][0].items():
            wide = value.astype(np.float64)  # (C, side, side)
            sums[name] = sums.get(name, 0.0) + wide.sum((1, 2))
            squares[name] = squares.get(name, 0.0) + (wide**2).sum((1, 2))
            count[name] = count.get(name, 0) + wide[0].size
    mean = {n: torch.from_numpy(s / count[n]) for n, s in sums.items()}
    variance = {n: np.maximum(0.0, squares[n] / count[n] - (s / count[n]) ** 2) for n, s in sums.items()}
    std = {n: torch.from_numpy(np.sqrt(v)) for n, v in variance.items()}
    return {n: len(s) for n, s in sums.items()}, mean, std


def augment(
    inputs: Mapping[str, torch.Tensor], targets: torch.Tensor, generator: torch.Generator, flip: bool, noise: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Mirror half of the pairs left to right, and add Gaussian noise to the inputs.

    A convolution's features of a mirrored picture are nearly the mirrored features. Noise is in units of each
    channel's standard deviation over the batch; it keeps a small training set from being learnt by heart.
    """
    inputs = dict(inputs)
    if flip:
        turned = (torch.rand(len(targets), generator=generator) < 0.5).to(targets.device)[:, None, None, None]
        inputs = {name: torch.where(turned, value.flip(-1), value) for name, value in inputs.items()}
        targets = torch.where(turned, targets.flip(-1), targets)
    if noise:
        for name, value in inputs.items():
            drawn = torch.randn(value.shape, generator=generator).to(value.device)
            inputs[name] = value + noise * value.std((0, 2, 3), keepdim=True) * drawn
    return inputs, targets


def validation_scores(model: torch.nn.Module, pairs: Pairs, batch: int, device: torch.device) -> dict[str, float]:
    """``val_loss`` and ``val_iou`` (per image, averaged; foreground where a target exceeds one half)."""
    losses, ious = [], []
    for start in range(0, len(pairs), batch):
        rows = range(start, min(len(pairs), start + batch))
        inputs, targets = pairs.batch(rows, device)
        logits = interpolate(model(inputs).float(), size=targets.shape[-2:], mode="bilinear", align_corners=False)
        losses += [float(binary_cross_entropy_with_logits(x, y)) for x, y in zip(logits, targets, strict=True)]
        found, truth = logits > 0, targets > 0.5
        both, either = (found & truth).sum((1, 2, 3)), (found | truth).sum((1, 2, 3))
        ious += torch.where(either > 0, both / either.clamp(min=1), 1.0).tolist()
    return {"val_loss": float(np.mean(losses)), "val_iou": float(np.mean(ious))}
