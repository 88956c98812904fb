"""COCO json (also LVIS, Objects365, ODinW and your own): parsed once, then turned into samples for training.

Scoring makes its ground truth from the same ``CocoFile`` (``evaluate/columns.py``).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from glip.data import records
from glip.data.records import as_list, as_map, is_number, is_text, read_id
from glip.data.sets import CocoFile, Folders, Id, PackedSamples, Row, SampleSet, SkipCounter, require
from glip.structures import Sample
from glip.text.prompt import clean_name

LISTS = ("images", "annotations", "categories")
ABSENT, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS's lists of each image
_NAMES = ("image", "category", "boxes", "areas", "crowd", "ignore", "zero")  # columns of a CocoFile, and their types
_COLUMNS = np.dtype(list(zip(_NAMES, ("i8", "i8", "4f8", "f8", "?", "?", "?"), strict=True)))
_WHOLE = ("coco", "celebrity", "landmark", "logo")  # files of OVDEval whose images are asked for all names
_UNKNOWN = -1  # in the columns of images and categories
OUTLINE_BOX = f"{records.NO_BOX} (that of its segmentation is taken)"
PARENT = "category without a box that only groups all others: left out"  # category 0 of Roboflow's exports
_REASONS = ("malformed box", "box without area")


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
    category_ids = {number: index for index, number in enumerate(dict.fromkeys(category_numbers(categories)))}

    def read(numbered: tuple[int, Row]) -> tuple[Any, ...]:
        index, row = numbered
        image, category, area = read_id(row.get("image_id")), read_id(row.get("category_id")), row.get("area")
        box, reason = as_list(row.get("bbox")), ""
        if image not in places:
            reason = records.unknown("annotation of an unknown image", image, places)
        elif not row.get("bbox"):
            reason = records.NO_BOX
        elif records.OUTLINED in row:
            skipped.add(OUTLINE_BOX, f"annotations[{index}]")
        if reason:
            skipped.add(reason, f"annotations[{index}]")
        return (
            _UNKNOWN if reason else places[image],
            _UNKNOWN if category is None else category_ids.setdefault(category, len(category_ids)),
            tuple(box) if len(box) == 4 and all(map(is_number, box)) else (np.nan,) * 4,
            area if is_number(area) else np.nan,
            row.get("iscrowd") in (1, "1"),
            row.get("ignore") in (1, "1"),
            read_id(row.get("id")) == 0,
        )

    table = np.fromiter(map(read, enumerate(rows)), _COLUMNS, len(rows))
    ids = [*category_ids, None]
    _leave_out_parent(categories, [ids[place] for place in np.unique(table["category"]).tolist()], skipped)
    columns = {key: np.ascontiguousarray(table[key]) for key in _NAMES}
    return CocoFile(path, images, categories, skipped, category_ids=tuple(category_ids), **columns)


def category_numbers(categories: Iterable[Any]) -> Iterator[Id]:
    """The ids of the categories that have one."""
    return (number for record in categories if (number := read_id(as_map(record).get("id"))) is not None)


def _leave_out_parent(categories: list[Any], used: Collection[Id | None], skipped: SkipCounter) -> None:
    """Take out a category without a box that is the ``supercategory`` of all others, as Roboflow's exports have it."""
    parents = [as_map(record).get("supercategory") for record in categories]
    for place, record in enumerate(map(as_map, categories)):
        name = record.get("name")
        only = parents[place] != name and len(parents) - 1 == parents.count(name) > 0
        if only and is_text(name) and read_id(record.get("id")) not in used:
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
    known = [categories.label.get(number, _UNKNOWN) for number in file.category_ids]
    labels = np.array([*known, _UNKNOWN])[file.category]  # where there is no id, the last element
    with np.errstate(over="ignore"):  # whatever is not finite in float32 is malformed
        corners = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1).astype(np.float32)
    malformed, flat = ~(np.abs(file.boxes) < records.FARTHEST).all(1), ~(corners[:, 2:] > corners[:, :2]).all(1)
    bad = (labels < 0) | malformed | flat
    order = np.argsort(file.image, kind="stable")  # annotations by image, in the order of the file
    starts = np.searchsorted(file.image, np.arange(len(file.images) + 1), sorter=order).tolist()

    def read(numbered: tuple[int, Row]) -> Sample:
        number, record = numbered
        image = folders.locate(record.get("file_name"), record.get("coco_url"))
        own = order[starts[number] : starts[number + 1]]
        for index in own[bad[own]].tolist():
            stated = [*file.category_ids, None][file.category[index]]
            reason = records.unknown("unknown category", stated, categories.label)
            reason = reason if labels[index] < 0 else _REASONS[0] if malformed[index] else _REASONS[1]
            skipped.add(reason, f"annotations[{index}]")
        good = own[~bad[own]]
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
    labels. Images are found by ``file_name``, else by ``coco_url``, in COCO's folder or directly in ``train2017`` and
    ``val2017``.
    """
    folders, skipped = Folders(images), SkipCounter()
    file = parse_coco(Path(annotations), tree)
    categories = read_categories(file.categories, file.path, skipped, twins=True)
    return coco_set(file, categories, folders, skipped, federated=True)


def read_ovdeval(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read an aspect of OVDEval: COCO's json where each image lists its names (``text``) and wrong ones (``neg_text``).

    Each image is asked for both of its lists, in the aspects ``_WHOLE`` for all names of the file, as in the authors'
    script. Arguments as for ``read_coco``.

    Raises:
        DataError: not COCO's json, or an image without its lists.
    """
    folders, skipped = Folders(images), SkipCounter()
    file = parse_coco(Path(annotations), tree)
    categories = read_categories(file.categories, file.path, skipped, twins=True)
    numbered = ((str(row.get("name")), read_id(row.get("id"))) for row in map(as_map, file.categories))
    stated = {name: categories.label[number] for name, number in numbered if number in categories.label}
    whole = range(len(categories.names)) if file.path.stem in _WHOLE else None

    def asked(record: Row) -> Sequence[int]:
        """The labels that an image is asked for."""
        if whole:
            return whole
        lists: list[Any] = [record.get(key) for key in ("text", "neg_text")]
        require(
            all(isinstance(one, list) and all(map(is_text, one)) for one in lists),
            f"{file.path}: image {record['id']!r} has no lists of names text and neg_text: take the file of an aspect "
            "as OVDEval distributes it",
        )
        names = list(dict.fromkeys(chain(*lists)))
        if unknown := [name for name in names if name not in stated]:
            skipped.add("text that is no category: it is not asked for", f"image {record['id']}", len(unknown))
        record[ABSENT] = [categories.ids[stated[name]] for name in lists[1] if name in stated]
        return [stated[name] for name in names if name in stated]

    own = {number: [categories.ids[label] for label in asked(record)] for number, record in file.images.items()}
    return ask_for(coco_set(file, categories, folders, skipped), own)


def ask_for(found: SampleSet, asked: Mapping[Id, Iterable[Id]]) -> SampleSet:
    """The set where each image has only the names that it is asked for, given by their ids."""
    label = {number: index for index, number in enumerate(found.ids)}
    known = {image: tuple(number for number in own if number in label) for image, own in asked.items()}

    def narrow(sample: Sample) -> Sample:
        chosen = [label[number] for number in known.get(sample.image_id, ())]
        named = sample.renumbered({name: place for place, name in enumerate(chosen)})
        return replace(named, vocabulary=tuple(found.vocabulary[name] for name in chosen))

    samples = PackedSamples(map(narrow, found.samples))
    return replace(found, samples=samples, asked=known)


def read_categories(
    listed: Iterable[Any], path: Path, skipped: SkipCounter, *, twins: bool = False, verbatim: bool = False
) -> Categories:
    """The class names of a dataset, cleaned, by ascending id; ``verbatim`` as they are written, in their order.

    Categories without an id, or a name that can be seen, are counted. ``listed`` are maps with ``id`` and ``name`` of
    the file at ``path``. With ``twins`` two categories may have one name (LVIS has two kinds of "bow").

    Raises:
        DataError: an id, or a name, listed twice.
    """
    good: list[tuple[Id, str]] = []
    for record in map(as_map, listed):
        number, stated = read_id(record.get("id")), read_id(record.get("name"))  # a name may be a number, as of digits
        name = str(stated) if stated is not None and is_text(str(stated)) else ""
        name = (name if verbatim else clean_name(name)).strip()
        if number is not None and records.is_visible(name):
            good.append((number, name))
        else:
            skipped.add(f"category without {'an id' if number is None else 'a name'}", f"category {str(record)[:40]}")
    check_distinct((number for number, _ in good), "id", path)
    if not twins:  # brackets and underscores do not count
        check_distinct((name for _, name in good), "name", path)
    if not verbatim:
        good.sort(key=lambda one: id_order(one[0]))
    ids, names = tuple(number for number, _ in good), tuple(name for _, name in good)
    return Categories(names, ids, {number: index for index, number in enumerate(ids)})


def categories_of(stated: Iterable[Any]) -> Categories:
    """Class names as they are found in annotations, without ids: ``label`` is by the name as it is written there."""
    found: dict[str, int] = {}
    spelled: dict[Id, int] = {}
    for name in stated:
        if is_text(name) and name not in spelled and records.is_visible(clean_name(name)):
            spelled[name] = found.setdefault(clean_name(name).strip(), len(found))
    return Categories(tuple(found), (), spelled)


def check_distinct(values: Iterable[Id], what: str, path: Path) -> None:
    """Refuse two categories with one id, or one name: nobody knows which of the two a box has.

    Raises:
        DataError: a value comes twice.
    """
    again = next((value for value, count in Counter(values).items() if count > 1), None)
    require(again is None, f"{path}: category {what} {again!r} is listed twice: give each category its own {what}")


def id_order(number: Id) -> tuple[bool, Id]:
    """Sorting key of ids: numbers before texts."""
    return isinstance(number, str), number


def listed_labels(record: Row, key: str, label: Mapping[Id, int], skipped: SkipCounter) -> list[int]:
    """The labels of a list of category ids; unknown ids are counted, as is a missing list: then nothing is known."""
    listed = as_list(record.get(key))
    if not isinstance(record.get(key), list):
        skipped.add(f"image without {key}")
    known = [label[number] for number in map(read_id, listed) if number is not None and number in label]
    if len(listed) > len(known):
        skipped.add(f"unknown category in {key}", times=len(listed) - len(known))
    return sorted(set(known))
