"""Features of frozen image networks beside the diffusion model: CLIP, DINO, MAE, MoCo (DiffusionSeg Table 4, OVDiff).

A network is named by family, id and revision: a local folder, a hub id, or for CLIP a ``name/tag`` of open_clip. Three
layouts are read, all with safetensors weights only:

- open_clip: ``open_clip_config.json``, ``open_clip_model.safetensors``; vision transformers and ResNets;
- timm: ``config.json`` with the key ``architecture``, ``model.safetensors``; vision transformers and ResNets;
- transformers: ``config.json`` with the key ``model_type``, ``model.safetensors``, ``preprocessor_config.json``.

``convert`` makes a timm folder of a checkpoint that its authors publish as a pickle, as MoCo's do:

>>> convert("vit-b-300ep.pth.tar", "vit_base_patch16_224", "models/moco")

Each picture is squashed to a square and normalised with the network's own mean and standard deviation. Where the side
is not the one that a vision transformer was trained on, its positions are interpolated by the library it comes from.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from open_clip.model import CLIPVisionCfg
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import save_for_hf
from torch import nn
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from maskmill import store
from maskmill.errors import UserError
from maskmill.hub import download

Family = Literal["clip", "dino", "mae", "moco"]
Facet = Literal["token", "key", "query", "value"]

MODEL_TYPES = {  # of transformers; timm's architectures do not tell how a network was trained
    "clip": ("clip", "clip_vision_model"),
    "dino": ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    "mae": ("vit_mae", "vit"),
    "moco": ("vit",),
}
WEIGHTS = {  # in each library's own order of preference, so that what is hashed is what is loaded
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    "timm": ("model.safetensors",),
    "transformers": ("model.safetensors", "model-*-of-*.safetensors"),
}
CONVERT = "of a checkpoint, maskmill.segmenters.extractors.convert makes such a folder"
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
RESNET_STRIDE = 32  # pixels per cell of the last stage
PARTS = ("query", "key", "value")  # their order in a joint projection
PREFIXES = ("module.base_encoder.", "module.encoder_q.", "module.backbone.", "backbone.", "module.")
HEADS = ("head.", "fc.", "predictor.", "decoder_", "mask_token")  # parts of a checkpoint that make no features


# --- finding the files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a network's files are: a folder in one of the three layouts, or None for a ``name/tag`` of open_clip."""

    family: str
    id: str
    library: Literal["open_clip", "timm", "transformers"]
    folder: Path | None
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.family} {self.id}"

    def stamp(self) -> dict[str, str]:
        """File name -> SHA-256 of configuration and weights, for fingerprints."""
        return {path.name: store.hash_file(path) for path in self.files}


def locate(family: Family, id: str, revision: str = "") -> Source:
    """Find a network's files, and get them from the hub where they are not here (unless HF_HUB_OFFLINE is set).

    Args:
        family: clip, dino, mae or moco.
        id: a local folder, a hub id, or for clip ``name/tag`` as in ``open_clip.list_pretrained()``.
        revision: commit or tag on the hub; empty for a folder, a ``name/tag``, or the newest.

    Raises:
        UserError: nothing is found, or no safetensors weights of this family; says what to put where.
    """
    if family not in MODEL_TYPES:
        raise UserError(f"{family} {id}: expected a family among {', '.join(MODEL_TYPES)}, got {family!r}")
    local = Path(id).expanduser()
    if local.is_file():
        raise UserError(f"{family} {id}: expected a folder, got a file; {CONVERT}")
    name, _, tag = id.partition("/")
    listed = family == "clip" and (name, tag) in open_clip.list_pretrained()
    if (local.is_dir() or listed) and revision:
        raise UserError(f"{family} {id}: expected no revision with a folder or name/tag, got {revision!r}")
    if local.is_dir():
        library = _library(family, local)
        return Source(family, id, library, local, _files(family, local, library))
    if listed:
        return Source(family, id, "open_clip", None, (_tagged(name, tag),))
    if family == "clip" and name in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"clip {id}: expected one of the tags of {name} ({tags}), got {tag!r}")
    if id.startswith((".", "/", "~")) or len(local.parts) != 2 or local.parts[0] == "data":
        tags = ", or name/tag as open_clip lists them" if family == "clip" else ""
        raise UserError(
            f"{family} {id}: expected a folder with config.json and *.safetensors, found none; put them there, or give "
            f"a hub id like owner/name{tags}"
        )
    fetch = partial(snapshot_download, id, revision=revision or None)
    try:
        folder = Path(fetch(allow_patterns=["*.json"]))
        library = _library(family, folder)
        folder = Path(fetch(allow_patterns=["*.json", *WEIGHTS[library]]))
    except UserError:
        raise
    except Exception as error:  # no network, no such repository, a gated one: each an error of its own kind
        line = download(id, revision, "it", ("*.json", "*.safetensors"))
        raise UserError(
            f"{family} {id}: cannot be had from the hub ({_reason(error)}); download it where you can: {line}"
        ) from None
    return Source(family, id, library, folder, _files(family, folder, library))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected JSON, got: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _library(family: str, folder: Path) -> Literal["open_clip", "timm", "transformers"]:
    """Which library's layout a folder has."""
    if family == "clip" and (folder / "open_clip_config.json").is_file():
        return "open_clip"
    config = folder / "config.json"
    if not config.is_file():
        others = " or open_clip_config.json" if family == "clip" else ""
        raise UserError(f"{folder}: expected config.json{others} of a {family} network, found none; {CONVERT}")
    document = _read_json(config)
    if isinstance(document.get("architecture"), str):
        return "timm"
    kind = document.get("model_type")
    if kind in MODEL_TYPES[family]:
        return "transformers"
    wanted = ", ".join(MODEL_TYPES[family])
    raise UserError(f"{config}: expected timm's 'architecture', or for {family} a model_type of {wanted}, got {kind!r}")


def _files(family: str, folder: Path, library: str) -> tuple[Path, ...]:
    """Configuration and weights of a folder."""
    weights = next((found for name in WEIGHTS[library] if (found := sorted(folder.glob(name)))), None)
    if not weights:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".tar"))
        got = f"the pickle {pickles[0]}; convert it to safetensors" if pickles else "none"
        raise UserError(f"{folder}: expected weights as {WEIGHTS[library][0]}, found {got}")
    if library == "open_clip":
        return (folder / "open_clip_config.json", *weights)
    more = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    return (folder / "config.json", *(path for path in more if path.is_file()), *weights)


def _tagged(name: str, tag: str) -> Path:
    """The weights of an open_clip ``name/tag``, got from the hub where they are not here; a pickle is refused."""
    config = open_clip.get_pretrained_cfg(name, tag)
    found = ""
    if config.get("hf_hub"):
        try:
            found = open_clip.download_pretrained(config)
        except Exception as error:
            raise UserError(
                f"clip {name}/{tag}: cannot be had ({_reason(error)}); download it where you can: hf download "
                f"{config['hf_hub'].strip('/')} --local-dir models/{name}, then give models/{name}"
            ) from None
    if not found.endswith(".safetensors"):
        raise UserError(f"clip {name}/{tag}: expected safetensors weights, open_clip has a pickle; choose another tag")
    return Path(found)


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tower:
    """An image network as its library loads it, with what the extractor needs to know.

    Attributes:
        module: the network.
        run: (B, 3, S, S) -> passes all ``blocks``; what it returns is not used.
        blocks: (name, module) of the transformer blocks or ResNet stages in network order.
        patch: side of a token in pixels; 0 for a ResNet.
        mean, std: of each channel, of pixels within 0..1.
    """

    module: nn.Module
    run: Callable[[torch.Tensor], object]
    blocks: list[tuple[str, nn.Module]]
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_side(source: Source, size: int, step: int) -> None:
    """Refuse an input side that is no whole number of patches, or of cells of a ResNet's last stage."""
    if size < step or size % step:
        near = " or ".join(str(n * step) for n in (size // step, size // step + 1) if n)
        raise UserError(f"{source}: expected a size that is a multiple of {step}, got {size}; the nearest is {near}")


def _load_open_clip(source: Source, size: int) -> Tower:
    name, tag, more = f"local-dir:{source.folder}", None, {}
    if source.folder is None:
        name, _, tag = source.id.partition("/")
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"):
            more["force_quick_gelu"] = True  # otherwise open_clip warns, and computes with another activation
    document = open_clip.get_model_config(name)["vision_cfg"]
    if document.get("timm_model_name"):
        raise UserError(f"{source}: expected open_clip's own ViT or ResNet, got timm's {document['timm_model_name']}")
    vision = CLIPVisionCfg(**document)
    patch = 0 if isinstance(vision.layers, (tuple, list)) else vision.patch_size
    check_side(source, size, patch or RESNET_STRIDE)
    if patch:
        more["force_image_size"] = size  # resizes the positions as it loads them
    model = open_clip.create_model(name, tag, weights_only=True, require_pretrained=True, **more)
    visual = model.visual
    run = partial(visual.forward_intermediates, intermediates_only=True)  # without the pooling, which fixes the side
    if patch:
        blocks = [(f"transformer.resblocks.{i}", block) for i, block in enumerate(visual.transformer.resblocks)]
    else:
        blocks = [(stage, getattr(visual, stage)) for stage in RESNET_STAGES]
    return Tower(visual, run, blocks, patch, tuple(visual.preprocess_cfg["mean"]), tuple(visual.preprocess_cfg["std"]))


def _load_timm(source: Source, size: int) -> Tower:
    model = timm.create_model(f"local-dir:{source.folder}", pretrained=True)
    _check_complete(source, model)
    if hasattr(model, "blocks") and hasattr(model, "set_input_size"):
        patch = model.patch_embed.patch_size[0]
        check_side(source, size, patch)
        model.set_input_size(img_size=(size, size))
        blocks = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
    elif all(hasattr(model, stage) for stage in RESNET_STAGES):
        patch = 0
        check_side(source, size, RESNET_STRIDE)
        blocks = [(stage, getattr(model, stage)) for stage in RESNET_STAGES]
    else:
        raise UserError(f"{source}: expected a vision transformer or a ResNet, got timm's {type(model).__name__}")
    data = timm.data.resolve_model_data_config(model)
    return Tower(model, model.forward_features, blocks, patch, tuple(data["mean"]), tuple(data["std"]))


def _check_complete(source: Source, model: nn.Module) -> None:
    """Refuse weights with fewer tensors than the network has; timm leaves gaps random when it adapts a head."""
    names: set[str] = set()
    for path in source.files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names.update(file.keys())
    found, wanted = (sum(not name.endswith("num_batches_tracked") for name in of) for of in (names, model.state_dict()))
    if found < wanted:
        raise UserError(f"{source}: expected weights of {wanted} tensors, found {found}; get them anew")


def _load_transformers(source: Source, size: int) -> Tower:
    mean, std = _normalisation(source)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model, found = AutoModel.from_pretrained(
        source.folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))  # which comes too late
    if missing:
        raise UserError(f"{source}: expected weights of {missing[0]}, found none in {source.files[-1].name}")
    visual = getattr(model, "vision_model", model)
    patch = visual.config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    check_side(source, size, patch)
    known = inspect.signature(visual.forward).parameters
    more: dict[str, Any] = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}

    def run(x: torch.Tensor) -> object:
        if "noise" not in known:
            return visual(pixel_values=x, **more)
        # MAE shuffles its patches by noise and drops a share of them: rising noise and a share of 0 leave them be.
        noise = torch.arange((size // patch) ** 2, dtype=torch.float32, device=x.device).expand(len(x), -1)
        return visual(pixel_values=x, noise=noise, **more)

    if "noise" in known:
        visual.config.mask_ratio = 0.0
    return Tower(visual, run, _blocks_with_projections(source, visual), patch, mean, std)


def _blocks_with_projections(source: Source, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """transformers calls the list of blocks layer or layers, here or there: the list whose items all have a k_proj."""
    for name, found in module.named_modules():
        if isinstance(found, nn.ModuleList) and len(found) and all("k_proj" in _named(block) for block in found):
            return [(f"{name}.{i}", block) for i, block in enumerate(found)]
    raise UserError(f"{source}: expected transformer blocks with q_proj, k_proj and v_proj, found none")


def _normalisation(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation in the preprocessor's configuration of a transformers folder."""
    path = next((p for p in source.files if p.name.endswith("processor_config.json")), None)
    if path is None:
        raise UserError(f"{source}: expected preprocessor_config.json with image_mean and image_std, found none")
    document = _read_json(path)
    document = document.get("image_processor", document)
    if not document.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = document.get("image_mean"), document.get("image_std")
    if not all(isinstance(v, list) and len(v) == 3 for v in (mean, std)):
        raise UserError(f"{path}: expected image_mean and image_std of three channels, got {mean} and {std}")
    return tuple(mean), tuple(std)


LOADERS = {"open_clip": _load_open_clip, "timm": _load_timm, "transformers": _load_transformers}


# --- extracting -------------------------------------------------------------------------------------------------------


def _named(block: nn.Module) -> dict[str, nn.Module]:
    """The last part of each submodule's name -> the submodule."""
    return {name.rpartition(".")[2]: module for name, module in block.named_modules()}


def _tap(block: nn.Module, facet: Facet, keep: Callable[[torch.Tensor], None]):
    """Have ``keep`` called with a block's output, or with its attention's keys, queries or values, heads side by side.

    -> the handle of the hook, or None where the block has no attention that is known here.
    """
    if facet == "token":
        return block.register_forward_hook(lambda _, args, out: keep(out[0] if isinstance(out, tuple) else out))
    part, named = PARTS.index(facet), _named(block)
    if "qkv" in named:  # timm: one projection, (B, N, 3 d)
        return named["qkv"].register_forward_hook(lambda _, args, out: keep(out.chunk(3, -1)[part]))
    if f"{facet[0]}_proj" in named:  # transformers
        return named[f"{facet[0]}_proj"].register_forward_hook(lambda _, args, out: keep(out))
    attention = named.get("attn")
    if isinstance(attention, nn.MultiheadAttention):  # open_clip: the projection is a bare weight, so it is done here

        def project(module: nn.MultiheadAttention, args: tuple) -> None:
            bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[part]
            keep(F.linear(args[part], module.in_proj_weight.chunk(3)[part], bias))

        return attention.register_forward_pre_hook(project)
    return None


def choose(source: Source, layers: Sequence[int], count: int) -> list[int]:
    """Layer numbers, from 0 or negative from the end -> distinct numbers from 0 in network order."""
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"{source}: expected layers from {-count} to {count - 1}, got {layer}")
    chosen = sorted({layer % count for layer in layers})
    if not chosen or len(chosen) != len(layers):
        raise UserError(f"{source}: expected at least one layer and each of its {count} once, got {list(layers)}")
    return chosen


class Extractor:
    """A frozen image network that turns pictures into feature maps of some of its layers.

    Args:
        source: the network, see ``locate``.
        facet: what is taken: ``token``, the output of a block or ResNet stage; ``key``, ``query`` or ``value`` of a
            block's self-attention, all heads side by side, before any normalisation or rotation of them.
        layers: numbers of blocks or ResNet stages, from 0, or negative from the end.
        size: side of the square input in pixels; a multiple of the patch, or of 32 for a ResNet.
        device: where it runs, in float32.

    Attributes:
        names: names of the chosen layers in the network.
        recorded: feature name -> the layer it comes from; filled by the first call.
        meta: all of this as JSON facts, for a store's manifest.

    Raises:
        UserError: the files cannot be loaded or are incomplete; ``facet``, ``layers`` or ``size`` do not suit them.
    """

    def __init__(
        self, source: Source, facet: Facet, layers: Sequence[int], size: int, device: str | torch.device = "cpu"
    ) -> None:
        try:
            self.tower = LOADERS[source.library](source, size)
        except UserError:
            raise
        except Exception as error:  # broken files make the libraries raise errors of any kind
            raise UserError(f"{source}: cannot be loaded ({_reason(error)})") from None
        if not self.tower.patch and facet != "token":
            raise UserError(f"{source}: expected the facet token with a ResNet, which has no attention, got {facet}")
        self.source, self.facet, self.size, self.device = source, facet, size, torch.device(device)
        self.tower.module.to(self.device).eval().requires_grad_(False)
        self._chosen = [self.tower.blocks[i] for i in choose(source, layers, len(self.tower.blocks))]
        self.names = [name for name, _ in self._chosen]
        self._mean, self._std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1)
                                 for v in (self.tower.mean, self.tower.std))  # fmt: skip
        self.recorded: dict[str, str] = {}

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "family": self.source.family, "id": self.source.id, "library": self.source.library, "facet": self.facet,
            "size": self.size, "patch": self.tower.patch, "mean": list(self.tower.mean), "std": list(self.tower.std),
            "features": self.recorded,
        }  # fmt: skip

    def pixels(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 each -> the network's input, (B, 3, S, S) float32; other sides are squashed (bicubic)."""
        squares = []
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"expected images (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
            if image.shape[:2] != (self.size, self.size):
                image = np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.BICUBIC))
            squares.append(image)
        x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(self.device).float()  # (B, 3, S, S)
        return (x / 255 - self._mean) / self._std

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray] | np.ndarray) -> list[dict[str, np.ndarray]]:
        """Pictures -> features, in the form of F^l (``maskmill.diffusion.features``).

        Args:
            images: (B, H, W, 3) uint8, or a list of B pictures (H, W, 3) uint8 of any size.

        Returns:
            Per picture {``feature_{side}_{k}``: (C, side, side) float16}, k in network order within a side. Tokens that
            are no patch (class, registers) are dropped.

        Raises:
            RuntimeError: a layer that recorded nothing.
            UserError: a value that float16 cannot hold.
        """
        found: dict[str, torch.Tensor] = {}
        with ExitStack() as hooks:
            for name, block in self._chosen:
                handle = _tap(block, self.facet, partial(found.__setitem__, name))
                if handle is not None:
                    hooks.callback(handle.remove)
            self.tower.run(self.pixels(images))
        out: list[dict[str, np.ndarray]] = [{} for _ in images]
        self.recorded = {}
        for name in self.names:
            if name not in found:
                raise RuntimeError(f"{self.source}: no {self.facet} recorded from {name}")
            maps = self._as_maps(name, found[name])
            side = maps.shape[-1]
            key = f"feature_{side}_{sum(k.startswith(f'feature_{side}_') for k in self.recorded)}"
            self.recorded[key] = name
            for sample, value in zip(out, maps.cpu().numpy(), strict=True):
                sample[key] = value
        return out

    def _as_maps(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Tokens (B, prefix + h w, C) or maps (B, C, h, w) -> (B, C, h, w) float16."""
        if self.tower.patch:
            side = self.size // self.tower.patch
            if value.ndim != 3 or value.shape[1] < side * side:
                raise RuntimeError(f"{self.source}: {name}: expected {side * side} patches, got {tuple(value.shape)}")
            value = value[:, value.shape[1] - side * side :].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # B C h w
        half = value.half()
        if not torch.isfinite(half).all():
            raise UserError(f"{self.source}: {name}: expected values that float16 can hold, got some above 65504")
        return half.contiguous()


# --- making a folder of a published pickle ----------------------------------------------------------------------------


def convert(checkpoint: str | Path, architecture: str, folder: str | Path, **model_args: Any) -> None:
    """Write ``folder`` in timm's layout from the checkpoint of DINO's, MAE's or MoCo's authors.

    These were trained with ImageNet's mean and standard deviation, which is written beside the weights. Nothing but
    the encoder is kept: of MoCo the query encoder without its projection head, of MAE no decoder.

    Args:
        checkpoint: a pickle (opened with ``weights_only=True``) or safetensors.
        architecture: timm's name of the network, for example vit_base_patch16_224 or resnet50.
        folder: what to write.
        model_args: what differs from timm's network of that name; MoCo v3's small one has ``num_heads=12``.

    Raises:
        UserError: no readable checkpoint, or one that is not this network with nothing missing or left over.
    """
    path = Path(checkpoint)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: expected a checkpoint of tensors ({_reason(error)})") from None
    for key in ("state_dict", "model", "teacher"):
        state = state.get(key, state)
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in state)), "")
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        model = timm.create_model(architecture, num_classes=0, **model_args)
        own = {name: value for name, value in state.items() if not name.startswith(HEADS)}
        model.load_state_dict(own, strict=True)
    except Exception as error:
        raise UserError(f"{path}: expected the weights of {architecture} ({_reason(error)})") from None
    statistics = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    with store.fresh_folder(folder) as aside:
        save_for_hf(model, str(aside), safe_serialization=True, data_config=statistics)
