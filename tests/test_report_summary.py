"""The headline files: stable bytes, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.report.summary import read_summary, rounded, to_json


def test_numbers_of_any_kind_are_written_alike(tmp_path):
    text = '{\n  "world.ac.auroc": 1,\n  "world.ac.iou": 0.123457\n}\n'
    assert to_json({"world.ac.auroc": 1, "world.ac.iou": 0.123456789}) == text
    assert to_json({"world.ac.auroc": np.int64(1), "world.ac.iou": np.float64(0.12345678912)}) == text
    (tmp_path / "s.json").write_text(text)
    assert read_summary(tmp_path / "s.json") == {"world.ac.auroc": 1, "world.ac.iou": 0.123457}
    assert read_summary(tmp_path / "absent.json") == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "b"}', '{"a": true}', '{"a": NaN}', '{"a": null}'])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UserError, match="s.json"):
        read_summary(path)


def test_rounding_reaches_into_structures():
    assert rounded({"a": [0.1234567, -1e-9], "b": np.float64(2.0), "c": "x", "d": None}) == {
        "a": [0.123457, 0.0], "b": 2.0, "c": "x", "d": None,
    }  # fmt: skip
    assert str(rounded(-1e-9)) == "0.0"
    with pytest.raises(UserError):
        rounded([float("nan")])
