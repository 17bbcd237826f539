"""What a process of several does that torchrun would start: train and differentiate its share, save what came out.

Tests run the same functions in one process and compare.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maskmill.pretraining import clip, loop, unet, vae

STEPS, BATCH = 60, 8


def regression_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Squared error of a noisy linear law, on rows drawn from the step's own generator."""
    rng, _ = loop.batch_rng(0, step)
    x = rng.standard_normal((BATCH, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.1 * rng.standard_normal((BATCH, 1)).astype(np.float32)
    x, y = torch.from_numpy(x)[loop.share()], torch.from_numpy(y)[loop.share()]
    return (model(x) - y).pow(2).mean()


def regression(
    checkpoint: Path, steps: int = STEPS, half: bool = False, norm: bool = False, loss_of=regression_loss
) -> tuple[nn.Module, list]:
    """-> the trained model (its average weights) and the curve. ``norm`` adds a layer with running statistics."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Tanh(), nn.Linear(4, 1)]
    model, schedule = nn.Sequential(*layers), loop.Schedule(steps, BATCH, lr=0.02, warmup=5, ema=0.9)
    return model, loop.train("toy", model, loss_of, schedule, checkpoint, torch.device("cpu"), half)


def gradients() -> dict[str, torch.Tensor]:
    """The gradient of each part's loss on one batch, averaged over the processes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    tokens = torch.from_numpy(rng.integers(0, 30, (12, 2, 6)))
    latents = torch.from_numpy(rng.standard_normal((12, 4, 8, 8)).astype(np.float32))
    torch.manual_seed(0)
    denoiser = unet.build([16, 16, 16], 8, 2, 1, 4, 8, 6, 40, 38, 39)
    autoencoder = vae.build([8, 8], 4, 64)
    judge = clip.build(clip.config(8, [1, 1, 1, 1], 16, 64, 40, 6))
    abar = unet.scheduler().alphas_cumprod
    losses = {
        "unet": (denoiser, lambda: unet.loss(denoiser, 5, latents, tokens, tokens[0, 0], abar, 4, 1, (380, 850), 0.2)),
        "vae": (autoencoder, lambda: vae.loss(autoencoder, 5, images, 4, 1, 1e-3)),
        "clip": (judge, lambda: clip.loss(judge, 5, images, tokens, 6, 1)),
    }
    out = {}
    for name, (model, loss) in losses.items():
        value = loss()
        value.backward()
        if torch.distributed.is_initialized():
            loop._average_gradients(model)
        out[f"{name}.loss"] = torch.tensor(loop._mean_over_processes(value.detach()))
        out |= {f"{name}.{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    return out


def one_of_two(rank: int, folder: Path, port: int) -> None:
    """Rank 0 or 1 of two processes; leaves rank-<rank>.pt in ``folder``."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    torch.set_num_threads(1)
    writes = loop.join_launcher()
    assert writes == (rank == 0)
    with loop.one_at_a_time():
        found = sorted(p.name for p in folder.glob("block-*"))
        assert found == [f"block-{r}" for r in range(rank)], found  # the first process left its file before the second
        (folder / f"block-{rank}").touch()
    model, curve = regression(folder / "both.pt")
    state = {"model": model.state_dict(), "curve": curve, "gradients": gradients()}
    torch.save(state, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
