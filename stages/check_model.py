"""Measure the miniature itself: is its world learnt well enough for its masks to mean something?

Inputs:   data/mini, its loss curves, scenes of its own, the generated set
Outputs:  metrics/mini.json: VAE fidelity, its CLIP on held-out scenes, how often a generated picture shows its class;
          metrics/grids/mini.png: pictures of every class; metrics/loss/pretrain.png: the loss curves
Command:  python stages/check_model.py
Time:     about 10 seconds
Expect:   vae.psnr at least 26 dB, clip.one_object at least .95, generated.recognised at least .80 for every class
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import workers, world
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, read_image, read_table
from maskmill.diffusion.backbone import Backbone
from maskmill.errors import exit_cleanly
from maskmill.pretraining import vae
from maskmill.prompts import find_word
from maskmill.report.grids import Column, Row, picture_grid
from maskmill.report.summary import to_json
from maskmill.report.training import loss_curve
from maskmill.zeroshot import ZeroShot

SCENES = 400
COLUMNS = 8  # pictures of a class in the grid
FIRST_SEED = 5_000_000  # scenes that neither the training nor the held-out draws use


def clip_accuracy(clip: ZeroShot, scenes: list[world.Scene]) -> float:
    """Share of scenes whose most probable class is one that they show."""
    p = clip.probabilities([s.image for s in progress(scenes, "clip", unit="image")])
    best = [clip.classes[k] for k in p.argmax(1)]
    return float(np.mean([b in {t.cls for t in s.things} for b, s in zip(best, scenes, strict=True)]))


def recognised(clip: ZeroShot, items: list[Item], folder: Path) -> dict[str, float]:
    """Share of generated pictures whose most probable class is their own, overall and per class of the world; of
    prompts that name one class, as a picture of two is rightly called after either."""
    known = [item for item in items if [c for c in clip.classes if find_word(item.caption, c)] == [item.cls]]
    if not known:
        return {}
    best = clip.probabilities([read_image(folder / item.image) for item in known]).argmax(1)
    right = pd.DataFrame({"cls": [i.cls for i in known], "right": [clip.classes[k] for k in best]})
    right["right"] = right["right"] == right["cls"]
    shares = {f"recognised.{cls}": float(share) for cls, share in right.groupby("cls")["right"].mean().items()}
    return {**shares, "recognised": float(right["right"].mean()), "count": len(right)}


def class_rows(items: list[Item], folder: Path) -> list[Row]:
    """A row of the picture grid per class, with its first ``COLUMNS`` generated pictures."""
    rows = []
    for cls in sorted({item.cls for item in items}):
        group = [item for item in items if item.cls == cls][:COLUMNS]
        pictures = [read_image(folder / item.image) for item in group]
        rows.append(Row(pictures[0], {str(k): p for k, p in enumerate(pictures)}, group[0].caption or cls, cls))
    return rows


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("model", "world"),
        {"generated": "data/generated/set", "curves": "metrics/pretrain", "metrics": "metrics"},
    )  # fmt: skip
    m, settings, folder = params.model, runtime(), Path(args.generated)
    workers.pin(settings.device)
    items = read_table(folder)
    clip = ZeroShot(m.clip, world.CLASSES, device=settings.device)
    alone = [world.render(FIRST_SEED + i, params.world.size, 0.0) for i in range(SCENES)]
    pairs = [world.render(FIRST_SEED + i, params.world.size, 1.0) for i in range(SCENES)]
    backbone = Backbone(m.id, m.revision, m.dtype, settings.device)
    numbers = {
        "mini.vae.psnr": vae.psnr(backbone.vae, np.stack([s.image for s in pairs[:200]])),
        "mini.clip.one_object": clip_accuracy(clip, alone),
        "mini.clip.two_objects": clip_accuracy(clip, pairs),
    }
    numbers |= {f"mini.generated.{key}": value for key, value in recognised(clip, items, folder).items()}
    rows = class_rows(items, folder)
    columns = tuple(Column(str(k), f"{k + 1}", "image") for k in range(max(len(r.panels) for r in rows)))
    picture_grid(rows, columns, Path(args.metrics) / "grids/mini.png", "Generated pictures, class by class", 128)
    curves = {p.stem: pd.read_csv(p) for p in sorted(Path(args.curves).glob("*.csv"))}
    loss_curve({n: (c["step"].tolist(), c["loss"].tolist()) for n, c in curves.items()},
               Path(args.metrics) / "loss/pretrain.png", Path(args.metrics) / "loss/pretrain.csv",
               "Training loss of the miniature's parts", log=True)  # fmt: skip
    rounded = {k: round(v, 6) for k, v in sorted(numbers.items())}
    write_atomically(Path(args.metrics) / "mini.json", to_json(rounded))
    print("\n".join(f"{k:34s} {v:.3f}" for k, v in rounded.items()))


if __name__ == "__main__":
    exit_cleanly(main)
