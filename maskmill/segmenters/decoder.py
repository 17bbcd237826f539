"""The segment decoder of DiffusionSeg (3.3.2): a three-layer fully convolutional net on frozen features F^l."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import interpolate, pixel_shuffle

from maskmill.errors import UserError


def side_of(name: str) -> int:
    """Side of the map ``feature_{side}_{k}``."""
    try:
        return int(name.split("_")[1])
    except (IndexError, ValueError):
        raise UserError(f"feature {name!r}: expected a name like feature_16_0") from None


class Decoder(nn.Module):
    """Three convolutions: one per level onto a common width, where the levels are added up; two on the sum.

    The paper says "three-layer FCN" on features of three resolutions and no more. Chosen here: the levels are brought
    to the largest side bilinearly and fused by addition; channels are standardised by their statistics over the
    training set (kept with the weights), because blocks differ in scale by factors; the last layer predicts
    ``upsample`` x ``upsample`` logits per cell, so that an edge need not follow the cells.

    Args:
        channels: feature name -> its channels; the names tell the sides.
        width: channels of the common map.
        kernel: side of the first layer's kernel, odd.
        upsample: logits per cell and side; 1 is a plain FCN.
    """

    def __init__(self, channels: Mapping[str, int], width: int, kernel: int, upsample: int) -> None:
        super().__init__()
        self.channels, self.upsample = dict(sorted(channels.items())), upsample  # the weights are in this order
        self.sides = sorted({side_of(name) for name in channels})
        self.levels = nn.ModuleDict(
            {
                str(s): nn.Conv2d(
                    sum(c for n, c in channels.items() if side_of(n) == s), width, kernel, padding=kernel // 2
                )
                for s in self.sides
            }
        )
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, upsample**2, 3, padding=1)
        for name, c in channels.items():
            self.register_buffer(f"mean_{name}", torch.zeros(c))
            self.register_buffer(f"std_{name}", torch.ones(c))

    def standardise_by(self, mean: Mapping[str, torch.Tensor], std: Mapping[str, torch.Tensor]) -> None:
        """Set the channel statistics, each (C,) by feature name; a channel that never varies is left at std 1."""
        for name in self.channels:
            self.get_buffer(f"mean_{name}").copy_(mean[name])
            self.get_buffer(f"std_{name}").copy_(torch.where(std[name] > 1e-6, std[name], 1.0))

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features by name, each (B, C, side, side) -> logits (B, 1, s, s), s = upsample * the largest side.

        Raises:
            UserError: features of another kind than those that the decoder was made for.
        """
        for name, c in self.channels.items():
            if name not in inputs or inputs[name].shape[1] != c:
                got = ", ".join(f"{n} of {value.shape[1]}" for n, value in inputs.items())
                raise UserError(f"features: expected {name} of {c} channels, as in the decoder's training, got {got}")
        fused = 0
        for side in self.sides:
            maps = []
            for name in (n for n in self.channels if side_of(n) == side):
                mean, std = self.get_buffer(f"mean_{name}"), self.get_buffer(f"std_{name}")
                maps.append((inputs[name] - mean[:, None, None]) / std[:, None, None])
            level = self.levels[str(side)](torch.cat(maps, 1))  # (B, width, side, side)
            if side != self.sides[-1]:
                level = interpolate(level, size=self.sides[-1], mode="bilinear", align_corners=False)
            fused = fused + level
        return pixel_shuffle(self.last(torch.relu(self.middle(torch.relu(fused)))), self.upsample)
