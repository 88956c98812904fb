"""Filter pseudo-labels by score, size and overlap; the result is an ordinary label file to train on."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from glip.config import SelectConfig
from glip.errors import DataError
from glip.files import atomic_write
from glip.geometry.boxes import pair_iou
from glip.pseudo.store import Row, read_rows


@dataclass
class Selection:
    """What was kept, and how many boxes and pairs were dropped for each reason."""

    pairs: int = 0
    boxes: int = 0
    kept_pairs: int = 0
    kept_boxes: int = 0
    phrases_with_boxes: int = 0
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    dropped_pairs: Counter[str] = field(default_factory=Counter)


def select(folder: str | Path, out: str | Path, config: SelectConfig) -> Selection:
    """Write what is kept of a folder of labels as one label file.

    Raises:
        DataError: nothing is kept, or labels cannot be read.
    """
    selection = Selection()
    with atomic_write(out) as file:
        for row in read_rows(Path(folder)):
            if kept := select_boxes(row, config, selection):
                file.write(json.dumps({**row, "boxes": kept}) + "\n")
        if not selection.kept_pairs:
            raise DataError(
                f"No box is kept of {selection.boxes} boxes in {selection.pairs} pairs of {str(folder)!r} "
                f"({dict(selection.dropped_boxes)}). Try a lower --min-score and --min-best-score."
            )
    return selection


def select_boxes(row: Row, config: SelectConfig, selection: Selection) -> list[Row]:
    """The boxes of a pair that are kept, best first; none where the pair is dropped. ``selection`` counts."""
    dropped, boxes = selection.dropped_boxes, list[Row]()
    for box in sorted(row["boxes"], key=lambda box: -box["score"]):
        if problem := _problem(box, row["width"] * row["height"], config):
            dropped[problem] += 1
        else:
            boxes.append(box)
    boxes = _suppress(boxes, config.nms, dropped, across=False)
    boxes = _suppress(boxes, config.nms_across, dropped, across=True)
    boxes = _limit_per_phrase(boxes, config.max_per_phrase, dropped)
    selection.pairs += 1
    selection.boxes += len(row["boxes"])
    if not boxes:
        selection.dropped_pairs["no box kept" if row["boxes"] else "nothing found"] += 1
        return []
    if boxes[0]["score"] < config.min_best_score:
        selection.dropped_pairs["best score below min_best_score"] += 1
        dropped["in a dropped pair"] += len(boxes)
        return []
    selection.kept_pairs += 1
    selection.kept_boxes += len(boxes)
    selection.phrases_with_boxes += len({phrase for box in boxes for phrase in box["phrases"]})
    return boxes


def _problem(box: Row, image_area: int, config: SelectConfig) -> str:
    if box["score"] < config.min_score:
        return "score below min_score"
    x1, y1, x2, y2 = box["box"]
    if min(x2 - x1, y2 - y1) < config.min_box_side:
        return "side below min_box_side"
    if config.max_box_area < 1 and (x2 - x1) * (y2 - y1) > config.max_box_area * image_area:
        return "area above max_box_area"
    return ""


def _suppress(boxes: list[Row], threshold: float, dropped: Counter[str], *, across: bool) -> list[Row]:
    """Boxes, best first, without those that overlap a better one of their phrase, or ``across`` all phrases."""
    if threshold >= 1:
        return boxes
    kept: list[Row] = []
    for box in boxes:
        rivals = (better for better in kept if across or better["phrases"] == box["phrases"])
        if any(pair_iou(better["box"], box["box"]) > threshold for better in rivals):
            dropped[f"overlaps a better box of {'another' if across else 'its'} phrase"] += 1
        else:
            kept.append(box)
    return kept


def _limit_per_phrase(boxes: list[Row], limit: int, dropped: Counter[str]) -> list[Row]:
    if not limit:
        return boxes
    taken, kept = Counter[int](), []
    for box in boxes:
        if all(taken[phrase] >= limit for phrase in box["phrases"]):
            dropped["beyond max_per_phrase"] += 1
            continue
        taken.update(box["phrases"])
        kept.append(box)
    return kept
