"""Zero-shot classification with CLIP: the judge of generated pictures (noise filter) and of the miniature's quality;
and the CLIP-classifiable prior, which picks the word that a picture is inverted with (DiffusionSeg 3.3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from maskmill.errors import UserError

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a good picture of a {}", "a {}")
PRIOR_TEMPLATES = (
    "a photo of {a}", "a picture of {a}", "a good picture of {a}", "a close photo of {a}",
    "a bright photo of {a}", "a dark photo of {a}", "a photo of the small {}", "a photo of the large {}",
)  # fmt: skip


class ZeroShot:
    """An open_clip model as a classifier over class names.

    Args:
        model: a local folder with ``open_clip_config.json`` and safetensors weights, or ``name/pretrained tag`` as in
            ``open_clip.list_pretrained()``, for example ``ViT-B-16/openai``.
        classes: the names to choose from.
        templates: prompts with ``{}`` for the name or ``{a}`` for the name with its article; a class is the mean of its
            normalised prompt embeddings.
        device: where it runs.
        batch: how many classes, and how many pictures, go through the model at once. A batch is always filled up to
            this size, so a picture's score depends on its neighbours no more than with 1; between two sizes only the
            rounding differs.

    Raises:
        UserError: the folder is no open_clip model, holds no safetensors or broken ones; the name is unknown.
    """

    def __init__(
        self,
        model: str,
        classes: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        device: str = "cpu",
        batch: int = 1,
    ) -> None:
        self.device = torch.device(device)
        self.batch = batch
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
            for names, new in _full_batches(self.classes, batch):
                prompts = [t.format(cls, a=with_article(cls)) for cls in names for t in templates]
                text = self.model.encode_text(tokenizer(prompts).to(device), normalize=True)  # (batch * templates, d)
                text = text.unflatten(0, (batch, len(templates))).mean(1)  # (batch, d)
                rows.append(torch.nn.functional.normalize(text, dim=1)[:new])
            self.text = torch.cat(rows)  # (classes, d)
            self.scale = float(self.model.logit_scale.exp())

    @torch.inference_mode()
    def probabilities(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Images (H, W, 3) uint8 of any sizes, read as they are needed -> softmax over the classes, (n, classes)
        float64."""
        out = [np.empty((0, len(self.classes)))]
        for pictures, new in _full_batches(images, self.batch):  # a picture's score must not depend on its neighbours
            x = torch.stack([self.preprocess(Image.fromarray(p)) for p in pictures]).to(self.device)  # (batch, 3, h, w)
            features = self.model.encode_image(x, normalize=True)
            p = (self.scale * features.double() @ self.text.double().T).softmax(-1)  # (batch, classes)
            out.append(p[:new].cpu().numpy())
        return np.concatenate(out)


def pick_words(
    zero_shot: ZeroShot, images: Iterable[np.ndarray], words: Sequence[str], least: bool = False
) -> list[tuple[str, float]]:
    """The word of each picture and its probability, 0..1: the CLIP-classifiable prior.

    P(word) is the sum over the labels that become it. Labels exclude one another, so this is the probability that one
    of them is right. By the largest label instead, a dog whose probability is spread over a hundred breeds would lose
    to whatever has a single label. The sum has its price: of a picture that says nothing, the word with the most labels
    is picked.

    Args:
        zero_shot: a classifier over fine labels.
        images: (H, W, 3) uint8 each; an iterator is read batch by batch.
        words: what each of its classes becomes, in their order (``maskmill.labels.LabelSet.words``).
        least: the least probable word instead, for a word that the picture does not show.
    """
    names = list(dict.fromkeys(words))
    of_label = [names.index(word) for word in words]
    picks = []
    for row in zero_shot.probabilities(images):
        summed = np.bincount(of_label, row)  # (words,)
        best = int(summed.argmin() if least else summed.argmax())
        picks.append((names[best], float(summed[best])))
    return picks


def with_article(name: str) -> str:
    """``a dog``, ``an ox``, ``an hourglass``, ``a unicycle``; a plural stays as it is: ``jeans``."""
    if re.search(r"[^siu]s$", name):
        return name
    vowel = re.match(r"(?!uni|eu|one\b)[aeiou]|hour", name, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {name}"


def _full_batches(items: Iterable[Any], batch: int) -> Iterator[tuple[list[Any], int]]:
    """Batches of exactly ``batch``, the last one filled up by repeating its last item, and how many of each are new."""
    iterator = iter(items)
    while new := list(islice(iterator, batch)):
        yield new + [new[-1]] * (batch - len(new)), len(new)


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
