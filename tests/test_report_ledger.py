"""The ledger: every claim once, verdicts of what was run, what was not, links that lead somewhere, several papers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from maskmill.errors import UserError
from maskmill.report.ledger import collect, ledger
from maskmill.report.tables import compare, load_published, write_result
from tests.running import run_stage

ABOUT = {"data": "held-out scenes", "n": 200, "seeds": [0, 1, 2]}


def published(table: str, paper: str = "One: a paper", *claims: dict) -> dict:
    rows = [{"method": m, "values": {"X": {"IoU": v}}} for m, v in (("a", 0.7), ("b", 0.5), ("c", 0.6))]
    return {"paper": {"title": paper}, "table": table, "caption": f"Caption of {table}.", "metrics": ["IoU"],
            "datasets": ["X"], "unit": "fraction", "rows": rows, "protocol": "p", "claims": list(claims)}  # fmt: skip


def order(name: str, higher: str, lower: str, **more) -> dict:
    return {"id": name, "kind": "order", "text": f"Claim {name}.", "higher": higher, "lower": lower, "metric": "IoU",
            "datasets": ["X"], **more}  # fmt: skip


@pytest.fixture
def tables(tmp_path) -> Path:
    """Two papers: one table run, one not, one without any stage, one without claims; a figure of the other paper."""
    looks = {"id": "looks", "kind": "qualitative", "text": "Looks nice."}
    every = [
        published("one-tab10", "One: a paper", order("first", "a", "b"), order("second", "b", "c", doubtful=True)),
        published("one-tab2b", "One: a paper", order("third", "a", "*")),
        published("one-words", "One: a paper", order("fourth", "a", "b"), looks),
        published("one-sweep", "One: a paper"),
        published("other-fig3", "Other paper", order("fifth", "c", "b")),
    ]
    for table in every:
        folder = tmp_path / "tables" / table["table"]
        folder.mkdir(parents=True)
        (folder / "published.yaml").write_text(yaml.safe_dump(table))
    for name in ("one-tab2b", "other-fig3"):
        (tmp_path / "tables" / name / "dvc.yaml").write_text("stages: {}\n")
    scores = {"a": {"iou": 0.6, "iou_std": 0.01}, "b": {"iou": 0.5, "iou_std": 0.01}, "c": {"iou": 0.4}}
    for table in (every[0], every[3]):
        write_result(compare(table, scores, **ABOUT), tmp_path / "tables" / table["table"])
    return tmp_path / "tables"


def test_every_claim_once_with_verdict_and_counts(tables):
    entries = collect(tables)
    assert [e.title for e in entries] == ["Table 2b", "Table 10", "sweep", "words", "Figure 3"]
    text = ledger(entries, tables)
    assert text.splitlines()[2] == "6 claims: 2 hold, 0 do not hold here, 1 cannot be asked here, 3 not run."
    lines = [line for line in text.splitlines() if line.startswith(("| Claim", "| Looks"))]
    assert [line.split()[2] for line in lines] == ["third.", "first.", "second.", "fourth.", "nice.", "fifth."]
    assert "| IoU: `a` > `b` | `a` 0.600 ± 0.010 > `b` 0.500 ± 0.010 | **holds** | 1 of 1 |" in lines[1]
    assert "(our reading of the text)" in lines[2] and lines[2].endswith("| 0 of 1 |")
    assert lines[0].endswith("| IoU: `a` > every other row | – | **not run** | 2 of 2 |")
    assert "**cannot be asked here** | – |" in lines[4]
    assert "| [Table 10](one-tab10/result.md): Caption of one-tab10. | 2 | – | – | – |" in text
    assert "| [words](one-words/published.yaml): Caption of one-words. | – | – | 1 | 1 |" in text


def test_what_each_table_was_judged_on_stands_above_its_claims(tables):
    text = ledger(collect(tables), tables)
    sections = {s.split("]")[0]: s for s in text.split("### [")[1:]}
    assert "Data: held-out scenes; n = 200; seeds 0, 1, 2" in sections["Table 10"]
    assert "Not run: `dvc repro tables/one-tab2b/dvc.yaml`." in sections["Table 2b"]
    assert "Not run: nothing here measures it." in sections["words"]
    assert "No claim of the paper" in sections["sweep"] and "| claim |" not in sections["sweep"]


def test_papers_stand_apart_and_links_lead_to_files(tables):
    text = ledger(collect(tables), tables)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["One: a paper", "Other paper"]
    assert "5 claims: 2 hold" in text and "1 claim: 0 hold" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) == 10 and all((tables / link).is_file() for link in links)


def test_a_result_of_other_claims_is_refused(tables):
    file = tables / "one-tab10/result.json"
    result = json.loads(file.read_text())
    result["claims"][0]["text"] = "Claimed otherwise."
    file.write_text(json.dumps(result))
    with pytest.raises(UserError, match="one-tab10/result.json: expected the 2 claims of published.yaml"):
        collect(tables)
    file.write_text("{}")
    with pytest.raises(UserError, match="one-tab10/result.json: expected a table's result"):
        collect(tables)
    with pytest.raises(UserError, match="published.yaml, found none"):
        collect(tables / "one-words")


def test_the_stage_writes_the_same_page_twice(tables):
    for _ in range(2):
        got = run_stage("ledger", cwd=tables.parent)
        assert got.code == 0 and "2 of 5 tables were run" in got.out, got.err
        assert (tables / "README.md").read_text() == ledger(collect(tables), tables)
    assert load_published(tables / "one-tab10/published.yaml")["table"] == "one-tab10"
    (tables / "one-tab10/published.yaml").write_text("a: [")
    before = (tables / "README.md").read_bytes()
    got = run_stage("ledger", cwd=tables.parent)
    assert got.code == 2 and "one-tab10/published.yaml" in got.err and (tables / "README.md").read_bytes() == before
