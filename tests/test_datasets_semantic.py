"""Readers of the semantic benchmarks on small folders laid out as the data sets are distributed, and their tables."""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import params
from maskmill.datasets import semantic
from maskmill.datasets.semantic import (
    CLASSES,
    COUNTS,
    FOLDERS,
    NAMES,
    UNKNOWN,
    cityscapes_ids,
    class_table,
    coco_raw,
    fault,
    from_zero,
    identity,
    label_map,
    lookup_of,
    protocols,
    read_semantic,
)
from maskmill.datasets.table import Item, read_labels, read_table
from maskmill.errors import UserError
from maskmill.scores.semantic import PROTOCOL, SemanticScores
from maskmill.segmenters.categories import load_categories
from stages.semantic_benchmarks import main

ROOT = Path(__file__).parents[1]
NOTHING = params.Benchmarks(**{f.name: "" for f in dataclasses.fields(params.Benchmarks)} | {"partial": True})


def settings(root: object, key: str, partial: bool = True) -> params.Benchmarks:
    return dataclasses.replace(NOTHING, partial=partial, **{FOLDERS[key]: str(root)})


def photograph(path: Path, height: int = 4, width: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def labels(path: Path, *values: int, height: int = 4, width: int = 6) -> np.ndarray:
    """A palette PNG, as VOC's are, with these values first and 255 after them."""
    array = np.full(height * width, 255, np.uint8)
    array[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.reshape(height, width), mode="P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)
    return array.reshape(height, width)


def voc(root: Path, year: str, part: str, folder: str, stems: str = "cab") -> Path:
    base = root / "VOCdevkit" / year
    (base / "ImageSets" / part).mkdir(parents=True)
    (base / "ImageSets" / part / "val.txt").write_text("".join(f"2007_{stem}\n" for stem in stems))
    for stem in stems:
        photograph(base / "JPEGImages" / f"2007_{stem}.jpg")
        labels(base / folder / f"2007_{stem}.png", 0, 1, 20)
    return root


def coco(root: Path, *endings: str, values: tuple[int, ...] = (0, 1, 79)) -> Path:
    for stem in ("000000000285", "000000000139"):
        photograph(root / "images/val2017" / f"{stem}.jpg")
        for ending in endings:
            labels(root / "annotations/val2017" / f"{stem}{ending}", *values)
    return root


def ade20k(root: Path) -> Path:
    for i in (2, 1):
        photograph(root / "images/validation" / f"ADE_val_{i:08}.jpg")
        labels(root / "annotations/validation" / f"ADE_val_{i:08}.png", 0, 1, 150)
    return root


def cityscapes(root: Path) -> Path:
    for city, stem in (("munster", "munster_000001_000019"), ("frankfurt", "frankfurt_000000_000294")):
        photograph(root / "leftImg8bit/val" / city / f"{stem}_leftImg8bit.png")
        labels(root / "gtFine/val" / city / f"{stem}_gtFine_labelIds.png", 0, 7, 8, 11, 24, 33)
        labels(root / "gtFine/val" / city / f"{stem}_gtFine_instanceIds.png")
    return root


def made(key: str, root: Path) -> Path:
    """A small data set in its folder."""
    if key == "voc":
        return voc(root, "VOC2012", "Segmentation", "SegmentationClass")
    if key == "context":
        return voc(root, "VOC2010", "SegmentationContext", "SegmentationClassContext")
    if key in ("coco_object", "coco_stuff"):
        return coco(root, "_instanceTrainIds.png", "_labelTrainIds.png")
    return ade20k(root) if key == "ade20k" else cityscapes(root)


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "stems"), [
    ("voc", ["2007_c", "2007_a", "2007_b"]), ("context", ["2007_c", "2007_a", "2007_b"]),
    ("coco_object", ["000000000139", "000000000285"]), ("coco_stuff", ["000000000139", "000000000285"]),
    ("ade20k", ["ADE_val_00000001", "ADE_val_00000002"]),
    ("cityscapes", ["frankfurt/frankfurt_000000_000294", "munster/munster_000001_000019"]),
])  # fmt: skip
def test_pictures_and_label_maps_of_each_layout(tmp_path, key, stems):
    """In the order of VOC's lists, of the others' names; an id is the data set's name and the file's."""
    found = read_semantic(key, settings(made(key, tmp_path), key))
    assert (found.key, found.name) == (key, NAMES[key])
    assert [i.sample_id for i in found.items] == [f"{NAMES[key]}/{stem}" for stem in stems]
    assert {i.dataset for i in found.items} == {NAMES[key]} and {(i.cls, i.mask) for i in found.items} == {("", "")}
    for item in found.items:
        stem = item.sample_id.rpartition("/")[2]
        assert stem in Path(item.image).name and stem in Path(item.labels).name
        assert Path(item.image).is_absolute() and fault(item, found.lookup) == ""


@pytest.mark.parametrize("key", ["voc", "context"])
def test_the_folder_that_holds_vocdevkit_and_vocdevkit_itself_will_do(tmp_path, key):
    made(key, tmp_path)
    a, b = (read_semantic(key, settings(root, key)).items for root in (tmp_path, tmp_path / "VOCdevkit"))
    assert a == b


@pytest.mark.parametrize(("key", "expected"), [
    ("voc", "VOC2012"), ("context", "VOC2010"), ("coco_object", "images/val2017"), ("coco_stuff", "images/val2017"),
    ("ade20k", "images/validation"), ("cityscapes", "leftImg8bit/val"),
])  # fmt: skip
def test_a_wrong_folder_is_refused_with_the_path_that_was_expected(tmp_path, key, expected):
    with pytest.raises(UserError, match=f"^{tmp_path / expected}: expected this folder of {NAMES[key]}, found n"):
        read_semantic(key, settings(tmp_path, key))
    with pytest.raises(UserError, match=rf"^benchmarks.{FOLDERS[key]}: {tmp_path / 'none'}: expected the folder of "):
        read_semantic(key, settings(tmp_path / "none", key))


@pytest.mark.parametrize("key", list(NAMES))
def test_another_number_of_images_is_refused_unless_a_part_is_admitted(tmp_path, monkeypatch, key):
    root = made(key, tmp_path)
    count = len(read_semantic(key, settings(root, key)).items)
    published = " or ".join(f"{n:,}" for n in COUNTS[key])
    with pytest.raises(UserError, match=f"{root}: expected the {published} images of {NAMES[key]}, got {count}; bench"):
        read_semantic(key, settings(root, key, partial=False))
    monkeypatch.setitem(COUNTS, key, (count,))
    assert len(read_semantic(key, settings(root, key, partial=False)).items) == count


@pytest.mark.parametrize("key", list(NAMES))
def test_label_maps_that_are_missing_are_named(tmp_path, key):
    root = made(key, tmp_path)
    item = read_semantic(key, settings(root, key)).items[1]
    Path(item.labels).unlink()
    with pytest.raises(UserError, match=f"^{NAMES[key]}: .*got 1 that do not: {item.labels} is missing$"):
        read_semantic(key, settings(root, key))


def test_no_picture_is_no_data_set_and_a_folder_of_pictures_alone_is_none(tmp_path):
    (tmp_path / "images/validation").mkdir(parents=True)
    with pytest.raises(UserError, match="expected this folder of ADE20K, found none"):
        read_semantic("ade20k", settings(tmp_path, "ade20k"))
    (tmp_path / "annotations/validation").mkdir(parents=True)
    with pytest.raises(UserError, match="images/validation: expected pictures, found none"):
        read_semantic("ade20k", settings(tmp_path, "ade20k"))
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    (tmp_path / "gtFine/val").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected pictures <city>/\*_leftImg8bit.png, found none"):
        read_semantic("cityscapes", settings(tmp_path, "cityscapes"))
    with pytest.raises(UserError, match="^pets: expected a data set among voc, context"):
        read_semantic("pets", NOTHING)


def test_what_archives_add_is_not_looked_at(tmp_path):
    ade20k(tmp_path)
    (tmp_path / "images/validation/._ADE_val_00000001.jpg").write_bytes(b"resource fork")
    (tmp_path / "images/validation/Thumbs.db").write_bytes(b"")
    photograph(tmp_path / "images/validation/__MACOSX/ADE_val_00000009.jpg")
    assert len(read_semantic("ade20k", settings(tmp_path, "ade20k")).items) == 2


def test_a_list_that_names_an_image_twice_is_refused(tmp_path):
    path = voc(tmp_path, "VOC2012", "Segmentation", "SegmentationClass") / "VOCdevkit/VOC2012/ImageSets"
    (path / "Segmentation/val.txt").write_text("2007_a\n\n2007_b\n2007_a\n")
    with pytest.raises(UserError, match="val.txt: expected each of its lines once, got '2007_a' again"):
        read_semantic("voc", settings(tmp_path, "voc"))
    (path / "Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match="val.txt: expected a text file, got: No such file"):
        read_semantic("voc", settings(tmp_path, "voc"))


# --- what the values mean ---------------------------------------------------------------------------------------------


def test_look_ups_by_hand():
    assert lookup_of([3, 5], [1, 2])[[3, 5, 255, 0, 4]].tolist() == [1, 2, 255, UNKNOWN, UNKNOWN]
    assert identity(20)[[0, 1, 20, 255, 21]].tolist() == [0, 1, 20, 255, UNKNOWN]
    assert from_zero(171)[[0, 170, 255, 171]].tolist() == [1, 171, 255, UNKNOWN]
    # road, sidewalk, building, traffic light, person, bicycle; ego vehicle, parking, license plate's -1 as 255
    assert cityscapes_ids()[[7, 8, 11, 19, 24, 33, 1, 9, 255, 34]].tolist() == [1, 2, 3, 7, 12, 19, 255, 255, 255, -1]


def test_cocos_raw_maps_agree_with_its_converted_ones():
    """Names against COCO's own ids, which are the raw values and one more: person 1, stop sign 13, toothbrush 90,
    banner 92, wood 182."""
    names = [row["class"] for row in class_table("coco_stuff")]
    stuff, objects = coco_raw(False), coco_raw(True)
    for id, name in ((1, "person"), (13, "stop sign"), (27, "backpack"), (90, "toothbrush"), (92, "banner"),
                     (182, "wood")):  # fmt: skip
        assert names[stuff[id - 1] - 1] == name
        assert objects[id - 1] == (stuff[id - 1] if id <= 90 else 0)
    for id in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91, 183):  # ids that COCO does not use
        assert stuff[id - 1] == objects[id - 1] == UNKNOWN
    assert sorted(stuff[stuff > 0]) == [*range(1, 172), 255] and (stuff[255], objects[255]) == (255, 0)
    assert sorted(set(objects[objects >= 0].tolist())) == list(range(81))


def test_raw_maps_are_read_where_there_are_no_converted_ones(tmp_path):
    coco(tmp_path, ".png", values=(0, 89, 91, 181))
    for key, expected in (("coco_object", [1, 80, 0, 0, 0]), ("coco_stuff", [1, 80, 81, 171, 255])):
        found = read_semantic(key, settings(tmp_path, key))
        assert not found.as_it_is and found.note == "label maps as COCO-Stuff has them"
        assert label_map(found.items[0], found.lookup).ravel()[:5].tolist() == expected
    coco(tmp_path, "_labelTrainIds.png")
    found = read_semantic("coco_stuff", settings(tmp_path, "coco_stuff"))
    assert found.items[0].labels.endswith("139_labelTrainIds.png") and "_labelTrainIds" in found.note
    assert label_map(found.items[0], found.lookup).ravel()[:4].tolist() == [1, 2, 80, 255]


@pytest.mark.parametrize("key", list(NAMES))
def test_which_files_hold_the_labels_themselves(tmp_path, key):
    found = read_semantic(key, settings(made(key, tmp_path), key))
    assert found.as_it_is == (key not in ("coco_stuff", "cityscapes"))
    values, got = read_labels(found.items[0].labels), label_map(found.items[0], found.lookup)
    assert got.dtype == np.uint8 and (np.array_equal(got, values) == found.as_it_is)
    scores = SemanticScores([row["class"] for row in class_table(key)])
    scores.update(got, got)  # every label is one that the scores take
    reached = set(found.lookup[found.lookup != UNKNOWN].tolist())
    assert reached - {0, 255} == set(range(1, CLASSES[key] + 1))


def test_faults_are_told_in_one_line_that_names_the_file(tmp_path):
    photograph(tmp_path / "a.jpg")
    item = Item("VOC/a", "", str(tmp_path / "a.jpg"), labels=str(tmp_path / "a.png"))
    assert fault(item, identity(20)) == f"{tmp_path}/a.png: expected an image, found no such file"
    labels(tmp_path / "a.png", 0, 21)
    assert fault(item, identity(20)) == f"{tmp_path}/a.png: expected labels 0 to 20 or 255, got 21"
    labels(tmp_path / "a.png", 0, 11)
    assert fault(item, coco_raw(False)).endswith("expected labels 0 to 181 with gaps or 255, got 11")
    labels(tmp_path / "a.png", 0, height=6, width=4)
    assert fault(item, identity(20)) == f"{tmp_path}/a.png: expected 6x4 pixels as its photograph has, got 4x6"
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert fault(item, identity(20)).startswith(f"{tmp_path}/a.jpg: expected a readable image")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(NAMES))
def test_the_class_table_is_what_the_segmenter_is_asked_for(key):
    rows, categories = class_table(key), load_categories(key)
    assert [(r["class"], r["query"], r["kind"]) for r in rows] == [(c.name, c.query, c.kind) for c in categories]
    assert [r["label"] for r in rows] == [str(i) for i in range(1, CLASSES[key] + 1)]


def test_queries_of_voc_are_the_words_of_the_paper():
    asked = {row["class"]: row["query"] for row in class_table("voc")}
    assert {name: query for name, query in asked.items() if name != query} == {
        "aeroplane": "airplane", "diningtable": "table", "pottedplant": "potted plant", "tvmonitor": "monitor",
    }  # fmt: skip
    assert asked["motorbike"] == "motorbike"


def test_protocols_with_and_without_background():
    found = protocols()
    assert [name for name, p in found.items() if p.background == "class"] == ["voc", "context", "coco_object"]
    assert {p.dataset for p in found.values() if p.background == "void"} == {
        "voc", "context", "ade20k", "coco_stuff", "cityscapes"}  # fmt: skip
    with open(semantic.LABELS / "protocols.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        key = row["dataset"]
        assert row["background"] in PROTOCOL and (row["name"], int(row["images"])) == (NAMES[key], COUNTS[key][0])
        assert int(row["classes"]) == CLASSES[key] == len(class_table(key))


def test_names_are_those_of_the_published_table():
    """So that scores on a data set find their column."""
    from maskmill.report.tables import load_published

    published = load_published(ROOT / "tables/ovdiff-tab1/published.yaml")
    assert set(published["datasets"]) == {p.name for p in protocols().values() if p.background == "class"}


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run_main, monkeypatch):
    monkeypatch.setenv("MASKMILL_WORKERS", "2")
    return partial(run_main, main)


@pytest.mark.parametrize("key", list(NAMES))
def test_the_stage_writes_an_image_set_and_its_vocabulary(tmp_path, run, key):
    root, out = made(key, tmp_path / "in"), tmp_path / "out"
    said = run("--name", key, "--out", out, f"--benchmarks.{FOLDERS[key]}", root, "--benchmarks.partial", "true")
    found = read_semantic(key, settings(root, key))
    assert said.startswith(f"{out}: {NAMES[key]}: {len(found.items)} images, not the published ")
    items = read_table(out)
    assert [(i.sample_id, i.image) for i in items] == [(i.sample_id, i.image) for i in found.items]
    for item, source in zip(items, found.items, strict=True):
        assert Path(item.labels).is_absolute() == found.as_it_is == (item.labels == source.labels)
        assert np.array_equal(read_labels(out / item.labels), label_map(source, found.lookup))
    assert load_categories(out / "classes.csv") == load_categories(key)
    words = (out / "classes.txt").read_text().splitlines()
    assert words == [c.query for c in load_categories(key)]


def test_the_stage_leaves_nothing_behind_when_a_file_is_at_fault(tmp_path, run):
    root = ade20k(tmp_path / "in")
    given = ["--name", "ade20k", "--out", tmp_path / "out", "--benchmarks.ade20k", root, "--benchmarks.partial", "true"]
    labels(root / "annotations/validation/ADE_val_00000002.png", 151)
    with pytest.raises(UserError, match="^ADE20K: .*got 1 that do not: .*002.png: .*150 or 255, got 151"):
        run(*given)
    with pytest.raises(UserError, match="--name: expected one of voc, .*, got 'pets'"):
        run(*given, "--name", "pets")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    labels(root / "annotations/validation/ADE_val_00000002.png", 150)
    first = run(*given)
    files = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert run(*given) == first and files == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
