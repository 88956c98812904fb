"""Average precision as LVIS counts it (Gupta et al. 2019), and Fixed AP (Dave et al. 2021).

Boxes are matched by the lvis package, one category at a time, in the images that have boxes of it: its own loop
visits every category in every image, 24 million pairs. Precision and recall are computed here, because the package's
accumulation does not run with today's numpy.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from glip.data.sets import Row
from glip.evaluate.coco import Score, annotation_rows, interpolated_ap, mean_of_valid, result_rows
from glip.evaluate.columns import FREQUENCIES, UNKNOWN, Boxes, LvisTruth, Results, concatenate, split_by

_PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_PENDING = 4_000_000  # results that wait until the best are chosen again, about 220 MB
_AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large boxes
_SIZES, _OVERLAPS = len(_AREAS), 10  # IoU 0.50 to 0.95
_LOWEST_IOU = 0.49  # a little below the lowest IoU that counts


def standard_ap(truth: LvisTruth, results: Results, *, max_dets: int = 300) -> Score:
    """The official AP: of each image the ``max_dets`` best detections over all categories.

    Detections of ``UNKNOWN`` categories count among these and for nothing else. Of equal scores the earlier is better.
    The figures are those of the lvis package to the last digit, except that it takes an annotation with the id 0 for
    "no match"; here it is found like any other. They are AP, AP50, AP75, AP of small, medium and large boxes, of rare,
    common and frequent categories; then AR of all, small, medium and large boxes, such as AR@300.
    """
    kept = np.lexsort((-results.scores, results.images))
    kept = kept[_rank(results.images[kept]) < max_dets]
    return _score(truth, results.select(np.sort(kept)), max_dets)


def fixed_ap(truth: LvisTruth, results: Results, *, per_category: int = 10_000) -> Score:
    """Fixed AP: no limit per image (AR@-1), but for each category the ``per_category`` best of the set.

    The figures are those of GLIP's evaluator in one process. Results that do not fit into memory go through
    ``BestOfCategories`` first; choosing among what it kept changes nothing.
    """
    best = BestOfCategories(len(truth.categories), per_category=per_category)
    best.add(results)
    return _score(truth, best.results(), -1)


class BestOfCategories:
    """The best results of so many categories, from results that come piece by piece and are too many to keep.

    Of equal scores the one in the earlier image is better, then the one that came earlier: so the images may come
    in any order, from several processes too, as long as those of one image come in theirs. Results of ``UNKNOWN``
    categories are dropped.
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


def _rank(groups: np.ndarray) -> np.ndarray:
    """The place of each within its run of equal values."""
    places = np.arange(len(groups))
    is_first = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    return places - np.maximum.accumulate(np.where(is_first, places, 0))


def _score(truth: LvisTruth, results: Results, max_dets: int) -> Score:
    """The figures of results that are already limited; only those count whose category was looked for in the image."""
    looked_for, count = np.array(truth.negatives), len(truth.categories)
    boxes = truth.boxes.select(_has_area(truth.boxes.areas))
    looked_for[boxes.images, boxes.categories] = True
    found = results.select((results.categories != UNKNOWN) & _has_area(results.boxes[:, 2] * results.boxes[:, 3]))
    found = found.select(looked_for[found.images, found.categories])
    table, precisions, recalls = list[Row](), [], []
    pairs = zip(*(split_by(one.categories, count) for one in (boxes, found)), strict=True)
    for index, (own, part) in enumerate(pairs):
        ap, recall = _curves(boxes.select(own), found.select(part), truth.incomplete[:, index])
        named = {"name": truth.names[index], "frequency": truth.frequencies[index]}
        counts = {"boxes": len(own), "detections": len(part)}
        figures = {"AP": ap[0].mean(), "AP50": ap[0, 0], "AP75": ap[0, 5], "AR": recall[0].mean()}
        table.append({**named, **counts, **{name: float(value) for name, value in figures.items()}})
        precisions.append(ap)
        recalls.append(recall)
    ap, recall = (np.stack(each, axis=2) for each in (precisions, recalls))  # each (size, IoU, category)
    groups = [[frequency == group for frequency in truth.frequencies] for group in FREQUENCIES]
    chosen = [ap[0], ap[0, 0], ap[0, 5], *ap[1:], *(ap[0][:, group] for group in groups), *recall]
    names = (*_PRECISIONS, *(f"AR{size}@{max_dets}" for size in ("", "s", "m", "l")))
    return Score(dict(zip(names, map(mean_of_valid, chosen), strict=True)), table, len(truth.images))


def _has_area(areas: np.ndarray) -> np.ndarray:
    """Above zero and finite; the package drops the others."""
    return np.asarray((areas > 0) & np.isfinite(areas))


def _curves(boxes: Boxes, found: Results, incomplete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall (size, IoU) of one category, -1 where no box has to be found."""
    ap, recall = np.full((_SIZES, _OVERLAPS), -1.0), np.full((_SIZES, _OVERLAPS), -1.0)
    if boxes.crowd.all():
        return ap, recall
    found = found.select(np.lexsort((-found.scores, found.images)))
    near, areas = _near(boxes, found), found.boxes[:, 2] * found.boxes[:, 3]
    records = np.array(_match(boxes, found.select(near), incomplete), dtype=object)
    order = np.argsort(-found.scores, kind="stable")
    for size, ((low, high), rows) in enumerate(zip(_AREAS, np.split(records, _SIZES), strict=True)):
        sought = sum(int((row["gt_ignore"] == 0).sum()) for row in rows)
        if not sought:
            continue
        right = np.zeros((_OVERLAPS, len(found)), dtype=bool)
        ignored = np.tile((areas < low) | (areas > high) | incomplete[found.images], (_OVERLAPS, 1))
        for row in rows:
            place = near[np.array(row["dt_ids"], dtype=int) - 1]  # ids count from 1
            right[:, place], ignored[:, place] = row["dt_matches"] > 0, row["dt_ignore"]
        right, counts = right[:, order], ~ignored[:, order]
        for number in range(_OVERLAPS):
            hits = np.cumsum(right[number, counts[number]])
            ap[size, number] = interpolated_ap(hits, np.arange(1, len(hits) + 1), sought)
            recall[size, number] = hits[-1] / sought if len(hits) else 0.0
    return ap, recall


def _near(boxes: Boxes, found: Results) -> np.ndarray:
    """The results that may match a box of their image; the others match nothing, and the package is slow."""
    by_image = np.argsort(boxes.images, kind="stable")
    start, end = (np.searchsorted(boxes.images[by_image], found.images, side) for side in ("left", "right"))
    first, counts = np.cumsum(end - start) - (end - start), end - start
    result = np.repeat(np.arange(len(found)), counts)  # of each pair of a result and a box of its image
    box = by_image[np.arange(counts.sum()) - np.repeat(first, counts) + np.repeat(start, counts)]
    one, other = found.boxes[result], boxes.boxes[box]
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    common = (high - low).clip(0).prod(1)
    overlap = common / (one[:, 2:].prod(1) + other[:, 2:].prod(1) - common)
    return np.unique(result[overlap > _LOWEST_IOU])


def _match(boxes: Boxes, found: Results, incomplete: np.ndarray) -> list[dict[str, Any]]:
    """The package's records of one category: for each size, and within it for each image, what matched what."""
    lvis, own = import_lvis(), int(boxes.categories[0])
    images = [
        {"id": image, "neg_category_ids": [own], "not_exhaustive_category_ids": [own] if incomplete[image] else []}
        for image in np.unique(boxes.images).tolist()
    ]
    categories = [{"id": own, "frequency": FREQUENCIES[0]}]
    tree = {"images": images, "annotations": annotation_rows(boxes), "categories": categories}
    # The package refuses an empty list of results; it passes over one of another category.
    nothing = {"image_id": images[0]["id"], "category_id": UNKNOWN, "bbox": [0, 0, 1, 1], "score": 0}
    with tempfile.TemporaryDirectory() as folder:  # it reads files only
        files = Path(folder, "annotations.json"), Path(folder, "results.json")
        files[0].write_text(json.dumps(tree))
        files[1].write_text(json.dumps(result_rows(found) or [nothing]))
        truth = lvis.LVIS(str(files[0]))
        evaluator = lvis.LVISEval(truth, lvis.LVISResults(truth, str(files[1]), max_dets=-1), "bbox")
    evaluator.evaluate()
    records: list[dict[str, Any]] = evaluator.eval_imgs  # none is empty: every image has a box
    return records


def import_lvis() -> Any:
    """The lvis package; an ImportError where it, or the OpenCV that it loads, cannot be loaded."""
    import lvis  # not above: it loads OpenCV and matplotlib

    return lvis
