"""The ledger: every claim of every paper with its published direction, our numbers and a verdict, on one page."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskmill.errors import UserError
from maskmill.report.claims import CANNOT, FAILS, HOLDS, NOT_RUN
from maskmill.report.tables import (
    counts_text,
    first_line,
    load_published,
    markdown_table,
    not_run,
    read_result,
    source,
    verdict_text,
)

VERDICTS = (HOLDS, FAILS, CANNOT, NOT_RUN)
HOW_TO_READ = """\
*Holds*: every mean lies on the claimed side. *Within the spread*: the verdict hangs on a difference no larger than its
standard deviation over seeds. *Cannot be asked here*: the claim speaks of numbers that are not at hand, for instance of
rival methods, or of something that no number decides. The last column counts how many of the comparisons that the paper
prints agree with its claim.

Written by `python stages/ledger.py` from every table's `result.json` and `published.yaml`."""


@dataclass(frozen=True)
class Entry:
    """One table of a paper: its folder, its result (of ``tables.compare`` or ``not_run``), and whether it was run."""

    folder: Path
    result: dict
    done: bool

    @property
    def title(self) -> str:
        """``Table 1a`` of diffusionseg-tab1a, ``Figure 3`` of diffusionseg-fig3, ``prose`` of diffusionseg-prose."""
        kind, number, rest = _parts(self.result["table"])
        return f"{kind} {number}{rest}" if kind else rest


def _parts(table: str) -> tuple[str, str, str]:
    """Kind, number and letter of a table's id; what is neither table nor figure has only its name."""
    last = table.rpartition("-")[2]
    found = re.fullmatch(r"(tab|fig)(\d+)([a-z]?)", last)
    return ({"tab": "Table", "fig": "Figure"}[found[1]], found[2], found[3]) if found else ("", "", last)


def _order(entry: Entry) -> tuple:
    """Papers in the order of their folders' names; of a paper tables, figures, then the rest."""
    kind, number, rest = _parts(entry.result["table"])
    return entry.folder.name.rpartition("-")[0], ("Table", "Figure", "").index(kind), int(number or 0), rest


def collect(tables: str | Path) -> list[Entry]:
    """Every folder of ``tables`` that holds a published.yaml, with its result where there is one.

    Raises:
        UserError: no table at all, a malformed file, or a result that judges other claims than published.yaml holds.
    """
    entries = []
    for path in sorted(Path(tables).glob("*/published.yaml")):
        published, file = load_published(path), path.with_name("result.json")
        if not file.exists():
            entries.append(Entry(path.parent, not_run(published), False))
            continue
        result = read_result(file)
        judged, claims = ({c["id"]: c["text"] for c in table["claims"]} for table in (result, published))
        if judged != claims:
            raise UserError(f"{file}: expected the {len(claims)} claims of published.yaml, got {len(judged)} others; "
                            f"run dvc repro {path.parent}/dvc.yaml")  # fmt: skip
        entries.append(Entry(path.parent, result, True))
    if not entries:
        raise UserError(f"{tables}: expected folders with a published.yaml, found none")
    return sorted(entries, key=_order)


def ledger(entries: Sequence[Entry], home: str | Path) -> str:
    """All claims as one Markdown page; ``home`` is the folder that its links start from."""
    papers: dict[str, list[Entry]] = {}
    for entry in entries:
        papers.setdefault(source(entry.result["paper"]), []).append(entry)
    lines = ["# What the papers claim, and what holds here", "", f"{_total(entries)}.", "", HOW_TO_READ]
    for paper, group in papers.items():
        lines += ["", f"## {paper}", ""]
        lines += [f"{_total(group)}.", ""] if len(papers) > 1 else []
        lines += _overview(group, home)
        for entry in group:
            lines += ["", *_section(entry, home)]
    return "\n".join(lines) + "\n"


def _claims(entries: Sequence[Entry]) -> list[dict]:
    return [claim for entry in entries for claim in entry.result["claims"]]


def _total(entries: Sequence[Entry]) -> str:
    claims = _claims(entries)
    return f"{len(claims)} {'claim' if len(claims) == 1 else 'claims'}: {counts_text(claims)}"


def _link(entry: Entry, home: str | Path) -> str:
    name = "result.md" if entry.done else "published.yaml"
    return f"[{entry.title}]({Path(os.path.relpath(entry.folder / name, home)).as_posix()})"


def _overview(entries: Sequence[Entry], home: str | Path) -> list[str]:
    """One line per table: how many of its claims got which verdict."""
    rows = []
    for entry in entries:
        counts = Counter(claim["verdict"] for claim in entry.result["claims"])
        rows.append([f"{_link(entry, home)}: {entry.result['caption']}", *(str(counts[v] or "–") for v in VERDICTS)])
    return markdown_table(["table", *VERDICTS], rows, 1)


def _section(entry: Entry, home: str | Path) -> list[str]:
    """A table's claims under what they were judged on."""
    result = entry.result
    lines = [f"### {_link(entry, home)}: {result['caption']}", ""]
    if entry.done:
        lines += [first_line(result)]
    elif (entry.folder / "dvc.yaml").exists():
        path = Path(os.path.relpath(entry.folder / "dvc.yaml", Path(home) / os.pardir)).as_posix()
        lines += [f"Not run: `dvc repro {path}`."]
    else:
        lines += ["Not run: nothing here measures it."]
    if not result["claims"]:
        return [*lines, "", "No claim of the paper: a comparison of ours."]
    rows = []
    for claim in result["claims"]:
        doubt = " (our reading of the text)" if claim["doubtful"] else ""
        printed = claim["printed_comparisons"]
        own = f"{printed['agree']} of {printed['compared']}" if printed["compared"] else "–"
        rows.append([f"{claim['text']}{doubt}", claim["direction"], claim["ours"], verdict_text(claim), own])
    header = ["claim", "published direction", "ours", "here", "printed numbers that agree"]
    return [*lines, "", *markdown_table(header, rows, len(header))]
