"""Pictures of prompts: what the model makes of each row alone, whatever the batch; and the table of their set."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill import params
from maskmill.datasets.table import read_image
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.features import FeatureMean
from maskmill.prompts import Row
from maskmill.synthesis import Synthesiser, save_pictures, set_table
from tests.running import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [Row(f"{k:02d}-bird", "bird", "a photo of a bird", 4, 5, 11 + k) for k in range(3)]
SHAPE = passes.RecordShape(bins=2, cells=4)


@pytest.fixture(scope="module")
def committed() -> params.Params:
    return params.load(ROOT / "params.yaml", {"generate.steps": "2", "generate.guidance": "2"})


def synthesiser(tiny_model, committed, batch: int, path: str | None) -> Synthesiser:
    model = params.load(ROOT / "params.yaml", {"model.id": str(tiny_model)}).model
    return Synthesiser(model, committed.generate, "blurry", SHAPE, batch, "cpu", path)


def test_pictures_records_and_features_are_those_of_the_pass_itself(tiny_model, committed, tmp_path):
    made = synthesiser(tiny_model, committed, 2, "up")(ROWS)
    assert list(made) == [row.sample_id for row in ROWS]
    backbone, g = Backbone(str(tiny_model)), committed.generate
    capture = passes.open_capture(backbone, SHAPE)
    for row, own in zip(ROWS, made.values(), strict=True):
        pictures, records, vectors = passes.generate(
            backbone, capture, [row.prompt] * 2, [(4, 5)] * 2, [row.seed] * 2, size=g.size, steps=2, guidance=2.0,
            negative="blurry", bins=2, features=FeatureMean(backbone.unet, "up"), solver=g.solver,
        )  # fmt: skip
        assert (own.picture == pictures[0]).all()
        for mine, theirs in ((own.record, records[0]), (own.features, vectors[0])):
            assert mine.keys() == theirs.keys() and all(np.array_equal(mine[k], theirs[k]) for k in mine)
    assert len({own.picture.tobytes() for own in made.values()}) == 3
    save_pictures(made, tmp_path / "deep")
    for name, own in made.items():
        assert (read_image(tmp_path / "deep" / f"{name}.png") == own.picture).all()


def test_features_are_kept_where_asked_and_the_facts_of_the_records_are_told(tiny_model, committed):
    synthesise = synthesiser(tiny_model, committed, 3, None)
    made = synthesise(ROWS[:1])
    assert made["00-bird"].features is None and made["00-bird"].record
    assert synthesise.meta == synthesise.capture.meta and synthesise.meta["bins"] == 2


def test_the_table_of_the_set_keeps_seed_for_the_draw():
    table = set_table(ROWS)
    assert list(table) == ["sample_id", "class", "image", "caption", "token_start", "token_end", "noise_seed"]
    assert table.iloc[1].tolist() == ["01-bird", "bird", "images/01-bird.png", "a photo of a bird", 4, 5, 12]
