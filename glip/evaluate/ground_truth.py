"""The boxes of a dataset and the names known to be absent, as arrays: made from a COCO or LVIS file, or from samples.

Scoring and false positive rates both work on a GroundTruth and on Results, which refer to images and categories by
index, so that ids may be numbers or texts. From a file every category and box is kept, named or not, of any size, with
the area that the file states (training skips some): all of it decides the official figures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glip.data.coco import ABSENT, INCOMPLETE, check_distinct, id_order, is_federated, listed_labels, parse_coco
from glip.data.records import is_id, records_by_id
from glip.data.sets import CocoFile, Id, Row, SkipCounter
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


def read_coco_truth(source: str | Path | CocoFile, skipped: SkipCounter) -> GroundTruth:
    """The ground truth of a COCO-format json, given as a path or already parsed.

    Images and categories are ordered by id (texts after numbers). In a json with ``neg_category_ids`` (LVIS) only
    those are known to be absent. Annotations that cannot be scored are counted.

    Raises:
        FileNotFoundError: no such file.
        DataError: not COCO json, no annotation of a known image and category, or a category id listed twice.
    """
    file = source if isinstance(source, CocoFile) else parse_coco(Path(source))
    truth, _ = _read_truth(file, file.crowd, skipped)
    if not is_federated(file):
        return truth
    return replace(truth, negatives=_listed(file, truth, ABSENT, SkipCounter()))


def read_lvis_truth(source: str | Path | CocoFile, skipped: SkipCounter) -> LvisTruth:
    """The ground truth of an LVIS json (v1, v0.5, minival), given as a path or already parsed.

    Without a frequency a category is in no AP of rare, common or frequent ones; without its two lists an image has
    no category that is surely absent or incomplete. Both are counted.

    Raises:
        FileNotFoundError: no such file.
        DataError: not LVIS json, no annotation to score, or a category id listed twice.
    """
    file = source if isinstance(source, CocoFile) else parse_coco(Path(source))
    if not is_federated(file):
        raise DataError(f"{file.path}: not LVIS json: no image has {ABSENT}: score it with the protocol of COCO")
    truth, records = _read_truth(file, file.ignore, skipped)
    stated = [str(records[number].get("frequency")) for number in truth.categories]
    for number, frequency in zip(truth.categories, stated, strict=True):
        if frequency not in FREQUENCIES:
            skipped.add("category without a frequency (r, c or f)", f"category {number}")
    return LvisTruth(
        truth.images,
        truth.categories,
        truth.names,
        truth.boxes,
        _listed(file, truth, ABSENT, skipped),
        frequencies=tuple(frequency if frequency in FREQUENCIES else "" for frequency in stated),
        incomplete=_listed(file, truth, INCOMPLETE, skipped),
    )


def _read_truth(
    file: CocoFile, crowd: Bool[np.ndarray, " box"], skipped: SkipCounter
) -> tuple[GroundTruth, dict[Id, Row]]:
    """Images, categories and boxes, the first two by ascending id; and the records of the categories."""
    skipped.merge(file.skipped)
    stated = (record.get("id") for record in file.categories if isinstance(record, dict))
    check_distinct(filter(is_id, stated), "id", file.path)
    records = records_by_id(file.categories, "category", skipped)
    images, categories = (tuple(sorted(ids, key=id_order)) for ids in (file.images, records))
    names = tuple(str(records[number].get("name", number)) for number in categories)
    return GroundTruth(images, categories, names, _file_boxes(file, images, categories, crowd, skipped)), records


def _file_boxes(
    file: CocoFile,
    images: Sequence[Id],
    categories: Sequence[Id],
    crowd: Bool[np.ndarray, " box"],
    skipped: SkipCounter,
) -> Boxes:
    """The annotations that can be scored, in the file's order."""
    place, label = ({number: index for index, number in enumerate(ids)} for ids in (images, categories))
    # an unknown image or category is -1, the last element of each table
    own_images = np.array([place[number] for number in file.images] + [-1])[np.maximum(file.image, -1)]
    own_labels = np.array([label.get(number, -1) for number in file.category_ids] + [-1])[file.category]
    malformed = np.asarray(~(file.boxes[:, 2:] >= 0).all(axis=1))  # also of NaN
    good: np.ndarray = np.ones(len(own_images), dtype=bool)
    for wrong, reason in (
        (own_images < 0, "annotation of an unknown image"),
        (own_labels < 0, "annotation of an unknown category"),
        (malformed, "annotation with a malformed box"),
    ):
        for index in np.flatnonzero(good & wrong).tolist():
            skipped.add(reason, f"annotations[{index}]")
        good = good & ~wrong
    for index in np.flatnonzero(good & np.isnan(file.areas)).tolist():
        skipped.add("annotation without an area (that of its box is taken)", f"annotations[{index}]")
    if not good.any():
        why = str(skipped) or "it lists none"
        raise DataError(f"{file.path}: no annotation in it can be scored ({why}): check it with glip data check")
    boxes = file.boxes[good]
    areas = np.where(np.isnan(file.areas[good]), boxes[:, 2] * boxes[:, 3], file.areas[good])
    return Boxes(own_images[good], own_labels[good], boxes, areas, crowd[good])


def _listed(file: CocoFile, truth: GroundTruth, key: str, skipped: SkipCounter) -> Bool[np.ndarray, "image category"]:
    """Which categories a list of each image names."""
    label = {number: index for index, number in enumerate(truth.categories)}
    marks = np.zeros((len(truth.images), len(label)), dtype=bool)
    for place, number in enumerate(truth.images):
        marks[place, listed_labels(file.images[number], key, label, skipped)] = True
    return marks


def truth_of(samples: Sequence[Sample]) -> GroundTruth:
    """What samples say of the names of their vocabularies; those with a caption say nothing, but keep their place.

    Boxes marked as a group are treated as COCO treats its crowds: detections inside are neither right nor wrong. As in
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
    rows: list[tuple[float, ...]] = []  # image, category, x, y, width, height, crowd
    for place, sample in enumerate(samples):
        if sample.prompt is not None:
            continue
        label = labels[sample.vocabulary]
        negatives[place, [label[name] for name in absent_names(sample)]] = True
        for index, (box, numbers) in enumerate(zip(sample.boxes.tolist(), sample.box_phrases, strict=True)):
            x1, y1, x2, y2 = box
            rows += [(place, label[one], x1, y1, x2 - x1, y2 - y1, index in sample.crowd) for one in numbers]
        # one crowd everywhere: whatever matches no box is ignored
        rows += [(place, label[one], *_EVERYWHERE, True) for one in sample.incomplete]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    places = table[:, :2].astype(np.int64)
    boxes = Boxes(places[:, 0], places[:, 1], table[:, 2:6], table[:, 4] * table[:, 5], table[:, 6].astype(bool))
    return GroundTruth(tuple(range(len(samples))), tuple(range(len(names))), names, boxes, negatives)


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
