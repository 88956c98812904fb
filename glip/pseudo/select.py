"""Which of a teacher's boxes to believe: thresholds and clean-up over stored scores, a matter of seconds.

What comes out is an ordinary label file, so a student is trained on it like on anything else.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glip.errors import DataError
from glip.files import atomic_write
from glip.geometry.boxes import pair_iou
from glip.pseudo.store import Row, read_rows


@dataclass(frozen=True, kw_only=True)
class SelectRules:
    """Which boxes are kept, in this order.

    Args:
        box: lowest score of a box; GLIP 0.5, OWL-ST 0.1, GRIT 0.65.
        min_side: least side of a box in pixels.
        max_area: greatest share of the image that a box covers; 1: off.
        nms: overlap (IoU) over which the lower-scored of two boxes of one phrase goes; 1: off, as in GLIP.
        nms_across: the same among all phrases of a caption; 1: off. GRIT: 0.5.
        per_phrase: boxes of a phrase at most, the best; 0: no limit.
        image: score that the best box of a caption must reach, else the pair goes; OWL-ST 0.3.

    Raises:
        ValueError: a value that makes no sense.
    """

    box: float = 0.5
    min_side: float = 1.0
    max_area: float = 1.0
    nms: float = 1.0
    nms_across: float = 1.0
    per_phrase: int = 0
    image: float = 0.5

    def __post_init__(self) -> None:
        for name in ("box", "max_area", "nms", "nms_across", "image"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}: got {getattr(self, name)}: give a number in 0..1")
        for name in ("min_side", "per_phrase"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DataError(f"{name}: got {getattr(self, name)}: give a number from 0 on")


@dataclass
class Selection:
    """What a selection kept, and what it dropped by reason; ``scores`` are of the kept boxes."""

    pairs: int = 0
    boxes: int = 0
    kept_pairs: int = 0
    kept_boxes: int = 0
    phrases: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    pairs_dropped: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For json, without the list of scores."""
        return {
            "pairs": self.pairs,
            "boxes": self.boxes,
            "kept pairs": self.kept_pairs,
            "kept boxes": self.kept_boxes,
            "phrases with boxes": self.phrases,
            "boxes dropped": dict(self.dropped),
            "pairs dropped": dict(self.pairs_dropped),
        }


def select(folder: str | Path, out: str | Path, rules: SelectRules) -> Selection:
    """Write what is kept of a folder of labels as one label file, whole or not at all.

    Raises:
        ValueError: nothing is kept; the numbers say why.
    """
    selection = Selection()
    with atomic_write(Path(out)) as file:
        for row in selected(read_rows(folder), rules, selection):
            file.write(json.dumps(row) + "\n")
        if not selection.kept_pairs:
            raise DataError(
                f"{str(folder)!r}: none of {selection.boxes} boxes of {selection.pairs} pairs is kept "
                f"({dict(selection.dropped) or 'it has none'}): lower --box and --image"
            )
    return selection


def selected(rows: Iterable[Row], rules: SelectRules, selection: Selection) -> Iterator[Row]:
    """The rows that are kept, with the boxes that are kept; ``selection`` counts."""
    for row in rows:
        boxes = row["boxes"]
        selection.pairs += 1
        selection.boxes += len(boxes)
        kept = _kept(row, rules, selection.dropped)
        if not boxes or not kept:
            selection.pairs_dropped["nothing found" if not boxes else "no box kept"] += 1
            continue
        if max(box["score"] for box in kept) < rules.image:
            selection.pairs_dropped["best score below image"] += 1
            selection.dropped["of a pair that goes"] += len(kept)
            continue
        selection.kept_pairs += 1
        selection.kept_boxes += len(kept)
        selection.phrases += len({phrase for box in kept for phrase in box["phrases"]})
        selection.scores += [box["score"] for box in kept]
        yield {**row, "boxes": kept}


def _kept(row: Row, rules: SelectRules, dropped: Counter[str]) -> list[Row]:
    area = row["width"] * row["height"]
    sure = [box for box in row["boxes"] if box["score"] >= rules.box]
    dropped["score below box"] += len(row["boxes"]) - len(sure)
    fitting = []
    for box in sure:
        x1, y1, x2, y2 = box["box"]
        if min(x2 - x1, y2 - y1) < rules.min_side:
            dropped["too small"] += 1
        elif rules.max_area < 1 and (x2 - x1) * (y2 - y1) > rules.max_area * area:
            dropped["almost the whole image"] += 1
        else:
            fitting.append(box)
    fitting.sort(key=lambda box: -box["score"])
    own = _apart(fitting, rules.nms, dropped, "over another of its phrase", across=False)
    all_apart = _apart(own, rules.nms_across, dropped, "over one of another phrase", across=True)
    return _few(all_apart, rules.per_phrase, dropped)


def _apart(boxes: list[Row], limit: float, dropped: Counter[str], reason: str, *, across: bool) -> list[Row]:
    """Boxes, best first, without those that overlap a better one."""
    if limit >= 1 or len(boxes) < 2:
        return boxes
    kept: list[Row] = []
    for box in boxes:
        rivals = (other for other in kept if across or other["phrases"] == box["phrases"])
        if any(pair_iou(other["box"], box["box"]) > limit for other in rivals):
            dropped[reason] += 1
        else:
            kept.append(box)
    return kept


def _few(boxes: list[Row], limit: int, dropped: Counter[str]) -> list[Row]:
    if not limit:
        return boxes
    taken, kept = defaultdict[int, int](int), []
    for box in boxes:
        if all(taken[phrase] >= limit for phrase in box["phrases"]):
            dropped["beyond the best of its phrase"] += 1
            continue
        for phrase in box["phrases"]:
            taken[phrase] += 1
        kept.append(box)
    return kept
