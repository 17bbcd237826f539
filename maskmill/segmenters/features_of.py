"""OVDiff's feature extractors behind one call: queries of the diffusion model, and CLIP, DINO and MAE (OVDiff 3.4).

>>> extractors = open_extractors(params.model, ["sd", "clip"], params.extractors, "cpu")
>>> maps = {name: extract(images) for name, extract in extractors.items()}   # (B, H, W, 3) uint8 -> (B, C, h, w)
>>> facts = {name: extract.facts for name, extract in extractors.items()}    # for Bank.write and Bank.read

All pictures of a call are one batch; ``maskmill.workers.in_batches`` makes batches of one size, with which a picture's
features do not depend on its neighbours.

``facts`` tell an extractor from every other one, its weights included, so that prototypes of another model, revision,
layer or size are refused by ``maskmill.segmenters.prototypes.Bank.read``. Prototypes and pictures must come from the
same extractor: cosines between two of them mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from PIL import Image

from maskmill import store
from maskmill.diffusion.backbone import PARTS, Backbone
from maskmill.diffusion.noise import diffuse, keyed_noise
from maskmill.errors import UserError
from maskmill.params import Extractors, FrozenNetwork, Model
from maskmill.segmenters.extractors import Extractor, locate

NAMES = ("sd", "clip", "dino", "mae")


class QueryExtractor:
    """Queries of the cross-attention layers on the U-Net's expanding path, of one step with the empty prompt.

    The picture's latent z_0 is brought to time t with Gaussian noise, one U-Net call predicts, and the queries of all
    those layers (nine in Stable Diffusion), all heads side by side, are brought to one side bilinearly and put beside
    each other, none of them scaled. With several draws of noise they are averaged. The noise is a function of the
    picture's own bytes, so that a picture's features depend on nothing beside it.

    Args:
        backbone: the diffusion model.
        t: time step, 0..T-1; the paper's is 200.
        size: side in pixels to which pictures are squashed (bicubic); a multiple of the model's latent cell.
        side: of the result; 0 takes that of the finest layer.
        draws: of noise; 0 gives the U-Net the latent as it is.
        weights: what tells the model's weights from others, for ``facts``.

    Raises:
        UserError: no cross-attention on the expanding path, or ``size`` or ``t`` that the model cannot take.
    """

    def __init__(self, backbone: Backbone, t: int, size: int, side: int, draws: int, weights: Any) -> None:
        if size % backbone.scale:
            raise UserError(f"extractors.sd.size: expected a multiple of {backbone.scale}, the model's latent cell, "
                            f"got {size}")  # fmt: skip
        if not 0 <= t < len(backbone.abar):
            raise UserError(f"extractors.sd.t: expected a time step of 0 to {len(backbone.abar) - 1}, got {t}")
        self.layers = [
            (f"up_blocks.{i}.{name}", module)
            for i, stage in enumerate(backbone.unet.up_blocks)
            for name, module in stage.named_modules()
            if name.endswith("attn2") and isinstance(module, Attention)
        ]
        if not self.layers:
            raise UserError("extractors.sd: expected cross-attention on the U-Net's expanding path, found none")
        self.backbone, self.t, self.size, self.side, self.draws = backbone, t, size, side, draws
        self.facts = {"family": "sd", "weights": weights, "facet": "query", "layers": [name for name, _ in self.layers],
                      "t": t, "size": size, "side": side, "draws": draws}  # fmt: skip

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """(B, H, W, 3) uint8, or a list of pictures of any sizes -> (B, C, side, side) float32 on the model's device.

        Raises:
            RuntimeError: a layer that recorded nothing.
        """
        images = np.stack([_square(image, self.size) for image in images])  # (B, size, size, 3)
        z = self.backbone.encode_images(images)  # (B, c, h, w)
        condition = self.backbone.encode_text([""] * len(images), self.size)
        seeds = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:7], "big") for image in images]
        total: torch.Tensor | None = None
        for draw in range(max(1, self.draws)):
            x = z
            if self.draws:
                noise = keyed_noise(seeds, z.shape[1:], self.t, draw).to(z)
                x = diffuse(z, noise, float(self.backbone.abar[self.t]))
            maps = self._queries(x, condition)
            total = maps if total is None else total + maps
        return total / max(1, self.draws)

    def _queries(self, x: torch.Tensor, condition: Any) -> torch.Tensor:
        """(B, c, h, w) -> (B, C, side, side)"""
        found: dict[str, torch.Tensor] = {}

        def keep(name: str, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
            found[name] = output.float()  # (B, n, d)

        with ExitStack() as hooks:
            for name, layer in self.layers:
                hooks.callback(layer.to_q.register_forward_hook(partial(keep, name)).remove)
            self.backbone.noise(x, self.t, condition)
        if silent := [name for name, _ in self.layers if name not in found]:
            raise RuntimeError(f"no queries recorded from {silent[0]}")
        maps = []
        for q in (found[name] for name, _ in self.layers):
            r = round(q.shape[1] ** 0.5)  # pictures are square here
            maps.append(q.mT.unflatten(2, (r, r)))  # (B, d, r, r)
        side = self.side or max(m.shape[-1] for m in maps)
        return torch.cat([_at_side(m, side) for m in maps], 1)


class NetworkExtractor:
    """CLIP, DINO or MAE: the chosen layers of a frozen network, beside each other on the grid of the finest one.

    Args:
        name: of the extractor, which is the network's family.
        settings: which network and what of it.
        id: of the network, where ``settings`` leave it to the caller.
        device: where it runs.

    Raises:
        UserError: see ``maskmill.segmenters.extractors``.
    """

    def __init__(self, name: str, settings: FrozenNetwork, id: str, device: str) -> None:
        source = locate(name, id, settings.revision)
        self.network = Extractor(source, settings.facet, settings.layers, settings.size, device)
        self.facts = {"family": name, "weights": source.stamp(), "facet": settings.facet,
                      "layers": list(self.network.names), "size": settings.size}  # fmt: skip

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """(B, H, W, 3) uint8, or a list of pictures of any sizes -> (B, C, h, w) float32 on the network's device."""
        rows = self.network(images)
        levels = [torch.from_numpy(np.stack([row[key] for row in rows])) for key in _finest_first(rows[0])]
        side = max(level.shape[-1] for level in levels)
        return torch.cat([_at_side(x.to(self.network.device).float(), side) for x in levels], 1)


FeatureExtractor = QueryExtractor | NetworkExtractor


def open_extractors(
    model: Model, names: Sequence[str], settings: Extractors, device: str = "cpu"
) -> dict[str, FeatureExtractor]:
    """Load feature extractors.

    Args:
        model: the section ``model`` of the parameters; ``sd`` is its diffusion model, and ``clip`` its CLIP model where
            the extractor's own id is empty.
        names: which ones, of ``NAMES``; empty takes ``settings.names``.
        settings: the section ``extractors``.
        device: a torch device string.

    Returns:
        name -> callable, (B, H, W, 3) uint8 -> (B, C, h, w) float32 tensor on the device, with ``facts``: a dict of
        JSON values that tells it from others. The grid (h, w) is each extractor's own and does not depend on (H, W).

    Raises:
        UserError: an unknown name or one twice, a network without an id, or one that cannot be loaded.
    """
    names = list(names) or list(settings.names)
    makers: dict[str, Callable[[], FeatureExtractor]] = {
        "sd": lambda: _open_queries(model, settings, device),
        **{name: partial(_open_network, name, model, settings, device) for name in NAMES[1:]},
    }
    for i, name in enumerate(names):
        if name not in makers:
            raise UserError(f"extractors.names: expected names among {', '.join(NAMES)}, got {name!r}")
        if name in names[:i]:
            raise UserError(f"extractors.names: expected each extractor once, got {name} again")
    return {name: makers[name]() for name in names}


def _open_queries(model: Model, settings: Extractors, device: str) -> QueryExtractor:
    sd = settings.sd
    backbone = Backbone(model.id, model.revision, model.dtype, device)
    return QueryExtractor(backbone, sd.t, sd.size, sd.side, sd.draws, _weights(model))


def _open_network(name: str, model: Model, settings: Extractors, device: str) -> NetworkExtractor:
    own: FrozenNetwork = getattr(settings, name)
    id = own.id or (model.clip if name == "clip" else "")
    if not id:
        raise UserError(f"extractors.{name}.id: expected a folder or hub id of a {name} network, got ''")
    return NetworkExtractor(name, own, id, device)


def _weights(model: Model) -> Any:
    """What identifies the diffusion model: the files of a local folder's parts, else the hub id and revision."""
    folder = Path(model.id).expanduser()
    if not folder.is_dir():
        return {"id": model.id, "revision": model.revision, "dtype": model.dtype}
    files = store.fingerprint([[part, store.hash_tree(folder / part)] for part in PARTS])
    return {"files": files, "dtype": model.dtype}


def _finest_first(levels: dict[str, np.ndarray]) -> list[str]:
    """The names ``feature_{side}_{k}`` from the finest grid to the coarsest, within one by k."""
    return sorted(levels, key=lambda key: (-levels[key].shape[-1], int(key.rpartition("_")[2])))


def _at_side(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(B, d, r, r) float32 -> (B, d, side, side), bilinear, smoothed where it shrinks."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False, antialias=True)


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, squashed where its sides differ."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected images (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC))
