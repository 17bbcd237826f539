"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020), the post-processing of OVDiff.

    alpha(p, q) = softmax over q in N(p) of the mean over colours of -|I_p - I_q| / (0.1 sigma_p)
    m'(p) = sum over q in N(p) of alpha(p, q) m(q),   so many times over

N(p) are the eight neighbours of p at each of several distances (dilations), together; sigma_p is the standard deviation
of each colour over them and p. Beyond the frame the picture goes on as its outermost pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from maskmill.errors import UserError

ITERATIONS, DILATIONS = 10, (1, 2, 4, 8, 12, 24)
TEMPERATURE = 0.1
_EPS = 1e-8
_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


@torch.inference_mode()
def pamr(
    masks: torch.Tensor | np.ndarray,
    image: np.ndarray,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> torch.Tensor:
    """Smooth soft masks along the picture's colours.

    Each result is a mean of values of the mask, so it stays within their range, and masks that add up to 1 still do.

    Args:
        masks: (K, h, w) float: probabilities, similarities, or labels one-hot. What they are matters: a few steps move
            an outline only where both sides differ little.
        image: (h, w, 3) uint8, of the same size.
        iterations: at least 0; 0 gives the masks.
        dilations: distances of the neighbours in pixels, each at least 1; their number times 8 weights per pixel are
            kept.

    Returns:
        (K, h, w) float32 on the device of ``masks``.

    Raises:
        UserError: sizes differ, or a dilation is below 1.
    """
    m = torch.as_tensor(masks).float()
    if m.ndim != 3 or image.shape != (*m.shape[1:], 3):
        raise UserError(f"PAMR: expected masks (K, h, w) and a picture (h, w, 3) of one size, got {tuple(m.shape)} and "
                        f"{image.shape}")  # fmt: skip
    if not dilations or min(dilations) < 1:
        raise UserError(f"PAMR: expected dilations of at least 1, got {list(dilations)}")
    x = torch.from_numpy(np.array(image)).to(m.device).permute(2, 0, 1).float() / 255  # (3, h, w)
    alpha = affinities(x, dilations)
    for _ in range(iterations):
        m = sum(a * near for a, near in zip(alpha, _neighbours(m, dilations), strict=True))
    return m


def affinities(x: torch.Tensor, dilations: Sequence[int]) -> torch.Tensor:
    """alpha of each pixel and neighbour, (D * 8, h, w), sum 1 over the first axis. ``x``: (3, h, w) float32, 0..1."""
    k = 0.0
    for colour in x.split(1):  # (1, h, w)
        near = torch.cat(list(_neighbours(colour, dilations)))  # (D * 8, h, w)
        sigma = torch.cat([near, *[colour] * len(dilations)]).std(0)  # (h, w); p stands once beside each eight
        k = k - (colour - near).abs() / (_EPS + TEMPERATURE * sigma)
    return (k / len(x)).softmax(0)


def _neighbours(x: torch.Tensor, dilations: Sequence[int]):
    """(C, h, w) -> the picture moved by each offset in turn, (C, h, w) each; values beyond the frame repeat its own."""
    (h, w), reach = x.shape[-2:], max(dilations)
    padded = F.pad(x[None], (reach,) * 4, mode="replicate")[0]  # (C, h + 2 reach, w + 2 reach)
    for d in dilations:
        for dy, dx in _AROUND:
            top, left = reach + d * dy, reach + d * dx
            yield padded[:, top : top + h, left : left + w]
