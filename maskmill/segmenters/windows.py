"""Sliding windows at several scales plus the whole picture, and the average of what was found in them (OVDiff 4).

A picture is scaled so that its shorter side is ``short`` pixels. Over it go square windows of several sizes, stepping
by ``stride`` pixels down and to the right, the last of a row or column moved back to end where the picture ends; and
one view of the whole. The similarities of each view are brought to its pixels bilinearly, and a pixel's are the mean
over the views that hold it, each counting the same.

Views of one size form a lattice, all rows with all columns of it. Interpolation being linear along each axis, merging a
lattice is two matrix products with the views side by side; no view is ever enlarged on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from maskmill.errors import UserError
from maskmill.masks.attentioncut import resize

SHORT, SIZES, STRIDE = 448, (448, 336), 224  # OVDiff's
STRIP = 64 * 2**20  # bytes of similarities that are enlarged to a picture's size at a time


@dataclass(frozen=True)
class Lattice:
    """Views of one size: their ``height`` and ``width`` in pixels of the scaled picture, and where they begin, ``tops``
    and ``lefts``. The views are all tops with all lefts, row by row."""

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) of each view."""
        return [(top, left, self.height, self.width) for top in self.tops for left in self.lefts]


@dataclass(frozen=True)
class Plan:
    """How a picture is looked at: ``shape`` (h, w) of the scaled picture, and its lattices of views in order."""

    shape: tuple[int, int]
    lattices: tuple[Lattice, ...]

    def __len__(self) -> int:
        return sum(map(len, self.lattices))

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) of each view, in the order of ``cut`` and ``merge``."""
        return [box for lattice in self.lattices for box in lattice.boxes()]


def plan(
    height: int,
    width: int,
    short: int = SHORT,
    sizes: Sequence[int] = SIZES,
    stride: int = STRIDE,
    whole: bool = True,
) -> Plan:
    """Where the views of a picture of height x width pixels lie.

    Args:
        short: what the shorter side is scaled to, the longer one in proportion; 0 leaves the picture as it is.
        sizes: sides of the square windows in pixels of the scaled picture.
        stride: step from one window to the next, at least 1.
        whole: whether the whole picture is one more view, the first. A window that is all of the picture is not
            repeated then.

    Raises:
        UserError: the picture is smaller than a window, a size or the stride is not at least 1, or there is no view.
    """
    if min((*sizes, stride), default=1) < 1 or short < 0:
        raise UserError(f"windows: expected sizes and a stride of at least 1, got {list(sizes)} and {stride}")
    if short:
        scale = short / min(height, width)
        height, width = (short if side * scale < short else round(side * scale) for side in (height, width))
    lattices = [Lattice(height, width, (0,), (0,))] if whole else []
    for size in sizes:
        if size > min(height, width):
            raise UserError(f"windows: expected a picture of at least {size}x{size} pixels for windows of that size, "
                            f"got {width}x{height}; ask for smaller windows or scale it up")  # fmt: skip
        if not (whole and size == height == width):
            lattices.append(Lattice(size, size, _starts(height, size, stride), _starts(width, size, stride)))
    if not lattices:
        raise UserError("windows: expected a window size, or the whole picture as a view, got neither")
    return Plan((height, width), tuple(lattices))


def _starts(side: int, size: int, stride: int) -> tuple[int, ...]:
    """Where the windows along one side begin: every ``stride`` pixels, and so that the last one ends with it."""
    starts = list(range(0, side - size + 1, stride))
    if starts[-1] != side - size:
        starts.append(side - size)
    return tuple(starts)


def cut(image: np.ndarray, views: Plan) -> list[np.ndarray]:
    """The views of a picture.

    Args:
        image: (H, W, 3) uint8, of the size that the plan was made for; scaled here (bicubic).

    Returns:
        Per lattice (n, height, width, 3) uint8.
    """
    h, w = views.shape
    if image.shape[:2] != (h, w):
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))
    out = []
    for lattice in views.lattices:
        all_of_them = np.lib.stride_tricks.sliding_window_view(image, (lattice.height, lattice.width), axis=(0, 1))
        of_lattice = all_of_them[np.ix_(lattice.tops, lattice.lefts)]  # (rows, columns, 3, height, width)
        out.append(of_lattice.transpose(0, 1, 3, 4, 2).reshape(-1, lattice.height, lattice.width, 3))
    return out


def merge(similarity: torch.Tensor | Sequence[torch.Tensor], views: Plan) -> torch.Tensor:
    """The mean similarity of each pixel of the scaled picture over the views that hold it.

    Args:
        similarity: (n, K, a, b) float of all views in the order of ``Plan.boxes``, on any grid (a, b); or such a tensor
            per lattice, where grids differ.

    Returns:
        (K, h, w) float32.
    """
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.split([len(lattice) for lattice in views.lattices])
    h, w = views.shape
    total, count = 0, 0
    for s, lattice in zip(similarity, views.lattices, strict=True):
        n, k, a, b = s.shape
        if n != len(lattice):
            raise ValueError(f"expected {len(lattice)} views of {lattice.height}x{lattice.width} pixels, got {n}")
        down = _placed(lattice.tops, lattice.height, a, h, s.device)  # (h, rows * a)
        right = _placed(lattice.lefts, lattice.width, b, w, s.device)  # (w, columns * b)
        s = s.float().unflatten(0, (len(lattice.tops), len(lattice.lefts)))  # (rows, columns, K, a, b)
        s = s.permute(2, 0, 3, 1, 4).reshape(k, down.shape[1], right.shape[1])  # (K, rows * a, columns * b)
        total = total + down @ s @ right.T  # (K, h, w)
        count = count + torch.outer(down.sum(1), right.sum(1))  # rows of an interpolation add to 1: views per pixel
    return total / count.round()


def _placed(starts: Sequence[int], size: int, cells: int, side: int, device: torch.device) -> torch.Tensor:
    """(side, views * cells): the interpolation of each view's cells to its pixels, at its place along one side."""
    out = torch.zeros(side, len(starts), cells, device=device)
    for i, start in enumerate(starts):
        out[start : start + size, i] = _interpolation(cells, size, device)
    return out.flatten(1)


def cells_at(views: Plan, row: float, column: float, grid: tuple[int, int]) -> list[tuple[int, int, int]]:
    """What each view saw at a place, for explanations.

    Args:
        row, column: of the place as shares of the picture's height and width, in 0..1.
        grid: (a, b) cells of every view.

    Returns:
        (number of the view in the order of ``Plan.boxes``, row and column of its cell), for the views that hold it.
    """
    y, x = row * views.shape[0], column * views.shape[1]
    out = []
    for number, (top, left, height, width) in enumerate(views.boxes()):
        down, right = (y - top) / height, (x - left) / width  # shares of the view
        if 0 <= down <= 1 and 0 <= right <= 1:
            out.append((number, min(int(down * grid[0]), grid[0] - 1), min(int(right * grid[1]), grid[1] - 1)))
    return out


def enlarge(similarity: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(K, h, w) float32 -> (K, H, W), bilinear, smoothed where an axis shrinks."""
    down, right = (_interpolation(a, b, similarity.device) for a, b in zip(similarity.shape[1:], size, strict=True))
    return down @ similarity @ right.T


def label_map(similarity: torch.Tensor, size: tuple[int, int], budget: int = STRIP) -> np.ndarray:
    """The label of each pixel of the original picture: the largest similarity after ``enlarge``.

    Args:
        similarity: (K, h, w) float32, merged.
        size: (H, W) of the original picture.
        budget: bytes of enlarged similarities that are held at a time; strips of at least one row.

    Returns:
        (H, W) uint8; of equal similarities the first label.
    """
    k, h, w = similarity.shape
    height, width = size
    if k > 256:
        raise UserError(f"label map: expected at most 256 labels with the background, got {k}")
    down, right = _interpolation(h, height, similarity.device), _interpolation(w, width, similarity.device)
    wide = similarity.float() @ right.T  # (K, h, W)
    rows = max(1, budget // (4 * k * width))
    strips = [(down[a : a + rows] @ wide).argmax(0) for a in range(0, height, rows)]  # (rows, W) each
    return torch.cat(strips).to(torch.uint8).cpu().numpy()


def _interpolation(cells: int, size: int, device: torch.device) -> torch.Tensor:
    """(size, cells): bilinear interpolation along one axis as a matrix."""
    return torch.from_numpy(resize(np.eye(cells, dtype=np.float32), (size, cells)).copy()).to(device)
