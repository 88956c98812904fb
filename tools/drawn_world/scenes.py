"""Drawn scenes: seeded images of coloured, textured, related things, with words that are true by construction.

``draw_sample`` makes one annotated image from a seed; ``draw_both`` annotates it with class names and with a caption;
``draw_scene`` draws given things. ``icons`` paints things, ``words`` describes them.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from drawn_world import words
from drawn_world.icons import (
    COLOURS,
    KINDS,
    TEXTURES,
    THIN,
    TURNING,
    Colour,
    Stamp,
    Thing,
    mix,
    proportion,
    shade_of,
    stamp,
)
from glip.structures import Sample

__all__ = ["Split", "Thing", "World", "draw_both", "draw_sample", "draw_scene"]

SMALL, BIG = (0.14, 0.17), (0.28, 0.32)  # of the short side; no thing has a size in these gaps, so none is disputed
VISIBLE, APART = 0.7, 0.98  # at least this share of every thing is visible, in crowded images and in orderly ones
Split = Literal["train", "seen", "novel"]
# Sets the seeds of this generator, and those of its splits, apart from others.
KEYS: dict[Split, tuple[int, ...]] = {"train": (20220607,), "seen": (20220607, 1), "novel": (20220607, 2)}


@dataclass(frozen=True)
class World:
    """Which scenes are drawn: no seed draws the same image in two splits.

    Args:
        split: "train" and "seen" never draw or name a held-out combination (``words.is_novel``); in "novel" every
            thing is one.
        captioned: share of images with a caption; the others have class names.
        sides: smallest and largest width and height in pixels.
        plain: class names as in an evaluation: a kind with its colour or texture, without articles or synonyms.
        most: maximum things in an image, up to 9.
    """

    split: Split = "train"
    captioned: float = 0.2
    sides: tuple[int, int] = (200, 360)
    plain: bool = False
    most: int = 9


def draw_sample(seed: int, world: World = World()) -> Sample:
    """A random image and words for it, fully determined by ``seed`` and ``world``.

    An image with class names has present and absent ones, and every thing has exactly one name; an image with a
    caption has boxes only for what the caption mentions.
    """
    image, seen, rng = _draw(seed, world)
    return _annotate(image, seen, rng, seed, world)


def draw_both(seed: int, world: World = World()) -> tuple[Sample, Sample]:
    """One image with class names and with a caption: ``draw_sample`` with ``captioned`` 0 and 1, drawn once.

    ``world.plain`` is for the class names only.
    """
    image, seen, rng = _draw(seed, world)
    named = _annotate(image, seen, deepcopy(rng), seed, replace(world, captioned=0.0))
    return named, _annotate(image, seen, rng, seed, replace(world, captioned=1.0, plain=False))


def draw_scene(things: Sequence[Thing], size: tuple[int, int], seed: int) -> Image.Image:
    """An image of (width, height) with the given things, the last one in front; ``seed`` varies shades and ground."""
    rng = np.random.default_rng([*KEYS["train"], seed])
    canvas = _Canvas.blank(size, rng)
    for thing in things:
        canvas.press(thing, stamp(thing, rng))
    return canvas.image


def _draw(seed: int, world: World) -> tuple[Image.Image, list[words.Seen], np.random.Generator]:
    """The image, what is visible in it, and the random numbers from which its words follow."""
    rng = np.random.default_rng([*KEYS[world.split], seed])
    low, high = world.sides
    size = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    canvas = _populated(size, rng, world.split == "novel", world.most)
    return _weathered(canvas.image, rng), canvas.seen(), rng


def _annotate(image: Image.Image, seen: list[words.Seen], rng: np.random.Generator, seed: int, world: World) -> Sample:
    novel = world.split == "novel"
    dialect = words.Dialect({}, "", True) if world.plain else words.Dialect.draw(rng)
    if rng.random() < world.captioned:
        prompt, rows = words.caption(seen, image.size, dialect, rng, novel=novel)
        kept = sorted(rows)
        boxes = torch.tensor([seen[i].box for i in kept], dtype=torch.float32).reshape(-1, 4)
        labels = tuple((rows[i],) for i in kept)
        return Sample(image, boxes, labels, prompt=prompt, image_id=seed, size=image.size)
    vocabulary, names = words.names(seen, dialect, rng, novel=novel, joined=novel or world.plain)
    boxes = torch.tensor([one.box for one in seen], dtype=torch.float32).reshape(-1, 4)
    labels = tuple((name,) for name in names)
    return Sample(image, boxes, labels, vocabulary=vocabulary, image_id=seed, size=image.size)


# ---- things on a canvas


@dataclass
class _Canvas:
    """The image so far, and which thing owns each pixel (-1: the ground)."""

    image: Image.Image
    ground: tuple[Colour, Colour]
    owner: np.ndarray
    things: list[Thing] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)

    @classmethod
    def blank(cls, size: tuple[int, int], rng: np.random.Generator) -> "_Canvas":
        ground = _ground_colours(rng)
        return cls(_ground(size, ground, rng), ground, np.full(size[::-1], -1, dtype=np.int16))

    def press(self, thing: Thing, mark: Stamp) -> None:
        window, covered = self._window(mark)
        window[covered] = len(self.things)
        self.things.append(thing)
        self.areas.append(int(covered.sum()))
        self.image.paste(mark.colours, mark.corner, mark.cover)

    def takes(self, thing: Thing, mark: Stamp, visible: float) -> bool:
        """Whether this share of each thing stays visible, and things of one colour do not run into each other."""
        window, covered = self._window(mark)
        owned = window[covered]
        for index in np.unique(owned[owned >= 0]).tolist():
            left = int((self.owner == index).sum()) - int((owned == index).sum())
            if self.things[index].colour == thing.colour or left < visible * self.areas[index]:
                return False
        return True

    def seen(self) -> list[words.Seen]:
        short = min(self.image.size)
        views = []
        for index, thing in enumerate(self.things):
            mine = self.owner == index
            columns, rows = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            extent = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) / short
            views.append(words.Seen(thing, box, words.SIZES[(extent > sum(SMALL) / 2) + (extent > sum(BIG) / 2)]))
        return views

    def _window(self, mark: Stamp) -> tuple[np.ndarray, np.ndarray]:
        """The owners under a stamp, and which of them it takes over; what hangs over the edge is left out."""
        (left, top), (height, width) = mark.corner, self.owner.shape
        cover = np.asarray(mark.cover)[max(0, -top) : height - top, max(0, -left) : width - left] > 100
        return self.owner[max(0, top) :, max(0, left) :][: cover.shape[0], : cover.shape[1]], cover


def _populated(size: tuple[int, int], rng: np.random.Generator, novel: bool, most: int) -> _Canvas:
    """A canvas with 1 to 9 things, the large ones behind; few kinds or colours in an image make it ask for counts."""
    canvas = _Canvas.blank(size, rng)
    count = 1 + (int(rng.choice(np.arange(1, 10), p=[0.06, 0.10, *[0.12] * 7])) - 1) % most
    usable = [name for name in COLOURS if min(_distance(shade_of(name), tone) for tone in canvas.ground) > 110]
    kinds = _some("kind", KINDS, count, rng)
    colours = _some("colour", usable, count, rng)
    textured, visible = rng.random() < 0.3, VISIBLE if rng.random() < 0.4 else APART
    extents = sorted((_extent(size, rng) for _ in range(count)), reverse=True)
    for extent in extents:
        thing = _invent(extent, textured, rng, (kinds, colours), (KINDS, usable), novel)
        for _ in range(10):
            placed = _move(thing, size, rng)
            mark = stamp(placed, rng)
            if canvas.takes(placed, mark, visible):
                canvas.press(placed, mark)
                break
    return canvas


def _some(notion: str, values: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """The few different values that one image's things share."""
    number = min(int(rng.integers(1, 2 + count)), len(values))
    chosen: list[str] = rng.choice(values, size=number, replace=False, p=words.shares(notion, values)).tolist()
    return chosen


def _extent(size: tuple[int, int], rng: np.random.Generator) -> float:
    """The longer side of a thing: log-uniform, never in a gap between size names."""
    short = min(size)
    while True:
        extent = float(np.exp(rng.uniform(np.log(18), np.log(0.75 * short))))
        if all(not low * short <= extent <= high * short for low, high in (SMALL, BIG)):
            return extent


def _invent(
    extent: float,
    textured: bool,
    rng: np.random.Generator,
    few: tuple[Sequence[str], Sequence[str]],
    every: tuple[Sequence[str], Sequence[str]],
    novel: bool,
) -> Thing:
    """A thing at the origin, of the image's few kinds and colours where those give one that may be shown."""
    for attempt in range(400):
        kinds, colours = few if attempt < 20 else every
        kind, colour = str(rng.choice(kinds)), str(rng.choice(colours))
        # one too small to show a texture has none
        texture = str(rng.choice(TEXTURES)) if textured and extent > 34 and kind not in THIN else "plain"
        if words.is_novel({"kind": kind, "colour": colour, "texture": texture}) == novel:
            break
    angle = float(rng.normal(0, 6)) + (90.0 * int(rng.integers(4)) if kind in TURNING else 0.0)
    aspect = proportion(kind, angle) * float(np.exp(rng.normal(0, 0.06)))
    return Thing(kind, colour, texture, (0, 0, extent * min(1, aspect), extent / max(1, aspect)), angle)


def _move(thing: Thing, size: tuple[int, int], rng: np.random.Generator) -> Thing:
    width, height = thing.box[2:]
    x, y = float(rng.uniform(1, size[0] - width - 1)), float(rng.uniform(1, size[1] - height - 1))
    return replace(thing, box=(x, y, x + width, y + height))


def _distance(a: Colour, b: Colour) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


# ---- the ground and the weather


def _ground_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two near tones, most often pale or dark: the names of colours belong to the things."""
    level = float(rng.choice([rng.uniform(190, 250), rng.uniform(10, 70), rng.uniform(90, 190)], p=[0.6, 0.25, 0.15]))
    tones = []
    tint = rng.uniform(-30, 30, 3)
    for _ in range(2):
        red, green, blue = np.clip(level + tint + rng.uniform(-18, 18, 3), 0, 255).astype(int).tolist()
        tones.append((red, green, blue))
    return tones[0], tones[1]


def _ground(size: tuple[int, int], tones: tuple[Colour, Colour], rng: np.random.Generator) -> Image.Image:
    style = str(rng.choice(["plain", "gradient", "noise", "blobs", "lines"]))
    plain = Image.new("RGB", size, tones[0])
    if style == "plain":
        return plain
    if style == "lines":
        brush, step = ImageDraw.Draw(plain), int(rng.integers(8, 40))
        slope, faint = int(rng.integers(-size[1], size[1])), mix(tones[0], tones[1], 0.8)
        for offset in range(-2 * size[1], 2 * size[1], step):
            brush.line((0, offset, size[0], offset + slope), fill=faint, width=int(rng.integers(1, 3)))
        return plain
    cells = {"gradient": (2, 2), "blobs": (6, 6), "noise": (size[0] // 2, size[1] // 2)}[style]
    blend = Image.fromarray(rng.integers(0, 256, cells[::-1], dtype=np.uint8))
    return Image.composite(plain, Image.new("RGB", size, tones[1]), blend.resize(size, Image.Resampling.BILINEAR))


def _weathered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image as a poor camera would see it, sometimes."""
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.0))))
    if rng.random() < 0.3:
        gain, lift = float(rng.uniform(0.85, 1.12)), float(rng.uniform(-12, 12))
        image = image.point([min(255, max(0, round(level * gain + lift))) for level in range(256)] * 3)
    if rng.random() < 0.25:
        pixels = np.asarray(image, dtype=np.float32)
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(2, 10))
        image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    return image
