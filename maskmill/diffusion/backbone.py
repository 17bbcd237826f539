"""Loads any diffusers text-to-image folder or hub id and reduces it to what the pipeline needs: text -> condition,
image <-> latent, and the predicted noise at a step."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from maskmill.errors import UserError

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
VOCABULARIES = ("tokenizer.json", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: ``embeds`` (B, tokens, width) and what an XL U-Net wants besides."""

    embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def rows(self, index: slice) -> Condition:
        """The condition of some of the prompts."""
        added = None if self.added is None else {k: v[index] for k, v in self.added.items()}
        return Condition(self.embeds[index], added)


def concatenate(first: Condition, second: Condition) -> Condition:
    """Two conditions as one batch, for guidance in a single U-Net call."""
    added = None
    if first.added is not None:
        added = {k: torch.cat([v, second.added[k]]) for k, v in first.added.items()}
    return Condition(torch.cat([first.embeds, second.embeds]), added)


def check_folder(folder: Path) -> list[str]:
    """Refuse a model folder that lacks a part or holds a pickle, before anything is loaded from it.

    Returns:
        The names of the parts that have weights.

    Raises:
        UserError: names the missing part, the pickled file or the unreadable weights.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder}: expected a diffusers pipeline folder, got one without model_index.json")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index}: expected JSON, got: {error}") from None
    if not isinstance(names, dict) or not isinstance(names.get("_class_name"), str):
        raise UserError(f"{index}: expected the key '_class_name' with the name of a diffusers pipeline, got none")
    for part in PARTS:
        if not any(names.get(part) or ()) or not (folder / part).is_dir():
            raise UserError(f"{folder}: expected the part '{part}' of a text-to-image pipeline, found none")
    present = sorted(name for name in names if (folder / name).is_dir())  # XL has more of them than PARTS
    for part in present:
        pickles = sorted(f.name for f in (folder / part).iterdir() if f.suffix.lower() in PICKLES)
        if pickles:
            raise UserError(f"{folder / part / pickles[0]}: a pickle; convert the weights to safetensors and remove it")
        if part.startswith("tokenizer") and not any((folder / part / f).is_file() for f in VOCABULARIES):
            raise UserError(f"{folder / part}: expected {' or '.join(VOCABULARIES)}, found neither")
    weighted = [part for part in present if part in ("vae", "unet") or part.startswith("text_encoder")]
    for part in weighted:
        if not (folder / part / "config.json").is_file():  # transformers would take the original CLIP's sizes
            raise UserError(f"{folder / part}: expected config.json beside the weights, found none")
        if not tensor_names(folder / part):
            raise UserError(f"{folder / part}: expected weights as *.safetensors, found none")
    return weighted


def tensor_names(part: Path) -> set[str]:
    """Names of the tensors in the safetensors files of a folder; only the files' headers are read.

    Raises:
        UserError: a file is empty, cut short or of another kind; names it.
    """
    names: set[str] = set()
    for path in sorted(part.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                names.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: expected weights in the safetensors format, got: {error}") from None
    return names


def check_complete(pipe: DiffusionPipeline, folder: Path, parts: list[str]) -> None:
    """Refuse parts whose files hold fewer tensors than the loaded module has.

    transformers fills such gaps with random numbers and goes on, diffusers leaves them without storage. Counts are
    compared, not names, which both libraries may translate; position_ids is a constant that old files list.
    """
    for part in parts:
        found, wanted = (sum(not name.endswith("position_ids") for name in names)
                         for names in (tensor_names(folder / part), getattr(pipe, part).state_dict()))  # fmt: skip
        if found < wanted:
            raise UserError(f"{folder / part}: expected weights of {wanted} tensors, found {found}; get them anew")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class Backbone:
    """A frozen text-to-image diffusion model.

    Args:
        model_id: a local folder in diffusers' layout, or a hub id.
        revision: of a hub id; empty for its default branch.
        dtype: "float32", "float16" or "bfloat16".
        device: where it runs.

    Raises:
        UserError: the folder is incomplete or holds pickles; the hub id cannot be had (says what to do).
    """

    def __init__(self, model_id: str, revision: str = "", dtype: str = "float32", device: str = "cpu") -> None:
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        local = Path(model_id).expanduser()
        weighted = []
        if local.is_dir():
            weighted = check_folder(local)
        elif model_id.startswith((".", "/", "~")) or len(local.parts) > 2 or local.parts[0] == "data":
            raise UserError(f"{model_id}: expected a model folder, found none; run `dvc pull` or `dvc repro pretrain`")
        try:
            pipe = DiffusionPipeline.from_pretrained(
                str(local) if local.is_dir() else model_id,
                revision=revision or None,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=local.is_dir() or offline(),
            )
        except Exception as error:  # a broken folder makes diffusers and transformers raise errors of any kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            mend = "save or download it anew" if local.is_dir() else (
                "give a local diffusers folder, or download it first: "
                f"hf download {model_id} --local-dir models/{local.name}, then set model.id to models/{local.name}"
            )  # fmt: skip
            raise UserError(f"model.id {model_id}: cannot be loaded ({reason}); {mend}") from None
        check_complete(pipe, local, weighted)
        self.pipe = pipe.to(device)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.unet, self.vae, self.tokenizer = pipe.unet, pipe.vae, pipe.tokenizer
        for module in (self.unet, self.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        # from_config: the inverse and forward steps below must share this model's own noise schedule.
        self.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)
        self.abar = self.scheduler.alphas_cumprod.to(torch.float64)
        self.prediction = self.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            kind = self.prediction
            raise UserError(f"model.id {model_id}: expected prediction_type epsilon or v_prediction, got '{kind}'")

    @property
    def scale(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def timesteps(self, steps: int) -> list[int]:
        """The T time steps of the model's DDIM schedule, ascending (t_1 < ... < t_T)."""
        self.scheduler.set_timesteps(steps)
        return sorted(int(t) for t in self.scheduler.timesteps)

    def multistep(self, steps: int) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ (second order, multistep) of T steps on this model's noise schedule; takes predicted noise."""
        solver = DPMSolverMultistepScheduler.from_config(
            self.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, prediction_type="epsilon"
        )
        solver.set_timesteps(steps)
        return solver

    @torch.inference_mode()
    def encode_text(self, prompts: list[str], size: int) -> Condition:
        """Prompts -> condition. ``size`` is the picture's side in pixels, which an XL model is told."""
        if hasattr(self.pipe, "text_encoder_2"):
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=embeds.dtype, device=self.device)
            return Condition(embeds, {"text_embeds": pooled, "time_ids": ids.repeat(len(prompts), 1)})
        embeds, _ = self.pipe.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return Condition(embeds)

    @torch.inference_mode()
    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> scaled latents (B, C, h, w) float32, the mean of the VAE's posterior."""
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        z = self.vae.encode(x.to(self.device, self.dtype)).latent_dist.mean
        return z.float() * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, z: torch.Tensor) -> np.ndarray:
        """Scaled latents (B, C, h, w) -> (B, H, W, 3) uint8"""
        x = self.vae.decode((z / self.vae.config.scaling_factor).to(self.dtype)).sample
        x = ((x.float() + 1.0) * 127.5).round().clamp(0, 255)
        return x.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)

    @torch.inference_mode()
    def noise(self, z: torch.Tensor, t: int, condition: Condition) -> torch.Tensor:
        """epsilon(z, t, y): the predicted noise, (B, C, h, w) float32, whatever the model was trained to predict."""
        out = self.unet(
            z.to(self.dtype), t, encoder_hidden_states=condition.embeds, added_cond_kwargs=condition.added
        ).sample.float()
        if self.prediction == "v_prediction":
            a = float(self.abar[t])
            out = a**0.5 * out + (1 - a) ** 0.5 * z
        return out

    def start_noise(self, seeds: list[int], size: int) -> torch.Tensor:
        """x_T ~ N(0, 1), one generator per sample, so that a sample does not depend on its neighbours. (B, C, h, w)"""
        shape = (self.unet.config.in_channels, size // self.scale, size // self.scale)
        z = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(z).to(self.device)
