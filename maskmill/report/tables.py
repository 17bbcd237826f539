"""A paper's table beside ours: published numbers, our numbers, and a verdict on each published claim.

``published.yaml`` holds one table as facts: ``paper`` {title, ...}, ``table`` (its id), ``caption``, ``metrics``,
``datasets``, ``unit`` (fraction, percent or raw; ``unit_by_metric`` for exceptions), ``rows`` [{method, values {data
set: {metric: number or null}}, ...}], ``protocol`` and ``claims`` [{id, kind, text, ...}] with the kinds of
``maskmill.report.claims``. ``values_missing: true`` marks a figure or a lost table: its claims may name rows and
metrics that ``rows`` does not list. ``remarks`` are what a reader should know of the printed numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from maskmill.errors import UserError
from maskmill.report.claims import CANNOT, FAILS, HOLDS, KINDS, NOT_RUN, Outcome, Source, direction, evaluate, show
from maskmill.report.summary import rounded, to_json
from maskmill.store import write_atomically

UNITS = ("fraction", "percent", "raw")
_TABLE_KEYS = {"table": str, "caption": str, "metrics": list, "datasets": list, "rows": list, "protocol": str,
               "claims": list}  # fmt: skip


# --- reading and checking ---------------------------------------------------------------------------------------------


def load_published(path: str | Path) -> dict:
    """Read and check a ``published.yaml``. Raises ``UserError`` that names the file and the key."""
    found = read_yaml(Path(path), "a table's published.yaml")
    check_published(found, str(path))
    return found


def read_yaml(path: Path, what: str) -> object:
    """Read a YAML file; ``what`` says in the ``UserError`` what was expected there."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, got no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from None


def check_published(table: object, where: str) -> None:
    """Check the structure of a table; ``where`` names it in the one-line ``UserError``."""
    need(isinstance(table, dict), where, "", "a mapping", table)
    paper = table.get("paper")
    titled = isinstance(paper, dict) and isinstance(paper.get("title"), str)
    need(titled, where, "paper.title", "the paper's title", paper)
    for key, kind in _TABLE_KEYS.items():
        need(isinstance(table.get(key), kind), where, key, f"a {kind.__name__}", table.get(key))
    for key in ("metrics", "datasets"):
        need(table[key] and all(isinstance(v, str) for v in table[key]), where, key, "names", table[key])
    units = table.get("unit_by_metric", {})
    need(isinstance(units, dict) and set(units.values()) <= set(UNITS), where, "unit_by_metric", "units", units)
    if set(units) != set(table["metrics"]):
        need(table.get("unit") in UNITS, where, "unit", " or ".join(UNITS), table.get("unit"))
    remarks = table.get("remarks", [])
    texts = isinstance(remarks, list) and all(isinstance(v, str) for v in remarks)
    need(texts, where, "remarks", "a list of sentences", remarks)
    lenient = bool(table.get("values_missing"))
    names: list[str] = []
    for i, row in enumerate(table["rows"]):
        _check_row(row, table, names, f"{where}", f"rows[{i}]")
        names.append(row["method"])
    need(lenient or names, where, "rows", "at least one row (or values_missing: true)", table["rows"])
    ids: set[str] = set()
    for i, claim in enumerate(table["claims"]):
        _check_claim(claim, table, names, lenient, where, f"claims[{i}]")
        need(claim["id"] not in ids, where, f"claims[{i}].id", "an id of its own", claim["id"])
        ids.add(claim["id"])


def need(good: object, where: str, key: str, expected: str, got: object) -> None:
    """One-line ``UserError`` with file, key, what was expected and what came, unless ``good``."""
    if not good:
        text = repr(got)
        raise UserError(f"{where}: {f'key {key}: ' if key else ''}expected {expected}, got "
                        f"{text if len(text) < 80 else text[:77] + '...'}")  # fmt: skip


def _check_row(row: object, table: dict, names: Sequence[str], where: str, key: str) -> None:
    need(isinstance(row, dict), where, key, "a mapping", row)
    need(isinstance(row.get("method"), str), where, f"{key}.method", "a name (quote a number)", row.get("method"))
    need(row["method"] not in names, where, f"{key}.method", "a name of its own", row["method"])
    values = row.get("values")
    need(isinstance(values, dict), where, f"{key}.values", "numbers by data set", values)
    for dataset, scores in values.items():
        need(dataset in table["datasets"], where, f"{key}.values", f"data sets of {table['datasets']}", dataset)
        need(isinstance(scores, dict), where, f"{key}.values.{dataset}", "numbers by metric", scores)
        for metric, value in scores.items():
            path = f"{key}.values.{dataset}.{metric}"
            known = metric in table["metrics"] or metric.removesuffix("_std") in table["metrics"]
            need(known, where, path, f"a metric of {table['metrics']}", metric)
            number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            need(number, where, path, "a number or null", value)


def _check_claim(claim: object, table: dict, names: Sequence[str], lenient: bool, where: str, key: str) -> None:
    need(isinstance(claim, dict), where, key, "a mapping", claim)
    for needed in ("id", "text"):
        need(isinstance(claim.get(needed), str), where, f"{key}.{needed}", "a string", claim.get(needed))
    kind = claim.get("kind")
    need(kind in KINDS, where, f"{key}.kind", f"one of {', '.join(KINDS)}", kind)
    for needed in KINDS[kind]:
        need(claim.get(needed) is not None, where, f"{key}.{needed}", f"what a claim of kind {kind} needs", None)
    for pair in ("rows", "larger_gap", "smaller_gap"):
        if pair in claim:
            good = isinstance(claim[pair], list) and len(claim[pair]) == 2
            need(good, where, f"{key}.{pair}", "two rows", claim[pair])
    for part in ("tolerance", "relative_tolerance"):
        value = claim.get(part, 0)
        need(isinstance(value, int | float) and value >= 0, where, f"{key}.{part}", "a number from 0", value)
    for part in ("higher", "lower", "x", "direction"):
        value = claim.get(part, "")
        need(isinstance(value, str), where, f"{key}.{part}", "a string (quote a number)", value)
    if lenient or kind == "qualitative":
        return
    for row in _rows_of(claim):
        need(row in names, where, key, f"rows of the table ({', '.join(names[:8])})", row)
    need(claim["metric"] in table["metrics"], where, f"{key}.metric", f"one of {table['metrics']}", claim["metric"])
    for dataset in claim.get("datasets", []):
        need(dataset in table["datasets"], where, f"{key}.datasets", f"of {table['datasets']}", dataset)


def _rows_of(claim: dict) -> list[str]:
    rows = [claim.get("higher"), claim.get("lower"), *claim.get("rows", ()), *claim.get("larger_gap", ()),
            *claim.get("smaller_gap", ())]  # fmt: skip
    return [row for row in rows if row is not None and row != "*"]


def unit_of(table: dict, metric: str) -> str:
    """The unit in which a table prints a metric."""
    return table.get("unit_by_metric", {}).get(metric, table.get("unit", "raw"))


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(
    published: dict,
    ours: Mapping[str, Mapping],
    *,
    data: str,
    n: int,
    seeds: Sequence[int],
    stand_in: str | None = "held-out world scenes",
    controls: Mapping[str, Mapping] | None = None,
    protocol: str = "",
    notes: Sequence[str] = (),
) -> dict:
    """Put our rows beside a published table and judge every claim of it.

    Args:
        published: a checked table (``load_published``).
        ours: row name -> {metric: mean, metric_std: std over seeds or absent}; with ``stand_in=None`` row name ->
            {data set: {metric: ...}}. Scores that the table prints as fraction or percent are given as fractions in
            0..1; others on their own scale. Metric names match whatever their case; further metrics are ignored, a
            null counts as not measured. Row names must be the table's, unless ``values_missing``.
        data: what was scored, in words.
        n: number of pictures scored.
        seeds: the seeds that mean and std are over.
        stand_in: name of the one data set that takes the place of all that the table lists, or ``None``.
        controls: further rows of the same form, shown below the table and part of no claim.
        protocol: how ours were scored, in words.
        notes: further remarks, one line each.

    Returns:
        A plain dict for JSON: ``table, paper, caption, data, n, seeds, stand_in, stands_in_for, units, protocol,
        our_protocol, remarks, notes, rows, controls, claims, counts``; all numbers in the table's units.
    """
    rows = {name: _our_row(published, name, row, stand_in) for name, row in ours.items()}
    known = [row["method"] for row in published["rows"]]
    for name in rows:
        if name not in known and not published.get("values_missing"):
            raise UserError(f"{published['table']}: our row {name!r}: expected one of {', '.join(known)}")
    extra = {name: _our_row(published, name, row, stand_in) for name, row in (controls or {}).items()}
    mine = _source_of_ours(published, rows, stand_in)
    theirs = _source_of_published(published)
    claims = [_judge(claim, mine, theirs, published) for claim in published["claims"]]
    every = [*published["rows"], *({"method": name, "values": {}} for name in rows if name not in known)]
    counts = Counter(claim["verdict"] for claim in claims)
    return rounded({
        "table": published["table"], "paper": published["paper"], "caption": published["caption"], "data": data, "n": n,
        "seeds": list(seeds), "stand_in": stand_in, "stands_in_for": published["datasets"] if stand_in else [],
        "metrics": published["metrics"], "units": {m: unit_of(published, m) for m in published["metrics"]},
        "protocol": published["protocol"], "our_protocol": protocol, "remarks": published.get("remarks", []),
        "notes": list(notes),
        "rows": [
            {"row": row["method"], "what": _what(row), "ours": rows.get(row["method"], {}), "published": row["values"]}
            for row in every
        ],
        "controls": [{"row": name, "ours": row} for name, row in extra.items()],
        "claims": claims, "counts": {v: counts[v] for v in (HOLDS, FAILS, CANNOT)},
    })  # fmt: skip


def _our_row(table: dict, name: str, row: Mapping, stand_in: str | None) -> dict[str, dict[str, dict[str, float]]]:
    """One of our rows as {data set: {metric: {mean, std}}} in the table's units."""
    where = f"{table['table']}: our row {name!r}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected numbers by metric, got {row!r}")
    wanted = [*table["metrics"], *(c["metric"] for c in table["claims"] if "metric" in c)]
    out = {}
    for dataset, scores in ({stand_in: row} if stand_in else row).items():
        if not isinstance(scores, Mapping):
            raise UserError(f"{where}: key {dataset!r}: expected numbers by metric, got {scores!r}")
        lowered = {str(key).casefold(): value for key, value in scores.items()}
        out[dataset] = {}
        for metric in dict.fromkeys(wanted):
            mean, std = (lowered.get(f"{metric}{end}".casefold()) for end in ("", "_std"))
            if mean is None:
                continue
            for value in (mean, 0.0 if std is None else std):
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise UserError(f"{where}: metric {metric!r}: expected a number, got {value!r}")
            factor = 100.0 if unit_of(table, metric) == "percent" else 1.0
            out[dataset][metric] = {"mean": mean * factor} | ({} if std is None else {"std": std * factor})
        if scores and not out[dataset] and any(value is not None for value in scores.values()):
            raise UserError(f"{where}: expected one of the metrics {', '.join(wanted)}, got "
                            f"{', '.join(map(str, scores))}")  # fmt: skip
    return out


def _source_of_ours(table: dict, rows: dict, stand_in: str | None) -> Source:
    def cell(row: str, dataset: str, metric: str):
        found = rows.get(row, {}).get(dataset, {}).get(metric)
        return None if found is None else (found["mean"], found.get("std"))

    known = [row["method"] for row in table["rows"]]
    datasets = (stand_in,) if stand_in else tuple(dict.fromkeys(d for row in rows.values() for d in row))
    return Source(tuple(dict.fromkeys([*known, *rows])), datasets, cell, stand_in is not None)


def _source_of_published(table: dict) -> Source:
    by_name = {row["method"]: row["values"] for row in table["rows"]}

    def cell(row: str, dataset: str, metric: str):
        scores = by_name.get(row, {}).get(dataset, {})
        value = scores.get(metric)
        return None if value is None else (value, scores.get(f"{metric}_std"))

    return Source(tuple(by_name), tuple(table["datasets"]), cell)


def _judge(claim: dict, mine: Source, theirs: Source, table: dict) -> dict:
    unit = unit_of(table, claim.get("metric", ""))
    ours, printed = evaluate(claim, mine, unit, _rivals(claim, table)), evaluate(claim, theirs, unit)
    return _claimed(claim, ours, printed)


def _rivals(claim: dict, table: dict) -> list[str] | None:
    """The rows that a ``*`` needs: those for which the paper prints the metric; ``None`` where it prints none."""
    if claim.get("lower") != "*":
        return None
    return [
        row["method"] for row in table["rows"]
        if any(row["values"].get(d, {}).get(claim["metric"]) is not None for d in claim["datasets"])
    ] or None  # fmt: skip


def not_run(published: dict) -> dict:
    """What is known of a table of which no row was scored: the form of ``compare``, every claim ``not run``, but those
    that no number can decide ``cannot be asked here``."""
    nothing = Outcome(NOT_RUN, None, "–")
    theirs, claims = _source_of_published(published), []
    for claim in published["claims"]:
        printed = evaluate(claim, theirs, unit_of(published, claim.get("metric", "")))
        claims.append(_claimed(claim, printed if claim["kind"] == "qualitative" else nothing, printed))
    counts = Counter(claim["verdict"] for claim in claims)
    return {
        "table": published["table"], "paper": published["paper"], "caption": published["caption"], "data": "", "n": 0,
        "seeds": [], "claims": claims, "counts": {v: counts[v] for v in (HOLDS, FAILS, CANNOT, NOT_RUN)},
    }  # fmt: skip


def _claimed(claim: dict, ours: Outcome, printed: Outcome) -> dict:
    return {
        "id": claim["id"], "kind": claim["kind"], "text": claim["text"], "direction": direction(claim),
        "doubtful": bool(claim.get("doubtful")), "reading": claim.get("reading", ""),
        "verdict": ours.verdict, "within_spread": ours.within_spread, "ours": ours.detail,
        "comparisons": {"agree": ours.agree, "compared": ours.compared},
        "printed": _printed(printed), "printed_comparisons": {"agree": printed.agree, "compared": printed.compared},
    }  # fmt: skip


def _printed(outcome: Outcome) -> str:
    """Whether the paper's own numbers bear the claim out."""
    if outcome.verdict == CANNOT:
        return "no printed numbers"
    return f"{outcome.agree} of {outcome.compared} printed comparisons agree"


def _what(row: dict) -> str:
    """What a row is, from the fields beside its name: true flags joined, strings as they are."""
    parts = []
    for key, value in row.items():
        if key in ("method", "values", "ref"):
            continue
        if isinstance(value, dict):
            parts.append(" + ".join(k for k, on in value.items() if on is True))
        elif isinstance(value, str):
            parts.append(value)
    return ", ".join(p for p in parts if p)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_result(result: dict, folder: str | Path) -> None:
    """Write ``result.md`` and ``result.json`` of a comparison into a folder, each whole or not at all."""
    write_atomically(Path(folder, "result.json"), to_json(result))
    write_atomically(Path(folder, "result.md"), render(result))


def first_line(result: dict) -> str:
    """What was scored: data, n, seeds, and that they stand in for the benchmarks, in one line."""
    seeds = result["seeds"]
    spread = f"seeds {', '.join(map(str, seeds))} (mean ± sample standard deviation)" if len(seeds) > 1 else (
        f"seed {seeds[0]} (no spread)" if seeds else "one run (no spread)")  # fmt: skip
    line = f"Data: {result['data']}; n = {result['n']}; {spread}."
    if result["stand_in"]:
        line += f" The {result['stand_in']} stand in for {listed(result['stands_in_for'])}"
        line += ": directions can be compared with the paper, values cannot." if result["claims"] else "."
    return line


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _escaped(text: object) -> str:
    """Text that stays one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> list[str]:
    """A Markdown table whose columns from ``numbers_from`` on are set to the right."""
    marks = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    lines = [header, marks, *([_escaped(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _our_cell(scores: dict, metric: str, unit: str, printed: float | None) -> str:
    """Our number with its spread and, on the paper's own data set, how far it is from the printed one."""
    if metric not in scores:
        return "–"
    mean, std = scores[metric]["mean"], scores[metric].get("std")
    text = f"**{show(mean, unit)}**" + (f" ± {show(std, unit)}" if std is not None else "")
    if printed is None:
        return text
    apart = mean - printed
    return f"{text} ({'+' if apart >= 0 else '−'}{show(abs(apart), unit)})"


def _number_table(result: dict) -> list[str]:
    """Ours first, then every published data set; a row that neither has any number is still listed."""
    metrics, units = result["metrics"], result["units"]
    our_sets = list(dict.fromkeys(d for row in result["rows"] + result["controls"] for d in row["ours"]))
    their_sets = list(dict.fromkeys(d for row in result["rows"] for d in row["published"]))
    described = any(row["what"] for row in result["rows"])
    header = ["row", *(["what"] if described else [])]
    header += [f"ours{'' if result['stand_in'] else ' ' + _escaped(d)}: {m}" for d in our_sets for m in metrics]
    header += [f"{_escaped(d)}: {m}" for d in their_sets for m in metrics]
    lines = []
    for row in [*result["rows"], *({**c, "what": "control", "published": {}} for c in result["controls"])]:
        cells = [row["row"] if row["what"] != "control" or described else f"{row['row']} (control)"]
        cells += [row["what"]] if described else []
        cells += [_our_cell(row["ours"].get(d, {}), m, units[m], row["published"].get(d, {}).get(m))
                  for d in our_sets for m in metrics]  # fmt: skip
        for dataset in their_sets:
            values = row["published"].get(dataset, {})
            cells += [_published_cell(values, m, units[m]) for m in metrics]
        lines.append(cells)
    return markdown_table(header, lines, 2 if described else 1)


def _published_cell(values: dict, metric: str, unit: str) -> str:
    value, std = values.get(metric), values.get(f"{metric}_std")
    if value is None:
        return "–"
    return show(value, unit) + (f" ± {show(std, unit)}" if std is not None else "")


def verdict_text(claim: dict) -> str:
    """The verdict with its reservation."""
    within = ", within the spread" if claim["within_spread"] else ""
    return f"**{claim['verdict']}**{within}"


def counts_text(claims: Sequence[dict]) -> str:
    """``9 hold, 4 do not hold here, 1 cannot be asked here`` and how many verdicts lie within the spread."""
    counts = Counter(claim["verdict"] for claim in claims)
    text = f"{counts[HOLDS]} hold, {counts[FAILS]} do not hold here, {counts[CANNOT]} cannot be asked here"
    text += f", {counts[NOT_RUN]} not run" if counts[NOT_RUN] else ""
    close = sum(bool(claim["within_spread"]) for claim in claims)
    return text + (f"; {close} of these verdicts hang on a difference within the spread over seeds" if close else "")


def source(paper: dict) -> str:
    """A paper in one line: title, authors, year, arXiv number."""
    who = ", ".join(str(paper[k]) for k in ("authors_short", "year") if paper.get(k))
    return f"{paper['title']}{f' ({who})' if who else ''}" + (f", arXiv {paper['arxiv']}" if paper.get("arxiv") else "")


def render(result: dict) -> str:
    """The comparison as Markdown: data line, ours beside the published numbers, then every claim."""
    lines = [first_line(result), "", f"# {result['table']}: {result['caption']}", "",
             f"Source: {source(result['paper'])}.", "", f"Published protocol: {result['protocol']}"]  # fmt: skip
    if result["our_protocol"]:
        lines += ["", f"Our protocol: {result['our_protocol']}"]
    lines += ["", *_number_table(result), ""]
    if any(unit == "percent" for unit in result["units"].values()):
        lines += ["Percent, as the paper prints it.", ""]
    if not result["stand_in"]:
        lines += ["In brackets: ours less the paper's number on the same data set.", ""]
    for note in (*result["remarks"], *result["notes"]):
        lines += [note, ""]
    lines += ["## The paper's claims", ""]
    if not result["claims"]:
        return "\n".join([*lines, "None."]) + "\n"
    lines += [f"{counts_text(result['claims'])}.", ""]
    rows = []
    for claim in result["claims"]:
        doubt = " (our reading of the text)" if claim["doubtful"] else ""
        text = f"{claim['text']}{doubt}"
        rows.append([text, claim["direction"], verdict_text(claim), claim["ours"], claim["printed"]])
    lines += markdown_table(["claim", "published direction", "here", "our numbers", "the paper's own numbers"], rows, 9)
    readings = dict.fromkeys(claim["reading"] for claim in result["claims"] if claim["reading"])
    lines += ["", "How we read the text:", "", *(f"- {text}" for text in readings)] if readings else []
    return "\n".join(lines) + "\n"


def read_result(path: str | Path) -> dict:
    """Read a ``result.json``. Raises ``UserError`` that names the file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected a table's result.json, got no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected JSON, got {error}") from None
    keys = ("table", "paper", "caption", "data", "n", "seeds", "stand_in", "stands_in_for", "claims")
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{path}: expected a table's result, got one without {', '.join(missing)}")
    return found
