"""What there is to find in a set and what is known to be absent, in the form in which everything is scored.

Scoring and false positive rates both work on a GroundTruth and on Results, which name images and categories by their
place in it, so that ids may be numbers or texts. ``annotations`` reads one from a file; here it is taken from samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glip.errors import DataError
from glip.evaluate.results import UNKNOWN, Results, concatenate, is_number, results_of
from glip.shapes import Bool, Float, Int
from glip.structures import Detections, Sample

_EVERYWHERE = (-1e6, -1e6, 2e6, 2e6)


@dataclass(frozen=True)
class Boxes:
    """Annotated boxes as columns, in the order of their file.

    Args:
        images: the place of each box's image among the truth's images.
        categories: likewise of its category.
        boxes: x, y, width, height in pixels.
        areas: as the annotations state them (COCO: of the outline), which decides what is small and large.
        crowd: marks a group; what lies in it is neither right nor wrong.
    """

    images: Int[np.ndarray, " box"]
    categories: Int[np.ndarray, " box"]
    boxes: Float[np.ndarray, "box 4"]
    areas: Float[np.ndarray, " box"]
    crowd: Bool[np.ndarray, " box"]

    def select(self, chosen: np.ndarray) -> "Boxes":
        """Some of the boxes, by index or by mask."""
        columns = (self.images, self.categories, self.boxes, self.areas, self.crowd)
        return Boxes(*(column[chosen] for column in columns))


@dataclass(frozen=True)
class GroundTruth:
    """What there is to find in a set, and what is known not to be there.

    Args:
        images: ids; their order decides between equal scores of two images (pycocotools: ascending).
        categories: ids, in the order of the table.
        names: of the categories.
        boxes: what there is.
        negatives: bool (image, category): who looked for it and found none; None where that holds for every
            category without a box. Where it is given, what else is found in an image is not scored, as in LVIS.
    """

    images: tuple[int | str, ...]
    categories: tuple[int | str, ...]
    names: tuple[str, ...]
    boxes: Boxes
    negatives: Bool[np.ndarray, "image category"] | None = None

    @property
    def present(self) -> Bool[np.ndarray, "image category"]:
        """Where a box, or a group, of a category is."""
        there = np.zeros((len(self.images), len(self.categories)), dtype=bool)
        there[self.boxes.images, self.boxes.categories] = True
        return there

    def labels_of(self, vocabulary: Sequence[str]) -> tuple[int, ...]:
        """The place of the category of each name of a vocabulary.

        Raises:
            KeyError: a name that no category has.
        """
        return _labels(self.names, vocabulary)


@dataclass(frozen=True, kw_only=True)
class LvisTruth(GroundTruth):
    """What LVIS knows besides: ``negatives`` is always given, and ``boxes.crowd`` marks those it has ignored.

    Args:
        frequencies: "r", "c" or "f" for each category: rare, common, frequent; empty where the file does not say.
        incomplete: where a category may have more boxes than are annotated (``not_exhaustive_category_ids``); what
            matches none of them is neither right nor wrong.
    """

    frequencies: tuple[str, ...]
    incomplete: Bool[np.ndarray, "image category"]


def truth_of(samples: Sequence[Sample]) -> GroundTruth:
    """What samples say of the names of their vocabularies; those with a caption say nothing, but keep their place.

    Boxes marked as a group are treated as COCO treats its crowds: what lies in them is neither right nor wrong. As in
    LVIS, names of which nobody knows whether they are there (``Sample.absent``) are not scored in that image, and of
    those that may have more boxes (``Sample.incomplete``) only what matches one is. Names that a set lists twice stay
    two categories; over several vocabularies equal names are one. Ids are places, from 0.
    """
    vocabularies = dict.fromkeys(sample.vocabulary for sample in samples if sample.prompt is None)
    names = (
        next(iter(vocabularies))
        if len(vocabularies) == 1
        else tuple(sorted({name for listed in vocabularies for name in listed}))
    )
    labels = {listed: _labels(names, listed) for listed in vocabularies}
    negatives = np.zeros((len(samples), len(names)), dtype=bool)
    columns = BoxColumns()
    for place, sample in enumerate(samples):
        if sample.prompt is None:
            label = labels[sample.vocabulary]
            negatives[place, [label[name] for name in absent_names(sample)]] = True
            _add_sample(columns, place, sample, label)
    return GroundTruth(tuple(range(len(samples))), tuple(range(len(names))), names, columns.boxes(), negatives)


def to_arrays(pairs: Iterable[tuple[Sample, Detections]]) -> tuple[GroundTruth, Results]:
    """Samples that have a vocabulary, and what was found in them, in the form in which files are scored.

    Raises:
        ValueError: no image, a sample without vocabulary, or detections of other names.
    """
    listed = list(pairs)
    if not listed:
        raise DataError("no image to score: none was given, or none could be read")
    for sample, found in listed:
        _check_names(sample, found)
    truth = truth_of([sample for sample, _ in listed])
    parts = []
    for place, (sample, found) in enumerate(listed):
        more = len(found.prompt.phrases) - len(sample.vocabulary)  # asked beside the set's own names
        parts.append(results_of(found, place, (*truth.labels_of(sample.vocabulary), *[UNKNOWN] * more)))
    return truth, concatenate(parts)


def absent_names(sample: Sample) -> list[int]:
    """The names of a sample that are surely not in the image; phrases of a caption count as there."""
    if sample.prompt is not None:
        return []
    there = {number for numbers in sample.box_phrases for number in numbers}
    listed = range(len(sample.vocabulary)) if sample.absent is None else sample.absent
    return [number for number in listed if number not in there and number not in sample.incomplete]


def _check_names(sample: Sample, found: Detections) -> None:
    if not sample.vocabulary or sample.prompt is not None:
        raise DataError(
            f"image {sample.image_id} has no list of names: AP is for detection sets, captions have recall (phrases)"
        )
    if found.prompt.texts[: len(sample.vocabulary)] != sample.vocabulary:
        raise DataError(
            f"image {sample.image_id}: detections are of {found.prompt.texts[:3]}..., its boxes of "
            f"{sample.vocabulary[:3]}...: no class matches; ask for the names of the set, in their order"
        )


def _labels(names: Sequence[str], listed: Sequence[str]) -> tuple[int, ...]:
    if tuple(listed) == tuple(names):
        return tuple(range(len(names)))
    place = {name: index for index, name in enumerate(names)}
    return tuple(place[name] for name in listed)


def _add_sample(columns: "BoxColumns", place: int, sample: Sample, label: Sequence[int]) -> None:
    for index, (box, numbers) in enumerate(zip(sample.boxes.tolist(), sample.box_phrases, strict=True)):
        x1, y1, x2, y2 = box
        for number in numbers:
            columns.add(place, label[number], (x1, y1, x2 - x1, y2 - y1), crowd=index in sample.crowd)
    for number in sample.incomplete:  # one crowd everywhere: whatever matches no box is ignored
        columns.add(place, label[number], _EVERYWHERE, crowd=True)


class BoxColumns:
    """Boxes one after the other; without a stated area it is that of the box."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._numbers: list[tuple[float, ...]] = []
        self._crowd: list[bool] = []

    def add(self, image: int, category: int, box: Sequence[float], *, crowd: bool, area: Any = None) -> None:
        """Take a box in; ``area`` is what an annotation states, whatever that is."""
        self._places.append((image, category))
        self._numbers.append((*box, area if is_number(area) else box[2] * box[3]))
        self._crowd.append(crowd)

    def boxes(self) -> Boxes:
        """The columns."""
        places = np.array(self._places, dtype=np.int64).reshape(-1, 2)
        numbers = np.array(self._numbers, dtype=np.float64).reshape(-1, 5)
        return Boxes(places[:, 0], places[:, 1], numbers[:, :4], numbers[:, 4], np.array(self._crowd, dtype=bool))
