"""Zero-shot classification with CLIP: the judge of generated pictures (noise filter) and of the miniature's quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from maskmill.errors import UserError

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a good picture of a {}", "a {}")


class ZeroShot:
    """An open_clip model as a classifier over class names.

    Args:
        model: a local folder with ``open_clip_config.json`` and safetensors weights, or ``name/pretrained tag`` as in
            ``open_clip.list_pretrained()``, for example ``ViT-B-16/openai``.
        classes: the names to choose from.
        templates: prompts with ``{}``; a class is the mean of its normalised prompt embeddings.
        device: where it runs.

    Raises:
        UserError: the folder is no open_clip model, holds no safetensors or broken ones; the name is unknown.
    """

    def __init__(
        self, model: str, classes: Sequence[str], templates: Sequence[str] = TEMPLATES, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        name, pretrained = _locate(model)
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=device, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # a broken folder makes open_clip and safetensors raise errors of any kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"model.clip {model}: cannot be loaded: {reason}") from None
        self.model.eval().requires_grad_(False)
        self.classes = tuple(classes)
        with torch.inference_mode():
            rows = []
            for cls in self.classes:
                text = self.model.encode_text(tokenizer([t.format(cls) for t in templates]).to(device), normalize=True)
                rows.append(torch.nn.functional.normalize(text.mean(0), dim=0))
            self.text = torch.stack(rows)  # (classes, d)
            self.scale = float(self.model.logit_scale.exp())

    @torch.inference_mode()
    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images (H, W, 3) uint8 -> softmax over the classes, (n, classes) float64."""
        out = []
        for image in images:  # one at a time: a picture's score must not depend on its neighbours
            x = self.preprocess(Image.fromarray(image))[None].to(self.device)
            features = self.model.encode_image(x, normalize=True)
            out.append((self.scale * features.double() @ self.text.double().T).softmax(-1)[0].cpu().numpy())
        return np.stack(out)


def _locate(model: str) -> tuple[str, str | None]:
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"{folder}: expected an open_clip model folder, got one without open_clip_config.json")
        if not list(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: expected weights as *.safetensors, found none")
        return f"local-dir:{folder}", None
    name, _, tag = model.partition("/")
    if (name, tag) not in open_clip.list_pretrained():
        raise UserError(f"model.clip {model}: expected a model folder, or name/tag that open_clip lists, found neither")
    return name, tag
