"""The boxes of a dataset and the names known to be absent, as arrays: made from a COCO or LVIS file, or from samples.

Scoring and false positive rates both work on a GroundTruth and on Results, which refer to images and categories by
index, so that ids may be numbers or texts. From a file every category and box is kept, named or not, of any size, with
the area that the file states (training skips some): all of it decides the official figures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from glip.data.coco import ABSENT, INCOMPLETE, check_ids, id_order, is_federated, listed_labels
from glip.data.records import is_id, records_by_id
from glip.data.sets import CocoFile, SkipCounter
from glip.errors import DataError
from glip.evaluate.results import UNKNOWN, Results, concatenate, results_of
from glip.shapes import Bool, Float, Int
from glip.structures import Detections, Sample

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: in less than 10, less than 100, more training images
_EVERYWHERE = (-1e6, -1e6, 2e6, 2e6)


@dataclass(frozen=True)
class Boxes:
    """Annotated boxes as columns, in the order of their file.

    Args:
        images: the place of each box's image among the truth's images.
        categories: likewise of its category.
        boxes: x, y, width, height in pixels.
        areas: as the annotations state them (COCO: of the outline), which decides what is small and large.
        crowd: marks a group; a detection inside it is neither right nor wrong.
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


def read_truth(file: CocoFile, skipped: SkipCounter, *, lvis: bool = False) -> GroundTruth:
    """The ground truth of a COCO or LVIS json; annotations that cannot be scored are counted.

    Images and categories are ordered by id (texts after numbers). In a json with ``neg_category_ids`` (LVIS) only
    those are known to be absent.

    Args:
        file: the parsed json.
        skipped: counts what cannot be scored.
        lvis: give a LvisTruth. Without a frequency a category is in no AP of rare, common or frequent ones; without
            its two lists an image has no category that is surely absent or incomplete. Both are counted.

    Raises:
        DataError: a category id listed twice.
    """
    skipped.merge(file.skipped)
    check_ids((record for record in file.categories if isinstance(record, dict) and is_id(record.get("id"))), file.path)
    records = records_by_id(file.categories, "category", skipped)
    images, categories = (tuple(sorted(ids, key=id_order)) for ids in (file.images, records))
    names = tuple(str(records[number].get("name", number)) for number in categories)
    place, label = ({number: index for index, number in enumerate(ids)} for ids in (images, categories))

    def listed(key: str, tally: SkipCounter) -> Bool[np.ndarray, "image category"]:
        """Which categories a list of each image names."""
        marks = np.zeros((len(images), len(categories)), dtype=bool)
        for index, number in enumerate(images):
            marks[index, listed_labels(file.images[number], key, label, tally)] = True
        return marks

    # an unknown image or category is -1, the last element of each table
    own_images = np.array([place[number] for number in file.images] + [-1])[np.maximum(file.image, -1)]
    own_labels = np.array([label.get(number, -1) for number in file.category_ids] + [-1])[file.category]
    good: np.ndarray = np.ones(len(own_images), dtype=bool)
    for wrong, reason in (
        (own_images < 0, "annotation of an unknown image"),
        (own_labels < 0, "annotation of an unknown category"),
        (~(file.boxes[:, 2:] >= 0).all(axis=1), "annotation with a malformed box"),  # also of NaN
    ):
        for index in np.flatnonzero(good & wrong).tolist():
            skipped.add(reason, f"annotations[{index}]")
        good = good & ~wrong
    for index in np.flatnonzero(good & np.isnan(file.areas)).tolist():
        skipped.add("annotation without an area (that of its box is taken)", f"annotations[{index}]")
    areas = np.where(np.isnan(file.areas), file.boxes[:, 2] * file.boxes[:, 3], file.areas)
    crowd = file.ignore if lvis else file.crowd
    boxes = Boxes(own_images, own_labels, file.boxes, areas, crowd).select(good)
    if not lvis:
        negatives = listed(ABSENT, SkipCounter()) if is_federated(file) else None
        return GroundTruth(images, categories, names, boxes, negatives)
    stated = [records[number].get("frequency") for number in categories]
    for number, frequency in zip(categories, stated, strict=True):
        if frequency not in FREQUENCIES:
            skipped.add("category without a frequency (r, c or f)", f"category {number}")
    return LvisTruth(
        images,
        categories,
        names,
        boxes,
        negatives=listed(ABSENT, skipped),
        frequencies=tuple(frequency if frequency in FREQUENCIES else "" for frequency in stated),
        incomplete=listed(INCOMPLETE, skipped),
    )


def truth_of(samples: Sequence[Sample]) -> GroundTruth:
    """What samples say of the names of their vocabularies; those with a caption say nothing, but keep their place.

    Boxes marked as a group are treated as COCO treats its crowds: detections inside are neither right nor wrong. As in
    LVIS, names of which nobody knows whether they are there (``Sample.absent``) are not scored in that image, and of
    those that may have more boxes (``Sample.incomplete``) only what matches one is. Names that a set lists twice stay
    two categories; over several vocabularies equal names are one. Ids are places, from 0.
    """
    vocabularies = list(dict.fromkeys(sample.vocabulary for sample in samples if sample.prompt is None))
    every = vocabularies[0] if len(vocabularies) == 1 else sorted({name for one in vocabularies for name in one})
    labels = {listed: labels_of(every, listed) for listed in vocabularies}
    negatives = np.zeros((len(samples), len(every)), dtype=bool)
    rows: list[tuple[float, ...]] = []  # image, category, x, y, width, height, crowd
    for place, sample in enumerate(samples):
        if sample.prompt is not None:
            continue
        label = labels[sample.vocabulary]
        absent = range(len(label)) if sample.absent is None else sample.absent
        negatives[place, [label[name] for name in absent]] = True
        for index, (box, numbers) in enumerate(zip(sample.boxes.tolist(), sample.box_phrases, strict=True)):
            x1, y1, x2, y2 = box
            rows += [(place, label[one], x1, y1, x2 - x1, y2 - y1, index in sample.crowd) for one in numbers]
        # one crowd everywhere: whatever matches no box is ignored
        rows += [(place, label[one], *_EVERYWHERE, True) for one in sample.incomplete]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    places = table[:, :2].astype(np.int64)
    boxes = Boxes(places[:, 0], places[:, 1], table[:, 2:6], table[:, 4] * table[:, 5], table[:, 6].astype(bool))
    negatives[boxes.images, boxes.categories] = False
    return GroundTruth(tuple(range(len(samples))), tuple(range(len(every))), tuple(every), boxes, negatives)


def labels_of(names: Sequence[str], listed: Sequence[str]) -> tuple[int, ...]:
    """The place of each listed name among the names of a ground truth."""
    if tuple(listed) == tuple(names):  # two of them may be equal
        return tuple(range(len(names)))
    place = {name: index for index, name in enumerate(names)}
    return tuple(place[name] for name in listed)


def to_arrays(pairs: Iterable[tuple[Sample, Detections]]) -> tuple[GroundTruth, Results]:
    """Samples that have a vocabulary, and what was found in them, in the form in which files are scored.

    Raises:
        DataError: a sample without vocabulary, or detections of other names.
    """
    listed = list(pairs)
    truth, parts = truth_of([sample for sample, _ in listed]), list[Results]()
    for place, (sample, found) in enumerate(listed):
        check_words(sample, found, () if sample.prompt else sample.vocabulary)
        more = len(found.prompt.phrases) - len(sample.vocabulary)  # asked beside the set's own names
        parts.append(results_of(found, place, (*labels_of(truth.names, sample.vocabulary), *[UNKNOWN] * more)))
    return truth, concatenate(parts)


def check_words(sample: Sample, found: Detections, words: tuple[str, ...]) -> None:
    """Refuse detections of other words than a sample is scored by: no label of theirs would mean the right thing.

    Raises:
        DataError: no such words, or the first ones asked for are others.
    """
    if not words or found.prompt.texts[: len(words)] != words:
        raise DataError(
            f"image {sample.image_id}: detections are of {found.prompt.texts[:3]}, the words to score are {words[:3]}: "
            "detect with the sample's own names, in their order, for AP, or with its own caption for recall"
        )
