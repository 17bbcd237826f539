"""The public sizes of Stable Diffusion 1, 2 and XL, and pipelines of these shapes with random weights.

Cost depends on shapes alone: with these numbers a run can be planned, and loading, sampling and recording be tried,
where no weights are at hand. ``save_random`` writes a folder in the hub's layout: safetensors, the tokenizer of CLIP
(its byte pairs come with open_clip), the scheduler that the published model has. Pictures out of it are noise.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from maskmill.errors import UserError

Config = dict[str, Any]

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CONTEXT = 77
BPE_MERGES = 49152 - 256 - 2  # of CLIP's vocabulary of 49,408: 512 bytes, 48,894 merges, 2 marks


@dataclass(frozen=True)
class Architecture:
    """Constructor arguments of a model's parts, and the picture's side that it was trained at.

    ``encoders`` holds one CLIP text encoder, or two for XL, whose second one also gives the pooled text.
    """

    name: str
    size: int
    unet: Config
    vae: Config
    encoders: tuple[Config, ...]
    scheduler: type
    schedule: Config = field(default_factory=dict)


def _vae(size: int, scale: float, channels: tuple[int, ...] = (128, 256, 512, 512)) -> Config:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": channels, "layers_per_block": 2, "latent_channels": 4, "sample_size": size,
        "scaling_factor": scale, "norm_num_groups": min(32, channels[0] // 2),
    }  # fmt: skip


def _text(width: int, layers: int, heads: int, activation: str, projection: int) -> Config:
    return {
        "vocab_size": 49408, "max_position_embeddings": CONTEXT, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": activation,
        "projection_dim": projection, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
    }  # fmt: skip


SD1 = Architecture(
    "sd1", 512,
    {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
     "attention_head_dim": 8},  # by its name in the configuration; it is the number of heads
    _vae(512, 0.18215), (_text(768, 12, 12, "quick_gelu", 768),),
    PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False},
)  # fmt: skip
SD2 = Architecture(
    "sd2", 768,
    {"sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
     "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    _vae(768, 0.18215), (_text(1024, 23, 16, "gelu", 512),),
    DDIMScheduler, {"set_alpha_to_one": False, "clip_sample": False, "prediction_type": "v_prediction"},
)  # fmt: skip
SDXL = Architecture(
    "sdxl", 1024,
    {"sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
     "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
     "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN), "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
     "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
     "projection_class_embeddings_input_dim": 6 * 256 + 1280},
    _vae(1024, 0.13025), (_text(768, 12, 12, "quick_gelu", 768), _text(1280, 32, 20, "gelu", 1280)),
    EulerDiscreteScheduler, {"timestep_spacing": "leading"},
)  # fmt: skip
ARCHITECTURES = {a.name: a for a in (SD1, SD2, SDXL)}

# Words in the names of hub repositories and folders, the more special first.
_NAMES = (("xl", SDXL), ("stable-diffusion-2", SD2), ("sd2", SD2), ("sd-2", SD2), ("stable-diffusion-v1", SD1),
          ("sd1", SD1), ("sd-v1", SD1), ("stable-diffusion-1", SD1))  # fmt: skip


def of_name(model_id: str) -> Architecture | None:
    """The architecture that a hub id or folder name speaks of, or None."""
    name = Path(model_id).name.lower()
    return next((a for word, a in _NAMES if word in name), None)


def small(full: Architecture) -> Architecture:
    """The same layers' kinds, a tenth as wide and shallow in the text: hundreds of times fewer weights, for tests."""
    unet = dict(full.unet)
    unet["block_out_channels"] = tuple(c // 10 for c in unet["block_out_channels"])  # 32, 64, 128
    encoders = tuple(
        {**e, "hidden_size": e["hidden_size"] // 16, "intermediate_size": e["hidden_size"] // 4,
         "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": e["projection_dim"] // 16}
        for e in full.encoders
    )  # fmt: skip
    unet["cross_attention_dim"] = sum(e["hidden_size"] for e in encoders)
    if isinstance(unet["attention_head_dim"], tuple):
        unet["attention_head_dim"] = tuple(h // 5 for h in unet["attention_head_dim"])  # 1, 2, 4
    if "transformer_layers_per_block" in unet:
        unet["transformer_layers_per_block"] = (1, 1, 2)
        unet["addition_time_embed_dim"] = 8
        unet["projection_class_embeddings_input_dim"] = 6 * 8 + encoders[1]["projection_dim"]
    vae = _vae(full.vae["sample_size"], full.vae["scaling_factor"], (16, 32, 64, 64))
    return Architecture(f"small {full.name}", full.size, unet, vae, encoders, full.scheduler, full.schedule)


# --- building ---------------------------------------------------------------------------------------------------------


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep activations in range: matrices normal with variance 1 / fan-in, scales 1, biases 0.

    One block of numbers is repeated in every matrix: drawing the 860 million of a U-Net would take longer than what
    they are needed for.
    """
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for k, (name, parameter) in enumerate(module.named_parameters()):
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            flat, start = parameter.view(-1), 7919 * k % len(block)
            piece = (torch.roll(block, start) * parameter[0].numel() ** -0.5).to(parameter.dtype)
            for i in range(0, len(flat), len(piece)):
                flat[i : i + len(piece)] = piece[: len(flat) - i].to(flat.device)
    return module


def random_unet(config: Config, device: str = "cpu", dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The U-Net of a configuration with random weights, frozen."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).eval()
    nn.Module.to(unet, dtype)  # diffusers' own .to warns about layers that a trained model may want in float32
    unet.to_empty(device=device)
    return fill(unet).requires_grad_(False)


def tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer of 49,408 tokens, as all Stable Diffusion models have it."""
    source = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : 1 + BPE_MERGES]
    merges = [tuple(line.split()) for line in lines]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # CLIP numbers these bytes first
    others = [chr(256 + k) for k in range(256 - len(printable))]
    alphabet = [chr(b) for b in printable] + others
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges),
              "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    vocabulary = {token: k for k, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def text_encoder(config: Config, pooled: bool = False) -> CLIPTextModel:
    """A CLIP text encoder with random weights; ``pooled`` adds the projection of the end token."""
    kind = CLIPTextModelWithProjection if pooled else CLIPTextModel
    return fill(kind(CLIPTextConfig(**config))).eval()


def random_pipeline(a: Architecture, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A text-to-image pipeline of this shape with random weights."""
    unet = random_unet(a.unet, dtype=dtype)
    vae = nn.Module.to(fill(AutoencoderKL(**a.vae)), dtype)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.3)  # pictures with some contrast that do not saturate
    scheduler = a.scheduler(**NOISE, **a.schedule)
    words = tokenizer()
    if len(a.encoders) == 1:
        return StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder(a.encoders[0]).to(dtype), tokenizer=words, unet=unet,
            scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    first, second = text_encoder(a.encoders[0]).to(dtype), text_encoder(a.encoders[1], pooled=True).to(dtype)
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, tokenizer=words, tokenizer_2=words, unet=unet,
        scheduler=scheduler,
    )  # fmt: skip


def save_random(a: Architecture, folder: str | Path, dtype: str = "float32") -> Path:
    """Write such a pipeline in the hub's layout.

    Raises:
        UserError: there is something at ``folder`` already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected no such folder yet, or an empty one")
    random_pipeline(a, getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)
    note = {"architecture": a.name, "weights": "random, of maskmill.diffusion.architectures"}
    (folder / "random.json").write_text(json.dumps(note) + "\n")
    return folder


def weight_counts(a: Architecture) -> dict[str, int]:
    """Number of weights by part; nothing is allocated."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**a.unet), "vae": AutoencoderKL(**a.vae)}
        for k, config in enumerate(a.encoders):
            kind = CLIPTextModelWithProjection if k else CLIPTextModel
            parts["text_encoder_2" if k else "text_encoder"] = kind(CLIPTextConfig(**config))
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
