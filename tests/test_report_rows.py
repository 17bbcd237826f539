"""Our rows: rows.yaml, files of scores and of statistics, stand-ins and the paper's own data sets, and stage table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from maskmill.errors import UserError
from maskmill.report.claims import CANNOT, FAILS, HOLDS
from maskmill.report.rows import Row, compare_scored, read_plan
from tests.running import run_stage

PUBLISHED = {
    "paper": {"title": "T"}, "table": "t", "caption": "c", "metrics": ["Acc", "IoU"], "datasets": ["X", "Y"],
    "unit": "fraction", "protocol": "p",
    "rows": [{"method": m, "values": {"X": {"IoU": 0.5, "Acc": 0.8}, "Y": {"IoU": 0.4}}} for m in ("A | 1k", "B", "C")],
    "claims": [{"id": "best", "kind": "order", "text": "A is best.", "higher": "A | 1k", "lower": "*",
                "metric": "IoU", "datasets": ["X", "Y"]}],
}  # fmt: skip
ROWS = {"rows": {"a-1k": {"name": "A | 1k"}, "b": {"name": "B", "scores": "../shared/b.json"}, "C": None}}
STATISTICS = {
    "ours": {"SC": 12.5, "size": 0.2, "size_std": 0.1, "n": 480}, "distance": {"size": 0.3},
    "reference": {"SC": 11.0, "size": 0.25, "size_std": 0.05, "n": 300},
    "protocol": {"SC": "vertices", "size": "share of the pixels"},
}  # fmt: skip


def scored(iou: float, *names: str, images: int = 300, draws: tuple[str, ...] = ("1", "2"), **more) -> dict:
    scores = {"iou": iou, "iou_std": 0.01, "acc": 0.9, "corloc": 0.5}
    one = {"scores": scores, "images": images, "draws": list(draws)}
    return {"datasets": {name: one for name in names or ("",)}, "protocol": {"iou": "per image", "corloc": "boxes"},
            "postprocess": "none", **more}  # fmt: skip


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(value, sort_keys=False) if path.suffix == ".yaml" else json.dumps(value)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A table of three rows, of which one is another folder's; none is scored yet."""
    write(tmp_path / "t/published.yaml", PUBLISHED)
    write(tmp_path / "t/rows.yaml", ROWS)
    return tmp_path / "t"


def fill(folder: Path, a: dict, b: dict, c: dict) -> dict:
    write(folder / "rows/a-1k.json", a)
    write(folder.parent / "shared/b.json", b)
    write(folder / "rows/C.json", c)
    return compare_scored(PUBLISHED, read_plan(folder))


def test_a_plan_says_which_file_is_which_row(folder):
    plan = read_plan(folder)
    assert plan.rows == (Row("A | 1k", folder / "rows/a-1k.json"), Row("B", folder.parent / "shared/b.json"),
                         Row("C", folder / "rows/C.json"))  # fmt: skip
    assert plan.stand_in == "held-out world scenes" and not plan.notes
    (folder / "rows.yaml").unlink()
    with pytest.raises(UserError, match="t/rows: expected scored rows"):
        read_plan(folder)
    write(folder / "rows/7.json", {})
    assert read_plan(folder).rows == (Row("7", folder / "rows/7.json"),)


def test_one_stand_in_takes_the_place_of_all_data_sets(folder):
    got = fill(folder, scored(0.6), scored(0.5), scored(0.4))
    assert (got["n"], got["seeds"], got["stand_in"]) == (300, [1, 2], "held-out world scenes")
    assert got["data"] == "scenes of the procedural world, two objects each" and got["stands_in_for"] == ["X", "Y"]
    assert got["rows"][1]["ours"]["held-out world scenes"]["IoU"] == {"mean": 0.5, "std": 0.01}
    assert got["claims"][0]["verdict"] == HOLDS
    assert got["our_protocol"] == "iou: per image; post-processing: none"  # CorLoc is not this table's


def test_named_data_sets_are_compared_one_by_one_and_others_left_out(folder):
    one = {"draws": ("",), "images": 1000}
    got = fill(folder, scored(0.6, "X", "Z", **one), scored(0.5, "Z", "X", **one), scored(0.4, "X", **one))
    assert got["stand_in"] is None and got["data"] == "X (1,000 images)" and (got["n"], got["seeds"]) == (1000, [])
    assert [list(row["ours"]) for row in got["rows"]] == [["X"]] * 3
    assert got["claims"][0]["verdict"] == HOLDS and "without Y" in got["claims"][0]["ours"]
    got = fill(folder, scored(0.6, "Y", "X"), scored(0.5, "X"), scored(0.4, "X", "Y"))
    assert got["data"] == "X (300 images), Y (300 images)" and got["n"] == 600  # in the table's order
    assert got["claims"][0]["verdict"] == CANNOT and "not measured here: B" in got["claims"][0]["ours"]
    with pytest.raises(UserError, match="t: expected scores on X and Y, got Z"):
        fill(folder, scored(0.6, "Z"), scored(0.6, "Z"), scored(0.6, "Z"))
    with pytest.raises(UserError, match="one kind of data, got a stand-in and X"):
        fill(folder, scored(0.6, "X"), scored(0.6), scored(0.6))


def test_a_control_is_shown_and_part_of_no_claim(folder):
    write(folder / "rows.yaml", {**ROWS, "rows": {**ROWS["rows"], "d": {"control": "our own, not the paper's"}}})
    write(folder / "rows/d.json", scored(0.9, postprocess="bilateral"))
    got = fill(folder, scored(0.6), scored(0.5), scored(0.4))
    assert [c["row"] for c in got["controls"]] == ["our own, not the paper's"] and got["claims"][0]["verdict"] == HOLDS
    assert "post-processing of B: none" in got["our_protocol"]
    assert "post-processing of our own, not the paper's: bilateral" in got["our_protocol"]


def test_a_metric_may_have_another_name_in_the_files_of_scores(folder):
    write(folder / "rows.yaml", {**ROWS, "metrics": {"IoU": "acc_pooled"}})
    rows = [scored(value) for value in (0.6, 0.5, 0.4)]
    for k, row in enumerate(rows):
        row["datasets"][""]["scores"] |= {"acc_pooled": 0.1 * k, "acc_pooled_std": 0.02}
    got = fill(folder, *rows)
    assert got["rows"][1]["ours"]["held-out world scenes"]["IoU"] == {"mean": 0.1, "std": 0.02}
    assert got["claims"][0]["verdict"] == FAILS  # 0, 0.1 and 0.2 in the place of 0.6, 0.5 and 0.4


def test_several_files_make_one_row_and_no_score_stands_in_two_of_them(folder):
    one, other = scored(0.6), scored(0.0, images=100, draws=())
    one["datasets"][""]["scores"] = {"acc": 0.9}
    other["datasets"][""]["scores"], other["protocol"] = {"iou": 0.7}, {"iou": "of the other file"}
    several = {"name": "A | 1k", "scores": ["rows/a-1k.json", "rows/more.json"]}
    write(folder / "rows.yaml", {"rows": {**ROWS["rows"], "a-1k": several}})
    write(folder / "rows/more.json", other)
    got = fill(folder, one, scored(0.5), scored(0.4))
    assert got["rows"][0]["ours"]["held-out world scenes"]["IoU"]["mean"] == 0.7 and got["n"] == 300
    assert "iou: of the other file" in got["our_protocol"]
    with pytest.raises(UserError, match=r"rows/more.json: key datasets.''.scores: expected others .*, got .*'iou'"):
        fill(folder, scored(0.6), scored(0.5), scored(0.4))
    write(folder / "rows/more.json", scored(0.7, "X"))
    with pytest.raises(UserError, match=r"rows/more.json: key datasets: expected those of .*/a-1k.json"):
        fill(folder, one, scored(0.5), scored(0.4))
    for wrong in ([], [3], {"a": 1}):
        write(folder / "rows.yaml", {"rows": {"a-1k": {"scores": wrong}}})
        with pytest.raises(UserError, match="rows.a-1k.scores: expected a file or several"):
            read_plan(folder)
    write(folder / "rows.yaml", {"rows": {"a-1k": {**several, "part": "ours"}}})
    with pytest.raises(UserError, match="rows.a-1k.scores: expected one file of statistics"):
        read_plan(folder)


def test_rows_of_different_images_are_no_table(folder):
    for other in (scored(0.5, images=299), scored(0.5, draws=("1",))):
        with pytest.raises(UserError, match="shared/b.json: expected the other rows' 300 images"):
            fill(folder, scored(0.6), other, scored(0.4))


def test_a_part_of_the_statistics_is_a_row(folder):
    claims = [{"id": "broader", "kind": "order", "text": "Ours spreads more.", "higher": "Ours", "lower": "DUTS-TR",
               "metric": "spread", "datasets": ["both"]},
              {"id": "same", "kind": "close", "text": "As far as that.", "rows": ["Ours", "DUTS-TR"], "tolerance": 0.2,
               "metric": "KS", "datasets": ["both"]}]  # fmt: skip
    table = {**PUBLISHED, "metrics": ["mean", "spread", "KS"], "datasets": ["both"], "unit": "raw", "rows": [],
             "values_missing": True, "claims": claims}  # fmt: skip
    rows = {"ours": {"name": "Ours", "scores": "s.json", "part": "ours"},
            "reference": {"name": "DUTS-TR", "scores": "s.json", "part": "reference"}}  # fmt: skip
    metrics = {"mean": "size", "spread": "size_std", "KS": "distance.size"}
    write(folder / "rows.yaml", {"rows": rows, "metrics": metrics, "data": "pictures", "stand_in": "little pictures"})
    write(folder / "s.json", STATISTICS)
    got = compare_scored(table, read_plan(folder))
    ours, reference = (row["ours"]["little pictures"] for row in got["rows"])
    assert ours == {"mean": {"mean": 0.2}, "spread": {"mean": 0.1}, "KS": {"mean": 0.3}}  # no ± from size_std
    assert reference == {"mean": {"mean": 0.25}, "spread": {"mean": 0.05}, "KS": {"mean": 0.0}}
    assert [c["verdict"] for c in got["claims"]] == [HOLDS, "does not hold here"]
    assert got["n"] == 780 and got["seeds"] == [] and got["our_protocol"].startswith("SC: vertices; size: share")
    assert got["data"] == "pictures (Ours: 480, DUTS-TR: 300)"
    write(folder / "s.json", {**STATISTICS, "dataset": "both"})  # the reference is the paper's own
    real = compare_scored(table, read_plan(folder))
    assert real["stand_in"] is None and real["data"] == "both (Ours: 480, DUTS-TR: 300)"
    assert [c["verdict"] for c in real["claims"]] == [c["verdict"] for c in got["claims"]]
    write(folder / "rows.yaml", {"rows": rows, "metrics": {**metrics, "mean": "colour"}})
    with pytest.raises(UserError, match="s.json: key ours.colour: expected a number"):
        compare_scored(table, read_plan(folder))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "mapping"), ({"rows": []}, "rows"), ({"rows": {"a": 1}}, "rows.a"),
        ({"rows": {"a": {"name": 1}}}, "rows.a.name"), ({"rows": {"a": {"name": "b"}, "b": {}}}, "'b'"),
        ({"rows": {"a": {"name": "A", "control": "B"}}}, "rows.a"), ({"rows": {"a": {}}, "notes": "x"}, "notes"),
        ({"rows": {"a": {}}, "metrics": ["x"]}, "metrics"), ({"rows": {"a": {}}, "data": 3}, "data"),
        ({"rows": {"a": {}}, "axis": "N"}, "axis"), ({"rows": {"a": {}}, "axis": {"log": True}}, "axis"),
    ],
)  # fmt: skip
def test_a_malformed_plan_names_the_key(folder, rows, said):
    write(folder / "rows.yaml", rows)
    with pytest.raises(UserError) as caught:
        read_plan(folder)
    assert "rows.yaml" in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"), ("[]", "an object"), ("{}", "datasets"), ('{"datasets": {}}', "datasets"),
        ('{"datasets": {"X": {"scores": {}, "images": "3", "draws": []}}}', "datasets.X.images"),
        ('{"datasets": {"": {"scores": {}, "images": 3}}}', "datasets.''.draws"),
        ('{"datasets": {}, "protocol": 1}', "protocol"),
    ],
)
def test_malformed_scores_name_the_file_and_the_key(folder, content, said):
    fill(folder, scored(0.6), scored(0.5), scored(0.4))
    (folder / "rows/C.json").write_text(content)
    with pytest.raises(UserError) as caught:
        compare_scored(PUBLISHED, read_plan(folder))
    assert "rows/C.json" in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)


def test_the_stage_writes_the_result_and_nothing_where_a_row_is_missing(folder):
    fill(folder, scored(0.6), scored(0.5), scored(0.4))
    got = run_stage("table", "--table", "t", cwd=folder.parent)
    assert got.code == 0 and "3 rows; claims: 1 hold" in got.out, got.err
    first = (folder / "result.md").read_text().splitlines()[0]
    assert first.startswith("Data: scenes of the procedural world, two objects each; n = 300; seeds 1, 2")
    assert json.loads((folder / "result.json").read_text())["counts"][HOLDS] == 1
    assert (folder / "rows.csv").read_text().startswith("row,series,value,std\nA | 1k,ours: held-out world scenes,0.6")
    assert (folder / "rows.png").stat().st_size > 1000
    for name in ("result.md", "result.json", "rows.csv", "rows.png", "rows/C.json"):
        (folder / name).unlink()
    got = run_stage("table", "--table", "t", cwd=folder.parent)
    assert got.code == 2 and "t/rows/C.json: expected the scores of row 'C'" in got.err
    assert sorted(p.name for p in folder.iterdir()) == ["published.yaml", "rows", "rows.yaml"]


def test_without_rows_every_scored_file_is_one_in_the_order_of_its_number(folder):
    for name in ("100", "20", "full", "5"):
        write(folder / "rows" / f"{name}.json", {})
    write(folder / "rows.yaml", {"notes": ["n"]})
    plan = read_plan(folder)
    assert [row.name for row in plan.rows] == ["5", "20", "100", "full"] and plan.notes == ("n",)
