"""Diffusion features F^l (DiffusionSeg, Eq. 8): outputs of the transformer blocks, averaged over a pass's steps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from maskmill.errors import UserError

PER_RESOLUTION = 2


class FeatureMean:
    """Averages the outputs of some transformer blocks over U-Net calls; use it as a context.

    The paper takes six "SpatialTransformer" blocks, two at each of three resolutions, and does not say which: the
    contracting path has just two per resolution in Stable Diffusion, the expanding one three, of which the last two
    are taken here.

    Args:
        unet: a diffusers UNet2DConditionModel.
        path: "up" (expanding) or "down" (contracting) path.

    Raises:
        UserError: the path has no transformer block.
    """

    def __init__(self, unet: nn.Module, path: Literal["up", "down"] = "up") -> None:
        self.blocks: list[tuple[str, nn.Module]] = []
        for i, stage in enumerate(getattr(unet, f"{path}_blocks")):
            found = [(f"{path}_blocks.{i}.{name}", m) for name, m in stage.named_modules()
                     if isinstance(m, Transformer2DModel)]  # fmt: skip
            self.blocks += found[-PER_RESOLUTION:]
        if not self.blocks:
            raise UserError(f"{type(unet).__name__}: expected transformer blocks on the {path} path, found none")
        self.unet = unet
        self.rows = slice(None)  # of a batch that count, until the context is left; under guidance the prompt's half
        self._sums: dict[str, torch.Tensor] = {}
        self._calls = 0
        self._handles: list = []

    def __enter__(self) -> FeatureMean:
        self._sums, self._calls = {}, 0
        for name, block in self.blocks:
            self._handles.append(block.register_forward_hook(self._hook(name)))
        self._handles.append(self.unet.register_forward_hook(self._count))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self.rows = [], slice(None)

    def _hook(self, name: str):
        def add(module: nn.Module, args: tuple, output) -> None:
            value = (output[0] if isinstance(output, tuple) else output.sample)[self.rows].float()  # (B, C, h, w)
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

        return add

    def _count(self, module: nn.Module, args: tuple, output) -> None:
        self._calls += 1

    def end(self) -> list[dict[str, np.ndarray]]:
        """-> per sample {``feature_{side}_{k}``: (C, h, w) float16}, k in network order within a resolution.

        Raises:
            RuntimeError: no U-Net call, or a block that was silent.
        """
        silent = [name for name, _ in self.blocks if name not in self._sums]
        if silent or not self._calls:
            raise RuntimeError(f"no features recorded from {silent[0] if silent else 'the U-Net, it never ran'}")
        out: list[dict[str, np.ndarray]] = []
        seen: dict[int, int] = {}
        for name, _ in self.blocks:
            mean = (self._sums[name] / self._calls).half().cpu().numpy()
            side = mean.shape[-1]
            k = seen[side] = seen.get(side, -1) + 1
            out = out or [{} for _ in range(len(mean))]
            for sample, value in zip(out, mean, strict=True):
                sample[f"feature_{side}_{k}"] = value
        return out
