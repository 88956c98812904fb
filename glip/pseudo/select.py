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

    kept_pairs: int = 0
    kept_boxes: int = 0
    phrases_with_boxes: int = 0
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    dropped_pairs: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        """All pairs of image and caption."""
        return self.kept_pairs + self.dropped_pairs.total()

    @property
    def boxes(self) -> int:
        """All boxes."""
        return self.kept_boxes + self.dropped_boxes.total()


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
    kept, taken, dropped = list[Row](), Counter[int](), selection.dropped_boxes
    for box in _without_overlaps(row, config, dropped):
        if config.max_per_phrase and all(taken[phrase] >= config.max_per_phrase for phrase in box["phrases"]):
            dropped["beyond max_per_phrase"] += 1
        else:
            taken.update(box["phrases"])
            kept.append(box)
    if not kept:
        selection.dropped_pairs["no box kept" if row["boxes"] else "nothing found"] += 1
        return []
    if kept[0]["score"] < config.min_best_score:
        selection.dropped_pairs["best score below min_best_score"] += 1
        dropped["in a dropped pair"] += len(kept)
        return []
    selection.kept_pairs += 1
    selection.kept_boxes += len(kept)
    selection.phrases_with_boxes += len({phrase for box in kept for phrase in box["phrases"]})
    return kept


def _without_overlaps(row: Row, config: SelectConfig, dropped: Counter[str]) -> list[Row]:
    """The boxes that are confident and large enough, best first, without those that overlap a better one."""
    boxes = []
    for box in sorted(row["boxes"], key=lambda box: -box["score"]):
        if problem := _problem(box, row["width"] * row["height"], config):
            dropped[problem] += 1
        else:
            boxes.append(box)
    for whose, threshold in (("its", config.nms), ("another", config.nms_across)):
        kept: list[Row] = []
        for box in boxes if threshold < 1 else ():
            rivals = (better for better in kept if whose == "another" or better["phrases"] == box["phrases"])
            if any(pair_iou(better["box"], box["box"]) > threshold for better in rivals):
                dropped[f"overlaps a better box of {whose} phrase"] += 1
            else:
                kept.append(box)
        boxes = kept if threshold < 1 else boxes
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
