"""An explanation as a picture: the place that was asked about, and the support regions whose prototypes decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maskmill.masks.coco import decode
from maskmill.report.grids import FAINT, INK, SOFT_INK, _edge, _font, _resized, _write
from maskmill.report.labelmaps import palette, tinted

GREY = (70, 74, 80)  # of the background, which has no colour of its own
FEW = 0.002  # share of the picture up to which a region is ringed instead of outlined


def explained(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], explanation: Mapping[str, Any],
    supports: Mapping[tuple[str, str], np.ndarray], panel: int = 288,
) -> Image.Image:  # fmt: skip
    """One row per extractor: the picture with its label map and the place, then for the label and for the runner-up
    the support image with the region of the prototype that decided in most cells.

    Args:
        image: (H, W, 3) uint8. labels: (H, W) uint8. names: of the labels, the background first.
        explanation: of ``maskmill.segmenters.openvocab.Segmenter.explain``.
        supports: (class, image) -> support image (H', W', 3) uint8; one that is not here leaves an empty panel.
        panel: width of a panel in pixels.

    Returns:
        The picture, RGB.
    """
    sides = [(kind, explanation[key]) for kind, key in (("won", "label"), ("runner-up", "runner_up"))
             if explanation[key]]  # fmt: skip
    extractors = list(dict.fromkeys(p["extractor"] for _, side in sides for p in side["prototypes"])) or [""]
    size, margin, gap = max(12, panel // 20), panel // 12, panel // 14
    height = round(panel * image.shape[0] / image.shape[1])
    tallest = max([height, *(round(panel * s.shape[0] / s.shape[1]) for s in supports.values())])
    head, title = round(size * 3.9), round(size * 2.6)
    width = 2 * margin + (1 + len(sides)) * panel + len(sides) * gap
    canvas = Image.new("RGB", (width, margin + title + len(extractors) * (head + tallest + gap) + margin // 2), "white")
    pen = ImageDraw.Draw(canvas)
    _write(pen, margin, margin + size, _sentence(explanation, size))
    for i, extractor in enumerate(extractors):
        y = margin + title + i * (head + tallest + gap) + head
        if i == 0:
            number = names.index(explanation["label"]["class"])
            canvas.paste(Image.fromarray(_place(image, labels, explanation, number, panel, height)), (margin, y))
            _above(pen, margin, y, size, "Picture", _where(explanation))
        for j, (kind, side) in enumerate(sides, 1):
            x = margin + j * (panel + gap)
            own = [p for p in side["prototypes"] if p["extractor"] == extractor]
            if not own:
                pen.rectangle((x, y, x + panel - 1, y + tallest - 1), fill=FAINT)
                _above(pen, x, y, size, f"{side['class']} ({kind})", f"a threshold of {side['view_similarity']:.2f}")
                continue
            best = own[0]
            number = names.index(best["class"]) if best["ground"] == "foreground" else 0
            drawn = _support(supports.get((best["class"], best["image"])), best, number, panel)
            if drawn is None:
                pen.rectangle((x, y, x + panel - 1, y + tallest - 1), fill=FAINT)
            else:
                canvas.paste(Image.fromarray(drawn), (x, y))
            of = "" if best["ground"] == "foreground" else f" of {best['class']}"
            cells = len(explanation["view"]["cells"])
            share = f", in {best['cells']} of {cells} cells" if cells > 1 else ""
            _above(pen, x, y, size, f"{side['class']}{of} ({kind})",
                   f"{extractor} {best['kind']}, cosine {best['cosine']:.3f}{share}")  # fmt: skip
    return canvas


def _sentence(explanation: Mapping[str, Any], size: int) -> list[tuple]:
    won, second = explanation["label"], explanation["runner_up"]
    bold, plain = _font(round(size * 1.25), True), _font(round(size * 1.1))
    pieces = [(won["class"], bold, INK), (f"  similarity {won['similarity']:.3f}", plain, INK)]
    if second:
        pieces.append((f"   then {second['class']}, {second['similarity']:.3f}", plain, SOFT_INK))
    return pieces


def _above(pen: ImageDraw.ImageDraw, x: int, y: int, size: int, title: str, note: str) -> None:
    _write(pen, x, y - round(size * 1.9), [(title, _font(round(size * 1.05), True), INK)])
    _write(pen, x, y - round(size * 0.6), [(note, _font(round(size * 0.9)), SOFT_INK)])


def _where(explanation: Mapping[str, Any]) -> str:
    if explanation["pixels"] == 1:
        row, column = np.argwhere(decode(explanation["region"]))[0]
        return f"pixel ({column}, {row})"
    return f"{explanation['pixels']} pixels"


def _place(
    image: np.ndarray, labels: np.ndarray, explanation: Mapping[str, Any], number: int, width: int, height: int
) -> np.ndarray:
    """The picture with its label map, and the region ringed or outlined."""
    panel = tinted(image, labels, (height, width), max(2, width // 144))
    mask = decode(explanation["region"])
    if mask.mean() > FEW:
        return _outlined(panel, mask, _colour(number))
    row, column = np.argwhere(mask).mean(0) + 0.5
    return _ringed(panel, row / mask.shape[0] * height, column / mask.shape[1] * width, width // 24)


def _support(image: np.ndarray | None, prototype: Mapping[str, Any], number: int, width: int) -> np.ndarray | None:
    """The support image with the prototype's region outlined and its nearest cell ringed."""
    if image is None:
        return None
    height = round(width * image.shape[0] / image.shape[1])
    mask = decode(prototype["region"])
    panel = np.clip(_resized(image, width, height) + 0.5, 0, 255).astype(np.uint8)
    panel = _outlined(panel, mask, _colour(number))
    row, column = (at + 0.5 for at in prototype["cell"])
    return _ringed(panel, row / mask.shape[0] * height, column / mask.shape[1] * width, width // 36)


def _colour(number: int) -> tuple[int, ...]:
    return tuple(int(c) for c in palette()[number]) if number else GREY


def _outlined(panel: np.ndarray, mask: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """A white line with a coloured one inside it along the inner rim of a mask of any size; outside paler."""
    height, width = panel.shape[:2]
    inside = _resized(mask.astype(np.float32), width, height) > 0.5
    line = max(2, width // 96)
    out = np.where(inside[..., None], panel, panel * 0.55 + 255 * 0.4).astype(np.uint8)
    out[_edge(inside, 2 * line)] = 255
    out[_edge(inside, line)] = colour
    return out


def _ringed(panel: np.ndarray, row: float, column: float, radius: int) -> np.ndarray:
    canvas = Image.fromarray(panel)
    pen = ImageDraw.Draw(canvas)
    for r, colour, line in ((radius + 2, "white", 5), (radius, "black", 2)):
        pen.ellipse((column - r, row - r, column + r, row + r), outline=colour, width=line)
    return np.asarray(canvas)
