"""The headline file: stable bytes, merging, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.report.summary import merge_summary, read_summary, rounded


def test_merging_keeps_the_rest_and_the_order_of_stages_does_not_matter(tmp_path):
    a, b = {"world.colour.iou": 0.3, "world.ac.iou": 0.123456789}, {"world.ac.auroc": 1, "world.colour.iou": 0.4}
    merge_summary(tmp_path / "x.json", a)
    merge_summary(tmp_path / "x.json", b)
    merge_summary(tmp_path / "y.json", {"world.ac.auroc": np.int64(1), "world.colour.iou": np.float32(0.4)})
    merge_summary(tmp_path / "y.json", {"world.ac.iou": 0.12345678912})
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    text = (tmp_path / "x.json").read_text()
    assert text == '{\n  "world.ac.auroc": 1,\n  "world.ac.iou": 0.123457,\n  "world.colour.iou": 0.4\n}\n'
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["x.json", "y.json"]


def test_a_prefix_can_be_replaced(tmp_path):
    merge_summary(tmp_path / "s.json", {"world.ac.iou": 0.1, "world.ac.acc": 0.2, "world.acme": 0.3})
    merge_summary(tmp_path / "s.json", {"world.ac.iou": 0.5}, replace_prefix="world.ac")
    assert read_summary(tmp_path / "s.json") == {"world.ac.iou": 0.5, "world.acme": 0.3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.5", None, True])
def test_bad_numbers_are_refused_and_the_file_stays(tmp_path, bad):
    path = tmp_path / "s.json"
    merge_summary(path, {"a": 1.0})
    with pytest.raises(UserError, match="world.iou"):
        merge_summary(path, {"world.iou": bad})
    assert json.loads(path.read_text()) == {"a": 1.0}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "b"}'])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UserError, match="s.json"):
        merge_summary(path, {"b": 1.0})
    assert path.read_text() == text


def test_rounding_reaches_into_structures():
    assert rounded({"a": [0.1234567, -1e-9], "b": np.float64(2.0), "c": "x", "d": None}) == {
        "a": [0.123457, 0.0], "b": 2.0, "c": "x", "d": None,
    }  # fmt: skip
    assert str(rounded(-1e-9)) == "0.0"
    with pytest.raises(UserError):
        rounded([float("nan")])
