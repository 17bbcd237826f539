"""The miniature's own CLIP (open_clip): the judge and the prior of the pipeline, trained on world pictures only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file

from maskmill.pretraining.loop import batch_rng
from maskmill.pretraining.vae import to_tensor
from maskmill.world import CLASSES

MEAN = STD = (0.5, 0.5, 0.5)


def config(width: int, layers: list[int], embed_dim: int, size: int, vocab_size: int, context: int) -> dict:
    """open_clip's model configuration of a small ResNet and a one-layer text transformer.

    A ResNet, because at this size it learns the world from a tenth of the pictures that a vision transformer needs.
    """
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": size, "layers": list(layers), "width": width, "head_width": 32},
        "text_cfg": {
            "context_length": context, "vocab_size": vocab_size, "width": embed_dim, "heads": 2, "layers": 1,
            "hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": {"strip_sep_token": False},
        },
    }  # fmt: skip


def build(model_config: dict) -> CLIP:
    """The open_clip model of a configuration made by ``config``."""
    text = {k: v for k, v in model_config["text_cfg"].items() if not k.startswith(("hf_", "tokenizer_"))}
    return CLIP(model_config["embed_dim"], model_config["vision_cfg"], text)


def most_telling(captions: list[list[str]], keep: int = 2) -> np.ndarray:
    """(n, keep): which captions of each scene name the most classes.

    A picture whose second object is not named would be pushed away from that object's word by its neighbours' captions.
    """
    named = np.array([[sum(cls in text.split() for cls in CLASSES) for text in texts] for texts in captions])
    return np.argsort(-named, axis=1, kind="stable")[:, :keep]


def loss(model: CLIP, step: int, images: np.ndarray, tokens: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """Symmetric contrastive loss; two pictures with the very same caption count as one target, split evenly.

    ``tokens`` is (n, captions per scene, context): one caption of each scene is drawn. Every process computes the whole
    batch: contrast and batch normalisation need all of it, and the model is small.
    """
    rng, _ = batch_rng(seed, step)
    index = np.sort(rng.integers(0, len(images), batch))
    x = to_tensor(images[index]).to(tokens.device)
    flip = torch.from_numpy(rng.random(batch) < 0.5).to(x.device)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    text = tokens[index, rng.integers(0, tokens.shape[1], batch)].long()  # (B, context)
    image_features, text_features, scale = model(x, text)
    logits = (scale * image_features @ text_features.T).float()
    target = (text[:, None] == text[None]).all(-1).float()
    target = target / target.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def save(model: CLIP, model_config: dict, tokenizer, folder: Path) -> None:
    """Write the folder that open_clip reads as ``local-dir:<folder>``: configuration, safetensors, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": model_config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
