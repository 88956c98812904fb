"""Detection in overlapping tiles of large images, which finds things that are too small once the image is resized."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Unpack

import torch

from glip.data.image import ImageInput, open_any
from glip.detector import Detector
from glip.options import DetectOptions, with_options
from glip.postprocess import merge_chunks
from glip.structures import Detections, Prompt, Size

_EDGE = 2.0  # a box that ends this near to the inner edge of a tile is taken for cut off there, in pixels


def detect_in_tiles(
    detector: Detector,
    images: Iterable[ImageInput],
    prompt: Prompt | None = None,
    *,
    tile: int,
    overlap: float = 0.2,
    **options: Unpack[DetectOptions],
) -> Iterator[Detections]:
    """Find what the prompt names in each image as a whole and in its tiles; one result for each image.

    Boxes that the inner edge of a tile cuts off are left out: the next tile has what is smaller than the overlap, the
    whole image what is larger. What is found twice is suppressed per class.

    Args:
        detector: does the work; each tile is resized to its size, as an image is.
        images: in any form that a Detector takes.
        prompt: one for all images; default: the names of the detector's task.
        tile: side of a tile in pixels; about the detector's ``config.image.min_size`` keeps the pixels as they are.
        overlap: share of a tile's side that it shares with the next one.
        **options: of ``Detector.stream``.
    """
    config = with_options(
        detector.config.inference, nms=options.get("nms"), max_detections=options.get("max_detections")
    )
    for image in images:
        opened = open_any(image)
        columns, rows = (_starts(side, tile, overlap) for side in opened.size)
        corners = [(x, y) for y in rows for x in columns] if len(columns) * len(rows) > 1 else []
        crops = (opened.crop((x, y, min(x + tile, opened.width), min(y + tile, opened.height))) for x, y in corners)
        whole, *parts = detector.stream(chain([opened], crops), prompt, **options)
        moved = [_moved(part, corner, whole.size) for part, corner in zip(parts, corners, strict=True)]
        yield merge_chunks([whole, *moved], config)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side, evenly spaced, the last one at its end."""
    count = 1 + max(0, -int(-(side - tile) // max(1, round(tile * (1 - overlap)))))
    return [round(place * (side - tile) / max(1, count - 1)) for place in range(count)]


def _moved(part: Detections, corner: tuple[int, int], size: Size) -> Detections:
    """A tile's detections in pixels of the image, without those that its inner edges cut off."""
    (left, top), (height, width) = corner, part.size
    inner = torch.tensor([left > 0, top > 0, left + width < size[1], top + height < size[0]])
    gap = torch.cat([part.boxes[:, :2], torch.tensor([width - 1, height - 1]) - part.boxes[:, 2:]], dim=1)
    whole = part.select(~((gap < _EDGE) & inner).any(1))
    return replace(whole, boxes=whole.boxes + torch.tensor([left, top, left, top]), size=size)
