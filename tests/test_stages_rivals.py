"""Stage rivals as a user runs it, on made-up records and features of a few scenes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from maskmill import params
from maskmill.datasets.table import Item, item_rng, read_image, read_labels, read_mask, read_table, table_csv
from maskmill.masks import rivals
from maskmill.masks.attentioncut import cross_map, resize
from maskmill.masks.refine import refine
from maskmill.store import ShardWriter, Store
from tests.running import assert_refused, files, run_stage, small_params

METHODS = ("kmeans", "ncut", "crf")
SMALL = {f"rivals.{method}.size": 16 for method in METHODS}
FLAT = "s2-00003"  # its A_c does not vary


def sample(scenes: Path, mask: str, flat: bool) -> tuple[dict, dict]:
    """A record and features that follow the ground truth, with noise."""
    truth = read_mask(scenes / mask)
    rng = np.random.default_rng(0)
    record, features = {}, {}
    for r in (16, 8):
        soft = resize(truth, (r, r))
        cross = (0.2 + 2 * soft) * rng.gamma(8, 1 / 8, (4, 3, r, r))
        record[f"cross_{r}"] = (np.ones_like(cross) if flat else cross).astype(np.float16)
        for k in (0, 1):
            x = rng.normal(size=(12, 1, 1)) * soft + 0.3 * rng.normal(size=(12, r, r)) + 1
            features[f"feature_{r}_{k}"] = x.astype(np.float16)
    return record, features


def write_store(out: Path, samples: dict[str, dict]) -> None:
    with ShardWriter(out, list(samples), "made up", {}, 3, out.with_name(f"{out.name}-scratch")) as writer:
        for shard, ids in writer.missing():
            writer.put(shard, {id: samples[id] for id in ids})
        writer.assemble()


@pytest.fixture(scope="module")
def made(tmp_path_factory, world_set) -> Path:
    """A folder in which the stage runs with its default paths; read only."""
    folder = tmp_path_factory.mktemp("a place")
    small_params(folder, SMALL)
    (folder / "data").mkdir()
    (folder / "data/world").symlink_to(world_set)
    made = {i.sample_id: sample(world_set, i.mask, i.sample_id == FLAT) for i in read_table(world_set)}
    for k, kind in enumerate(("records", "features")):
        write_store(folder / "data/inverted/world" / kind, {id: both[k] for id, both in made.items()})
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place", symlinks=True))


@pytest.mark.parametrize("method", METHODS)
def test_writes_a_masks_folder_that_can_be_scored(made, tmp_path, method):
    out = tmp_path / "masks"
    got = run_stage("rivals", "--rivals.method", method, "--out", out, cwd=made)
    assert got.code == 0, got.err
    p = params.load(made / "params.yaml", {"rivals.method": method})
    rows = list(csv.DictReader(open(out / "index.csv")))
    assert [row["sample_id"] for row in rows] == [i.sample_id for i in read_table(made / "data/world")]
    assert len(files(out)) == 2 * 8 + 2
    stores = [Store(made / "data/inverted/world" / kind) for kind in ("records", "features")]
    ious = []
    for row, item in zip(rows, read_table(made / "data/world"), strict=True):
        mask, soft = (read_labels(out / kind / f"{item.sample_id}.png") for kind in ("masks", "soft"))
        assert mask.shape == soft.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        assert float(row["area"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
        assert row["flags"] == ("constant_map empty" if item.sample_id == FLAT else "")
        record, features = (s.read(item.sample_id) for s in stores)
        cross = cross_map(record, (16, 16), p.attentioncut.top_k, p.attentioncut.t_max)
        start = int(item_rng(p.seed, item.sample_id).integers(2**31))
        expected = rivals.segment(features, cross, read_image(made / "data/world" / item.image), p.rivals, start)
        assert ((mask > 0) == expected.mask).all()
        assert np.abs(soft / 255 - expected.soft).max() <= 0.5 / 255 + 1e-6
        truth = read_mask(made / "data/world" / item.mask)
        ious.append((truth & expected.mask).sum() / (truth | expected.mask).sum())
    scored = run_stage("score", "--masks", out, "--metrics", tmp_path / "m.json", cwd=made)
    assert scored.code == 0, scored.err
    iou = json.loads((tmp_path / "m.json").read_text())["datasets"][""]["scores"]["iou"]
    assert iou == pytest.approx(np.mean(ious), abs=1e-4)


def test_files_do_not_depend_on_the_number_of_workers_and_threads(made, tmp_path):
    seen = []
    for k, (workers, threads) in enumerate((("1", "1"), ("2", "2"))):
        got = run_stage("rivals", "--out", tmp_path / str(k), cwd=made,
                        env={"MASKMILL_WORKERS": workers, "OMP_NUM_THREADS": threads})  # fmt: skip
        assert got.code == 0, got.err
        seen.append(files(tmp_path / str(k)))
    assert seen[0] == seen[1]


def test_options_reach_the_method_the_map_and_the_start(made, tmp_path):
    plain = tmp_path / "plain"
    assert run_stage("rivals", "--out", plain, cwd=made).code == 0
    for k, option in enumerate(("--rivals.kmeans.clusters 2", "--attentioncut.t_max 1", "--seed 5")):
        got = run_stage("rivals", "--out", tmp_path / str(k), *option.split(), cwd=made)
        assert got.code == 0, got.err
        assert files(tmp_path / str(k)) != files(plain), option


def test_post_processing_comes_last(made, tmp_path):
    argv = ["--rivals.method", "crf", "--rivals.crf.weight_features", "0", "--rivals.crf.weight_smooth", "0"]
    on = ["--postprocess.bilateral", "--postprocess.largest", "--postprocess.fill"]
    for name, more in (("off", []), ("on", on)):
        got = run_stage("rivals", "--out", tmp_path / name, *argv, *more, cwd=made)
        assert got.code == 0, got.err
    p = params.load(made / "params.yaml", {o[2:]: "true" for o in on}).postprocess
    item = read_table(made / "data/world")[0]
    name = f"masks/{item.sample_id}.png"
    before, after = (read_mask(tmp_path / run / name) for run in ("off", "on"))
    image = read_image(made / "data/world" / item.image)
    assert (before != after).any()
    assert (refine(before.astype(np.float32), before, image, p)[1] == after).all()
    assert (tmp_path / "off/postprocess.txt").read_text() == "none\n"
    said = (tmp_path / "on/postprocess.txt").read_text()
    assert said == "bilateral solver, largest component, holes filled\n"


def test_pictures_without_a_sample_are_left_out(place, world_set):
    (place / "more").mkdir()
    (place / "more/images").symlink_to(world_set / "images")
    items = [*read_table(world_set), Item("s9-00000", "bird", "images/none.png")]
    (place / "more/index.csv").write_text(table_csv(items))
    got = run_stage("rivals", "--images", "more", "--out", "out", cwd=place)
    assert got.code == 0, got.err
    assert len(list(csv.DictReader(open(place / "out/index.csv")))) == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--records", "none"], "none/manifest.json: expected"), (["--features", "none"], "none/manifest.json: expected"),
     (["--rivals.method", "cut"], "--rivals.method: expected one of kmeans, ncut, crf"),
     (["--rivals.kmeans.size", "2"], "size: expected 0 or a whole number from 4 to 64, got 2"),
     (["--rivals.ncut.segments", "1"], "--rivals.ncut.segments: expected an integer of at least 2"),
     (["--images", "other"], "other/index.csv, found none")],
)  # fmt: skip
def test_bad_input_is_one_line(place, options, said):
    (place / "other").mkdir()
    (place / "other/index.csv").write_text("sample_id,class,image\nx,bird,i.png\n")
    assert_refused(run_stage("rivals", "--out", "deep/out", *options, cwd=place), said, absent=place / "deep/out")


def test_broken_features_are_named(place):
    folder = place / "data/inverted/world/features"
    samples = dict(Store(folder).items())
    samples["s1-00001"]["feature_8_0"] = samples["s1-00001"]["feature_8_0"] * np.float16(np.nan)
    shutil.rmtree(folder)
    write_store(folder, samples)
    got = run_stage("rivals", "--out", "deep/out", cwd=place)
    assert_refused(got, "s1-00001", "feature_8_0: expected finite numbers", absent=place / "deep/out")
