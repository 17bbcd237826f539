"""Figures: byte-stable PNG, and tables that hold the plotted numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from maskmill.errors import UserError
from maskmill.report import plots
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


def test_loss_curve_and_its_running_mean(tmp_path):
    assert plots.smoothed([1, 2, 3, 4, 5], share=0.4).tolist() == [1.5, 2, 3, 4, 4.5]
    assert plots.smoothed([7.0]).tolist() == [7.0]
    plots.loss_curve({"u": ([0, 10, 20], [3.0, 2.0, 1.0])}, tmp_path / "l.png", tmp_path / "l.json")
    assert is_png(tmp_path / "l.png")
    records = json.loads((tmp_path / "l.json").read_text())
    assert records == [{"series": "u", "step": s, "loss": x} for s, x in ((0, 3.0), (10, 2.0), (20, 1.0))]


def test_training_curve_with_and_without_a_validation(tmp_path):
    history = [{"step": 100, "lr": 0.1, "loss": 0.7, "val_loss": 0.8, "val_iou": 0.3},
               {"step": 150, "lr": 0.05, "loss": 1 / 3, "val_loss": 0.5, "val_iou": 0.6}]  # fmt: skip
    for name in "ab":
        table = plots.training_curve(history, tmp_path / f"{name}.png", tmp_path / f"{name}.csv", "fcn on 9 pairs")
    assert table.to_dict("records") == history
    assert is_png(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "step,lr,loss,val_loss,val_iou", "100,0.100000,0.700000,0.800000,0.300000",
        "150,0.050000,0.333333,0.500000,0.600000",
    ]  # fmt: skip
    alone = [{k: row[k] for k in ("step", "lr", "loss")} for row in history]
    plots.training_curve(alone, tmp_path / "c.png", tmp_path / "c.json")
    assert is_png(tmp_path / "c.png") and (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()
    assert [row["step"] for row in json.loads((tmp_path / "c.json").read_text())] == [100, 150]
    plots.training_curve(alone[:1], tmp_path / "d.png", tmp_path / "d.csv")
    assert is_png(tmp_path / "d.png")
    with pytest.raises(UserError, match="training curve: expected at least one row, got none"):
        plots.training_curve([], tmp_path / "e.png", tmp_path / "e.csv")
    assert not (tmp_path / "e.png").exists()


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


def test_refusals(tmp_path, curve):
    with pytest.raises(UserError):
        plots.pr_curves({}, tmp_path / "a.png", tmp_path / "a.csv")
    with pytest.raises(UserError, match="csv or .json"):
        plots.save_table(curve, tmp_path / "a.txt")
    for steps, losses in (([0], [1.0, 2.0]), ([0], [np.nan]), ([], [])):
        with pytest.raises(UserError, match="loss curve, u"):
            plots.loss_curve({"u": (steps, losses)}, tmp_path / "a.png", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
