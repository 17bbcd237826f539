"""Stage extract_features as a user runs it: its store, resumed, batched, spread over workers, and what it refuses."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.datasets.table import read_image, read_table
from maskmill.store import Store
from tests.running import assert_refused, files, run_stage
from tests.test_stages import arrange

COUNT = 40  # two shards
OUT = "data/extracted/clip/world"


@pytest.fixture(scope="module")
def many(tmp_path_factory, world_set) -> Path:
    """An image set of 40 rows on 8 pictures, one of them of another shape."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(world_set / "images", folder / "images")
    pictures = sorted(p.name for p in (folder / "images").iterdir())
    Image.open(folder / "images" / pictures[3]).resize((90, 40)).save(folder / "images" / pictures[3])
    with open(folder / "index.csv", "w", newline="") as file:
        rows = [[f"row-{i:02d}", "bird", f"images/{pictures[i % len(pictures)]}"] for i in range(COUNT)]
        csv.writer(file).writerows([["sample_id", "class", "image"], *rows])
    return folder


@pytest.fixture
def place(tmp_path, tiny_model, many) -> Path:
    return arrange(tmp_path / "a place", tiny_model, many)


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_model, many) -> Path:
    """The place after an undisturbed run; read only."""
    folder = arrange(tmp_path_factory.mktemp("done"), tiny_model, many)
    got = run_stage("extract_features", cwd=folder)
    assert got.code == 0, got.err
    assert got.out == f"{OUT}: 40 images; feature_16_0 from layer1, feature_4_0 from layer3, feature_8_0 from layer2\n"
    return folder


def test_the_store_has_the_form_of_f_l_and_the_extractors_values(done, tiny_model, many):
    from maskmill.segmenters.extractors import Extractor, locate

    found = Store(done / OUT)
    items = read_table(many)
    assert found.ids == [item.sample_id for item in items] and found.shard_size == 32
    assert found.meta["features"] == {"feature_16_0": "layer1", "feature_8_0": "layer2", "feature_4_0": "layer3"}
    assert found.meta["id"] == "data/mini/clip" and found.meta["mean"] == [0.5, 0.5, 0.5]
    extract = Extractor(locate("clip", str(tiny_model / "clip")), "token", [0, 1, 2], 64)
    for i in (0, 3, 39):  # the fourth is the picture of another shape, squashed
        image = read_image(many / items[i].image, 64)
        wanted, sample = extract([image] * 8)[0], found.read(items[i].sample_id)
        assert sample.keys() == wanted.keys()
        for name, value in sample.items():
            side = int(re.fullmatch(r"feature_(\d+)_\d+", name).group(1))
            assert value.dtype == np.float16 and value.shape[1:] == (side, side)
            assert np.array_equal(value, wanted[name])
    same, other = found.read("row-08"), found.read("row-01")
    for name, value in found.read("row-00").items():  # the same picture again, in another batch, and another one
        assert np.array_equal(value, same[name])
    assert not np.allclose(found.read("row-00")["feature_16_0"], other["feature_16_0"], atol=1e-2)


def test_a_finished_shard_is_kept_and_the_rest_computed(place, done):
    whole = Store(done / OUT)
    scratch = place / "scratch/extract_features/clip/world" / f"{whole.fingerprint}-32"
    scratch.mkdir(parents=True)
    shutil.copy(done / OUT / "00000.safetensors", scratch)
    kept = (scratch / "00000.safetensors").stat().st_ino
    got = run_stage("extract_features", cwd=place)
    assert got.code == 0, got.err
    assert (place / OUT / "00000.safetensors").stat().st_ino == kept
    assert files(place / OUT) == files(done / OUT)
    assert not scratch.exists()


def test_a_finished_store_is_left_alone_until_something_changes(place):
    argv = ["--extract_features.layers", "-1", "--extract_features.size", "32"]
    assert run_stage("extract_features", *argv, cwd=place).code == 0
    first = (place / OUT / "00000.safetensors").stat().st_ino
    assert run_stage("extract_features", *argv, cwd=place).code == 0
    assert (place / OUT / "00000.safetensors").stat().st_ino == first
    assert run_stage("extract_features", *argv[:3], "64", cwd=place).code == 0
    assert list(Store(place / OUT).read("row-00")) == ["feature_2_0"]
    before = Store(place / OUT).fingerprint
    (place / "data/mini").unlink()
    assert_refused(run_stage("extract_features", *argv, cwd=place), "clip data/mini/clip: expected a folder with",
                   absent=place / "new")  # fmt: skip
    assert Store(place / OUT).fingerprint == before


def test_neither_workers_nor_batch_size_change_the_result(place, done):
    whole = Store(done / OUT)
    for name, value in (("WORKERS", "2"), ("BATCH", "3")):
        got = run_stage("extract_features", "--out", name, cwd=place, env={f"MASKMILL_{name}": value})
        assert got.code == 0, got.err
    assert files(place / "WORKERS") == files(done / OUT)
    for id, sample in Store(place / "BATCH").items():
        for key, value in sample.items():  # kernels add in another order: a unit in the last place
            np.testing.assert_allclose(value.astype(float), whole.read(id)[key].astype(float), rtol=2**-9, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"layers": "4"}, "clip data/mini/clip: expected layers from -4 to 3, got 4"),
     ({"size": "50"}, "clip data/mini/clip: expected a size that is a multiple of 32, got 50"),
     ({"facet": "key"}, "expected the facet token with a ResNet"),
     ({"facet": "keys"}, "extract_features.facet: expected one of token, key, query, value"),
     ({"family": "sam"}, "extract_features.family: expected one of clip, dino, mae, moco"),
     ({"family": "dino"}, "data/mini/clip: expected config.json of a dino network, found none"),
     ({"id": "models/none/such"}, "clip models/none/such: expected a folder with config.json and *.safetensors"),
     ({"family": "dino", "id": "owner/name", "revision": "v1"}, "hf download owner/name --revision v1"),
     ({"revision": "main"}, "expected no revision with a folder")],
)  # fmt: skip
def test_bad_settings_give_one_line_and_no_output(place, options, said):
    argv = [part for key, value in options.items() for part in (f"--extract_features.{key}", value)]
    got = run_stage("extract_features", "--out", "deep/out", *argv, cwd=place, env={"MASKMILL_WORKERS": "2"})
    assert_refused(got, said, absent=place / "deep/out")


@pytest.mark.parametrize("data", [b"", b"no picture", None])
def test_an_unreadable_image_is_named(place, many, data):
    (place / "data/world").unlink()
    shutil.copytree(many, place / "data/world")
    image = sorted((place / "data/world/images").iterdir())[5]
    image.unlink() if data is None else image.write_bytes(data)
    got = run_stage("extract_features", "--out", "deep/out", cwd=place)
    assert_refused(got, f"data/world/images/{image.name}: expected", absent=place / "deep/out")
