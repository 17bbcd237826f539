"""The stage that compares two sets of masks, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskmill import params
from maskmill.datasets.table import item_rng, read_image, read_mask, read_table, save_png
from maskmill.errors import UserError
from maskmill.scores.geometry import measure, summarise
from stages.mask_statistics import measure_item
from tests.running import ROOT, run_stage

FIGURES = ["centres", "contrast", "polygons", "size"]


@pytest.fixture
def place(tmp_path, world_set) -> Path:
    """The held-out scenes, and a folder of masks for them: their own, the first one emptied."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "world").symlink_to(world_set)
    for k, item in enumerate(read_table(world_set)):
        save_png(read_mask(world_set / item.mask) & (k > 0), tmp_path / "masks/masks" / f"{item.sample_id}.png")
    return tmp_path


def compare(place: Path, *more: object, masks: str = "masks", **env: str):
    return run_stage("mask_statistics", "--images", "world", "--masks", masks, "--reference", "world", "--out",
                     "out", "--metrics", "m.json", *more, cwd=place, env=env)  # fmt: skip


def test_two_sets_are_compared_and_drawn_whatever_the_number_of_workers(place):
    seen = []
    for workers in ("1", "2"):
        got = compare(place, "--statistics.pairs", "5", "--statistics.polygons", "3", MASKMILL_WORKERS=workers)
        assert (got.code, got.err) == (0, "")
        seen.append({p.name: p.read_bytes() for p in [*(place / "out").iterdir(), place / "m.json"]})
    assert seen[0] == seen[1]
    assert seen[0].keys() == {"m.json", *(f"{n}.{e}" for n in FIGURES for e in ("csv", "png"))}

    found = json.loads((place / "m.json").read_text())
    assert list(found) == ["ours", "reference", "distance", "protocol", "dataset"] and found["dataset"] == ""
    items, seed = read_table(place / "world"), params.load(ROOT / "params.yaml").seed
    measured = [measure(read_mask(place / "world" / i.mask), read_image(place / "world" / i.image)) for i in items]
    for name, expected in (("reference", measured), ("ours", [None, *measured[1:]])):
        assert found[name] == pytest.approx(summarise(expected, 5, item_rng(seed, name)), abs=1e-6)
    assert [found["ours"][key] for key in ("n", "empty", "pairs")] == [7, 1, 5]
    assert 0 < max(found["distance"].values()) <= 1 / 8 + 1e-6  # one of eight masks differs
    assert found["protocol"]["reference"] == "world, masks own"

    centres = pd.read_csv(place / "out/centres.csv")
    assert centres["set"].value_counts().to_dict() == {"reference": 8, "ours": 7}
    np.testing.assert_allclose(centres[["x", "y"]].iloc[7:], [g.centre for g in measured], atol=1e-6)
    drawn = pd.read_csv(place / "out/polygons.csv")
    first, middle, last = (drawn[(drawn["set"] == "ours") & (drawn["polygon"] == k)] for k in range(3))
    for part, k in ((first, 1), (middle, 4), (last, 7)):
        np.testing.assert_allclose(part[["x", "y"]], measured[k].polygon, atol=1e-6)


def test_bad_input_is_one_line(place):
    masks = place / "masks/masks"
    first, second, *_ = read_table(place / "world")
    save_png(np.ones((9, 9), bool), masks / f"{first.sample_id}.png")
    with pytest.raises(UserError, match=r"world: s1-00000: expected a mask of the image's size, got \(9, 9\) and"):
        measure_item(place / "world", place / "masks", 0.01, first)
    for item in read_table(place / "world"):
        save_png(np.zeros((64, 64), bool), masks / f"{item.sample_id}.png")
    refused(compare(place), "world: expected at least one mask that is not empty, got 8 empty ones")
    (masks / f"{second.sample_id}.png").unlink()
    refused(compare(place), "masks/masks/s1-00001.png: expected an image, found no such file")
    assert not (place / "out").exists() and not (place / "m.json").exists()


def refused(got, said: str) -> None:
    assert (got.code, got.err.count("\n")) == (2, 1) and said in got.err, got.err


def test_the_shipped_tolerance_is_the_papers():
    assert params.load(ROOT / "params.yaml").statistics.tolerance == 0.01
