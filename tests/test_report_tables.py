"""Tables: the published file's checks, every kind of claim by hand, both outputs, and the shipped transcription."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from maskmill.errors import UserError
from maskmill.report.claims import CANNOT, FAILS, HOLDS, NOT_RUN, number_in
from maskmill.report.tables import (
    check_published,
    compare,
    first_line,
    load_published,
    not_run,
    read_result,
    render,
    write_result,
)

TAB6 = Path(__file__).parents[1] / "tables" / "diffusionseg-tab6" / "published.yaml"
ABOUT = {"data": "held-out scenes", "n": 200, "seeds": [0, 1, 2]}


def claim(kind: str, **keys) -> dict:
    common = {"kind": kind, "text": f"A {kind} claim.", "metric": "IoU", "datasets": ["X", "Y"]}
    return {"id": kind, **common, **keys}


def table(*claims: dict, unit: str = "fraction", **keys) -> dict:
    scale = 100 if unit == "percent" else 1
    rows = [{"method": m, "values": {"X": {"IoU": x * scale}, "Y": {"IoU": y * scale if y is not None else None}}}
            for m, x, y in (("a", 0.7, 0.6), ("b", 0.5, 0.55), ("c", 0.4, None))]  # fmt: skip
    return {"paper": {"title": "T"}, "table": "t", "caption": "c", "metrics": ["IoU"], "datasets": ["X", "Y"],
            "unit": unit, "rows": rows, "protocol": "p", "claims": list(claims), **keys}  # fmt: skip


def judged(one: dict, ours: dict, **keys) -> dict:
    published = table(one, **keys)
    check_published(published, "t")
    return compare(published, ours, **ABOUT)["claims"][0]


def row(iou: float, std: float | None = None) -> dict:
    return {"iou": iou} if std is None else {"iou": iou, "iou_std": std}


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "verdict", "within"),
    [
        (row(0.6, 0.01), row(0.5, 0.01), HOLDS, False),
        (row(0.5, 0.01), row(0.6, 0.01), FAILS, False),
        (row(0.5), row(0.5), FAILS, None),  # a tie is no order; one seed has no spread
        (row(0.5, 0.03), row(0.45, 0.04), HOLDS, True),  # difference .05 = sqrt(.03^2 + .04^2)
        (row(0.45, 0.03), row(0.5, 0.04), FAILS, True),
        (row(0.502, 0.03), row(0.45, 0.04), HOLDS, False),
        (row(0.6), {"iou": None}, CANNOT, None),
    ],
)
def test_order(a, b, verdict, within):
    got = judged(claim("order", higher="a", lower="b"), {"a": a, "b": b})
    assert (got["verdict"], got["within_spread"]) == (verdict, within)
    assert got["printed"] == "2 of 2 printed comparisons agree"


def test_order_against_every_other_row():
    best = claim("order", higher="a", lower="*")
    got = judged(best, {"a": row(0.6), "b": row(0.5), "c": row(0.55)})
    assert got["verdict"] == HOLDS and got["comparisons"] == {"agree": 2, "compared": 2}
    got = judged(best, {"a": row(0.6), "b": row(0.5), "c": row(0.65)})
    assert got["verdict"] == FAILS and got["ours"].startswith("`a` 0.600 < `c` 0.650") and "1 of 2" in got["ours"]
    assert got["printed"] == "3 of 3 printed comparisons agree"  # c has no number on Y
    got = judged(best, {"b": row(0.5)})
    assert got["verdict"] == CANNOT and got["ours"] == "no number for a"
    assert judged(best, {"a": row(0.6)})["ours"] == "no number for b, c"


def test_best_of_all_holds_only_where_every_rival_has_a_number_and_one_better_rival_refutes_it():
    best = claim("order", higher="a", lower="*")
    got = judged(best, {"a": row(0.6, 0.01), "b": row(0.5, 0.01)})
    assert got["verdict"] == CANNOT and got["within_spread"] is None
    assert got["ours"] == "`a` 0.600 ± 0.010 > `b` 0.500 ± 0.010; not measured here: c"
    assert judged(best, {"a": row(0.4), "b": row(0.5)})["verdict"] == FAILS
    nothing = table(best)
    nothing["rows"][2]["values"] = {"X": {"IoU": None}}  # the paper has no number for c either: c is no rival
    ours = {"a": row(0.6), "b": row(0.5)}
    assert compare(nothing, ours, **ABOUT)["claims"][0]["verdict"] == HOLDS
    assert compare(nothing, {**ours, "c": row(0.7)}, **ABOUT)["claims"][0]["verdict"] == FAILS  # but ours counts
    figure = judged(best, {"a": row(0.6), "b": row(0.5)}, rows=[], values_missing=True)
    assert figure["verdict"] == HOLDS  # a figure names no rivals; ours are all there are
    one = claim("order", higher="a", lower="c")
    assert judged(one, {"a": row(0.6), "b": row(0.5)})["ours"] == "no number for c"
    many = table(best, rows=[{"method": m, "values": {"X": {"IoU": 0.1}}} for m in "abcdefg"])
    assert compare(many, {"a": row(0.6)}, **ABOUT)["claims"][0]["ours"] == "no number for b, c, d and 3 more"


def test_close_uses_its_own_or_the_default_tolerance():
    ours = {"a": row(0.60), "b": row(0.58)}
    assert judged(claim("close", rows=["a", "b"]), ours)["verdict"] == HOLDS  # .02 is allowed, itself included
    assert judged(claim("close", rows=["a", "b"], tolerance=0.01), ours)["verdict"] == FAILS
    assert judged(claim("close", rows=["a", "b"]), {"a": row(0.6), "b": row(0.57)})["verdict"] == FAILS
    got = judged(claim("close", rows=["a", "b"]), {"a": row(0.60), "b": row(0.585)}, unit="percent")
    assert got["verdict"] == HOLDS and "60.0 and `b` 58.5 are 1.5 apart (close means 2.0)" in got["ours"]
    assert judged(claim("close", rows=["a", "b"]), {"a": row(20), "b": row(18.1)}, unit="raw")["verdict"] == HOLDS
    assert judged(claim("close", rows=["a", "b"]), {"a": row(20), "b": row(17.9)}, unit="raw")["verdict"] == FAILS
    near = claim("close", rows=["a", "b"], relative_tolerance=0.18)
    assert judged(near, {"a": row(1.91), "b": row(2.31)}, unit="raw")["verdict"] == HOLDS  # .40 of .4158
    assert judged(near, {"a": row(1.89), "b": row(2.31)}, unit="raw")["verdict"] == FAILS


def test_gap():
    gap = claim("gap", larger_gap=["a", "b"], smaller_gap=["b", "c"])
    got = judged(gap, {"a": row(0.7, 0.01), "b": row(0.5, 0.01), "c": row(0.4, 0.01)})  # .2 against .1
    assert got["verdict"] == HOLDS and got["within_spread"] is False and "= 0.200" in got["ours"]
    got = judged(gap, {"a": row(0.7, 0.1), "b": row(0.5, 0.1), "c": row(0.4, 0.1)})
    assert got["verdict"] == HOLDS and got["within_spread"] is True
    assert judged(gap, {"a": row(0.6), "b": row(0.5), "c": row(0.3)})["verdict"] == FAILS
    assert judged(gap, {"a": row(0.6), "b": row(0.5)})["ours"] == "no number for c"


def test_gap_across_data_sets_needs_both():
    one = claim("gap_across_datasets", rows=["a", "b"], larger_gap_dataset="X", smaller_gap_dataset="Y")
    got = judged(one, {"a": row(0.7), "b": row(0.5)})
    assert got["verdict"] == CANNOT and got["printed"] == "1 of 1 printed comparisons agree"  # .2 against .05
    real = {"a": {"X": row(0.7), "Y": row(0.7)}, "b": {"X": row(0.6), "Y": row(0.5)}}
    assert compare(table(one), real, stand_in=None, **ABOUT)["claims"][0]["verdict"] == FAILS


@pytest.mark.parametrize(
    ("direction", "values", "verdict"),
    [
        ("increasing", (0.3, 0.4, 0.5, 0.6), HOLDS),
        ("increasing", (0.3, 0.5, 0.4, 0.6), HOLDS),  # rank correlation .8
        ("increasing", (0.5, 0.6, 0.3, 0.55), FAILS),
        ("increasing", (0.5, 0.5, 0.5, 0.5), FAILS),
        ("decreasing", (0.6, 0.5, 0.4, 0.3), HOLDS),
        ("decreasing", (0.3, 0.4, 0.5, 0.6), FAILS),
        ("increasing, flattening", (0.3, 0.5, 0.55, 0.56), HOLDS),
        ("increasing, flattening", (0.3, 0.31, 0.4, 0.9), FAILS),
        ("increasing, small", (0.3, 0.4, 0.5, 0.6), HOLDS),
    ],
)
def test_trend(direction, values, verdict):
    ours = {name: row(v) for name, v in zip(("1k", "2k", "3k", "4k"), values, strict=True)}
    got = judged(claim("trend", x="pairs", direction=direction), ours, rows=[], values_missing=True)
    assert got["verdict"] == verdict and got["printed"] == "no printed numbers"


def test_trend_reads_its_range_and_needs_three_points():
    ours = {f"T_0 = {x}": row(y) for x, y in ((1, 0.1), (20, 0.2), (40, 0.3), (50, 0.0))}
    one = claim("trend", x="T_0 in 1..40", direction="increasing")
    assert judged(one, ours, rows=[], values_missing=True)["verdict"] == HOLDS
    one = claim("trend", x="T_0 in 40..50", direction="decreasing")
    assert judged(one, ours, rows=[], values_missing=True)["verdict"] == CANNOT
    assert [number_in(x) for x in ("50k", "T_0 = 40", "N = 1.5", "full", "UNet | Syn 10k", "N > 32", "2M", "w -2")] == [
        50_000, 40, 1.5, None, 10_000, 32, 2e6, -2,
    ]  # fmt: skip


def test_qualitative_and_unknown_rows_cannot_be_asked():
    bare = {"id": "q", "kind": "qualitative", "text": "Looks nice."}
    assert judged(bare, {"a": row(0.5)})["verdict"] == CANNOT
    got = judged(claim("order", higher="p", lower="q", metric="time"), {}, rows=[], values_missing=True)
    assert got["verdict"] == CANNOT and got["ours"] == "no number for p"


def test_real_data_sets_must_all_agree():
    one = claim("order", higher="a", lower="b")
    ours = {"a": {"X": row(0.6), "Y": row(0.5)}, "b": {"X": row(0.5), "Y": row(0.6)}}
    got = compare(table(one), ours, stand_in=None, **ABOUT)
    assert got["claims"][0]["verdict"] == FAILS and got["claims"][0]["ours"].startswith("Y: ")
    assert "stand in" not in first_line(got)
    del ours["a"]["Y"], ours["b"]["Y"]
    got = compare(table(one), ours, stand_in=None, **ABOUT)["claims"][0]
    assert got["verdict"] == HOLDS and "without Y" in got["ours"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_outputs_by_hand(tmp_path):
    published = table(claim("order", higher="a", lower="b"))
    got = compare(published, {"a": row(0.6, 0.01), "b": row(0.5)}, controls={"colour | cut": row(0.3)}, **ABOUT)
    write_result(got, tmp_path / "t")
    text = (tmp_path / "t" / "result.md").read_text()
    first = text.splitlines()[0]
    assert "held-out scenes" in first and "n = 200" in first and "seeds 0, 1, 2" in first
    assert "held-out world scenes stand in for X and Y" in first
    assert "| a | **0.600** ± 0.010 | 0.700 | 0.600 |" in text
    assert "| c | – | 0.400 | – |" in text
    assert "| colour \\| cut (control) | **0.300** | – | – |" in text
    assert "| **holds** | `a` 0.600 ± 0.010 > `b` 0.500 |" in text
    assert "1 hold, 0 do not hold here, 0 cannot be asked here." in text
    stored = json.loads((tmp_path / "t" / "result.json").read_text())
    assert stored == json.loads(json.dumps(got)) and render(stored) == text
    assert stored["rows"][0]["ours"]["held-out world scenes"]["IoU"] == {"mean": 0.6, "std": 0.01}


def test_percent_tables_scale_our_fractions():
    got = compare(table(unit="percent"), {"a": row(0.6, 0.01)}, **ABOUT)
    assert got["rows"][0]["ours"]["held-out world scenes"]["IoU"] == {"mean": 60.0, "std": 1.0}
    assert "| a | **60.0** ± 1.0 | 70.0 | 60.0 |" in render(got)


def test_on_the_papers_own_data_the_difference_stands_in_brackets():
    ours = {"a": {"X": row(0.65), "Y": row(0.6)}, "b": {"X": row(0.52)}}
    got = compare(table(remarks=["A slip."]), ours, stand_in=None, **ABOUT)
    text = render(got)
    assert "| a | **0.650** (−0.050) | **0.600** (+0.000) | 0.700 | 0.600 |" in text
    assert "| b | **0.520** (+0.020) | – | 0.500 | 0.550 |" in text
    assert "In brackets" in text and "A slip." in text and text.endswith("## The paper's claims\n\nNone.\n")
    assert "In brackets" not in render(compare(table(), {"a": row(0.6)}, **ABOUT))


def test_what_was_not_run_says_so_and_keeps_what_no_number_decides():
    bare = {"id": "q", "kind": "qualitative", "text": "Looks nice."}
    got = not_run(table(claim("order", higher="a", lower="b"), bare))
    assert [c["verdict"] for c in got["claims"]] == [NOT_RUN, CANNOT]
    assert got["claims"][0]["printed_comparisons"] == {"agree": 2, "compared": 2}
    assert got["counts"] == {HOLDS: 0, FAILS: 0, CANNOT: 1, NOT_RUN: 1}


def test_a_result_that_is_none_names_its_file(tmp_path):
    write_result(compare(table(), {"a": row(0.6)}, **ABOUT), tmp_path)
    assert read_result(tmp_path / "result.json")["n"] == 200
    for content in ("{", "{}", "[]", '{"table": "t"}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match="bad.json"):
            read_result(tmp_path / "bad.json")
    with pytest.raises(UserError, match="absent.json"):
        read_result(tmp_path / "absent.json")


def test_the_shipped_table_is_as_printed():
    published = load_published(TAB6)
    assert published["paper"]["title"].startswith("DiffusionSeg") and published["paper"]["arxiv"] == "2303.09813v1"
    assert [r["method"] for r in published["rows"]] == list("123456") and len(published["claims"]) == 14
    assert published["rows"][5]["values"]["ECSSD"] == {"Acc": 0.924, "IoU": 0.710}
    assert published["rows"][0]["values"]["DUT-OMRON"] == {"Acc": 0.881, "IoU": 0.480}
    printed = {c["id"]: c["printed"].split(" printed")[0] for c in compare(published, {}, **ABOUT)["claims"]}
    assert printed["tab6.full_best.IoU"] == "15 of 15" and printed["tab6.spatial_helps.Acc"] == "2 of 3"
    assert printed["tab6.refine_alone.IoU"] == "2 of 3" and printed["tab6.refine_alone.Acc"] == "2 of 3"
    own = {str(i): {"acc": 0.8 + i / 100, "iou": 0.5 + i / 100} for i in range(1, 7)}
    got = compare(published, own, **ABOUT)
    assert got["counts"] == {HOLDS: 14, FAILS: 0, CANNOT: 0}
    assert "| 4 | Ac + r + D | **0.840** | **0.540** |" in render(got)


def test_malformed_tables_name_the_key(tmp_path):
    good = yaml.safe_load(TAB6.read_text())
    spoil = [
        (lambda t: t.pop("protocol"), "key protocol"),
        (lambda t: t.pop("paper"), "paper.title"),
        (lambda t: t.update(unit="points"), "key unit"),
        (lambda t: t["rows"][1].update(method=2), "rows[1].method"),
        (lambda t: t["rows"][1].update(method="1"), "rows[1].method"),
        (lambda t: t["rows"][0]["values"].update(VOC={}), "rows[0].values"),
        (lambda t: t["rows"][0]["values"]["ECSSD"].update(IoU="x"), "rows[0].values.ECSSD.IoU"),
        (lambda t: t["rows"][0]["values"]["ECSSD"].update(iou=0.5), "rows[0].values.ECSSD.iou"),
        (lambda t: t["claims"][0].update(kind="ordre"), "claims[0].kind"),
        (lambda t: t["claims"][0].update(higher="7"), "claims[0]"),
        (lambda t: t["claims"][0].update(lower=1), "claims[0].lower"),
        (lambda t: t["claims"][0].pop("higher"), "claims[0].higher"),
        (lambda t: t["claims"][0].update(metric="mIoU"), "claims[0].metric"),
        (lambda t: t["claims"][1].update(id=t["claims"][0]["id"]), "claims[1].id"),
        (lambda t: t["claims"][0].update(kind="close", rows=["1"]), "claims[0].rows"),
        (lambda t: t["claims"][0].update(relative_tolerance="x"), "claims[0].relative_tolerance"),
        (lambda t: t.update(remarks="one"), "remarks"),
        (lambda t: t.update(rows=[]), "rows"),
    ]
    for i, (change, key) in enumerate(spoil):
        bad = copy.deepcopy(good)
        change(bad)
        path = tmp_path / f"published{i}.yaml"
        path.write_text(yaml.safe_dump(bad))
        with pytest.raises(UserError) as caught:
            load_published(path)
        assert key in str(caught.value) and path.name in str(caught.value) and "\n" not in str(caught.value), key
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    for name in ("broken.yaml", "absent.yaml"):
        with pytest.raises(UserError, match=name):
            load_published(tmp_path / name)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"z": {"iou": 0.5}}, "'z'"),
        ({"a": {"auroc": 0.5}}, "metrics IoU"),
        ({"a": {"iou": "x"}}, "'IoU'"),
        ({"a": 0.5}, "'a'"),
    ],
)
def test_our_rows_are_checked(ours, message):
    with pytest.raises(UserError, match=message):
        compare(table(), ours, **ABOUT)
