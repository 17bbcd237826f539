"""Picture grids: one row per sample, named panels beside each other, made to be looked at."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskmill.errors import UserError
from maskmill.store import write_atomically

INK, SOFT_INK, FAINT = (34, 39, 46), (112, 121, 131), (238, 240, 243)
MASK_TINT = (255, 92, 40)  # orange: rare as a main colour of scenes, and bright on grey
TRUTH_TINT = (34, 160, 120)
KINDS = ("image", "heat", "mask", "truth")


@dataclass(frozen=True)
class Column:
    """One column of a grid.

    Attributes:
        key: which entry of ``Row.panels`` it shows.
        title: heading; ``A_c`` is set with a subscript.
        kind: ``image`` (H, W, 3) uint8; ``heat`` (h, w) float, any resolution; ``mask`` and ``truth`` (H, W) bool.
        note: second, smaller line of the heading.
        limits: values that get the ends of the colour scale; ``None`` takes each map's own minimum and maximum.
    """

    key: str
    title: str
    kind: str
    note: str = ""
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One sample.

    Attributes:
        image: (H, W, 3) uint8, also the background of the other panels.
        panels: arrays by column key; an absent one is drawn as an empty field.
        caption: text below the row; ``word`` within it is set bold.
        word: the class word.
        texts: short text below single panels by column key, such as ``{"cut": "IoU 0.83"}``.
    """

    image: np.ndarray
    panels: Mapping[str, np.ndarray]
    caption: str = ""
    word: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


ATTENTIONCUT_COLUMNS = (
    Column("image", "Picture", "image"),
    Column("ac", "A_c", "heat", "attention to the word"),
    Column("r", "r", "heat", "affinity to its edge"),
    Column("objectness", "Objectness", "heat", "A_c + βr", (0.0, 1.0)),
    Column("cut", "Minimum cut", "mask", "the mask found"),
    Column("truth", "Ground truth", "truth"),
)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's own copy of DejaVu Sans: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


@cache
def _colours(name: str) -> np.ndarray:
    """(256, 3) float32 colours of a matplotlib map, 0..255."""
    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(np.float32)


def _resized(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """Nearest when it grows (crisp pixels), area mean when it shrinks. (h, w[, 3]) -> (height, width[, 3]) float32"""
    if array.shape[:2] == (height, width):
        return array.astype(np.float32)
    grows = width >= array.shape[1] and height >= array.shape[0]
    how = Image.NEAREST if grows else Image.BOX
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize((width, height), how), np.float32)
    return np.asarray(Image.fromarray(array.astype(np.float32), "F").resize((width, height), how))


def _grey(picture: np.ndarray) -> np.ndarray:
    """Luminance in three channels. (H, W, 3) -> (H, W, 3) float32"""
    return np.repeat((picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, -1)


def heat_panel(
    picture: np.ndarray, heat: np.ndarray, limits: tuple[float, float] | None = None, colormap: str = "inferno"
) -> np.ndarray:
    """A map over the darkened grey picture: low values let the picture through, high ones glow.

    Args:
        picture: (H, W, 3) float32, 0..255.
        heat: (h, w) of any resolution; NaN counts as the lowest.
        limits: values of the dark and the bright end; ``None``: the map's own minimum and maximum.

    Returns:
        (H, W, 3) float32, 0..255.
    """
    heat = np.asarray(heat, np.float32)
    known = heat[np.isfinite(heat)]
    low, high = limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    level = np.clip((np.nan_to_num(heat, nan=low) - low) / max(high - low, 1e-12), 0, 1)
    level = _resized(level, picture.shape[1], picture.shape[0])[..., None]  # (H, W, 1)
    glow = _colours(colormap)[np.rint(level[..., 0] * 255).astype(int)]  # (H, W, 3)
    return _grey(picture) * 0.5 * (1 - level) * 0.55 + glow * (0.45 + 0.55 * level)


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The inner rim of a (H, W) bool mask, ``width`` pixels wide; the frame of the picture is no rim."""
    core = mask
    for _ in range(width):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~core


def mask_panel(
    picture: np.ndarray, mask: np.ndarray, tint: tuple[int, int, int] = MASK_TINT, line: int = 3
) -> np.ndarray:
    """A mask over the picture: inside tinted and outlined, outside grey and faded.

    Args:
        picture: (H, W, 3) float32, 0..255.
        mask: (h, w) bool.
        line: width of the outline in pixels.

    Returns:
        (H, W, 3) float32, 0..255.
    """
    inside = _resized(np.asarray(mask, np.float32), picture.shape[1], picture.shape[0]) > 0.5
    colour = np.array(tint, np.float32)
    faded = _grey(picture) * 0.42 + 255 * 0.5
    panel = np.where(inside[..., None], picture * 0.7 + colour * 0.3, faded)
    panel[_edge(inside, line)] = colour
    return panel


def _panel(row: Row, column: Column, width: int, height: int) -> np.ndarray | None:
    """One panel, (height, width, 3) uint8, or ``None`` when the row has no such entry."""
    value = row.image if column.key == "image" else row.panels.get(column.key)
    if value is None:
        return None
    value = np.asarray(value)
    if value.ndim != (3 if column.kind == "image" else 2):
        raise UserError(f"picture grid, panel {column.key!r}: expected a {column.kind}, got shape {value.shape}")
    picture = _resized(row.image, width, height)
    if column.kind == "image":
        panel = _resized(value, width, height)
    elif column.kind == "heat":
        panel = heat_panel(picture, value, column.limits)
    else:
        line = max(2, round(width / 64))
        panel = mask_panel(picture, value.astype(bool), TRUTH_TINT if column.kind == "truth" else MASK_TINT, line)
    return np.clip(panel + 0.5, 0, 255).astype(np.uint8)


def _write(pen: ImageDraw.ImageDraw, x: float, y: float, pieces: Sequence[tuple], anchor: str = "ls") -> None:
    """Draw (text, font, colour[, drop]) pieces one after the other from (x, y) on one baseline."""
    for text, font, colour, *drop in pieces:
        pen.text((x, y + (drop[0] if drop else 0)), text, font=font, fill=colour, anchor=anchor)
        x += font.getlength(text)


def _with_subscripts(text: str, size: int, bold: bool, colour: tuple) -> list[tuple]:
    """``A_c`` as pieces with a lowered small c."""
    pieces = []
    for part in re.split(r"(_\w)", text):
        if re.fullmatch(r"_\w", part):
            pieces.append((part[1:], _font(round(size * 0.72), bold), colour, round(size * 0.22)))
        elif part:
            pieces.append((part, _font(size, bold), colour))
    return pieces


def _caption_pieces(row: Row, size: int, room: float) -> list[tuple]:
    """The caption with its class word bold, cut with an ellipsis to ``room`` pixels."""
    text = row.caption
    while text and _font(size).getlength(text) > room:
        text = text[:-2].rstrip() + "…"
    parts = re.split(rf"(\b{re.escape(row.word)}\b)", text) if row.word else [text]
    return [(p, _font(size, p == row.word), INK if p == row.word else SOFT_INK) for p in parts if p]


def picture_grid(
    rows: Sequence[Row],
    columns: Sequence[Column] = ATTENTIONCUT_COLUMNS,
    path: str | Path | None = None,
    title: str = "",
    panel: int = 192,
) -> Image.Image:
    """Draw a grid of samples and panels, and write it as PNG when a path is given.

    Args:
        rows: the samples, at least one.
        columns: the panels, left to right.
        path: PNG to write, whole or not at all; the bytes depend on the arguments only.
        title: one line at the top.
        panel: width of a panel in pixels; its height follows the picture. A multiple of the picture's side gives
            square pixels of one size.

    Returns:
        The picture, RGB.
    """
    if not rows or not columns:
        raise UserError("picture grid: expected at least one row and one column, got none")
    for column in columns:
        if column.kind not in KINDS:
            raise UserError(f"picture grid, column {column.key!r}: expected kind {', '.join(KINDS)}, got "
                            f"{column.kind!r}")  # fmt: skip
    gap, margin, size = max(6, panel // 20), max(16, panel // 7), max(11, round(panel / 14.5))
    below, between = round(size * 1.75), round(size * 1.3)
    heights = [max(1, round(panel * row.image.shape[0] / row.image.shape[1])) for row in rows]
    head = margin + (round(size * 2.6) if title else 0) + round(size * 3.0)
    width = 2 * margin + len(columns) * panel + (len(columns) - 1) * gap
    height = head + sum(heights) + len(rows) * below + (len(rows) - 1) * between + margin // 2
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    _draw_head(pen, columns, title, margin, panel + gap, head, size)
    y = head
    for row, h in zip(rows, heights, strict=True):
        _draw_row(canvas, pen, row, columns, (margin, y, panel, h, gap), size)
        y += h + below + between
    if path is not None:
        buffer = io.BytesIO()
        canvas.save(buffer, "PNG", optimize=True)
        write_atomically(path, buffer.getvalue())
    return canvas


def _draw_head(pen, columns: Sequence[Column], title: str, margin: int, pitch: int, head: int, size: int) -> None:
    if title:
        _write(pen, margin, margin + round(size * 1.1), [(title, _font(round(size * 1.3), True), INK)])
    small = max(9, round(size * 0.82))
    for i, column in enumerate(columns):
        x, base = margin + i * pitch, head - round(size * (1.75 if any(c.note for c in columns) else 0.7))
        _write(pen, x, base, _with_subscripts(column.title, size, True, INK))
        _write(pen, x, head - round(size * 0.6), _with_subscripts(column.note, small, False, SOFT_INK))


def _draw_row(canvas, pen, row: Row, columns: Sequence[Column], place: tuple[int, ...], size: int) -> None:
    x0, y, width, height, gap = place
    base = y + height + round(size * 1.45)
    with_text = [i for i, c in enumerate(columns) if c.key in row.texts]
    for i, column in enumerate(columns):
        x = x0 + i * (width + gap)
        drawn = _panel(row, column, width, height)
        if drawn is None:
            pen.rectangle((x, y, x + width - 1, y + height - 1), fill=FAINT)
            pen.text((x + width / 2, y + height / 2), "–", font=_font(size), fill=SOFT_INK, anchor="mm")
        else:
            canvas.paste(Image.fromarray(drawn), (x, y))
        if column.key in row.texts:
            _write(pen, x, base, [(row.texts[column.key], _font(size, True), INK)])
    first = with_text[0] if with_text else len(columns)
    _write(pen, x0, base, _caption_pieces(row, size, max(0, first * (width + gap) - 2 * gap)))
