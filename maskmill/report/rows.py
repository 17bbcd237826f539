"""Our rows of a paper's table: which file of scores is which row, and all of them beside the published numbers.

``rows.yaml`` of a table holds ``rows`` {key: {name, scores, part, control}}, each of them optional: ``name`` is the
published row (default: the key), ``scores`` the file, relative to the table's folder (default: ``rows/<key>.json``),
or several, whose scores stand in one row beside the images and draws of the first, ``part`` the part of a file of
statistics, ``control`` a label of ours for a row that is part of no claim. What else a
row holds, parameters for instance, is the business of the table's dvc.yaml. Beside ``rows`` there may be ``data`` and
``stand_in`` (what was scored, and what it is called, where it stands in for the paper's data), ``notes``,
``metrics`` {metric of the table: key in a file of scores, or of statistics, there also ``distance.<key>`` for how far
ours is from the reference}, and, where the rows are a sweep, ``axis`` {label: what the numbers in their names are, log:
whether that axis is logarithmic}.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskmill.errors import UserError
from maskmill.report.tables import compare, listed, need, read_yaml


@dataclass(frozen=True)
class Row:
    """One row of ours: its name, its file of scores, of statistics the part of the file; a control is in no claim.

    Attributes:
        more: further files of scores of the same data sets, with metrics that the first has not.
    """

    name: str
    path: Path
    part: str = ""
    control: bool = False
    more: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a table's rows.yaml says, see the head of this module."""

    rows: tuple[Row, ...]
    data: str = "scenes of the procedural world, two objects each"
    stand_in: str = "held-out world scenes"
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    axis: str = ""  # of a sweep; empty: the rows are no sweep
    log: bool = False  # whether that axis is logarithmic


def read_plan(folder: str | Path) -> Plan:
    """Read ``folder/rows.yaml``; without one, or without ``rows`` in it, each ``folder/rows/*.json`` is a row under its
    own name, numbers in their order.

    Raises:
        UserError: no rows at all, or a key of another type than expected; names the file and the key.
    """
    folder = Path(folder)
    file = folder / "rows.yaml"
    if not file.exists():
        return Plan(_rows_found(folder))
    found, where = read_yaml(file, "a table's rows.yaml"), str(file)
    need(isinstance(found, dict), where, "", "a mapping", found)
    if "rows" in found:
        given = found["rows"]
        need(given and isinstance(given, dict), where, "rows", "rows by key", given)
        rows = tuple(_row(folder, str(key), row or {}, where) for key, row in given.items())
    else:
        rows = _rows_found(folder)
    for name, count in Counter(row.name for row in rows).items():
        need(count == 1, where, "rows", "a name of its own for each row", name)
    texts = {key: found[key] for key in ("data", "stand_in") if key in found}
    for key, value in texts.items():
        need(isinstance(value, str), where, key, "a text", value)
    notes, metrics = found.get("notes", []), found.get("metrics", {})
    need(isinstance(notes, list) and all(isinstance(v, str) for v in notes), where, "notes", "sentences", notes)
    named = isinstance(metrics, dict) and all(isinstance(v, str) for v in metrics.values())
    need(named, where, "metrics", "a key of the statistics for each metric", metrics)
    axis = found.get("axis", {"label": ""})
    need(isinstance(axis, dict) and isinstance(axis.get("label"), str) and isinstance(axis.get("log", False), bool),
         where, "axis", "{label: text, log: true or false}", axis)  # fmt: skip
    return Plan(rows, notes=tuple(notes), metrics=metrics, axis=axis["label"], log=axis.get("log", False), **texts)


def _rows_found(folder: Path) -> tuple[Row, ...]:
    files = sorted((folder / "rows").glob("*.json"), key=lambda p: (not p.stem.isdigit(), len(p.stem), p.stem))
    if not files:
        raise UserError(f"{folder}/rows: expected scored rows *.json, found none; run dvc repro {folder}/dvc.yaml")
    return tuple(Row(path.stem, path) for path in files)


def _row(folder: Path, key: str, row: object, where: str) -> Row:
    need(isinstance(row, dict), where, f"rows.{key}", "a mapping", row)
    for part in ("name", "control", "part"):
        value = row.get(part, "")
        need(isinstance(value, str), where, f"rows.{key}.{part}", "a string (quote a number)", value)
    need(not {"name", "control"} <= set(row), where, f"rows.{key}", "a name or a control, not both", row)
    files = row.get("scores", f"rows/{key}.json")
    files = files if isinstance(files, list) else [files]
    named = files and all(isinstance(file, str) for file in files)
    need(named, where, f"rows.{key}.scores", "a file or several", row.get("scores"))
    need(len(files) == 1 or "part" not in row, where, f"rows.{key}.scores", "one file of statistics", files)
    path, *more = (Path(os.path.normpath(folder / file)) for file in files)
    return Row(row.get("control", row.get("name", key)), path, row.get("part", ""), "control" in row, tuple(more))


def read_scores(row: Row, metrics: Mapping[str, str]) -> dict:
    """A row's scores: ``datasets`` {name: {scores, images, draws}}, ``protocol``, ``postprocess``.

    That is the form in which stage score writes them; the name is empty for a stand-in. Of a file of statistics, the
    row's part is brought into it; its ``dataset``, if any, is what the reference is.

    Args:
        row: whose file is read.
        metrics: {metric of the table: key in a file of statistics}; nothing else is taken from there, so that
            ``size_std``, the spread of sizes, is not taken for the spread of ``size`` over seeds.

    Raises:
        UserError: no such file, no JSON, or of neither form; names the file and the key.
    """
    found = _read_scores(row, row.path, metrics)
    for path in row.more:
        other = _read_scores(row, path, metrics)
        need(other["datasets"].keys() == found["datasets"].keys(), str(path), "datasets",
             f"those of {row.path}, {list(found['datasets'])}", list(other["datasets"]))  # fmt: skip
        for name, scored in other["datasets"].items():
            scores = found["datasets"][name]["scores"]
            twice = sorted(scores.keys() & scored["scores"].keys())
            need(not twice, str(path), f"datasets.{name or repr(name)}.scores", f"others than in {row.path}", twice)
            scores |= scored["scores"]
        found["protocol"] = {**found.get("protocol", {}), **other.get("protocol", {})}
    return found


def _read_scores(row: Row, path: Path, metrics: Mapping[str, str]) -> dict:
    """One file of a row's scores."""
    where = str(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: expected the scores of row {row.name!r}, got no such file; run dvc repro") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: expected JSON, got {error}") from None
    need(isinstance(found, dict), where, "", "an object", found)
    protocol = found.get("protocol", {})
    need(isinstance(protocol, dict), where, "protocol", "texts by metric", protocol)
    if row.part:
        name = found.get("dataset", "")
        need(isinstance(name, str), where, "dataset", "the reference's data set", name)
        scores = {metric: _statistic(found, row.part, key, where) for metric, key in metrics.items()}
        images = _statistic(found, row.part, "n", where)
        return {"datasets": {name: {"scores": scores, "images": images, "draws": []}}, "protocol": protocol}
    datasets = found.get("datasets")
    need(datasets and isinstance(datasets, dict), where, "datasets", "scores by data set", datasets)
    for name, scored in datasets.items():
        key = f"datasets.{name or repr(name)}"
        need(isinstance(scored, dict), where, key, "scores, images and draws", scored)
        for part, kind in (("scores", dict), ("images", int), ("draws", list)):
            need(isinstance(scored.get(part), kind), where, f"{key}.{part}", f"a {kind.__name__}", scored.get(part))
        scores = scored["scores"]
        scores |= {f"{metric}{end}": scores[f"{key}{end}"] for metric, key in metrics.items() for end in ("", "_std")
                   if key != metric and f"{key}{end}" in scores}  # fmt: skip
    return found


def _statistic(found: dict, part: str, key: str, where: str) -> float:
    """A number of one part of the statistics; the reference has no distance from itself."""
    if key.startswith("distance."):
        if part == "reference":
            return 0.0
        part, _, key = key.partition(".")
    numbers = found.get(part)
    need(isinstance(numbers, dict), where, part, "numbers by name", numbers)
    value = numbers.get(key)
    need(isinstance(value, int | float) and not isinstance(value, bool), where, f"{part}.{key}", "a number", value)
    return value


def compare_scored(published: dict, plan: Plan) -> dict:
    """``tables.compare`` on the files of scores that a plan names.

    Scores on named data sets are put beside the published ones of the same name, number by number; data sets that the
    table does not list are left out. Scores under the empty name stand in for all data sets of the table.

    Raises:
        UserError: a file is missing or malformed, rows were scored on different images, both forms are mixed, or none
            of the table's data sets was scored.
    """
    names = {metric: plan.metrics.get(metric, metric) for metric in published["metrics"]}
    found = {row: read_scores(row, names) for row in plan.rows}
    scored = list(dict.fromkeys(name for document in found.values() for name in document["datasets"]))
    where = published["table"]
    if "" in scored and len(scored) > 1:
        others = listed([name for name in scored if name])
        raise UserError(f"{where}: expected rows scored on one kind of data, got a stand-in and {others}")
    stands_in = scored == [""]
    used = [name for name in (scored if stands_in else published["datasets"]) if name in scored]
    if not used:
        raise UserError(f"{where}: expected scores on {listed(published['datasets'])}, got {listed(scored)}")
    about = {name: _images_of(name, found) for name in used}
    ours: dict[bool, dict] = {False: {}, True: {}}  # rows of the table, controls
    for row, document in found.items():
        scores = {name: document["datasets"][name]["scores"] for name in used if name in document["datasets"]}
        if any(scores.values()):  # a row may be without numbers where a network or a data set is not at hand
            ours[row.control][row.name] = scores[""] if stands_in else scores
    draws = dict.fromkeys(draw for _, several in about.values() for draw in several if str(draw))
    if any(row.part for row in found):
        counts = (f"{row.name}: {document['datasets'][used[0]]['images']:,}" for row, document in found.items())
        data = f"{plan.data if stands_in else used[0]} ({', '.join(counts)})"
    else:
        data = plan.data if stands_in else ", ".join(f"{name} ({count:,} images)" for name, (count, _) in about.items())
    return compare(
        published, ours[False], data=data, n=sum(count for count, _ in about.values()),
        seeds=[int(draw) if str(draw).isdigit() else draw for draw in draws],
        stand_in=plan.stand_in if stands_in else None, controls=ours[True],
        protocol=_protocol([*names, *names.values()], found), notes=plan.notes,
    )  # fmt: skip


def _images_of(dataset: str, found: Mapping[Row, dict]) -> tuple[int, list]:
    """Number of images and draws of a data set, the same in every row; of statistics, the images of all parts."""
    here = {row: document["datasets"][dataset] for row, document in found.items() if dataset in document["datasets"]}
    if any(row.part for row in here):
        return sum(scored["images"] for scored in here.values()), []
    first = next(iter(here.values()))
    for row, scored in here.items():
        if (scored["images"], scored["draws"]) != (first["images"], first["draws"]):
            raise UserError(f"{row.path}: expected the other rows' {first['images']} images and draws "
                            f"{first['draws']}, got {scored['images']} and {scored['draws']}")  # fmt: skip
    return first["images"], first["draws"]


def _protocol(metrics: Sequence[str], found: Mapping[Row, dict]) -> str:
    """How the table's metrics were scored, and what had been done to the masks."""
    every = next(iter(found.values())).get("protocol", {})
    wanted = {metric.casefold() for metric in metrics}
    statistics = any(row.part for row in found)  # whose texts refer to each other
    told = {key: text for key, text in every.items() if statistics or key.casefold() in wanted} or dict(every)
    after = {row.name: document["postprocess"] for row, document in found.items() if "postprocess" in document}
    if len(set(after.values())) == 1:
        told["post-processing"] = next(iter(after.values()))
    else:
        told |= {f"post-processing of {name}": text for name, text in after.items()}
    return "; ".join(f"{key}: {text}" for key, text in told.items())
