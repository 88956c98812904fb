"""Pictures and their boxes change together: resize, crop, flip, colour.

Captions that say left or right are not flipped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageEnhance

from glip.shapes import Bool, Float, Tensor
from glip.structures import Sample

_SIDES = re.compile(r"\b(left|right)(most|ward|wards)?\b", re.IGNORECASE)
_VISIBLE = 0.4  # a box that keeps less of its area in a crop is dropped


@dataclass(frozen=True)
class Augmentation:
    """What is varied: short side in pixels (uniform), square crops (0: none), flips, colour strength (0: none)."""

    short_side: tuple[int, int]
    max_size: int
    crop: int = 0
    flip: float = 0.0
    colour: float = 0.0


def augment(sample: Sample, how: Augmentation, rng: np.random.Generator) -> Sample:
    """One random variation of a sample whose picture is loaded."""
    picture = sample.picture
    assert isinstance(picture, Image.Image), "load the picture first"
    low, high = how.short_side
    sample = _resize(sample, picture, rng.uniform(low, high), how.max_size)
    if how.crop:
        sample = _crop(sample, how.crop, rng)
    words = sample.prompt.caption if sample.prompt else " ".join(sample.vocabulary)
    if rng.random() < how.flip and not _SIDES.search(words):
        sample = _flip(sample)
    return _recolour(sample, how.colour, rng) if how.colour else sample


def _resize(sample: Sample, picture: Image.Image, short_side: float, max_size: int) -> Sample:
    width, height = picture.size
    factor = min(short_side / min(width, height), max_size / max(width, height))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    resized = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    ratio = torch.tensor([size[0] / width, size[1] / height] * 2)
    return replace(sample, picture=resized, boxes=sample.boxes * ratio)


def _crop(sample: Sample, side: int, rng: np.random.Generator) -> Sample:
    """A square window that holds the centre of a random box, if there is one; smaller pictures are placed in it."""
    picture = sample.picture
    assert isinstance(picture, Image.Image)
    centre = _focus(sample.boxes, rng)
    corner = [_window(length, side, at, rng) for length, at in zip(picture.size, centre, strict=True)]
    window = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(0, 256, 3)))
    window.paste(picture, (-corner[0], -corner[1]))
    moved = sample.boxes - torch.tensor(corner * 2, dtype=torch.float32)
    clipped = moved.clamp(0, side)
    return _keep(replace(sample, picture=window, boxes=clipped), _visible(moved, clipped))


def _focus(boxes: Float[Tensor, "box 4"], rng: np.random.Generator) -> Sequence[float | None]:
    if len(boxes) == 0 or rng.random() < 0.1:
        return (None, None)
    x1, y1, x2, y2 = boxes[int(rng.integers(len(boxes)))].tolist()
    return ((x1 + x2) / 2, (y1 + y2) / 2)


def _window(length: int, side: int, at: float | None, rng: np.random.Generator) -> int:
    """Where a window of ``side`` starts on a picture of ``length``, so that ``at`` lies inside."""
    low, high = min(0, length - side), max(0, length - side)
    if at is not None:
        low, high = min(max(low, int(at) - side + 1), high), max(min(high, int(at)), low)
    return int(rng.integers(low, high + 1)) if high > low else low


def _visible(before: Float[Tensor, "box 4"], after: Float[Tensor, "box 4"]) -> Bool[Tensor, " box"]:
    size_before = (before[:, 2:] - before[:, :2]).prod(1)
    size_after = (after[:, 2:] - after[:, :2]).clamp(min=0).prod(1)
    return (size_after >= _VISIBLE * size_before) & (size_after > 0)


def _keep(sample: Sample, keep: Bool[Tensor, " box"]) -> Sample:
    phrases = tuple(p for p, kept in zip(sample.box_phrases, keep.tolist(), strict=True) if kept)
    return replace(sample, boxes=sample.boxes[keep], box_phrases=phrases)


def _flip(sample: Sample) -> Sample:
    picture = sample.picture
    assert isinstance(picture, Image.Image)
    x1, y1, x2, y2 = sample.boxes.unbind(1)
    boxes = torch.stack([picture.width - x2, y1, picture.width - x1, y2], dim=1)
    return replace(sample, picture=picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes=boxes)


def _recolour(sample: Sample, strength: float, rng: np.random.Generator) -> Sample:
    """Brightness, contrast and saturation by up to ``strength``; the hue stays, since captions name colours."""
    picture = sample.picture
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        assert isinstance(picture, Image.Image)
        picture = enhancer(picture).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return replace(sample, picture=picture)
