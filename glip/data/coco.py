"""COCO json (also LVIS, Objects365, ODinW and your own): parsed once, then turned into samples for training.

Scoring makes its ground truth from the same ``CocoFile`` (``evaluate/columns.py``).
"""

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch

from glip.data import records
from glip.data.records import as_list, as_map, is_id, is_text
from glip.data.sets import CocoFile, Folders, Id, Row, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample
from glip.text.prompt import clean_name

LISTS = ("images", "annotations", "categories")
ABSENT, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS's lists of each image
_NAMES = ("image", "category", "boxes", "areas", "crowd", "ignore")  # the columns of a CocoFile, and their types
_COLUMNS = np.dtype(list(zip(_NAMES, ("i8", "i8", "4f8", "f8", "?", "?"), strict=True)))
_UNKNOWN = -1  # in the columns of images and categories
_LARGEST = sys.float_info.max  # json has whole numbers of any length
PARENT = "category without a box that only groups all others: left out"  # category 0 of Roboflow's exports
_REASONS = ("", "unknown category", "malformed box", "box without area")


class Categories(NamedTuple):
    """Class names by ascending id; ``label[id]`` is the index of a category's name."""

    names: tuple[str, ...]
    ids: tuple[Id, ...]
    label: dict[Id, int]


def parse_coco(path: Path, tree: Any = None) -> CocoFile:
    """Parse a COCO or LVIS json; ``tree`` is its content where it was parsed before, and is emptied."""
    tree = records.read_lists(path, LISTS, "COCO", tree)
    skipped = SkipCounter()
    images, categories = records.records_by_id(tree["images"], "image", skipped), list(tree["categories"])
    rows = [as_map(row) for row in tree["annotations"]]
    for key in LISTS:
        tree[key].clear()
    places: dict[Any, int] = {number: index for index, number in enumerate(images)}
    stated = (record.get("id") for record in categories if isinstance(record, dict))
    category_ids = {number: index for index, number in enumerate(dict.fromkeys(filter(is_id, stated)))}

    def read(row: Row) -> tuple[Any, ...]:
        image, category, area = (row.get(key) for key in ("image_id", "category_id", "area"))
        box = as_list(row.get("bbox"))
        return (
            places.get(image, _UNKNOWN) if is_id(image) else _UNKNOWN,
            category_ids.setdefault(category, len(category_ids)) if is_id(category) else _UNKNOWN,
            tuple(box) if len(box) == 4 and all(map(is_number, box)) else (np.nan,) * 4,
            area if is_number(area) else np.nan,
            row.get("iscrowd") in (1, "1"),
            row.get("ignore") in (1, "1"),
        )

    table = np.fromiter(map(read, rows), _COLUMNS, len(rows))
    ids = [*category_ids, None]
    _leave_out_parent(categories, [ids[place] for place in np.unique(table["category"]).tolist()], skipped)
    columns = {key: np.ascontiguousarray(table[key]) for key in _NAMES}
    return CocoFile(path, images, categories, skipped, category_ids=tuple(category_ids), **columns)


def _leave_out_parent(categories: list[Any], used: Collection[Id | None], skipped: SkipCounter) -> None:
    """Take out a category without a box that is the ``supercategory`` of all others, as Roboflow's exports have it."""
    parents = [as_map(record).get("supercategory") for record in categories]
    for place, record in enumerate(map(as_map, categories)):
        name = record.get("name")
        only = parents[place] != name and len(parents) - 1 == parents.count(name) > 0
        if only and is_text(name) and record.get("id") not in used:
            skipped.add(PARENT, name)
            del categories[place]
            return


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
    return coco_set(file, read_categories(file.categories, file.path, skipped), folders, skipped)


def coco_set(
    file: CocoFile, categories: Categories, folders: Folders, skipped: SkipCounter, *, federated: bool = False
) -> SampleSet:
    """The samples of a parsed COCO json under the given class names; of LVIS if ``federated``.

    Boxes that cannot be used are counted.
    """
    skipped.merge(file.skipped)
    for index in np.flatnonzero(file.image < 0).tolist():
        skipped.add("annotation of an unknown image", f"annotations[{index}]")
    known = [categories.label.get(number, _UNKNOWN) for number in file.category_ids]
    labels = np.array([*known, _UNKNOWN])[file.category]  # where there is no id, the last element
    with np.errstate(over="ignore"):  # whatever is not finite in float32 is malformed
        corners = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1).astype(np.float32)
    malformed, flat = ~(np.abs(file.boxes) < records.FARTHEST).all(1), ~(corners[:, 2:] > corners[:, :2]).all(1)
    reasons = np.select([labels < 0, malformed, flat], [1, 2, 3], 0)  # why each box cannot be used; 0 where it can
    order = np.argsort(file.image, kind="stable")  # annotations by image, in the order of the file
    starts = np.searchsorted(file.image, np.arange(len(file.images) + 1), sorter=order).tolist()
    by_url = Folders(folders.folders)  # finds for itself how many leading parts to leave out

    def read(numbered: tuple[int, Row]) -> Sample:
        number, record = numbered
        image = _lvis_image(record, folders, by_url) if federated else folders.locate(record.get("file_name"))
        own = order[starts[number] : starts[number + 1]]
        for index in own[reasons[own] > 0].tolist():
            skipped.add(_REASONS[reasons[index]], f"annotations[{index}]")
        good = own[reasons[own] == 0]
        sample = Sample(
            image=image,
            boxes=torch.from_numpy(corners[good]),
            box_phrases=tuple((label,) for label in labels[good].tolist()),
            vocabulary=categories.names,
            image_id=record["id"],
            size=records.read_size(record),
            crowd=tuple(np.flatnonzero(file.crowd[good]).tolist()),
        )
        if not federated:
            return sample
        absent, incomplete = (listed_labels(record, key, categories.label, skipped) for key in (ABSENT, INCOMPLETE))
        contradicted = set(absent) & set(labels[good].tolist())
        if contradicted:
            skipped.add(f"name in {ABSENT} that has a box", times=len(contradicted))
        kept = tuple(label for label in absent if label not in contradicted)
        return replace(sample, absent=kept, incomplete=tuple(incomplete))

    images = ((record["id"], (number, record)) for number, record in enumerate(file.images.values()))
    vocabulary, ids = categories.names, categories.ids
    samples = skipped.each(images, read, "image")
    return records.pack_sample_set(file.path, samples, skipped, vocabulary=vocabulary, ids=ids, annotations=file)


def read_lvis(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read LVIS v1 or v0.5; names of ``neg_category_ids`` are absent, ``not_exhaustive_category_ids`` incomplete.

    Names are cleaned as the 2022 release prompts them, so a few categories share one ("bow"); they keep separate
    labels. Images are found by ``file_name``, else by the last two parts of ``coco_url`` ("val2017/1.jpg"), in
    COCO's folder or directly in ``train2017`` and ``val2017``.
    """
    folders, skipped = Folders(images), SkipCounter()
    file = parse_coco(Path(annotations), tree)
    categories = read_categories(file.categories, file.path, skipped, twins=True)
    return coco_set(file, categories, folders, skipped, federated=True)


def read_categories(listed: Iterable[Any], path: Path, skipped: SkipCounter, *, twins: bool = False) -> Categories:
    """The cleaned class names of a dataset; categories without an id, or a name that can be seen, are counted.

    Args:
        listed: maps with ``id`` and ``name``.
        path: their file, for errors.
        skipped: counts categories without a name.
        twins: whether two categories may have one name (LVIS has two kinds of "bow").

    Raises:
        DataError: an id, or a name, listed twice.
    """
    good: list[tuple[Id, str]] = []
    for record in map(as_map, listed):
        number, name = record.get("id"), record.get("name")
        name = clean_name(name).strip() if is_text(name) else ""
        if is_id(number) and records.is_visible(name):
            good.append((number, name))
        else:
            skipped.add("category without an id and a name", f"category {str(number)[:40]}")
    check_distinct((number for number, _ in good), "id", path)
    if not twins:  # brackets and underscores do not count
        check_distinct((name for _, name in good), "name", path)
    good.sort(key=lambda one: id_order(one[0]))
    ids, names = tuple(number for number, _ in good), tuple(name for _, name in good)
    return Categories(names, ids, {number: index for index, number in enumerate(ids)})


def check_distinct(values: Iterable[Id], what: str, path: Path) -> None:
    """Refuse two categories with one id, or one name: nobody knows which of the two a box has.

    Raises:
        DataError: a value comes twice.
    """
    again = next((value for value, count in Counter(values).items() if count > 1), None)
    if again is not None:
        raise DataError(f"{path}: category {what} {again!r} is listed twice: give each category its own {what}")


def id_order(number: Id) -> tuple[bool, Id]:
    """Sorting key of ids: numbers before texts."""
    return isinstance(number, str), number


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a json is a finite number."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def listed_labels(record: Row, key: str, label: Mapping[Id, int], skipped: SkipCounter) -> list[int]:
    """The labels of a list of category ids; unknown ids are counted, as is a missing list: then nothing is known."""
    listed = as_list(record.get(key))
    if not isinstance(record.get(key), list):
        skipped.add(f"image without {key}")
    known = [label[number] for number in listed if is_id(number) and number in label]
    if len(listed) > len(known):
        skipped.add(f"unknown category in {key}", times=len(listed) - len(known))
    return sorted(set(known))


def _lvis_image(record: Row, by_name: Folders, by_url: Folders) -> Path:
    name, url = record.get("file_name"), record.get("coco_url")
    if not isinstance(url, str) or not url:
        return by_name.locate(name)
    files = [by_name.locate(name)] if name else []
    files.append(by_url.locate("/".join(url.split("/")[-2:])))
    return next((file for file in files if file.is_file()), files[-1])
