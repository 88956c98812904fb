"""What is in a dataset and what is wrong with it: counts, and problems with the places where they are.

Whether boxes can be right is one verdict for a check and before every run, from a look at some images.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from types import MappingProxyType

import numpy as np
from PIL import Image

from glip.data.coco import OUTLINE_BOX, PARENT
from glip.data.image import image_size, load_image, stated_size
from glip.data.sets import SampleSet, SkipCounter
from glip.data.yolo import NO_LABELS
from glip.errors import DataError, ImageError
from glip.shapes import Bool, Float
from glip.structures import Prompt, Sample, TarMember
from glip.text.prompt import is_word_edge
from glip.text.tokens import Tokenizer, alike

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's areas in square pixels
_SLACK = 1.0  # pixels by which a box may leave its image: annotation tools round
_LOOK = 100  # images, evenly spread, whose boxes decide whether all can be right
_MOST, _CLEAR = 0.5, 0.9  # shares of boxes: that are wrong, and that another reading explains
# What looks like percentages: so many boxes at least, which vary by so much, reach so far, and if all numbers are whole
# have sides of so much. Else they may lie in the corner of their images. Nearly all images are half as large again.
_PERCENT, _FEWEST, _VARIED, _REACHED, _SIDE = 100, 8, 8, 80, 10
_NO_AREA = "box without area"  # as the readers count it
_OUTSIDE = "box outside its image", "box partly outside its image"
_UNROTATED = "box that fits its image only before the EXIF rotation"
_SIZES = (
    "stated size is that before the EXIF rotation: boxes may be drawn on the unrotated image",
    "stated width and height are swapped",
    "stated size differs from the image's",
)
_DOUBTS = {*_OUTSIDE, _UNROTATED, *_SIZES}  # what a run goes on with, after a warning
_MISSING = "image that is not there"
_USUAL = {OUTLINE_BOX, PARENT, NO_LABELS}  # no faults
_RAREST = 5  # classes with the fewest boxes that are shown
_log = logging.getLogger(__name__)


@dataclass
class CheckReport:
    """How much of everything a dataset has, its problems (to be corrected), and remarks (that may be intended)."""

    problems: SkipCounter = field(default_factory=SkipCounter)
    remarks: SkipCounter = field(default_factory=SkipCounter)
    images: int = 0  # different ones
    samples: int = 0  # as many as there are images, or pairs of image and caption
    without_boxes: int = 0  # samples
    boxes: int = 0
    crowd: int = 0  # boxes that mark a group
    areas: list[int] = field(default_factory=lambda: [0, 0, 0])  # boxes under 32 x 32, under 96 x 96, and larger
    phrases: int = 0  # in captions
    per_name: Counter[str] = field(default_factory=Counter)  # boxes of each class name
    words: Counter[int] = field(default_factory=Counter)  # captions by their number of words
    decode: bool = False  # every image, not only its header
    # What was seen is kept as hashes: ten million captions still fit into memory.
    _sizes: dict[int, tuple[int, int] | None] = field(default_factory=dict)  # by image
    _samples: set[int] = field(default_factory=set)
    _vocabularies: set[int] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        """The report to print; what a kind of dataset does not have is not mentioned."""
        yield f"  images    {self.images} ({self.without_boxes} of {self.samples} samples without boxes)"
        if self.boxes:
            small, medium, large = self.areas
            yield f"  boxes     {self.boxes}: {small} small, {medium} medium, {large} large; {self.crowd} crowd"
        if self.words:
            spread = f"{min(self.words)} to {max(self.words)} words, median {median_low(self.words.elements())}"
            yield f"  captions  {self.words.total()}: {spread}; {self.phrases} phrases"
        if self.per_name:
            times = self.per_name.values()
            yield f"  classes   {len(times)}: {min(times)} to {max(times)} boxes each, median {median_low(times)}"
            rarest = sorted(self.per_name.items(), key=lambda item: (item[1], item[0]))[:_RAREST]
            yield f"  rarest    {', '.join(f'{name} {boxes}' for name, boxes in rarest)}"
        for title, counter in (("remarks:", self.remarks), ("problems:", self.problems)):
            yield from (title, *counter.lines()) if counter else ()
        if self.problems.counts.get(_MISSING, 0) > self.images / 2:
            yield "most images are missing: give their folder with --images, or the data folder with --root"
        if not self.problems:
            yield "no problems"

    def add(self, sample: Sample) -> tuple[float, float]:
        """Count and check a sample; gives the size of its image, NaN where it is unknown."""
        prompt = sample.prompt
        self.samples += 1
        self.boxes += len(sample.boxes)
        self.crowd += len(sample.crowd)
        self.without_boxes += not len(sample.boxes)
        caption = prompt.caption if prompt else sample.caption
        if caption:
            self.words[len(caption.split())] += 1
        size = self._check_image(sample, caption) or (np.nan, np.nan)
        if prompt:
            self._check_phrases(sample, prompt, _place_of(sample))
        else:
            self._check_names(sample)
        if len(sample.boxes):
            self._check_boxes(sample, np.full((len(sample.boxes), 2), size, dtype=np.float32))
        return size

    def _check_image(self, sample: Sample, caption: str) -> tuple[int, int] | None:
        """The image's size, or the stated one if it cannot be read; each image is opened once."""
        image = sample.image
        if isinstance(image, Image.Image):
            self.images += 1
            return image.size
        key = hash(str(image))
        if key not in self._sizes:
            self.images += 1
            size = self._sizes[key] = None
            try:
                size = self._sizes[key] = load_image(image).size if self.decode else image_size(image)
            except ImageError as error:
                there = (image if isinstance(image, Path) else image.archive).exists()
                self.problems.add("image that cannot be read" if there else _MISSING, str(error if there else image))
            if size and sample.size and size != sample.size:
                unrotated, swapped, other = _SIZES
                reason = other if size != sample.size[::-1] else unrotated if _is_rotated(image) else swapped
                stated, found = (f"{width} x {height}" for width, height in (sample.size, size))
                self.problems.add(reason, f"{image}: stated {stated}, is {found}")
        pair = hash((key, caption))
        if pair in self._samples:
            self.problems.add(f"image that is listed twice{' with the same caption' if caption else ''}", str(image))
        self._samples.add(pair)
        return self._sizes[key] or sample.size

    def _check_names(self, sample: Sample) -> None:
        names = sample.vocabulary
        self.per_name.update(names[index] for phrases in sample.box_phrases for index in phrases)
        if hash(names) not in self._vocabularies:
            self._vocabularies.add(hash(names))
            for name, number in Counter(names).items():
                self.per_name.setdefault(name, 0)
                if number > 1:  # only LVIS has such twins (two kinds of "bow"); elsewhere the reader refuses them
                    self.remarks.add("name that is listed twice", name)

    def _check_phrases(self, sample: Sample, prompt: Prompt, image: str) -> None:
        self.phrases += len(prompt.phrases)
        boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
        for index, phrase in enumerate(prompt.phrases):
            place = f"{phrase.text!r} in {prompt.caption[:80]!r} of {image}"
            if not any(re.search(r"\w", prompt.caption[start:end]) for start, end in phrase.spans):
                self.problems.add("phrase without a word", place)
            elif not all(is_word_edge(prompt.caption, edge) for span in phrase.spans for edge in span):
                self.problems.add("span that cuts a word", place)
            if index not in boxed:
                self.remarks.add("phrase without a box", place)

    def _check_boxes(self, sample: Sample, size: Float[np.ndarray, "box 2"]) -> None:
        boxes = sample.boxes.numpy()
        again = len(boxes) - len(set(zip(map(tuple, boxes.tolist()), sample.box_phrases, strict=True)))
        if again:
            self.problems.add("box with the same words twice", _place_of(sample), again)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        for index in np.searchsorted((SMALL, LARGE), sides.prod(1), side="right").tolist():
            self.areas[index] += 1
        flat = (sides <= 0).any(1)
        leaving = ~np.isnan(size[:, 0]) & ~flat & ~_fits_inside(boxes, size)
        outside = leaving & ((boxes[:, :2] >= size).any(1) | (boxes[:, 2:] <= 0).any(1))
        reasons: dict[str, np.ndarray] = dict(zip(_OUTSIDE, (outside, leaving & ~outside), strict=True))
        if leaving.any() and _fits_inside(boxes, size[:, ::-1])[leaving].all() and _is_rotated(sample.image):
            reasons = {_UNROTATED: leaving}
        for reason, found in ({_NO_AREA: flat} | reasons).items():
            if found.any():
                self.problems.add(reason, _place_of(sample, boxes[found.argmax()], size[0]), int(found.sum()))


def check(
    samples: SampleSet,
    *,
    tokenizer: Path | None = None,
    written: Mapping[str, str] = MappingProxyType({}),
    decode: bool = False,
) -> CheckReport:
    """Go through a dataset once; what its reader skipped is among the problems.

    Two names, or what is ``written`` instead of them, may be alike for the ``tokenizer`` (a folder) of the model to
    train. With ``decode`` every image is decoded, not only its header.
    """
    report = CheckReport(decode=decode)
    report.remarks.merge(samples.skipped.only(_USUAL))
    report.problems.merge(samples.skipped.only(samples.skipped.counts.keys() - _USUAL))
    for sample in samples.walk("check"):
        report.add(sample)
    if wrong := _look(samples)[0]:
        report.problems.add(wrong)
    for name in (name for name, count in report.per_name.items() if not count):
        report.remarks.add("name without a box", name)
    boxed = {name: written.get(name, name) for name, count in report.per_name.items() if count}
    for group in alike(Tokenizer(tokenizer), boxed) if tokenizer and len(boxed) > 1 else ():
        report.problems.add("names that a model reads alike", ", ".join(map(repr, group)))
    return report


def refuse_wrong_boxes(title: str, read: SampleSet) -> SkipCounter:
    """Before a run: refuse a dataset whose boxes cannot be right; gives what is doubtful, after a warning.

    Raises:
        DataError: most boxes are relative, percentages, outside their images or without area.
    """
    wrong, seen = _look(read)
    if wrong:
        raise DataError(f"{title}: {wrong}; docs/data.md has the box of each format, and glip data check shows more")
    doubts = seen.problems.only(_DOUBTS)
    if doubts and os.environ.get("RANK", "0") == "0":  # under torchrun one process warns
        listed = "; ".join(f"{count} x {why} ({doubts.places[why][0]})" for why, count in doubts.counts.items())
        looked = f"{title}: in {seen.samples} of {len(read.samples)} samples"
        _log.warning("%s: %s; glip data check shows more", looked, listed)
    return doubts


def _look(read: SampleSet) -> tuple[str, CheckReport]:
    """What is wrong with most boxes, "" for nothing, and the report on the images looked at."""
    total, report = len(read.samples), CheckReport()
    chosen = [read.samples[index] for index in range(0, total, -(-total // _LOOK) or 1)]
    sizes, counts = [report.add(sample) for sample in chosen], [len(sample.boxes) for sample in chosen]
    if not sum(counts):
        return "", report
    boxes = np.concatenate([sample.boxes.numpy() for sample in chosen])
    size = np.repeat(np.array(sizes, dtype=np.float32), counts, axis=0)
    without_area = read.skipped.counts.get(_NO_AREA, 0) * len(chosen) // total
    if without_area > _MOST * (without_area + len(boxes)):
        return "most boxes have no area: they look like x, y, width, height read as x1, y1, x2, y2", report
    for wrong, count, reason in _suspicions(boxes, size):
        if wrong.sum() > _MOST * count:
            first = int(wrong.argmax())
            owner = chosen[int(np.searchsorted(np.cumsum(counts), first, side="right"))]
            place, (what, guess) = _place_of(owner, boxes[first], size[first]), reason.split(": ")
            return f"most boxes ({wrong.sum()} of {count}) {what} ({place}): {guess}", report
    return "", report


def _suspicions(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, int, str]]:
    """Which boxes are wrong if a suspicion is true, of how many, and what it says."""
    known = ~np.isnan(sizes[:, 0])
    sized, leaving = int(known.sum()), known & ~_fits_inside(boxes, sizes)
    remedy = "so multiply x and width by the image's width{0}, y and height by its height{0}"
    tiny = np.asarray((boxes <= 2).all(1) & ~(sizes <= 2).any(1))
    yield tiny, len(boxes), f"lie within two pixels of the corner: they look relative (0..1), {remedy.format('')}"
    percent = np.full(len(boxes), _look_like_percentages(boxes, sizes))
    yield percent, len(boxes), f"have no number above 100: they look like percentages, {remedy.format(' / 100')}"
    for reading, edges in _other_readings(boxes).items():
        if _fits_inside(edges, sizes).sum() >= _CLEAR * sized:
            yield leaving, sized, f"leave their image: they look like {reading}"
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    gone = leaving & ((centres < 0) | (centres > sizes)).any(1)
    yield gone, sized, "leave their image: they look made for images of another size, so give those images"


def _look_like_percentages(boxes: Float[np.ndarray, "box 4"], sizes: Float[np.ndarray, "box 2"]) -> bool:
    if len(boxes) < _FEWEST or (sizes >= 1.5 * _PERCENT).all(1).mean() < _CLEAR:
        return False
    readings = (boxes, *_other_readings(boxes).values())
    edges = next((one for one in readings if _fits_inside(one, np.full_like(sizes, _PERCENT)).all()), None)
    if edges is None or not ((edges % 1).any() or (edges[:, 2:] - edges[:, :2]).mean() >= _SIDE):
        return False
    return bool(edges.std(0).min() >= _VARIED and edges[:, 2:].max(0).min() >= _REACHED)


def _other_readings(boxes: Float[np.ndarray, "box 4"]) -> dict[str, Float[np.ndarray, "box 4"]]:
    """The boxes (x1, y1, x2, y2) if they were written other than they are read."""
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return {
        "x1, y1, x2, y2 read as x, y, width, height": np.hstack([low, sides]),
        "y, x read as x, y, or the image before its EXIF rotation": boxes[:, [1, 0, 3, 2]],
        "centre x, centre y, width, height read as x, y, width, height": np.hstack([low - sides / 2, low + sides / 2]),
    }


def _place_of(sample: Sample, box: np.ndarray | None = None, size: np.ndarray | None = None) -> str:
    """Where a sample, or a box, is, for reports."""
    name = f"sample {sample.image_id}" if isinstance(sample.image, Image.Image) else str(sample.image)
    if box is None or size is None:
        return name
    return f"{name} of {size[0]:g} x {size[1]:g}: {', '.join(f'{value:g}' for value in box.tolist())}"


def _is_rotated(image: Path | TarMember | Image.Image) -> bool:
    """Whether an image is a file whose EXIF rotation swaps width and height."""
    with suppress(ImageError):
        return not isinstance(image, Image.Image) and stated_size(image) != image_size(image)
    return False


def _fits_inside(boxes: Float[np.ndarray, "box 4"], size: Float[np.ndarray, "box 2"]) -> Bool[np.ndarray, " box"]:
    """Which boxes have an area and are inside their images of (width, height), but for a rounding; none where NaN."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.asarray(((low >= -_SLACK) & (high <= size + _SLACK) & (high > low)).all(1))
