"""Average precision as COCO computes it, by pycocotools itself.

A category is a name. Where every image has names of its own, as in the drawn world, a name counts in the images
whose vocabulary has it and nowhere else, as in LVIS: a false positive for an absent name there lowers its AP.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import iou

from glip.data.sets import Row
from glip.errors import DataError
from glip.evaluate.columns import UNKNOWN, Boxes, GroundTruth, Results, split_by, to_arrays
from glip.structures import Detections, Sample

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")
_AT_ONCE = 20  # categories in one evaluation: pycocotools holds a record of each detection and several of each match
_RECALLS = np.linspace(0.0, 1.0, 101)
_OFF = 0.25  # of its width that the middle of an interval may lie off its figure
_OVERLAP = 0.5
BEST = ("threshold", "precision", "recall", "F1")  # columns of the table of thresholds


@dataclass(frozen=True)
class Ranking:
    """One category at IoU 0.5: its detections best first, those to be ignored left out.

    ``images``, ``right`` and ``scores`` are for each detection its image, whether it is the first to match a box, and
    its score; ``boxes`` holds the image of every box. Images are indices into ``GroundTruth.images``. ``stricter`` are
    the same at COCO's nine other IoUs.
    """

    images: np.ndarray
    right: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    stricter: Sequence["Ranking"] = ()

    def ap(self, weights: np.ndarray) -> float:
        """AP over all IoUs where image i counts ``weights[i]`` times; NaN where no box is left."""
        return float(np.mean([one.ap50(weights) for one in (self, *self.stricter)]))

    def ap50(self, weights: np.ndarray) -> float:
        """The same at this IoU alone."""
        boxes, times = float(weights[self.boxes].sum()), weights[self.images]
        return interpolated_ap(np.cumsum(times * self.right), np.cumsum(times), boxes) if boxes else float("nan")

    def above(self, threshold: float) -> "Ranking":
        """The detections that score at least so much."""
        kept = self.scores >= threshold
        return replace(self, images=self.images[kept], right=self.right[kept], scores=self.scores[kept], stricter=())

    @property
    def shares(self) -> dict[str, float]:
        """Precision, recall and F1 of all its detections; -1 where there is nothing to divide by."""
        right, shown, boxes = int(self.right.sum()), len(self.scores), len(self.boxes)
        parts = zip(BEST[1:], (right, right, 2 * right), (shown, boxes, shown + boxes), strict=True)
        return {name: part / whole if whole else -1.0 for name, part, whole in parts}

    def curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Every score once, highest first; precision, recall and F1 of the detections that score at least as much."""
        last = np.append(self.scores[1:] < self.scores[:-1], True)[: len(self.scores)]
        right, shown, boxes = np.cumsum(self.right)[last], np.flatnonzero(last) + 1, len(self.boxes)
        return self.scores[last], right / shown, right / max(boxes, 1), 2 * right / (shown + boxes)

    @property
    def best(self) -> dict[str, float]:
        """The threshold of best F1 at IoU 0.5, with precision, recall and F1 there; {} without a right detection.

        It is halfway to the next lower score.
        """
        if not self.right.any():
            return {}
        scores, *figures = self.curves()
        place = int(np.argmax(figures[-1]))
        threshold = float(scores[place] + np.append(scores, 0.0)[place + 1]) / 2
        return dict(zip(BEST, (threshold, *(float(one[place]) for one in figures)), strict=True))


@dataclass(frozen=True)
class Score:
    """The official figures of a set of so many images, COCO's or LVIS's; -1 where there is nothing to average.

    Each category has a row, with its name, its boxes (groups not counted) and its AP, and in COCO a ranking at IoU 0.5.
    """

    figures: Mapping[str, float]
    categories: Sequence[Row]
    images: int
    rankings: Sequence[Ranking] = ()

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 to 0.95."""
        return self.figures["AP"]

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return self.figures["AP50"]

    def interval(
        self, figure: str = "AP50", *, less: "Score | None" = None, rounds: int = 300
    ) -> tuple[float, float] | None:
        """95 % interval of AP50 or AP over resampled images (bootstrap), or None where it would not be one.

        Where most names are in a few images, which a resample shows twice or not at all, it raises AP by itself: the
        middle of what it gives is then far from the figure, and the interval may not even hold it.

        With ``less``, another score on the same images, it is the interval of this figure less that one (paired: each
        resample has the same images for both).
        """
        found, value = self._resampled(figure, rounds), self.figures[figure]
        if not len(found):  # LVIS's protocol, or no box whose area is one of COCO's
            return None
        if less:
            found, value = found - less._resampled(figure, rounds), value - less.figures[figure]
        low, middle, high = np.percentile(found, [2.5, 50, 97.5]).tolist()
        return (low, high) if abs(middle - value) <= _OFF * (high - low) + 1e-6 else None

    def _resampled(self, figure: str, rounds: int) -> np.ndarray:
        drawn = np.random.default_rng(0).multinomial(self.images, np.full(self.images, 1 / self.images), size=rounds)
        table = [[getattr(ranking, figure.lower())(weights) for ranking in self.rankings] for weights in drawn]
        with np.errstate(invalid="ignore"):
            return np.array([np.nanmean(row) for row in table if not np.isnan(row).all()])


def average_precision(pairs: Iterable[tuple[Sample, Detections]]) -> Score:
    """AP of detections in samples that have a vocabulary, as ``detect_all`` yields them."""
    return score_results(*to_arrays(pairs))


def score_results(truth: GroundTruth, results: Results, *, as_filed: bool = False) -> Score:
    """AP of results, whose images and categories are indices into those of the ground truth.

    The figures are those of pycocotools to 1e-9, except that it takes an annotation with the id 0 for "no
    match"; here it is found like any other. Results of ``UNKNOWN`` categories are not scored, nor are those that
    ``negatives`` leave open. With ``as_filed`` there is no such exception, and every category counts in every image.

    Raises:
        DataError: no box to score with.
    """
    if truth.boxes.crowd.all():
        shown = ", ".join(repr(name) for name in truth.names[:3]) + (", ..." if len(truth.names) > 3 else "")
        raise DataError(
            f"the {len(truth.images)} images have no box of any of the {len(truth.names)} names ({shown}): there is "
            "nothing to score; check the annotations with glip data check"
        )
    scored = results.select(results.categories != UNKNOWN) if as_filed else _scored(truth, results)
    precisions, recalls, rankings = [], [], list[Ranking]()
    for start in range(0, len(truth.categories), _AT_ONCE):
        part = range(start, min(start + _AT_ONCE, len(truth.categories)))
        evaluator = _run_cocoeval(truth.boxes, scored, part, as_filed=as_filed)
        precisions.append(evaluator.eval["precision"].mean(axis=1))  # over the recalls
        recalls.append(evaluator.eval["recall"])
        rankings += _rankings(evaluator)
    # each (IoU, category, size, number of detections)
    precision, recall = np.concatenate(precisions, axis=1), np.concatenate(recalls, axis=1)
    table = [
        {"name": name, "boxes": len(ranking.boxes), "AP": float(own[:, 0, -1].mean()), "AP50": float(own[0, 0, -1])}
        for name, ranking, own in zip(truth.names, rankings, precision.swapaxes(0, 1), strict=True)
    ]
    chosen = [precision[:, :, 0, -1], precision[0, :, 0, -1], precision[5, :, 0, -1]]
    chosen += [precision[:, :, size, -1] for size in (1, 2, 3)]
    chosen += [recall[:, :, 0, limit] for limit in (0, 1, 2)]
    chosen += [recall[:, :, size, -1] for size in (1, 2, 3)]
    figures = dict(zip(FIGURES, map(mean_of_valid, chosen), strict=True))
    return Score(figures, table, len(truth.images), rankings)


def _scored(truth: GroundTruth, results: Results) -> Results:
    """The results of known categories, without those that ``negatives`` leave open."""
    scored = results.select(results.categories != UNKNOWN)
    if truth.negatives is None:
        return scored
    return scored.select((truth.present | truth.negatives)[scored.images, scored.categories])


def thresholds_by_name(rankings: Iterable[tuple[str, Ranking]]) -> dict[str, float]:
    """The threshold of best F1 of each name that has a right detection; rankings of one name count together."""
    groups = defaultdict[str, list[Ranking]](list)
    for name, ranking in rankings:
        groups[name].append(ranking)
    found = {name: pooled(own).best for name, own in groups.items()}
    return {name: best["threshold"] for name, best in found.items() if best}


def pooled(rankings: Sequence[Ranking]) -> Ranking:
    """The detections and boxes of several categories as one ranking."""
    columns = (np.concatenate([getattr(one, name) for one in rankings]) for name in ("images", "right", "scores"))
    images, right, scores = columns
    order = np.argsort(-scores, kind="stable")
    return Ranking(images[order], right[order], scores[order], np.concatenate([one.boxes for one in rankings]))


def confusion(truth: GroundTruth, results: Results, threshold: float) -> np.ndarray:
    """How often a box of each category was found as each category: counts (found, true), last of both the background.

    Detections of at least ``threshold`` take boxes at IoU 0.5, best first: those of their own category, then what is
    left of others. Detections in a group of their category count nowhere, as in AP.
    """
    shown = _scored(truth, results.select(results.scores >= threshold))
    shown = shown.select(np.argsort(-shown.scores, kind="stable"))
    none = len(truth.categories)
    table, boxes = np.zeros((none + 1, none + 1), dtype=int), truth.boxes
    for own, found in zip(*(split_by(one.images, len(truth.images)) for one in (boxes, shown)), strict=True):
        labels, categories, crowd = shown.categories[found], boxes.categories[own], boxes.crowd[own]
        near = overlaps(shown.boxes[found], boxes.boxes[own], crowd)
        near = np.where(near >= _OVERLAP, near, 0.0)
        alike = labels[:, None] == categories
        taken, free, grouped = np.full(len(found), -1), ~crowd, (near * alike * crowd).any(1)
        _take_boxes(near * alike, taken, free)
        _take_boxes(near * ~alike * ~grouped[:, None], taken, free)
        counted = (taken >= 0) | ~grouped
        np.add.at(table, (labels[counted], np.append(categories, none)[taken[counted]]), 1)
        np.add.at(table, (none, categories[free]), 1)
    return table


def overlaps(found: np.ndarray, boxes: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU of all pairs of boxes x, y, width, height; for a crowd it is the share of the found box that is inside."""
    marks = np.zeros(len(boxes), dtype=int) if crowd is None else crowd.astype(int)
    return np.reshape(iou(found, boxes, marks), (len(found), len(boxes)))


def _take_boxes(near: np.ndarray, taken: np.ndarray, free: np.ndarray) -> None:
    """Give each row that has no box yet its nearest free one, row by row; ``taken`` and ``free`` change."""
    for row in np.flatnonzero((taken < 0) & near.any(1)):
        best = int(np.argmax(near[row] * free))
        if near[row, best] and free[best]:
            taken[row], free[best] = best, False


# ---- columns -> pycocotools -> figures


def _run_cocoeval(boxes: Boxes, results: Results, categories: range, *, as_filed: bool) -> COCOeval:
    """Match and accumulate some categories, over the images that hold a box or a detection of one of them."""
    annotated = boxes.select((boxes.categories >= categories.start) & (boxes.categories < categories.stop))
    found = results.select((results.categories >= categories.start) & (results.categories < categories.stop))
    concerned = np.union1d(annotated.images, found.images).tolist()
    named = {"images": [{"id": image} for image in concerned], "categories": [{"id": number} for number in categories]}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        sides = COCO(), COCO()
        for side, rows in zip(sides, (annotation_rows(annotated, as_filed=as_filed), result_rows(found)), strict=True):
            side.dataset = {**named, "annotations": rows}
            side.createIndex()
        evaluator = COCOeval(*sides, "bbox")
        evaluator.params.catIds, evaluator.params.imgIds = list(categories), concerned
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def annotation_rows(boxes: Boxes, *, as_filed: bool = False) -> list[Row]:
    """Boxes as COCO's and LVIS's packages read them; ids from 1, since both take an id of 0 for "no match".

    With ``as_filed`` the box that has the id 0 in its file keeps it.
    """
    zero = boxes.zero if as_filed and boxes.zero is not None else np.zeros(len(boxes.areas), dtype=bool)
    ids = [_Zero() if is_zero else number for number, is_zero in enumerate(zero.tolist(), start=1)]
    crowd = boxes.crowd.astype(int)
    columns = (boxes.images, boxes.categories, boxes.boxes, boxes.areas, crowd, crowd)
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
    listed = zip(ids, *(column.tolist() for column in columns), strict=True)
    return [dict(zip(keys, values, strict=True)) for values in listed]


class _Zero(int):
    """An id 0 that is equal to no other, as pycocotools finds annotations by their ids."""

    __eq__, __hash__ = object.__eq__, object.__hash__


def result_rows(results: Results) -> list[Row]:
    """Results in the same form."""
    return [
        {"id": i, "image_id": p, "category_id": c, "bbox": box, "score": score, "area": box[2] * box[3], "iscrowd": 0}
        for i, (p, c, box, score) in enumerate(results.rows(), start=1)
    ]


def _rankings(evaluator: COCOeval) -> list[Ranking]:
    """The detections of each category as they were matched at IoU 0.5 and at the stricter ones, all sizes."""
    areas, images = len(evaluator.params.areaRng), len(evaluator.params.imgIds)
    rankings = []
    for k in range(len(evaluator.params.catIds)):
        start = k * areas * images
        rows = [row for row in evaluator.evalImgs[start : start + images] if row is not None]
        where = [int(row["image_id"]) for row in rows]
        scores = np.concatenate([[], *(row["dtScores"] for row in rows)])
        none = np.zeros((len(evaluator.params.iouThrs), 0))
        right = np.concatenate([none, *(row["dtMatches"] > 0 for row in rows)], axis=1).astype(bool)
        ignored = np.concatenate([none, *(row["dtIgnore"] for row in rows)], axis=1).astype(bool)
        owners = np.repeat(where, [len(row["dtScores"]) for row in rows]).astype(int)
        boxes = np.repeat(where, [int((row["gtIgnore"] == 0).sum()) for row in rows]).astype(int)
        order = np.argsort(-scores, kind="stable")
        counted = [order[~own[order]] for own in ignored]
        levels = [Ranking(owners[own], hit[own], scores[own], boxes) for own, hit in zip(counted, right, strict=True)]
        rankings.append(replace(levels[0], stricter=levels[1:]))
    return rankings


def mean_of_valid(values: np.ndarray) -> float:
    """The mean of the figures that are not -1; -1 where there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def interpolated_ap(right: np.ndarray, shown: np.ndarray, boxes: float) -> float:
    """The mean precision at COCO's 101 recalls.

    ``right`` and ``shown`` are running counts over a ranking: right detections, and all of them.
    """
    precision = np.maximum.accumulate((right / (shown + np.spacing(1)))[::-1])[::-1]
    reached = np.searchsorted(right / boxes, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())
