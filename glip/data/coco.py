"""COCO json (also LVIS, Objects365, ODinW and your own): parsed once, then turned into samples for training.

Scoring makes its ground truth from the same ``CocoFile`` (``evaluate/columns.py``).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    pack_sample_set,
    read_lists,
    read_size,
    records_by_id,
)
from glip.data.sets import CocoFile, Folders, Id, Row, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample
from glip.text.prompt import clean_name

LISTS = ("images", "annotations", "categories")
ABSENT, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS's lists of each image
_UNKNOWN, _MALFORMED = -1, -2  # in the column of images
_NO_RECORD: Row = {}
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
    images, categories = records_by_id(tree["images"], "image", skipped), list(tree["categories"])
    rows = [row if isinstance(row, dict) else _NO_RECORD for row in tree["annotations"]]
    for key in LISTS:
        tree[key].clear()
    place: dict[Any, int] = {number: index for index, number in enumerate(images)}
    stated = (record.get("id") for record in categories if isinstance(record, dict))
    category_ids = {number: index for index, number in enumerate(dict.fromkeys(filter(is_id, stated)))}

    def category(row: Row) -> int:
        number = row.get("category_id")
        return category_ids.setdefault(number, len(category_ids)) if is_id(number) else _UNKNOWN

    def image(row: Row) -> int:
        number = row.get("image_id")
        return place.get(number, _UNKNOWN) if is_id(number) else _UNKNOWN

    def column(kind: Any, read: Callable[[Row], Any]) -> np.ndarray:
        return np.fromiter(map(read, rows), kind, len(rows))

    places = column(np.int64, image)
    places[[index for index, row in enumerate(rows) if row is _NO_RECORD]] = _MALFORMED
    return CocoFile(
        path=path,
        images=images,
        categories=categories,
        skipped=skipped,
        image=places,
        category=column(np.int64, category),
        category_ids=tuple(category_ids),
        boxes=column(np.dtype((np.float64, 4)), _box).reshape(-1, 4),
        areas=column(np.float64, lambda row: row["area"] if is_number(row.get("area")) else np.nan),
        crowd=column(bool, lambda row: row.get("iscrowd") in (1, "1")),
        ignore=column(bool, lambda row: row.get("ignore") in (1, "1")),
    )


def _box(row: Row) -> tuple[float, ...]:
    box = as_list(row.get("bbox"))
    return tuple(box) if len(box) == 4 and all(map(is_number, box)) else (np.nan,) * 4


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
    rows = _image_samples(file, categories, lambda record: folders.locate(record.get("file_name")), skipped)
    samples = (sample for _, sample in rows)
    return pack_sample_set(
        file.path, samples, skipped, vocabulary=categories.names, ids=categories.ids, annotations=file
    )


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
    rows = _image_samples(file, categories, lambda record: _lvis_image(record, by_name, by_url), skipped)
    samples = (_federated(record, sample, categories, skipped) for record, sample in rows)
    return pack_sample_set(
        file.path, samples, skipped, vocabulary=categories.names, ids=categories.ids, annotations=file
    )


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


def _image_samples(
    file: CocoFile, categories: Categories, locate: Callable[[Row], Path], skipped: SkipCounter
) -> Iterator[tuple[Row, Sample]]:
    """Each image with its usable boxes; those that cannot be used are counted."""
    skipped.merge(file.skipped)
    for index in np.flatnonzero(file.image < 0).tolist():
        reason = "malformed annotation" if file.image[index] == _MALFORMED else "unknown image"
        skipped.add(reason, f"annotations[{index}]")
    known = [categories.label.get(number, _UNKNOWN) for number in file.category_ids]
    labels = np.array([*known, _UNKNOWN])[file.category]  # where there is no id, the last element
    with np.errstate(over="ignore"):  # whatever is not finite in float32 is malformed
        corners = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1).astype(np.float32)
    malformed, flat = ~(np.abs(file.boxes) < FARTHEST).all(1), ~(corners[:, 2:] > corners[:, :2]).all(1)
    reasons = np.select([labels < 0, malformed, flat], [1, 2, 3], 0)  # why each box cannot be used; 0 where it can
    order = np.argsort(file.image, kind="stable")  # annotations by image, in the order of the file
    starts = np.searchsorted(file.image, np.arange(len(file.images) + 1), sorter=order).tolist()
    for number, record in enumerate(file.images.values()):
        place = f"image {str(record['id'])[:40]}"
        with skipped.catch(place):
            image = locate(record)
            own = order[starts[number] : starts[number + 1]]
            for index in own[reasons[own] > 0].tolist():
                skipped.add(_REASONS[reasons[index]], f"annotations[{index}] of {place}")
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


def _federated(record: Row, sample: Sample, categories: Categories, skipped: SkipCounter) -> Sample:
    """The sample with what an LVIS record says of absent and incomplete names."""
    absent, incomplete = (listed_labels(record, key, categories.label, skipped) for key in (ABSENT, INCOMPLETE))
    boxed = {label for labels in sample.box_phrases for label in labels}
    contradicted = boxed.intersection(absent)
    if contradicted:
        skipped.add(f"name in {ABSENT} that has a box", f"image {str(record['id'])[:40]}", len(contradicted))
    kept = tuple(label for label in absent if label not in contradicted)
    return replace(sample, absent=kept, incomplete=tuple(incomplete))


def listed_labels(record: Row, key: str, label: Mapping[Id, int], skipped: SkipCounter) -> list[int]:
    """The labels of a list of category ids; unknown ids are counted, as is a missing list: then nothing is known."""
    place, listed = f"image {str(record['id'])[:40]}", as_list(record.get(key))
    if not isinstance(record.get(key), list):
        skipped.add(f"image without {key}", place)
    known = [label[number] for number in listed if is_id(number) and number in label]
    if len(listed) > len(known):
        skipped.add(f"unknown category in {key}", place, len(listed) - len(known))
    return sorted(set(known))


def _lvis_image(record: Row, by_name: Folders, by_url: Folders) -> Path:
    name, url = record.get("file_name"), record.get("coco_url")
    if not isinstance(url, str) or not url:
        return by_name.locate(name)
    files = [by_name.locate(name)] if name else []
    files.append(by_url.locate("/".join(url.split("/")[-2:])))
    return next((file for file in files if file.is_file()), files[-1])
