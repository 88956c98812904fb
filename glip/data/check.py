"""What is in a dataset and what is wrong with it: counts, and problems with the places where they are."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from types import MappingProxyType

import numpy as np
from PIL import Image

from glip.data.image import image_size, load_image
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import ImageError
from glip.shapes import Bool, Float
from glip.structures import Prompt, Sample
from glip.text.prompt import is_word_edge
from glip.text.tokens import Tokenizer, alike

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's areas in square pixels
_SLACK = 1.0  # pixels by which a box may leave its image: annotation tools round
_MOST, _CLEAR = 0.5, 0.9  # shares of boxes: that are wrong, and that another reading explains
_BATCH = 50_000  # boxes checked at once
_NO_AREA = "box without area"  # as the readers count it
_OUTSIDE = "outside its image"
_MISSING = "image that is not there"
_RAREST = 5  # classes with the fewest boxes that are shown


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


def check(
    samples: SampleSet,
    *,
    tokenizer: Path | None = None,
    written: Mapping[str, str] = MappingProxyType({}),
    decode: bool = False,
) -> CheckReport:
    """Go through a dataset once.

    Args:
        samples: from a reader; what it skipped is among the problems.
        tokenizer: folder of the tokenizer of the model to train, which may read two names alike.
        written: by name, the text written instead of it.
        decode: decode every image, not only its header.
    """
    walk = _Check(decode=decode, without_area=samples.skipped.counts.get(_NO_AREA, 0))
    report = walk.report
    report.problems.merge(samples.skipped)
    for sample in samples.walk("check"):
        walk.add(sample)
    walk.finish()
    for name, count in report.per_name.items():
        if count == 0:
            report.remarks.add("name without a box", name)
    boxed = {name: written.get(name, name) for name, count in report.per_name.items() if count}
    for group in alike(Tokenizer(tokenizer), boxed) if tokenizer and len(boxed) > 1 else ():
        report.problems.add("names that a model reads alike", ", ".join(map(repr, group)))
    return report


class _Check:
    """A check under way. Boxes are checked in batches, also for how many fit their image better if read otherwise.

    What was seen is kept as hashes: ten million captions still fit into memory.
    """

    def __init__(self, *, decode: bool, without_area: int) -> None:
        self.report = CheckReport()
        self._decode, self._without_area = decode, without_area  # the latter skipped by the reader
        self._sizes: dict[int, tuple[int, int] | None] = {}  # by image
        self._samples, self._vocabularies = set[int](), set[int]()
        self._waiting: list[tuple[np.ndarray, str, tuple[float, float]]] = []
        self._count = 0
        self._sized = self._leaving = self._tiny = 0
        self._fits: Counter[str] = Counter()

    def add(self, sample: Sample) -> None:
        """Count and check a sample."""
        report, prompt, image = self.report, sample.prompt, sample.image
        report.samples += 1
        report.boxes += len(sample.boxes)
        report.crowd += len(sample.crowd)
        report.without_boxes += not len(sample.boxes)
        caption = prompt.caption if prompt else sample.caption
        if caption:
            report.words[len(caption.split())] += 1
        place = f"sample {sample.image_id}" if isinstance(image, Image.Image) else str(image)
        size = self._check_image(sample, caption)
        if prompt:
            self._check_phrases(sample, prompt, place)
        else:
            self._check_names(sample)
        if len(sample.boxes):
            rows = sample.boxes.numpy()
            again = len(rows) - len(set(zip(map(tuple, rows.tolist()), sample.box_phrases, strict=True)))
            if again:
                report.problems.add("box with the same words twice", place, again)
            self._waiting.append((rows, place, size or (np.nan, np.nan)))
            self._count += len(rows)
        if self._count > _BATCH:
            self._check_boxes()

    def finish(self) -> None:
        """Check the rest of the boxes, and say what is wrong with most of them, if anything."""
        if self._waiting:
            self._check_boxes()
        boxes, verdict = self.report.boxes, ""
        if boxes and self._tiny > _MOST * boxes:
            verdict = "lie within two pixels of the corner: they look relative (0..1), and pixels are needed"
        elif self._without_area > _MOST * (self._without_area + boxes):
            verdict = "have no area: they look like x, y, width, height read as x1, y1, x2, y2"
        elif self._leaving > _MOST * self._sized:
            reading, fitting = self._fits.most_common(1)[0]
            guess = f"like {reading}" if fitting >= _CLEAR * self._sized else "to be made for images of another size"
            verdict = f"({self._leaving} of {self._sized}) leave their image: they look {guess}"
        if verdict:
            self.report.problems.add(f"most boxes {verdict}")

    def _check_image(self, sample: Sample, caption: str) -> tuple[int, int] | None:
        """The image's size, or the stated one if it cannot be read; each image is opened once."""
        image, report = sample.image, self.report
        if isinstance(image, Image.Image):
            report.images += 1
            return image.size
        key = hash(str(image))
        if key not in self._sizes:
            report.images += 1
            size = self._sizes[key] = None
            try:
                size = self._sizes[key] = load_image(image).size if self._decode else image_size(image)
            except ImageError as error:
                there = (image if isinstance(image, Path) else image.archive).exists()
                report.problems.add("image that cannot be read" if there else _MISSING, str(error if there else image))
            if size and sample.size and size != sample.size:
                swapped = "stated width and height are swapped, or do not count the EXIF rotation"
                reason = swapped if size == sample.size[::-1] else "stated size differs from the image's"
                stated, found = (f"{width} x {height}" for width, height in (sample.size, size))
                report.problems.add(reason, f"{image}: stated {stated}, is {found}")
        pair = hash((key, caption))
        if pair in self._samples:
            report.problems.add(f"image that is listed twice{' with the same caption' if caption else ''}", str(image))
        self._samples.add(pair)
        return self._sizes[key] or sample.size

    def _check_names(self, sample: Sample) -> None:
        names, report = sample.vocabulary, self.report
        report.per_name.update(names[index] for phrases in sample.box_phrases for index in phrases)
        if hash(names) not in self._vocabularies:
            self._vocabularies.add(hash(names))
            for name, number in Counter(names).items():
                report.per_name.setdefault(name, 0)
                if number > 1:  # only LVIS has such twins (two kinds of "bow"); elsewhere the reader refuses them
                    report.remarks.add("name that is listed twice", name)

    def _check_phrases(self, sample: Sample, prompt: Prompt, image: str) -> None:
        self.report.phrases += len(prompt.phrases)
        boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
        for index, phrase in enumerate(prompt.phrases):
            place = f"{phrase.text!r} in {prompt.caption[:80]!r} of {image}"
            if not any(re.search(r"\w", prompt.caption[start:end]) for start, end in phrase.spans):
                self.report.problems.add("phrase without a word", place)
            elif not all(is_word_edge(prompt.caption, edge) for span in phrase.spans for edge in span):
                self.report.problems.add("span that cuts a word", place)
            if index not in boxed:
                self.report.remarks.add("phrase without a box", place)

    def _check_boxes(self) -> None:
        parts, places, sizes = zip(*self._waiting, strict=True)
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        boxes, size = np.concatenate(parts), np.array(sizes, dtype=np.float32)[owner]
        self._waiting, self._count = [], 0
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        for index, number in enumerate(np.histogram(sides.prod(1), [0, SMALL, LARGE, np.inf])[0].tolist()):
            self.report.areas[index] += number
        flat, sized = (sides <= 0).any(1), ~np.isnan(size[:, 0])
        leaving = sized & ~flat & ~_fits_inside(boxes, size)
        outside = leaving & ((boxes[:, :2] >= size).any(1) | (boxes[:, 2:] <= 0).any(1))
        self._tiny += int((boxes <= 2).all(1).sum())
        self._sized += int(sized.sum())
        self._leaving += int(leaving.sum())
        for reading, edges in _other_readings(boxes).items():
            self._fits[reading] += int(_fits_inside(edges, size).sum())
        partly = leaving & ~outside
        for mask, reason in ((flat, _NO_AREA), (outside, f"box {_OUTSIDE}"), (partly, f"box partly {_OUTSIDE}")):
            rows = np.flatnonzero(mask)
            for image, first, times in zip(*np.unique(owner[rows], return_index=True, return_counts=True), strict=True):
                place, (width, height) = places[image], sizes[image]
                shown = ", ".join(f"{value:g}" for value in boxes[rows[first]].tolist())
                place = place if mask is flat else f"{place} of {width} x {height}: {shown}"
                self.report.problems.add(reason, place, int(times))


def _other_readings(boxes: Float[np.ndarray, "box 4"]) -> dict[str, Float[np.ndarray, "box 4"]]:
    """The boxes (x1, y1, x2, y2) if they were written other than they are read."""
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return {
        "x1, y1, x2, y2 read as x, y, width, height": np.hstack([low, sides]),
        "y, x read as x, y": boxes[:, [1, 0, 3, 2]],
        "centre x, centre y, width, height read as x, y, width, height": np.hstack([low - sides / 2, low + sides / 2]),
    }


def _fits_inside(boxes: Float[np.ndarray, "box 4"], size: Float[np.ndarray, "box 2"]) -> Bool[np.ndarray, " box"]:
    """Which boxes have an area and are inside their images of (width, height), but for a rounding; none where NaN."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.asarray(((low >= -_SLACK) & (high <= size + _SLACK) & (high > low)).all(1))
