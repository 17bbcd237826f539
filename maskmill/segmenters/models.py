"""What is trained on image-mask pairs: built from a plain description, saved as a folder, read back from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import interpolate

from maskmill.errors import UserError
from maskmill.segmenters.decoder import Decoder
from maskmill.store import write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"
END_TO_END = {"unet": "Unet", "deeplabv3": "DeepLabV3"}
IMAGE = "image"  # the one input of an end-to-end net


class EndToEnd(nn.Module):
    """A segmentation_models_pytorch net on images (B, 3, S, S) in 0..1, with the interface of the decoder."""

    def __init__(self, name: str, encoder: str, weights: str, **more: Any) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp  # late: the decoder does without it and starts sooner

        net = getattr(smp, END_TO_END[name])
        self.net = net(encoder_name=encoder, encoder_weights=weights or None, in_channels=3, classes=1, **more)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``image`` (B, 3, S, S) -> logits (B, 1, S, S).

        Raises:
            UserError: the net cannot take this side S.
        """
        side, stride = inputs[IMAGE].shape[-1], self.net.encoder.output_stride
        if self.net.requires_divisible_input_shape and side % stride:
            raise UserError(f"train_decoder.size: expected a multiple of {stride} for this net, got {side}")
        return self.net((inputs[IMAGE] - 0.45) / 0.25)


def build(config: Mapping[str, Any]) -> nn.Module:
    """A model from its description: ``model`` (fcn, unet, deeplabv3) and that model's arguments.

    fcn: ``channels`` {feature name: channels}, ``width``, ``kernel``, ``upsample``. unet, deeplabv3: ``encoder`` (a
    name that segmentation_models_pytorch lists), ``encoder_weights`` ('' for none). unet: ``decoder_width``, the
    channels of its decoder's last block (16), doubled from each block to the one before.

    Raises:
        UserError: the encoder is unknown or its weights are not at hand.
    """
    if config["model"] == "fcn":
        return Decoder(config["channels"], config["width"], config["kernel"], config["upsample"])
    try:
        unet = {"decoder_channels": decoder_channels(config.get("decoder_width", 16))}
        more = unet if config["model"] == "unet" else {}
        return EndToEnd(config["model"], config["encoder"], config["encoder_weights"], **more)
    except Exception as error:  # the library raises errors of any kind for unknown encoders and failed downloads
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"encoder {config['encoder']!r} of {config['model']}: cannot be built: {reason}") from None


def decoder_channels(width: int, blocks: int = 5) -> list[int]:
    """Of a U-Net's decoder, from the coarsest block to the finest, which has ``width``."""
    return [width * 2**k for k in reversed(range(blocks))]


def save_model(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """``config.json`` and ``model.safetensors``; the same weights give the same bytes."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state))
    write_atomically(folder / CONFIG, json.dumps(dict(config), indent=1, sort_keys=True) + "\n")


def load_model(folder: str | Path, device: str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """A folder that ``save_model`` wrote -> the model in eval mode, frozen, and its description.

    Raises:
        UserError: a file is missing or broken; names it.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = build({**config, "encoder_weights": ""})
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder}: expected a trained model ({CONFIG}, {WEIGHTS}), got: {reason}") from None
    return model.to(device).eval().requires_grad_(False), config


@torch.no_grad()
def predict(model: nn.Module, inputs: Mapping[str, np.ndarray], shape: tuple[int, int], device: str) -> np.ndarray:
    """One sample's inputs (no batch axis) -> probability of foreground (H, W) float32; logits are resized bilinearly.

    One sample at a time: a picture's mask must not depend on its neighbours.
    """
    batch = {name: torch.from_numpy(value)[None].to(device).float() for name, value in inputs.items()}
    logits = interpolate(model(batch).float(), size=shape, mode="bilinear", align_corners=False)
    return logits[0, 0].sigmoid().cpu().numpy()
