"""The miniature's AutoencoderKL: latents a quarter of the picture's side."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from maskmill.pretraining.loop import batch_rng, share

CROP = 32  # the net is convolutional throughout, so it learns from crops and four times as many pictures


def build(channels: list[int], latent_channels: int, size: int) -> AutoencoderKL:
    """``len(channels)`` levels, so a down-sampling of 2 ** (len - 1)."""
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1"""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def loss(vae: AutoencoderKL, step: int, images: np.ndarray, batch: int, seed: int, kl_weight: float) -> torch.Tensor:
    """Squared error of the reconstruction plus the weighted Kullback-Leibler term, on random crops."""
    rng, generator = batch_rng(seed, step)
    index = np.sort(rng.integers(0, len(images), batch))
    top, left = rng.integers(0, images.shape[1] - CROP + 1, (2, batch))
    crops = np.stack([images[i, y : y + CROP, x : x + CROP] for i, y, x in zip(index, top, left, strict=True)])
    x = to_tensor(crops).to(vae.device)  # (B, 3, 32, 32)
    side = CROP // 2 ** (len(vae.config.block_out_channels) - 1)
    noise = torch.randn((batch, vae.config.latent_channels, side, side), generator=generator).to(x)
    x, noise = x[share()], noise[share()]
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + posterior.std * noise
    y = vae.decode(z).sample
    return (y.float() - x).pow(2).mean() + kl_weight * posterior.kl().mean() / x[0].numel()


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, images: np.ndarray, half: bool, batch: int = 20) -> torch.Tensor:
    """Posterior means of all pictures, unscaled: (n, C, h, w) float16. Small batches stay in the processor's cache."""
    out = torch.empty(len(images), 0)
    for i in tqdm(range(0, len(images), batch), desc="latents", unit_scale=batch, unit="picture", mininterval=2):
        x = to_tensor(images[i : i + batch]).to(vae.device, memory_format=torch.channels_last)
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
            z = vae.encode(x).latent_dist.mean
        if i == 0:
            out = torch.empty(len(images), *z.shape[1:], dtype=torch.float16)
        out[i : i + batch] = z.cpu()
    return out


@torch.inference_mode()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of encode-decode, in dB (peak 255, output rounded)."""
    values = []
    for i in range(0, len(images), 50):
        x = to_tensor(images[i : i + 50]).to(vae.device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error = ((y - x) * 127.5).round().pow(2).mean((1, 2, 3))
        values.append(10 * torch.log10(255.0**2 / error.clamp_min(1e-9)))
    return float(torch.cat(values).mean())
