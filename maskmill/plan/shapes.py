"""What a U-Net of a given shape costs: arithmetic, attention records, features. Nothing is allocated or computed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch.utils.flop_counter import FlopCounterMode

from maskmill.diffusion.architectures import CONTEXT, Architecture, of_name, weight_counts
from maskmill.diffusion.features import FeatureMean
from maskmill.errors import UserError

HALF = 2  # bytes of float16, in which records and features are kept
HEADER = 110  # bytes by which a shard names one array
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A model as its configurations describe it.

    Attributes:
        unet, vae: constructor arguments, as config.json holds them.
        weights: number of weights by part.
        tokens: of a prompt.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    weights: dict[str, int]
    tokens: int

    @property
    def cell(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    def latent(self, size: int) -> int:
        """Side of the latents of a picture."""
        return size // self.cell

    def vae_dtype(self, dtype: str) -> str:
        """What the autoencoder computes in: see ``maskmill.diffusion.backbone.Backbone``."""
        upcast = dtype == "float16" and "text_encoder_2" in self.weights and self.vae.get("force_upcast", True)
        return "float32" if upcast else dtype

    def weight_bytes(self, dtype: str) -> int:
        others = sum(count for part, count in self.weights.items() if part != "vae")
        return others * BYTES[dtype] + self.weights["vae"] * BYTES[self.vae_dtype(dtype)]


@dataclass(frozen=True)
class Call:
    """One U-Net call on one sample: floating-point operations; tokens along a side of each attention layer, by kind;
    (channels, side) of each transformer block whose output is a feature F^l."""

    flops: float
    cross: tuple[int, ...]
    own: tuple[int, ...]
    features: tuple[tuple[int, int], ...]

    def record_bytes(self, bins: int, cells: int) -> int:
        """Bytes of a sample's attention record, see ``maskmill.diffusion.capture``."""
        total, arrays = 0, 0
        for r in set(self.cross):
            total += bins * self.cross.count(r) * r * r * HALF
            arrays += 1
        for r in set(self.own):
            n = min(r, cells) ** 2
            total += 8 * r * r * HALF + n * (n + 1) // 2 * HALF
            arrays += 2
        return total + HEADER * arrays

    @property
    def feature_bytes(self) -> int:
        """Bytes of a sample's features F^l."""
        return sum(c * side * side * HALF + HEADER for c, side in self.features)


def of_folder(folder: Path) -> Shape:
    """The shape of a local model folder; only its configurations are read.

    Raises:
        UserError: a configuration is missing or no JSON.
    """
    configs = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        path = folder / part / "config.json"
        if part == "text_encoder_2" and not path.is_file():
            continue
        try:
            configs[part] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: expected a part's configuration as JSON, got: {error}") from None
    text = configs.pop("text_encoder")
    second = configs.pop("text_encoder_2", None)
    plain = {k: {n: v for n, v in c.items() if not n.startswith("_")} for k, c in configs.items()}
    described = Architecture("", 0, plain["unet"], plain["vae"], tuple(_text(c) for c in (text, second) if c), type)
    return Shape(plain["unet"], plain["vae"], weight_counts(described), text.get("max_position_embeddings", CONTEXT))


def _text(config: dict[str, Any]) -> dict[str, Any]:
    dropped = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "_name_or_path")
    return {k: v for k, v in config.items() if k not in dropped}


def of_model(model_id: str) -> Shape:
    """The shape of a model: its folder's, or that of the architecture that its name speaks of.

    Raises:
        UserError: neither is known.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        return of_folder(folder)
    known = of_name(model_id)
    if known is None:
        raise UserError(f"model.id {model_id}: expected a folder, or a name that says which Stable Diffusion it is "
                        "(1.x, 2.x or XL), to know its size")  # fmt: skip
    return Shape(known.unet, known.vae, weight_counts(known), CONTEXT)


def inputs(unet: dict[str, Any], side: int, tokens: int, rows: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of a U-Net call with ``rows`` samples."""
    given: dict[str, Any] = {
        "sample": torch.zeros(rows, unet.get("in_channels", 4), side, side, device=device, dtype=dtype),
        "timestep": 500,
        "encoder_hidden_states": torch.ones(rows, tokens, unet["cross_attention_dim"], device=device, dtype=dtype),
    }
    if unet.get("addition_embed_type") == "text_time":
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        given["added_cond_kwargs"] = {
            "text_embeds": torch.ones(rows, pooled, device=device, dtype=dtype),
            "time_ids": torch.ones(rows, 6, device=device, dtype=dtype),
        }
    return given


def call(shape: Shape, latent: int, path: str = "up") -> Call:
    """What one call on latents of this side consists of."""
    return _call(json.dumps(shape.unet, sort_keys=True), latent, shape.tokens, path)


@cache
def _call(config: str, latent: int, tokens: int, path: str) -> Call:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**json.loads(config)).eval()
    cross: list[int] = []
    own: list[int] = []
    features: list[tuple[int, int]] = []

    def attention(module: Attention, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        (own if text is None else cross).append(math.isqrt(hidden.shape[1]))

    def block(module: torch.nn.Module, args: tuple, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output.sample
        features.append((value.shape[1], value.shape[-1]))

    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(attention, with_kwargs=True)
    for _, module in FeatureMean(unet, path).blocks:
        module.register_forward_hook(block)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(**inputs(json.loads(config), latent, tokens, 1, "meta", torch.float32))
    return Call(float(counter.get_total_flops()), tuple(cross), tuple(own), tuple(features))


def vae_flops(shape: Shape, size: int) -> tuple[float, float]:
    """Floating-point operations to (encode, decode) one picture."""
    return _vae_flops(json.dumps(shape.vae, sort_keys=True), size, shape.latent(size))


@cache
def _vae_flops(config: str, size: int, latent: int) -> tuple[float, float]:
    with torch.device("meta"):
        vae = AutoencoderKL(**json.loads(config)).eval()
        counts = []
        for run, given in ((vae.encode, torch.zeros(1, 3, size, size)),
                           (vae.decode, torch.zeros(1, vae.config.latent_channels, latent, latent))):  # fmt: skip
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run(given)
            counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


def activation_bytes(shape: Shape, latent: int, dtype: str) -> int:
    """Working memory of a U-Net call on one sample: about sixty maps of its first level, as measured on SD-1.4."""
    return 60 * shape.unet["block_out_channels"][0] * latent * latent * BYTES[dtype]


def vae_bytes(shape: Shape, size: int, dtype: str) -> int:
    """Working memory of decoding one picture: about three maps of its widest layer at full size."""
    channels = shape.vae["block_out_channels"]
    return 3 * channels[min(1, len(channels) - 1)] * size * size * BYTES[shape.vae_dtype(dtype)]
