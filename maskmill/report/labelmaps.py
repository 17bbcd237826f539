"""Label maps as files and as pictures: indexed PNG with a fixed palette, overlays, and a legend.

Label 0 is the background, label k the k-th class; colour k always belongs to label k, whatever the classes are called.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maskmill.datasets.table import read_labels
from maskmill.errors import UserError
from maskmill.report.grids import INK, SOFT_INK, _edge, _font, _grey, _resized

VOID = 255
NONE = (0, 0, 0)  # of the background
VOID_COLOUR = (224, 224, 192)  # as in PASCAL VOC
FIRST = ("#e6553a", "#3d7fd9", "#2fa866", "#a659c9", "#f0a818", "#19b5c4", "#d94a8c", "#8c6a3f")  # apart for most eyes
SMALLEST = 256  # pixels of the shorter side that an overlay is enlarged to, so that its legend can be read
TINT = 0.5


@cache
def palette() -> np.ndarray:
    """(256, 3) uint8: the colour of each label; after the first eight, hues in steps of the golden ratio."""
    colours = [NONE, *(tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in FIRST)]
    for k in range(len(colours), 256):
        light, strong = (0.62, 0.95, 0.8)[k % 3], (0.85, 0.6, 1.0)[k // 3 % 3]
        colours.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k * 0.618034 % 1, strong, light)))
    colours[VOID] = VOID_COLOUR
    return np.array(colours, np.uint8)


@cache
def voc_palette() -> np.ndarray:
    """(256, 3) uint8: the palette of PASCAL VOC's label maps, which many tools write: the label's bits in turn to red,
    green and blue, from their highest bit down."""
    k = np.arange(256)
    out = np.zeros((256, 3), int)
    for bit in range(8):
        for c in range(3):
            out[:, c] |= (k >> (3 * bit + c) & 1) << (7 - bit)
    return out.astype(np.uint8)


# --- files ------------------------------------------------------------------------------------------------------------


def labels_png(labels: np.ndarray) -> bytes:
    """(H, W) uint8 -> an indexed PNG with the palette."""
    image = Image.fromarray(np.asarray(labels, np.uint8), "L")
    image.putpalette(palette().tobytes())
    return png(image)


def png(image: Image.Image | np.ndarray) -> bytes:
    """The bytes of a picture; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def read_label_map(path: str | Path, classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A label map that this project or another tool wrote, checked before it is scored.

    Args:
        path: PNG: one channel, whose values are the labels, or indexed with the palette of this project or of VOC. An
            indexed PNG with other colours is refused: picture editors write such, and number the colours anew.
        classes: labels are 0..classes, or 255 for void.
        size: (H, W) of the truth; None is not compared.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: unreadable, of another size or palette, or with a label that no class has; names the file.
    """
    path = Path(path)
    labels = read_labels(path)
    if size is not None and labels.shape != tuple(size):
        raise UserError(f"{path}: expected a label map of {size[1]}x{size[0]} pixels as the truth, got "
                        f"{labels.shape[1]}x{labels.shape[0]}")  # fmt: skip
    used = np.unique(labels)
    with Image.open(path) as image:
        if image.mode == "P":
            flat = np.zeros(768, np.uint8)
            given = np.array(image.getpalette("RGB") or [], np.uint8)[:768]
            flat[: len(given)] = given
            colours = flat.reshape(256, 3)
            if not any((colours[used] == known[used]).all() for known in (palette(), voc_palette())):
                k = int(next(k for k in used if (colours[k] != palette()[k]).any()))
                raise UserError(
                    f"{path}: expected the palette of this project's or of VOC's label maps, in which label {k} is "
                    f"{_hex(palette()[k])} or {_hex(voc_palette()[k])}, got {_hex(colours[k])}"
                )
    wrong = used[(used > classes) & (used != VOID)]
    if wrong.size:
        raise UserError(f"{path}: expected labels 0 to {classes}, one per class, or {VOID}, got {int(wrong[0])}")
    return labels


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(c):02x}" for c in colour)


# --- pictures ---------------------------------------------------------------------------------------------------------


def tinted(image: np.ndarray, labels: np.ndarray, size: tuple[int, int], line: int = 2) -> np.ndarray:
    """A label map over its picture: classes in their colours with an outline, background faded.

    Args:
        image: (H, W, 3) uint8. labels: (H, W) uint8.
        size: (height, width) of the result; pixels stay crisp where it grows.
        line: width of the outlines in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = size
    picture = _resized(image, width, height)  # (height, width, 3) float32
    rows, columns = (np.arange(n) * side // n for n, side in zip(size, labels.shape, strict=True))
    large = labels[rows][:, columns]  # (height, width)
    panel = _grey(picture) * 0.5 + 255 * 0.4
    for k in np.unique(large):
        if k == 0:
            continue
        inside, colour = large == k, palette()[k].astype(np.float32)
        panel[inside] = picture[inside] * (1 - TINT) + colour * TINT
        panel[_edge(inside, line)] = colour
    return np.clip(panel + 0.5, 0, 255).astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The picture with its label map over it, and under it the legend of the labels that occur.

    Args:
        image: (H, W, 3) uint8; a small one is enlarged by a whole factor.
        labels: (H, W) uint8. names: of all labels; names[0] is the background.

    Returns:
        (H', W', 3) uint8.
    """
    factor = max(1, -(-SMALLEST // min(image.shape[:2])))
    height, width = (factor * side for side in image.shape[:2])
    panel = tinted(image, labels, (height, width), max(2, round(min(height, width) / 160)))
    strip = legend([(int(k), names[k]) for k in np.unique(labels) if 0 < k < len(names)], width)
    return np.concatenate([panel, strip])


def legend(entries: Sequence[tuple[int, str]], width: int, size: int = 0) -> np.ndarray:
    """Colour and name of labels, in as many lines as they need.

    Args:
        entries: (label, name); of none, it says that no class was found.
        width: of the strip in pixels. size: of the letters; 0 chooses.

    Returns:
        (height, width, 3) uint8 on white.
    """
    size = size or min(28, max(12, round(width / 28)))
    font, gap, box = _font(size), round(size * 0.9), round(size * 0.85)
    places, x, line = [], gap, 0
    for label, name in entries:
        need = box + round(size * 0.4) + font.getlength(name)
        if x > gap and x + need + gap > width:
            x, line = gap, line + 1
        places.append((label, name, x, line))
        x += need + gap
    height = round(size * 1.7) * (line + 1) + round(size * 0.5)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    if not entries:
        pen.text((gap, height / 2), "no class found", font=font, fill=SOFT_INK, anchor="lm")
    for label, name, x, row in places:
        middle = round(size * 0.25) + round(size * 1.7) * row + round(size * 0.85)
        top = middle - box // 2
        pen.rectangle((x, top, x + box - 1, top + box - 1), fill=tuple(int(c) for c in palette()[label]))
        pen.text((x + box + round(size * 0.4), middle), name, font=font, fill=INK, anchor="lm")
    return np.asarray(canvas)
