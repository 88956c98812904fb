"""What is in a set, and what is wrong with it: counts to plan with, problems with the places where they were seen."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image

from glip.data.image import image_size, load_image
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import ImageError
from glip.shapes import Bool, Float, Tensor
from glip.structures import LETTER, Prompt, Sample, Span, TarMember
from glip.text.tokens import Tokenizer, alike

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's areas in square pixels
_SLACK = 1.0  # by so many pixels a box may leave its image: annotation tools round
_MOST, _CLEAR = 0.5, 0.9  # shares of boxes: that are wrong, and that another reading explains
_NO_AREA = "box without area"  # as the readers count it
_ON_LETTER = re.compile(LETTER)


@dataclass
class Counts:
    """How much of everything a set has.

    Args:
        images: different ones.
        samples: as many as there are images, or pairs of image and caption.
        without_boxes: samples.
        boxes: all, and how many of them mark a crowd.
        areas: of boxes: small (under 32 x 32 pixels), medium, large (from 96 x 96), as COCO counts.
        phrases: of captions.
        per_name: boxes of each name of the vocabulary.
        words: how many captions have so many words.
    """

    images: int = 0
    samples: int = 0
    without_boxes: int = 0
    boxes: int = 0
    crowd: int = 0
    areas: list[int] = field(default_factory=lambda: [0, 0, 0])
    phrases: int = 0
    per_name: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Report:
    """Counts, problems (to be mended), and remarks (that may well be meant so)."""

    counts: Counts
    problems: SkipCounter
    remarks: SkipCounter


def check(
    samples: SampleSet,
    *,
    tokenizer: Tokenizer | None = None,
    written: Mapping[str, str] = MappingProxyType({}),
    decode: bool = False,
) -> Report:
    """Go through a set once.

    Args:
        samples: what a reader gave; what it left out is among the problems.
        tokenizer: of the models to be, which may read two names alike.
        written: by name, what is written instead of it.
        decode: read every image whole, not only its header.
    """
    report = Report(Counts(), SkipCounter(), SkipCounter())
    report.problems.merge(samples.skipped)
    seen = _Seen()
    readings = _Readings(lost=samples.skipped.counts.get(_NO_AREA, 0))
    for sample in samples.samples:
        _count(sample, report.counts)
        size = _check_image(sample, seen, report, decode)
        _check_words(sample, seen, report)
        _check_boxes(sample, size, readings, report.problems)
    verdict = readings.verdict()
    if verdict:
        report.problems.add(verdict)
    for name, boxes in report.counts.per_name.items():
        if boxes == 0:
            report.remarks.add("name without a box", name)
    boxed = {name: written.get(name, name) for name, boxes in report.counts.per_name.items() if boxes}
    for group in alike(tokenizer, boxed) if tokenizer else ():
        report.problems.add("names that a model reads alike", ", ".join(map(repr, group)))
    return report


@dataclass
class _Seen:
    """What was met before, as hashes: a set of ten million captions still fits into memory."""

    images: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    samples: set[int] = field(default_factory=set)
    vocabularies: set[int] = field(default_factory=set)


def _count(sample: Sample, counts: Counts) -> None:
    counts.samples += 1
    counts.boxes += len(sample.boxes)
    counts.crowd += len(sample.crowd)
    counts.without_boxes += not len(sample.boxes)
    widths, heights = (sample.boxes[:, 2:] - sample.boxes[:, :2]).clamp(min=0).unbind(1)
    area = widths * heights
    small, large = int((area < SMALL).sum()), int((area >= LARGE).sum())
    for index, number in enumerate((small, len(area) - small - large, large)):
        counts.areas[index] += number
    caption = sample.prompt.caption if sample.prompt else sample.caption
    if caption:
        counts.words[len(caption.split())] += 1
    if sample.prompt:
        counts.phrases += len(sample.prompt.phrases)
    else:
        counts.per_name.update(sample.vocabulary[index] for phrases in sample.box_phrases for index in phrases)


# ---- images


def _check_image(sample: Sample, seen: _Seen, report: Report, decode: bool) -> tuple[int, int] | None:
    """The image's size, or the stated one if it cannot be read; each image is opened once."""
    image = sample.image
    if isinstance(image, Image.Image):
        report.counts.images += 1
        return image.size
    key = hash(str(image))
    if key not in seen.images:
        report.counts.images += 1
        seen.images[key] = _open(image, report.problems, decode)
        _compare(sample.size, seen.images[key], str(image), report.problems)
    pair = hash((key, sample.prompt.caption if sample.prompt else sample.caption))
    if pair in seen.samples:
        words = " with the same caption" if sample.prompt or sample.caption else ""
        report.problems.add(f"image that is listed twice{words}", str(image))
    seen.samples.add(pair)
    return seen.images[key] or sample.size


def _open(image: Path | TarMember, problems: SkipCounter, decode: bool) -> tuple[int, int] | None:
    try:
        return load_image(image).size if decode else image_size(image)
    except ImageError as error:
        file = image.archive if isinstance(image, TarMember) else image
        reason = "image that cannot be read" if file.exists() else "image that is not there"
        problems.add(reason, str(error) if file.exists() else str(image))
        return None


def _compare(stated: tuple[int, int] | None, size: tuple[int, int] | None, place: str, problems: SkipCounter) -> None:
    if stated is None or size is None or stated == size:
        return
    turned = stated == size[::-1]
    reason = (
        "stated width and height are swapped, or do not count the EXIF rotation"
        if turned
        else ("stated size differs from the image's")
    )
    problems.add(reason, f"{place}: stated {stated[0]} x {stated[1]}, is {size[0]} x {size[1]}")


# ---- words


def _check_words(sample: Sample, seen: _Seen, report: Report) -> None:
    if sample.prompt:
        _check_phrases(sample, sample.prompt, report)
        return
    key = hash(sample.vocabulary)
    if key in seen.vocabularies:
        return
    seen.vocabularies.add(key)
    for name in sample.vocabulary:
        report.counts.per_name.setdefault(name, 0)
    for name, number in Counter(sample.vocabulary).items():
        if number > 1:  # only LVIS has such twins (two kinds of "bow"); elsewhere the reader refuses them
            report.remarks.add("name that is listed twice", name)


def _check_phrases(sample: Sample, prompt: Prompt, report: Report) -> None:
    boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
    for index, phrase in enumerate(prompt.phrases):
        place = f"{phrase.text!r} in {prompt.caption[:80]!r} of {_named(sample)}"
        if not any(re.search(r"\w", prompt.caption[start:end]) for start, end in phrase.spans):
            report.problems.add("phrase without a word", place)
        elif any(_cuts(span, prompt.caption) for span in phrase.spans):
            report.problems.add("span that cuts a word", place)
        if index not in boxed:
            report.remarks.add("phrase without a box", place)


def _cuts(span: Span, caption: str) -> bool:
    """Whether an end of the span lies inside a word; scripts without spaces between words are left alone."""
    return any(
        0 < edge < len(caption) and _ON_LETTER.match(caption[edge - 1]) and _ON_LETTER.match(caption[edge])
        for edge in span
    )


# ---- boxes


@dataclass
class _Readings:
    """How many boxes leave their image as they are read, and how many would fit if they were read otherwise."""

    lost: int  # that the reader left out because they have no area
    boxes: int = 0
    sized: int = 0  # of them, in an image whose size is known
    leaving: int = 0
    tiny: int = 0
    fits: Counter[str] = field(default_factory=Counter)

    def add(self, boxes: Float[Tensor, "box 4"]) -> None:
        """Count one image's boxes."""
        self.boxes += len(boxes)
        self.tiny += int((boxes <= 2).all(1).sum())

    def place(self, boxes: Float[Tensor, "box 4"], size: tuple[int, int], leaving: int) -> None:
        """Count the readings of the boxes of an image whose size is known."""
        left, top, right, bottom = boxes.unbind(1)
        half_width, half_height = (right - left) / 2, (bottom - top) / 2
        others = {
            "x1, y1, x2, y2 read as x, y, width, height": (left, top, right - left, bottom - top),
            "y, x read as x, y": (top, left, bottom, right),
            "centre x, centre y, width, height read as x, y, width, height": (
                left - half_width,
                top - half_height,
                right - half_width,
                bottom - half_height,
            ),
        }
        self.sized += len(boxes)
        self.leaving += leaving
        for reading, edges in others.items():
            self.fits[reading] += int(_inside(torch.stack(edges, dim=1), size).sum())

    def verdict(self) -> str:
        """What is wrong with most boxes, or nothing."""
        if self.boxes and self.tiny > _MOST * self.boxes:
            return "most boxes lie within two pixels of the corner: they look relative (0..1), and pixels are needed"
        if self.lost > _MOST * (self.lost + self.boxes):
            return "most boxes have no area: they look like x, y, width, height read as x1, y1, x2, y2"
        if self.leaving <= _MOST * self.sized:
            return ""
        reading, fitting = self.fits.most_common(1)[0]
        guess = f"like {reading}" if fitting >= _CLEAR * self.sized else "to be made for images of another size"
        return f"most boxes ({self.leaving} of {self.sized}) leave their image: they look {guess}"


def _check_boxes(sample: Sample, size: tuple[int, int] | None, readings: _Readings, problems: SkipCounter) -> None:
    boxes = sample.boxes
    if not len(boxes):
        return
    readings.add(boxes)
    place = _named(sample)
    rows = list(zip(boxes.tolist(), sample.box_phrases, strict=True))
    again = len(rows) - len({(tuple(box), phrases) for box, phrases in rows})
    if again:
        problems.add("box with the same words twice", place, again)
    flat = ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    if flat.any():
        problems.add(_NO_AREA, place, int(flat.sum()))
    if size is None:
        return
    leaving = ~flat & ~_inside(boxes, size)
    readings.place(boxes, size, int(leaving.sum()))
    beyond = leaving & ((boxes[:, :2] >= torch.tensor(size)).any(1) | (boxes[:, 2:] <= 0).any(1))
    for mask, reason in ((beyond, "box outside its image"), (leaving & ~beyond, "box partly outside its image")):
        if mask.any():
            first = ", ".join(f"{value:g}" for value in boxes[mask][0].tolist())
            problems.add(reason, f"{place} of {size[0]} x {size[1]}: {first}", int(mask.sum()))


def _inside(boxes: Float[Tensor, "box 4"], size: tuple[int, int]) -> Bool[Tensor, " box"]:
    """Which boxes have an area and lie in an image of (width, height), but for a rounding."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return ((low >= -_SLACK) & (high <= torch.tensor(size) + _SLACK) & (high > low)).all(1)


def _named(sample: Sample) -> str:
    drawn = isinstance(sample.image, Image.Image)
    return f"sample {sample.image_id}" if drawn else str(sample.image)
