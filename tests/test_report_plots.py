"""Figures: byte-stable PNG, and tables that hold the plotted numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from maskmill.errors import UserError
from maskmill.report import figures, plots
from maskmill.scores.saliency import SaliencyScores


@pytest.fixture(scope="module")
def curve() -> pd.DataFrame:
    scores = SaliencyScores()
    truth = np.array([[1, 1, 0, 0]], bool)
    scores.update(np.array([[1.0, 0.4, 0.6, 0.0]]), truth, truth)
    return scores.curve()


def is_png(path) -> bool:
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and b"tEXt" not in data and b"tIME" not in data


def test_pr_curves_are_byte_stable_and_the_table_is_whole(tmp_path, curve):
    for name in "ab":
        plots.pr_curves({"one": curve, "two": curve}, tmp_path / f"{name}.png", tmp_path / f"{name}.csv")
    assert is_png(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == ["method", "threshold", "precision", "recall", "f"]
    assert len(table) == 2 * 255 and table["f"].max() == pytest.approx(0.8125)


def test_iou_distribution_counts_by_hand(tmp_path):
    ious = {"m": [0.0, 0.5, 0.74, 1.0], "k": [0.1]}
    table = plots.iou_distribution(ious, tmp_path / "d.png", tmp_path / "d.csv", bins=4)
    assert is_png(tmp_path / "d.png")
    one = table[table["method"] == "m"]
    assert one["count"].tolist() == [1, 0, 2, 1] and one["share"].tolist() == [0.25, 0, 0.5, 0.25]
    assert one["iou_from"].tolist() == [0, 0.25, 0.5, 0.75]


def test_table_bars_hold_ours_and_published(tmp_path):
    result = {
        "table": "t", "stand_in": "scenes", "units": {"IoU": "fraction"}, "rows": [
            {"row": "a", "what": "", "ours": {"scenes": {"IoU": {"mean": 0.5, "std": 0.1}}},
             "published": {"X": {"IoU": 0.4}}},
            {"row": "b", "what": "w", "ours": {}, "published": {"X": {"IoU": None}, "Y": {"IoU": 0.7}}},
        ],
    }  # fmt: skip
    table = plots.table_bars(result, "IoU", tmp_path / "b.png", tmp_path / "b.json")
    assert is_png(tmp_path / "b.png")
    assert table[["row", "series", "value"]].values.tolist() == [
        ["a", "ours: scenes", 0.5], ["a", "published: X", 0.4], ["b", "published: Y", 0.7],
    ]  # fmt: skip
    assert [r["std"] for r in json.loads((tmp_path / "b.json").read_text())] == [0.1, None, None]
    with pytest.raises(UserError):
        plots.table_bars(result, "Acc", tmp_path / "c.png", tmp_path / "c.csv")


def test_the_heading_names_published_numbers_only_where_some_are_drawn(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "save_png", lambda figure, path: titles.append(figure.get_suptitle()))
    row = {"row": "a", "what": "", "ours": {"bird": {"iou": {"mean": 0.5}}}, "published": {}}
    for published in ({}, {"X": {"iou": None}}, {"X": {"iou": 0.4}}):
        result = {"table": "world, bird", "units": {"iou": "fraction"}, "rows": [row | {"published": published}]}
        plots.table_bars(result, "iou", tmp_path / "b.png", tmp_path / "b.csv")
    assert titles == ["world, bird: iou"] * 2 + ["world, bird: iou, ours beside the published"]


def test_table_curve_goes_by_the_numbers_in_the_names(tmp_path):
    def ours(name, mean, std=None):
        return {"row": name, "what": "", "ours": {"scenes": {"IoU": {"mean": mean, "std": std}}}, "published": {}}

    rows = [ours("N = 8", 0.5, 0.1), ours("all of them", 0.9), ours("N = -2", 0.3, 0.2)]
    rows[0]["published"] = {"X": {"IoU": 0.4}}
    result = {"table": "t", "units": {"IoU": "fraction"}, "rows": rows}
    table = plots.table_curve(result, "IoU", "N", tmp_path / "c.png", tmp_path / "c.csv")
    assert is_png(tmp_path / "c.png")
    assert table[["x", "series", "value"]].values.tolist() == [
        [-2, "ours: scenes", 0.3], [8, "ours: scenes", 0.5], [8, "published: X", 0.4],
    ]  # fmt: skip
    assert len(pd.read_csv(tmp_path / "c.csv")) == 3
    with pytest.raises(UserError, match="hold a number"):
        plots.table_curve(result | {"rows": [ours("full", 1.0)]}, "IoU", "N", tmp_path / "d.png", tmp_path / "d.csv")
    assert not (tmp_path / "d.png").exists()


def test_refusals(tmp_path, curve):
    with pytest.raises(UserError):
        plots.pr_curves({}, tmp_path / "a.png", tmp_path / "a.csv")
    with pytest.raises(UserError, match="csv or .json"):
        figures.save_table(curve, tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
