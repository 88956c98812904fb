"""Augmentation: an image and its boxes change together by resizing, cropping, flipping and colour jitter.

All randomness comes from the given generator, so a step depends on (seed, step) alone. PIL in, PIL out: the Processor
takes PIL, and its resize in evaluation is the one used here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_area, clip_boxes_to_image
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
_ANYWHERE = 0.1  # share of crops that are not aimed at a box


def augment(
    sample: Sample,
    rng: np.random.Generator,
    *,
    short_side: Sequence[int],
    max_size: int,
    flip: float = 0.0,
    crop: int = 0,
    colour: float = 0.0,
) -> tuple[Sample, SkipCounter]:
    """One random variation of a sample whose image is loaded, and the boxes it lost, by reason.

    Crowd regions are dropped first, and boxes are clipped to the image. A name whose boxes are all gone although part
    of it is still visible becomes ``incomplete``: it must not be a negative. A phrase of a caption whose boxes were cut
    away stays in the caption as words without a box, as in the release.

    The short side is in the range ``short_side``, the long one at most ``max_size``, as in the Processor's resize. A
    square of ``crop`` pixels is cut (0: none) that keeps a box if it shows any, where the sizes allow. With the
    probability ``flip`` the image is flipped, unless its words say left or right. Brightness, contrast and saturation
    change by up to the share ``colour``.
    """
    skipped = SkipCounter()
    sample = _drop(sample, sample.crowd, skipped, "crowd region", visible=sample.crowd)
    height, width = _loaded_image(sample).height, _loaded_image(sample).width
    sample = replace(sample, boxes=clip_boxes_to_image(sample.boxes, (height, width)))
    sample = _drop(sample, torch.where(box_area(sample.boxes) <= 0)[0].tolist(), skipped, "box outside its image")
    drawn = int(rng.integers(min(short_side), max(short_side) + 1))
    if crop and len(sample.boxes):
        drawn = max(min(short_side), min(drawn, int(min(height, width) * _largest_scale(sample.boxes, crop))))
    size = resized_size(height, width, drawn, max_size)
    sample = _transform(sample, lambda thing: F.resize(thing, list(size)))
    if crop:
        sample = _crop(sample, crop, rng, skipped)
    if rng.random() < flip:
        sided = any(map(says_side, [sample.prompt.caption] if sample.prompt else sample.vocabulary))
        sample = sample if sided else _transform(sample, F.horizontal_flip)
    image = _loaded_image(sample)
    if colour:  # the hue stays, since captions name colours
        for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
            image = adjust(image, float(rng.uniform(max(0.0, 1 - colour), 1 + colour)))
    return replace(sample, image=image), skipped


@lru_cache(maxsize=2**14)  # a vocabulary is the same for all images of a dataset, and may have thousands of names
def says_side(words: str) -> bool:
    """Whether words say left or right in any form, so that they would be wrong for the flipped image."""
    return _SIDES.search(words) is not None


def _loaded_image(sample: Sample) -> Image.Image:
    assert isinstance(sample.image, Image.Image), "load the image first"
    return sample.image


def _transform(sample: Sample, change: Callable[[Any], Any]) -> Sample:
    """The same torchvision function on the image and on its boxes."""
    image = _loaded_image(sample)
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(image.height, image.width))
    return replace(sample, image=change(image), boxes=change(boxes).as_subclass(torch.Tensor))


def _crop(sample: Sample, side: int, rng: np.random.Generator, skipped: SkipCounter) -> Sample:
    """A square window that holds the centre of a random box, if there is one; smaller images are padded.

    A window that shows boxes and keeps none is moved to the box of which it can hold the largest share.
    """
    image, boxes, centre = _loaded_image(sample), sample.boxes, tuple[float | None, ...]((None, None))
    if len(boxes) and rng.random() >= _ANYWHERE:
        x1, y1, x2, y2 = boxes[int(rng.integers(len(boxes)))].tolist()
        centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    left, top = (_window(length, side, at, rng) for length, at in zip(image.size, centre, strict=True))
    kept = _kept_shares(boxes, left, top, side)
    if (kept > 0).any() and not (kept >= _VISIBLE).any():
        sides = boxes[:, 2:] - boxes[:, :2]
        x1, y1, x2, y2 = boxes[int((sides.clamp(max=side) / sides).prod(1).argmax())].tolist()
        ends = ((left, x1, x2 - side), (top, y1, y2 - side))
        left, top = (int(np.clip(start, min(low, high), max(low, high))) for start, low, high in ends)
        kept = _kept_shares(boxes, left, top, side)
    fill = [int(value) for value in rng.integers(0, 256, 3)]
    border = [max(0, -left), max(0, -top), max(0, left + side - image.width), max(0, top + side - image.height)]
    if any(border):
        sample = _transform(sample, lambda thing: F.pad(thing, border, fill=fill))
    cropped = _transform(sample, lambda thing: F.crop(thing, max(0, top), max(0, left), side, side))
    lost = kept < _VISIBLE
    gone, visible = (torch.where(mask)[0].tolist() for mask in (lost, lost & (kept > 0)))
    return _drop(cropped, gone, skipped, "box cut away by the crop", visible=visible)


def _kept_shares(boxes: Float[Tensor, "box 4"], left: int, top: int, side: int) -> Float[Tensor, " box"]:
    """The share of each box that is within a window."""
    return box_area(clip_boxes_to_image(boxes - boxes.new_tensor([left, top] * 2), (side, side))) / box_area(boxes)


def _largest_scale(boxes: Float[Tensor, "box 4"], side: int) -> float:
    """The largest scale at which a window can hold enough of at least one box."""
    sides, enough = boxes[:, 2:] - boxes[:, :2], 1.05 * _VISIBLE  # more, since windows start at whole pixels
    # of a box longer than the window in one direction, or in both
    return float((side / torch.maximum(enough * sides.amax(1), (enough * sides.prod(1)).sqrt())).max())


def _drop(
    sample: Sample, lost: Sequence[int], skipped: SkipCounter, reason: str, *, visible: Sequence[int] = ()
) -> Sample:
    """Without the boxes ``lost``; something of those in ``visible`` is still in the image."""
    if not lost:
        return sample
    skipped.add(reason, f"image {sample.image_id}", len(lost))
    kept = sample.keep(sorted(set(range(len(sample.boxes))) - set(lost)))
    if sample.prompt is not None:
        return kept
    boxed = {name for names in kept.box_phrases for name in names}
    unsure = {name for index in visible for name in sample.box_phrases[index]} - boxed
    return replace(kept, incomplete=tuple(sorted({*sample.incomplete, *unsure})))


def _window(length: int, side: int, at: float | None, rng: np.random.Generator) -> int:
    """Where a window of ``side`` starts on an image of ``length``, so that ``at`` lies inside."""
    low, high = min(0, length - side), max(0, length - side)
    if at is not None:
        low, high = min(max(low, int(at) - side + 1), high), max(min(high, int(at)), low)
    return int(rng.integers(low, high + 1)) if high > low else low
