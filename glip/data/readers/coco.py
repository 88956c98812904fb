"""COCO-format json (also Objects365, ODinW, one's own) -> Samples; any category ids, names cleaned as released."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glip.data.readers.fields import (
    Box,
    InvalidRecord,
    annotation_place,
    box_tensor,
    by_image,
    image_place,
    is_id,
    is_text,
    is_visible,
    read_box,
    read_image,
    read_json,
    read_size,
    sample_set,
)
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample
from glip.text.prompt import clean_name

LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Categories:
    """The names of a set, by ascending id; ``label[id]`` is the place of a category's name among them."""

    names: tuple[str, ...]
    ids: tuple[int | str, ...]
    label: dict[int | str, int]


@dataclass(frozen=True)
class Rows:
    """The usable boxes of one image, the label of each, and which of them (indices) mark a crowd."""

    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[int] = field(default_factory=list)


def read_coco(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read a COCO-format detection set; images without boxes are kept as negatives.

    Args:
        annotations: the json with ``images``, ``annotations`` (bbox = x, y, width, height in pixels), ``categories``.
        images: the folders of the images, looked through in order.

    Raises:
        FileNotFoundError: no such json or folder.
        ValueError: not COCO json, or two categories of one name or id.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = read_json(path, LISTS, "COCO detection")
    categories = read_categories(tree["categories"], path, skipped)
    samples = detection_samples(tree, folders, categories, skipped)
    return sample_set(path, samples, skipped, vocabulary=categories.names, ids=categories.ids)


def detection_samples(
    tree: dict[str, Any], folders: Folders, categories: Categories, skipped: SkipCounter
) -> Iterator[Sample]:
    """A sample for each image of a COCO json; what cannot be learned from is counted."""
    for record, annotations in by_image(tree, skipped):
        try:
            image = read_image(folders, record.get("file_name"))
        except InvalidRecord as reason:
            skipped.add(str(reason), image_place(record))
            continue
        yield detection_sample(record, image, read_rows(annotations, categories, skipped), categories)


def detection_sample(record: dict[str, Any], image: Path, rows: Rows, categories: Categories) -> Sample:
    """What an image's record and its usable rows say."""
    return Sample(
        image=image,
        boxes=box_tensor(rows.boxes),
        box_phrases=tuple((label,) for label in rows.labels),
        vocabulary=categories.names,
        image_id=record["id"],
        size=read_size(record),
        crowd=tuple(rows.crowd),
    )


def read_categories(categories: list[Any], path: Path, skipped: SkipCounter, *, twins: bool = False) -> Categories:
    """The cleaned names of a set; categories that name nothing are left out.

    Args:
        categories: records with ``id`` and ``name``; invisible characters alone (zero width) are no name.
        path: their file, for errors.
        skipped: where nameless ones are counted.
        twins: whether two categories may have one name (as LVIS has two kinds of "bow").

    Raises:
        ValueError: a record without id and name, an id or (without ``twins``) a name of two, or no name at all.
    """
    for category in categories:
        if not (isinstance(category, dict) and is_text(category.get("name")) and is_id(category.get("id"))):
            shown = repr(category)[:80]
            raise DataError(f"{path}: category {shown} has no id and name: a category is {{id: 1, name: cat}}")
    ordered = sorted(categories, key=lambda category: (isinstance(category["id"], str), category["id"]))
    again = [number for number, times in Counter(category["id"] for category in ordered).items() if times > 1]
    if again:
        raise DataError(f"{path}: category id {again[0]!r} is listed twice: give each category an id of its own")
    names = {category["id"]: clean_name(category["name"]).strip() for category in ordered}
    for number in [number for number, name in names.items() if not is_visible(name)]:
        skipped.add("category without a name", f"category {number}")
        del names[number]
    if not names:
        raise DataError(f"{path}: no category with a name, so nothing to look for: add {{id: 1, name: cat}}")
    if not twins:
        _check_twins(names, path)
    label = {number: index for index, number in enumerate(names)}
    return Categories(tuple(names.values()), tuple(names), label)


def _check_twins(names: dict[int | str, str], path: Path) -> None:
    first: dict[str, int | str] = {}
    for number, name in names.items():
        if name in first:
            raise DataError(
                f"{path}: categories {first[name]!r} and {number!r} are both called {name!r} (brackets and "
                "underscores do not count): rename one, or give their boxes one category"
            )
        first[name] = number


def read_rows(annotations: Sequence[dict[str, Any]], categories: Categories, skipped: SkipCounter) -> Rows:
    """The boxes of one image that can be learned from; the others are counted."""
    rows = Rows()
    for row in annotations:
        try:
            number = row.get("category_id")
            if not is_id(number) or number not in categories.label:
                raise InvalidRecord("unknown category")
            box = read_box(row.get("bbox"))
        except InvalidRecord as reason:
            skipped.add(str(reason), annotation_place(row))
            continue
        if row.get("iscrowd") in (1, "1"):
            rows.crowd.append(len(rows.boxes))
        rows.boxes.append(box)
        rows.labels.append(categories.label[number])
    return rows
