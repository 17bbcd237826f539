"""Score the masks of the held-out scenes beside the controls that need no learning.

Inputs:   the image set, its attention records under the right word and under an absent one, its masks
Outputs:  metrics/summary.json (headline numbers, mean and spread over the draws), metrics/evaluate.json (everything,
          with protocols), metrics/plots (curves as CSV and PNG)
Command:  python stages/evaluate.py
Time:     about 20 seconds for 600 scenes
Expect:   attentioncut above colour + cut, the wrong word's AUROC well below the right word's
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskmill import store, world
from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_labels, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks import baselines
from maskmill.masks.attentioncut import CutParams, attention_cut, cross_map
from maskmill.report.plots import iou_distribution, pr_curves
from maskmill.report.summary import merge_summary, to_json
from maskmill.scores import controls
from maskmill.scores.runs import Prediction, Run, pooled, saved_prediction, score_set, truth_of
from maskmill.scores.saliency import PROTOCOL


def methods(folder: Path, masks: Path, cut: store.Store, params) -> dict[str, Callable[[Item], Prediction]]:
    """Name -> how that method predicts an image: AttentionCut's files, A_c alone, and three learning-free controls."""
    only_ac = {"use_cross": True, "use_refined": False, "semantic": False, "spatial": False}  # Table 6, row 1
    cut_ac = CutParams(**{**vars(params.attentioncut), **only_ac})

    def picture(item: Item) -> np.ndarray:
        return read_image(folder / item.image)

    def ac(item: Item) -> Prediction:
        rng = item_rng(params.seed, item.sample_id)
        found = attention_cut(cut.read(item.sample_id), picture(item), cut_ac, rng)
        return found.objectness, found.mask

    def plain(baseline: baselines.Baseline) -> Prediction:
        return baseline.soft, baseline.mask

    return {
        "attentioncut": lambda item: saved_prediction(masks, item),
        "ac": ac,
        "colour": lambda item: plain(baselines.colour_distance(picture(item))),
        "colourcut": lambda item: plain(baselines.colour_cut(picture(item))),
        "centre": lambda item: plain(baselines.centre_prior(*picture(item).shape[:2])),
    }


def raw_map_controls(items: list[Item], folder: Path, right: store.Store, wrong: store.Store, params) -> dict:
    """Per draw: AUROC of A_c under the right and under an absent word, and how often it prefers its own object."""
    p = params.attentioncut
    out: dict[str, dict] = {}
    for seed in dict.fromkeys(item.seed for item in items):
        pairs, wrong_pairs, cases = [], [], []
        for item in (i for i in items if i.seed == seed):
            truth = truth_of(folder, item)
            soft = cross_map(right.read(item.sample_id), truth.shape, p.top_k, p.t_max)
            pairs.append((soft, truth))
            if item.sample_id in wrong:
                other_word = cross_map(wrong.read(item.sample_id), truth.shape, p.top_k, p.t_max)
                wrong_pairs.append((other_word, truth))
            labels = read_labels(folder / item.labels) if item.labels else np.zeros(truth.shape, np.uint8)
            other = (labels >= 1) & (labels <= len(world.CLASSES)) & ~truth
            if other.any():
                cases.append((soft, truth, other))
        out[seed] = {"ac": {"auroc": controls.mean_auroc(pairs)["auroc"]},
                     "wrong_word": {"auroc": controls.mean_auroc(wrong_pairs)["auroc"]},
                     "own_object_rate": controls.own_object_rate(cases)["own_object_rate"]}  # fmt: skip
    return out


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "attentioncut"),
        {"images": "data/world", "records": "data/inverted/world/records",
         "wrong": "data/inverted/world_wrong_word/records", "masks": "data/masks/world",
         "metrics": "metrics", "name": "world"},
    )  # fmt: skip
    folder, masks, metrics = Path(args.images), Path(args.masks), Path(args.metrics)
    right, wrong = store.Store(args.records), store.Store(args.wrong)
    items = [item for item in read_table(folder) if item.sample_id in right]
    if not items:
        raise UserError(f"{args.records}: expected records of the images in {folder}/index.csv, found none of them")
    scored: dict[str, dict[str, Run]] = {}
    for name, predict in methods(folder, masks, right, params).items():
        scored[name] = score_set(progress(items, name, unit="image"), folder, predict)
    seeds = list(scored["attentioncut"])
    maps = raw_map_controls(items, folder, right, wrong, params)
    runs = []
    for seed in seeds:
        run: dict[str, object] = {name: by_seed[seed].headline() for name, by_seed in scored.items()}
        run["ac"] = {**run["ac"], **maps[seed]["ac"]}
        runs.append({**run, "wrong_word": maps[seed]["wrong_word"], "own_object_rate": maps[seed]["own_object_rate"]})
    summary = controls.summarise_seeds(runs, args.name)
    every = {name: pooled(list(by_seed.values())) for name, by_seed in scored.items()}

    shutil.rmtree(metrics / "plots", ignore_errors=True)
    pr_curves({n: s.curve() for n, s in every.items()}, metrics / "plots/pr.png", metrics / "plots/pr.csv",
              f"{args.name}: precision and recall, {len(items)} images")  # fmt: skip
    iou_distribution({n: s.per_image()["iou"].tolist() for n, s in every.items()}, metrics / "plots/iou.png",
                     metrics / "plots/iou.csv", f"{args.name}: IoU per image, {len(items)} images")  # fmt: skip
    detail = {
        "data": args.name, "images": len(items), "draws": seeds, "protocol": {**PROTOCOL, **controls.PROTOCOL},
        "per_draw": dict(zip(seeds, runs, strict=True)),
        "per_class": {n: s.result()["classes"] for n, s in every.items()},
        "overall": {n: {k: v for k, v in s.result().items() if k not in ("classes", "protocol")}
                    for n, s in every.items()},
    }  # fmt: skip
    write_atomically(metrics / "evaluate.json", to_json(detail))
    merge_summary(metrics / "summary.json", summary, replace_prefix=args.name)
    for key in ("attentioncut.iou", "ac.auroc", "colourcut.iou", "wrong_word.auroc", "own_object_rate"):
        print(f"{args.name}.{key:18s} {summary[f'{args.name}.{key}']:.3f}")


if __name__ == "__main__":
    exit_cleanly(main)
