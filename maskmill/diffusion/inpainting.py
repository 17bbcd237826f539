"""Concept distillation (3.2, appendix B and F): the diffusion model learns the two concepts y_f = "a photo of a bird"
and y_b = "a photo of a background", and then paints the object over.

Fine-tuning sees each image under one of two objectives, with equal odds:

    y_f   the noise loss of the whole image
    y_b   the noise loss inside R = (a random rectangle) minus M_pre only

In both, the U-Net is given the whole noisy latent. The loss of a sample is the mean over the cells that count, so that
both objectives weigh the same whatever the rectangle's area. Text encoder and autoencoder are not part of it: latents
and text embeddings come in ready made.

Inpainting starts from z~_0 = z_0 (1 - M_pre) + z M_pre: the object's cells become noise. At every step of DDIM (eta 0)
the other cells are set to the image's own latent, noised to that step's level with fresh noise; the end result has the
image's own latent there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from maskmill.diffusion.backbone import Backbone, Condition, concatenate, tensor_names
from maskmill.diffusion.noise import diffuse, keyed_noise
from maskmill.diffusion.sampling import Predictor, ddim_sample, guided
from maskmill.errors import UserError

TRIES = 100


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectangles:
    """Which rectangles are drawn, as shares of the latent; the defaults are the authors' numbers for 64x64 latents.

    Attributes:
        side: each side is longer than this share of the latent's (10 of 64 cells).
        area: least and largest area, both included (16^2 and 32^2 of 64^2 cells).
        background: least share of a rectangle that M_pre leaves free.
    """

    side: float = 10 / 64
    area: tuple[float, float] = (1 / 16, 1 / 4)
    background: float = 2 / 3


RULE = Rectangles()


@dataclass(frozen=True)
class Times:
    """How the time t of a sample is drawn: with odds ``share`` from low..high - 1, else from all times, each evenly.

    The paper draws from all (``share`` 0). What a picture shows is decided in the middle of the diffusion time, so a
    short fine-tuning learns more from there.
    """

    share: float = 0.0
    low: int = 0
    high: int = 1000

    def draw(self, rng: np.random.Generator, times: int) -> int:
        """t in 0..times-1; with ``share`` 0 one number is drawn from ``rng``."""
        inside = self.share > 0 and rng.random() < self.share
        return int(rng.integers(self.low, self.high)) if inside else int(rng.integers(times))


EVEN = Times()


def background_region(preliminary: np.ndarray, rng: np.random.Generator, rule: Rectangles = RULE) -> np.ndarray:
    """R: the cells of a random rectangle that are not object, (h, w) bool.

    Two corners are drawn evenly until the rectangle between them keeps the rule. After 100 tries R is all background,
    which is no cell at all where M_pre covers everything.

    Args:
        preliminary: M_pre, (h, w) bool.
    """
    h, w = preliminary.shape
    free = ~preliminary
    for _ in range(TRIES):
        y0, y1 = np.sort(rng.integers(0, h + 1, 2))
        x0, x1 = np.sort(rng.integers(0, w + 1, 2))
        area = int(y1 - y0) * int(x1 - x0)
        if y1 - y0 <= rule.side * h or x1 - x0 <= rule.side * w:
            continue
        if not rule.area[0] * h * w <= area <= rule.area[1] * h * w:
            continue
        if free[y0:y1, x0:x1].sum() >= rule.background * area - 1e-6:  # 2/3 is no float
            region = np.zeros((h, w), bool)
            region[y0:y1, x0:x1] = free[y0:y1, x0:x1]
            return region
    return free


@dataclass(frozen=True)
class Draw:
    """What is drawn for one sample: its time, its objective, the cells that count (h, w) bool, its noise (C, h, w)."""

    t: int
    is_object: bool
    region: np.ndarray
    noise: np.ndarray


def draw(
    preliminary: np.ndarray, channels: int, times: int, seed: int, rule: Rectangles, drawn: Times = EVEN
) -> Draw:
    """One sample's random numbers, from its own generator: t as ``drawn`` says, y_f or y_b with equal odds."""
    rng = np.random.default_rng(seed)
    t, is_object = drawn.draw(rng, times), bool(rng.random() < 0.5)
    noise = rng.standard_normal((channels, *preliminary.shape), dtype=np.float32)
    region = np.ones(preliminary.shape, bool) if is_object else background_region(preliminary, rng, rule)
    return Draw(t, is_object, region, noise)


def region_loss(prediction: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Mean over the samples of the squared error's mean over the cells that count.

    Cells that do not count have no part in it: not in the value, and no gradient flows to them, whatever the model says
    there. A sample without a cell adds 0.

    Args:
        prediction, target: (B, C, h, w) float. region: (B, h, w) bool.
    """
    counts = region[:, None]  # (B, 1, h, w)
    error = torch.where(counts, prediction - target, 0.0).pow(2).sum((1, 2, 3))  # (B,)
    cells = counts.sum((1, 2, 3)) * prediction.shape[1]
    return (error / cells.clamp(min=1)).mean()


def distillation_loss(
    latents: Tensor,
    masks: np.ndarray,
    object_concept: Condition,
    background_concept: Condition,
    backbone: Backbone,
    rule: Rectangles = RULE,
    drawn: Times = EVEN,
) -> Callable[[nn.Module, np.ndarray, torch.Generator], Tensor]:
    """The loss of ``maskmill.training.fit`` for fine-tuning the U-Net.

    Every row takes one number from the generator and draws the rest from it, so that a batch computed in parts draws
    what it would as a whole.

    Args:
        latents: (n, C, h, w) of the images, from ``backbone.encode_images``, kept on the CPU.
        masks: M_pre, (n, h, w) bool.
        object_concept, background_concept: y_f and y_b, one row each.
        backbone: gives the noise schedule and what the model predicts, the noise or v; its U-Net is not touched.
        drawn: how times are drawn.

    Returns:
        (U-Net, rows, generator) -> loss, a scalar.

    Raises:
        UserError: latents and masks that do not fit.
    """
    if masks.shape != (len(latents), *latents.shape[2:]) or masks.dtype != bool:
        raise UserError(f"preliminary masks: expected bool of {(len(latents), *latents.shape[2:])}, as the latents "
                        f"are, got {masks.dtype} of {masks.shape}")  # fmt: skip
    # Row 0 is y_b, row 1 is y_f. The copy is outside of the text encoder's inference mode, which autograd refuses.
    both = concatenate(background_concept, object_concept)
    texts = {key: value.float().cpu() for key, value in {"": both.embeds, **(both.added or {})}.items()}
    abar, prediction = backbone.abar.float(), backbone.prediction

    def loss_of(unet: nn.Module, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(2**62, (len(rows),), generator=generator).tolist()
        draws = [draw(masks[row], latents.shape[1], len(abar), seed, rule, drawn)
                 for row, seed in zip(rows, seeds, strict=True)]  # fmt: skip
        device = next(unet.parameters()).device
        z = latents[torch.from_numpy(np.asarray(rows))].float().to(device)  # (B, C, h, w)
        noise = torch.from_numpy(np.stack([d.noise for d in draws])).to(device)
        region = torch.from_numpy(np.stack([d.region for d in draws])).to(device)
        t = torch.tensor([d.t for d in draws])
        a = abar[t][:, None, None, None].to(device)  # (B, 1, 1, 1)
        target = noise if prediction == "epsilon" else diffuse(noise, -z, a)  # v = sqrt(abar) eps - sqrt(1 - abar) z
        concept = [int(d.is_object) for d in draws]
        text = {key: value[concept].to(device) for key, value in texts.items()}
        out = unet(diffuse(z, noise, a), t.to(device), encoder_hidden_states=text.pop(""),
                   added_cond_kwargs=text or None).sample  # fmt: skip
        return region_loss(out.float(), target, region)

    return loss_of


def trainable_unet(backbone: Backbone) -> nn.Module:
    """A float32 copy of the frozen U-Net with gradients on, in training mode; the backbone stays as it is."""
    return copy.deepcopy(backbone.unet).float().requires_grad_(True).train()


def save_unet(unet: nn.Module, folder: Path) -> None:
    """Write a U-Net alone, config.json and safetensors; text encoder and autoencoder stay those of the base model."""
    unet.save_pretrained(folder, safe_serialization=True)


def use_unet(backbone: Backbone, folder: Path) -> None:
    """Put a U-Net that ``save_unet`` wrote in the place of the backbone's, frozen, in the backbone's type.

    Raises:
        UserError: the folder holds no U-Net, a broken or a part of one, or one for other latents or another text width.
    """
    if not (folder / "config.json").is_file() or not tensor_names(folder):
        raise UserError(f"{folder}: expected a U-Net's config.json and weights as *.safetensors, found none")
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # a broken folder makes diffusers raise errors of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder}: expected a U-Net that diffusers reads, got: {reason}") from None
    for key in ("in_channels", "out_channels", "cross_attention_dim"):
        got, wanted = unet.config[key], backbone.unet.config[key]
        if got != wanted:
            raise UserError(f"{folder}: expected a U-Net of the model's {key}, {wanted}, got {got}")
    found, wanted = len(tensor_names(folder)), len(unet.state_dict())
    if found < wanted:  # diffusers would go on without them
        raise UserError(f"{folder}: expected weights of {wanted} tensors, found {found}")
    unet = unet.to(backbone.device, backbone.dtype).requires_grad_(False).eval()
    backbone.pipe.unet = backbone.unet = unet


# --- sampling ---------------------------------------------------------------------------------------------------------


def repeated(concept: Condition, count: int) -> Condition:
    """One prompt's condition for ``count`` samples."""
    return concept.rows(torch.zeros(count, dtype=torch.long, device=concept.embeds.device))


def between_concepts(
    backbone: Backbone, object_concept: Condition, background_concept: Condition, w: float
) -> Predictor:
    """Guidance between the two concepts (Eq. 10): eps~ = w eps(z, y_f) - (w - 1) eps(z, y_b).

    This is classifier-free guidance with y_b in the place of the empty prompt. w = 1 is the model under y_f and w = 0
    the model under y_b, to the bit and at half the cost; w = -1 is w = 2 with the prompts swapped.

    Args:
        object_concept, background_concept: y_f and y_b, one row per sample, see ``repeated``.
    """
    if w == 0.0:
        return lambda x, t: backbone.noise(x, t, background_concept)
    return guided(backbone.noise, object_concept, background_concept, w, concatenate)


def sample_concept(
    backbone: Backbone,
    object_concept: Condition,
    background_concept: Condition,
    seeds: Sequence[int],
    size: int,
    *,
    w: float = 1.0,
    steps: int = 50,
) -> Tensor:
    """New pictures' latents (B, C, h, w) by DDIM, eta 0, guided between the concepts; a seed's noise is the same at any
    w.

    Args:
        object_concept, background_concept: y_f and y_b, one row each.
        seeds: one per picture. size: its side in pixels.
    """
    y_f, y_b = (repeated(concept, len(seeds)) for concept in (object_concept, background_concept))
    start = backbone.start_noise(list(seeds), size)
    return ddim_sample(between_concepts(backbone, y_f, y_b, w), start, backbone.timesteps(steps), backbone.abar)


def inpaint(
    eps: Predictor,
    z0: Tensor,
    holes: Tensor,
    start: Tensor,
    noise_at: Callable[[int], Tensor],
    timesteps: Sequence[int],
    abar: Tensor,
) -> Tensor:
    """Fill holes by the deterministic reverse pass, with the known cells set to the image's latent at every step.

    A step of DDIM moves each cell by its own predicted noise, so it is enough that every prediction sees the known
    cells as they should be at that time.

    Args:
        eps: the predicted noise of latents (B, C, h, w) at a time t.
        z0: (B, C, h, w), the images' latents.
        holes: (B, h, w) bool, where they are forgotten.
        start: (B, C, h, w), x_T in the holes.
        noise_at: t -> the noise of the known cells at that step, (B, C, h, w).
        timesteps: ascending. abar: of all times.

    Returns:
        (B, C, h, w); outside the holes z0, to the bit.
    """
    hole = holes[:, None]  # (B, 1, h, w)

    def predict(x: Tensor, t: int) -> Tensor:
        return eps(torch.where(hole, x, diffuse(z0, noise_at(t), float(abar[t]))), t)

    return torch.where(hole, ddim_sample(predict, start, timesteps, abar), z0)


def paint_over(
    backbone: Backbone,
    z0: Tensor,
    masks: np.ndarray,
    object_concept: Condition,
    background_concept: Condition,
    seeds: Sequence[int],
    *,
    w: float = 0.0,
    steps: int = 50,
) -> Tensor:
    """The images with the object painted over, m'(z~_0, y_b): latents (B, C, h, w).

    An image whose mask is empty comes back as it is.

    Args:
        z0: (B, C, h, w), from ``backbone.encode_images``.
        masks: M_pre, (B, h, w) bool.
        object_concept, background_concept: y_f and y_b, one row each.
        seeds: one per image, >= 0; with t they decide all noise.
        w: guidance between the concepts. The paper states none for this: 0, y_b alone. -1 leads away from the object.

    Raises:
        UserError: masks of another size than the latents.
    """
    if masks.shape != (len(z0), *z0.shape[2:]) or masks.dtype != bool:
        raise UserError(f"preliminary masks: expected bool of {(len(z0), *z0.shape[2:])}, as the latents are, got "
                        f"{masks.dtype} of {masks.shape}")  # fmt: skip
    y_f, y_b = (repeated(concept, len(z0)) for concept in (object_concept, background_concept))

    def noise_at(*key: int) -> Tensor:
        return keyed_noise(seeds, z0.shape[1:], *key).to(z0.device)

    return inpaint(between_concepts(backbone, y_f, y_b, w), z0, torch.from_numpy(masks).to(z0.device),
                   noise_at(), noise_at, backbone.timesteps(steps), backbone.abar)  # fmt: skip
