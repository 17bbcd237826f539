"""index.csv and its pictures: what is read, what is refused with file and line, and back to the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.datasets.table import (
    Item,
    boxes_text,
    image_size,
    item_rng,
    parse_boxes,
    read_image,
    read_labels,
    read_mask,
    read_table,
    save_png,
    table_csv,
)
from maskmill.errors import UserError


@pytest.fixture
def written(tmp_path):
    """Write index.csv and return its folder."""

    def write(text: str | bytes) -> Path:
        (tmp_path / "index.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def test_a_table_by_hand(written):
    folder = written(
        "sample_id,class,image,mask,clip_own\n"
        "a,bird,images/a.png,masks/a.png,0.9\n"
        "b,dog,images/b.png,,0.1\n"
    )
    assert read_table(folder) == [
        Item("a", "bird", "images/a.png", mask="masks/a.png"),
        Item("b", "dog", "images/b.png"),
    ]


def test_order_of_columns_byte_order_mark_and_line_ends_do_not_matter(written):
    folder = written("\ufeffimage,seed,sample_id,class\r\nx.png,1,007,null\r\n\r\ny.png,,NA,fire engine\r\n")
    assert read_table(folder) == [Item("007", "null", "x.png", seed="1"), Item("NA", "fire engine", "y.png")]


@pytest.mark.parametrize("caption", ["a photo of a bird, flying", 'the "big" one', "two\nlines", "häuser", " padded "])
def test_what_table_csv_writes_read_table_reads(written, caption):
    items = [
        Item("s1-00000", "bird", "images/a.png", "masks/a.png", "labels/a.png", caption, "dog", "1"),
        Item("s1-00001", "nan", "images/b.png", caption="", absent="NA", seed="1"),
    ]
    text = table_csv(items)
    assert read_table(written(text)) == items
    assert table_csv(read_table(written(text))) == text


def test_data_set_boxes_and_absolute_paths_come_back(written, tmp_path):
    items = [
        Item("ECSSD/0001", "", "/far/away/0001.jpg", "/far/away/0001.png", dataset="ECSSD"),
        Item("VOC07/000005", "", "/far/000005.jpg", dataset="VOC07", boxes="262 210 323 338;-0.5 0 1e+06 45.70000076"),
    ]
    text = table_csv(items)
    assert text.splitlines()[0] == "sample_id,class,image,mask,dataset,boxes"
    assert read_table(written(text)) == items
    assert tmp_path / "set" / items[0].image == Path("/far/away/0001.jpg")  # as every reader joins them


def test_boxes_are_what_was_written():
    assert parse_boxes("") == [] and boxes_text([]) == ""
    assert boxes_text([(173, 100.0, np.int64(348), 350.25), (0, 0, 0, 0)]) == "173 100 348 350.25;0 0 0 0"
    assert parse_boxes("173 100 348 350.25;0 0 0 0") == [(173, 100, 348, 350.25), (0, 0, 0, 0)]
    assert parse_boxes("5 5 4 9") == [(5, 5, 4, 9)]  # no width is a box that nothing meets
    values = np.random.default_rng(0).integers(0, 2000, (20, 2))
    boxes = [(int(x), int(y), int(x) + 7, int(y) + 1) for x, y in values]
    assert parse_boxes(boxes_text(boxes)) == boxes


@pytest.mark.parametrize("boxes", [
    "1 2 3", "1 2 3 4 5", "1 2 3 x", "1 2 3 4;", "5 0 3 0", "0 5 9 3", "0 0 nan 1", "inf 0 inf 1",
])  # fmt: skip
def test_boxes_that_are_none_are_named_with_their_line(written, boxes):
    folder = written(f"sample_id,class,image,boxes\na,,a.png,1 2 3 4\nb,,b.png,{boxes}\n")
    with pytest.raises(UserError, match=r"line 3 \(b\): boxes: expected x0 y0 x1 y1") as caught:
        read_table(folder)
    assert "\n" not in str(caught.value)


def test_columns_that_no_row_fills_are_left_out_and_required_ones_never(written):
    items = [Item("a", "", "a.png"), Item("b", "", "b.png", seed="2")]
    assert table_csv(items) == "sample_id,class,image,seed\na,,a.png,\nb,,b.png,2\n"
    assert read_table(written(table_csv(items))) == items


@pytest.mark.parametrize(("text", "says"), [
    ("class,image\nbird,a.png\n", "column 'sample_id'"),
    ("sample_id,image\na,a.png\n", "column 'class'"),
    ("sample_id,class\na,bird\n", "column 'image'"),
    ("sample_id,class,image\n", "without rows"),
    ("", "index.csv: expected"),
    ("\n\n", "index.csv: expected"),
    ("sample_id,class,image\na,bird,a.png\nb,dog,b.png\na,car,c.png\n", "line 4: .*'a'"),
    ("sample_id,class,image\na,bird,a.png\n\n\na,car,c.png\n", "line 5: .*'a'"),
    ("sample_id,class,image\n,bird,a.png\n", "line 2: .*''"),
    ("sample_id,class,image\na,bird\n", "line 2.*expected 3 fields, got 2"),
    ("sample_id,class,image\na,bird,a.png,\nb,dog,b.png,\n", "line 2.*expected 3 fields, got 4"),
    ('sample_id,class,image\na,"bird,a.png\n', "expected a CSV table in UTF-8"),
    ("sample_id,class,image\nä,bird,a.png\n".encode("latin-1"), "expected a CSV table in UTF-8"),
    ("sample_id,class,class,image\na,b,c,d.png\n", "each column once"),
    ("sample_id,class,image\n../../etc/a,bird,a.png\n", "line 2: .*'../../etc/a'"),
    ("sample_id,class,image\n/a,bird,a.png\n", "line 2: .*'/a'"),
    ("sample_id,class,image\na,bird,\n", "line 2 .*expected an image"),
])  # fmt: skip
def test_bad_tables_are_one_line_that_names_the_file(written, text, says):
    folder = written(text)
    with pytest.raises(UserError, match=says) as caught:
        read_table(folder)
    assert str(caught.value).startswith(f"{folder / 'index.csv'}: ") and "\n" not in str(caught.value)


def test_a_missing_table_or_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path / 'index.csv'}: expected the table of an image set"):
        read_table(tmp_path)
    (tmp_path / "index.csv").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path / 'index.csv'}: expected the table of an image set"):
        read_table(tmp_path)


def test_an_items_generator_depends_on_seed_and_id_alone():
    draws = {item_rng(seed, name).integers(2**62) for seed in (0, 1) for name in ("a", "b", "s1-00001")}
    assert len(draws) == 6
    assert item_rng(1, "a").integers(2**62) == item_rng(1, "a").integers(2**62)


# --- pictures ---------------------------------------------------------------------------------------------------------


def saved(tmp_path, array: np.ndarray, name: str = "x.png") -> Path:
    Image.fromarray(array).save(tmp_path / name)
    return tmp_path / name


def test_images_become_rgb_of_the_asked_size(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_image(saved(tmp_path, rgb)), rgb)
    grey = read_image(saved(tmp_path, rgb[..., 0]))
    assert np.array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    assert read_image(saved(tmp_path, rgb), 5).shape == (5, 5, 3)
    flat = read_image(saved(tmp_path, np.full((7, 9, 3), 77, np.uint8)), 4)
    assert flat.dtype == np.uint8 and (flat == 77).all()
    assert read_image(saved(tmp_path, np.dstack([rgb, rgb[..., 0]]))).shape == (6, 8, 3)  # RGBA


def test_the_size_is_read_from_the_header_alone(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, noise)
    assert image_size(path) == (30, 40) == read_image(path).shape[:2]
    path.write_bytes(path.read_bytes()[:200])  # the pixels are gone, which only read_image notices
    assert image_size(path) == (30, 40)
    with pytest.raises(UserError, match="readable image"):
        read_image(path)
    with pytest.raises(UserError, match="none.png: expected an image, found no such file"):
        image_size(tmp_path / "none.png")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    path = saved(tmp_path, np.array([[0, 300, 32768, 65535]], np.uint16))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read_mask(path).tolist() == [[False, False, True, True]]


def test_a_mask_is_what_lies_above_half_the_range(tmp_path):
    grey = saved(tmp_path, np.array([[0, 1, 127, 128, 255]], np.uint8))
    assert read_mask(grey).tolist() == [[False, False, False, True, True]]
    bits = np.array([[True, False], [False, True]])
    assert np.array_equal(read_mask(saved(tmp_path, bits)), bits)
    colour = np.zeros((1, 2, 3), np.uint8)
    colour[0, 1] = 255
    assert read_mask(saved(tmp_path, colour)).tolist() == [[False, True]]
    assert not read_mask(saved(tmp_path, np.zeros((2, 2), np.uint8))).any()  # an empty mask is a mask


@pytest.mark.parametrize("top", [1, 21, 127])
def test_a_mask_on_another_scale_is_refused_and_not_read_as_empty(tmp_path, top):
    path = saved(tmp_path, np.array([[0, top]], np.uint8))
    with pytest.raises(UserError, match=rf"{path}: expected a mask of 0 and 255, got values of at most {top}"):
        read_mask(path)


def test_labels_of_a_palette_are_its_indices(tmp_path):
    values = np.array([[0, 1], [15, 255]], np.uint8)
    picture = Image.fromarray(values)
    picture.putpalette([0, 0, 0, 128, 0, 0] + [7] * 762)
    picture.save(tmp_path / "p.png")
    assert np.array_equal(read_labels(tmp_path / "p.png"), values)
    labels = read_labels(saved(tmp_path, values))
    assert np.array_equal(labels, values) and labels.dtype == np.uint8
    assert read_labels(saved(tmp_path, np.array([[0, 200]], np.uint16))).tolist() == [[0, 200]]


def test_label_maps_that_eight_bits_cannot_hold_or_in_colour_are_refused(tmp_path):
    with pytest.raises(UserError, match="got the value 300"):
        read_labels(saved(tmp_path, np.array([[0, 300]], np.uint16)))
    with pytest.raises(UserError, match="got mode RGB"):
        read_labels(saved(tmp_path, np.zeros((2, 2, 3), np.uint8)))


@pytest.mark.parametrize("read", [read_image, read_mask, read_labels])
@pytest.mark.parametrize(("content", "says"), [
    (None, "found no such file"), (b"", "empty file"), (b"not a picture", "readable image"),
    ("cut", "readable image"), ("folder", "found no such file"),
])  # fmt: skip
def test_unreadable_images_are_named(tmp_path, read, content, says):
    path = tmp_path / "x.png"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
        path.write_bytes(saved(tmp_path, noise).read_bytes()[:200])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: expected .*{says}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # the reader of TIFF warns of every damaged tag
@pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "gif", "tiff"])
def test_damaged_images_never_raise_anything_else(tmp_path, form):
    rng = np.random.default_rng(1)
    path = saved(tmp_path, rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), f"x.{form}")
    whole = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 120), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        try:
            read_image(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def test_a_picture_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, np.zeros((30, 30), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=rf"{path}: expected a readable image"):
        read_image(path)


def test_saved_pixels_come_back_and_the_bytes_are_the_same_each_time(tmp_path):
    rng = np.random.default_rng(0)
    rgb, bits = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8), rng.random((5, 4)) < 0.5
    save_png(rgb, tmp_path / "deep" / "er" / "a.png")
    assert np.array_equal(read_image(tmp_path / "deep" / "er" / "a.png"), rgb)
    save_png(bits, tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), bits)
    assert set(np.unique(read_labels(tmp_path / "m.png"))) == {0, 255}
    first = (tmp_path / "m.png").read_bytes()
    save_png(bits.astype(np.uint8) * 255, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes() == first
