"""Curves of trainings: byte-stable PNG, and tables that hold the plotted numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.report import training
from tests.test_report_plots import is_png


def test_loss_curve_and_its_running_mean(tmp_path):
    assert training.smoothed([1, 2, 3, 4, 5], share=0.4).tolist() == [1.5, 2, 3, 4, 4.5]
    assert training.smoothed([7.0]).tolist() == [7.0]
    training.loss_curve({"u": ([0, 10, 20], [3.0, 2.0, 1.0])}, tmp_path / "l.png", tmp_path / "l.json")
    assert is_png(tmp_path / "l.png")
    records = json.loads((tmp_path / "l.json").read_text())
    assert records == [{"series": "u", "step": s, "loss": x} for s, x in ((0, 3.0), (10, 2.0), (20, 1.0))]


def test_training_curve_with_and_without_a_validation(tmp_path):
    history = [{"step": 100, "lr": 0.1, "loss": 0.7, "val_loss": 0.8, "val_iou": 0.3},
               {"step": 150, "lr": 0.05, "loss": 1 / 3, "val_loss": 0.5, "val_iou": 0.6}]  # fmt: skip
    for name in "ab":
        table = training.training_curve(history, tmp_path / f"{name}.png", tmp_path / f"{name}.csv", "fcn on 9 pairs")
    assert table.to_dict("records") == history
    assert is_png(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "step,lr,loss,val_loss,val_iou", "100,0.100000,0.700000,0.800000,0.300000",
        "150,0.050000,0.333333,0.500000,0.600000",
    ]  # fmt: skip
    alone = [{k: row[k] for k in ("step", "lr", "loss")} for row in history]
    training.training_curve(alone, tmp_path / "c.png", tmp_path / "c.json")
    assert is_png(tmp_path / "c.png") and (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()
    assert [row["step"] for row in json.loads((tmp_path / "c.json").read_text())] == [100, 150]
    training.training_curve(alone[:1], tmp_path / "d.png", tmp_path / "d.csv")
    assert is_png(tmp_path / "d.png")
    with pytest.raises(UserError, match="training curve: expected at least one row, got none"):
        training.training_curve([], tmp_path / "e.png", tmp_path / "e.csv")
    assert not (tmp_path / "e.png").exists()


def test_losses_that_are_none_or_not_finite_are_refused(tmp_path):
    for steps, losses in (([0], [1.0, 2.0]), ([0], [np.nan]), ([], [])):
        with pytest.raises(UserError, match="loss curve, u"):
            training.loss_curve({"u": (steps, losses)}, tmp_path / "a.png", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
