"""Loads any diffusers text-to-image folder or hub id and reduces it to what the pipeline needs: text -> condition,
image <-> latent, and the predicted noise at a step."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from maskmill.errors import UserError
from maskmill.hub import UNUSED, download_model, is_hub_id

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
VOCABULARIES = ("tokenizer.json", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FP16 = "fp16"  # as the hub marks files of half precision: diffusion_pytorch_model.fp16.safetensors
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors")
TRAIN_STEPS = 1000  # length of the diffusion time, in which records are binned and schedules spaced


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

    What is not used of a pipeline (``UNUSED``) may be there, in any state, or not.

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
    used = set(names) - set(UNUSED)  # XL has more of them than PARTS
    present = sorted(name for name in used if (folder / name).is_dir())
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
            stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
            raise UserError(f"{folder / part}: expected weights as {stem}.safetensors or {stem}.{FP16}.safetensors, "
                            "found neither")  # fmt: skip
    return weighted


def weight_files(part: Path, variant: str | None = None) -> list[Path]:
    """The files of a part that would be loaded: with the variant those of half precision where it has any."""
    files = sorted(path for path in part.glob("*.safetensors") if WEIGHTS.fullmatch(path.name))
    halves = [path for path in files if f".{FP16}" in path.name]
    return halves if halves and (variant or len(halves) == len(files)) else [p for p in files if p not in halves]


def variant_of(folder: Path, parts: list[str], dtype: str) -> str | None:
    """The variant to load of a folder: "fp16" if that is what is computed in, or all that some part has; else None.

    In float16 both kinds of file give the same weights, and the smaller one is read in half the time.
    """
    halves = [any(f".{FP16}" in path.name for path in weight_files(folder / part, FP16)) for part in parts]
    only = [any(f".{FP16}" in path.name for path in weight_files(folder / part)) for part in parts]
    return FP16 if any(halves) and (dtype == "float16" or any(only)) else None


def tensor_names(part: Path, variant: str | None = None) -> set[str]:
    """Names of the tensors in the weights of a part; only the files' headers are read.

    Raises:
        UserError: a file is empty, cut short or of another kind; names it.
    """
    names: set[str] = set()
    for path in weight_files(part, variant):
        try:
            with safe_open(path, "pt") as file:
                names.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: expected weights in the safetensors format, got: {error}") from None
    return names


def check_complete(pipe: DiffusionPipeline, folder: Path, parts: list[str], variant: str | None = None) -> None:
    """Refuse parts whose files hold fewer tensors than the loaded module has.

    transformers fills such gaps with random numbers and goes on, diffusers leaves them without storage. Counts are
    compared, not names, which both libraries may translate; position_ids is a constant that old files list.
    """
    for part in parts:
        both = tensor_names(folder / part, variant), getattr(pipe, part).state_dict()
        found, wanted = (sum(not name.endswith("position_ids") for name in names) for names in both)
        if found < wanted:
            raise UserError(f"{folder / part}: expected weights of {wanted} tensors, found {found}; get them anew")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def load(model_id: str, revision: str, dtype: str) -> DiffusionPipeline:
    """The pipeline of a folder or hub id, as safetensors, without what of it is not used.

    Raises:
        UserError: see ``Backbone``.
    """
    local = Path(model_id).expanduser()
    weighted: list[str] = []
    variants: list[str | None] = [None]
    if local.is_dir():
        weighted = check_folder(local)
        variants = [variant_of(local, weighted, dtype)]
    elif not is_hub_id(model_id):
        made = local.parts and local.parts[0] == "data"
        mend = "run `dvc pull` or `dvc repro pretrain`" if made else "put a diffusers pipeline there"
        raise UserError(f"{model_id}: expected a model folder, found none; {mend}")
    elif dtype == "float16":
        variants = [FP16, None]  # half the download; not every repository has it
    options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    for variant in variants:
        try:
            pipe = DiffusionPipeline.from_pretrained(
                str(local) if local.is_dir() else model_id,
                revision=revision or None,
                variant=variant,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=local.is_dir() or offline(),
                requires_safety_checker=False,
                **options,
            )
            break
        except Exception as error:  # a broken folder makes diffusers and transformers raise errors of any kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    else:
        mend = "save or download it anew" if local.is_dir() else (
            f"give a local diffusers folder, or download it first: {download_model(model_id, revision)}"
        )  # fmt: skip
        raise UserError(f"model.id {model_id}: cannot be loaded ({reason}); {mend}")
    for part in PARTS:  # of a hub id nothing was looked at before
        if getattr(pipe, part, None) is None:
            raise UserError(f"model.id {model_id}: expected the part '{part}' of a text-to-image pipeline, found none")
    check_complete(pipe, local, weighted, variants[0])
    return pipe


def ddim_of(theirs: SchedulerMixin, model_id: str) -> DDIMScheduler:
    """DDIM on the noise schedule that a model was trained with, as the configuration of its own scheduler tells it.

    How that one would sample (its solver, Karras sigmas, clipping) is left out: all passes here are DDIM, or
    DPM-Solver++ on the same schedule.

    Raises:
        UserError: a schedule or prediction that DDIM does not know (flow matching, EDM), another length of the
            diffusion time, or no signal left at its end; names the key.
    """
    config, named = theirs.config, f"model.id {model_id}: scheduler {type(theirs).__name__}"
    if not {"beta_schedule", "trained_betas"} & set(config):  # DDIM would take its own default
        raise UserError(f"{named}: expected a noise schedule, beta_schedule or trained_betas, found neither")
    if config.get("num_train_timesteps", TRAIN_STEPS) != TRAIN_STEPS:
        got = config["num_train_timesteps"]
        raise UserError(f"{named}: expected num_train_timesteps {TRAIN_STEPS}, got {got}")
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"model.id {model_id}: expected prediction_type epsilon or v_prediction, got '{kind}'")
    try:
        # from_config: the inverse and forward steps must share this model's own noise schedule.
        scheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{named}: expected a schedule that DDIM knows, got: {reason}") from None
    if not float(scheduler.alphas_cumprod[-1]) > 0:  # x_0 could not be told from v and x_t by way of the noise
        raise UserError(f"{named}: expected a schedule that leaves some signal at its last step, "
                        "got rescale_betas_zero_snr true")  # fmt: skip
    return scheduler


class Backbone:
    """A frozen text-to-image diffusion model.

    Args:
        model_id: a local folder in diffusers' layout, or a hub id.
        revision: of a hub id; empty for its default branch.
        dtype: "float32", "float16" or "bfloat16". In float16 files marked ``fp16`` are taken where there are any (of a
            folder also where there are no others), and an XL autoencoder that says ``force_upcast`` computes in
            float32, as in diffusers: it overflows in half precision.
        device: where it runs.

    Raises:
        UserError: the folder is incomplete or holds pickles; the hub id cannot be had (says what to do); its schedule
            is none that DDIM can follow.
    """

    def __init__(self, model_id: str, revision: str = "", dtype: str = "float32", device: str = "cpu") -> None:
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        pipe = load(model_id, revision, dtype)
        self.scheduler = ddim_of(pipe.scheduler, model_id)
        self.abar = self.scheduler.alphas_cumprod.to(torch.float64)
        self.prediction = self.scheduler.config.prediction_type
        if dtype == "float16" and hasattr(pipe, "text_encoder_2") and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)
        self.pipe = pipe.to(device)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.unet, self.vae, self.tokenizer = pipe.unet, pipe.vae, pipe.tokenizer
        for module in (self.unet, self.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
            if module is not None:
                module.requires_grad_(False).eval()

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
        z = self.vae.encode(x.to(self.device, self.vae.dtype)).latent_dist.mean
        return z.float() * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, z: torch.Tensor) -> np.ndarray:
        """Scaled latents (B, C, h, w) -> (B, H, W, 3) uint8"""
        x = self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
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
