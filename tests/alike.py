"""Detections compared as numbers of two computations are: by partner and with a tolerance.

Another batch, another order or another processor rounds otherwise, and near ties then change places. Bit equality is
for the same program doing the same thing twice.
"""

import torch

from glip.structures import Detections


def assert_alike(first: Detections, second: Detections, *, scores: float = 1e-5, boxes: float = 1e-3) -> None:
    """Each detection of one has a partner of its label in the other, and the reverse.

    Args:
        first: some detections, at least one.
        second: the same, computed in another way.
        scores: what a score may differ.
        boxes: what a coordinate may differ, in pixels.
    """
    assert len(first) == len(second) > 0
    assert first.size == second.size
    near = (first.boxes[:, None] - second.boxes[None]).abs().amax(2) <= boxes
    close = (first.scores[:, None] - second.scores[None]).abs() <= scores
    partners = near & close & (first.labels[:, None] == second.labels[None])
    last = max(float(first.scores.min()), float(second.scores.min())) + scores  # a cap cuts through near ties
    lost = int((~partners.any(1) & (first.scores > last)).sum())
    gained = int((~partners.any(0) & (second.scores > last)).sum())
    assert not lost and not gained, f"{lost} of {len(first)} have no partner in the second, {gained} none in the first"
    ordered = torch.allclose(first.scores, second.scores, rtol=0, atol=scores)
    assert ordered, "both are sorted by score"


def identical(first: Detections, second: Detections) -> bool:
    """Whether the same program did the same thing twice: something was found, equal to the last bit."""
    names = ("boxes", "scores", "labels")
    return len(first) > 0 and all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)
