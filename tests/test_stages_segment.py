"""Stages segment, name_regions and explain as a user runs them, with a bank made of a few scenes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import params, profiles
from maskmill.datasets.table import read_image, read_labels, read_table, save_png
from maskmill.masks.coco import decode
from maskmill.report.labelmaps import palette
from maskmill.segmenters.features_of import open_extractors
from maskmill.segmenters.models import build, save_model
from maskmill.segmenters.prototypes import Bank, Support, build_class
from maskmill.world import CLASSES
from tests.running import ROOT, assert_refused, files, run_stage

NAMES = ("boat", "dog", "tree")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, world_set) -> Path:
    """A folder in which the stages run: params.yaml, data/mini, data/world, data/prototypes and data/support."""
    folder = tmp_path_factory.mktemp("a place")
    values = {"extractors.names": ["clip"], "segment.filter": False, "invert_features.steps": 2,
              "segment.prior": "none"}  # fmt: skip
    text = profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), values)
    text = text.replace("id: data/mini ", f"id: {tiny_model} ").replace("clip: data/mini/clip ",
                                                                        f"clip: {tiny_model}/clip ")  # fmt: skip
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data/world").symlink_to(world_set)
    p = params.load(folder / "params.yaml")
    extract = open_extractors(p.model, (), p.extractors, "cpu")["clip"]
    for name in NAMES:
        supports = []
        for item in read_table(world_set):
            truth, image = read_labels(world_set / item.labels), read_image(world_set / item.image)
            mask = truth == 1 + CLASSES.index(name) if name in item.caption else truth <= 8
            supports.append(Support(item.sample_id, {"clip": extract([image])[0].numpy()}, mask, truth > 8))
            save_png(image, folder / "data/support" / name / "set/images" / f"{item.sample_id}.png")
        Bank(folder / "data/prototypes").write(build_class(name, supports, parts=4), "x", {"clip": extract.facts})
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place", symlinks=True))


def segment(*argv, cwd, **more):
    return run_stage("segment", *argv, "--out", "out", cwd=cwd, **more)


@pytest.fixture(scope="module")
def done(made, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("done") / "place", symlinks=True))
    got = segment("--images", "data/world", cwd=folder)
    assert got.code == 0, got.err
    assert got.out == "out: 8 label maps of 3 classes\n"
    return folder


def test_label_maps_overlays_and_coco_agree(done):
    rows = list(csv.DictReader(open(done / "out/index.csv")))
    items = read_table(done / "data/world")
    assert [r["sample_id"] for r in rows] == [i.sample_id for i in items]
    assert (done / "out/classes.txt").read_text().split() == sorted(NAMES)
    document = json.loads((done / "out/annotations.json").read_text())
    assert [c["name"] for c in document["categories"]] == sorted(NAMES)
    rebuilt = {image["id"]: np.zeros((64, 64), np.uint8) for image in document["images"]}
    for a in document["annotations"]:
        rebuilt[a["image_id"]][decode(a["segmentation"])] = a["category_id"]
        assert a["area"] == decode(a["segmentation"]).sum()
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
    for number, (row, item) in enumerate(zip(rows, items, strict=True), 1):
        path = done / "out/labels" / f"{item.sample_id}.png"
        labels = read_labels(path)
        assert (labels == rebuilt[number]).all()
        with Image.open(path) as image:
            assert image.mode == "P" and (np.array(image.getpalette("RGB")).reshape(-1, 3)[:4] == palette()[:4]).all()
        assert float(row["background"]) == pytest.approx((labels == 0).mean(), abs=1e-4)
        found = [sorted(NAMES)[k - 1] for k in np.unique(labels) if k]
        assert row["classes"] == ";".join(found) and row["searched"] == ";".join(sorted(NAMES)) and row["views"] == "5"
        overlay = read_image(done / "out/overlays" / f"{item.sample_id}.png")
        assert overlay.shape[1] == 256 and overlay.shape[0] > 256
    assert not (done / "scratch/segment/out-finished").exists()


def test_killed_it_goes_on_and_writes_the_same_bytes(place, done):
    settings = {"MASKMILL_BATCH": "3"}
    shutil.copytree(place / "data/world", place / "more")
    for item in read_table(place / "data/world"):
        shutil.copy(place / "data/world" / item.image, place / "more" / f"b-{item.sample_id}.png")
    (place / "more/index.csv").unlink()
    got = segment("more", cwd=place, env=settings, kill_after="store.ShardFolder.put")
    assert got.code == -signal.SIGKILL and not (place / "out").exists()
    got = segment("more", cwd=place, env=settings, kill_after="store.ShardFolder.put 99")
    assert got.code == 0, got.err
    first = files(place / "out")
    shutil.rmtree(place / "out")
    got = segment("more", cwd=place, env={**settings, "MASKMILL_WORKERS": "2"})
    assert got.code == 0 and files(place / "out") == first
    # a picture's map is the same whatever stands beside it
    for name, data in files(done / "out/labels").items():
        assert first[f"labels/b-{name}"] == data


def test_a_finished_run_keeps_what_has_not_changed(place, done):
    shutil.copytree(done / "out", place / "out")
    before = files(place / "out")
    got = segment("--images", "data/world", cwd=place, kill_after="store.ShardFolder.put")  # nothing is to do
    assert got.code == 0 and "8 of them kept" in got.out and files(place / "out") == before
    got = segment("--images", "data/world", "--segment.short", "48", "--no-segment.whole", cwd=place)
    assert got.code == 0 and "kept" not in got.out and files(place / "out") != before


def test_pictures_of_any_kind_and_size(place):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 90, 3), dtype=np.uint8)).save(place / "wide one (1).jpg")
    Image.fromarray(rng.integers(0, 255, (90, 50), dtype=np.uint8)).save(place / "grey.png")
    Image.fromarray(rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)).save(place / "tiny.png")
    got = segment("wide one (1).jpg", "grey.png", "tiny.png", cwd=place)
    assert got.code == 0, got.err
    sizes = {p.stem: read_labels(p).shape for p in (place / "out/labels").iterdir()}
    assert sizes == {"wide_one_1_": (40, 90), "grey": (90, 50), "tiny": (8, 8)}


def test_classes_of_a_list_in_its_order(place):
    (place / "mine.txt").write_text("tree\nzebra\nboat\n")
    got = segment("--images", "data/world", "--classes", "mine.txt", cwd=place)
    assert got.code == 0 and got.out == "out: 8 label maps of 2 classes; not in the bank: zebra\n"
    assert (place / "out/classes.txt").read_text() == "tree\nboat\n"


@pytest.mark.parametrize("kind", ["unet", "fcn"])
def test_a_trained_decoder_finds_the_object(place, kind):
    if kind == "unet":
        config = {"model": "unet", "encoder": "timm-mobilenetv3_small_minimal_100", "encoder_weights": "", "size": 32}
    else:
        channels = {f"feature_{side}_{k}": 16 for side in (16, 8) for k in (0, 1)}
        config = {"model": "fcn", "channels": channels, "width": 4, "kernel": 1, "upsample": 2, "size": 32}
    save_model(build(config), config, place / "net")
    got = segment("--images", "data/world", "--decoder", "net", "--bank", "none", cwd=place)
    assert got.code == 0, got.err
    assert got.out == "out: 8 label maps of 1 classes\n" and (place / "out/classes.txt").read_text() == "object\n"


def test_bad_input_is_one_line(place):
    (place / "empty").mkdir()
    (place / "broken.png").write_bytes(b"no picture")
    (place / "a").mkdir()
    (place / "net").mkdir()
    for name in ("a/x.png", "x.jpg"):
        Image.new("RGB", (70, 70)).save(place / name)
    cases = [
        (["empty"], "empty: expected pictures (png, jpg,"), (["none.png"], "none.png: expected a picture or a folder"),
        (["broken.png"], "broken.png: expected a readable image"), ([], "expected at least one picture or folder"),
        (["a", "x.jpg"], "x.jpg: expected pictures of different names, got 'x' as of a/x.png"),
        (["x.jpg", "--segment.short", "0", "--segment.sizes", "80"], "x.jpg: windows: expected a picture of at least"),
        (["x.jpg", "--bank", "empty"], "empty: expected prototypes of at least one class, found none"),
        (["x.jpg", "--extractors.clip.size", "32"], "expected prototypes made with clip size 32, got 64"),
        (["x.jpg", "--extractors.names", "sd"], "expected prototypes of the extractor sd, got those of clip"),
        (["x.jpg", "--classes", "voc", "--bank", "data/none"], "data/none: expected prototypes"),
        (["x.jpg", "--decoder", "net"], "net: expected a trained model"),
    ]
    for argv, said in cases:
        assert_refused(segment(*argv, cwd=place), said, absent=place / "out")
    got = run_stage("segment", "a", "--out", "a/out", cwd=place)
    assert_refused(got, "--out a/out: expected a folder outside of a", absent=place / "a/out")


def test_the_control_writes_such_a_folder_too(place):
    got = run_stage("name_regions", "--images", "data/world", "--out", "named", cwd=place)
    assert got.code == 0, got.err
    assert (place / "named/classes.txt").read_text().split() == list(CLASSES)
    maps = [read_labels(p) for p in sorted((place / "named/labels").iterdir())]
    assert len(maps) == 8 and any(m.any() for m in maps) and all(m.max() <= 8 for m in maps)


def test_an_explanation_names_files_that_are_there(place):
    picture = read_table(place / "data/world")[2]
    argv = ("--images", "data/world", "--sample", picture.sample_id, "--out", "why")
    for asked in ([], ["--at", "10,60"], ["--box", "0,0,20,9"]):
        got = run_stage("explain", *argv, *asked, cwd=place)
        assert got.code == 0, got.err
        found = json.loads((place / "why.json").read_text())
        assert found["sample_id"] == picture.sample_id
        assert all((place / p["file"]).is_file() for p in found["label"]["prototypes"])
        assert read_image(place / "why.png").shape[1] > 800
    region = decode(found["region"])
    assert region[:10, :21].sum() == region.sum() == found["pixels"]
    for asked, said in ((["--at", "64,0"], "--at: expected 2 whole numbers with commas, pixels of a picture of 64x64"),
                        (["--at", "1,1", "--label", "dog"], "expected one of --at, --box, --label and --mask"),
                        (["--label", "cat"], "--label: expected one of background, boat, dog, tree, got 'cat'"),
                        (["--support", "none", "--at", "1,1"], "expected an image, found no such file")):  # fmt: skip
        got = run_stage("explain", *argv[:-1], "bad", *asked, cwd=place)
        assert_refused(got, said, absent=place / "bad.json")
