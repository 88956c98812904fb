"""Predictions from the final maps: box offsets, centerness, and the alignment of each location with each token."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from glip.model.products import Linear
from glip.shapes import Float, Tensor

_CLAMP = 50000.0
_PROJECT_STD = 0.3
_PRIOR = 0.01  # predicted probability of every token before training (RetinaNet)


class BoxHead(nn.Module):
    """Box offsets to the anchor and centerness of each location; each level has its own scale."""

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        self.box = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for conv in (self.box, self.centerness):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(
        self, levels: Sequence[Float[Tensor, "batch chan _height _width"]]
    ) -> tuple[Float[Tensor, "batch loc 4"], Float[Tensor, "batch loc"]]:
        levels = [x.float() for x in levels]  # in float32 whatever the model computes in
        boxes = [self.box(x).flatten(2) * scale for x, scale in zip(levels, self.scales, strict=True)]
        centerness = [self.centerness(x).flatten(1) for x in levels]
        return torch.cat(boxes, 2).transpose(1, 2), torch.cat(centerness, 1)


class TokenHead(nn.Module):
    """Token logits: the dot product of each location with each projected token (paper equation 3)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project = Linear(hidden, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_text = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - _PRIOR) / _PRIOR)))
        # Wide enough that phrases differ at every location from the first step. With a Linear's default the first
        # thing learned is "something is here" for all tokens at once, and the text layers then grow alike.
        nn.init.normal_(self.project.weight, std=_PROJECT_STD)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, regions: Float[Tensor, "batch loc chan"], tokens: Float[Tensor, "batch tok hidden"]
    ) -> Float[Tensor, "batch loc tok"]:
        regions, tokens = regions.float(), F.normalize(tokens.float(), dim=-1)  # scores need more digits than bfloat16
        projected = self.project(tokens / 2) / self.log_scale.exp()
        bias = tokens @ self.bias_text + self.bias  # batch tok
        return (regions @ projected.transpose(1, 2) + bias[:, None]).clamp(-_CLAMP, _CLAMP)
