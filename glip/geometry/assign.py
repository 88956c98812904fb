"""ATSS: which anchors learn which box (Zhang et al. 2020, arXiv 1912.02424, algorithm 1)."""

from collections.abc import Sequence

import torch

from glip.geometry.boxes import iou
from glip.shapes import Float, Int, Tensor

BACKGROUND = -1
_TOP_K = 9  # candidates of each level
_INSIDE = 0.01  # pixels by which an anchor's centre must lie inside the box


def assign(
    anchors: Float[Tensor, "loc 4"], boxes: Float[Tensor, "box 4"], level_lengths: Sequence[int]
) -> Int[Tensor, " loc"]:
    """For each anchor the box it learns, or ``BACKGROUND``.

    Per level the nine anchors nearest to a box's centre are candidates; those with an overlap of at least mean +
    standard deviation over all candidates, and with their centre inside the box, are positive. An anchor claimed by
    several boxes goes to the one it overlaps most.
    """
    background = torch.full((len(anchors),), BACKGROUND, dtype=torch.long, device=anchors.device)
    if len(boxes) == 0:
        return background
    overlaps = iou(anchors, boxes, inclusive=True)  # loc box
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # squared in the release's order of operations, so that ties fall alike
    distances = (centres[:, None, :] - box_centres[None, :, :]).pow(2).sum(-1).sqrt()
    candidates = _nearest(distances, level_lengths)  # candidate box
    candidate_overlaps = overlaps.gather(0, candidates)
    threshold = candidate_overlaps.mean(0) + candidate_overlaps.std(0)
    chosen = candidate_overlaps >= threshold
    x, y = centres[candidates].unbind(-1)  # candidate box
    sides = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], dim=-1)
    chosen &= sides.amin(-1) > _INSIDE
    claims = torch.full_like(overlaps, -torch.inf)
    column = torch.arange(len(boxes), device=boxes.device).expand_as(candidates)
    claims[candidates[chosen], column[chosen]] = candidate_overlaps[chosen]
    best, winner = claims.max(dim=1)
    return torch.where(best == -torch.inf, background, winner)


def _nearest(distances: Float[Tensor, "loc box"], level_lengths: Sequence[int]) -> Int[Tensor, "candidate box"]:
    start, found = 0, []
    for level in distances.split(list(level_lengths)):
        found.append(level.topk(min(_TOP_K, len(level)), dim=0, largest=False).indices + start)
        start += len(level)
    return torch.cat(found)
