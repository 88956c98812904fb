"""Images and their boxes change together: resize, crop, flip, colour. torchvision moves both by the same call.

All randomness comes from the generator given, so a step depends on (seed, step) alone. PIL in, PIL out: the Processor
takes PIL, and its resize in evaluation is the one used here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from glip.data.sets import SkipCounter
from glip.processor import resized_size
from glip.shapes import Float, Tensor
from glip.structures import Sample

# Any word that begins with left or right, alone or behind a place ("topleft", "left_hand", "righthanded"), but not
# leftovers and rights, nor words that only end so (bright, upright).
_SIDES = re.compile(
    r"(?<![^\W\d_])(top|bottom|upper|lower|front|rear|back|far|mid|middle|center|centre|inner|outer)?"
    r"(left(?!over)|right(?!s\b|eous|ful|ly\b))",
    re.IGNORECASE,
)
_VISIBLE = 0.4  # a box that keeps less of its area in a crop is dropped
_ANYWHERE = 0.1  # so often a crop is not aimed at a box


@dataclass(frozen=True)
class Augmentation:
    """What is varied.

    Args:
        short_side: pixels, drawn uniformly between the two.
        max_size: of the long side, as in the Processor's resize.
        crop: side of square crops in pixels, 0 for none.
        flip: probability of a mirrored image.
        colour: brightness, contrast and saturation change by up to this share, 0 for none.
    """

    short_side: tuple[int, int]
    max_size: int
    crop: int = 0
    flip: float = 0.0
    colour: float = 0.0


def augment(sample: Sample, how: Augmentation, rng: np.random.Generator) -> tuple[Sample, SkipCounter]:
    """One random variation of a sample whose image is loaded, and the boxes it lost, by reason.

    Crowd regions go first, and boxes end at the image's edges. A name whose boxes have all gone although something of
    it is still seen becomes ``incomplete``: it must not be asked for as an absent one. A phrase of a caption whose
    boxes were cut away stays in the caption as words without a box, as in the release. Nothing is mirrored whose words
    say left or right.
    """
    image = sample.image
    assert isinstance(image, Image.Image), "load the image first"
    tally = SkipCounter()
    sample = _drop(sample, sample.crowd, tally, "crowd region", seen=sample.crowd)
    sample = _clip(sample, image.size, tally)
    low, high = how.short_side
    height, width = resized_size(image.height, image.width, int(rng.integers(low, high + 1)), how.max_size)
    sample = _together(sample, lambda thing: F.resize(thing, [height, width]))
    if how.crop:
        sample = _crop(sample, how.crop, rng, tally)
    if rng.random() < how.flip and not _names_a_side(sample):
        sample = _together(sample, F.horizontal_flip)
    return (_recolour(sample, how.colour, rng) if how.colour else sample), tally


def says_side(words: str) -> bool:
    """Whether words say left or right in any form, so that they would be false of the mirrored image."""
    return _SIDES.search(words) is not None


def _names_a_side(sample: Sample) -> bool:
    said = sample.prompt.caption if sample.prompt else sample.caption
    return says_side(said) or _any_says_side(sample.vocabulary)


@lru_cache(maxsize=256)  # a vocabulary is the same for all images of a set, and may have thousands of names
def _any_says_side(names: tuple[str, ...]) -> bool:
    return any(says_side(name) for name in names)


def _together(sample: Sample, change: Callable[[Any], Any]) -> Sample:
    """The same torchvision function on the image and on its boxes."""
    image = sample.image
    assert isinstance(image, Image.Image)
    size = (image.height, image.width)
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=size)
    return replace(sample, image=change(image), boxes=change(boxes).as_subclass(torch.Tensor))


def _crop(sample: Sample, side: int, rng: np.random.Generator, tally: SkipCounter) -> Sample:
    """A square window that holds the centre of a random box, if there is one; smaller images are placed in it."""
    image = sample.image
    assert isinstance(image, Image.Image)
    centre = _focus(sample.boxes, rng)
    left, top = (_window(length, side, at, rng) for length, at in zip(image.size, centre, strict=True))
    ground = [int(value) for value in rng.integers(0, 256, 3)]
    right, bottom = left + side - image.width, top + side - image.height
    border = [max(0, -left), max(0, -top), max(0, right), max(0, bottom)]
    if any(border):
        sample = _together(sample, lambda thing: F.pad(thing, border, fill=ground))
    cut = _together(sample, lambda thing: F.crop(thing, max(0, top), max(0, left), side, side))
    before, after = _area(sample.boxes), _area(cut.boxes)
    lost = (after < _VISIBLE * before) | (after <= 0)
    numbers = lost.nonzero()[:, 0].tolist()
    return _drop(cut, numbers, tally, "box cut away by the crop", seen=(lost & (after > 0)).nonzero()[:, 0].tolist())


def _drop(sample: Sample, lost: Sequence[int], tally: SkipCounter, reason: str, *, seen: Sequence[int]) -> Sample:
    """Without the boxes ``lost``; of those in ``seen`` the image still shows something."""
    if not lost:
        return sample
    tally.add(reason, f"image {sample.image_id}", len(lost))
    gone = set(lost)
    kept = sample.keep([index for index in range(len(sample.boxes)) if index not in gone])
    if sample.prompt is not None:
        return kept
    named = {name for names in kept.box_phrases for name in names}
    unsure = {name for index in seen for name in sample.box_phrases[index]} - named
    return replace(kept, incomplete=tuple(sorted({*sample.incomplete, *unsure})))


def _clip(sample: Sample, size: tuple[int, int], tally: SkipCounter) -> Sample:
    """Boxes end at the edges of the image of (width, height); those that lie outside are dropped."""
    limits = torch.tensor([*size, *size], dtype=sample.boxes.dtype)
    clipped = replace(sample, boxes=torch.minimum(sample.boxes.clamp(min=0), limits))
    outside = (_area(clipped.boxes) <= 0).nonzero()[:, 0].tolist()
    return _drop(clipped, outside, tally, "box outside its image", seen=())


def _focus(boxes: Float[Tensor, "box 4"], rng: np.random.Generator) -> Sequence[float | None]:
    if len(boxes) == 0 or rng.random() < _ANYWHERE:
        return (None, None)
    x1, y1, x2, y2 = boxes[int(rng.integers(len(boxes)))].tolist()
    return ((x1 + x2) / 2, (y1 + y2) / 2)


def _window(length: int, side: int, at: float | None, rng: np.random.Generator) -> int:
    """Where a window of ``side`` starts on an image of ``length``, so that ``at`` lies inside."""
    low, high = min(0, length - side), max(0, length - side)
    if at is not None:
        low, high = min(max(low, int(at) - side + 1), high), max(min(high, int(at)), low)
    return int(rng.integers(low, high + 1)) if high > low else low


def _area(boxes: Float[Tensor, "box 4"]) -> Float[Tensor, " box"]:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _recolour(sample: Sample, strength: float, rng: np.random.Generator) -> Sample:
    """Brightness, contrast and saturation by up to ``strength``; the hue stays, since captions name colours."""
    image = sample.image
    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        image = adjust(image, float(rng.uniform(max(0.0, 1 - strength), 1 + strength)))
    return replace(sample, image=image)
