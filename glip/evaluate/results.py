"""Results of a set: as columns in memory, and in COCO's results format on disk.

Rows of a file are checked one by one: what cannot be scored is skipped and counted, never scored as something else.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glip.data.coco import is_number
from glip.data.records import is_id
from glip.data.sets import Row, SkipCounter
from glip.errors import DataError
from glip.files import atomic_write, read_json
from glip.shapes import Float, Int
from glip.structures import Detections

UNKNOWN = -1
_PIECE = 100_000  # rows that are Python objects at once


@dataclass(frozen=True)
class Results:
    """Detections of many images, in the order of their file (which decides between equal scores).

    Args:
        images: index of each detection's image among the images of the ground truth.
        categories: likewise of its category; ``UNKNOWN`` for one that the ground truth does not have.
        boxes: x, y, width, height in pixels.
        scores: any finite numbers, higher is more certain.
    """

    images: Int[np.ndarray, " det"]
    categories: Int[np.ndarray, " det"]
    boxes: Float[np.ndarray, "det 4"]
    scores: Float[np.ndarray, " det"]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, chosen: np.ndarray) -> "Results":
        """Some of the detections, by index or by mask."""
        return Results(self.images[chosen], self.categories[chosen], self.boxes[chosen], self.scores[chosen])

    def rows(self) -> Iterator[tuple[int, int, list[float], float]]:
        """Image, category, box and score of each detection as plain numbers."""
        for start in range(0, len(self), _PIECE):
            part = self.select(np.arange(start, min(start + _PIECE, len(self))))
            columns = (part.images, part.categories, part.boxes, part.scores)
            yield from zip(*(column.tolist() for column in columns), strict=True)


def results_of(found: Detections, image: int, labels: Sequence[int], *, inclusive: bool = False) -> Results:
    """The detections of one image as columns, in their order.

    Args:
        found: boxes in pixels of the original image.
        image: its index among the images of the ground truth.
        labels: for each phrase of the prompt the index of its category, or ``UNKNOWN``.
        inclusive: count the last pixel: width = x2 - x1 + 1, as the release does for COCO (and not for LVIS).
    """
    boxes = found.boxes.numpy(force=True).astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2] + (1.0 if inclusive else 0.0)
    return Results(
        np.full(len(found), image, dtype=np.int64),
        np.array(labels, dtype=np.int64)[found.labels.numpy(force=True)],
        np.concatenate([boxes[:, :2], sizes], axis=1),
        found.scores.numpy(force=True).astype(np.float64),
    )


def concatenate(parts: Sequence[Results]) -> Results:
    """Results one after the other."""
    listed = [Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0)), *parts]
    columns = ("images", "categories", "boxes", "scores")
    return Results(*(np.concatenate([getattr(part, column) for part in listed]) for column in columns))


def read_results(
    path: str | Path, images: Sequence[int | str], categories: Sequence[int | str], tally: SkipCounter
) -> Results:
    """Read a results file in COCO's format: a list of {image_id, category_id, bbox: [x, y, width, height], score}.

    Rows of unknown images or without a usable box and score are skipped and counted. Rows of unknown categories are
    counted and stay, as ``UNKNOWN``: in LVIS they count among an image's 300.

    Args:
        path: the file.
        images: ids of the ground truth's images.
        categories: ids of its categories.
        tally: counts what is skipped.

    Raises:
        FileNotFoundError: no such file.
        DataError: not JSON, or not one row is a result for these images and categories.
    """
    place, label = ({number: index for index, number in enumerate(ids)} for ids in (images, categories))
    where, labels, boxes, scores = array("q"), array("q"), array("d"), array("d")

    def take(row: Row) -> str | Row:
        """Take a row in, 56 bytes; gives why it is skipped or odd, "" if it is neither, or itself if it is no result.

        It runs as each row closes, so that millions of records are never in memory at once.
        """
        if "image_id" not in row and "score" not in row:
            return row
        image, category, box, score = map(row.get, ("image_id", "category_id", "bbox", "score"))
        if not is_id(image) or image not in place:
            return "result of an unknown image"
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0):
            return "result with a malformed box"
        if not is_number(score):
            return "result with a score that is no number"
        where.append(place[image])
        labels.append(label.get(category, UNKNOWN) if is_id(category) else UNKNOWN)
        boxes.extend(box)
        scores.append(score)
        return "result of an unknown category" if labels[-1] == UNKNOWN else ""

    listed = read_json(path, object_hook=take)
    for number, reason in enumerate(listed if isinstance(listed, list) else ()):
        if reason != "":
            tally.add(reason if isinstance(reason, str) else "result that is no record", f"row {number}")
    if all(number == UNKNOWN for number in labels):
        raise DataError(
            f"{path}: not one result in it can be scored ({tally or 'it lists none'}): give a JSON list of {{image_id, "
            f"category_id, bbox: [x, y, width, height], score}}; the set's image ids are such as "
            f"{', '.join(map(repr, images[:2]))}, its category ids such as {', '.join(map(repr, categories[:2]))}"
        )
    indices = [np.array(column, dtype=np.int64) for column in (where, labels)]
    return Results(indices[0], indices[1], np.array(boxes).reshape(-1, 4), np.array(scores))


def write_results(path: Path, results: Results, images: Sequence[int | str], categories: Sequence[int | str]) -> None:
    """Write results in COCO's format, one row per line; those of unknown categories are left out."""
    known, before = results.select(results.categories != UNKNOWN), "[\n"
    with atomic_write(path) as file:
        for image, category, box, score in known.rows():
            row = {"image_id": images[image], "category_id": categories[category], "bbox": box, "score": score}
            file.write(before + json.dumps(row))
            before = ",\n"
        file.write("\n]\n" if len(known) else "[]\n")
