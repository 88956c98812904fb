"""Referring expressions: RefCOCO's precision at 1, 5 and 10, and gRefCOCO's figures (GREC), as their evaluators count.

Files of predictions are a JSON list of {image_id, boxes, scores}, a row for each expression (in these sets each is
an image of its own); boxes are x1, y1, x2, y2 in pixels. Boxes and scores are float32, as the evaluators get them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate.columns import check_words
from glip.evaluate.report import NOTHING, Row
from glip.files import read_json
from glip.geometry.boxes import giou, iou
from glip.schema import Corners, checked, parse
from glip.shapes import Float, Tensor
from glip.structures import Detections, Sample

EXPRESSIONS = ("refcoco", "grefcoco")  # protocols
PRECISIONS = tuple(f"P@{rank} ({overlap})" for overlap in ("GIoU", "IoU") for rank in (1, 5, 10))
CERTAIN = 0.7  # the lowest score of a box that counts in gRefCOCO
_RANKS, _OVERLAP = (1, 5, 10), 0.5
_NONE = {"boxes": [[0.0, 0.0, 0.0, 0.0]], "scores": [0.0]}  # of a row without a box
Found = tuple[Float[Tensor, "_box 4"], Float[Tensor, " _box"]]  # boxes and their scores, in the order of their file
Pair = tuple[Sample, Found | None]  # None: an expression that was skipped, which counts as a mistake


def precision(pairs: Iterable[Pair]) -> dict[str, dict[str, float]]:
    """``PRECISIONS`` of all expressions and of those of each data set, by its name.

    An expression is found with the first k boxes if one of them overlaps its box by at least a half. By GIoU they are
    sorted by score, and of equal scores the larger box [x1, y1, x2, y2] is first, as MDETR sorts; by IoU they are in
    the order that they are given in, as in mmdetection.
    """
    hits = defaultdict[str, list[tuple[bool, ...]]](list)
    for sample, found in pairs:
        own = _hits(sample.boxes, found)
        for name in ("all", *sample.kinds[0]):
            hits[name].append(own)
    columns = {name: list(zip(*own, strict=True)) for name, own in hits.items()}
    return {
        name: {figure: sum(column) / len(column) for figure, column in zip(PRECISIONS, own, strict=True)}
        for name, own in columns.items()
    }


def _hits(truth: Float[Tensor, "1 4"], found: Found | None) -> tuple[bool, ...]:
    if found is None or not len(found[1]):
        return (False,) * len(PRECISIONS)
    boxes, scores = found
    keys = list(zip(scores.tolist(), boxes.tolist(), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
    overlaps = giou(boxes[order], truth), iou(boxes, truth, inclusive=False).nan_to_num(0.0)
    # where the first GIoU is none (0 / 0), the maximum is none too, and the expression is not found
    return tuple(max(one[:rank, 0].tolist()) >= _OVERLAP for one in overlaps for rank in _RANKS)


def grec_figures(pairs: Iterable[Pair], *, threshold: float = CERTAIN) -> dict[str, float]:
    """gRefCOCO's figures of the boxes that score at least ``threshold``; ``NOTHING`` where there is no expression.

    "F1=1" is the share of all expressions of which every box is found once and nothing else; "N_acc" is that of those
    without a target; "T_acc" is the share of those with a target for which anything is found.
    """
    perfect, silent, answered = list[bool](), list[bool](), list[bool]()
    for sample, found in pairs:
        # the score, a float32, is compared with the threshold as a float64: 0.7 itself is below it
        kept = found[0][found[1].double() >= threshold] if found else sample.boxes.new_zeros(0, 4)
        if len(sample.boxes):
            answered.append(len(kept) > 0)
            perfect.append(_matches(sample.boxes, kept) == len(kept) == len(sample.boxes))
        else:
            silent.append(found is not None and not len(kept))
            perfect.append(silent[-1])
    figures = {"F1=1": perfect, "N_acc": silent, "T_acc": answered}
    return {name: sum(right) / len(right) if right else NOTHING for name, right in figures.items()}


def _matches(truth: Float[Tensor, "true 4"], kept: Float[Tensor, "found 4"]) -> int:
    """How many boxes match one of the truth each: the pair of largest GIoU first; scores play no part."""
    table = giou(kept, truth)
    for count in range(min(table.shape)):
        best, place = table.flatten().max(0)
        if best < _OVERLAP:  # a GIoU that is none (0 / 0) counts as the largest, and as a match
            return count
        row, column = divmod(int(place), len(truth))
        table[row], table[:, column] = 0.0, 0.0
    return min(table.shape)


def grec_by_threshold(pairs: Sequence[Pair]) -> list[Row]:
    """The figures by threshold: a score of 0.7 means something else in each model."""
    steps = (step / 10 for step in range(1, 10))
    return [{"threshold": step, **grec_figures(pairs, threshold=step)} for step in steps]


def found_of(sample: Sample, found: Detections | None) -> Found | None:
    """The boxes found for an expression, best first; None if it was skipped.

    Raises:
        DataError: detections of something else.
    """
    if found is None:
        return None
    check_words(sample, found, sample.prompt.texts if sample.prompt else ())
    order = found.scores.argsort(descending=True, stable=True)
    return found.boxes[order].cpu(), found.scores[order].cpu()


# ---- files of predictions


@checked
class _Row:
    image_id: int | str
    boxes: tuple[Corners, ...]
    scores: tuple[float, ...]


def expression_row(sample: Sample, found: Found) -> dict[str, Any]:
    """The boxes of an expression as a row of a file of predictions; without any, an empty box that scores 0."""
    boxes, scores = found
    own = {"boxes": boxes.tolist(), "scores": scores.tolist()} if len(scores) else _NONE
    return {"image_id": sample.image_id, **own}


def read_found(path: str | Path, samples: Sequence[Sample], tally: SkipCounter) -> list[Found]:
    """The boxes of each expression, in the order of the samples; rows of other expressions are counted and ignored.

    Raises:
        FileNotFoundError: no such file.
        DataError: not such a list; an expression without a row, or with two; a row without boxes, with other numbers
            of boxes and scores, or with a box whose corners are swapped.
    """
    known, found = {sample.image_id for sample in samples}, dict[int | str, Found]()
    for number, row in enumerate(parse(tuple[_Row, ...], read_json(path), at=str(path), error=DataError)):
        if row.image_id not in known:
            tally.add("prediction for an unknown expression", f"row {number}, image_id {str(row.image_id)[:40]}")
            continue
        problem = ""
        if row.image_id in found:
            problem = "its expression has a row already: give one row for each"
        elif not row.boxes or len(row.boxes) != len(row.scores):
            problem = (
                f"it has {len(row.boxes)} boxes and {len(row.scores)} scores: give a score for each box, and where "
                f"nothing was found {_NONE}"
            )
        elif any(box[2] < box[0] or box[3] < box[1] for box in row.boxes):
            problem = "a box ends before it begins: give x1, y1, x2, y2"
        if problem:
            raise DataError(f"{path}: row {number} (image_id {row.image_id!r}): {problem}")
        if list(row.scores) != sorted(row.scores, reverse=True):
            tally.add("row whose boxes are not best first: precision by IoU takes them in that order", f"row {number}")
        found[row.image_id] = torch.tensor(row.boxes), torch.tensor(row.scores)
    lacking = [sample.image_id for sample in samples if sample.image_id not in found]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} of {len(samples)} expressions have no prediction, such as that of image_id "
            f"{lacking[0]!r}: give a row for every expression"
        )
    return [found[sample.image_id] for sample in samples]
