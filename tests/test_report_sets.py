"""The synthetic set: what is written is what another tool reads back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maskmill import store
from maskmill.datasets.table import read_image, read_mask, read_table
from maskmill.errors import UserError
from maskmill.masks.coco import decode
from maskmill.report.sets import Sample, annotation, cut_out, write_set


def samples(count: int = 4, height: int = 9, width: int = 7):
    rng = np.random.default_rng(0)
    for k in range(count):
        image, background = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
        mask = rng.random((height, width)) < k / 4  # the first one is empty
        yield Sample(f"bird-{k}", image, mask, background)


@pytest.fixture
def folder(tmp_path):
    with store.fresh_folder(tmp_path / "set") as aside:
        write_set(aside, samples(), "bird", "synthetic birds", "syn")
    return tmp_path / "set"


def test_pictures_masks_foregrounds_and_backgrounds_are_read_back(folder):
    for sample in samples():
        name = f"{sample.sample_id}.png"
        assert np.array_equal(read_image(folder / "images" / name), sample.image)
        assert np.array_equal(read_mask(folder / "masks" / name), sample.mask)
        assert np.array_equal(read_image(folder / "backgrounds" / name), sample.background)
        front = Image.open(folder / "foregrounds" / name)
        assert front.mode == "RGBA"
        pixels = np.asarray(front)
        assert np.array_equal(pixels[..., 3] == 255, sample.mask) and set(np.unique(pixels[..., 3])) <= {0, 255}
        assert np.array_equal(pixels[sample.mask][:, :3], sample.image[sample.mask]) and not pixels[~sample.mask].any()
        pasted = np.asarray(Image.alpha_composite(Image.fromarray(sample.background).convert("RGBA"), front))[..., :3]
        assert np.array_equal(pasted, np.where(sample.mask[..., None], sample.image, sample.background))


def test_the_projects_own_table_reads_the_set(folder):
    items = read_table(folder)
    assert [i.sample_id for i in items] == [f"bird-{k}" for k in range(4)]
    assert {(i.cls, i.dataset) for i in items} == {("bird", "syn")}
    assert all((folder / i.image).is_file() and (folder / i.mask).is_file() for i in items)


def test_the_annotations_are_cocos(folder):
    document = json.loads((folder / "annotations.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "bird", "supercategory": ""}]
    assert document["info"]["description"] == "synthetic birds"
    images = {entry["id"]: entry for entry in document["images"]}
    assert len(images) == 4 and all((folder / "images" / e["file_name"]).is_file() for e in images.values())
    assert {(e["height"], e["width"]) for e in images.values()} == {(9, 7)}
    by_image = {a["image_id"]: a for a in document["annotations"]}
    assert len(by_image) == len(document["annotations"]) == 3  # the empty mask has none
    for number, sample in enumerate(samples(), 1):
        if not sample.mask.any():
            assert number not in by_image
            continue
        a = by_image[number]
        assert np.array_equal(decode(a["segmentation"]), sample.mask) and isinstance(a["segmentation"]["counts"], str)
        assert a["area"] == sample.mask.sum() and (a["category_id"], a["iscrowd"]) == (1, 0)
        x, y, w, h = a["bbox"]
        inside = np.zeros_like(sample.mask)
        inside[y : y + h, x : x + w] = True
        assert not (sample.mask & ~inside).any() and sample.mask[y].any() and sample.mask[:, x].any()
        assert sample.mask[y + h - 1].any() and sample.mask[:, x + w - 1].any()


def test_runs_go_down_the_columns():
    mask = np.zeros((3, 2), bool)
    mask[1:, 0] = mask[0, 1] = True
    found = annotation(mask, 5)
    assert found["segmentation"] == {"size": [3, 2], "counts": "132"}  # 1 of 0, 3 of 1, 2 of 0
    assert found["bbox"] == [0, 0, 2, 3] and found["area"] == 3 and found["id"] == found["image_id"] == 5
    assert annotation(np.zeros((3, 2), bool), 1) is None


def test_the_same_set_is_the_same_bytes(folder, tmp_path):
    write_set(tmp_path / "again", samples(), "bird", "synthetic birds", "syn")
    assert store.hash_tree(tmp_path / "again") == store.hash_tree(folder)


def test_a_cut_out_hides_what_is_not_object():
    image = np.full((2, 2, 3), 200, np.uint8)
    mask = np.array([[True, False], [False, False]])
    front = cut_out(image, mask)
    assert front.dtype == np.uint8 and front[0, 0].tolist() == [200, 200, 200, 255] and front.sum() == 3 * 200 + 255


def test_bad_samples_are_refused_and_nothing_is_left(tmp_path):
    good = next(samples())
    small = Sample("x", good.image[:5], good.mask, good.background)
    for bad, message in (([good, good], "sample bird-0: expected each id once"), ([], "at least one sample"),
                         ([good, small], r"sample x: expected image, background, bool mask of one size")):  # fmt: skip
        with pytest.raises(UserError, match=message), store.fresh_folder(tmp_path / "set") as aside:
            write_set(aside, bad, "bird", "")
        assert not list(tmp_path.iterdir())
