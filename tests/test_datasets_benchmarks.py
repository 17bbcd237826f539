"""Readers of the benchmarks on small folders laid out as the data sets are distributed, with every kind of fault."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import params
from maskmill.datasets import benchmarks
from maskmill.datasets.benchmarks import COUNTS, ROLES, fault, held_out_part, read_benchmark, refuse_faults
from maskmill.datasets.table import Item, parse_boxes, read_table, save_png
from maskmill.errors import UserError
from stages.benchmarks import main

REAL = os.environ.get("MASKMILL_REAL", "")
NOTHING = params.Benchmarks(**{f.name: "" for f in dataclasses.fields(params.Benchmarks)} | {"partial": True})


def settings(partial: bool = True, **folders: object) -> params.Benchmarks:
    return dataclasses.replace(NOTHING, partial=partial, **{key: str(path) for key, path in folders.items()})


def photograph(path: Path, height: int = 6, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def mask(path: Path, height: int = 6, width: int = 8) -> None:
    save_png(np.eye(height, width, dtype=bool), path)


def pairs(root: Path, images: str, masks: str, names: str = "abc") -> Path:
    for name in names:
        photograph(root / images / f"{name}.jpg")
        mask(root / masks / f"{name}.png")
    return root


# --- saliency ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "images", "masks"), [
    ("ecssd", "images", "ground_truth_mask"), ("ecssd", "img", "gt"), ("ecssd", "images", "gt"),
    ("duts_te", "DUTS-TE-Image", "DUTS-TE-Mask"), ("duts_tr", "DUTS-TR-Image", "DUTS-TR-Mask"),
    ("dut_omron", "DUT-OMRON-image", "pixelwiseGT-new-PNG"), ("dut_omron", "img", "gt"),
])  # fmt: skip
def test_saliency_sets_are_pairs_by_name(tmp_path, key, images, masks):
    pairs(tmp_path, images, masks, "cab")
    found = read_benchmark(key, settings(**{key: tmp_path}))
    name = {**ROLES["test"], **ROLES["train"]}[key]
    assert (found.name, found.note) == (name, "")
    assert found.items == [
        Item(f"{name}/{stem}", "", str(tmp_path / images / f"{stem}.jpg"), str(tmp_path / masks / f"{stem}.png"),
             dataset=name) for stem in "abc"
    ]  # fmt: skip
    assert [fault(item) for item in found.items] == ["", "", ""]


def test_what_archives_add_and_masks_without_a_photograph_are_not_looked_at(tmp_path):
    """Older copies of DUTS hold masks that no photograph has, and JPEG masks beside the right ones."""
    pairs(tmp_path, "DUTS-TE-Image", "DUTS-TE-Mask")
    for folder in ("DUTS-TE-Image", "DUTS-TE-Mask"):
        (tmp_path / folder / "._a.jpg").write_bytes(b"resource fork")
        (tmp_path / folder / "._a.png").write_bytes(b"resource fork")
        (tmp_path / folder / "Thumbs.db").write_bytes(b"")
        (tmp_path / folder / "__MACOSX").mkdir()
        photograph(tmp_path / folder / "__MACOSX/a.jpg")
    (tmp_path / "__MACOSX").mkdir()
    photograph(tmp_path / "DUTS-TE-Mask/b.jpg", 3, 3)
    mask(tmp_path / "DUTS-TE-Mask/nobody.png")
    items = read_benchmark("duts_te", settings(duts_te=tmp_path)).items
    assert [(Path(i.image).name, Path(i.mask).name) for i in items] == [(f"{n}.jpg", f"{n}.png") for n in "abc"]


def test_a_relative_folder_gives_absolute_paths(tmp_path, monkeypatch):
    pairs(tmp_path / "data" / "ECSSD", "images", "ground_truth_mask")
    monkeypatch.chdir(tmp_path / "data")
    items = read_benchmark("ecssd", settings(ecssd="ECSSD")).items
    monkeypatch.chdir("/")
    assert all(Path(p).is_absolute() and Path(p).is_file() for i in items for p in (i.image, i.mask))


@pytest.mark.parametrize(("key", "expected"), [
    ("ecssd", "images"), ("duts_te", "DUTS-TE-Image"), ("duts_tr", "DUTS-TR-Image"), ("dut_omron", "DUT-OMRON-image"),
    ("voc07", "VOC2007"), ("voc12", "VOC2012"),
])  # fmt: skip
def test_a_wrong_folder_is_refused_with_the_path_that_was_expected(tmp_path, key, expected):
    with pytest.raises(UserError, match=f"^{tmp_path / expected}: expected this folder of "):
        read_benchmark(key, settings(**{key: tmp_path}))
    with pytest.raises(UserError, match=rf"^benchmarks.{key}: {tmp_path / 'none'}: expected the folder of "):
        read_benchmark(key, settings(**{key: tmp_path / "none"}))


def test_masks_or_photographs_that_are_missing_are_named(tmp_path):
    for name in "abcdefgh":
        photograph(tmp_path / "images" / f"{name}.jpg")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'ground_truth_mask'}: expected this folder of ECSSD"):
        read_benchmark("ecssd", settings(ecssd=tmp_path))
    mask(tmp_path / "ground_truth_mask/a.png")
    with pytest.raises(UserError) as caught:
        read_benchmark("ecssd", settings(ecssd=tmp_path))
    assert "got 7 that" in str(caught.value) and f"{tmp_path}/images/b.jpg has no " in str(caught.value)
    assert str(caught.value).endswith("; and 2 more") and "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").rename(tmp_path / "x")
    (tmp_path / "empty").rename(tmp_path / "images")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'images'}: expected photographs \*.jpg, found none"):
        read_benchmark("ecssd", settings(ecssd=tmp_path))


def test_two_photographs_of_one_name_and_names_that_are_no_id_are_refused(tmp_path):
    pairs(tmp_path, "images", "ground_truth_mask")
    photograph(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="one photograph of each name, got 'a'"):
        read_benchmark("ecssd", settings(ecssd=tmp_path))
    (tmp_path / "images/a.png").unlink()
    photograph(tmp_path / "images/a copy.jpg")
    mask(tmp_path / "ground_truth_mask/a copy.png")
    with pytest.raises(UserError, match="a copy.jpg: expected a name of letters"):
        read_benchmark("ecssd", settings(ecssd=tmp_path))


@pytest.mark.parametrize("key", ["ecssd", "duts_te", "duts_tr", "dut_omron"])
def test_another_number_of_images_is_refused_unless_a_part_is_admitted(tmp_path, monkeypatch, key):
    name = {**ROLES["test"], **ROLES["train"]}[key]
    pairs(tmp_path, *(folders[0] for folders in benchmarks.PAIRS[name]))
    with pytest.raises(UserError, match=rf"{tmp_path}: expected the {COUNTS[name]:,} images of {name}, got 3; bench"):
        read_benchmark(key, settings(False, **{key: tmp_path}))
    assert len(read_benchmark(key, settings(True, **{key: tmp_path})).items) == 3
    monkeypatch.setitem(COUNTS, name, 3)
    assert len(read_benchmark(key, settings(False, **{key: tmp_path})).items) == 3


def test_the_counts_are_the_published_ones_and_no_set_has_two_roles():
    assert COUNTS == {"ECSSD": 1000, "DUTS-TE": 5019, "DUTS-TR": 10553, "DUT-OMRON": 5168, "CUB": 1000, "VOC07": 5011,
                      "VOC12": 11540, "COCO20K": 19817}  # fmt: skip
    test, train = ROLES["test"], ROLES["train"]
    assert not {*test} & {*train} and {*test.values(), *train.values()} == {*COUNTS} and "DUTS-TR" not in test.values()
    extra = {"partial", "cub_split", "coco20k_list", "context", "coco_stuff164k", "ade20k", "cityscapes"}  # semantic
    assert {*test, *train} == {f.name for f in dataclasses.fields(params.Benchmarks)} - extra


# --- CUB --------------------------------------------------------------------------------------------------------------


def cub(root: Path, numbers: str, beside: bool = False) -> Path:
    """CUB with one image per digit of ``numbers``, its part in the split; -> the split file."""
    names = [f"{i:03d}.Bird_{i}/Bird_{i}_{100 - i}" for i in range(1, len(numbers) + 1)]
    for name in names:
        photograph(root / "images" / f"{name}.jpg")
        mask((root.parent if beside else root) / "segmentations" / f"{name}.png")
    lines = {
        "images.txt": [f"{i} {name}.jpg" for i, name in enumerate(names, 1)],
        "bounding_boxes.txt": [f"{i} 1.0 0.0 {i}.0 5.5" for i in range(1, len(names) + 1)],
        "split.txt": [f"{i} {part}" for i, part in enumerate(numbers, 1)],
    }
    for file, text in lines.items():
        (root / file).write_text("\n".join(text) + "\n")
    return root / "split.txt"


@pytest.mark.parametrize(("numbers", "part", "expected"), [("0020102", 2, [3, 7]), ("1101221", 0, [3])])
@pytest.mark.parametrize("beside", [False, True])
def test_cub_takes_either_numbering_of_the_split_and_says_which(tmp_path, monkeypatch, numbers, part, expected, beside):
    root = tmp_path / "CUB_200_2011"
    split = cub(root, numbers, beside)
    masks = (tmp_path if beside else root) / "segmentations"
    wanted = [Item(f"CUB/00{i}.Bird_{i}/Bird_{i}_{100 - i}", "bird",
                   str(root / f"images/00{i}.Bird_{i}/Bird_{i}_{100 - i}.jpg"),
                   str(masks / f"00{i}.Bird_{i}/Bird_{i}_{100 - i}.png"), dataset="CUB",
                   boxes=f"1 0 {i} 4.5") for i in expected]  # fmt: skip
    monkeypatch.setitem(COUNTS, "CUB", len(expected))
    for folder in (root, tmp_path):  # or the folder that holds it
        found = read_benchmark("cub", settings(False, cub=folder, cub_split=split))
        assert found.items == wanted
        assert found.note == f"the test part is {part} in {split}"


def test_the_test_part_is_the_one_of_1000_images_whatever_else_there_is():
    redo, other = ["0"] * 10_000 + ["1"] * 788 + ["2"] * 1000, ["1"] * 10_000 + ["2"] * 788 + ["0"] * 1000
    assert held_out_part(redo, Path("s")) == "2" and held_out_part(other, Path("s")) == "0"
    assert held_out_part(["1"] * 5000 + ["2"] * 5788 + ["0"] * 1000, Path("s")) == "0"  # the count decides
    both = ["0"] * 1000 + ["1"] * 9788 + ["2"] * 1000
    for bad, shown in [(both, "1,000 of part 0, 9,788 of part 1, 1,000 of part 2"),
                       (["0"] * 50 + ["1"] * 50, "50 of part 0"), (["0"] * 9, "9 of part 0")]:  # fmt: skip
        with pytest.raises(UserError, match=f"^s: expected 1,000 test images as part 2 or as part 0, got .*{shown}"):
            held_out_part(bad, Path("s"))
    with pytest.raises(UserError, match="^s: expected the parts 0, 1 and 2, got '3'"):
        held_out_part(["0", "3"], Path("s"))


def test_cub_names_what_is_missing(tmp_path):
    root = tmp_path / "CUB_200_2011"
    split = cub(root, "0002")
    with pytest.raises(UserError, match="^benchmarks.cub_split: expected the file of the split .* got nothing"):
        read_benchmark("cub", settings(cub=root))
    with pytest.raises(UserError, match="^benchmarks.cub_split: .* got no file /none"):
        read_benchmark("cub", settings(cub=root, cub_split="/none"))
    with pytest.raises(UserError, match=r"CUB_200_2011/images.txt: expected a text file, got: No such file"):
        read_benchmark("cub", settings(cub=split.parent / "images", cub_split=split))
    truth = root / "segmentations/004.Bird_4/Bird_4_96.png"
    truth.unlink()
    with pytest.raises(UserError, match=f"got 1 that do not: {truth} is missing"):
        read_benchmark("cub", settings(cub=root, cub_split=split))
    mask(truth)
    (root / "segmentations").rename(root / "elsewhere")
    with pytest.raises(UserError, match=rf"^{root / 'segmentations'}: expected the folder of CUB's masks"):
        read_benchmark("cub", settings(cub=root, cub_split=split))
    (root / "elsewhere").rename(root / "segmentations")
    for file, broken, said in [
        ("bounding_boxes.txt", "1 2 3 4 5\n", "expected a line of image 4, which"),
        ("bounding_boxes.txt", "1 2 3 4\n", "expected 5 words a line, got '1 2 3 4'"),
        ("bounding_boxes.txt", "4 2 3 four 5\n", "image 4: expected x, y, width and height as .*, got '2 3 four 5'"),
        ("bounding_boxes.txt", "4 2 3 -4 5\n", "expected x0 y0 x1 y1 with x0 <= x1"),
        ("images.txt", "4 a.jpg\n4 b.jpg\n", "expected each of its lines once, got '4' again"),
    ]:
        whole = (root / file).read_text()
        (root / file).write_text(broken)
        with pytest.raises(UserError, match=said):
            read_benchmark("cub", settings(cub=root, cub_split=split))
        (root / file).write_text(whole)


# --- localisation -----------------------------------------------------------------------------------------------------

VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
 <xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>{part}</object>"""
VOC_PART = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"


def voc(root: Path, year: str) -> Path:
    """Two listed photographs of 8x6 pixels and one that is not listed."""
    folder = root / "VOCdevkit" / year
    for name in ("000012", "000007", "000001"):
        photograph(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/trainval.txt").write_text("000012\n000007 \n")
    (folder / "Annotations").mkdir()
    objects = {
        "000012": [{"name": "car", "difficult": 1, "x0": 1, "y0": 1, "x1": 8, "y1": 6, "part": ""}],
        "000007": [{"name": "person", "difficult": 0, "x0": 2, "y0": 3, "x1": 4, "y1": 5, "part": VOC_PART},
                   {"name": "dog", "difficult": 0, "x0": 1, "y0": 2.75, "x1": 3, "y1": 4, "part": ""}],
    }  # fmt: skip
    for name, several in objects.items():
        text = "".join(VOC_OBJECT.format(**values) for values in several)
        (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{text}</annotation>")
    return folder


@pytest.mark.parametrize(("key", "year"), [("voc07", "VOC2007"), ("voc12", "VOC2012")])
def test_voc_boxes_are_those_of_all_objects_from_0(tmp_path, key, year):
    folder = voc(tmp_path, year)
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        found = read_benchmark(key, settings(**{key: root}))
        name = found.name
        assert found.items == [
            Item(f"{name}/000012", "", str(folder / "JPEGImages/000012.jpg"), dataset=name, boxes="0 0 7 5"),
            Item(f"{name}/000007", "", str(folder / "JPEGImages/000007.jpg"), dataset=name,
                 boxes="1 2 3 4;0 1.75 2 3"),
        ]  # fmt: skip
        assert [fault(item) for item in found.items] == ["", ""]
    with pytest.raises(UserError, match=f"expected the {COUNTS[name]:,} images of {name}, got 2"):
        read_benchmark(key, settings(False, **{key: tmp_path}))


@pytest.mark.parametrize(("text", "said"), [
    (None, "000007.xml: expected a VOC annotation, got: No such file"),
    ("<annotation>", "000007.xml: expected a VOC annotation, got: no element found"),
    ("<annotation></annotation>", "000007.xml: expected at least one object, got none"),
    ("<annotation><object><name>a</name></object></annotation>", "000007.xml: object 1: expected xmin, ymin, xmax"),
    (VOC_OBJECT.format(name="", difficult=0, x0=9, y0=1, x1=2, y1=3, part=""), "got none"),
    (f"<a>{VOC_OBJECT.format(name='', difficult=0, x0=9, y0=1, x1=2, y1=3, part='')}</a>", "000007.jpg: box .*8 0 1 2"),
])  # fmt: skip
def test_bad_annotations_are_named(tmp_path, text, said):
    path = voc(tmp_path, "VOC2007") / "Annotations/000007.xml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_benchmark("voc07", settings(voc07=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_listed_photograph_that_is_missing_is_named(tmp_path):
    folder = voc(tmp_path, "VOC2007")
    (folder / "JPEGImages/000012.jpg").unlink()
    with pytest.raises(UserError, match="VOC07: .* got 1 that do not: .*000012.jpg is missing"):
        read_benchmark("voc07", settings(voc07=tmp_path))
    (folder / "ImageSets/Main/trainval.txt").unlink()
    with pytest.raises(UserError, match="ImageSets/Main/trainval.txt: expected a text file, got: No such file"):
        read_benchmark("voc07", settings(voc07=tmp_path))


COCO = {
    "images": [{"id": 30, "file_name": "COCO_train2014_000000000030.jpg"},
               {"id": 9, "file_name": "COCO_train2014_000000000009.jpg"},
               {"id": 25, "file_name": "COCO_train2014_000000000025.jpg"},
               {"id": 1, "file_name": "COCO_train2014_000000000001.jpg"}],
    "annotations": [{"image_id": 9, "iscrowd": 0, "bbox": [0.0, 0.0, 8.0, 6.0]},
                    {"image_id": 9, "iscrowd": 1, "bbox": [0, 0, 1, 1]},
                    {"image_id": 9, "iscrowd": 0, "bbox": [1.4, 1.6, 2.2, 3.1]},  # edges 1.4 2(1.6) 3.6 4.7 -> 1 2 4 5
                    {"image_id": 25, "iscrowd": 1, "bbox": [0, 0, 4, 4]},
                    {"image_id": 30, "iscrowd": 0, "bbox": [2, 1, 0.3, 3]},  # rounds to no width
                    {"image_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1]}],
}  # fmt: skip


def coco(root: Path, below: str = "train2014") -> Path:
    for entry in COCO["images"]:
        photograph(root / below / entry["file_name"])
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_train2014.json").write_text(json.dumps(COCO))
    names = root / "20k.txt"
    names.write_text("".join(f"train2014/COCO_train2014_{i:012d}.jpg\n" for i in (30, 9, 25)))
    return names


@pytest.mark.parametrize("below", ["train2014", "images/train2014"])
def test_coco_boxes_are_those_of_the_listed_images_without_crowds(tmp_path, below):
    names = coco(tmp_path, below)
    found = read_benchmark("coco20k", settings(coco20k=tmp_path, coco20k_list=names))
    stem = "COCO_train2014_0000000000"
    assert found.items == [
        Item(f"COCO20K/{stem}30", "", str(tmp_path / below / f"{stem}30.jpg"), dataset="COCO20K", boxes="2 1 1 3"),
        Item(f"COCO20K/{stem}09", "", str(tmp_path / below / f"{stem}09.jpg"), dataset="COCO20K",
             boxes="0 0 7 5;1 2 3 4"),
    ]  # fmt: skip
    assert found.note == "1 listed images have no box but a crowd's and are left out"
    with pytest.raises(UserError, match="expected the 19,817 images of COCO20K, got 2"):
        read_benchmark("coco20k", settings(False, coco20k=tmp_path, coco20k_list=names))


def test_coco_names_what_is_missing(tmp_path):
    names = coco(tmp_path)
    with pytest.raises(UserError, match="^benchmarks.coco20k_list: expected the text file of the 19,817 image names"):
        read_benchmark("coco20k", settings(coco20k=tmp_path))
    asked = settings(coco20k=tmp_path, coco20k_list=names)
    (tmp_path / "train2014/COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(UserError, match="COCO20K: .*000000000009.jpg is missing"):
        read_benchmark("coco20k", asked)
    names.write_text("COCO_train2014_000000000005.jpg\nCOCO_train2014_000000000009.jpg\n")
    with pytest.raises(UserError, match=r"did not find 1 of them, the first is COCO_train2014_000000000005.jpg"):
        read_benchmark("coco20k", asked)
    table = tmp_path / "annotations/instances_train2014.json"
    for text in ("{", "[]", '{"images": [], "annotations": [{"image_id": 1}]}', '{"images": [{}], "annotations": []}',
                 '{"images": [], "annotations": [{"image_id": 1, "iscrowd": 0, "bbox": [1]}]}'):  # fmt: skip
        table.write_text(text)
        with pytest.raises(UserError, match=rf"^{table}: expected COCO's images and annotations as JSON") as caught:
            read_benchmark("coco20k", asked)
        assert "\n" not in str(caught.value)
    table.unlink()
    with pytest.raises(UserError, match=rf"^{table}: expected the annotations of COCO, got: No such file"):
        read_benchmark("coco20k", asked)


# --- faults of files --------------------------------------------------------------------------------------------------


def test_faults_of_pictures_and_masks_are_named(tmp_path):
    pairs(tmp_path, "images", "ground_truth_mask")
    a, b, c = read_benchmark("ecssd", settings(ecssd=tmp_path)).items
    mask(Path(a.mask), 5, 8)
    assert fault(a) == f"{a.mask}: expected 8x6 pixels as its photograph has, got 8x5"
    whole = Path(b.image).read_bytes()
    Path(b.image).write_bytes(whole[: len(whole) // 2])
    assert fault(b).startswith(f"{b.image}: expected a readable image, got")
    Image.fromarray(np.ones((6, 8), np.uint8)).save(c.mask)
    assert fault(c).startswith(f"{c.mask}: expected a mask of 0 and 255")


@pytest.mark.parametrize(("box", "good"), [
    ("0 0 7 5", True), ("0 0 8 6", True), ("-1 0 3 3", True), ("0 0 8.5 5", False), ("0 0 7 7", False),
    ("-2 0 7 5", False), ("1 1 2 2;0 -1.5 1 1", False),
])  # fmt: skip
def test_boxes_that_do_not_fit_the_photograph_are_named(tmp_path, box, good):
    photograph(tmp_path / "a.jpg")
    found = fault(Item("a", "", str(tmp_path / "a.jpg"), boxes=box))
    assert found == "" if good else found.startswith(f"{tmp_path / 'a.jpg'}: expected boxes within 8x6 pixels, got ")


def test_faults_are_counted_and_the_first_are_told():
    refuse_faults("X", ["", ""])
    with pytest.raises(UserError, match=r"^X: .*, got 2 that do not: one; two$"):
        refuse_faults("X", iter(["", "one", "", "two"]))
    with pytest.raises(UserError, match=r"got 7 that do not: 1; 2; 3; 4; 5; and 2 more$"):
        refuse_faults("X", map(str, range(1, 8)))


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run_main, monkeypatch):
    monkeypatch.setenv("MASKMILL_WORKERS", "2")
    return partial(run_main, main)


def test_the_stage_writes_one_image_set_of_all_that_is_given(tmp_path, run):
    pairs(tmp_path / "ECSSD", "images", "ground_truth_mask")
    pairs(tmp_path / "DUTS-TR", "DUTS-TR-Image", "DUTS-TR-Mask")
    voc(tmp_path, "VOC2012")
    given = ["--benchmarks.ecssd", tmp_path / "ECSSD", "--benchmarks.voc12", tmp_path, "--benchmarks.duts_tr",
             tmp_path / "DUTS-TR", "--benchmarks.partial", "true"]  # fmt: skip
    said = run("--out", tmp_path / "test", *given)
    assert said == (f"{tmp_path}/test: ECSSD: 3 images, not the published 1,000\n"
                    f"{tmp_path}/test: VOC12: 2 images, not the published 11,540\n")  # fmt: skip
    items = read_table(tmp_path / "test")
    assert [i.sample_id for i in items] == ["ECSSD/a", "ECSSD/b", "ECSSD/c", "VOC12/000012", "VOC12/000007"]
    assert [i.dataset for i in items] == ["ECSSD"] * 3 + ["VOC12"] * 2 and {i.cls for i in items} == {""}
    assert parse_boxes(items[4].boxes) == [(1, 2, 3, 4), (0, 1.75, 2, 3)] and items[0].boxes == ""
    run("--role", "train", "--out", tmp_path / "train", *given)
    assert {i.dataset for i in read_table(tmp_path / "train")} == {"DUTS-TR"}


def test_the_stage_says_which_keys_to_set_and_leaves_nothing_behind(tmp_path, run):
    with pytest.raises(UserError) as caught:
        run("--out", tmp_path / "out")
    assert all(f"benchmarks.{key}" in str(caught.value) for key in ROLES["test"])
    assert "duts_tr" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="benchmarks.duts_tr"):
        run("--out", tmp_path / "out", "--role", "train")
    with pytest.raises(UserError, match="--role: expected one of test, train, got 'both'"):
        run("--out", tmp_path / "out", "--role", "both")
    pairs(tmp_path / "ECSSD", "images", "ground_truth_mask")
    mask(tmp_path / "ECSSD/ground_truth_mask/b.png", 9, 9)
    with pytest.raises(UserError, match="ECSSD: .*got 1 that do not: .*b.png: expected 8x6 pixels"):
        run("--out", tmp_path / "out", "--benchmarks.ecssd", tmp_path / "ECSSD", "--benchmarks.partial", "true")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ECSSD"]


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason="MASKMILL_REAL not set")
def test_real_photographs_in_their_real_layouts(tmp_path, run):
    real = Path(REAL)
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/train2014").symlink_to(real / "coco/images")
    (tmp_path / "coco/annotations/instances_train2014.json").symlink_to(real / "coco/instances.json")
    said = run("--out", tmp_path / "out", "--benchmarks.ecssd", real / "sod", "--benchmarks.voc12", real / "voc",
               "--benchmarks.coco20k", tmp_path / "coco", "--benchmarks.coco20k_list", real / "coco/file_list.txt",
               "--benchmarks.partial", "true")  # fmt: skip
    assert said.count("images, not the published") == 3 and "1 listed images have no box but a crowd's" in said
    by_set: dict[str, list[Item]] = {}
    for item in read_table(tmp_path / "out"):
        by_set.setdefault(item.dataset, []).append(item)
    assert {name: len(items) for name, items in by_set.items()} == {"ECSSD": 100, "VOC12": 100, "COCO20K": 60}
    assert all(item.mask and not item.boxes for item in by_set["ECSSD"])
    first = next(item for item in by_set["VOC12"] if item.sample_id == "VOC12/2007_000027")
    assert parse_boxes(first.boxes) == [(173, 100, 348, 350)]
    boxes = [parse_boxes(item.boxes) for item in by_set["COCO20K"]]
    assert sum(map(len, boxes)) == 87 and all(boxes)  # 91 less 4 crowds
    with pytest.raises(UserError, match="expected the 1,000 images of ECSSD, got 100"):
        run("--out", tmp_path / "out", "--benchmarks.ecssd", real / "sod")
