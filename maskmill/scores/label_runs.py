"""Label maps of a segmenter against those of image sets: whose labels are whose, and one confusion matrix per draw.

A segmenter numbers its classes in the order of its own vocabulary, and by the words that it was asked with; a data set
numbers its own. Both are brought to the labels that are scored: 1..C are the scored classes in the order of the data
set, 0 is the background and everything else that is no scored class, 255 stays void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskmill.datasets.table import Item, read_labels
from maskmill.errors import UserError
from maskmill.report.labelmaps import read_label_map
from maskmill.report.segmentations import names_of
from maskmill.scores.semantic import VOID, Background, SemanticScores

Row = Mapping[str, str]  # of a class table: class, query, kind


def scored_classes(table: Sequence[Row], kinds: str) -> list[Row]:
    """The classes that are scored: those of one kind (thing or stuff), or all.

    Raises:
        UserError: another kind, or no class of it.
    """
    if kinds not in ("all", "thing", "stuff"):
        raise UserError(f"--kinds: expected all, thing or stuff, got {kinds!r}")
    found = [row for row in table if kinds in ("all", row["kind"])]
    if not found:
        raise UserError(f"--kinds: expected a class of kind {kinds}, got none among {len(table)} classes")
    return found


def of_truth(table: Sequence[Row], scored: Sequence[Row]) -> np.ndarray:
    """(256,) int64: the scored label of each label of the truth, 1..C of ``table``; -1 where the truth has none."""
    out = np.full(256, -1)
    out[0], out[VOID] = 0, VOID
    names = [row["class"] for row in scored]
    for label, row in enumerate(table, 1):
        out[label] = names.index(row["class"]) + 1 if row["class"] in names else 0
    return out


def of_vocabulary(vocabulary: Sequence[str], scored: Sequence[Row]) -> np.ndarray:
    """(256,) int64: the scored label of each label of a segmenter, which calls a class by its name or by its query;
    a class that is not scored is background. -1 for labels that it does not have.

    Raises:
        UserError: none of its classes is scored.
    """
    words = {word: i for i, row in enumerate(scored, 1) for word in (row["class"], row["query"])}
    out = np.full(256, -1)
    out[0], out[VOID] = 0, VOID
    out[1 : len(vocabulary) + 1] = [words.get(name, 0) for name in vocabulary]
    if not (out[1 : len(vocabulary) + 1] > 0).any():
        raise UserError(f"expected a vocabulary with some of {', '.join(words)[:80]}, got {', '.join(vocabulary)[:80]}")
    return out


def score_folder(
    items: Iterable[Item], images: Path, labels: Path, table: Sequence[Row], scored: Sequence[Row],
    background: Background,
) -> dict[tuple[str, str], SemanticScores]:  # fmt: skip
    """``score_draws`` on files.

    Args:
        items: rows of the image set ``images``, which name their true label maps.
        labels: folder of label maps, as stage segment or any other tool writes it: ``labels/<id>.png`` and
            ``classes.txt``.
        table: the classes of the true label maps, in the order of their labels from 1.

    Raises:
        UserError: as ``score_draws``; an image without a true label map, label maps that cannot be read or are of
            another form, no ``classes.txt``.
    """
    names = names_of(labels)

    def truth(item: Item) -> np.ndarray:
        if not item.labels:
            raise UserError(f"{images}/index.csv: {item.sample_id}: expected a label map in the column 'labels', got "
                            "none")  # fmt: skip
        return read_labels(images / item.labels)

    def predict(item: Item, size: tuple[int, int]) -> np.ndarray:
        return read_label_map(labels / "labels" / f"{item.sample_id}.png", len(names), size)

    try:
        maps = of_vocabulary(names, scored), of_truth(table, scored)
    except UserError as error:
        raise UserError(f"{labels}/classes.txt: {error}") from None
    return score_draws(items, predict, truth, scored, background, maps)


def score_draws(
    items: Iterable[Item], predict: Callable[[Item, tuple[int, int]], np.ndarray], truth: Callable[[Item], np.ndarray],
    scored: Sequence[Row], background: Background, maps: tuple[np.ndarray, np.ndarray],
) -> dict[tuple[str, str], SemanticScores]:  # fmt: skip
    """Score label maps; -> (data set, draw) -> its confusion matrix, in the order of first appearance.

    Args:
        predict, truth: the label maps of an item, (H, W) uint8, in their own numbers; ``predict`` is told the (H, W)
            of the truth.
        scored: the classes.
        background: as ``SemanticScores`` takes it.
        maps: ``of_vocabulary`` and ``of_truth``.

    Raises:
        UserError: sizes differ, or a label that a map does not have; names the image.
    """
    found: dict[tuple[str, str], SemanticScores] = {}
    names = [row["class"] for row in scored]
    for item in items:
        true = _looked_up(maps[1], truth(item), item.sample_id, "truth")
        predicted = _looked_up(maps[0], predict(item, true.shape), item.sample_id, "prediction")
        draw = found.setdefault((item.dataset, item.seed), SemanticScores(names, background))
        draw.update(predicted, true, name=item.sample_id)
    return found


def _looked_up(lookup: np.ndarray, labels: np.ndarray, id: str, what: str) -> np.ndarray:
    out = lookup[labels]
    if (out < 0).any():
        known = int(np.flatnonzero(lookup[:VOID] >= 0).max())
        raise UserError(f"{id}: {what}: expected labels 0 to {known} or {VOID}, got {int(labels[out < 0].min())}")
    return out


def joined(sets: Sequence[Mapping[tuple[str, str], SemanticScores]]) -> dict[str, dict[str, SemanticScores]]:
    """The first draws of several image sets as one, then the second ones, and so on: -> data set -> draws -> scores.

    Scenes with one and with two objects are two image sets with seeds of their own; their draws (1, 4), (2, 5), (3, 6)
    become ``1+4``, ``2+5``, ``3+6``.

    Raises:
        UserError: the image sets have different numbers of draws of a data set.
    """
    out: dict[str, dict[str, SemanticScores]] = {}
    for name in dict.fromkeys(dataset for found in sets for dataset, _ in found):
        draws = [[(seed, s) for (dataset, seed), s in found.items() if dataset == name] for found in sets]
        draws = [own for own in draws if own]
        counts = sorted({len(own) for own in draws})
        if len(counts) > 1:
            raise UserError(f"expected image sets of the same number of draws, got {counts[0]} and {counts[-1]}")
        out[name] = {}
        for group in zip(*draws, strict=True):
            total = SemanticScores(group[0][1].classes, group[0][1].background)
            for _, scores in group:
                total.merge(scores)
            out[name]["+".join(seed for seed, _ in group if seed)] = total
    return out


def unmeasured(items: Iterable[Item]) -> dict:
    """What ``summarise`` returns where there are no label maps: the same images and draws, and no scores. A table shows
    such a row without numbers."""
    items = list(items)
    draws = dict.fromkeys(item.seed for item in items)
    return {"scores": {}, "images": len(items), "draws": list(draws), "classes": {}}


def summarise(draws: Mapping[str, SemanticScores]) -> dict:
    """``scores`` (means over the draws, and ``<key>_std``, the sample standard deviation, where there are several),
    ``images``, ``draws``, and ``classes`` {class: mean IoU over the draws that have it}."""
    results = [scores.result() for scores in draws.values()]
    keys = [key for key in ("miou", "miou_classes", "accuracy") if all(key in r for r in results)]
    scores: dict[str, float] = {}
    for key in keys:
        values = np.array([r[key] for r in results])
        scores[key] = float(values.mean())
        if len(values) > 1:
            scores[f"{key}_std"] = float(values.std(ddof=1))
    classes = {}
    for name in results[0]["classes"]:
        values = [r["classes"][name] for r in results if r["classes"][name] is not None]
        classes[name] = float(np.mean(values)) if values else None
    return {"scores": scores, "images": sum(r["images"] for r in results), "draws": list(draws), "classes": classes}
