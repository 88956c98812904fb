"""The block of the dynamic head (Dai et al. 2021): deformable convolutions across levels, then a dynamic ReLU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from glip.model.deform import TAPS, deform_conv
from glip.model.products import Linear
from glip.shapes import Float, Tensor

Map = Float[Tensor, "batch chan _height _width"]  # levels differ in size


class DeformableBranch(nn.Module):
    """A deformable convolution and its group norm; the block computes the offsets."""

    def __init__(self, channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Map, offset: Tensor, modulation: Tensor) -> Map:
        moved = deform_conv(x, offset, modulation, self.weight, self.bias, self.stride)
        return self.norm(moved)


class DynamicReLU(nn.Module):
    """max(x a1 + b1, x a2 + b2) per channel, with coefficients computed from the image (Chen et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = Linear(channels, channels // 4)
        self.expand = Linear(channels // 4, 4 * channels)

    def forward(self, x: Map) -> Map:
        y = self.expand(F.relu(self.squeeze(x.mean((2, 3)))))
        a1, b1, a2, b2 = (F.relu6(y + 3) / 6 - 0.5)[:, :, None, None].chunk(4, dim=1)
        # max(p, q) = q + relu(p - q): the backward pass keeps one map fewer and takes a third of the time.
        above = torch.addcmul(b1 - b2, x, 2 * (a1 - a2) + 1)
        return torch.addcmul(b2, x, 2 * a2) + above.relu_()


class DynamicBlock(nn.Module):
    """Each level gathers from itself, the finer and the coarser level, at offsets predicted from its own map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.same = DeformableBranch(channels, groups, stride=1)
        self.finer = DeformableBranch(channels, groups, stride=2)
        self.coarser = DeformableBranch(channels, groups, stride=1)
        self.importance = nn.Conv2d(channels, 1, 1)
        self.relu = DynamicReLU(channels)
        for conv in (self.offset, self.importance):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Map]) -> tuple[Map, ...]:
        return tuple(self._level(levels, index) for index in range(len(levels)))

    def _level(self, levels: Sequence[Map], index: int) -> Map:
        x = levels[index]
        with torch.autocast(x.device.type, enabled=False):  # places need more digits than bfloat16 has
            raw = self.offset(x.float())
        offset, modulation = raw[:, : 2 * TAPS], raw[:, 2 * TAPS :].sigmoid()
        branches = [self.same(x, offset, modulation)]
        if index > 0:
            branches.append(self.finer(levels[index - 1], offset, modulation))
        if index < len(levels) - 1:
            coarse = levels[index + 1]
            size = coarse.shape[2:]
            moved = self.coarser(coarse, _reinterpret_at_size(offset, size), _reinterpret_at_size(modulation, size))
            branches.append(F.interpolate(moved, size=x.shape[2:], mode="bilinear", align_corners=True))
        # Summed, not stacked: a stack copies every branch and loses the channels-last layout, which the convolutions
        # give and the next fusion reads.
        mixed = branches[0] * (self._weight(branches[0]) / len(branches))
        for branch in branches[1:]:
            mixed = mixed + branch * (self._weight(branch) / len(branches))
        return self.relu(mixed)

    def _weight(self, branch: Map) -> Float[Tensor, "batch 1 1 1"]:
        return F.relu6(F.relu(self.importance(branch.mean((2, 3), keepdim=True))) + 3) / 6


def _reinterpret_at_size(maps: Map, size: torch.Size) -> Map:
    """The first floats of each image's maps, read as maps of a smaller size.

    The release applies a level's offsets to the coarser level without resizing them; its CUDA kernel addresses the
    buffer in the output's layout. The official weights were trained with it (docs/parity.md, quirk 1).
    """
    length = size[0] * size[1]
    channels = maps.shape[1]
    return maps.flatten(1)[:, : channels * length].view(-1, channels, *size)
