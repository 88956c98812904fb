"""Suppression: one call for all classes, as on a GPU, keeps what class by class keeps."""

import pytest
import torch

from glip.geometry.boxes import _greedy_by_class, suppress


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
