"""Labels of class names as a dataset: the boxes over each class's threshold in any format, a table, and a sheet.

What is stored scores less, so that thresholds may change after the sheet was looked at, and nothing is detected again.
"""

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from glip.data.catalog import WRITERS
from glip.data.image import sample_image
from glip.data.labels import sample_of_row
from glip.data.sets import Folders, PackedSamples, Row, SampleSet, SkipCounter
from glip.errors import ImageError
from glip.lettering import TextRun, palette
from glip.pseudo.store import confident, image_folders, read_rows
from glip.shapes import Float
from glip.structures import Sample
from glip.visualize import PAPER, Cell, save_image, sheet

Form = Literal["labels", "coco", "yolo", "label-studio"]
FILES = {"labels": "labels.jsonl", "coco": "coco.json", "yolo": "yolo", "label-studio": "tasks.json"}
SHEET = "review.png"
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the kept boxes of a class, best first, where one is drawn
_CLASSES, _LEAST = 50, 16  # drawn on the sheet; pixels around a box


def write_dataset(folder: Path, thresholds: Mapping[str, float], formats: Iterable[str]) -> Row:
    """Write finished labels of class names in each format, and draw the sheet; gives what they are, for the report.

    ``thresholds`` are the lowest score of each class, in the order of the names, ``formats`` keys of ``FILES``. Files
    and folders of an earlier call are replaced.

    Raises:
        OSError: a file cannot be written.
    """
    images, names, limits = image_folders(folder), tuple(thresholds), tuple(thresholds.values())
    folders, skipped = Folders(images), SkipCounter()
    found = PackedSamples(sample_of_row(row, tuple(row["names"]), folders, skipped) for row in read_rows(folder))
    kept = PackedSamples(confident(sample, limits) for sample in found)
    for form in formats:
        shutil.rmtree(folder / FILES[form], ignore_errors=True)  # YOLO's
        lost = WRITERS[form](SampleSet(kept, names), folder / FILES[form], images)
        skipped.merge(lost)
    boxes = _scored_boxes(found)
    _draw_sheet(found, boxes, thresholds, folder / SHEET)
    classes = {}
    for label, (name, limit) in enumerate(thresholds.items()):
        own = boxes[(boxes[:, 0] == label) & (boxes[:, 1] >= limit)]
        mean = round(float(own[:, 1].mean()), 3) if len(own) else 0.0
        counts = {"images": len(np.unique(own[:, 2])), "boxes": len(own), "mean score": mean}
        classes[name] = {"threshold": limit, **counts}
    boxless = sum(not sample.box_phrases for sample in kept)
    return {"classes": classes, "images without a box": boxless, "not expressible": skipped.counts}


def _scored_boxes(samples: Sequence[Sample]) -> Float[np.ndarray, "box 4"]:
    """Class, score, number of the image and number in it of each box, the best first."""
    rows = (
        (label, score, number, box)
        for number, sample in enumerate(samples)
        for box, ((label,), score) in enumerate(zip(sample.box_phrases, sample.scores, strict=True))
    )
    table: np.ndarray = np.fromiter(rows, dtype=np.dtype((float, 4)))
    return table[np.argsort(-table[:, 1], kind="stable")]


def _draw_sheet(samples: Sequence[Sample], boxes: np.ndarray, thresholds: Mapping[str, float], path: Path) -> None:
    """A row for each class: boxes from the best to the worst that is kept, then the best that is not."""
    pages, colours = list[Image.Image](), palette(thresholds)
    for label, (name, limit) in enumerate(thresholds.items()):
        if len(pages) == _CLASSES:
            break
        own, cells = boxes[boxes[:, 0] == label], list[Cell]()
        kept = int((own[:, 1] >= limit).sum())
        places = dict.fromkeys(round(share * (kept - 1)) for share in _SHARES) if kept else {}
        for place in [*places, *range(kept, min(kept + 1, len(own)))]:
            _, score, image, box = own[place]
            said = f"{place + 1} of {kept}" if place < kept else f"left out: below {limit:.3f}"
            words = [TextRun(f"{name} {score:.3f}", colours[label]), TextRun(f"   {said}", None)]
            cells.append(Cell(_zoomed(samples[int(image)], int(box)), [colours[label]], [""], words))
        pages += [sheet(cells, columns=len(_SHARES) + 1)] if cells else []
    if not pages:
        return
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), PAPER)
    for number, page in enumerate(pages):
        whole.paste(page, (0, sum(above.height for above in pages[:number])))
    save_image(whole, path)


def _zoomed(sample: Sample, box: int) -> Sample:
    """A sample of one box and the image around it; the whole image where it cannot be read, which the sheet says."""
    only = sample.keep([box])
    with suppress(ImageError):
        image = sample_image(sample)
        left, top, right, bottom = only.boxes[0].tolist()
        margin = max((right - left) / 2, (bottom - top) / 2, _LEAST)
        corner = max(0, int(left - margin)), max(0, int(top - margin))
        end = min(image.width, math.ceil(right + margin)), min(image.height, math.ceil(bottom + margin))
        return replace(only, image=image.crop((*corner, *end)), boxes=only.boxes - torch.tensor([*corner, *corner]))
    return only
