"""SA-Co's cgF1: how well the objects of a phrase are found where there are some, times how well it is known whether.

Written from a description of the protocol (docs/benchmarks.md), for boxes. Detections that score less than 0.5 do not
count; the others are matched to the boxes once for each pair, so that the sum of their overlaps is largest.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from glip.data.described import is_exhaustive
from glip.data.sets import SampleSet, SkipCounter, require
from glip.evaluate.coco import overlaps
from glip.evaluate.columns import UNKNOWN, Boxes, GroundTruth, Results, read_truth, split_by
from glip.evaluate.false_positives import image_level
from glip.evaluate.report import NOTHING, Row
from glip.shapes import Bool, Float

_THRESHOLD = 0.5  # lowest score that counts
_OVERLAPS = np.linspace(0.5, 0.95, 10)
_AT = {"@0.5": 0, "@0.75": 5}  # overlaps that have figures of their own
_TINY = 1e-4
_FRACTIONS = 2.0  # boxes are in fractions of the image's sides; what is larger is in pixels


@dataclass(frozen=True, kw_only=True)
class PairTruth(GroundTruth):
    """Pairs of image and phrase in place of images, boxes in fractions of the image's sides.

    Args:
        annotators: the boxes as each of them drew them; ``boxes`` are the first's.
        counted: which pairs are scored: those of which every annotator marked all objects.
    """

    annotators: tuple[Boxes, ...]
    counted: Bool[np.ndarray, " image"]


@dataclass(frozen=True)
class Match:
    """One pair as one annotator sees it: true boxes, detections, and for each overlap how many are right."""

    boxes: int
    found: int
    right: Float[np.ndarray, " overlap"]

    @property
    def f1(self) -> Float[np.ndarray, " overlap"]:
        """F1 of the pair at each overlap; a little less than 1 where all is right."""
        return _f1(self.right / (self.found + _TINY), self.right / (self.boxes + _TINY))

    def better(self, held: "Match") -> bool:
        """Whether this annotator's view replaces the one held: nothing there and nothing found decides at once."""
        if not held.boxes and not held.found:
            return False
        return (not self.boxes and not self.found) or bool(self.f1.mean() > held.f1.mean())


def read_pairs(read: SampleSet, skipped: SkipCounter) -> PairTruth:
    """The ground truth of SA-Co's files, one of each annotator."""
    assert read.annotations
    files = (read.annotations, *read.companions)
    truths = [read_truth(file, skipped) for file in files]
    first = truths[0]
    counted = [all(is_exhaustive(file, number) for file in files) for number in first.images]
    own = (first.images, first.categories, first.names, first.boxes)
    return PairTruth(*own, annotators=tuple(one.boxes for one in truths), counted=np.array(counted))


def score_pairs(truth: PairTruth, results: Results) -> tuple[dict[str, float], dict[str, list[Row]]]:
    """All figures by their official names, ``NOTHING`` where there is nothing to average, and a table by overlap.

    Raises:
        DataError: results in pixels.
    """
    small = not len(results) or results.boxes.max() <= _FRACTIONS
    require(small, "the results have boxes in pixels: SA-Co's are fractions of the image's width and height")
    matches = _match_pairs(truth, results)
    boxes, found = (np.array([getattr(one, key) for one in matches], dtype=int) for key in ("boxes", "found"))
    right = np.array([one.right for one in matches]).reshape(-1, len(_OVERLAPS))
    there, seen = boxes > 0, found > 0
    tp, fp, fn = right.sum(0), (found[:, None] - right).sum(0), (boxes[:, None] - right).sum(0)
    there_fp = (found[:, None] - right)[there].sum(0)
    level = image_level(*(int(one.sum()) for one in (there & seen, ~there & seen, there & ~seen, ~there & ~seen)))
    precision, recall, there_precision = tp / (tp + fp + _TINY), tp / (tp + fn + _TINY), tp / (tp + there_fp + _TINY)
    micro, both = _f1(there_precision, recall), int((there & seen).sum())
    f1s = sum((one.f1 for one in matches), np.zeros(len(_OVERLAPS)))
    curves = {
        "cgF1": micro * level["IL_MCC"],
        "precision": precision,
        "recall": recall,
        "F1": _f1(precision, recall),
        "positive_macro_F1": f1s / both if both else np.full(len(_OVERLAPS), NOTHING),
        "positive_micro_F1": micro,
        "positive_micro_precision": there_precision,
    }
    rows = list[Row]()
    for place, overlap in enumerate(_OVERLAPS):
        counts = {name: int(count[place]) for name, count in (("right", tp), ("wrong", fp), ("missed", fn))}
        rows.append({"IoU": float(overlap), **counts, **{name: float(curve[place]) for name, curve in curves.items()}})
    at = {f"{name}{mark}": float(curve[place]) for mark, place in _AT.items() for name, curve in curves.items()}
    return {name: float(curve.mean()) for name, curve in curves.items()} | level | at, {"By overlap": rows}


def _match_pairs(truth: PairTruth, results: Results) -> list[Match]:
    """Each pair that is scored, as the annotator sees it who agrees most with the detections; of equals the first."""
    kept = results.select((results.categories != UNKNOWN) & (results.scores >= _THRESHOLD))
    drawn = [boxes.select(~boxes.crowd) for boxes in truth.annotators]
    found = split_by(kept.images, len(truth.images))
    annotated = [split_by(one.images, len(truth.images)) for one in drawn]
    matches = list[Match]()
    for pair in np.flatnonzero(truth.counted).tolist():
        views = (
            _match_pair(kept.boxes[found[pair]], one.boxes[own[pair]])
            for one, own in zip(drawn, annotated, strict=True)
        )
        held = next(views)
        for view in views:
            held = view if view.better(held) else held
        matches.append(held)
    return matches


def _match_pair(found: Float[np.ndarray, "det 4"], boxes: Float[np.ndarray, "box 4"]) -> Match:
    near = overlaps(found, boxes)
    right = near[linear_sum_assignment(near, maximize=True)][:, None] >= _OVERLAPS
    return Match(len(boxes), len(found), right.sum(0).astype(float))


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / (precision + recall + _TINY)
