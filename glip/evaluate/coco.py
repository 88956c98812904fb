"""Average precision as COCO counts it (pycocotools), from samples in memory or from COCO's own rows.

A category is a name. Where every picture has names of its own, as in the drawn world, a name counts in the pictures
that were asked for it and nowhere else, as in LVIS: a false alarm for an absent name that was asked lowers its AP.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip.structures import Detections, Sample

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")
_AT_ONCE = 100  # categories in one evaluation: pycocotools holds arrays of categories x 12,120 numbers

_EVERYWHERE = [-1e6, -1e6, 2e6, 2e6]
_RECALLS = np.linspace(0.0, 1.0, 101)

Row = dict[str, Any]  # an annotation or a result in COCO's json


@dataclass(frozen=True)
class Truth:
    """Annotated pictures as COCO's json holds them; picture ids are whole numbers, annotation ids count from 1."""

    pictures: tuple[int, ...]
    categories: dict[int, str]
    annotations: list[Row]


@dataclass(frozen=True)
class CategoryScore:
    """One line of the table: a name, its boxes (groups not counted) and its AP; -1 where it has no box."""

    name: str
    boxes: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class Ranking:
    """One category at IoU 0.5: its detections best first, those to be ignored left out.

    ``pictures`` and ``right`` say of each detection where it is and whether it is a box's first; ``boxes`` holds the
    picture of every box. Pictures are counted from 0 in the order of their ids.
    """

    pictures: np.ndarray
    right: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Score:
    """The figures of a set; ``stats`` are COCO's twelve, named by ``STATS``, -1 where there is nothing to average."""

    stats: tuple[float, ...]
    categories: tuple[CategoryScore, ...]
    pictures: int
    rankings: tuple[Ranking, ...]

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 to 0.95."""
        return self.stats[0]

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return self.stats[1]

    def interval(self, *, rounds: int = 300, seed: int = 0) -> tuple[float, float]:
        """95 % interval of AP50 over resampled pictures (bootstrap)."""
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(self.pictures, np.full(self.pictures, 1 / self.pictures), size=rounds)
        table = [[_weighted_ap(ranking, weights) for ranking in self.rankings] for weights in drawn]
        with np.errstate(invalid="ignore"):
            found = [np.nanmean(row) for row in table if not np.isnan(row).all()]
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)


def average_precision(pairs: Iterable[tuple[Sample, Detections]]) -> Score:
    """AP of detections in samples that have a vocabulary, as ``detect_all`` gives them.

    Boxes marked as a group are treated as COCO treats its crowds: what lies in them is neither right nor wrong. As in
    LVIS, names of which nobody knows whether they are there (``Sample.absent``) are not scored in that picture, and
    of those that may have more boxes (``Sample.incomplete``) only what matches one is.

    Raises:
        ValueError: no picture or no box to score with, a sample without vocabulary, or detections of other names.
    """
    listed = list(pairs)
    if not listed:
        raise ValueError("no picture to score: none was given, or none could be read")
    for sample, found in listed:
        _check_names(sample, found)
    number, categories = _numbering([sample for sample, _ in listed])
    annotations: list[Row] = []
    results: list[Row] = []
    for index, (sample, found) in enumerate(listed):
        annotations += _annotations(sample, index, number, len(annotations) + 1)
        results += _results(sample, found, index, number)
    return score_rows(Truth(tuple(range(len(listed))), categories, annotations), results)


def score_rows(truth: Truth, results: Sequence[Row]) -> Score:
    """AP of results in COCO's format (image_id, category_id, bbox as x, y, width, height, score).

    The table and the rankings are in the order of the category ids, whatever the order of ``truth.categories``.

    Raises:
        ValueError: no box to score with.
    """
    if not any(not row.get("iscrowd") for row in truth.annotations):
        names = list(truth.categories.values())
        shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"the {len(truth.pictures)} pictures have no box of any of the {len(names)} names ({shown}): there is "
            "nothing to score; check the annotations with glip data check"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        annotated, found = _index(truth, truth.annotations), _index(truth, _measured(results))
        numbers = sorted(truth.categories)  # as pycocotools orders them
        parts = [
            _evaluate(annotated, found, numbers[start : start + _AT_ONCE]) for start in range(0, len(numbers), _AT_ONCE)
        ]
    precision = np.concatenate([part.eval["precision"].mean(axis=1) for part in parts], axis=1)
    recall = np.concatenate([part.eval["recall"] for part in parts], axis=1)
    place = {picture: index for index, picture in enumerate(sorted(truth.pictures))}
    rankings = [ranking for part in parts for ranking in _rankings(part, place)]
    names = [truth.categories[number] for number in numbers]
    table = [
        CategoryScore(name, len(ranking.boxes), float(precision[:, k, 0, -1].mean()), float(precision[0, k, 0, -1]))
        for k, (name, ranking) in enumerate(zip(names, rankings, strict=True))
    ]
    return Score(_stats(precision, recall), tuple(table), len(truth.pictures), tuple(rankings))


def scored_names(sample: Sample) -> set[int]:
    """The names of a sample's vocabulary of which it is known whether they are in the picture."""
    present = {number for numbers in sample.box_phrases for number in numbers}
    if sample.absent is None:
        return set(range(len(sample.vocabulary)))
    return present | set(sample.absent)


# ---- samples -> rows


def _check_names(sample: Sample, found: Detections) -> None:
    if not sample.vocabulary or sample.prompt is not None:
        raise ValueError(
            f"picture {sample.image_id} has no list of names: AP is for detection sets, captions have recall (phrases)"
        )
    if found.prompt.texts[: len(sample.vocabulary)] != sample.vocabulary:
        raise ValueError(
            f"picture {sample.image_id}: detections are of {found.prompt.texts[:3]}..., its boxes of "
            f"{sample.vocabulary[:3]}...: no class matches; ask for the names of the set, in their order"
        )


def _numbering(samples: Sequence[Sample]) -> tuple[dict[tuple[int, str], int], dict[int, str]]:
    """Category of each (place in the vocabulary, name), and the name of each category.

    Names that a set lists twice stay two categories; over several vocabularies equal names are one.
    """
    vocabularies = dict.fromkeys(sample.vocabulary for sample in samples)
    if len(vocabularies) == 1:
        [names] = vocabularies
        return {(i, name): i + 1 for i, name in enumerate(names)}, dict(enumerate(names, start=1))
    texts = sorted({name for names in vocabularies for name in names})
    number = {text: i for i, text in enumerate(texts, start=1)}
    places = {(i, name): number[name] for names in vocabularies for i, name in enumerate(names)}
    return places, dict(enumerate(texts, start=1))


def _annotations(sample: Sample, picture: int, number: dict[tuple[int, str], int], first: int) -> list[Row]:
    rows: list[Row] = []
    for index, (box, labels) in enumerate(zip(sample.boxes.tolist(), sample.box_phrases, strict=True)):
        x1, y1, x2, y2 = box
        for label in labels:
            row = {"id": first + len(rows), "image_id": picture, "iscrowd": int(index in sample.crowd)}
            row["category_id"] = number[label, sample.vocabulary[label]]
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    for label in sample.incomplete:  # one crowd everywhere: whatever matches no box is ignored
        row = {"id": first + len(rows), "image_id": picture, "iscrowd": 1}
        row["category_id"] = number[label, sample.vocabulary[label]]
        rows.append({**row, "bbox": _EVERYWHERE, "area": 0.0})
    return rows


def _results(sample: Sample, found: Detections, picture: int, number: dict[tuple[int, str], int]) -> list[Row]:
    known = scored_names(sample)
    rows = []
    for box, score, label, phrase in found:
        if label in known:
            x1, y1, x2, y2 = box
            row = {"image_id": picture, "category_id": number[label, phrase], "score": score}
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    return rows


# ---- rows -> figures


def _measured(results: Sequence[Row]) -> list[Row]:
    return [
        {**row, "id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for i, row in enumerate(results, start=1)
    ]


def _index(truth: Truth, rows: list[Row]) -> COCO:
    index = COCO()
    index.dataset = {
        "images": [{"id": picture} for picture in truth.pictures],
        "categories": [{"id": number, "name": name} for number, name in truth.categories.items()],
        "annotations": [dict(row) for row in rows],
    }
    index.createIndex()
    return index


def _evaluate(annotated: COCO, found: COCO, categories: list[int]) -> COCOeval:
    """Match and accumulate some categories, over the pictures that hold a box or a detection of one of them."""
    evaluator = COCOeval(annotated, found, "bbox")
    concerned = {
        picture for index in (annotated, found) for number in categories for picture in index.catToImgs[number]
    }
    evaluator.params.catIds, evaluator.params.imgIds = categories, sorted(concerned)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _rankings(evaluator: COCOeval, place: dict[int, int]) -> list[Ranking]:
    """What each category's matching at IoU 0.5, all sizes, says of every detection."""
    areas, pictures = len(evaluator.params.areaRng), len(evaluator.params.imgIds)
    rankings = []
    for k in range(len(evaluator.params.catIds)):
        start = k * areas * pictures
        rows = [row for row in evaluator.evalImgs[start : start + pictures] if row is not None]
        where = [place[row["image_id"]] for row in rows]
        scores = np.concatenate([[], *(row["dtScores"] for row in rows)])
        right = np.concatenate([[], *(row["dtMatches"][0] > 0 for row in rows)]).astype(bool)
        ignored = np.concatenate([[], *(row["dtIgnore"][0] for row in rows)]).astype(bool)
        owners = np.repeat(where, [len(row["dtScores"]) for row in rows]).astype(int)
        boxes = np.repeat(where, [int((row["gtIgnore"] == 0).sum()) for row in rows]).astype(int)
        order = np.argsort(-scores, kind="stable")
        order = order[~ignored[order]]
        rankings.append(Ranking(owners[order], right[order], boxes))
    return rankings


def _stats(precision: np.ndarray, recall: np.ndarray) -> tuple[float, ...]:
    """COCO's twelve figures of arrays (IoU, category, size, number of detections)."""
    chosen = [precision[:, :, 0, -1], precision[0, :, 0, -1], precision[5, :, 0, -1]]
    chosen += [precision[:, :, size, -1] for size in (1, 2, 3)]
    chosen += [recall[:, :, 0, cap] for cap in (0, 1, 2)]
    chosen += [recall[:, :, size, -1] for size in (1, 2, 3)]
    return tuple(_mean_of_valid(values) for values in chosen)


def _mean_of_valid(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _weighted_ap(ranking: Ranking, weights: np.ndarray) -> float:
    """AP of one category where picture i counts ``weights[i]`` times; NaN where no box is left."""
    boxes = weights[ranking.boxes].sum()
    if not boxes:
        return float("nan")
    times = weights[ranking.pictures]
    right = np.cumsum(times * ranking.right)
    shown = np.cumsum(times)
    precision = np.maximum.accumulate((right / np.maximum(shown, 1))[::-1])[::-1]
    reached = np.searchsorted(right / boxes, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(reached, len(precision))].mean())
