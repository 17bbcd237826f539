"""A segmenter from a bank on disk: its extractors see batches of one size, and are those of the prototypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskmill import params
from maskmill.errors import UserError
from maskmill.from_bank import in_batches, open_segmenter
from maskmill.segmenters.categories import Category
from maskmill.segmenters.features_of import open_extractors
from maskmill.segmenters.openvocab import Segmenter
from maskmill.segmenters.prototypes import Bank, ClassPrototypes, Link
from tests.running import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = [Category("bird", "bird", "thing"), Category("boat", "boat", "thing")]


def test_an_extractor_always_sees_a_whole_batch_and_answers_for_each_picture():
    seen = []

    def extract(views):
        seen.append(len(views))
        return torch.stack([torch.full((2, 1, 1), float(view.mean())) for view in views])

    views = [np.full((4, 4, 3), k, np.uint8) for k in range(5)]
    got = in_batches(extract, 3)(views)
    assert seen == [3, 3] and got.shape == (5, 2, 1, 1) and got[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def sections(tiny_model) -> params.Params:
    return params.load(ROOT / "params.yaml", {"model.id": str(tiny_model), "model.clip": str(tiny_model / "clip"),
                       "extractors.names": ["clip"], "segment.filter": "false", "segment.pamr": "false"})  # fmt: skip


@pytest.fixture(scope="module")
def bank(sections, tmp_path_factory) -> Bank:
    """Two classes whose prototypes are what CLIP sees in one picture."""
    bank = Bank(tmp_path_factory.mktemp("bank"))
    (extract,) = open_extractors(sections.model, (), sections.extractors).values()
    cells = extract([picture(0)])[0].flatten(1).T.numpy()  # (n, C)
    for number, category in enumerate(CLASSES):
        own = ClassPrototypes(category.name, {"clip": cells[[number]]}, {"clip": [
            Link("class", "foreground", "00", {"size": [1, 1], "counts": "01"}, (0, 0), 1)]})  # fmt: skip
        bank.write(own, "made up", {"clip": extract.facts})
    return bank


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def opened(bank: Bank, p: params.Params, batch: int) -> Segmenter:
    return open_segmenter(bank, CLASSES, p.model, p.extractors, p.segment, batch, "cpu")


def test_it_is_the_segmenter_of_the_banks_prototypes(bank, sections):
    segmenter = opened(bank, sections, 1)
    assert list(segmenter.names) == ["background", "bird", "boat"]
    plain = open_extractors(sections.model, (), sections.extractors)
    prototypes = [bank.read(c.name, {"clip": plain["clip"].facts}) for c in CLASSES]
    by_hand = Segmenter(prototypes, CLASSES, {"clip": lambda views: torch.cat([plain["clip"]([v]) for v in views])},
                        sections.segment, "")  # fmt: skip
    for seed in range(2):
        got, wanted = segmenter([picture(seed)])[0], by_hand([picture(seed)])[0]
        assert (got.labels == wanted.labels).all() and len(np.unique(got.labels)) > 1
        assert np.allclose(got.similarity, wanted.similarity, atol=1e-6)


def test_a_picture_owes_nothing_to_those_beside_it(bank, sections):
    segmenter = opened(bank, sections, 4)
    alone, beside = segmenter([picture(1)])[0], segmenter([picture(2), picture(1)])[1]
    assert (alone.labels == beside.labels).all() and (alone.similarity == beside.similarity).all()


def test_prototypes_of_another_extractor_are_refused(bank, sections):
    other = replace(sections, extractors=replace(sections.extractors, clip=replace(sections.extractors.clip, size=32)))
    with pytest.raises(UserError, match="bird"):
        opened(bank, other, 1)
