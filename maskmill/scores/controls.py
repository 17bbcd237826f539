"""Controls that stand beside every result: AUROC of raw maps, own-object preference, and the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np
from scipy.stats import rankdata

from maskmill.errors import UserError

PROTOCOL = {
    "auroc": "area under the ROC curve over the pixels of an image, ties count half, averaged over images",
    "own_object_rate": "share of cases where a word's map is higher on its own object's mask than on the other's",
    "std": "sample standard deviation over seeds (ddof = 1)",
}


def _pair(soft: np.ndarray, mask: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    soft, mask = np.asarray(soft), np.asarray(mask)
    if mask.dtype != bool or soft.shape != mask.shape:
        raise UserError(f"{what}: expected a map and a bool mask of one shape, got {soft.shape} and {mask.shape} "
                        f"{mask.dtype}")  # fmt: skip
    if not np.isfinite(soft).all():
        raise UserError(f"{what}: expected finite values, got NaN or infinity")
    return soft, mask


def auroc(soft: np.ndarray, mask: np.ndarray) -> float:
    """Pixel AUROC of one map: the probability that a foreground pixel ranks above a background pixel, ties half.

    AUROC = (sum of the foreground's ranks - P (P + 1) / 2) / (P N), with average ranks among ties.

    Args:
        soft: map of any real type and scale; only its order counts.
        mask: bool, of the same shape.

    Returns:
        0..1, or NaN where the mask is empty or full and the score is not defined.
    """
    soft, mask = _pair(soft, mask, "AUROC")
    positive = int(np.count_nonzero(mask))
    negative = mask.size - positive
    if positive == 0 or negative == 0:
        return math.nan
    ranks = rankdata(soft.ravel())[mask.ravel()]
    return float((ranks.sum() - positive * (positive + 1) / 2) / (positive * negative))


def mean_auroc(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict:
    """AUROC per image, then averaged. Images with an empty or full mask are left out and counted as ``skipped``.

    Returns:
        ``auroc`` in 0..1, ``n`` images scored, ``skipped``. Raises ``UserError`` when nothing could be scored.
    """
    scores = [auroc(soft, mask) for soft, mask in pairs]
    valid = [s for s in scores if not math.isnan(s)]
    if not valid:
        raise UserError(f"AUROC: expected at least one image with both foreground and background, got {len(scores)} "
                        "images without")  # fmt: skip
    return {"auroc": math.fsum(valid) / len(valid), "n": len(valid), "skipped": len(scores) - len(valid)}


def own_and_other(soft: np.ndarray, own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean of one word's map on its own object's mask and on the other object's mask (bool, not empty)."""
    soft, own = _pair(soft, own, "own-object preference")
    _, other = _pair(soft, other, "own-object preference")
    if not own.any() or not other.any():
        raise UserError("own-object preference: expected two objects, got an empty mask")
    wide = soft.astype(np.float64)  # half-precision maps overflow when summed
    return float(wide[own].mean()), float(wide[other].mean())


def own_object_rate(cases: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict:
    """Share of ``(map, own mask, other mask)`` cases with mean(own) > mean(other), strictly: a tie is no preference.

    Returns:
        ``own_object_rate`` in 0..1 (chance .5), ``n`` cases, ``ties``.
    """
    means = [own_and_other(*case) for case in cases]
    if not means:
        raise UserError("own-object rate: expected at least one two-object case, got none")
    wins, ties = sum(a > b for a, b in means), sum(a == b for a, b in means)
    return {"own_object_rate": wins / len(means), "n": len(means), "ties": ties}


def summarise_seeds(runs: Sequence[Mapping[str, object]], prefix: str = "world") -> dict[str, float]:
    """Mean and spread over seeds as flat headline keys.

    ``[{"attentioncut": {"iou": .61}}, {"attentioncut": {"iou": .63}}]`` gives ``world.attentioncut.iou`` and
    ``world.attentioncut.iou_std``. Keys of a run may be nested or already flat.

    Args:
        runs: one mapping per seed, all with the same keys and finite numbers.
        prefix: put before every key with a dot; empty for none.

    Returns:
        Mean per key, and ``<key>_std`` = sample standard deviation (ddof = 1). With one seed there is no spread and no
        ``_std`` key: a 0 would claim one.
    """
    if not runs:
        raise UserError("summary over seeds: expected at least one run, got none")
    flat = [dict(_flatten(run, prefix)) for run in runs]
    for i, run in enumerate(flat):
        odd = sorted(set(run) ^ set(flat[0]))
        if odd:
            raise UserError(f"summary over seeds: key {odd[0]!r} is in only some runs (run 0 against run {i})")
    out: dict[str, float] = {}
    for key in flat[0]:
        values = np.array([run[key] for run in flat])
        out[key] = float(values.mean())
        if len(values) > 1:
            out[f"{key}_std"] = float(values.std(ddof=1))
    return out


def _flatten(run: Mapping[str, object], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in run.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, path)
        elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            yield path, float(value)
        else:
            raise UserError(f"summary over seeds: key {path!r}: expected a finite number, got {value!r}")
