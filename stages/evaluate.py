"""Score every method's masks of the test images beside the controls that need no learning.

Inputs:   the image set; its attention records under the right word and under an absent one; the masks of AttentionCut
          (--masks), and of the other --methods in folders whose names append _<method>
Outputs:  metrics/diffusionseg.json (headline numbers, mean and spread over the draws), metrics/evaluate.json
          (everything, with protocols), metrics/plots (curves as CSV and PNG). Numbers are called after the set
          (--name), or after the data sets that it is merged of
Command:  python stages/evaluate.py
Time:     about 20 seconds for 300 scenes
Expect:   decoder above attentioncut above colour + cut; the wrong word's AUROC well below the right word's
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
from maskmill.report.summary import to_json
from maskmill.scores import controls
from maskmill.scores.runs import Prediction, pooled, postprocessing_of, saved_prediction, score_set, truth_of
from maskmill.scores.saliency import PROTOCOL

Predictor = Callable[[Item], Prediction]


def methods(folder: Path, masks: Path, others: list[str], cut: store.Store, params) -> dict[str, Predictor]:
    """Name -> how that method predicts an image: the files of all that were run, A_c alone, and three learning-free
    controls."""
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

    def saved(place: Path) -> Predictor:
        return lambda item: saved_prediction(place, item)

    return {
        "attentioncut": saved(masks),
        **{name: saved(masks.with_name(f"{masks.name}_{name}")) for name in others},
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
                     "wrong_word": {"auroc": controls.mean_auroc(wrong_pairs)["auroc"]}}  # fmt: skip
        if cases:
            out[seed]["own_object_rate"] = controls.own_object_rate(cases)["own_object_rate"]
    return out


def score(name: str, items: list[Item], folder: Path, predictors: dict[str, Predictor], maps: dict) -> tuple:
    """One data set -> its flat headline numbers, its details, and name -> pooled scores for the curves."""
    scored = {n: score_set(progress(items, n, unit="image"), folder, predict) for n, predict in predictors.items()}
    draws = list(scored["attentioncut"])
    runs = []
    for draw in draws:
        run: dict[str, dict] = {n: by_draw[draw].headline() for n, by_draw in scored.items()}
        for key, found in maps.get(draw, {}).items():
            run[key] = {**run.get(key, {}), **found} if isinstance(found, dict) else found
        runs.append(run)
    every = {n: pooled(list(by_draw.values())) for n, by_draw in scored.items()}
    measured = {n: s for n, s in every.items() if s.rows}  # a localisation set has boxes and no masks
    details = {
        "images": len(items), "draws": draws, "per_draw": dict(zip(draws, runs, strict=True)),
        "per_class": {n: s.result()["classes"] for n, s in measured.items()},
        "overall": {n: {k: v for k, v in s.result().items() if k not in ("classes", "protocol")}
                    for n, s in measured.items()},
    }  # fmt: skip
    return controls.summarise_seeds(runs, name), details, measured


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "attentioncut"),
        {"images": "data/world", "records": "data/inverted/world/records",
         "wrong": "data/inverted/world_wrong_word/records", "masks": "data/masks/world",
         "methods": "attentioncut_noprior,decoder,decoder_noprior,kmeans,ncut,crf", "metrics": "metrics",
         "name": "world"},
    )  # fmt: skip
    folder, masks, metrics = Path(args.images), Path(args.masks), Path(args.metrics)
    right, wrong = store.Store(args.records), store.Store(args.wrong)
    items = [item for item in read_table(folder) if item.sample_id in right]
    if not items:
        raise UserError(f"{args.records}: expected records of the images in {folder}/index.csv, found none of them")
    others = [name for name in args.methods.split(",") if name]
    predictors = methods(folder, masks, others, right, params)
    postprocess = {name: postprocessing_of(masks.with_name(f"{masks.name}_{name}")) for name in others}
    details, summary = {}, {}
    shutil.rmtree(metrics / "plots", ignore_errors=True)
    for dataset in dict.fromkeys(item.dataset for item in items):
        name, chosen = dataset or args.name, [item for item in items if item.dataset == dataset]
        with_masks = [item for item in chosen if item.mask]
        maps = raw_map_controls(with_masks, folder, right, wrong, params) if with_masks else {}
        numbers, details[name], curves = score(name, chosen, folder, predictors, maps)
        summary |= numbers
        if curves:
            place, text = metrics / "plots", f"{len(with_masks)} images"
            end = f"_{name}" if dataset else ""
            pr_curves({n: s.curve() for n, s in curves.items()}, place / f"pr{end}.png", place / f"pr{end}.csv",
                      f"{name}: precision and recall, {text}")  # fmt: skip
            iou_distribution({n: s.per_image()["iou"].tolist() for n, s in curves.items()}, place / f"iou{end}.png",
                             place / f"iou{end}.csv", f"{name}: IoU per image, {text}")  # fmt: skip
    postprocess = {"attentioncut": postprocessing_of(masks), **postprocess}
    document = {"protocol": {**PROTOCOL, **controls.PROTOCOL}, "postprocess": postprocess, "datasets": details}
    write_atomically(metrics / "evaluate.json", to_json(document))
    write_atomically(metrics / "diffusionseg.json", to_json(dict(sorted(summary.items()))))
    for key in (k for k in summary if k.endswith((".iou", ".auroc", "own_object_rate"))):
        print(f"{key:36s} {summary[key]:.3f}")


if __name__ == "__main__":
    exit_cleanly(main)
