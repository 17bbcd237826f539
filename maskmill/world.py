"""The miniature's world: small procedural scenes with captions and exact masks.

A scene is two regions of "stuff" (sky, grass, brick, ...) divided by a horizon and one or two *things* (bird, dog,
car, ...) built of parts (wings, legs, wheels). It is made to be hard where real photographs are hard: two objects of
different classes and of the same size are the rule, one of them is often not named, an object has several colours, and
every region varies inside itself, so that colour alone does not find the named object.

Everything is a pure function of an integer seed: ``render(seed)`` gives the same pixels on every machine with the same
library versions. Coordinates: x to the right, y downwards. An object is drawn in a frame whose width and height are
about 2, centred at 0, facing right, then mirrored, rotated, scaled and moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("bird", "dog", "car", "person", "boat", "tree", "house", "fish")
UPPER_STUFF = ("sky", "brick", "forest", "sunset")
LOWER_STUFF = ("grass", "sand", "water", "snow", "road")
STUFF = UPPER_STUFF + LOWER_STUFF

COLOURS = {
    "red": (200, 45, 40), "orange": (236, 132, 36), "yellow": (240, 206, 64), "green": (64, 152, 70),
    "blue": (48, 88, 200), "purple": (132, 62, 160), "pink": (236, 134, 172), "brown": (122, 76, 42),
    "tan": (206, 166, 118), "white": (240, 240, 236), "grey": (140, 140, 146), "black": (38, 38, 44),
    "teal": (30, 150, 150), "silver": (190, 194, 200), "navy": (34, 44, 96), "cream": (250, 228, 180),
}  # fmt: skip

# Typical colours of a class, as (main, second, accent). Classes overlap: a colour alone never tells the class.
PALETTES = {
    "bird": [("red", "brown", "yellow"), ("blue", "white", "orange"), ("yellow", "black", "orange"),
             ("white", "grey", "orange")],
    "dog": [("brown", "tan", "black"), ("white", "brown", "black"), ("black", "brown", "tan"),
            ("tan", "cream", "black")],
    "car": [("red", "silver", "black"), ("blue", "silver", "black"), ("yellow", "grey", "black"),
            ("silver", "navy", "black")],
    "person": [("red", "navy", "brown"), ("green", "tan", "black"), ("purple", "grey", "yellow"),
               ("white", "blue", "brown")],
    "boat": [("brown", "white", "red"), ("navy", "white", "orange"), ("white", "red", "blue"),
             ("red", "cream", "navy")],
    "tree": [("green", "brown", "green"), ("teal", "brown", "green"), ("orange", "brown", "red"),
             ("pink", "brown", "white")],
    "house": [("white", "red", "brown"), ("yellow", "grey", "blue"), ("tan", "brown", "white"),
              ("grey", "navy", "yellow")],
    "fish": [("orange", "white", "black"), ("purple", "yellow", "white"), ("teal", "yellow", "navy"),
             ("silver", "blue", "pink")],
}  # fmt: skip

# Two colours of each stuff between which a region varies, and the colour of its soft patches (clouds, puddles, ...).
STUFF_COLOURS = {
    "sky": ((96, 158, 226), (176, 212, 240), (238, 240, 244)),
    "sunset": ((226, 122, 70), (132, 84, 150), (250, 204, 120)),
    "forest": ((24, 70, 44), (58, 104, 56), (86, 78, 44)),
    "brick": ((158, 74, 58), (122, 64, 60), (190, 150, 128)),
    "grass": ((84, 158, 62), (136, 180, 78), (196, 196, 84)),
    "sand": ((222, 194, 134), (190, 152, 100), (236, 220, 180)),
    "water": ((40, 92, 170), (66, 144, 178), (170, 206, 220)),
    "snow": ((236, 240, 246), (190, 206, 226), (168, 176, 186)),
    "road": ((92, 92, 98), (126, 122, 120), (200, 196, 176)),
}

SUPERSAMPLE = 4
AREA_RANGE = (0.05, 0.40)  # visible share of the picture that an object may cover


@dataclass(frozen=True)
class Part:
    """A named polygon of an object; ``points`` is (n, 2) in the object's frame, ``colour`` RGB in 0..255."""

    name: str
    points: np.ndarray
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object of a scene. ``mask`` is (S, S) bool, what is visible of it; ``colour`` names its main colour."""

    cls: str
    colour: str
    parts: tuple[str, ...]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A rendered scene: ``image`` (S, S, 3) uint8, ``stuff_mask`` (S, S) bool, true where the upper stuff is."""

    seed: int
    image: np.ndarray
    upper: str
    lower: str
    stuff_mask: np.ndarray
    things: tuple[Thing, ...]

    def label_map(self) -> np.ndarray:
        """(S, S) uint8: 1..8 for ``CLASSES``, 9.. for ``STUFF``; 0 does not occur."""
        base = 1 + len(CLASSES)
        labels = np.where(self.stuff_mask, base + STUFF.index(self.upper), base + STUFF.index(self.lower))
        for thing in self.things:
            labels[thing.mask] = 1 + CLASSES.index(thing.cls)
        return labels.astype(np.uint8)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, n: int = 28) -> np.ndarray:
    a = np.linspace(0, 2 * math.pi, n, endpoint=False)
    x, y = rx * np.cos(a), ry * np.sin(a)
    c, s = math.cos(angle), math.sin(angle)
    return np.stack([cx + c * x - s * y, cy + s * x + c * y], 1)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A thick line as a quadrilateral."""
    dx, dy = x1 - x0, y1 - y0
    length = math.hypot(dx, dy)
    nx, ny = -dy / length * width / 2, dx / length * width / 2
    return np.array([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)])


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


# Each builder returns the parts of one object, back to front, from (rng, main, second, accent colours).


def _bird(rng, main, second, accent) -> list[Part]:
    lift = rng.uniform(-1.0, 0.4)  # wing: up in flight ... folded
    parts = [Part("tail", _poly((-0.5, -0.05), (-1.15, -0.25 + 0.2 * rng.random()), (-1.1, 0.2), (-0.5, 0.2)), second)]
    if lift > -0.4:
        for x in (-0.1, 0.12):
            parts.append(Part("leg", _bar(x, 0.35, x + 0.04, 0.88, 0.09), accent))
    parts += [
        Part("body", _ellipse(0, 0.05, 0.66, 0.42, -0.2), main),
        Part("head", _ellipse(0.62, -0.36, 0.28, 0.27), main),
        Part("beak", _poly((0.84, -0.48), (1.22, -0.32), (0.84, -0.22)), accent),
        Part("eye", _ellipse(0.70, -0.42, 0.07, 0.07), (20, 20, 20)),
        Part("wing", _poly((0.25, -0.05), (-0.35, 0.1), (-0.75, lift), (-0.35, lift - 0.12)), second),
    ]
    return parts


def _dog(rng, main, second, accent) -> list[Part]:
    swing, up = rng.uniform(-0.14, 0.14), rng.uniform(-0.8, -0.1)
    parts = [Part("tail", _bar(-0.72, -0.12, -1.1, up, 0.15), main)]
    for x, s in ((-0.6, swing), (-0.36, -swing), (0.3, swing), (0.54, -swing)):
        parts.append(Part("leg", _bar(x, 0.2, x + s, 0.88, 0.2), main if s == swing else second))
    parts += [
        Part("body", _ellipse(-0.05, 0.08, 0.8, 0.36), main),
        Part("neck", _bar(0.5, 0.05, 0.78, -0.4, 0.4), main),
        Part("head", _ellipse(0.84, -0.48, 0.33, 0.29), main),
        Part("snout", _ellipse(1.12, -0.38, 0.24, 0.15), second),
        Part("nose", _ellipse(1.3, -0.42, 0.08, 0.07), (20, 20, 20)),
        Part("ear", _ellipse(0.66, -0.44, 0.13, 0.32, 0.3), accent),
        Part("eye", _ellipse(0.93, -0.55, 0.06, 0.06), (20, 20, 20)),
    ]
    return parts


def _car(rng, main, second, accent) -> list[Part]:
    roof, nose = rng.uniform(-0.62, -0.42), rng.uniform(0.5, 0.75)
    return [
        Part("cabin", _poly((-0.85, -0.05), (-0.55, roof), (0.3, roof), (nose, -0.05)), main),
        Part("window", _poly((-0.66, -0.08), (-0.46, roof + 0.1), (-0.14, roof + 0.1), (-0.14, -0.08)), second),
        Part("window", _poly((-0.04, -0.08), (-0.04, roof + 0.1), (0.24, roof + 0.1), (nose - 0.16, -0.08)), second),
        Part("body", _poly((-1.1, -0.05), (1.0, -0.05), (1.14, 0.12), (1.14, 0.38), (-1.14, 0.38), (-1.16, 0.1)), main),
        Part("light", _ellipse(1.06, 0.12, 0.09, 0.09), (250, 240, 170)),
        *(p for x in (-0.62, 0.62) for p in (Part("wheel", _ellipse(x, 0.4, 0.27, 0.27), accent),
                                            Part("hub", _ellipse(x, 0.4, 0.12, 0.12), second))),
    ]  # fmt: skip


def _person(rng, main, second, accent) -> list[Part]:
    skin = ((236, 190, 150), (176, 120, 80), (110, 72, 48))[rng.integers(3)]
    stride, a, b = rng.uniform(0.06, 0.3), rng.uniform(-0.75, 0.75), rng.uniform(-0.75, 0.75)
    return [
        Part("leg", _bar(-0.13, 0.3, -0.13 - stride, 1.15, 0.26), second),
        Part("leg", _bar(0.13, 0.3, 0.13 + stride, 1.15, 0.26), second),
        Part("arm", _bar(-0.26, -0.4, -0.74, -0.2 + a * 0.7, 0.18), skin),
        Part("arm", _bar(0.26, -0.4, 0.74, -0.2 + b * 0.7, 0.18), skin),
        Part("torso", _poly((-0.38, -0.52), (0.38, -0.52), (0.32, 0.4), (-0.32, 0.4)), main),
        Part("hair", _ellipse(0, -0.94, 0.31, 0.31), accent),
        Part("head", _ellipse(0.03, -0.86, 0.26, 0.29), skin),
        Part("eye", _ellipse(0.13, -0.9, 0.05, 0.05), (20, 20, 20)),
    ]


def _boat(rng, main, second, accent) -> list[Part]:
    hull = Part("hull", _poly((-1.1, 0.36), (1.15, 0.3), (0.8, 0.86), (-0.8, 0.86)), main)
    stripe = Part("stripe", _poly((-1.02, 0.48), (1.06, 0.43), (0.99, 0.56), (-0.94, 0.6)), accent)
    if rng.random() < 0.7:
        top = rng.uniform(-1.1, -0.85)
        above = [
            Part("mast", _bar(0.02, 0.4, 0.02, top, 0.09), (96, 66, 44)),
            Part("sail", _poly((0.1, top + 0.05), (0.1, 0.22), (0.92, 0.22)), second),
            Part("sail", _poly((-0.08, top + 0.2), (-0.08, 0.22), (-0.78, 0.22)), second),
            Part("flag", _poly((0.0, top - 0.02), (-0.3, top + 0.06), (0.0, top + 0.14)), accent),
        ]
    else:
        above = [
            Part("cabin", _box(-0.6, -0.25, 0.35, 0.36), second),
            Part("funnel", _box(-0.4, -0.7, -0.12, -0.25), accent),
            *(Part("window", _ellipse(x, 0.03, 0.1, 0.1), (40, 60, 90)) for x in (-0.38, -0.1, 0.18)),
        ]
    return [*above, hull, stripe]


def _tree(rng, main, second, accent) -> list[Part]:
    trunk = Part("trunk", _poly((-0.15, 0.1), (0.15, 0.1), (0.2, 1.1), (-0.2, 1.1)), second)
    if rng.random() < 0.5:  # conifer
        crown = [Part("crown", _poly((-w, y), (0, y - 0.85), (w, y)), c)
                 for w, y, c in ((0.86, 0.45, main), (0.7, 0.0, accent), (0.5, -0.42, main))]  # fmt: skip
    else:
        j = rng.uniform(-0.08, 0.08, 6)
        crown = [
            Part("crown", _ellipse(-0.42 + j[0], -0.12 + j[1], 0.46, 0.42), main),
            Part("crown", _ellipse(0.42 + j[2], -0.12 + j[3], 0.46, 0.42), main),
            Part("crown", _ellipse(j[4], -0.55 + j[5], 0.58, 0.52), main),
            *(Part("fruit", _ellipse(x, y, 0.1, 0.1), accent) for x, y in ((-0.35, -0.1), (0.3, -0.2), (0.0, -0.65))),
        ]
    return [trunk, *crown]


def _house(rng, main, second, accent) -> list[Part]:
    peak, w = rng.uniform(-1.1, -0.75), rng.uniform(0.75, 0.95)
    door = rng.choice((-0.35, 0.35))
    return [
        Part("chimney", _box(0.32, -0.95, 0.58, -0.3), accent),
        Part("wall", _box(-w, -0.2, w, 0.95), main),
        Part("roof", _poly((-w - 0.2, -0.15), (0, peak), (w + 0.2, -0.15)), second),
        Part("door", _box(door - 0.17, 0.3, door + 0.17, 0.95), accent),
        Part("window", _box(-door - 0.24, 0.15, -door + 0.24, 0.55), (70, 100, 130)),
    ]


def _fish(rng, main, second, accent) -> list[Part]:
    fat, flick = rng.uniform(0.4, 0.58), rng.uniform(-0.2, 0.2)
    return [
        Part("tail", _poly((-0.6, 0.0), (-1.2, -0.5 + flick), (-1.0, flick), (-1.2, 0.5 + flick)), second),
        Part("fin", _poly((-0.35, -fat * 0.75), (-0.15, -fat - 0.35), (0.4, -fat * 0.8)), second),
        Part("fin", _poly((-0.2, fat * 0.8), (-0.15, fat + 0.28), (0.25, fat * 0.85)), second),
        Part("body", _ellipse(0, 0, 0.86, fat), main),
        *(Part("stripe", _ellipse(x, 0, 0.08, fat * r), accent) for x, r in ((-0.35, 0.84), (0.02, 0.95))),
        Part("eye", _ellipse(0.56, -0.12, 0.12, 0.12), (245, 245, 245)),
        Part("eye", _ellipse(0.58, -0.12, 0.06, 0.06), (20, 20, 20)),
    ]


_BUILDERS = dict(zip(CLASSES, (_bird, _dog, _car, _person, _boat, _tree, _house, _fish), strict=True))


# --- rendering --------------------------------------------------------------------------------------------------------


def _smooth_noise(rng, size: int, cells: int) -> np.ndarray:
    """(S, S) noise in about -1..1 that varies over size/cells pixels."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC))


def _stuff(rng, kind: str, size: int) -> np.ndarray:
    """(S, S, 3) float32 texture of one stuff: two colours mixed by smooth noise and a gradient, patches, a mark."""
    a, b, patch = (np.array(c, np.float32) for c in STUFF_COLOURS[kind])
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    tilt = rng.uniform(-1, 1)
    mix = np.clip(0.5 + 0.45 * _smooth_noise(rng, size, 3) + 0.5 * (y - 0.5) * tilt, 0, 1)[..., None]
    out = a * mix + b * (1 - mix)
    patches = np.clip(3.0 * (_smooth_noise(rng, size, 4) - 0.35), 0, 1)[..., None]
    out = out + (patch - out) * patches * rng.uniform(0.5, 0.9)
    if kind == "brick":
        rows = int(rng.integers(8, 11))
        course = np.floor(y * rows)
        joint = ((y * rows) % 1 < 0.16) | ((x * rows * 0.6 + 0.5 * (course % 2)) % 1 < 0.1)
        out = out + joint[..., None] * 22.0
    elif kind == "water":
        out = out + 9.0 * np.sin(2 * math.pi * (y * rng.uniform(7, 10) + 0.15 * np.sin(9 * x)))[..., None]
    elif kind == "forest":
        out = out + 10.0 * np.sin(2 * math.pi * (x * rng.uniform(7, 10) + 0.1 * np.sin(6 * y)))[..., None]
    return out * rng.uniform(0.88, 1.1)


def _backdrop(rng, upper: str, lower: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two stuffs and the mask of the upper one. -> (S, S, 3) float32, (S, S) bool"""
    horizon = rng.uniform(0.35, 0.68) * size
    x = np.arange(size) / size
    line = horizon + size * (
        rng.uniform(-0.08, 0.08) * (x - 0.5) * 2 + rng.uniform(0, 0.03) * np.sin(2 * math.pi * (x * 1.5 + rng.random()))
    )
    is_upper = np.arange(size)[:, None] < line[None, :]
    image = np.where(is_upper[..., None], _stuff(rng, upper, size), _stuff(rng, lower, size))
    return image, is_upper


def _draw(parts: list[Part], place, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an object anti-aliased; ``place`` maps (n, 2) object points to pixels. -> RGB (S, S, 3), alpha (S, S)"""
    big = size * SUPERSAMPLE
    layer = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for part in parts:
        points = place(part.points) * SUPERSAMPLE
        pen.polygon([tuple(p) for p in points], fill=(*(int(min(255, max(0, c))) for c in part.colour), 255))
    rgba = np.asarray(layer.reduce(SUPERSAMPLE), np.float32)
    return rgba[..., :3], rgba[..., 3] / 255.0


def _unit_area(parts: list[Part]) -> tuple[float, float, float]:
    """Area of the union of the parts, and the half width and half height, in squared and plain object units."""
    n = 80
    layer = Image.new("1", (n, n))
    pen = ImageDraw.Draw(layer)
    for part in parts:
        pen.polygon([tuple(p) for p in (part.points + 1.4) * (n / 2.8)], fill=1)
    inside = np.asarray(layer)
    every = np.concatenate([p.points for p in parts])
    return float(inside.mean() * 2.8**2), float(np.abs(every[:, 0]).max()), float(np.abs(every[:, 1]).max())


def _place_thing(rng, cls: str, centre: tuple[float, float], size: int, largest: float):
    """Choose pose, scale and colours of one object and draw it. -> RGB, alpha, colour name, part names"""
    names = PALETTES[cls][rng.integers(len(PALETTES[cls]))]
    colours = [tuple(np.array(COLOURS[n]) * rng.uniform(0.85, 1.12) + rng.uniform(-12, 12, 3)) for n in names]
    parts = _BUILDERS[cls](rng, *colours)
    area, half_w, half_h = _unit_area(parts)
    target = rng.uniform(0.08, largest) * size * size
    aspect = rng.uniform(0.88, 1.14)
    scale = math.sqrt(target / area)
    scale = min(scale, 0.48 * size / max(half_w * aspect, half_h / aspect))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    angle = rng.uniform(-0.17, 0.17)
    # Keep (almost) all of it inside the picture.
    mx, my = half_w * aspect * scale * 0.96 / size, half_h / aspect * scale * 0.96 / size
    cx, cy = np.clip(centre[0], mx, 1 - mx) * size, np.clip(centre[1], my, 1 - my) * size
    c, s = math.cos(angle), math.sin(angle)

    def place(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0] * mirror * aspect, points[:, 1] / aspect
        return np.stack([cx + scale * (c * x - s * y), cy + scale * (s * x + c * y)], 1)

    rgb, alpha = _draw(parts, place, size)
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
    light = rng.uniform(-0.9, 0.9)  # shading: a plane of light across the object, brighter towards the top
    shade = 1.0 - rng.uniform(0.1, 0.28) * ((yy - cy) + light * (xx - cx)) / (half_h * scale + 1)
    return rgb * np.clip(shade, 0.6, 1.35)[..., None], alpha, names[0], tuple(dict.fromkeys(p.name for p in parts))


def render(seed: int, size: int = 64, two_objects: float = 0.8, classes: tuple[str, ...] = CLASSES) -> Scene:
    """Render the scene of a seed.

    Args:
        seed: any non-negative integer; the scene is a pure function of it and of the other arguments.
        size: side of the square picture in pixels.
        two_objects: probability of two objects, always of different classes.
        classes: the classes that may occur.

    Returns:
        A ``Scene``; every visible object covers ``AREA_RANGE`` of the picture and touches no rule of its own.
    """
    rng = np.random.default_rng([7, seed])
    upper, lower = UPPER_STUFF[rng.integers(len(UPPER_STUFF))], LOWER_STUFF[rng.integers(len(LOWER_STUFF))]
    backdrop, is_upper = _backdrop(rng, upper, lower, size)
    count = 2 if rng.random() < two_objects else 1
    chosen = [classes[i] for i in rng.choice(len(classes), count, replace=False)]
    for _ in range(64):
        if count == 2:
            side = 0.5 * rng.uniform(0.42, 0.52)
            xs = (side, 1 - side)
            centres = [(x, rng.uniform(0.32, 0.72)) for x in xs]
        else:
            centres = [(rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.68))]
        drawn = [_place_thing(rng, c, p, size, 0.22 if count == 2 else 0.34)
                 for c, p in zip(chosen, centres, strict=True)]  # fmt: skip
        visible = [alpha for _, alpha, _, _ in drawn]
        if count == 2:
            hidden = (visible[0] * visible[1]).sum() / visible[0].sum()
            visible[0] = visible[0] * (1 - visible[1])
            if hidden > 0.2:
                continue
        masks = [v > 0.5 for v in visible]
        if all(AREA_RANGE[0] <= m.mean() <= AREA_RANGE[1] for m in masks):
            break
    image = backdrop
    for rgb, alpha, _, _ in drawn:
        image = image * (1 - alpha[..., None]) + rgb * alpha[..., None]
    things = tuple(
        Thing(cls, colour, parts, mask)
        for cls, (_, _, colour, parts), mask in zip(chosen, drawn, masks, strict=True)
    )
    return Scene(seed, np.clip(image + 0.5, 0, 255).astype(np.uint8), upper, lower, is_upper, things)


# --- captions ---------------------------------------------------------------------------------------------------------

_OPENINGS = ("a photo of {}", "a photo of {}", "a picture of {}", "a good picture of {}", "{}")


def article(word: str) -> str:
    """The word with its indefinite article: ``a bird``, ``an orange bird``."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def caption(scene: Scene, seed: int) -> str:
    """A caption of a scene, drawn with its own seed: one or both objects, some with colour, some with the stuff.

    One object of two stays unnamed in half of the captions. The order of two names says nothing about their places.
    """
    rng = np.random.default_rng([11, seed])
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    if len(things) == 2 and rng.random() < 0.5:
        things = things[:1]
    with_colour = rng.random() < 0.3
    nouns = [article(f"{t.colour} {t.cls}" if with_colour else t.cls) for t in things]
    text = " and ".join(nouns)
    text = _OPENINGS[rng.integers(len(_OPENINGS))].format(text)
    where = rng.random()
    if where < 0.3:
        text += f" on {scene.lower}"
    elif where < 0.5:
        text += f" on {scene.lower} in front of {scene.upper}"
    return text
