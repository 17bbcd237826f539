"""Train the miniature: a Stable-Diffusion-like pipeline and a CLIP, on captions and pictures of the procedural world.

Inputs:   params.yaml: pretrain, world.size, world.two_objects, seed. Masks are not among them.
Outputs:  data/mini: a diffusers pipeline folder (vae, unet, text_encoder, tokenizer, scheduler), clip/ for open_clip;
          metrics/pretrain: loss curves as CSV (stage check_model draws them)
Command:  python stages/pretrain.py, or on several processes
          LAUNCH="torchrun --nproc-per-node 2" OMP_NUM_THREADS=1 dvc repro pretrain
Time:     about 1.5 hours on 2 cores; interrupted, the same command goes on at the last checkpoint (every 90 seconds).
          MASKMILL_COMPILE=1 compiles the U-Net first (3 minutes) and trains it about a third faster
Expect:   the scores of stage check_model
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.errors import exit_cleanly
from maskmill.pretraining import clip, run
from maskmill.pretraining.loop import join_launcher


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "world", "pretrain"),
        {"out": "data/mini", "metrics": "metrics/pretrain", "scratch": "scratch/pretrain"},
    )  # fmt: skip
    writes = join_launcher()
    device = torch.device(runtime().device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    shop = run.open_workshop(params.pretrain, params.world, params.seed, Path(args.scratch), device)
    autoencoder, latents, vae_curve = run.train_vae(shop)
    judge, judge_config, clip_curve = run.train_clip(shop)
    denoiser, unet_curve = run.train_unet(shop, autoencoder, latents, bool(os.environ.get("MASKMILL_COMPILE")))
    if not writes:
        return
    out, metrics = Path(args.out), Path(args.metrics)
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    run.assemble(shop, autoencoder, denoiser).save_pretrained(aside, safe_serialization=True)
    clip.save(judge, judge_config, shop.words, aside / "clip")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    for name, curve in {"vae": vae_curve, "clip": clip_curve, "unet": unet_curve}.items():
        rows = "".join(f"{step},{loss:.6f}\n" for step, loss in curve)
        write_atomically(metrics / f"{name}.csv", "step,loss\n" + rows)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    print(f"{out}: {size:.1f} MB")


if __name__ == "__main__":
    exit_cleanly(main)
