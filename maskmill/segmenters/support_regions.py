"""Which regions of a class's support images are object and which are ground, by the way that the parameters name, and a
picture of them (OVDiff 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskmill.errors import UserError
from maskmill.masks.attentioncut import cross_map
from maskmill.masks.coco import Proposals
from maskmill.masks.regions import (
    Regions,
    Thresholds,
    at_shape,
    class_thresholds,
    maskcut,
    selected,
    thresholded,
    with_complement,
)
from maskmill.params import BuildPrototypes
from maskmill.report.grids import Column, Row, picture_grid

ALL = 1_000_000  # layers: more than any model has
ACROSS = 8  # pictures in a row of a grid
FOREGROUND, BACKGROUND = (255, 92, 40), (40, 120, 255)


def attribution(record: dict[str, np.ndarray], image: np.ndarray, settings: BuildPrototypes) -> np.ndarray:
    """A_n: attention to the class word, the mean over heads, layers and steps, min-max scaled -> (h, w) float32."""
    shape = (settings.size, settings.size) if settings.size else image.shape[:2]
    return cross_map(record, shape, ALL, settings.t_max)


class RegionFinder:
    """Foreground and background of the support images of one class, by the way that ``settings.regions`` names.

    Args:
        settings: the section ``build_prototypes``.
        maps: the attribution maps of all images of the class; ``otsu`` takes its thresholds from them.
        proposals: of ``proposals``, else None.

    Attributes:
        thresholds: of ``otsu``; None otherwise.
    """

    def __init__(
        self, settings: BuildPrototypes, maps: Sequence[np.ndarray], proposals: Proposals | None = None
    ) -> None:
        self.settings, self.proposals = settings, proposals
        self.thresholds: Thresholds | None = class_thresholds(maps) if settings.regions == "otsu" else None

    def __call__(
        self, id: str, attribution: np.ndarray, features: dict[str, np.ndarray], shape: tuple[int, int]
    ) -> Regions:
        """Regions of one image.

        Args:
            id: of the image.
            attribution: (h, w) float32.
            features: extractor -> (C, side, side); ``maskcut`` cuts those that it names.
            shape: (H, W) of the image, in which proposals are drawn.

        Returns:
            Masks on the grid of ``attribution``.
        """
        s = self.settings
        if s.regions == "otsu":
            return thresholded(attribution, self.thresholds)
        if s.regions == "maskcut":
            x = features[s.maskcut.extractor]
            masks = maskcut({f"feature_{x.shape[-1]}_0": x}, attribution.shape, s.maskcut.count, s.maskcut.tau,
                            s.maskcut.eps, s.maskcut.scale, s.maskcut.corners)  # fmt: skip
        else:
            masks = at_shape(self.proposals.masks(id, shape), attribution.shape)
        return selected(with_complement(masks), attribution, s.below, s.each, s.erode)


def open_proposals(settings: BuildPrototypes) -> Proposals | None:
    """The user's proposals where ``settings`` ask for them.

    Raises:
        UserError: they ask for proposals and name none; see ``maskmill.masks.coco.Proposals``.
    """
    if settings.regions != "proposals":
        return None
    if not settings.proposals:
        raise UserError("build_prototypes.proposals: expected a COCO file or folder for regions proposals, got ''")
    return Proposals(settings.proposals, settings.score)


def region_panel(image: np.ndarray, regions: Regions) -> np.ndarray:
    """The foreground in the picture's own colours with an orange rim, the background blue, what is neither grey.

    -> (H, W, 3) uint8 of the image's size.
    """
    grey = np.repeat((image @ np.array([0.299, 0.587, 0.114]))[..., None], 3, -1)  # (H, W, 3)
    fg, bg = (at_shape(mask, image.shape[:2]) for mask in (regions.foreground, regions.background))
    panel = np.where(fg[..., None], image, 0.5 * grey + 127)
    panel = np.where((bg & ~fg)[..., None], 0.55 * grey + 0.45 * np.array(BACKGROUND), panel)
    padded = np.pad(fg, 1, mode="edge")
    core = fg & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    panel[fg & ~core] = FOREGROUND
    return panel.astype(np.uint8)


def draw_support(
    path: Path, name: str, images: Sequence[np.ndarray], regions: Sequence[Regions], most: int, note: str = ""
) -> None:
    """One PNG with the support images of a class and their regions; those without a foreground say so."""
    rows = []
    for first in range(0, min(most, len(images)), ACROSS):
        part = range(first, min(first + ACROSS, most, len(images)))
        rows.append(Row(
            images[first],
            {str(i - first): region_panel(images[i], regions[i]) for i in part},
            texts={str(i - first): f"{i}" if regions[i].foreground.any() else f"{i}: no object" for i in part},
        ))  # fmt: skip
    columns = [Column(str(k), "", "image") for k in range(min(ACROSS, len(images)))]
    picture_grid(rows, columns, path, f"{name}: {note}" if note else name, panel=128)
