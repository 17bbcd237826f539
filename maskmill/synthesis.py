"""Pictures of prompts, with the attention to their class words: what stages generate and support have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from maskmill import workers
from maskmill.datasets.table import save_png
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.features import FeatureMean
from maskmill.params import Generate, Model, SupportSets
from maskmill.prompts import Row

Arrays = dict[str, np.ndarray]


class Made(NamedTuple):
    """A picture (S, S, 3) uint8, its attention record, and its features F^l where they were asked for."""

    picture: np.ndarray
    record: Arrays
    features: Arrays | None


class Synthesiser:
    """The diffusion model, ready to make pictures.

    Args:
        model: which one.
        settings: solver, steps, guidance and size.
        negative: the prompt of the unconditional branch.
        shape: what the attention records keep.
        batch: pictures that go through the model together.
        device: a torch device string.
        path: of the U-Net, up or down, whose features are kept; none: no features.

    Attributes:
        meta: JSON facts of the records, for the manifest of their store.
    """

    def __init__(
        self, model: Model, settings: Generate | SupportSets, negative: str, shape: passes.RecordShape, batch: int,
        device: str, path: str | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.negative, self.bins, self.batch = settings, negative, shape.bins, batch
        self.backbone = Backbone(model.id, model.revision, model.dtype, device)
        self.capture = passes.open_capture(self.backbone, shape)
        self.means = FeatureMean(self.backbone.unet, path) if path else None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Made]:
        """id -> what was made of it, in the order of ``rows``, on which a picture does not depend."""
        made = workers.in_batches(len(rows), self.batch, lambda index: self._sample([rows[i] for i in index]))
        return dict(zip([row.sample_id for row in rows], made, strict=True))

    def _sample(self, rows: Sequence[Row]) -> list[Made]:
        s = self.settings
        pictures, records, vectors = passes.generate(
            self.backbone, self.capture, [r.prompt for r in rows], [(r.token_start, r.token_end) for r in rows],
            [r.seed for r in rows], size=s.size, steps=s.steps, guidance=s.guidance, negative=self.negative,
            bins=self.bins, features=self.means, solver=s.solver,
        )  # fmt: skip
        return [Made(*own) for own in zip(pictures, records, vectors or [None] * len(rows), strict=True)]

    @property
    def meta(self) -> dict:
        return self.capture.meta


def save_pictures(made: dict[str, Made], folder: Path) -> None:
    """``<folder>/<id>.png``"""
    for name, own in made.items():
        save_png(own.picture, folder / f"{name}.png")


def set_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The table of an image set whose pictures were made of these rows and lie in ``images``. Its column ``seed`` is
    for the draw of a test set: that of a picture's noise is called ``noise_seed``."""
    names = {"cls": "class", "prompt": "caption", "seed": "noise_seed"}
    table = pd.DataFrame([asdict(row) for row in rows]).rename(columns=names)
    table.insert(2, "image", [f"images/{i}.png" for i in table["sample_id"]])
    return table
