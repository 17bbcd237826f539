"""Saliency of any picture with a trained decoder or end-to-end net: its inputs are made on the fly (DiffusionSeg 3.3).

A decoder reads the features F^l of a picture, which an inversion and its reverse pass give; an end-to-end net reads the
picture alone. See ``maskmill.segmenters.models`` for what is trained, and stage invert_features for the same features
of whole sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.features import FeatureMean
from maskmill.errors import UserError
from maskmill.labels import LabelSet
from maskmill.params import InvertFeatures, Model
from maskmill.prompts import load_tokenizer, word_span
from maskmill.segmenters.models import IMAGE, load_model, predict
from maskmill.zeroshot import PRIOR_TEMPLATES, ZeroShot, pick_words

SHAPE = passes.RecordShape(bins=1, cells=1)  # of the attention, which is not read here
NO_WORD = (1, 2)  # tokens of the empty prompt


class Saliency:
    """A trained net, and the diffusion model where it reads features.

    Args:
        folder: what stage train_decoder wrote.
        model: the diffusion model that the decoder was trained with, and the CLIP model of the prior.
        inverted: steps, path and template of the inversion.
        size: side in pixels to which pictures are squashed for the inversion.
        labels: what CLIP chooses the word of a picture's caption from; None: the empty caption.
        device: where all of it runs.

    Raises:
        UserError: the folder or a model cannot be read, or a template without {}.
    """

    def __init__(
        self, folder: str | Path, model: Model, inverted: InvertFeatures, size: int, labels: LabelSet | None,
        device: str,
    ) -> None:  # fmt: skip
        self.net, self.config = load_model(folder, device)
        self.inverted, self.size, self.labels, self.device = inverted, size, labels, device
        self.backbone: Backbone | None = None
        if self.config["model"] != "fcn":
            return
        if "{}" not in inverted.template:
            raise UserError(f"invert_features.template: expected text with {{}} where the class goes, got "
                            f"{inverted.template!r}")  # fmt: skip
        self.backbone = Backbone(model.id, model.revision, model.dtype, device)
        self.capture = passes.open_capture(self.backbone, SHAPE)
        self.means = FeatureMean(self.backbone.unet, inverted.path)
        self.tokenizer = load_tokenizer(model.id, model.revision)
        if labels is not None:
            if not model.clip:
                raise UserError("model.clip: expected a CLIP model for segment.prior clip, got ''")
            self.judge = ZeroShot(model.clip, labels.labels, PRIOR_TEMPLATES, device)

    def words(self, images: Sequence[np.ndarray]) -> list[str]:
        """The word that each picture is inverted with: what CLIP sees in it, or none."""
        if self.backbone is None or self.labels is None:
            return [""] * len(images)
        return [word for word, _ in pick_words(self.judge, images, self.labels.words)]

    def inputs(self, images: Sequence[np.ndarray], words: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """What the net reads of some pictures, in one batch: pictures of a batch of another size differ by rounding.

        Args:
            images: (H, W, 3) uint8 each.
            words: of ``words``.
        """
        side = self.config["size"] if self.backbone is None else self.size
        squares = np.stack([_square(image, side) for image in images])  # (B, side, side, 3)
        if self.backbone is None:
            return [{IMAGE: (x.transpose(2, 0, 1) / 255.0).astype(np.float16)} for x in squares]
        captions = [self.inverted.template.replace("{}", word) if word else "" for word in words]
        spans = [word_span(self.tokenizer, text, word) if word else NO_WORD
                 for text, word in zip(captions, words, strict=True)]  # fmt: skip
        _, features, _ = passes.invert(self.backbone, self.capture, squares, captions, spans, steps=self.inverted.steps,
                                       bins=SHAPE.bins, features=self.means)  # fmt: skip
        return features

    def soft(self, inputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """One picture's inputs -> probability of foreground (H, W) float32."""
        return predict(self.net, inputs, shape, self.device)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """Squashed to a square, bicubic, as ``maskmill.datasets.table.read_image`` does."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC))
