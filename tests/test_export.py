"""Exports, read back by the libraries that own the formats: pycocotools, datasets, Pillow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import store
from maskmill.datasets.table import Item, read_image, read_table, save_png, table_csv
from maskmill.errors import UserError
from maskmill.masks.coco import decode
from maskmill.report import exports
from maskmill.report.labelmaps import labels_png, palette
from tests.running import run_stage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
NAMES = ["bird", "dog"]
SHAPES = [(9, 7), (16, 16), (5, 12), (8, 8)]


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    """An image set in ``set``, without masks of its own, and a masks folder in ``found``: one mask empty, one missing,
    one id with a folder, one JPEG, one class unknown."""
    top, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    items = []
    for k, (height, width) in enumerate(SHAPES):
        id, cls = ("dog/one" if k == 1 else f"p{k}"), ("dog", "dog", "", "bird")[k]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = f"images/{id}.{'JPG' if k == 2 else 'png'}"
        (top / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(top / "set" / file)
        items.append(Item(id, cls, file, caption=f"a photo, number {k}" if k else ""))
        save_png(rng.random((height, width)) < (0.4 if k else 0), top / "found/masks" / f"{id}.png")
    items.append(Item("late", "boat", "images/p0.png"))
    (top / "set/index.csv").write_text(table_csv(items))
    return top


def truth(masks: Path) -> dict[str, tuple[np.ndarray, str]]:
    """id -> mask as Pillow reads it, class."""
    return {item.sample_id: (np.asarray(Image.open(masks / "found/masks" / f"{item.sample_id}.png")) > 0,
                             item.cls or "object") for item in read_table(masks / "set")[:-1]}  # fmt: skip


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """A plain folder of pictures in ``pictures`` and label maps of them in ``found``, as stage segment leaves them."""
    top, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(1)
    for k, (height, width) in enumerate(SHAPES):
        save_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), top / "pictures" / f"p{k}.png")
        labels = rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8) if k else np.zeros((height, width))
        (top / "found/labels").mkdir(parents=True, exist_ok=True)
        (top / f"found/labels/p{k}.png").write_bytes(labels_png(labels))
    (top / "found/classes.txt").write_text("bird\ndog\n")
    return top


def exported(top: Path, kind: str, tmp_path: Path, *more: object) -> Path:
    """Run the stage; -> its output."""
    out = tmp_path / "out"
    folders = (["--images", top / "set", "--masks", top / "found"] if (top / "set").is_dir() else
               ["--images", top / "pictures", "--labels", top / "found"])  # fmt: skip
    got = run_stage("export", *folders, "--format", kind, "--out", out, *more, cwd=Path(__file__).parents[1])
    assert got.code == 0, got.err
    assert f"{out}: 4 pictures with masks of" in got.out
    return out


def labels_of(top: Path, id: str) -> np.ndarray:
    return np.asarray(Image.open(top / f"found/labels/{id}.png"))


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco_of(out: Path):
    theirs = pytest.importorskip("pycocotools.coco", reason="needs pycocotools: pip install 'pycocotools>=2.0.11,<3'")
    return theirs.COCO(str(out / "annotations.json"))


def test_coco_of_masks_as_pycocotools_reads_it(masks, tmp_path):
    out = exported(masks, "coco", tmp_path)
    coco, known = coco_of(out), truth(masks)
    assert [coco.cats[k]["name"] for k in sorted(coco.cats)] == ["bird", "boat", "dog", "object"]
    assert len(coco.imgs) == 4
    for image in coco.imgs.values():
        id = image["file_name"].rsplit(".", 1)[0]
        mask, cls = known[id]
        assert (image["height"], image["width"]) == mask.shape and image.get("caption", "") == (
            "" if id == "p0" else f"a photo, number {list(known).index(id)}")  # fmt: skip
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert len(found) == int(mask.any())
        for entry in found:
            assert np.array_equal(coco.annToMask(entry), mask) and entry["area"] == mask.sum()
            assert coco.cats[entry["category_id"]]["name"] == cls and entry["iscrowd"] == 0
    assert (out / "images/p2.jpg").read_bytes() == (masks / "set/images/p2.JPG").read_bytes()  # copied, not coded anew
    assert len({entry["id"] for entry in coco.anns.values()}) == len(coco.anns) == 3


def test_coco_boxes_are_pycocotools_own(masks, tmp_path):
    coco = coco_of(exported(masks, "coco", tmp_path))
    from pycocotools import mask as rle

    for entry in coco.anns.values():
        assert entry["bbox"] == rle.toBbox(entry["segmentation"]).tolist()
        assert entry["area"] == rle.area(entry["segmentation"])


def test_coco_of_label_maps_is_one_region_per_class(maps, tmp_path):
    coco = coco_of(exported(maps, "coco", tmp_path))
    assert [coco.cats[k]["name"] for k in (1, 2)] == NAMES
    for image in coco.imgs.values():
        labels = labels_of(maps, image["file_name"].removesuffix(".png"))
        found = {a["category_id"]: coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))}
        assert set(found) == set(np.unique(labels).tolist()) - {0, 255}
        for k, mask in found.items():
            assert np.array_equal(mask, labels == k)


def test_coco_without_pycocotools(masks, tmp_path):
    document = json.loads((exported(masks, "coco", tmp_path) / "annotations.json").read_text())
    names = {image["id"]: image["file_name"].rsplit(".", 1)[0] for image in document["images"]}
    for entry in document["annotations"]:
        assert np.array_equal(decode(entry["segmentation"]), truth(masks)[names[entry["image_id"]]][0])


# --- Hugging Face image folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masks", "maps"])
def test_image_folder_as_datasets_loads_it(kind, request, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'datasets>=5.2,<6'")
    top = request.getfixturevalue(kind)
    out = exported(top, "imagefolder", tmp_path)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and loaded["train"].num_rows == 4
    classes = re.findall(r"\| (\d+) \| (\w+) \|", (out / "README.md").read_text())
    number = {name: int(k) for k, name in classes}
    for row in loaded["train"]:
        mask, id = np.asarray(row["mask"]), row["sample_id"]
        if kind == "maps":
            assert np.array_equal(mask, labels_of(top, id))
            assert row["objects"]["categories"] == [n for n in NAMES if (mask == number[n]).any()]
            picture = top / f"pictures/{id}.png"
        else:
            known, cls = truth(top)[id]
            assert np.array_equal(mask, known * number[cls])
            assert row["objects"]["categories"] == [cls] * bool(known.any())
            picture = top / "set" / next(i.image for i in read_table(top / "set") if i.sample_id == id)
            assert row["caption"] == ("" if id == "p0" else f"a photo, number {list(truth(top)).index(id)}")
        assert np.array_equal(np.asarray(row["image"].convert("RGB")), read_image(picture))
        for name, (x, y, w, h), area in zip(*(row["objects"][k] for k in ("categories", "bbox", "area")), strict=True):
            inside = mask == number[name]
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            assert (x, y, x + w - 1, y + h - 1) == (columns[0], rows[0], columns[-1], rows[-1]) and area == inside.sum()


# --- indexed PNG ------------------------------------------------------------------------------------------------------


def test_indexed_png_as_pillow_reads_it(maps, tmp_path):
    out = exported(maps, "indexed", tmp_path)
    assert (out / "classes.txt").read_text().splitlines() == NAMES
    for k, shape in enumerate(SHAPES):
        image, wanted = Image.open(out / f"labels/p{k}.png"), labels_of(maps, f"p{k}")
        assert image.mode == "P" and image.size == shape[::-1] and np.array_equal(np.asarray(image), wanted)
        assert np.array_equal(np.asarray(image.convert("RGB")), palette()[wanted])
        assert (out / f"images/p{k}.png").read_bytes() == (maps / f"pictures/p{k}.png").read_bytes()


def test_a_sets_own_masks(world_set, tmp_path):
    out = tmp_path / "out"
    got = run_stage("export", "--images", world_set, "--format", "indexed", "--out", out, cwd=Path(__file__).parents[1])
    assert got.code == 0, got.err
    items = read_table(world_set)
    names = (out / "classes.txt").read_text().splitlines()
    assert names == sorted({item.cls for item in items})
    for item in items:
        labels = np.asarray(Image.open(out / f"labels/{item.sample_id}.png"))
        assert np.array_equal(labels == names.index(item.cls) + 1, np.asarray(Image.open(world_set / item.mask)) > 0)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(exports.FORMATS))
def test_the_same_set_is_the_same_bytes(kind, maps, tmp_path):
    for name in ("one", "two"):
        found = exports.labelled(maps / "pictures", maps / "found")
        exports.FORMATS[kind](tmp_path / name, found, NAMES, "a set")
    assert store.hash_tree(tmp_path / "one") == store.hash_tree(tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "voc"], "--format: expected coco, imagefolder, indexed, got 'voc'"),
        (["--labels", "x"], "--masks and --labels: expected one of them, got both"),
        (["--masks", ""], "p0: expected a mask, got an empty field; --masks or --labels names a folder"),
        (["--masks", "nowhere"], "nowhere: expected masks/<id>.png of the pictures in .*, found none"),
        (["--masks", "", "--labels", "nowhere"], "nowhere/classes.txt: expected the names of labels"),
    ],
)
def test_what_is_refused_leaves_nothing(more, said, masks, tmp_path):
    got = run_stage("export", "--images", masks / "set", "--masks", masks / "found", "--out", tmp_path / "out/x", *more,
                    cwd=Path(__file__).parents[1])  # fmt: skip
    assert got.code == 2 and re.search(said, got.err) and got.err.count("\n") == 1
    assert not (tmp_path / "out/x").exists()


def test_a_label_without_a_name_and_a_map_of_another_size(maps):
    picture = maps / "pictures/p1.png"
    exports.check(exports.Example("p1", picture, np.full((16, 16), 2, np.uint8)), NAMES)
    with pytest.raises(UserError, match="p1: expected labels 0 to 2, one per class, or 255, got 3"):
        exports.check(exports.Example("p1", picture, np.full((16, 16), 3, np.uint8)), NAMES)
    with pytest.raises(UserError, match="p1.png: expected a label map of 16x16 pixels as the picture, got 16x15"):
        exports.check(exports.Example("p1", picture, np.zeros((15, 16), np.uint8)), NAMES)
    with pytest.raises(UserError, match="classes: expected at most 254"):
        exports.class_names(Item(str(k), f"c{k}", "x") for k in range(255))
