"""The miniature's denoising U-Net, its text encoder, and their joint training on latents and captions."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from maskmill.pretraining.loop import batch_rng, share

MID_SHARE = 0.75  # of the time steps is drawn between t_low and t_high, where the word still matters


class Denoiser(nn.Module):
    """U-Net and text encoder in one module, because they are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(z, t, self.text_encoder(tokens).last_hidden_state).sample


def build(channels: list[int], text_dim: int, heads: int, layers_per_block: int, latent_channels: int, latent_size: int,
          context: int, vocab_size: int, bos: int, eos: int) -> Denoiser:  # fmt: skip
    """Three levels, cross-attention at the two finer ones, none in the middle.

    The text encoder is a CLIPTextModel with no transformer layer: token embedding + position embedding + norm. A deeper
    causal one moves the caption's content into the padding, and the attention follows it there, away from the words.
    """
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size, hidden_size=text_dim, intermediate_size=text_dim, num_hidden_layers=0,
            num_attention_heads=4, max_position_embeddings=context, projection_dim=text_dim,
            bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=layers_per_block,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=text_dim,
        attention_head_dim=heads,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )
    nn.init.normal_(text_encoder.get_input_embeddings().weight, std=1.0)
    return Denoiser(unet, text_encoder)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.4's noise schedule, deterministic sampling."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def loss(
    model: Denoiser,
    step: int,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    empty: torch.Tensor,
    abar: torch.Tensor,
    batch: int,
    seed: int,
    t_range: tuple[int, int],
    uncond: float,
) -> torch.Tensor:
    """Weighted noise-prediction loss.

    ``latents`` (n, C, h, w) scaled to unit variance, ``tokens`` (n, captions, context), ``empty`` (context,) the empty
    prompt that replaces a share ``uncond`` of the captions, ``abar`` (1000,). The weight sqrt((1 - abar) / abar),
    clipped to 0.4 .. 3, moves effort to the noisy steps, where a blob may still become a bird or a dog.
    """
    rng, generator = batch_rng(seed, step)
    device = abar.device
    index = np.sort(rng.integers(0, len(latents), batch))
    z = latents[index].float().to(device)  # (B, C, h, w)
    text = tokens[index, rng.integers(0, tokens.shape[1], batch)].long()
    text = torch.where(torch.from_numpy(rng.random(batch) < uncond)[:, None], empty[None], text).to(device)
    mid = rng.random(batch) < MID_SHARE
    t = np.where(mid, rng.integers(t_range[0], t_range[1], batch), rng.integers(0, len(abar), batch))
    t = torch.from_numpy(t).to(device)
    noise = torch.randn(z.shape, generator=generator).to(device)
    z, noise, text, t = z[share()], noise[share()], text[share()], t[share()]
    a = abar[t][:, None, None, None]
    noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).to(memory_format=torch.channels_last)
    error = (model(noisy, t, text).float() - noise).pow(2).mean((1, 2, 3))  # (B,)
    weight = ((1 - abar[t]) / abar[t]).sqrt().clamp(0.4, 3.0)
    return (weight * error).mean()
