"""The fine-tuned model under its two concepts, y_f (the object) and y_b (a background), as a source of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskmill.diffusion.backbone import Backbone, Condition
from maskmill.diffusion.inpainting import sample_concept, use_unet
from maskmill.errors import UserError


def object_prompt(template: str, word: str) -> str:
    """y_f: the word in its template. Raises ``UserError`` for a template without ``{}``."""
    if "{}" not in template:
        raise UserError(f"distill.object: expected a text with {{}} where the word goes, got {template!r}")
    return template.replace("{}", word)


class ConceptSampler:
    """Pictures by DDIM (eta 0), guided between the concepts or under one of them.

    Args:
        backbone: its U-Net is replaced by the fine-tuned one.
        unet: folder of that one, as ``inpainting.save_unet`` writes it.
        prompts: y_f and y_b.
        size: side of a picture in pixels. steps: T.
        negative: the prompt that ``alone`` is guided away from.

    Raises:
        UserError: the folder is no U-Net for this model, or the size is no whole number of latent cells.
    """

    def __init__(self, backbone: Backbone, unet: Path, prompts: tuple[str, str], size: int, steps: int,
                 negative: str = "") -> None:  # fmt: skip
        if size % backbone.scale:
            raise UserError(f"generate.size: expected a multiple of {backbone.scale}, the model's latent cell, "
                            f"got {size}")  # fmt: skip
        use_unet(backbone, unet)
        self.backbone, self.size, self.steps = backbone, size, steps
        self.y_f, self.y_b, self.negative = (backbone.encode_text([prompt], size) for prompt in (*prompts, negative))

    def __call__(self, seeds: Sequence[int], w: float) -> np.ndarray:
        """(B, size, size, 3) uint8 at guidance w between y_b (0) and y_f (1); a picture depends on its own seed alone.
        """
        return self._paint(seeds, self.y_f, self.y_b, w)

    def alone(self, seeds: Sequence[int], concept: str, scale: float) -> np.ndarray:
        """The same under ``concept``, "y_f" or "y_b", with classifier-free guidance of this scale, as any prompt is
        asked for a picture: the other concept has no part in it."""
        return self._paint(seeds, {"y_f": self.y_f, "y_b": self.y_b}[concept], self.negative, scale)

    def _paint(self, seeds: Sequence[int], towards: Condition, away: Condition, w: float) -> np.ndarray:
        z = sample_concept(self.backbone, towards, away, seeds, self.size, w=w, steps=self.steps)
        return self.backbone.decode(z)
