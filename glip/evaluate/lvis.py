"""Average precision as LVIS counts it (Gupta et al. 2019), and Fixed AP (Dave et al. 2021).

Boxes are matched by the lvis package's own code; the rest of it goes over every category in every image, 24 million
pairs, and no longer runs with today's numpy. Here only pairs that hold a box are matched, and categories are counted
one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glip.evaluate.ground_truth import FREQUENCIES, LvisTruth
from glip.evaluate.results import UNKNOWN, Results, Row, concatenate

_PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_RECALLS = np.linspace(0.0, 1.0, 101)
_PENDING = 4_000_000  # results that wait until the best are chosen again, about 220 MB
_ANY_AREA = (np.nextafter(0, 1), np.finfo(float).max)  # above zero and finite; the package drops the others
_PAIR = (0, 0)  # under which the package is shown one image and category at a time
_ROW: Row = {"image_id": 0, "category_id": 0, "id": 1}  # to the package a match with an id of 0 is none


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
    small, medium and large boxes, called after the detections of an image: AR@300, or AR@-1 for Fixed AP (no limit).
    """

    names: tuple[str, ...]
    stats: tuple[float, ...]
    categories: tuple[LvisCategory, ...]
    images: int

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 to 0.95."""
        return self.stats[0]


def standard_ap(truth: LvisTruth, results: Results, *, max_dets: int = 300) -> LvisScore:
    """The official AP: of each image the ``max_dets`` best detections over all categories.

    Detections of ``UNKNOWN`` categories take up places and count for nothing. Of equal scores the earlier is better.
    The figures are those of the lvis package to the last digit, but for one thing: it takes an annotation with the
    id 0 for "no match", here it is found like any other.

    Args:
        truth: what there is to find.
        results: of its images and categories, by their place in it.
        max_dets: detections of an image at most.
    """
    assert max_dets > 0
    order = np.lexsort((-results.scores, results.images))
    kept = order[_rank(results.images[order]) < max_dets]
    return _score(truth, results.select(np.sort(kept)), max_dets)


def fixed_ap(truth: LvisTruth, results: Results, *, per_category: int = 10_000) -> LvisScore:
    """Fixed AP: no limit in an image, but of each category the ``per_category`` best of the whole set.

    The figures are those of GLIP's evaluator in one process. Results that do not fit into memory go through
    ``BestOfCategories`` first; choosing among what it kept changes nothing.
    """
    best = BestOfCategories(len(truth.categories), per_category=per_category)
    best.add(results)
    return _score(truth, best.results(), -1)


class BestOfCategories:
    """The best results of each category, of results that come piece by piece and are too many to keep.

    Of equal scores the one in the earlier image is better, then the one that came earlier: so the images may come
    in any order, from several processes too, as long as those of one image come in theirs.

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
        order = np.lexsort((every.images, -every.scores, every.categories))
        rank = _rank(every.categories[order])
        last = order[rank == self._limit - 1]
        self._least[every.categories[last]] = every.scores[last]
        self._parts, self._pending = [every.select(np.sort(order[rank < self._limit]))], 0


@dataclass(frozen=True)
class _Category:
    """The boxes of one category and its results that count, both by image, the results of each best first.

    ``sought`` says of which boxes of each size (size, box) have to be found; ``excused`` of which results (size,
    result) are neither right nor wrong if they match no box.
    """

    box_images: np.ndarray
    boxes: list[Row]
    found: Results
    sought: np.ndarray
    excused: np.ndarray


def _score(truth: LvisTruth, results: Results, max_dets: int) -> LvisScore:
    """The figures of results that are already limited."""
    package = load_package()
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
    return LvisScore(names, stats, tuple(table), len(truth.images))


def _by_category(truth: LvisTruth, results: Results, sizes: Sequence[Sequence[float]]) -> Iterator[_Category]:
    """What counts: boxes and results that have an area, results where the truth knows of their category."""
    annotated, known = truth.boxes, np.array(truth.negatives)
    there = np.flatnonzero(_inside(annotated.areas, _ANY_AREA))
    there = there[np.lexsort((annotated.images[there], annotated.categories[there]))]
    known[annotated.images[there], annotated.categories[there]] = True
    counts = (results.categories != UNKNOWN) & _inside(results.boxes[:, 2] * results.boxes[:, 3], _ANY_AREA)
    found = results.select(counts & known[results.images, results.categories])
    found = found.select(np.lexsort((-found.scores, found.images, found.categories)))
    numbers = np.arange(1, len(truth.categories))
    pieces = np.split(there, np.searchsorted(annotated.categories[there], numbers))
    runs = np.split(np.arange(len(found)), np.searchsorted(found.categories, numbers))
    for category, (own, run) in enumerate(zip(pieces, runs, strict=True)):
        part = found.select(run)
        parts = (annotated.boxes[own], annotated.areas[own], annotated.crowd[own])
        columns = zip(*(values.tolist() for values in parts), strict=True)
        boxes = [{**_ROW, "bbox": box, "area": area, "ignore": ignored} for box, area, ignored in columns]
        sought = np.array([_inside(annotated.areas[own], size) & ~annotated.crowd[own] for size in sizes])
        inside = np.array([_inside(part.boxes[:, 2] * part.boxes[:, 3], size) for size in sizes])
        excused = ~inside | truth.incomplete[part.images, category]
        yield _Category(annotated.images[own], boxes, part, sought, excused)


def _match(part: _Category, package: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which results match a box, and which are neither right nor wrong: bool (size, IoU, result)."""
    matched = np.zeros((len(part.sought), len(package.params.iou_thrs), len(part.found)), dtype=bool)
    ignored = np.broadcast_to(part.excused[:, None], matched.shape).copy()
    images, starts, counts = np.unique(part.box_images, return_index=True, return_counts=True)
    first, last = (np.searchsorted(part.found.images, images, side) for side in ("left", "right"))
    spans = np.stack([starts, starts + counts, first, last], axis=1)
    for start, end, low, high in spans[last > first].tolist():
        rows = zip(part.found.scores[low:high].tolist(), part.found.boxes[low:high].tolist(), strict=True)
        results = [{**_ROW, "score": score, "bbox": box, "area": box[2] * box[3]} for score, box in rows]
        near, right, idle = _match_image(part.boxes[start:end], results, package)
        matched[:, :, low + near] = right
        ignored[:, :, low + near] = np.where(right, idle, ignored[:, :, low + near])
    return matched, ignored


def _match_image(boxes: list[Row], results: list[Row], package: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of the results that are near a box, and what ``_match`` says of them; the others match nothing."""
    package._gts[_PAIR], package._dts[_PAIR] = boxes, results
    overlaps = package.compute_iou(*_PAIR)
    near = np.flatnonzero((overlaps >= package.params.iou_thrs[0]).any(axis=1))
    package._dts[_PAIR], package.ious[_PAIR] = [results[place] for place in near], overlaps[near]
    answers = [package.evaluate_img(*_PAIR, size) for size in package.params.area_rng]
    right = np.array([answer["dt_matches"] > 0 for answer in answers])
    return near, right, np.array([answer["dt_ignore"] for answer in answers])


def load_package() -> Any:
    """The lvis package's evaluator, of no set: it is shown one image and category at a time.

    Raises:
        ImportError: it, or the OpenCV that it loads, cannot be loaded here.
    """
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
