"""Suppression: one call for all classes, as on a GPU, keeps what class by class keeps."""

import pytest
import torch

from glip.geometry.boxes import _greedy_by_class, greedy_hits, iou, pair_iou, suppress


@pytest.mark.parametrize("classes", [1, 7, 1203])
def test_one_call_for_all_classes_keeps_the_same(classes: int) -> None:
    corners, sides = torch.rand(3000, 2) * 4000 - 100, torch.rand(3000, 2) * 900
    boxes, scores = torch.cat([corners, corners + sides], 1), torch.rand(3000)
    labels = torch.randint(0, classes, (3000,))
    order = scores.argsort(descending=True, stable=True)
    kept = order[_greedy_by_class(boxes[order], labels[order], 0.6)]
    apart = set(kept.tolist()) ^ set(suppress(boxes, scores, labels, 0.6).tolist())
    assert len(apart) <= 2, "but for an overlap that rounds to the other side of the threshold"
    assert classes > 1000 or len(kept) < 3000


def test_plain_numbers_have_the_same_iou() -> None:
    boxes = torch.rand(20, 4).double() + torch.tensor([0.0, 0.0, 0.9, 0.9])
    expected = iou(boxes, boxes, inclusive=False)
    ours = [[pair_iou(first, second) for second in boxes.tolist()] for first in boxes.tolist()]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected)


def test_a_ground_truth_box_is_found_once() -> None:
    truth, found = [(0, 0, 10, 10), (20, 0, 30, 10)], [(0, 0, 10, 9), (0, 0, 10, 10), (21, 0, 30, 10), (50, 0, 60, 60)]
    assert greedy_hits(found, truth, 0.5) == [True, False, True, False]
    assert greedy_hits([(0, 0, 1, 1)], [], 0.5) == [False]
