"""One square anchor per location, and boxes as offsets to anchors (release: ``anchor_generator.py``, ``BoxCoder``)."""

import math
from collections.abc import Sequence

import torch

from glip.shapes import Float, Tensor

STRIDES = (8, 16, 32, 64, 128)  # pixels between locations of P3..P7
ANCHOR_SCALE = 8  # anchor side in strides
_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_MAX_LOG_RATIO = math.log(1000.0 / 16)  # a box grows at most so much over its anchor


def level_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The (height, width) of P3..P7 of a padded image, in locations.

    Each halving of the network rounds up, and so does one division by all of them.
    """
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)


def grid_anchors(
    level_sizes: Sequence[tuple[int, int]], *, device: torch.device | str = "cpu"
) -> Float[Tensor, "loc 4"]:
    """Anchors of all levels, each level in (y, x) order: side 8 strides, centred on (stride - 1) / 2."""
    levels = []
    for (height, width), stride in zip(level_sizes, STRIDES, strict=True):
        half, centre = (ANCHOR_SCALE * stride - 1) / 2, (stride - 1) / 2
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + centre
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + centre
        y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
        levels.append(torch.stack([x - half, y - half, x + half, y + half], dim=1))
    return torch.cat(levels)


def decode(deltas: Float[Tensor, "*rest 4"], anchors: Float[Tensor, "*rest 4"]) -> Float[Tensor, "*rest 4"]:
    """Offsets -> boxes, with the release's inclusive widths."""
    widths = anchors[..., 2] - anchors[..., 0] + 1
    heights = anchors[..., 3] - anchors[..., 1] + 1
    dx, dy, dw, dh = (deltas / deltas.new_tensor(_WEIGHTS)).unbind(-1)
    x = (anchors[..., 0] + anchors[..., 2]) / 2 + dx * widths
    y = (anchors[..., 1] + anchors[..., 3]) / 2 + dy * heights
    half_width = 0.5 * (dw.clamp(max=_MAX_LOG_RATIO).exp() * widths - 1)
    half_height = 0.5 * (dh.clamp(max=_MAX_LOG_RATIO).exp() * heights - 1)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def encode(boxes: Float[Tensor, "*rest 4"], anchors: Float[Tensor, "*rest 4"]) -> Float[Tensor, "*rest 4"]:
    """Boxes -> offsets; the inverse of ``decode`` for boxes within reach of their anchor."""
    widths = anchors[..., 2] - anchors[..., 0] + 1
    heights = anchors[..., 3] - anchors[..., 1] + 1
    dx = ((boxes[..., 0] + boxes[..., 2]) - (anchors[..., 0] + anchors[..., 2])) / 2 / widths
    dy = ((boxes[..., 1] + boxes[..., 3]) - (anchors[..., 1] + anchors[..., 3])) / 2 / heights
    dw = ((boxes[..., 2] - boxes[..., 0] + 1) / widths).log()
    dh = ((boxes[..., 3] - boxes[..., 1] + 1) / heights).log()
    return torch.stack([dx, dy, dw, dh], dim=-1) * boxes.new_tensor(_WEIGHTS)
