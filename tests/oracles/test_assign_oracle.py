"""ATSS against the algorithm of its paper, one box and one anchor at a time."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from glip.geometry.anchors import grid_anchors
from glip.geometry.assign import BACKGROUND, assign

LEVELS = {
    "square": ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)),
    "wide": ((12, 25), (6, 13), (3, 7), (2, 4), (1, 2)),
}


def random_boxes(count: int, seed: int, height: int, width: int) -> Tensor:
    """Boxes from a few pixels to the whole image, some of them twice nearly the same."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    half = torch.exp(torch.rand(count, 2, generator=generator) * 4) * 2
    boxes = torch.cat([centre - half, centre + half], dim=1)
    return torch.cat([boxes, boxes[:2] + torch.rand(2, 4, generator=generator) * 3])


def assign_by_hand(anchors: list[list[float]], boxes: list[list[float]], lengths: list[int]) -> list[int]:
    """Zhang et al. 2020, algorithm 1: lines 3-6 the candidates, 7-10 the threshold, 11-15 the positives."""
    owner, best = [BACKGROUND] * len(anchors), [-1.0] * len(anchors)
    for number, box in enumerate(boxes):
        candidates, start = [], 0
        for length in lengths:
            level = sorted(range(start, start + length), key=lambda index: distance(anchors[index], box))
            candidates += level[:9]
            start += length
        overlaps = [overlap(anchors[index], box) for index in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for index, value in zip(candidates, overlaps, strict=True):
            if value >= threshold and inside(anchors[index], box) and value > best[index]:
                owner[index], best[index] = number, value
    return owner


def centre(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def distance(anchor: list[float], box: list[float]) -> float:
    return math.dist(centre(anchor), centre(box))


def inside(anchor: list[float], box: list[float]) -> bool:
    x, y = centre(anchor)
    return min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01


def overlap(one: list[float], other: list[float]) -> float:
    """IoU with the last pixel counted."""
    shared = max(0.0, min(one[2], other[2]) - max(one[0], other[0]) + 1)
    shared *= max(0.0, min(one[3], other[3]) - max(one[1], other[1]) + 1)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other))
    return shared / (areas - shared)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", LEVELS)
def test_assignment_is_the_papers(levels: str, seed: int) -> None:
    sizes = LEVELS[levels]
    anchors = grid_anchors(sizes)
    lengths = [height * width for height, width in sizes]
    boxes = random_boxes(8, seed, sizes[0][0] * 8, sizes[0][1] * 8)
    found = assign(anchors, boxes, lengths)
    assert found.tolist() == assign_by_hand(anchors.tolist(), boxes.tolist(), lengths)
    assert (found != BACKGROUND).any()


def test_no_box_is_all_background() -> None:
    sizes = LEVELS["square"]
    found = assign(grid_anchors(sizes), torch.zeros(0, 4), [height * width for height, width in sizes])
    assert (found == BACKGROUND).all()
