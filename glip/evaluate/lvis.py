"""Average precision as LVIS counts it (Gupta et al. 2019), and Fixed AP (Dave et al. 2021).

Boxes are matched by the lvis package. Its own loop visits every category in every image, 24 million pairs, and its
accumulation does not run with today's numpy; so it is given only the pairs of image and category that hold a box and
results near one, and precision and recall are computed here.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from glip.evaluate.coco import RECALLS, annotation_rows, mean_of_valid, result_rows
from glip.evaluate.ground_truth import FREQUENCIES, Boxes, LvisTruth
from glip.evaluate.results import UNKNOWN, Results, concatenate
from glip.geometry.boxes import iou

_PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_PENDING = 4_000_000  # results that wait until the best are chosen again, about 220 MB
_ANY_AREA = (np.nextafter(0, 1), np.finfo(float).max)  # above zero and finite; the package drops the others
Columns = TypeVar("Columns", Boxes, Results)
SIZES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large boxes in square pixels
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AT_ONCE = 2_000  # pairs of image and category in one evaluation: the package keeps a record of each
_NEAR = 0.49  # IoU below which a result matches no box at any threshold


@dataclass(frozen=True)
class LvisCategory:
    """One category: its boxes, its results that count, its figures; -1 where it has no box.

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
    """The thirteen figures of LVIS and their names, -1 where there is nothing to average.

    AP, AP50, AP75, AP of small, medium and large boxes, of rare, common and frequent categories; then AR of all,
    small, medium and large boxes, named after the detections per image: AR@300, or AR@-1 for Fixed AP (no limit).
    """

    names: tuple[str, ...]
    stats: tuple[float, ...]
    categories: tuple[LvisCategory, ...]

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 to 0.95."""
        return self.stats[0]


def standard_ap(truth: LvisTruth, results: Results, *, max_dets: int = 300) -> LvisScore:
    """The official AP: of each image the ``max_dets`` best detections over all categories.

    Detections of ``UNKNOWN`` categories count among these and for nothing else. Of equal scores the earlier is better.
    The figures are those of the lvis package to the last digit, except that it takes an annotation with the id 0 for
    "no match"; here it is found like any other.
    """
    order = np.lexsort((-results.scores, results.images))
    kept = order[_rank(results.images[order]) < max_dets]
    return _score(truth, results.select(np.sort(kept)), max_dets)


def fixed_ap(truth: LvisTruth, results: Results, *, per_category: int = 10_000) -> LvisScore:
    """Fixed AP: no limit per image, but for each category the ``per_category`` best of the set.

    The figures are those of GLIP's evaluator in one process. Results that do not fit into memory go through
    ``BestOfCategories`` first; choosing among what it kept changes nothing.
    """
    best = BestOfCategories(len(truth.categories), per_category=per_category)
    best.add(results)
    return _score(truth, best.results(), -1)


class BestOfCategories:
    """The best results of each category, from results that come piece by piece and are too many to keep.

    Of equal scores the one in the earlier image is better, then the one that came earlier: so the images may come
    in any order, from several processes too, as long as those of one image come in theirs.

    Args:
        categories: number of categories; results of ``UNKNOWN`` ones are dropped.
        per_category: how many are kept of each.
    """

    def __init__(self, categories: int, *, per_category: int = 10_000) -> None:
        self._limit = per_category
        self._least = np.full(categories, -np.inf)  # the lowest score kept of a category that is full
        self._parts: list[Results] = []
        self._pending = 0

    def add(self, results: Results) -> None:
        """Take in more results."""
        known = results.select(results.categories != UNKNOWN)
        part = known.select(known.scores >= self._least[known.categories])
        self._parts.append(part)
        self._pending += len(part)
        if self._pending > _PENDING:
            self.results()

    def results(self) -> Results:
        """What is kept by now, in the order in which it came."""
        every = concatenate(self._parts)
        order = np.lexsort((every.images, -every.scores, every.categories))
        rank = _rank(every.categories[order])
        last = order[rank == self._limit - 1]
        self._least[every.categories[last]] = every.scores[last]
        best = every.select(np.sort(order[rank < self._limit]))
        self._parts, self._pending = [best], 0
        return best


@dataclass(frozen=True)
class _Matches:
    """Which of the results ``near`` a box match one, and which of those are neither right nor wrong.

    ``right`` and ``idle`` are bool (size, IoU, near); all other results match nothing.
    """

    near: np.ndarray
    right: np.ndarray
    idle: np.ndarray


def _score(truth: LvisTruth, results: Results, max_dets: int) -> LvisScore:
    """The figures of results that are already limited."""
    boxes, found = _counted(truth, results)
    matches = _match(boxes, found, len(truth.images))
    numbers = np.arange(len(truth.categories) + 1)
    box_ends, ends = (np.searchsorted(column, numbers) for column in (boxes.categories, found.categories))
    table, curves = [], []
    for index, row in enumerate(zip(truth.categories, truth.names, truth.frequencies, strict=True)):
        own = boxes.select(np.arange(box_ends[index], box_ends[index + 1]))
        part = found.select(np.arange(ends[index], ends[index + 1]))
        first, last = np.searchsorted(matches.near, ends[index : index + 2])
        near, right = matches.near[first:last] - ends[index], matches.right[:, :, first:last]
        ap, recall = _curves(
            own, part, truth.incomplete[part.images, index], near, right, matches.idle[:, :, first:last]
        )
        figures = (ap[0].mean(), ap[0, 0], ap[0, 5], recall[0].mean())
        table.append(LvisCategory(*row, len(own.areas), len(part), *map(float, figures)))
        curves.append((ap, recall))
    ap, recall = np.array(curves).transpose(1, 2, 3, 0)  # each (size, IoU, category)
    groups = [[frequency == group for frequency in truth.frequencies] for group in FREQUENCIES]
    chosen = [ap[0], ap[0, 0], ap[0, 5], *ap[1:], *(ap[0][:, group] for group in groups), *recall]
    names = (*_PRECISIONS, *(f"AR{size}@{max_dets}" for size in ("", "s", "m", "l")))
    return LvisScore(names, tuple(map(mean_of_valid, chosen)), tuple(table))


def _counted(truth: LvisTruth, results: Results) -> tuple[Boxes, Results]:
    """Boxes and results that have an area, results where the ground truth knows of their category.

    Both come by category and image, results best first.
    """
    boxes, known = truth.boxes, np.array(truth.negatives)
    boxes = boxes.select(_inside(boxes.areas, _ANY_AREA))
    boxes = boxes.select(np.lexsort((boxes.images, boxes.categories)))
    known[boxes.images, boxes.categories] = True
    counts = (results.categories != UNKNOWN) & _inside(_areas(results), _ANY_AREA)
    found = results.select(counts & known[results.images, results.categories])
    return boxes, found.select(np.lexsort((-found.scores, found.images, found.categories)))


def _match(boxes: Boxes, found: Results, images: int) -> _Matches:
    """Let the lvis package match the results near a box, pairs of image and category in batches."""
    box_pairs, pairs = (each.categories * images + each.images for each in (boxes, found))
    near = _near_a_box(boxes, found, box_pairs, pairs)
    found, pairs = found.select(near), pairs[near]
    concerned = np.unique(pairs)
    right, idle = [np.zeros((4, 10, 0), dtype=bool)], [np.zeros((4, 10, 0), dtype=bool)]
    for start in range(0, len(concerned), _AT_ONCE):
        batch = concerned[start : start + _AT_ONCE]
        own, part = np.flatnonzero(np.isin(box_pairs, batch)), np.flatnonzero(np.isin(pairs, batch))
        rows = _evaluate(_by_pair(boxes.select(own), box_pairs[own]), _by_pair(found.select(part), pairs[part]))
        by_size = [rows[first : first + len(batch)] for first in range(0, len(rows), len(batch))]
        right.append(np.array([np.concatenate([row["dt_matches"] > 0 for row in one], axis=1) for one in by_size]))
        idle.append(np.array([np.concatenate([row["dt_ignore"] for row in one], axis=1) for one in by_size]))
    return _Matches(near, np.concatenate(right, axis=2), np.concatenate(idle, axis=2))


def _by_pair(columns: Columns, pairs: np.ndarray) -> Columns:
    """Boxes or results with each pair of image and category as an image, all of one category."""
    return replace(columns, images=pairs, categories=np.zeros_like(pairs))


def _near_a_box(boxes: Boxes, found: Results, box_pairs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Indices of the results that could match a box; the package would compare all with all, in Python."""
    corners, box_corners = (torch.from_numpy(each.boxes.copy()) for each in (found, boxes))
    corners[:, 2:] += corners[:, :2]
    box_corners[:, 2:] += box_corners[:, :2]
    near = np.zeros(len(found), dtype=bool)
    concerned, starts, counts = np.unique(box_pairs, return_index=True, return_counts=True)
    first, last = (np.searchsorted(pairs, concerned, side) for side in ("left", "right"))
    for start, count, low, high in np.stack([starts, counts, first, last], axis=1)[last > first].tolist():
        overlaps = iou(corners[low:high], box_corners[start : start + count], inclusive=False)
        near[low:high] = (overlaps >= _NEAR).any(1).numpy()
    return np.flatnonzero(near)


def _evaluate(boxes: Boxes, found: Results) -> list[dict[str, Any]]:
    """The package's matching: for each size, and within it for each pair, a record.

    The package sees each pair of image and category as an image of one category.
    """
    lvis = import_lvis()
    nothing: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = [{"id": pair, **nothing} for pair in np.unique(boxes.images).tolist()]
    tree = {"images": images, "annotations": annotation_rows(boxes), "categories": [{"id": 0, "frequency": "r"}]}
    with tempfile.TemporaryDirectory() as folder:  # the package reads files only
        files = Path(folder, "annotations.json"), Path(folder, "results.json")
        files[0].write_text(json.dumps(tree))
        files[1].write_text(json.dumps(result_rows(found)))
        truth = lvis.LVIS(str(files[0]))
        evaluator = lvis.LVISEval(truth, lvis.LVISResults(truth, str(files[1]), max_dets=-1), "bbox")
    evaluator.params.area_rng, evaluator.params.iou_thrs = SIZES, _THRESHOLDS
    evaluator.evaluate()
    records: list[dict[str, Any]] = evaluator.eval_imgs
    return records


def import_lvis() -> Any:
    """The lvis package.

    Raises:
        ImportError: it, or the OpenCV that it loads, cannot be loaded here.
    """
    import lvis  # not above: it loads OpenCV and matplotlib

    return lvis


def _curves(
    boxes: Boxes, found: Results, incomplete: np.ndarray, near: np.ndarray, right: np.ndarray, idle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall (size, IoU) of one category, -1 where no box has to be found.

    Results outside of a size, or where boxes may be missing (``incomplete``), are wrong only if they match a box.
    """
    ap, recall = np.full(right.shape[:2], -1.0), np.full(right.shape[:2], -1.0)
    order = np.argsort(-found.scores, kind="stable")
    for size, number in np.ndindex(ap.shape):
        sought = (_inside(boxes.areas, SIZES[size]) & ~boxes.crowd).sum()
        if not sought:
            continue
        matched, ignored = np.zeros(len(found), dtype=bool), ~_inside(_areas(found), SIZES[size]) | incomplete
        matched[near] = right[size, number]
        ignored[near] = np.where(right[size, number], idle[size, number], ignored[near])
        hits = np.cumsum(matched[order][~ignored[order]])
        precision = hits / (np.arange(1, len(hits) + 1) + np.spacing(1))
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        ap[size, number] = precision[np.searchsorted(hits / sought, RECALLS, side="left")].mean()
        recall[size, number] = hits[-1] / sought if len(hits) else 0.0
    return ap, recall


def _inside(areas: np.ndarray, size: Sequence[float]) -> np.ndarray:
    inside: np.ndarray = (areas >= size[0]) & (areas <= size[1])
    return inside


def _areas(results: Results) -> np.ndarray:
    areas: np.ndarray = results.boxes[:, 2] * results.boxes[:, 3]
    return areas


def _rank(groups: np.ndarray) -> np.ndarray:
    """The place of each within its run of equal values."""
    places = np.arange(len(groups))
    is_first = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    return places - np.maximum.accumulate(np.where(is_first, places, 0))
