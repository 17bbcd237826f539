"""Readers of the single-class sets on small folders laid out as the sets are distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from maskmill.datasets.benchmarks import fault
from maskmill.datasets.single_class import COUNTS, read_single_class
from maskmill.datasets.table import Item, parse_boxes, save_png, table_csv
from maskmill.errors import UserError


def photograph(path: Path, height: int = 40, width: int = 50) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def read(key: str, root: Path, part: str = "all", **more):
    return read_single_class(key, root, part, partial=True, **more)


# --- Dogs -------------------------------------------------------------------------------------------------------------

BREEDS = {"n02085620-Chihuahua": ("n02085620_10074", "n02085620_7"), "n02099601-golden_retriever": ("n02099601_10",)}
XML = """<annotation><folder>02085620</folder><filename>%s</filename>
<size><width>50</width><height>40</height></size>{}</annotation>"""
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
OBJECT = f"<object><name>dog</name>{BOX}</object>"


@pytest.fixture
def dogs(tmp_path) -> Path:
    for breed, names in BREEDS.items():
        for k, name in enumerate(names):
            photograph(tmp_path / "Images" / breed / f"{name}.jpg")
            path = tmp_path / "Annotation" / breed / name  # no ending
            path.parent.mkdir(parents=True, exist_ok=True)
            objects = OBJECT.format(0, 10, 30 + k, 39) + (OBJECT.format(5, 6, 7, 8) if k else "")
            path.write_text(XML.format(objects))
    photograph(tmp_path / "Images" / "__MACOSX" / "x.jpg")
    for part, names in (("train", ["n02085620-Chihuahua/n02085620_7", "n02099601-golden_retriever/n02099601_10"]),
                        ("test", ["n02085620-Chihuahua/n02085620_10074"])):  # fmt: skip
        (tmp_path / "lists").mkdir(exist_ok=True)
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = [f"{name}.jpg" for name in names]
        savemat(tmp_path / "lists" / f"{part}_list.mat", {"file_list": cells})
    return tmp_path


def test_dogs_with_all_their_boxes(dogs):
    found = read("dogs", dogs)
    assert found.name == "Dogs" and [i.sample_id for i in found.items] == [
        "Dogs/n02085620-Chihuahua/n02085620_10074", "Dogs/n02085620-Chihuahua/n02085620_7",
        "Dogs/n02099601-golden_retriever/n02099601_10"]  # fmt: skip
    first, second, _ = found.items
    assert first == Item("Dogs/n02085620-Chihuahua/n02085620_10074", "dog",
                         str(dogs / "Images/n02085620-Chihuahua/n02085620_10074.jpg"), dataset="Dogs",
                         boxes="0 10 30 39")  # fmt: skip
    assert parse_boxes(second.boxes) == [(0, 10, 31, 39), (5, 6, 7, 8)]
    assert [fault(item) for item in found.items] == [""] * 3


@pytest.mark.parametrize("place", ["lists", "."])
def test_the_split_of_dogs(dogs, place):
    for part in ("train", "test"):
        (dogs / "lists" / f"{part}_list.mat").rename(dogs / place / f"{part}_list.mat")
    assert [Path(i.image).stem for i in read("dogs", dogs, "train").items] == ["n02085620_7", "n02099601_10"]
    assert [Path(i.image).stem for i in read("dogs", dogs, "test").items] == ["n02085620_10074"]


def test_what_dogs_lack_is_named(dogs):
    (dogs / "Images/n02085620-Chihuahua/n02085620_7.jpg").unlink()
    with pytest.raises(UserError, match=r"Dogs: .* got 1 that do not: .*n02085620_7.jpg is missing"):
        read("dogs", dogs, "train")
    (dogs / "Annotation/n02085620-Chihuahua/n02085620_10074").write_text("no xml")
    with pytest.raises(UserError, match="n02085620_10074: expected a VOC annotation"):
        read("dogs", dogs)
    (dogs / "lists/test_list.mat").write_bytes(b"not MATLAB")
    with pytest.raises(UserError, match="test_list.mat: expected a MATLAB file with 'file_list', got"):
        read("dogs", dogs, "test")
    (dogs / "lists/test_list.mat").unlink()
    with pytest.raises(UserError, match="test_list.mat: expected the test split of Dogs, found none"):
        read("dogs", dogs, "test")
    (dogs / "Annotation").rename(dogs / "annotation")
    with pytest.raises(UserError, match="Annotation: expected this folder of Dogs"):
        read("dogs", dogs)


# --- Cars -------------------------------------------------------------------------------------------------------------


def annotations(path: Path, rows: list[tuple], labelled: bool) -> None:
    """A struct array as MATLAB wrote it: small integers, and ``class`` only where there are labels."""
    names = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labelled else []), "fname"]
    table = np.empty((1, len(rows)), [(name, object) for name in names])
    for k, (file, *box) in enumerate(rows):
        values = [np.uint8(v) for v in box] + ([np.uint8(14)] if labelled else []) + [file]
        for name, value in zip(names, values, strict=True):
            table[0, k][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": table})


@pytest.fixture
def cars(tmp_path) -> Path:
    for part, count in (("train", 2), ("test", 1)):
        for k in range(count):
            photograph(tmp_path / f"cars_{part}" / f"{k + 1:05d}.jpg")
    rows = [("00002.jpg", 1, 1, 50, 40), ("00001.jpg", 4, 5, 20, 30)]
    annotations(tmp_path / "devkit/cars_train_annos.mat", rows, True)
    annotations(tmp_path / "devkit/cars_test_annos.mat", [("00001.jpg", 2, 3, 10, 12)], False)
    return tmp_path


def test_cars_of_both_parts_have_ids_of_their_own_and_boxes_from_0(cars):
    found = read("cars", cars)
    assert [(i.sample_id, i.boxes) for i in found.items] == [
        ("Cars/train/00002", "0 0 49 39"), ("Cars/train/00001", "3 4 19 29"), ("Cars/test/00001", "1 2 9 11")]
    assert {(i.cls, i.dataset) for i in found.items} == {("car", "Cars")}
    assert found.items[2].image == str(cars / "cars_test/00001.jpg") and [fault(i) for i in found.items] == [""] * 3
    assert [i.sample_id for i in read("cars", cars, "test").items] == ["Cars/test/00001"]


def test_the_labelled_test_annotations_do_as_well(cars):
    (cars / "devkit/cars_test_annos.mat").unlink()
    annotations(cars / "cars_test_annos_withlabels.mat", [("00001.jpg", 2, 3, 10, 12)], True)
    assert read("cars", cars, "test").items[0].boxes == "1 2 9 11"


def test_what_cars_lack_is_named(cars):
    (cars / "cars_train/00001.jpg").unlink()
    with pytest.raises(UserError, match=r"Cars: .*cars_train/00001.jpg is missing"):
        read("cars", cars)
    savemat(cars / "devkit/cars_train_annos.mat", {"annotations": np.zeros(3)})
    with pytest.raises(UserError, match="cars_train_annos.mat: expected annotations with fname, bbox_x1"):
        read("cars", cars, "train")
    savemat(cars / "devkit/cars_train_annos.mat", {"others": np.zeros(3)})
    with pytest.raises(UserError, match="cars_train_annos.mat: expected a MATLAB file with 'annotations'"):
        read("cars", cars, "train")
    (cars / "devkit/cars_train_annos.mat").unlink()
    with pytest.raises(UserError, match=r"cars_train_annos.mat: expected the boxes of Cars \(train\), found none"):
        read("cars", cars, "train")


# --- CUB --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cub(tmp_path) -> Path:
    root = tmp_path / "CUB_200_2011"
    files = ("001.Albatross/a_1", "001.Albatross/a_2", "002.Auk/b_1", "002.Auk/b_2", "002.Auk/b_3")
    names = {k: f"{file}.jpg" for k, file in enumerate(files, 1)}
    for name in names.values():
        photograph(root / "images" / name)
    (root / "images.txt").write_text("".join(f"{k} {name}\n" for k, name in names.items()))
    (tmp_path / "split.txt").write_text("1 0\n2 0\n3 1\n4 2\n5 0\n")  # ReDO's: 0 train, 1 val, 2 test
    return tmp_path


def test_cub_trains_on_all_that_is_no_test_image_and_sees_no_truth(cub):
    for root in (cub, cub / "CUB_200_2011"):
        found = read("cub", root, "train", split=cub / "split.txt")
        assert [i.sample_id for i in found.items] == [
            "CUB/001.Albatross/a_1", "CUB/001.Albatross/a_2", "CUB/002.Auk/b_1", "CUB/002.Auk/b_3"]
        assert {(i.cls, i.mask, i.boxes) for i in found.items} == {("bird", "", "")}
    (cub / "split.txt").write_text("1 1\n2 1\n3 2\n4 0\n5 1\n")  # the other numbering: 0 test
    items = read("cub", cub, "train", split=cub / "split.txt").items
    assert [Path(i.image).stem for i in items] == ["a_1", "a_2", "b_1", "b_3"]


def test_what_cub_lacks_is_named(cub):
    with pytest.raises(UserError, match="CUB: expected the file of the split"):
        read("cub", cub, "train")
    with pytest.raises(UserError, match="CUB: expected the part train, got 'all'"):
        read("cub", cub, split=cub / "split.txt")
    (cub / "CUB_200_2011/images/001.Albatross/a_2.jpg").unlink()
    with pytest.raises(UserError, match="a_2.jpg is missing"):
        read("cub", cub, "train", split=cub / "split.txt")
    (cub / "split.txt").write_text("1 0\n2 0\n9 0\n4 2\n")
    with pytest.raises(UserError, match="images.txt: expected a line of image 9"):
        read("cub", cub, "train", split=cub / "split.txt")
    (cub / "split.txt").write_text("1 0\n2 0\n3 1\n4 2\n2 2\n")
    with pytest.raises(UserError, match="split.txt: expected each of its lines once, got '2' again"):
        read("cub", cub, "train", split=cub / "split.txt")


# --- Human3.6M and folders of pictures --------------------------------------------------------------------------------


def test_human_crops_have_masks_or_boxes_beside_them_by_name(tmp_path):
    for name in ("S1/walk_01", "S1/walk_02"):
        photograph(tmp_path / "images" / f"{name}.jpg")
    (found, _) = read("human36m", tmp_path).items
    assert found == Item("Human3.6M/S1/walk_01", "human", str(tmp_path / "images/S1/walk_01.jpg"), dataset="Human3.6M")
    for k, name in enumerate(("S1/walk_01", "S1/walk_02")):
        path = tmp_path / "boxes" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{k} 2 30 39\n\n" + "1 1 2 2\n" * k)
    assert [i.boxes for i in read("human36m", tmp_path).items] == ["0 2 30 39", "1 2 30 39;1 1 2 2"]
    for name in ("S1/walk_01", "S1/walk_02"):
        save_png(np.eye(40, 50, dtype=bool), tmp_path / "masks" / f"{name}.png")
    items = read("human36m", tmp_path, word="person").items
    assert items[1].mask == str(tmp_path / "masks/S1/walk_02.png") and items[1].cls == "person"
    assert [fault(i) for i in items] == ["", ""] and "mask" in table_csv(items)


def test_crops_may_lie_in_the_folder_itself(tmp_path):
    photograph(tmp_path / "a.png")
    save_png(np.eye(40, 50, dtype=bool), tmp_path / "masks/a.png")
    (item,) = read("human36m", tmp_path).items
    assert item.image == str(tmp_path / "a.png") and item.mask == str(tmp_path / "masks/a.png")


def test_what_human_crops_lack_is_named(tmp_path):
    photograph(tmp_path / "images/a.jpg")
    (tmp_path / "boxes").mkdir()
    with pytest.raises(UserError, match=r"boxes/a.txt: expected boxes x0 y0 x1 y1, one a line, got: No such file"):
        read("human36m", tmp_path)
    for text, message in (("1 2 3\n", "expected x0 y0 x1 y1, got '1 2 3'"), ("\n", "at least one box, got none"),
                          ("9 9 1 1\n", "expected x0 y0 x1 y1 with")):  # fmt: skip
        (tmp_path / "boxes/a.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            read("human36m", tmp_path)
    (tmp_path / "boxes/a.txt").write_text("1 2 3 4")
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match=r"Human3.6M: .*masks/a.png is missing"):
        read("human36m", tmp_path)


def test_any_folder_of_pictures_and_a_word(tmp_path):
    for name in ("b.jpg", "deep/a.PNG", ".hidden.jpg", ".git/x.png"):
        photograph(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    items = read("pictures", tmp_path, word="teapot").items
    assert [(i.sample_id, i.cls) for i in items] == [("pictures/b", "teapot"), ("pictures/deep/a", "teapot")]
    with pytest.raises(UserError, match="expected a word for what every picture shows, got none"):
        read("pictures", tmp_path)
    photograph(tmp_path / "b.png")
    with pytest.raises(UserError, match="expected one picture of each name, got 'b' with several endings"):
        read("pictures", tmp_path, word="teapot")


def test_names_that_cannot_be_ids_folders_without_pictures_and_unknown_sets(tmp_path):
    with pytest.raises(UserError, match=r"expected the pictures of pictures \(all\), got 0"):
        read("pictures", tmp_path, word="dog")
    photograph(tmp_path / "a b.jpg")
    with pytest.raises(UserError, match="a b.jpg: expected a name of letters, digits"):
        read("pictures", tmp_path, word="dog")
    with pytest.raises(UserError, match="none: expected the folder of Dogs, found none"):
        read("dogs", tmp_path / "none")
    with pytest.raises(UserError, match="cats: expected a set among dogs, cars"):
        read("cats", tmp_path)


def test_the_published_counts_are_asked_for_unless_a_part_is_admitted(dogs, cars):
    assert COUNTS["dogs", "train"] + COUNTS["dogs", "test"] == COUNTS["dogs", "all"]
    assert COUNTS["cars", "train"] + COUNTS["cars", "test"] == COUNTS["cars", "all"]
    with pytest.raises(UserError, match=r"expected the 20,580 pictures of Dogs \(all\), got 3"):
        read_single_class("dogs", dogs)
    with pytest.raises(UserError, match=r"expected the 8,041 pictures of Cars \(test\), got 1"):
        read_single_class("cars", cars, "test")
