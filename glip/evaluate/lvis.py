"""Average precision as LVIS counts it (Gupta et al. 2019), and Fixed AP (Dave et al. 2021).

Boxes are matched by the lvis package's own code; the rest of it goes over every category in every picture, 24 million
pairs, and no longer runs with today's numpy. Here only pairs that hold a box are matched, and categories are counted
one by one.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glip.data.readers.fields import check_file, is_id
from glip.data.sets import Tally
from glip.evaluate.results import UNKNOWN, Results, Row, concatenate, is_box, is_number
from glip.shapes import Bool, Float, Int

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent: in less than 10, less than 100, more training pictures
_PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_LISTS = ("images", "annotations", "categories")
_RECALLS = np.linspace(0.0, 1.0, 101)
_PENDING = 4_000_000  # results that wait until the best are chosen again, about 220 MB
_ANY_AREA = (np.nextafter(0, 1), np.finfo(float).max)  # above zero and finite; the package drops the others
_PAIR = (0, 0)  # under which the package is shown one picture and category at a time
_ROW: Row = {"image_id": 0, "category_id": 0, "id": 1}  # to the package a match with an id of 0 is none


@dataclass(frozen=True)
class LvisTruth:
    """What there is to find in a set, and what is known not to be there.

    Args:
        pictures: ids, ascending: this order decides between equal scores of two pictures.
        categories: ids, ascending.
        names: of the categories.
        frequencies: "r", "c" or "f" for each category; empty where the file does not say.
        box_pictures: the place of each box's picture in ``pictures``; boxes are in the order of the file.
        box_categories: likewise of its category.
        boxes: x, y, width, height in pixels.
        areas: as the file states them (of the mask), which decides what is small and large.
        ignored: boxes that need not be found; what matches one is neither right nor wrong.
        absent: in which pictures a category is surely not (``neg_category_ids``). What is found of a category in a
            picture counts only if it has a box there or is surely absent.
        incomplete: where a category may have more boxes than are annotated (``not_exhaustive_category_ids``); what
            matches none of them is neither right nor wrong.
    """

    pictures: tuple[int | str, ...]
    categories: tuple[int | str, ...]
    names: tuple[str, ...]
    frequencies: tuple[str, ...]
    box_pictures: Int[np.ndarray, " box"]
    box_categories: Int[np.ndarray, " box"]
    boxes: Float[np.ndarray, "box 4"]
    areas: Float[np.ndarray, " box"]
    ignored: Bool[np.ndarray, " box"]
    absent: Bool[np.ndarray, "picture category"]
    incomplete: Bool[np.ndarray, "picture category"]


@dataclass(frozen=True)
class LvisCategory:
    """One line of the table: a category, its boxes, its results that count, its figures; -1 where it has no box.

    ``recall`` is the share of its boxes that are found, the mean over IoU 0.50 to 0.95.
    """

    number: int | str
    name: str
    frequency: str
    boxes: int
    detections: int
    ap: float
    ap50: float
    ap75: float
    recall: float


@dataclass(frozen=True)
class LvisScore:
    """The thirteen figures of LVIS and what they are called there, -1 where there is nothing to average.

    AP, AP50, AP75, AP of small, medium and large boxes, of rare, common and frequent categories; then AR of all,
    small, medium and large boxes, called after the detections of a picture: AR@300, or AR@-1 for Fixed AP (no limit).
    """

    names: tuple[str, ...]
    stats: tuple[float, ...]
    categories: tuple[LvisCategory, ...]
    pictures: int

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 to 0.95."""
        return self.stats[0]


def standard_ap(truth: LvisTruth, results: Results, *, max_dets: int = 300) -> LvisScore:
    """The official AP: of each picture the ``max_dets`` best detections over all categories.

    Detections of ``UNKNOWN`` categories take up places and count for nothing. Of equal scores the earlier is better.
    The figures are those of the lvis package to the last digit, but for one thing: it takes an annotation with the
    id 0 for "no match", here it is found like any other.

    Args:
        truth: what there is to find.
        results: of its pictures and categories, by their place in it.
        max_dets: detections of a picture at most.
    """
    assert max_dets > 0
    order = np.lexsort((-results.scores, results.pictures))
    kept = order[_rank(results.pictures[order]) < max_dets]
    return _score(truth, results.select(np.sort(kept)), max_dets)


def fixed_ap(truth: LvisTruth, results: Results, *, per_category: int = 10_000) -> LvisScore:
    """Fixed AP: no limit in a picture, but of each category the ``per_category`` best of the whole set.

    The figures are those of GLIP's evaluator in one process. Results that do not fit into memory go through
    ``BestOfCategories`` first; choosing among what it kept changes nothing.
    """
    best = BestOfCategories(len(truth.categories), per_category=per_category)
    best.add(results)
    return _score(truth, best.results(), -1)


class BestOfCategories:
    """The best results of each category, of results that come piece by piece and are too many to keep.

    Of equal scores the one in the earlier picture is better, then the one that came earlier: so the pictures may come
    in any order, from several processes too, as long as those of one picture come in theirs.

    Args:
        categories: how many there are; results of ``UNKNOWN`` ones are dropped.
        per_category: how many are kept of each.
    """

    def __init__(self, categories: int, *, per_category: int = 10_000) -> None:
        assert per_category > 0
        self._limit = per_category
        self._least = np.full(categories, -np.inf)  # the worst score that is kept of a category that is full
        self._parts: list[Results] = []
        self._pending = 0

    def add(self, results: Results) -> None:
        """Take in more results."""
        known = results.select(results.categories != UNKNOWN)
        part = known.select(known.scores >= self._least[known.categories])
        self._parts.append(part)
        self._pending += len(part)
        if self._pending > _PENDING:
            self._choose()

    def results(self) -> Results:
        """What is kept by now, in the order in which it came."""
        self._choose()
        return self._parts[0]

    def _choose(self) -> None:
        every = concatenate(self._parts)
        order = np.lexsort((every.pictures, -every.scores, every.categories))
        rank = _rank(every.categories[order])
        last = order[rank == self._limit - 1]
        self._least[every.categories[last]] = every.scores[last]
        self._parts, self._pending = [every.select(np.sort(order[rank < self._limit]))], 0


# ---- json -> columns


def read_lvis_truth(path: str | Path, tally: Tally) -> LvisTruth:
    """What an LVIS json (v1, v0.5, minival) states, for scoring: every category and every box, of any size.

    Without a frequency a category is in no AP of rare, common or frequent ones; without its two lists a picture has
    no category that is surely absent or incomplete. Both are counted.

    Args:
        path: the json.
        tally: counts what cannot be scored with, and what is missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not LVIS json, no annotation to score with, or a picture or category without an id of its own.
    """
    file = Path(path)
    tree = _parse(file)
    pictures, categories = (_by_id(tree[key], key, file) for key in ("images", "categories"))
    if not any("neg_category_ids" in record for record in pictures.values()):
        raise ValueError(f"{file}: not LVIS json: no picture has neg_category_ids: score it with the protocol of COCO")
    place, label = ({number: index for index, number in enumerate(records)} for records in (pictures, categories))
    rows = [row for index, row in enumerate(tree["annotations"]) if _is_usable(row, index, (place, label), tally)]
    if not rows:
        why = str(tally) or "it lists none"
        raise ValueError(f"{file}: no annotation in it can be scored with ({why}): check it with glip data check")
    frequencies = tuple(str(record.get("frequency")) for record in categories.values())
    for number, frequency in zip(categories, frequencies, strict=True):
        if frequency not in FREQUENCIES:
            tally.note("category without a frequency (r, c or f)", f"category {number}")
    return LvisTruth(
        tuple(pictures),
        tuple(categories),
        tuple(str(record.get("name", number)) for number, record in categories.items()),
        tuple(frequency if frequency in FREQUENCIES else "" for frequency in frequencies),
        np.array([place[row["image_id"]] for row in rows]),
        np.array([label[row["category_id"]] for row in rows]),
        np.array([row["bbox"] for row in rows], dtype=np.float64),
        np.array([row["area"] for row in rows], dtype=np.float64),
        np.array([bool(row.get("ignore")) for row in rows]),
        _marks(pictures, "neg_category_ids", label, tally),
        _marks(pictures, "not_exhaustive_category_ids", label, tally),
    )


def _parse(file: Path) -> dict[str, Any]:
    check_file(file)
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_without_outline)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid json: {str(error)[:80]}: give LVIS annotations") from None
    for key in _LISTS:
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise ValueError(f"{file}: not LVIS json: no list {key!r} (it needs {', '.join(_LISTS)})")
    return tree


def _without_outline(record: Row) -> Row:
    """Called as each object closes, so that the outlines of a whole set are never in memory at once."""
    record.pop("segmentation", None)
    return record


def _by_id(records: list[Any], key: str, file: Path) -> dict[int | str, Row]:
    found: dict[int | str, Row] = {}
    for index, record in enumerate(records):
        number = record.get("id") if isinstance(record, dict) else None
        if not is_id(number) or number in found:
            raise ValueError(f"{file}: {key}[{index}] has no id, or that of another ({number!r}): give each its own")
        found[number] = record
    return {number: found[number] for number in sorted(found, key=lambda number: (isinstance(number, str), number))}


def _is_usable(row: Any, index: int, known: Sequence[dict[int | str, int]], tally: Tally) -> bool:
    """Whether an annotation can be scored with; one without an area is given that of its box."""
    reason, row = "", row if isinstance(row, dict) else {}
    for key, what, numbers in zip(("image_id", "category_id"), ("picture", "category"), known, strict=True):
        if not is_id(row.get(key)) or row[key] not in numbers:
            reason = reason or f"annotation of an unknown {what}"
    if not reason and not (is_box(row.get("bbox")) and min(row["bbox"][2:]) >= 0):
        reason = "annotation with a malformed box"
    if not reason and not is_number(row.get("area")):
        tally.note("annotation without an area (that of its box is taken)", f"annotations[{index}]")
        row["area"] = row["bbox"][2] * row["bbox"][3]
    if reason:
        tally.note(reason, f"annotations[{index}]")
    return not reason


def _marks(pictures: dict[int | str, Row], key: str, label: dict[int | str, int], tally: Tally) -> np.ndarray:
    """Which categories a list of each picture names."""
    marks = np.zeros((len(pictures), len(label)), dtype=bool)
    for place, (number, record) in enumerate(pictures.items()):
        listed = record.get(key)
        if not isinstance(listed, list):
            tally.note(f"picture without {key}", f"picture {number}")
            continue
        known = [label[category] for category in listed if is_id(category) and category in label]
        if len(known) < len(listed):
            tally.note(f"unknown category in {key}", f"picture {number}", len(listed) - len(known))
        marks[place, known] = True
    return marks


# ---- columns -> figures


@dataclass(frozen=True)
class _Category:
    """The boxes of one category and its results that count, both by picture, the results of each best first.

    ``sought`` says of which boxes of each size (size, box) have to be found; ``excused`` of which results (size,
    result) are neither right nor wrong if they match no box.
    """

    box_pictures: np.ndarray
    boxes: list[Row]
    found: Results
    sought: np.ndarray
    excused: np.ndarray


def _score(truth: LvisTruth, results: Results, max_dets: int) -> LvisScore:
    """The figures of results that are already limited."""
    package = _package()
    table, curves = [], []
    named = zip(truth.categories, truth.names, truth.frequencies, strict=True)
    for row, part in zip(named, _by_category(truth, results, package.params.area_rng), strict=True):
        ap, recall = _curves(part, *_match(part, package))
        figures = (ap[0].mean(), ap[0, 0], ap[0, 5], recall[0].mean())
        table.append(LvisCategory(*row, len(part.boxes), len(part.found), *map(float, figures)))
        curves.append((ap, recall))
    ap, recall = np.array(curves).transpose(1, 2, 3, 0)  # each (size, IoU, category)
    groups = [[frequency == group for frequency in truth.frequencies] for group in FREQUENCIES]
    chosen = [ap[0], ap[0, 0], ap[0, 5], *ap[1:], *(ap[0][:, group] for group in groups), *recall]
    valid = [values[values > -1] for values in chosen]
    stats = tuple(float(values.mean()) if values.size else -1.0 for values in valid)
    names = (*_PRECISIONS, *(f"AR{size}@{max_dets}" for size in ("", "s", "m", "l")))
    return LvisScore(names, stats, tuple(table), len(truth.pictures))


def _by_category(truth: LvisTruth, results: Results, sizes: Sequence[Sequence[float]]) -> Iterator[_Category]:
    """What counts: boxes and results that have an area, results where the truth knows of their category."""
    there = np.flatnonzero(_inside(truth.areas, _ANY_AREA))
    there = there[np.lexsort((truth.box_pictures[there], truth.box_categories[there]))]
    known = truth.absent.copy()
    known[truth.box_pictures[there], truth.box_categories[there]] = True
    counts = (results.categories != UNKNOWN) & _inside(results.boxes[:, 2] * results.boxes[:, 3], _ANY_AREA)
    found = results.select(counts & known[results.pictures, results.categories])
    found = found.select(np.lexsort((-found.scores, found.pictures, found.categories)))
    numbers = np.arange(1, len(truth.categories))
    pieces = np.split(there, np.searchsorted(truth.box_categories[there], numbers))
    runs = np.split(np.arange(len(found)), np.searchsorted(found.categories, numbers))
    for category, (own, run) in enumerate(zip(pieces, runs, strict=True)):
        part = found.select(run)
        columns = zip(truth.boxes[own].tolist(), truth.areas[own].tolist(), truth.ignored[own].tolist(), strict=True)
        boxes = [{**_ROW, "bbox": box, "area": area, "ignore": ignored} for box, area, ignored in columns]
        sought = np.array([_inside(truth.areas[own], size) & ~truth.ignored[own] for size in sizes])
        inside = np.array([_inside(part.boxes[:, 2] * part.boxes[:, 3], size) for size in sizes])
        excused = ~inside | truth.incomplete[part.pictures, category]
        yield _Category(truth.box_pictures[own], boxes, part, sought, excused)


def _match(part: _Category, package: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which results match a box, and which are neither right nor wrong: bool (size, IoU, result)."""
    matched = np.zeros((len(part.sought), len(package.params.iou_thrs), len(part.found)), dtype=bool)
    ignored = np.broadcast_to(part.excused[:, None], matched.shape).copy()
    pictures, starts, counts = np.unique(part.box_pictures, return_index=True, return_counts=True)
    first, last = (np.searchsorted(part.found.pictures, pictures, side) for side in ("left", "right"))
    spans = np.stack([starts, starts + counts, first, last], axis=1)
    for start, end, low, high in spans[last > first].tolist():
        rows = zip(part.found.scores[low:high].tolist(), part.found.boxes[low:high].tolist(), strict=True)
        results = [{**_ROW, "score": score, "bbox": box, "area": box[2] * box[3]} for score, box in rows]
        near, right, idle = _match_picture(part.boxes[start:end], results, package)
        matched[:, :, low + near] = right
        ignored[:, :, low + near] = np.where(right, idle, ignored[:, :, low + near])
    return matched, ignored


def _match_picture(boxes: list[Row], results: list[Row], package: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of the results that are near a box, and what ``_match`` says of them; the others match nothing."""
    package._gts[_PAIR], package._dts[_PAIR] = boxes, results
    overlaps = package.compute_iou(*_PAIR)
    near = np.flatnonzero((overlaps >= package.params.iou_thrs[0]).any(axis=1))
    package._dts[_PAIR], package.ious[_PAIR] = [results[place] for place in near], overlaps[near]
    answers = [package.evaluate_img(*_PAIR, size) for size in package.params.area_rng]
    right = np.array([answer["dt_matches"] > 0 for answer in answers])
    return near, right, np.array([answer["dt_ignore"] for answer in answers])


def _package() -> Any:
    """The lvis package's evaluator, of no set: it is shown one picture and category at a time."""
    from lvis import LVIS, LVISEval, LVISResults  # not above: it loads OpenCV and matplotlib

    truth, results = LVIS.__new__(LVIS), LVISResults.__new__(LVISResults)  # their __init__ reads files
    truth.imgs, truth.cats = {}, {}
    package = LVISEval(truth, results, "bbox")
    package.img_nel = {_ROW["image_id"]: ()}
    return package


def _curves(part: _Category, matched: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall (size, IoU), -1 where no box has to be found."""
    order = np.argsort(-part.found.scores, kind="stable")
    ap, recall = np.full(matched.shape[:2], -1.0), np.full(matched.shape[:2], -1.0)
    boxes = part.sought.sum(axis=1)
    for size, number in np.ndindex(ap.shape):
        if not boxes[size]:
            continue
        right = matched[size, number, order][~ignored[size, number, order]]
        found = np.cumsum(right) / boxes[size]
        precision = np.cumsum(right) / (np.arange(1, len(right) + 1) + np.spacing(1))
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        ap[size, number] = precision[np.searchsorted(found, _RECALLS, side="left")].mean()
        recall[size, number] = found[-1] if len(found) else 0.0
    return ap, recall


def _inside(areas: np.ndarray, size: Sequence[float]) -> np.ndarray:
    inside: np.ndarray = (areas >= size[0]) & (areas <= size[1])
    return inside


def _rank(groups: np.ndarray) -> np.ndarray:
    """The place of each within its run of equal values."""
    places = np.arange(len(groups))
    is_first = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    return places - np.maximum.accumulate(np.where(is_first, places, 0))
