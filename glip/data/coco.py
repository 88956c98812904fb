"""COCO json (also LVIS, Objects365, ODinW and your own): parsed once, then turned into samples for training.

Scoring makes its ground truth from the same ``CocoFile`` (``evaluate/ground_truth.py``).
"""

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from glip.data.records import (
    FARTHEST,
    as_list,
    is_id,
    is_text,
    is_visible,
    read_image,
    read_lists,
    read_size,
    records_by_id,
    sample_set,
)
from glip.data.sets import CocoFile, Folders, Id, Row, SampleSet, SkipCounter
from glip.errors import DataError
from glip.shapes import Int
from glip.structures import Sample
from glip.text.prompt import clean_name

LISTS = ("images", "annotations", "categories")
ABSENT, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS's lists of each image
_NOWHERE, _NO_RECORD = -1, -2
_LARGEST = sys.float_info.max  # json has whole numbers of any length
_REASONS = ("", "unknown category", "malformed box", "box without area")


@dataclass(frozen=True)
class Categories:
    """Class names by ascending id; ``label[id]`` is the index of a category's name."""

    names: tuple[str, ...]
    ids: tuple[Id, ...]
    label: dict[Id, int]


def parse_coco(path: Path, tree: Any = None) -> CocoFile:
    """Parse a COCO or LVIS json; ``tree`` is its content where it was parsed before, and is emptied."""
    tree = read_lists(path, LISTS, "COCO", tree)
    skipped = SkipCounter()
    images = records_by_id(tree["images"], "image", skipped)
    columns = _Columns(images, tree["categories"])
    for row in tree["annotations"]:
        columns.add(row)
    categories = list(tree["categories"])
    for key in LISTS:
        tree[key].clear()
    image, category = (np.array(column, dtype=np.int64) for column in (columns.image, columns.category))
    crowd, ignore = (np.array(column, dtype=bool) for column in (columns.crowd, columns.ignore))
    boxes, areas = np.array(columns.boxes).reshape(-1, 4), np.array(columns.areas)
    ids = tuple(columns.category_index)
    return CocoFile(path, images, categories, skipped, image, category, ids, boxes, areas, crowd, ignore)


def is_federated(file: CocoFile) -> bool:
    """Whether images state which categories are absent, as in LVIS."""
    return any(ABSENT in record for record in file.images.values())


def read_coco(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read a COCO-format detection dataset; images without boxes are kept as negatives.

    Args:
        annotations: json with ``images``, ``annotations`` (bbox = x, y, width, height in pixels), ``categories``.
        images: image folders, searched in order.
        tree: the content of the json, if it was parsed before.
    """
    folders, skipped = Folders(images), SkipCounter()
    file = parse_coco(Path(annotations), tree)
    categories = read_categories(file.categories, file.path, skipped)
    return coco_set(file, categories, folders, skipped)


def coco_set(file: CocoFile, categories: Categories, folders: Folders, skipped: SkipCounter) -> SampleSet:
    """The samples of a parsed COCO json under the given class names."""
    rows = _samples(file, categories, lambda record: read_image(folders, record.get("file_name")), skipped)
    samples = (sample for _, sample in rows)
    return sample_set(file.path, samples, skipped, vocabulary=categories.names, ids=categories.ids, annotations=file)


def read_lvis(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read LVIS v1 or v0.5; names of ``neg_category_ids`` are absent, ``not_exhaustive_category_ids`` incomplete.

    Names are cleaned as the 2022 release prompts them, so a few categories share one ("bow"); they keep separate
    labels. Images are found by ``file_name``, else by the last two parts of ``coco_url`` ("val2017/1.jpg"), in
    COCO's folder or directly in ``train2017`` and ``val2017``.
    """
    by_name, by_url = Folders(images), Folders(images)  # each finds for itself how many leading parts to leave out
    file, skipped = parse_coco(Path(annotations), tree), SkipCounter()
    if not is_federated(file):
        raise DataError(f"{file.path}: not LVIS json: no image has {ABSENT}: read it as format coco")
    categories = read_categories(file.categories, file.path, skipped, twins=True)
    rows = _samples(file, categories, lambda record: _lvis_image(record, by_name, by_url), skipped)
    samples = (_federated(record, sample, categories, skipped) for record, sample in rows)
    return sample_set(file.path, samples, skipped, vocabulary=categories.names, ids=categories.ids, annotations=file)


def read_categories(records: Iterable[Any], path: Path, skipped: SkipCounter, *, twins: bool = False) -> Categories:
    """The cleaned class names of a dataset; names without a visible character are counted.

    Args:
        records: maps with ``id`` and ``name``.
        path: their file, for errors.
        skipped: counts categories without a name.
        twins: whether two categories may have one name (LVIS has two kinds of "bow").
    """
    listed = list(records)
    for category in listed:
        if not (isinstance(category, dict) and is_text(category.get("name")) and is_id(category.get("id"))):
            shown = repr(category)[:80]
            raise DataError(f"{path}: category {shown} has no id and name: a category is {{id: 1, name: cat}}")
    check_ids(listed, path)
    ordered = sorted(listed, key=lambda category: id_order(category["id"]))
    named = {category["id"]: clean_name(category["name"]).strip() for category in ordered}
    names = {number: name for number, name in named.items() if is_visible(name)}
    for number in named.keys() - names.keys():
        skipped.add("category without a name", f"category {number}")
    if not names:
        raise DataError(f"{path}: no category with a name, so nothing to look for: add {{id: 1, name: cat}}")
    first: dict[str, Id] = {}
    for number, name in names.items():
        if first.setdefault(name, number) != number and not twins:
            raise DataError(
                f"{path}: categories {first[name]!r} and {number!r} are both called {name!r} (brackets and "
                "underscores do not count): rename one, or give their boxes one category"
            )
    return Categories(tuple(names.values()), tuple(names), {number: index for index, number in enumerate(names)})


def check_ids(categories: Iterable[Row], path: Path) -> None:
    """Refuse two categories with one id: nobody knows which of the two a box has."""
    times = Counter(category["id"] for category in categories)
    again = next((number for number, count in times.items() if count > 1), None)
    if again is not None:
        raise DataError(f"{path}: category id {again!r} is listed twice: give each category an id of its own")


def id_order(number: Id) -> tuple[bool, Id]:
    """Sorting key of ids: numbers before texts."""
    return isinstance(number, str), number


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a json is a finite number."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


class _Columns:
    """Annotations as columns while a file is read: 60 bytes each instead of 600 as records."""

    def __init__(self, images: Iterable[Id], categories: Iterable[Any]) -> None:
        self.image, self.category = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.ignore = bytearray(), bytearray()
        self._place = {number: index for index, number in enumerate(images)}
        self.category_index: dict[Id, int] = {}
        for record in categories:
            if isinstance(record, dict) and is_id(record.get("id")):
                self.category_index.setdefault(record["id"], len(self.category_index))

    def add(self, row: Any) -> None:
        """Take in an annotation, whatever it is."""
        record = row if isinstance(row, dict) else {}
        image, category, box, area = (record.get(key) for key in ("image_id", "category_id", "bbox", "area"))
        known = self._place.get(image, _NOWHERE) if is_id(image) else _NOWHERE
        self.image.append(known if record is row else _NO_RECORD)
        index = self.category_index
        self.category.append(index.setdefault(category, len(index)) if is_id(category) else _NOWHERE)
        numbers = [number if is_number(number) else np.nan for number in as_list(box)]
        malformed = len(numbers) != 4 or np.nan in numbers
        self.boxes.extend((np.nan,) * 4 if malformed else numbers)
        self.areas.append(area if is_number(area) else np.nan)
        self.crowd.append(record.get("iscrowd") in (1, "1"))
        self.ignore.append(record.get("ignore") in (1, "1"))


def _samples(
    file: CocoFile, categories: Categories, locate: Callable[[Row], Path], skipped: SkipCounter
) -> Iterator[tuple[Row, Sample]]:
    """Each image with its usable boxes; those that cannot be used are counted."""
    skipped.merge(file.skipped)
    for index in np.flatnonzero(file.image < 0).tolist():
        reason = "malformed annotation" if file.image[index] == _NO_RECORD else "unknown image"
        skipped.add(reason, f"annotations[{index}]")
    known = [categories.label.get(number, _NOWHERE) for number in file.category_ids]
    labels = np.array([*known, _NOWHERE])[file.category]  # where there is no id, the last element
    with np.errstate(over="ignore"):  # whatever is not finite in float32 is malformed
        ends = file.boxes[:, :2] + file.boxes[:, 2:]
        corners = np.concatenate([file.boxes[:, :2], ends], axis=1).astype(np.float32)
    reasons = _reasons(file, labels, corners)
    order = np.argsort(file.image, kind="stable")  # annotations by image, in the order of the file
    starts = np.searchsorted(file.image, np.arange(len(file.images) + 1), sorter=order).tolist()
    for number, record in enumerate(file.images.values()):
        with skipped.catch(f"image {str(record['id'])[:40]}"):
            image = locate(record)
            own = order[starts[number] : starts[number + 1]]
            for index in own[reasons[own] > 0].tolist():
                place = f"annotations[{index}] of image {str(record['id'])[:40]}"
                skipped.add(_REASONS[reasons[index]], place)
            good = own[reasons[own] == 0]
            sample = Sample(
                image=image,
                boxes=torch.from_numpy(corners[good]),
                box_phrases=tuple((label,) for label in labels[good].tolist()),
                vocabulary=categories.names,
                image_id=record["id"],
                size=read_size(record),
                crowd=tuple(np.flatnonzero(file.crowd[good]).tolist()),
            )
            yield record, sample


def _reasons(file: CocoFile, labels: Int[np.ndarray, " box"], corners: np.ndarray) -> Int[np.ndarray, " box"]:
    """For each annotation the index of the reason why it cannot be used; 0 where it can."""
    malformed = ~(np.abs(file.boxes) < FARTHEST).all(1)
    flat = ~(corners[:, 2:] > corners[:, :2]).all(1)
    return np.select([labels < 0, malformed, flat], [1, 2, 3], 0)


def _federated(record: Row, sample: Sample, categories: Categories, skipped: SkipCounter) -> Sample:
    """The sample with what an LVIS record says of absent and incomplete names."""
    absent = _labels(record, ABSENT, categories, skipped)
    boxed = {label for labels in sample.box_phrases for label in labels}
    contradicted = boxed.intersection(absent)
    if contradicted:
        skipped.add(f"name in {ABSENT} that has a box", f"image {str(record['id'])[:40]}", len(contradicted))
    kept = tuple(label for label in absent if label not in contradicted)
    return replace(sample, absent=kept, incomplete=_labels(record, INCOMPLETE, categories, skipped))


def _labels(record: Row, key: str, categories: Categories, skipped: SkipCounter) -> tuple[int, ...]:
    """The labels of a list of category ids; without a list nothing is known, so none."""
    known = [number for number in as_list(record.get(key)) if is_id(number) and number in categories.label]
    count_unknown(record, key, len(known), skipped)
    return tuple(sorted({categories.label[number] for number in known}))


def count_unknown(record: Row, key: str, known: int, skipped: SkipCounter) -> None:
    """Count a missing list of category ids, or the ids in it that no category has."""
    place, listed = f"image {str(record['id'])[:40]}", record.get(key)
    if not isinstance(listed, list):
        skipped.add(f"image without {key}", place)
    elif len(listed) > known:
        skipped.add(f"unknown category in {key}", place, len(listed) - known)


def _lvis_image(record: Row, by_name: Folders, by_url: Folders) -> Path:
    name, url = record.get("file_name"), record.get("coco_url")
    if not isinstance(url, str) or not url:
        return read_image(by_name, name)
    files = [read_image(by_name, name)] if name else []
    files.append(read_image(by_url, "/".join(url.split("/")[-2:])))
    return next((file for file in files if file.is_file()), files[-1])
