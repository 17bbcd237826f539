"""Train a segmenter on image-mask pairs: the decoder on diffusion features (DiffusionSeg 3.3.2), or an end-to-end net.

Inputs:   an image set; masks: a masks folder, or "own" for those that the set names; for the decoder the features of
          its images (a store of features F^l; empty for an end-to-end net, which sees the pictures)
Outputs:  <out>/model.safetensors and config.json; <curve>.csv and <curve>.png: loss, and loss and IoU on pairs that
          were left out of the training (against the masks given, not against any ground truth)
Command:  python stages/train_decoder.py --images data/generated/set --masks data/masks/generated --out data/decoder
Time:     about a minute for the miniature's decoder on 2 cores; killed, it goes on at the last checkpoint
Expect:   a falling loss; no ground truth of any real image is read
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from maskmill import store, training, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments
from maskmill.datasets.table import Item, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import find_word
from maskmill.report.training import training_curve
from maskmill.segmenters.models import build, save_model
from maskmill.segmenters.pairs import Pairs, augment, channel_statistics, mask_path, segment_loss, validation_scores

CODE = ("maskmill.training", "maskmill.segmenters.decoder", "maskmill.segmenters.models", "maskmill.segmenters.pairs")


def split(items: list[Item], pairs: int, share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(to train on, to validate on): at most ``pairs`` of the set (0: all), drawn with the seed; of two sizes the
    smaller is part of the larger, and both leave out the same validation pairs."""
    order = np.random.default_rng([23, seed]).permutation(len(items))
    held = round(share * len(items))
    kept = order[held:] if not pairs else order[held:][:pairs]
    if pairs > len(kept):
        raise UserError(f"train_decoder.pairs {pairs}: expected at most {len(kept)}, what the set holds without its "
                        f"{held} validation pairs")  # fmt: skip
    return [items[i] for i in sorted(kept)], [items[i] for i in sorted(order[:held])]


def alone(items: list[Item]) -> list[Item]:
    """The pairs whose prompt names no second class of the set."""
    classes = {item.cls for item in items}
    return [i for i in items if not any(find_word(i.caption, other) for other in classes - {i.cls, ""})]


def describe(p, pairs: Pairs) -> tuple[dict, tuple | None]:
    """The model's description, and for the decoder the statistics of its inputs."""
    if p.model != "fcn":
        width = {"decoder_width": p.decoder_width} if p.model == "unet" else {}
        return {"model": p.model, "encoder": p.encoder, "encoder_weights": p.encoder_weights, **width,
                "size": p.size}, None  # fmt: skip
    channels, mean, std = channel_statistics(pairs)
    return {"model": "fcn", "channels": channels, "width": p.width, "kernel": p.kernel, "upsample": p.upsample,
            "size": p.size}, (mean, std)  # fmt: skip


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "train_decoder"),
        {"images": "data/generated/set", "masks": "data/masks/generated",
         "features": "data/inverted/generated/features", "out": "data/decoder", "scratch": "scratch/train_decoder",
         "curve": "metrics/training/decoder"},
    )  # fmt: skip
    p, settings, folder = params.train_decoder, runtime(), Path(args.images)
    workers.pin(settings.device)
    if p.model == "fcn" and not args.features:
        raise UserError("--features: expected a store of features for train_decoder.model fcn, got ''")
    features = store.Store(args.features) if p.model == "fcn" else None
    items = [i for i in read_table(folder) if features is None or i.sample_id in features]
    items = alone(items) if p.alone else items
    learnt, held = split(items, p.pairs, p.validation, params.seed)
    pairs = Pairs(learnt, folder, args.masks, features, p.size)
    unseen = Pairs(held, folder, args.masks, features, p.size) if held else None
    config, statistics = describe(p, pairs)
    torch.manual_seed(params.seed)
    model = build(config)
    if statistics:
        model.standardise_by(*statistics)
    stamp = store.fingerprint(
        asdict(p), params.seed, [i.sample_id for i in learnt], features.fingerprint if features else
        [store.hash_file(folder / i.image) for i in learnt],
        [store.hash_file(mask_path(folder, i, args.masks)) for i in learnt + held], store.code_hashes(*CODE),
    )  # fmt: skip
    engine = training.accelerator(settings.device, p.precision)

    def loss_of(model: torch.nn.Module, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        inputs, targets = augment(*pairs.batch(rows, engine.device), generator, p.flip, p.noise)
        return segment_loss(model, inputs, targets)

    recipe = training.Recipe(p.steps, p.batch, p.lr, p.decay_share, p.ema, p.precision, p.accumulate, p.log_every)
    with progress(None, f"train {p.model}", total=p.steps, unit="step") as bar:
        history = training.fit(
            model, len(pairs), loss_of, recipe, seed=params.seed, checkpoint=Path(args.scratch) / f"{stamp}.pt",
            stamp=stamp, accelerator=engine, bar=bar,
            validate=(lambda m: validation_scores(m, unseen, p.batch, engine.device)) if unseen else None,
        )  # fmt: skip
    if not engine.is_main_process:
        return
    with store.fresh_folder(args.out) as aside:
        save_model(model, config, aside)
    title = f"{p.model} on {len(pairs)} pairs, {len(held)} left out"
    training_curve(history, Path(f"{args.curve}.png"), Path(f"{args.curve}.csv"), title)
    shutil.rmtree(args.scratch, ignore_errors=True)
    last = history[-1]
    print(f"{args.out}: {p.model}, {len(pairs)} pairs, " + "  ".join(f"{k} {last[k]:.3f}" for k in last if k != "step"))


if __name__ == "__main__":
    exit_cleanly(main)
