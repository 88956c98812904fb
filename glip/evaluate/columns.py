"""What there is to find in a set, and what was found, as columns: scoring works on a GroundTruth and on Results.

Both refer to images and categories by index, so that ids may be numbers or texts. They are made from files in COCO's
formats or from samples. From a file every category and box is kept, named or not, of any size, with the area that the
file states (training skips some): all of it decides the official figures. What cannot be scored is skipped and counted,
never scored as something else.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from glip.data.coco import ABSENT, INCOMPLETE, category_numbers, check_distinct, id_order, is_federated, listed_labels
from glip.data.records import as_list, is_number, outline_box, read_id, records_by_id, unknown
from glip.data.sets import CocoFile, Row, SkipCounter
from glip.errors import DataError
from glip.files import atomic_write, read_json
from glip.shapes import Bool, Float, Int
from glip.structures import Detections, Sample

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: in less than 10, less than 100, more training images
UNKNOWN = -1
_EVERYWHERE = (-1e6, -1e6, 2e6, 2e6)
_PIECE = 100_000  # rows of results that are Python objects at once
Rows = TypeVar("Rows", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Arrays of equal length."""

    def select(self: Rows, chosen: np.ndarray) -> Rows:
        """Some of the rows, by index or by mask."""
        return replace(self, **{name: column[chosen] for name, column in vars(self).items() if column is not None})


@dataclass(frozen=True)
class Boxes(Columns):
    """Annotated boxes as columns, in the order of their file: x, y, width, height in pixels.

    ``images`` and ``categories`` are indices into those of the truth. ``areas`` are as the annotations state them
    (COCO: of the outline), which decides what is small and large. ``crowd`` marks a group; a detection inside it is
    neither right nor wrong. ``zero`` marks the annotation with the id 0, where a file says.
    """

    images: Int[np.ndarray, " box"]
    categories: Int[np.ndarray, " box"]
    boxes: Float[np.ndarray, "box 4"]
    areas: Float[np.ndarray, " box"]
    crowd: Bool[np.ndarray, " box"]
    zero: Bool[np.ndarray, " box"] | None = None


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


@dataclass(frozen=True)
class Results(Columns):
    """Detections of many images, in the order of their file (which decides between equal scores).

    ``images`` and ``categories`` are indices into those of the ground truth; ``UNKNOWN`` is a category that it does
    not have. Boxes are x, y, width, height in pixels; scores any finite numbers, higher is more certain.
    """

    images: Int[np.ndarray, " det"]
    categories: Int[np.ndarray, " det"]
    boxes: Float[np.ndarray, "det 4"]
    scores: Float[np.ndarray, " det"]

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self) -> Iterator[tuple[int, int, list[float], float]]:
        """Image, category, box and score of each detection as plain numbers."""
        for start in range(0, len(self), _PIECE):
            part = self.select(np.arange(start, min(start + _PIECE, len(self))))
            yield from zip(*(column.tolist() for column in vars(part).values()), strict=True)


def read_truth(file: CocoFile, skipped: SkipCounter, *, lvis: bool = False) -> GroundTruth:
    """The ground truth of a COCO or LVIS json; annotations that cannot be scored are counted.

    Images and categories are ordered by id (texts after numbers). In a json with ``neg_category_ids`` (LVIS) only
    those are known to be absent.

    With ``lvis`` it is a LvisTruth. Without a frequency a category is in no AP of rare, common or frequent ones;
    without its two lists an image has no category that is surely absent or incomplete. Both are counted.

    Raises:
        DataError: a category id listed twice.
    """
    skipped.merge(file.skipped)
    check_distinct(category_numbers(file.categories), "id", file.path)
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
    good = own_images >= 0  # others are counted already
    for wrong, reason in (
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
    boxes = Boxes(own_images, own_labels, file.boxes, areas, crowd, file.zero).select(good)
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
        # one crowd everywhere: what matches no box is ignored
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


def results_of(found: Detections, image: int, labels: Sequence[int], *, inclusive: bool = False) -> Results:
    """The detections of one image as columns, in their order.

    ``image`` is its index, ``labels`` has for each phrase of the prompt the index of its category, or ``UNKNOWN``.
    ``inclusive`` counts the last pixel: width = x2 - x1 + 1, as the release does for COCO (and not for LVIS).
    """
    boxes = found.boxes.numpy(force=True).astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2] + (1.0 if inclusive else 0.0)
    return Results(
        np.full(len(found), image, dtype=np.int64),
        np.array(labels, dtype=np.int64)[found.labels.numpy(force=True)],
        np.concatenate([boxes[:, :2], sizes], axis=1),
        found.scores.numpy(force=True).astype(np.float64),
    )


def split_by(groups: Int[np.ndarray, " row"], count: int) -> list[np.ndarray]:
    """The rows of each of ``count`` groups, such as images or categories, in their order."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.searchsorted(groups[order], np.arange(1, count)))


def concatenate(parts: Sequence[Results]) -> Results:
    """Results one after the other."""
    listed = [Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0)), *parts]
    return Results(*map(np.concatenate, zip(*(vars(part).values() for part in listed), strict=True)))


def read_results(
    path: str | Path, images: Sequence[int | str], categories: Sequence[int | str], tally: SkipCounter
) -> Results:
    """Read a results file in COCO's format: a list of {image_id, category_id, bbox: [x, y, width, height], score}.

    A row of OmniLabel's, with lists of ``description_ids`` and ``scores`` instead, is a result for each of them.
    ``images`` and ``categories`` are the ids of the ground truth. Rows of unknown images or without a usable box and
    score are skipped and counted. Rows of unknown categories are counted and stay, as ``UNKNOWN``: in LVIS they count
    among an image's 300.

    Raises:
        FileNotFoundError: no such file.
        DataError: not JSON, or not one row is a result for these images and categories.
    """
    place, label = (dict[Any, int](zip(ids, range(len(ids)), strict=True)) for ids in (images, categories))
    where, labels, boxes, scores = array("q"), array("q"), array("d"), array("d")

    def take(row: Row) -> str | Row:
        """Take a row in, 56 bytes; gives why it is skipped or odd, "" if it is neither, or itself if it is no result.

        It runs as each row closes, so that millions of records are never in memory at once.
        """
        if "image_id" not in row and "score" not in row:
            return row
        image, category = read_id(row.get("image_id")), read_id(row.get("category_id"))
        box, score = row.get("bbox") or outline_box(row.get("segmentation")), row.get("score")
        if image not in place:
            return unknown("result of an unknown image", image, place)
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0):
            return "result with a malformed box"
        if not is_number(score):
            return "result with a score that is no number"
        where.append(place[image])
        labels.append(label.get(category, UNKNOWN))
        boxes.extend(box)
        scores.append(score)
        if labels[-1] == UNKNOWN:
            return unknown("result of an unknown category", category, label)
        return "" if row.get("bbox") else "result without a bbox (that of its segmentation is taken)"

    listed = read_json(path, object_hook=partial(_take_each, take))
    rows = enumerate(listed if isinstance(listed, list) else ())
    for number, reason in filter(lambda numbered: numbered[1] != "", rows):
        tally.add(reason if isinstance(reason, str) else "result that is no record", f"row {number}")
    if listed == []:
        tally.add("results file without a result: every figure is 0")
    elif all(number == UNKNOWN for number in labels):
        raise DataError(
            f"{path}: not one result in it can be scored ({tally or 'it lists none'}): give a JSON list of {{image_id, "
            f"category_id, bbox: [x, y, width, height], score}}; the set's image ids are such as "
            f"{', '.join(map(repr, images[:2]))}, its category ids such as {', '.join(map(repr, categories[:2]))}"
        )
    own = np.array(where, dtype=np.int64), np.array(labels, dtype=np.int64)
    return Results(*own, np.array(boxes).reshape(-1, 4), np.array(scores))


def _take_each(take: Callable[[Row], str | Row], row: Row) -> str | Row:
    """Take a row of OmniLabel's as one in COCO's form for each description, any other as it is."""
    if "description_ids" not in row:
        return take(row)
    pairs = zip_longest(as_list(row["description_ids"]), as_list(row.get("scores")))
    shared = {key: row.get(key) for key in ("image_id", "bbox")}
    rows = (shared | {"category_id": number, "score": score} for number, score in pairs)
    return next((reason for reason in [take(one) for one in rows] if reason), "")


def write_results(
    path: Path,
    results: Results,
    images: Sequence[int | str],
    categories: Sequence[int | str],
    *,
    described: bool = False,
) -> None:
    """Write results in COCO's format, or OmniLabel's (``described``), a row per line, none of unknown categories."""
    known, before = results.select(results.categories != UNKNOWN), "[\n"
    with atomic_write(path) as file:
        for image, category, box, score in known.rows():
            found: Row = {"category_id": categories[category], "bbox": box, "score": score}
            if described:
                found = {"bbox": box, "description_ids": [categories[category]], "scores": [score]}
            file.write(before + json.dumps({"image_id": images[image], **found}))
            before = ",\n"
        file.write("\n]\n" if len(known) else "[]\n")
