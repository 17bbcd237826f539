"""Run-length encodings, beside those that pycocotools wrote, and proposals from files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.masks.coco import Proposals, decode, encode

# (mask, counts) as pycocotools 2.0.11 encodes them.
KNOWN = [
    ([[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]], "312000O0"),
    ([[0, 1, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 1, 1], [0, 0, 1, 0, 1],
      [0, 1, 1, 0, 1]], "41212OM024NL20N3"),
]  # fmt: skip


def runs(mask: np.ndarray) -> list[int]:
    """The obvious way: walk down the columns and count."""
    counts, value = [0], False
    for x in mask.T.ravel().tolist():
        if x != value:
            counts.append(0)
            value = x
        counts[-1] += 1
    return counts


@pytest.mark.parametrize(("rows", "counts"), KNOWN)
def test_as_pycocotools_writes_it(rows, counts):
    mask = np.array(rows, bool)
    assert encode(mask) == {"size": list(mask.shape), "counts": counts}
    assert (decode({"size": list(mask.shape), "counts": counts}) == mask).all()


def test_a_large_rectangle_as_pycocotools_writes_it():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    assert encode(mask)["counts"] == "Zi0d0d0000000000000000000000000000000000000000000000000000000000V<"


@pytest.mark.parametrize("seed", range(6))
def test_there_and_back_and_from_plain_runs(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, 2))
    mask = rng.random(shape) < rng.random()
    assert (decode(encode(mask)) == mask).all()
    assert (decode({"size": shape, "counts": runs(mask)}) == mask).all()


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_as_pycocotools_writes_and_reads_them(seed):
    theirs = pytest.importorskip("pycocotools.mask", reason="needs pycocotools: pip install 'pycocotools>=2.0.11,<3'")
    rng = np.random.default_rng(seed)
    for _ in range(20):
        mask = rng.random(rng.integers(1, 90, 2)) < rng.random()
        wanted = theirs.encode(np.asfortranarray(mask, np.uint8))
        assert encode(mask) == {"size": wanted["size"], "counts": wanted["counts"].decode()}
        assert (decode(encode(mask)) == theirs.decode(wanted)).all()


@pytest.mark.parametrize("mask", [np.zeros((3, 2), bool), np.ones((3, 2), bool), np.ones((1, 1), bool)])
def test_masks_of_one_value(mask):
    assert (decode(encode(mask)) == mask).all()


@pytest.mark.parametrize(
    "wrong",
    [{"size": [2, 2]}, {"size": [2, 2], "counts": [3]}, {"size": [2, 2], "counts": [5, -1]},
     {"size": [2], "counts": []}, {"size": [2, 2], "counts": "\n"}, {"size": [2, 2], "counts": "`"}],
)  # fmt: skip
def test_what_is_no_encoding(wrong):
    with pytest.raises(ValueError, match="expected"):
        decode(wrong)


# --- proposals --------------------------------------------------------------------------------------------------------


def square(top: int, left: int, side: int = 2, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def result(image, mask, score):
    return {"image_id": image, "category_id": 1, "score": score, "segmentation": encode(mask)}


def written(path, document):
    path.write_text(json.dumps(document))
    return path


def test_one_file_with_images_and_scores(tmp_path):
    document = {
        "images": [{"id": 7, "file_name": "set/dog/01.png", "height": 6, "width": 8},
                   {"id": 8, "file_name": "set/dog/02.png", "height": 6, "width": 8}],
        "annotations": [result(7, square(0, 0), 0.9), result(7, square(2, 2), 0.34), result(7, square(3, 3), 0.35)],
    }  # fmt: skip
    found = Proposals(written(tmp_path / "x.json", document))
    for name in ("set/dog/01", "dog/01", "01"):
        assert (found.masks(name, (6, 8)) == np.stack([square(0, 0), square(3, 3)])).all()
    assert found.masks("dog/02", (6, 8)).shape == (0, 6, 8)  # known, and nothing found in it
    with pytest.raises(UserError, match="x.json: expected the picture dog/03 in its table of images, found none"):
        found.masks("dog/03", (6, 8))
    with pytest.raises(UserError, match="01: expected masks of 5x5 pixels as the picture, got 8x6"):
        found.masks("dog/01", (5, 5))


def test_results_beside_the_table_of_their_images(tmp_path):
    written(tmp_path / "images.json", {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]})
    written(tmp_path / "results.json", [result(1, square(0, 0), 0.5), result(2, square(1, 1), 0.5)])
    found = Proposals(tmp_path)
    assert (found.masks("a", (6, 8)) == square(0, 0)[None]).all()
    assert (found.masks("b", (6, 8)) == square(1, 1)[None]).all()


def test_files_that_each_count_their_images_from_one(tmp_path):
    for name, place in (("first", 0), ("second", 3)):
        table = [{"id": 1, "file_name": f"{name}.png"}]
        written(tmp_path / f"{name}.json", {"images": table, "annotations": [result(1, square(place, 0), 1.0)]})
    found = Proposals(tmp_path)
    assert (found.masks("first", (6, 8))[0] == square(0, 0)).all()
    assert (found.masks("second", (6, 8))[0] == square(3, 0)).all()
    written(tmp_path / "third.json", [result(1, square(0, 0), 1.0)])
    with pytest.raises(UserError, match="expected one picture with the id 1 in the tables of .*, got first, second"):
        Proposals(tmp_path)


def test_without_a_table_the_id_or_the_files_name_tells_the_picture(tmp_path):
    own = {"score": 0.8, "segmentation": encode(square(1, 2))}
    written(tmp_path / "dog.json", [own, result("cat", square(0, 0), 1)])
    found = Proposals(tmp_path)
    assert (found.masks("dog", (6, 8)) == square(1, 2)[None]).all()
    assert (found.masks("cat", (6, 8)) == square(0, 0)[None]).all()
    assert found.masks("fish", (6, 8)).shape == (0, 6, 8)


def test_a_name_that_several_pictures_have(tmp_path):
    table = [{"id": 1, "file_name": "cat/1.png"}, {"id": 2, "file_name": "dog/1.png"}]
    found = Proposals(written(tmp_path / "x.json", {"images": table, "annotations": [result(1, square(0, 0), 1)]}))
    assert len(found.masks("cat/1", (6, 8))) == 1
    with pytest.raises(UserError, match="1: expected one picture of this name, got cat/1, dog/1"):
        found.masks("1", (6, 8))


def test_a_polygon(tmp_path):
    table = [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}]
    shapes = {"image_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
    mask = Proposals(written(tmp_path / "x.json", {"images": table, "annotations": [shapes]})).masks("a", (6, 8))[0]
    wanted = np.zeros((6, 8), bool)
    wanted[1:4, 1:5] = True  # as pycocotools has it
    assert (mask == wanted).all()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "expected proposals in COCO's form as JSON"),
        ({"info": 1}, "expected a list of results, or an object with images and annotations, got neither"),
        ([3], "annotation 0: expected an object with a segmentation, got 3"),
        ([{"image_id": 1, "score": "high", "segmentation": {}}], "annotation 0: expected an object with a segment"),
        ([{"image_id": 1, "score": 0.1, "segmentation": {}}], "expected proposals with a score of at least 0.35"),
        ({"images": [{"id": 1}], "annotations": []}, "image 0: expected id and file_name"),
        ({"images": [], "annotations": {}}, "annotations: expected a list, got dict"),
    ],
)
def test_what_is_refused(tmp_path, document, said):
    path = tmp_path / "p.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(UserError) as caught:
        Proposals(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_masks_and_missing_files(tmp_path):
    path = written(tmp_path / "p.json", [{"image_id": "a", "segmentation": {"size": [6, 8], "counts": [5]}}])
    with pytest.raises(UserError, match="a: expected runs that fill 8x6 pixels, got 5"):
        Proposals(path).masks("a", (6, 8))
    with pytest.raises(UserError, match="nothing.json: expected proposals"):
        Proposals(tmp_path / "nothing.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: expected a folder with proposals"):
        Proposals(tmp_path / "empty")
