"""Does a published claim hold on given numbers? One evaluator per kind of claim, blind to whose numbers they are.

The kinds, all about numbers and not about quality (of two FIDs the better is the lower one):

* ``order``: value(higher) > value(lower) in every data set; ``lower: "*"`` means every other row, and holds only where
  every one of them has a number; one counter-example is enough against it.
* ``close``: two rows differ by at most a tolerance: ``tolerance``, or ``relative_tolerance`` of the larger of the two.
* ``gap``: larger_gap [a, b], smaller_gap [c, d]: a - b > c - d in every data set.
* ``gap_across_datasets``: rows [a, b]: a - b is larger on one data set than on another.
* ``trend``: the metric increases or decreases (perhaps ``flattening``) with a number in the rows' names.
* ``qualitative``: words or a picture; never decided by numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

HOLDS, FAILS, CANNOT, NOT_RUN = "holds", "does not hold here", "cannot be asked here", "not run"
KINDS = {
    "order": ("higher", "lower", "metric", "datasets"),
    "close": ("rows", "metric", "datasets"),
    "gap": ("larger_gap", "smaller_gap", "metric", "datasets"),
    "gap_across_datasets": ("rows", "metric", "larger_gap_dataset", "smaller_gap_dataset"),
    "trend": ("x", "direction", "metric", "datasets"),
    "qualitative": (),
}  # kind -> the keys that a claim of this kind needs
CLOSE = {"fraction": 0.02, "percent": 2.0, "raw": 0.10}  # default tolerance of ``close``; raw: relative to the larger
TREND_RANK = 0.8  # a trend needs this Spearman correlation between x and the metric

Cell = tuple[float, float | None]  # mean, standard deviation over seeds where known


@dataclass(frozen=True)
class Source:
    """Numbers to judge a claim by.

    Attributes:
        rows: row names in order, the ones that ``*`` speaks of.
        datasets: the data sets to look at; one stand-in may take the place of all.
        cell: (row, data set, metric) -> (mean, std or None), or ``None`` where there is no number.
        stands_in: the one data set stands in for those that the claim lists.
    """

    rows: tuple[str, ...]
    datasets: tuple[str, ...]
    cell: Callable[[str, str, str], Cell | None]
    stands_in: bool = False

    def datasets_of(self, claim: dict) -> tuple[str, ...]:
        """The data sets to look at for a claim."""
        return self.datasets if self.stands_in else tuple(d for d in claim["datasets"] if d in self.datasets)


@dataclass(frozen=True)
class Comparison:
    """One comparison that a claim asks for: ``margin`` > 0 agrees, ``spread`` is the std of the margin if known."""

    margin: float
    spread: float | None
    text: str

    @property
    def within(self) -> bool:
        return self.spread is not None and abs(self.margin) <= self.spread


@dataclass(frozen=True)
class Outcome:
    """The verdict on one claim.

    Attributes:
        verdict: ``HOLDS``, ``FAILS`` or ``CANNOT``.
        within_spread: the verdict hangs on a difference no larger than its spread; ``None``: spread unknown.
        detail: the numbers in words, or the reason why the claim cannot be asked.
        agree, compared: comparisons that agree, of all made.
    """

    verdict: str
    within_spread: bool | None
    detail: str
    agree: int = 0
    compared: int = 0


def show(value: float, unit: str) -> str:
    """A number as papers print it: .123, 12.3, or four digits for raw scales."""
    if unit == "fraction":
        return f"{value:.3f}"
    return f"{value:.1f}" if unit == "percent" else f"{value:.4g}"


def _shown(cell: Cell, unit: str) -> str:
    return show(cell[0], unit) + (f" ± {show(cell[1], unit)}" if cell[1] is not None else "")


def _joint(*cells: Cell) -> float | None:
    """Standard deviation of a sum or difference of independent cells; ``None`` when any is unknown."""
    if any(std is None for _, std in cells):
        return None
    return math.sqrt(sum(std * std for _, std in cells))


def evaluate(claim: dict, source: Source, unit: str, rivals: Sequence[str] | None = None) -> Outcome:
    """Judge one claim on the numbers of a source.

    Args:
        claim: a validated claim (``tables.load_published``).
        source: the numbers, in ``unit``.
        unit: ``fraction``, ``percent`` or ``raw``; decides the format and the default tolerance of ``close``.
        rivals: of a ``*``, the rows without whose number the claim cannot hold; other rows count where they have one.
            ``None``: no row is needed.

    Returns:
        The outcome. ``HOLDS`` needs every comparison to agree; equal means are no order. A difference is within the
        spread when it is at most sqrt(sum of the squared standard deviations of the means in it).
    """
    kind = claim["kind"]
    if kind == "qualitative":
        return Outcome(CANNOT, None, "stated in words or seen in pictures only")
    if kind == "trend":
        return _trend(claim, source, unit)
    if kind == "gap_across_datasets":
        return _gap_across(claim, source, unit)
    finder = {"order": _order, "close": _close, "gap": _gap}[kind]
    found: list[Comparison] = []
    missing: list[str] = []
    for dataset in source.datasets_of(claim):
        finder(claim, source, dataset, unit, found, missing)
    absent = [] if source.stands_in else [d for d in claim["datasets"] if d not in source.datasets]
    if rivals is not None:
        missing = [row for row in missing if row in rivals or row == claim["higher"]]
    return _decide(found, missing, absent, needs_all=rivals is not None)


def _decide(found: list[Comparison], missing: list[str], absent: list[str], needs_all: bool = False) -> Outcome:
    gone = list(dict.fromkeys(missing))
    if not found:
        why = "no number for " + (_some(gone) or _some(absent) or "its data sets")
        return Outcome(CANNOT, None, why)
    against = [c for c in found if not c.margin > 0]
    if against:
        close_call, telling = all(c.within for c in against), against
    else:
        close_call = any(c.within for c in found)
        telling = [min(found, key=lambda c: c.margin)] if len(found) > 3 else found
    known = any(c.spread is not None for c in found)
    detail = "; ".join(c.text for c in telling[:3]) + (f"; {len(telling) - 3} more" if len(telling) > 3 else "")
    if len(found) > 1:
        detail += f" ({len(found) - len(against)} of {len(found)} comparisons agree)"
    if gone:
        detail += f"; not measured here: {_some(gone)}"
    if absent:
        detail += f"; without {', '.join(absent)}"
    if needs_all and gone and not against:
        return Outcome(CANNOT, None, detail, len(found), len(found))
    verdict = FAILS if against else HOLDS
    return Outcome(verdict, close_call if known else None, detail, len(found) - len(against), len(found))


def _some(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _cells(rows: Sequence[str], source: Source, dataset: str, metric: str, missing: list[str]) -> list[Cell] | None:
    """The cells of all the rows, or ``None`` after the lacking ones were noted in ``missing``."""
    cells = [source.cell(row, dataset, metric) for row in rows]
    missing.extend(row for row, cell in zip(rows, cells, strict=True) if cell is None)
    return None if None in cells else cells


def _order(claim, source, dataset, unit, found, missing) -> None:
    higher, metric = claim["higher"], claim["metric"]
    rivals = [r for r in source.rows if r != higher] if claim["lower"] == "*" else [claim["lower"]]
    high = source.cell(higher, dataset, metric)
    if high is None:
        missing.append(higher)
        return
    for rival in rivals:
        cells = _cells([rival], source, dataset, metric, missing)
        if cells is None:
            continue
        low = cells[0]
        margin = round(high[0] - low[0], 9)
        sign = ">" if margin > 0 else "<" if margin < 0 else "="
        text = f"`{higher}` {_shown(high, unit)} {sign} `{rival}` {_shown(low, unit)}"
        found.append(Comparison(margin, _joint(high, low), _on(dataset, source, text)))


def _close(claim, source, dataset, unit, found, missing) -> None:
    cells = _cells(claim["rows"], source, dataset, claim["metric"], missing)
    if cells is None:
        return
    a, b = cells
    larger = max(abs(a[0]), abs(b[0]))
    if "tolerance" in claim:
        tolerance = float(claim["tolerance"])
    elif "relative_tolerance" in claim:
        tolerance = float(claim["relative_tolerance"]) * larger
    else:
        tolerance = CLOSE[unit] * (larger if unit == "raw" else 1.0)
    apart = abs(a[0] - b[0])
    first, second = claim["rows"]
    text = (f"`{first}` {_shown(a, unit)} and `{second}` {_shown(b, unit)} are {show(apart, unit)} apart "
            f"(close means {show(tolerance, unit)})")  # fmt: skip
    # At most the tolerance counts as close, so that a margin of exactly 0 agrees here.
    margin = round(tolerance - apart, 9)
    found.append(Comparison(margin if margin else 1e-12, _joint(a, b), _on(dataset, source, text)))


def _gap(claim, source, dataset, unit, found, missing) -> None:
    (a, b), (c, d) = claim["larger_gap"], claim["smaller_gap"]
    cells = _cells([a, b, c, d], source, dataset, claim["metric"], missing)
    if cells is None:
        return
    large, small = cells[0][0] - cells[1][0], cells[2][0] - cells[3][0]
    text = f"`{a}` − `{b}` = {show(large, unit)}, `{c}` − `{d}` = {show(small, unit)}"
    found.append(Comparison(round(large - small, 9), _joint(*cells), _on(dataset, source, text)))


def _gap_across(claim: dict, source: Source, unit: str) -> Outcome:
    names = claim["larger_gap_dataset"], claim["smaller_gap_dataset"]
    if source.stands_in:
        return Outcome(CANNOT, None, f"needs {names[0]} and {names[1]} apart; one stand-in takes the place of both")
    missing: list[str] = []
    pairs = [_cells(claim["rows"], source, name, claim["metric"], missing) for name in names]
    if None in pairs:
        return _decide([], missing, [])
    (a, b), (c, d) = pairs
    large, small = a[0] - b[0], c[0] - d[0]
    rows = " − ".join(f"`{row}`" for row in claim["rows"])
    text = f"{rows} = {show(large, unit)} on {names[0]}, {show(small, unit)} on {names[1]}"
    return _decide([Comparison(round(large - small, 9), _joint(a, b, c, d), text)], missing, [])


def number_in(row: str) -> float | None:
    """The last free-standing number of a row's name: ``50k`` -> 50000, ``scale -2`` -> -2, ``full`` -> None."""
    found = re.findall(r"(?<![\w.])(-?\d+(?:\.\d+)?)([kM])?(?![\w.])", row)
    if not found:
        return None
    digits, factor = found[-1]
    return float(digits) * {"": 1, "k": 1e3, "M": 1e6}[factor]


def _trend(claim: dict, source: Source, unit: str) -> Outcome:
    limits = re.search(r"(\d+)\s*\.\.\s*(\d+)", claim["x"])
    low, high = (float(limits[1]), float(limits[2])) if limits else (-math.inf, math.inf)
    found, missing = [], []
    for dataset in source.datasets_of(claim):
        points = []
        for row in source.rows:
            x, cell = number_in(row), source.cell(row, dataset, claim["metric"])
            if x is not None and low <= x <= high and cell is not None:
                points.append((x, cell))
        points.sort(key=lambda p: p[0])
        if len({x for x, _ in points}) < 3:
            missing.append(f"at least 3 values of {claim['x']}")
            continue
        found.append(_trend_on(points, claim["direction"], dataset, source, unit))
    return _decide(found, missing, [])


def _trend_on(points: list[tuple[float, Cell]], direction: str, dataset, source, unit: str) -> Comparison:
    xs, ys = [x for x, _ in points], [cell[0] for _, cell in points]
    sign = -1.0 if direction.startswith("decreasing") else 1.0
    rise = sign * (ys[-1] - ys[0])
    rank = 0.0 if len(set(ys)) == 1 else sign * round(float(spearmanr(xs, ys).statistic), 9)
    agrees = rise > 0 and rank >= TREND_RANK
    text = (f"{show(ys[0], unit)} at {xs[0]:g} to {show(ys[-1], unit)} at {xs[-1]:g}, "
            f"rank correlation {sign * rank:+.2f}")  # fmt: skip
    if "flattening" in direction:
        middle = len(xs) // 2
        slopes = [sign * (ys[j] - ys[i]) / (xs[j] - xs[i]) for i, j in ((0, middle), (middle, len(xs) - 1))]
        agrees = agrees and slopes[1] < slopes[0]
        text += f", slope {slopes[0]:.3g} then {slopes[1]:.3g}"
    margin = abs(rise) if agrees else -max(abs(rise), 1e-12)
    return Comparison(margin, _joint(points[0][1], points[-1][1]), _on(dataset, source, text))


def _on(dataset: str, source: Source, text: str) -> str:
    return text if source.stands_in or len(source.datasets) == 1 else f"{dataset}: {text}"


def direction(claim: dict) -> str:
    """What the paper claims, as a formula."""
    kind, metric = claim["kind"], claim.get("metric", "")
    if kind == "order":
        lower = "every other row" if claim["lower"] == "*" else f"`{claim['lower']}`"
        return f"{metric}: `{claim['higher']}` > {lower}"
    if kind == "close":
        return f"{metric}: `{claim['rows'][0]}` ≈ `{claim['rows'][1]}`"
    if kind == "gap":
        (a, b), (c, d) = claim["larger_gap"], claim["smaller_gap"]
        return f"{metric}: `{a}` − `{b}` > `{c}` − `{d}`"
    if kind == "gap_across_datasets":
        a, b = claim["rows"]
        return f"{metric}: `{a}` − `{b}` larger on {claim['larger_gap_dataset']} than on {claim['smaller_gap_dataset']}"
    if kind == "trend":
        return f"{metric}: {claim['direction']} with {claim['x']}"
    return "in words only"
