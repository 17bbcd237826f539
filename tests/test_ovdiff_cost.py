"""The bookkeeping of the cost of a class; what it measures is checked where it is computed."""

from __future__ import annotations

import pytest
import torch

from stages.ovdiff_cost import OF_CLASS, PARTS, Meter, row


def test_operations_are_counted_in_inference_mode_too():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    meter = Meter(True, "cpu")
    with torch.inference_mode():
        out = meter("support", lambda: a @ b, count=2)
    assert torch.equal(out, torch.full((3, 5), 4.0))
    assert meter.flops == {"support": 3 * 4 * 5 * 2 // 2} and meter.seconds["support"] >= 0  # half is booked
    timed = Meter(False, "cpu")
    timed("support", lambda: a @ b)
    assert timed.flops == {} and list(timed.seconds) == ["support"]


def test_shares_are_of_a_whole_class_by_hand():
    counted, timed = Meter(True, "cpu"), [Meter(False, "cpu"), Meter(False, "cpu")]
    counted.flops = {"support": 36 * 10**14, "features": 4 * 10**14, "prototypes": 0, "picture": 10**14}
    timed[0].seconds = {"support": 6.0, "features": 1.0, "prototypes": 3.0, "picture": 0.5}
    timed[1].seconds = {"support": 8.0, "features": 1.0, "prototypes": 1.0, "picture": 0.5}
    found = row(timed, counted, ("support",), ["a", "b"], "seconds of one core")["datasets"][""]
    assert (found["images"], found["draws"]) == (2, ["a", "b"])
    scores = found["scores"]
    assert scores["TFLOP/s-hours"] == pytest.approx(1) and scores["share of operations"] == pytest.approx(0.9)
    assert scores["seconds"] == 7 and scores["share of seconds"] == pytest.approx(0.7)
    assert scores["seconds_std"] == pytest.approx(2**0.5) and scores["share of seconds_std"] == pytest.approx(0.02**0.5)
    whole = row(timed, counted, OF_CLASS, ["a", "b"], "")["datasets"][""]["scores"]
    assert whole["share of seconds"] == whole["share of operations"] == 1 and whole["seconds"] == 10
    one = row(timed[:1], counted, ("picture",), ["a"], "")["datasets"][""]["scores"]
    assert "seconds_std" not in one and one["share of seconds"] == pytest.approx(0.05) and PARTS[-1] == "picture"
