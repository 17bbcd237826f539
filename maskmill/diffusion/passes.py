"""The two journeys through the diffusion model that leave an attention record: generation and inversion."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from maskmill.diffusion.backbone import Backbone, concatenate
from maskmill.diffusion.capture import AttentionCapture, word_weights
from maskmill.diffusion.features import FeatureMean
from maskmill.diffusion.sampling import ddim_invert, ddim_sample, guided, multistep_sample
from maskmill.errors import UserError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RecordShape:
    """What an attention record keeps: time bins of A_c, longest side of the grid of cells of A_s."""

    bins: int
    cells: int


def open_capture(backbone: Backbone, shape: RecordShape) -> AttentionCapture:
    """A capture for this model's U-Net."""
    return AttentionCapture(backbone.unet, shape.cells)


def check_size(backbone: Backbone, size: int) -> None:
    """Refuse a picture side that is no whole number of latent cells; the decoder would return another one."""
    if size % backbone.scale:
        raise UserError(f"generate.size: expected a multiple of {backbone.scale}, the model's latent cell, got {size}")


def generate(
    backbone: Backbone,
    capture: AttentionCapture,
    prompts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    seeds: Sequence[int],
    *,
    size: int,
    steps: int,
    guidance: float,
    negative: str,
    bins: int,
    features: FeatureMean | None = None,
    solver: str = "ddim",
) -> tuple[np.ndarray, list[Arrays], list[Arrays] | None]:
    """Sample one image per prompt and record the attention of its class word; ``solver``: ddim (eta 0) or dpmsolver++.

    Sampling is itself a reverse pass, so the features F^l of a synthetic image cost nothing beside it: those of the
    branch with the prompt.

    Returns:
        Images (B, size, size, 3) uint8, B attention records, and B dicts of features or None.

    Raises:
        UserError: ``size`` does not suit the model.
    """
    check_size(backbone, size)
    condition = backbone.encode_text(list(prompts), size)
    unconditional = backbone.encode_text([negative] * len(prompts), size)
    n_tokens = condition.embeds.shape[1]
    recorded = None if guidance == 1.0 else slice(len(prompts), 2 * len(prompts))
    eps = guided(backbone.noise, condition, unconditional, guidance, concatenate)
    if features is not None:
        features.rows = recorded or slice(None)
    with capture, features or nullcontext():
        capture.begin(word_weights(list(spans), n_tokens).to(backbone.device), bins=bins, conditional=recorded)
        noise = backbone.start_noise(list(seeds), size)
        if solver == "ddim":
            z = ddim_sample(eps, noise, backbone.timesteps(steps), backbone.abar)
        else:
            z = multistep_sample(eps, noise, backbone.multistep(steps))
        records = capture.end()
        means = features.end() if features is not None else None
    return backbone.decode(z), records, means


def invert(
    backbone: Backbone,
    capture: AttentionCapture,
    images: np.ndarray,
    prompts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    *,
    steps: int,
    bins: int,
    features: FeatureMean | None,
) -> tuple[list[Arrays], list[Arrays] | None, np.ndarray]:
    """DDIM inversion of images under their prompts, then the reverse pass (Eq. 7 and 8), both without guidance.

    The attention record comes from the inversion, the features from the reverse pass, which is left out when
    ``features`` is None.

    Args:
        images: (B, S, S, 3) uint8.

    Returns:
        B records, B dicts of features or None, and the relative error |z_0' - z_0| / |z_0| of each latent after both
        passes, (B,) float64, nan without the reverse pass.

    Raises:
        UserError: S does not suit the model.
    """
    check_size(backbone, images.shape[1])
    condition = backbone.encode_text(list(prompts), images.shape[1])
    times = backbone.timesteps(steps)

    def eps(x: torch.Tensor, t: int) -> torch.Tensor:
        return backbone.noise(x, t, condition)

    z = backbone.encode_images(images)
    with capture:
        capture.begin(word_weights(list(spans), condition.embeds.shape[1]).to(backbone.device), bins=bins)
        noise = ddim_invert(eps, z, times, backbone.abar)
        records = capture.end()
    if features is None:
        return records, None, np.full(len(images), np.nan)
    with features:
        back = ddim_sample(eps, noise, times, backbone.abar)
        means = features.end()
    error = (back - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    return records, means, error.double().cpu().numpy()
