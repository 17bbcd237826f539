"""Score the five steps of concept distillation on the held-out pictures: preliminary masks, a U-Net on them, refined
masks, a U-Net on those, a U-Net on those and the synthetic set (the paper's Table 2).

Inputs:   the test set with masks or boxes; a masks folder for each step (an empty name leaves it out), and for the
          supervised comparison
Outputs:  --metrics: flat numbers <name>.distill_<step>.{iou,acc,miou}, pooled over the pixels of a draw, mean over the
          draws with _std, and <name>.distill.auroc of the mean attention; for a set that has boxes alone box_iou in
          their place; <plots>.csv and .png: bars of the steps; with --rows: the same as rows of a paper's table
Command:  python stages/evaluate_distillation.py --images data/concepts/bird/test --masks data/distill/bird
Time:     about 5 seconds for 180 scenes of the miniature
Expect:   refined masks above the preliminary ones, the U-Nets above the masks that they learnt from
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import Item, image_size, parse_boxes, read_mask, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.plots import table_bars
from maskmill.report.summary import to_json
from maskmill.scores import pooled, saliency
from maskmill.scores.controls import summarise_seeds
from maskmill.scores.pooled import BoxIoU, PooledAuroc
from maskmill.scores.runs import saved_prediction, truth_of
from maskmill.scores.saliency import SaliencyScores

STEPS = {  # step -> (folder below --masks, the row's name in the paper's Table 2)
    "pre": ("preliminary_test", "Preliminary masks M_pre"),
    "unet_pre": ("masks_unet_pre", "U-Net trained on (D, M_pre)"),
    "refined": ("refined_test", "Refined masks M"),
    "unet": ("masks_unet", "U-Net trained on D_s"),
    "unet_syn": ("masks_unet_syn", "U-Net trained on D_s + D'_s"),
    "supervised": ("", "Supervised U-Net"),
}
PROTOCOL = {
    **{key: saliency.PROTOCOL[f"{key}_pooled"] for key in ("acc", "iou", "miou")},
    "auroc": pooled.PROTOCOL["auroc_pooled"] + "; each map is brought to 0..1 first",
    "box_iou": pooled.PROTOCOL["box_iou"],
    "std": "sample standard deviation over the draws",
}


def score_masks(items: list[Item], folder: Path, masks: Path) -> dict[str, float]:
    """Pooled scores of one draw."""
    scores = SaliencyScores()
    for item in items:
        scores.update(None, saved_prediction(masks, item)[1], truth_of(folder, item), name=item.sample_id)
    found = scores.result()
    return {key: found[f"{key}_pooled"] for key in ("acc", "iou", "miou")}


def score_boxes(items: list[Item], folder: Path, masks: Path) -> dict[str, float]:
    """Mean box IoU of one draw."""
    scores = BoxIoU()
    for item in items:
        mask = read_mask(masks / "masks" / f"{item.sample_id}.png")
        if mask.shape != (size := image_size(folder / item.image)):
            raise UserError(f"sample {item.sample_id}: expected a mask of the image's size {size}, got {mask.shape}")
        scores.update(mask, parse_boxes(item.boxes))
    return {"box_iou": scores.result()["box_iou"]}


def auroc(items: list[Item], folder: Path, masks: Path) -> dict[str, float]:
    """AUROC of the soft maps of one draw."""
    curve = PooledAuroc()
    for item in items:
        curve.update(saved_prediction(masks, item)[0], truth_of(folder, item))
    return {"auroc": curve.result()["auroc_pooled"]}


def with_truth(items: list[Item], table: Path) -> tuple[list[Item], bool]:
    """The items that can be scored, and whether by masks; all have masks, or all have boxes."""
    masked, boxed = ([item for item in items if getattr(item, kind)] for kind in ("mask", "boxes"))
    if len(masked) == len(items):
        return items, True
    if masked or len(boxed) != len(items):
        raise UserError(f"{table}: expected a mask for every picture, or boxes for every one, got {len(masked)} with a "
                        f"mask and {len(boxed)} with boxes of {len(items)}")  # fmt: skip
    return items, False


def row_of(scores: dict, items: list[Item], draws: list[str]) -> dict:
    """One row of a paper's table, see ``maskmill.report.rows``."""
    told = {key: text for key, text in PROTOCOL.items() if key in scores or key == "std"}
    return {"datasets": {"": {"scores": scores, "images": len(items), "draws": draws}}, "protocol": told}


def bars(found: dict[str, dict], metric: str, name: str, word: str, place: str) -> None:
    """The steps as bars, ours alone."""
    rows = [{"row": STEPS[step][1], "what": "", "published": {},
             "ours": {word: {metric: {"mean": scores[metric], "std": scores.get(f"{metric}_std")}}}}
            for step, scores in found.items()]  # fmt: skip
    result = {"table": name, "rows": rows, "units": {metric: "fraction"}}
    table_bars(result, metric, f"{place}.png", f"{place}.csv")


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("distill",),
        {"images": "data/concepts/bird/test", "masks": "data/distill/bird", "name": "world",
         "metrics": "metrics/distillation.json", "plots": "metrics/distill/steps", "rows": "",
         **{step: folder for step, (folder, _) in STEPS.items()}},
    )  # fmt: skip
    folder, name = Path(args.images), args.name
    items, by_masks = with_truth(read_table(folder), folder / "index.csv")
    draws = list(dict.fromkeys(item.seed for item in items))
    parts = [[item for item in items if item.seed == draw] for draw in draws]
    steps = {step: Path(args.masks) / getattr(args, step) for step in STEPS if getattr(args, step)}
    found = {}
    with progress(None, "evaluate_distillation", total=len(steps) * len(items), unit="mask") as bar:
        for step, masks in steps.items():
            scored = []
            for part in parts:
                scored.append((score_masks if by_masks else score_boxes)(part, folder, masks))
                bar.update(len(part))
            found[step] = summarise_seeds(scored, "")
    numbers = {f"{name}.distill_{step}.{key}": value for step, scores in found.items() for key, value in scores.items()}
    if by_masks and "pre" in steps:
        ranked = summarise_seeds([auroc(part, folder, steps["pre"]) for part in parts], "")
        numbers |= {f"{name}.distill.{key}": value for key, value in ranked.items()}
    if args.rows:
        for step, scores in found.items():
            write_atomically(Path(args.rows) / f"{step}.json", to_json(row_of(scores, items, draws)))
    bars(found, "iou" if by_masks else "box_iou", f"{name}, {params.distill.word}", params.distill.word, args.plots)
    write_atomically(args.metrics, to_json(dict(sorted(numbers.items()))))
    best = "  ".join(f"{step} {scores['iou' if by_masks else 'box_iou']:.3f}" for step, scores in found.items())
    print(f"{args.metrics}: {len(items)} pictures of {params.distill.word!r}: {best}")


if __name__ == "__main__":
    exit_cleanly(main)
