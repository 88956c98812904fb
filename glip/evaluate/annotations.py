"""Annotation files as their official evaluators read them: COCO's and LVIS's json -> Truth.

Other than for training (``data/readers``) every category and every box is kept, named or not, of any size, with the
area that the file states: all of it decides the official figures.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glip.data.readers.fields import check_file, is_id
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate.ground_truth import BoxColumns, Boxes, GroundTruth, LvisTruth
from glip.evaluate.results import Row, is_box, is_number
from glip.shapes import Bool

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: in less than 10, less than 100, more training images
_LISTS = ("images", "annotations", "categories")
_ABSENT, _INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"
Records = Mapping[int | str, Row]


def read_coco_truth(path: str | Path, tally: SkipCounter) -> GroundTruth:
    """What a COCO-format json states, for scoring.

    Images and categories are ordered by id (texts after numbers). In a json with ``neg_category_ids`` (LVIS) only
    those are known to be absent.

    Args:
        path: the json.
        tally: counts annotations that cannot be scored with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO json, no annotation of a known image and category, or a category id listed twice.
    """
    file = Path(path)
    tree = _parse(file)
    images, categories = _records(tree, file, tally)
    boxes = _read_boxes(tree["annotations"], images, categories, tally, ignored="iscrowd")
    _check_any(boxes, file, tally)
    negatives = _marks(images, _ABSENT, categories, SkipCounter()) if _is_federated(images) else None
    return GroundTruth(tuple(images), tuple(categories), _names(categories), boxes, negatives)


def read_lvis_truth(path: str | Path, tally: SkipCounter) -> LvisTruth:
    """What an LVIS json (v1, v0.5, minival) states, for scoring.

    Without a frequency a category is in no AP of rare, common or frequent ones; without its two lists an image has
    no category that is surely absent or incomplete. Both are counted.

    Args:
        path: the json.
        tally: counts what cannot be scored with, and what is missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not LVIS json, no annotation to score with, or a category id listed twice.
    """
    file = Path(path)
    tree = _parse(file)
    images, categories = _records(tree, file, tally)
    if not _is_federated(images):
        raise DataError(f"{file}: not LVIS json: no image has {_ABSENT}: score it with the protocol of COCO")
    boxes = _read_boxes(tree["annotations"], images, categories, tally, ignored="ignore")
    _check_any(boxes, file, tally)
    stated = [str(record.get("frequency")) for record in categories.values()]
    for number, frequency in zip(categories, stated, strict=True):
        if frequency not in FREQUENCIES:
            tally.add("category without a frequency (r, c or f)", f"category {number}")
    return LvisTruth(
        tuple(images),
        tuple(categories),
        _names(categories),
        boxes,
        _marks(images, _ABSENT, categories, tally),
        frequencies=tuple(frequency if frequency in FREQUENCIES else "" for frequency in stated),
        incomplete=_marks(images, _INCOMPLETE, categories, tally),
    )


def _parse(file: Path) -> dict[str, Any]:
    check_file(file)
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_without_outline)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid json: {str(error)[:80]}: give COCO-format annotations") from None
    for key in _LISTS:
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{file}: not COCO json: no list {key!r} (it needs {', '.join(_LISTS)})")
    return tree


def _without_outline(record: Row) -> Row:
    """Called as each object closes, so that the outlines of a whole set are never in memory at once."""
    record.pop("segmentation", None)
    return record


def _records(tree: Mapping[str, Any], file: Path, tally: SkipCounter) -> tuple[Records, Records]:
    """Images and categories by id, ascending."""
    times = Counter(map(_id_of, tree["categories"]))
    again = [number for number in times if number is not None and times[number] > 1]
    if again:
        raise DataError(f"{file}: category id {again[0]!r} is listed twice: give each category an id of its own")
    return _by_id(tree["images"], "image", tally), _by_id(tree["categories"], "category", tally)


def _id_of(record: Any) -> int | str | None:
    number = record.get("id") if isinstance(record, dict) else None
    return number if is_id(number) else None


def _by_id(records: Sequence[Any], kind: str, tally: SkipCounter) -> Records:
    found: dict[int | str, Row] = {}
    for place, record in enumerate(records):
        number = _id_of(record)
        if number is None:
            tally.add(f"{kind} without an id", f"record {place}")
        elif number in found:
            tally.add(f"{kind} id seen before", f"record {place}")
        else:
            found[number] = record
    return {number: found[number] for number in sorted(found, key=lambda number: (isinstance(number, str), number))}


def _names(categories: Records) -> tuple[str, ...]:
    return tuple(str(record.get("name", number)) for number, record in categories.items())


def _read_boxes(
    rows: Sequence[Any], images: Records, categories: Records, tally: SkipCounter, *, ignored: str
) -> Boxes:
    """The boxes; ``ignored`` is the field that marks those that need not be found."""
    place = {number: index for index, number in enumerate(images)}
    label = {number: index for index, number in enumerate(categories)}
    columns = BoxColumns()
    for index, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        image, category, box = (row.get(key) for key in ("image_id", "category_id", "bbox"))
        if not is_id(image) or image not in place:
            tally.add("annotation of an unknown image", f"annotations[{index}]")
        elif not is_id(category) or category not in label:
            tally.add("annotation of an unknown category", f"annotations[{index}]")
        elif not is_box(box) or min(box[2:]) < 0:
            tally.add("annotation with a malformed box", f"annotations[{index}]")
        else:
            mark = row.get(ignored) in (1, "1")
            if not is_number(row.get("area")):
                tally.add("annotation without an area (that of its box is taken)", f"annotations[{index}]")
            columns.add(place[image], label[category], box, crowd=mark, area=row.get("area"))
    return columns.boxes()


def _check_any(boxes: Boxes, file: Path, tally: SkipCounter) -> None:
    if not len(boxes.areas):
        why = str(tally) or "it lists none"
        raise DataError(f"{file}: no annotation in it can be scored with ({why}): check it with glip data check")


def _is_federated(images: Records) -> bool:
    return any(_ABSENT in record for record in images.values())


def _marks(images: Records, key: str, categories: Records, tally: SkipCounter) -> Bool[np.ndarray, "image category"]:
    """Which categories a list of each image names."""
    label = {number: index for index, number in enumerate(categories)}
    marks = np.zeros((len(images), len(label)), dtype=bool)
    for place, (number, record) in enumerate(images.items()):
        listed = record.get(key)
        if not isinstance(listed, list):
            tally.add(f"image without {key}", f"image {number}")
            continue
        known = [label[category] for category in listed if is_id(category) and category in label]
        if len(known) < len(listed):
            tally.add(f"unknown category in {key}", f"image {number}", len(listed) - len(known))
        marks[place, known] = True
    return marks
