"""A segmenter from a bank of prototypes: what stages segment and explain have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskmill import workers
from maskmill.params import Extractors, Model, Segment
from maskmill.segmenters.categories import Category
from maskmill.segmenters.features_of import open_extractors
from maskmill.segmenters.openvocab import Extract, Segmenter
from maskmill.segmenters.prototypes import Bank


def in_batches(extract: Extract, batch: int) -> Extract:
    """An extractor that always sees ``batch`` pictures, so that the features of one do not depend on the others."""

    def extract_all(views: Sequence[np.ndarray]) -> torch.Tensor:
        def of(index: list[int]) -> list[torch.Tensor]:
            return list(extract([views[i] for i in index]))

        return torch.stack(workers.in_batches(len(views), batch, of))

    return extract_all


def open_segmenter(
    bank: Bank, classes: Sequence[Category], model: Model, extractors: Extractors, settings: Segment, batch: int,
    device: str,
) -> Segmenter:  # fmt: skip
    """Load the extractors and the prototypes that were made with them.

    Args:
        classes: to look for, all of them in the bank; see ``maskmill.segmenters.openvocab.chosen_classes``.
        batch: views that go through an extractor together.
        device: a torch device string.

    Raises:
        UserError: an extractor cannot be loaded or is not the one of the prototypes, or the settings do not suit them.
    """
    opened = open_extractors(model, (), extractors, device)
    facts = {name: extract.facts for name, extract in opened.items()}
    prototypes = [bank.read(c.name, facts) for c in classes]
    steady = {name: in_batches(extract, batch) for name, extract in opened.items()}
    return Segmenter(prototypes, classes, steady, settings, model.clip, device)
