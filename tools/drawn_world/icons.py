"""The icons of the drawn scenes: each kind is a stack of outlines, and ``stamp`` paints one into its box.

An icon is defined in free units with y down, then rotated and stretched to the box where it is drawn, so that the box
is tight by construction. ``KINDS`` lists what can be drawn.
"""

import colorsys
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from glip.errors import DataError

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

BODY, SHADE, HOLE = "body", "shade", "hole"  # paints that follow the thing: its colour, that colour darker, nothing
NATURAL: dict[str, Colour] = {
    "wood": (120, 78, 42),
    "tar": (34, 34, 38),
    "steel": (176, 180, 186),
    "glass": (196, 226, 240),
    "cream": (246, 236, 214),
    "leaf": (64, 140, 60),
    "gold": (226, 168, 40),
    "roof": (112, 62, 54),
    "chalk": (255, 255, 255),
}

# name -> (hue in degrees, lightness, saturation) and how far each may stray without being taken for another name
COLOURS: dict[str, tuple[Point, Point, Point]] = {
    "red": ((0, 5), (0.45, 0.05), (0.85, 0.1)),
    "orange": ((28, 4), (0.53, 0.03), (0.95, 0.05)),
    "yellow": ((53, 3), (0.54, 0.05), (0.94, 0.06)),
    "green": ((125, 18), (0.36, 0.07), (0.65, 0.15)),
    "cyan": ((184, 5), (0.60, 0.05), (0.80, 0.1)),
    "blue": ((224, 7), (0.46, 0.05), (0.80, 0.1)),
    "purple": ((278, 7), (0.41, 0.05), (0.62, 0.1)),
    "pink": ((338, 8), (0.77, 0.03), (0.85, 0.1)),
    "brown": ((25, 4), (0.27, 0.03), (0.55, 0.08)),
    "black": ((0, 180), (0.06, 0.04), (0.05, 0.05)),
    "white": ((0, 180), (0.97, 0.02), (0.05, 0.05)),
    "gray": ((0, 180), (0.52, 0.06), (0.01, 0.01)),
}
LIGHT = {"yellow", "cyan", "pink", "white", "gray"}  # their texture is darker than the body, never lighter
NEUTRAL = {"black", "white", "gray"}  # their texture stays near them: a black-and-white thing would have two names
TEXTURES = ("plain", "striped", "dotted", "checkered")


@dataclass(frozen=True)
class Thing:
    """One thing to draw: its kind and look, the box it fills (xyxy pixels) and its rotation in degrees."""

    kind: str
    colour: str
    texture: str
    box: Box
    angle: float = 0.0


@dataclass(frozen=True)
class Part:
    """One outline of an icon and its paint: BODY, SHADE, HOLE or a name of NATURAL."""

    paint: str
    outline: np.ndarray


@dataclass(frozen=True)
class Stamp:
    """A painted thing: its colours, how far each pixel is covered (0..255), and where its top left corner lies."""

    colours: Image.Image
    cover: Image.Image
    corner: tuple[int, int]


def stamp(thing: Thing, rng: np.random.Generator) -> Stamp:
    """Paint one thing at a multiple of its size and shrink it, which smooths its edges."""
    x0, y0, x1, y1 = thing.box
    left, top = math.floor(x0) - 1, math.floor(y0) - 1
    size = (math.ceil(x1) + 1 - left, math.ceil(y1) + 1 - top)
    scale = 2 if max(size) > 80 else 4
    large = (size[0] * scale, size[1] * scale)
    body = shade_of(thing.colour, rng)
    paints = {**NATURAL, BODY: body, SHADE: mix(body, (0, 0, 0), 0.3)}
    colours, cover, plain = Image.new("RGB", large, body), Image.new("L", large), Image.new("L", large)
    brushes = ImageDraw.Draw(colours), ImageDraw.Draw(cover), ImageDraw.Draw(plain)
    for part in fitted(thing.kind, thing.box, thing.angle):
        # a polygon of Pillow owns the pixels its outline passes through, hence the half pixel
        points = [((x - left) * scale - 0.5, (y - top) * scale - 0.5) for x, y in part.outline.tolist()]
        if part.paint != HOLE:
            brushes[0].polygon(points, fill=paints[part.paint])
        brushes[1].polygon(points, fill=0 if part.paint == HOLE else 255)
        brushes[2].polygon(points, fill=255 if part.paint == BODY else 0)
    if thing.texture != "plain":
        pattern = _pattern(thing.texture, large, scale, rng)
        colours.paste(_second(thing.colour, body, rng), mask=ImageChops.darker(pattern, plain))
    return Stamp(colours.reduce(scale), cover.reduce(scale), (left, top))


def fitted(kind: str, box: Box, angle: float) -> list[Part]:
    """The icon of a kind, turned by ``angle`` degrees and stretched so that what is painted fills the box."""
    turned = [Part(part.paint, part.outline @ _turn(angle)) for part in icon(kind)]
    low, high = _bounds(turned)
    corner, span = np.array(box[:2]), np.array(box[2:]) - np.array(box[:2])
    return [Part(part.paint, (part.outline - low) / (high - low) * span + corner) for part in turned]


def proportion(kind: str, angle: float) -> float:
    """Width over height of the icon of a kind, turned by ``angle`` degrees."""
    low, high = _bounds([Part(part.paint, part.outline @ _turn(angle)) for part in icon(kind)])
    return float((high[0] - low[0]) / (high[1] - low[1]))


def shade_of(colour: str, rng: np.random.Generator | None = None) -> Colour:
    """A shade that bears the name ``colour``: a random one, or the middle one without a generator."""
    if colour not in COLOURS:
        raise DataError(f"Unknown colour {colour!r}. Available: {', '.join(COLOURS)}.")
    offsets = (0.0, 0.0, 0.0) if rng is None else tuple(rng.uniform(-1, 1, 3))
    hue, lightness, saturation = (
        middle + stray * offset for (middle, stray), offset in zip(COLOURS[colour], offsets, strict=True)
    )
    return _bytes(
        channel * 255 for channel in colorsys.hls_to_rgb(hue / 360 % 1, min(lightness, 1), min(saturation, 1))
    )


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with ``share`` of ``other`` in it."""
    return _bytes(a * (1 - share) + b * share for a, b in zip(colour, other, strict=True))


def _bytes(channels: Iterable[float]) -> Colour:
    red, green, blue = (min(255, max(0, round(float(channel)))) for channel in channels)
    return red, green, blue


def _turn(angle: float) -> np.ndarray:
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cosine, sine], [-sine, cosine]])


def _bounds(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([part.outline for part in parts if part.paint != HOLE])
    return points.min(0), points.max(0)


def _second(colour: str, body: Colour, rng: np.random.Generator) -> Colour:
    """The other colour of a texture, chosen so that the name of the first stays true."""
    if colour in NEUTRAL:
        return mix(body, (255, 255, 255) if colour == "black" else (0, 0, 0), 0.62 if colour == "gray" else 0.45)
    return mix(body, (0, 0, 0) if colour in LIGHT else (255, 255, 255), float(rng.uniform(0.7, 0.9)))


def _pattern(texture: str, size: tuple[int, int], scale: int, rng: np.random.Generator) -> Image.Image:
    """Where the second colour goes: stripes, dots or checks over the whole stamp, slightly turned."""
    period = max(6.0 * scale, max(size) * float(rng.uniform(0.14, 0.22)))
    base = {"striped": 90.0 * int(rng.integers(4)) / 2, "dotted": 0.0, "checkered": 0.0}[texture]
    turn = _turn(base + float(rng.uniform(-12, 12))) * period
    pattern = Image.new("L", size)
    brush, middle = ImageDraw.Draw(pattern), np.array(size) / 2
    reach = math.ceil(math.hypot(*size) / 2 / period) + 1
    for row in range(-reach, reach + 1):
        if texture == "striped":
            ends = np.array([[-reach, row], [reach, row], [reach, row + 0.42], [-reach, row + 0.42]]) @ turn + middle
            brush.polygon([tuple(point) for point in ends.tolist()], fill=255)
            continue
        _pattern_row(brush, texture, [(column, row) for column in range(-reach, reach + 1)], turn, middle)
    return pattern


def _pattern_row(
    brush: ImageDraw.ImageDraw, texture: str, cells: list[tuple[int, int]], turn: np.ndarray, middle: np.ndarray
) -> None:
    for column, row in cells:
        if texture == "dotted":
            x, y = (np.array([column + row % 2 / 2, row * 0.87]) @ turn + middle).tolist()
            radius = 0.28 * math.hypot(*turn[0])
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        elif (column + row) % 2:
            square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + [column, row]
            brush.polygon([tuple(point) for point in (square @ (turn * 0.8) + middle).tolist()], fill=255)


def _polygon(paint: str, *points: Point) -> Part:
    return Part(paint, np.array(points, dtype=float))


def _block(paint: str, x0: float, y0: float, x1: float, y1: float) -> Part:
    return _polygon(paint, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _arc(middle: Point, radii: Point, start: float = 0, end: float = 360) -> np.ndarray:
    angles = np.radians(np.linspace(start, end, 49))
    return np.stack([middle[0] + radii[0] * np.cos(angles), middle[1] + radii[1] * np.sin(angles)], 1)


def _disc(paint: str, x: float, y: float, across: float, down: float | None = None) -> Part:
    return Part(paint, _arc((x, y), (across, across if down is None else down)))


def _half(paint: str, x: float, y: float, across: float, down: float) -> Part:
    """The upper half of a disc."""
    return Part(paint, _arc((x, y), (across, down), 180, 360))


def _hook(paint: str, middle: Point, radii: Point, start: float, end: float) -> Part:
    """A bent band between an outer and an inner radius."""
    outer, inner = _arc(middle, (radii[0],) * 2, start, end), _arc(middle, (radii[1],) * 2, end, start)
    return Part(paint, np.concatenate([outer, inner]))


def _spikes(paint: str, count: int, outer: float, inner: float) -> Part:
    angles = np.radians(np.arange(2 * count) * 180 / count - 90)
    radii = np.where(np.arange(2 * count) % 2, inner, outer)
    return Part(paint, np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))


def _wheel(x: float, y: float, radius: float) -> list[Part]:
    return [_disc("tar", x, y, radius), _disc("steel", x, y, radius * 0.45)]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 60)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [Part(BODY, np.stack([16 * np.sin(t) ** 3, y], 1))]


def _crescent() -> list[Part]:
    outer, inner = _arc((0, 0), (50, 50), 50, 310), _arc((24, 0), (39.2, 39.2), 282, 78)
    return [Part(BODY, np.concatenate([outer, inner]))]


def _cross() -> list[Part]:
    return [_block(BODY, 33, 0, 67, 100), _block(BODY, 0, 33, 100, 67)]


def _arrow() -> list[Part]:
    return [_polygon(BODY, (0, 32), (55, 32), (55, 5), (100, 50), (55, 95), (55, 68), (0, 68))]


def _house() -> list[Part]:
    windows = [_block("glass", x, 58, x + 18, 76) for x in (20, 62)]
    walls = [_block("roof", 68, 8, 80, 40), _block(BODY, 10, 44, 90, 100)]
    return [*walls, _polygon("roof", (0, 46), (50, 4), (100, 46)), _block("wood", 42, 64, 58, 100), *windows]


def _tree() -> list[Part]:
    crown = [_disc(BODY, x, y, r) for x, y, r in ((28, 46, 25), (72, 46, 25), (50, 26, 26), (50, 52, 26))]
    return [_polygon("wood", (43, 60), (57, 60), (61, 110), (39, 110)), *crown]


def _car() -> list[Part]:
    shell = _polygon(BODY, (2, 32), (20, 28), (34, 8), (70, 8), (86, 28), (98, 33), (100, 52), (0, 52))
    front = _polygon("glass", (27, 28), (37, 13), (50, 13), (50, 28))
    back = _polygon("glass", (54, 28), (54, 13), (67, 13), (78, 28))
    return [shell, front, back, *_wheel(23, 52, 11), *_wheel(77, 52, 11), _block("gold", 94, 35, 99, 41)]


def _bus() -> list[Part]:
    windows = [_block("glass", x, 10, x + 14, 26) for x in (6, 24, 42, 60)]
    door = [_block("glass", 80, 10, 95, 46)]
    return [_block(BODY, 0, 2, 100, 52), *windows, *door, *_wheel(22, 52, 10), *_wheel(70, 52, 10)]


def _sun() -> list[Part]:
    rays = []
    for angle in range(0, 360, 30):
        ray = np.array([(33.0, -7.0), (50.0, 0.0), (33.0, 7.0)]) @ _turn(angle)
        rays.append(Part(BODY, ray))
    return [*rays, _disc(BODY, 0, 0, 29)]


def _flower() -> list[Part]:
    petals = []
    for angle in range(0, 360, 60):
        petals.append(Part(BODY, _arc((22, 0), (18, 12)) @ _turn(angle)))
    stem = [_block("leaf", -3, 0, 3, 85), _polygon("leaf", (2, 70), (14, 52), (30, 50), (20, 66))]
    return [*stem, *petals, _disc("gold", 0, 0, 11)]


def _fish() -> list[Part]:
    tail = _polygon(BODY, (62, 30), (100, 6), (92, 30), (100, 54))
    fins = [_polygon(SHADE, (30, 8), (58, 0), (58, 14)), _polygon(SHADE, (42, 34), (60, 28), (58, 44))]
    return [fins[0], tail, _disc(BODY, 38, 30, 38, 23), fins[1], _disc("chalk", 17, 24, 6), _disc("tar", 16, 24, 3.2)]


def _boat() -> list[Part]:
    hull = _polygon(BODY, (0, 66), (100, 66), (80, 96), (18, 96))
    sails = [_polygon("cream", (53, 4), (53, 60), (92, 60)), _polygon("cream", (46, 14), (46, 60), (14, 60))]
    return [_block("wood", 47, 0, 52, 70), *sails, hull]


def _balloon() -> list[Part]:
    string = [_hook("steel", (40, 114), (11, 8.5), -90, 90), _hook("steel", (40, 133.5), (11, 8.5), 90, 270)]
    knot = _polygon(BODY, (40, 90), (48, 106), (32, 106))
    return [*string, knot, _disc(BODY, 40, 48, 40, 48), _disc("chalk", 26, 26, 6, 10)]


def _mushroom() -> list[Part]:
    stem = _polygon("cream", (38, 48), (62, 48), (68, 98), (32, 98))
    return [stem, _half(BODY, 50, 54, 50, 50), _disc(SHADE, 50, 54, 50, 5)]


def _cloud() -> list[Part]:
    puffs = ((22, 42, 22), (45, 26, 26), (72, 32, 22), (86, 46, 18))
    return [*(_disc(BODY, *puff) for puff in puffs), _block(BODY, 22, 40, 86, 64)]


def _cup() -> list[Part]:
    wall = _polygon(BODY, (0, 8), (70, 8), (62, 86), (8, 86))
    return [_hook(BODY, (68, 42), (27, 17), -100, 110), wall, _disc(SHADE, 35, 8, 35, 8)]


def _bird() -> list[Part]:
    legs = [_block("gold", x, 70, x + 3, 88) for x in (46, 56)]
    beak = _polygon("gold", (14, 22), (0, 30), (15, 33))
    tail = _polygon(BODY, (76, 44), (108, 28), (104, 52), (78, 62))
    wing = Part(SHADE, np.concatenate([_arc((60, 46), (24, 20), 0, 180), np.array([[44.0, 38.0]])]))
    eye = [_disc("chalk", 24, 22, 5), _disc("tar", 23, 22, 2.6)]
    return [*legs, beak, tail, _disc(BODY, 54, 52, 32, 22), _disc(BODY, 28, 26, 17), wing, *eye]


def _umbrella() -> list[Part]:
    arcs = [_disc(HOLE, x, 52, 12.5, 9) for x in (12.5, 37.5, 62.5, 87.5)]
    handle = [_block("wood", 48, 0, 52, 88), _hook("wood", (41, 88), (11, 7), 0, 180)]
    ribs = [_polygon(SHADE, (50, 4), (38, 44), (36, 44)), _polygon(SHADE, (50, 4), (62, 44), (64, 44))]
    return [_half(BODY, 50, 51, 50, 47), *arcs, *ribs, handle[0], handle[1]]


def _apple() -> list[Part]:
    flesh = [_disc(BODY, 32, 54, 32, 38), _disc(BODY, 58, 54, 32, 38)]
    leaf = _polygon("leaf", (48, 14), (58, 2), (76, 0), (66, 13))
    return [*flesh, _polygon("wood", (42, 22), (44, 2), (49, 2), (48, 24)), leaf, _disc("chalk", 20, 40, 5, 9)]


def _ladder() -> list[Part]:
    rungs = [_block(BODY, 4, y, 46, y + 8) for y in (12, 36, 60, 84)]
    return [*rungs, _block(BODY, 0, 0, 9, 106), _block(BODY, 41, 0, 50, 106)]


def _key() -> list[Part]:
    teeth = [_block(BODY, x, 26, x + 8, 46) for x in (72, 90)]
    return [_disc(BODY, 24, 24, 24), _disc(HOLE, 22, 24, 12), _block(BODY, 44, 19, 100, 30), *teeth]


def _bell() -> list[Part]:
    side = [(18, 30), (14, 62), (0, 80), (100, 80), (86, 62), (82, 30)]
    bowl = Part(BODY, np.concatenate([np.array(side[:3] + side[3:], dtype=float), _arc((50, 32), (32, 26), 360, 180)]))
    return [_disc(SHADE, 50, 6, 8), _disc("gold", 50, 82, 11), bowl, _block(SHADE, 6, 70, 94, 75)]


ICONS: dict[str, Callable[[], list[Part]]] = {
    "circle": lambda: [_disc(BODY, 50, 50, 50)],
    "square": lambda: [_block(BODY, 0, 0, 100, 100)],
    "rectangle": lambda: [_block(BODY, 0, 0, 100, 48)],
    "triangle": lambda: [_polygon(BODY, (50, 0), (100, 87), (0, 87))],
    "star": lambda: [_spikes(BODY, 5, 50, 20)],
    "hexagon": lambda: [_spikes(BODY, 3, 50, 50)],
    "heart": _heart,
    "ring": lambda: [_disc(BODY, 50, 50, 50), _disc(HOLE, 50, 50, 27)],
    "cross": _cross,
    "diamond": lambda: [_polygon(BODY, (35, 0), (70, 50), (35, 100), (0, 50))],
    "crescent": _crescent,
    "arrow": _arrow,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "bus": _bus,
    "sun": _sun,
    "flower": _flower,
    "fish": _fish,
    "boat": _boat,
    "balloon": _balloon,
    "mushroom": _mushroom,
    "cloud": _cloud,
    "cup": _cup,
    "bird": _bird,
    "umbrella": _umbrella,
    "apple": _apple,
    "ladder": _ladder,
    "key": _key,
    "bell": _bell,
}
KINDS = tuple(ICONS)
TURNING = ("rectangle", "arrow", "crescent", "key")  # these are themselves in any quarter turn
THIN = ("ladder", "key", "ring", "crescent")  # too little body to carry a texture


@cache
def icon(kind: str) -> tuple[Part, ...]:
    """The outlines of a kind, painted in order."""
    if kind not in ICONS:
        raise DataError(f"Unknown kind {kind!r}. Available: {', '.join(KINDS)}.")
    return tuple(ICONS[kind]())
