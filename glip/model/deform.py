"""Modulated deformable 3x3 convolution (Zhu et al. 2019): one function for CPU and CUDA.

On CUDA torchvision's op is used. On CPU it is slow, its backward above all, so there the same sum is written as
``embedding_bag``, which gathers and adds weighted rows and is fast in both directions, and a matrix product.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from glip.shapes import Float, Int, Tensor

TAPS = 9
_PLACES = 256  # at once without gradients: 2.4 MB of GLIP-T


@dataclass(frozen=True)
class Corners:
    """Where each tap of each output place reads: four corner pixels (indices into y * width + x) and their weights.

    Weights hold the bilinear share times the modulation, zero for corners outside the map.
    """

    index: Int[Tensor, "batch place tap corner"]
    weight: Float[Tensor, "batch place tap corner"]


def deform_conv(
    x: Float[Tensor, "batch chan height width"],
    offset: Float[Tensor, "batch 18 h w"],
    modulation: Float[Tensor, "batch 9 h w"],
    weight: Float[Tensor, "out chan 3 3"],
    bias: Float[Tensor, " out"],
    stride: int,
) -> Float[Tensor, "batch out h w"]:
    """Convolve ``x`` at places moved by ``offset`` (pairs dy, dx per tap) and scaled by ``modulation``."""
    if x.device.type != "cpu":
        return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    (batch, chan, height, width), size = x.shape, offset.shape[2:]
    corners = _corners(offset, modulation, height, width, stride)
    table = x.float().flatten(2).transpose(1, 2).reshape(batch * height * width, chan)  # float32 whatever x is
    image = torch.arange(batch, device=x.device)[:, None, None, None] * (height * width)
    rows, shares = (corners.index + image).reshape(-1, 4), corners.weight.reshape(-1, 4)
    matrix = weight.permute(2, 3, 1, 0).reshape(TAPS * chan, -1)
    # What some places read stays in the processor's cache until it is multiplied. For the backward pass, in which each
    # of these parts would fill a gradient of the whole map, all places are read at once.
    together = TAPS * (batch * size.numel() if torch.is_grad_enabled() else _PLACES)
    summed = [
        _gather(table, *part).view(-1, TAPS * chan) @ matrix
        for part in zip(rows.split(together), shares.split(together), strict=True)
    ]
    return (torch.cat(summed) + bias).view(batch, size.numel(), -1).transpose(1, 2).reshape(batch, -1, *size)


def _corners(offset: Tensor, modulation: Tensor, height: int, width: int, stride: int) -> Corners:
    batch, _, rows, columns = offset.shape
    dy, dx = offset.view(batch, TAPS, 2, rows, columns).unbind(2)  # batch tap row column
    tap = torch.arange(3, device=offset.device, dtype=offset.dtype) - 1
    row = torch.arange(rows, device=offset.device, dtype=offset.dtype) * stride
    column = torch.arange(columns, device=offset.device, dtype=offset.dtype) * stride
    y = dy + tap.repeat_interleave(3)[:, None, None] + row[:, None]
    x = dx + tap.repeat(3)[:, None, None] + column
    top, left = y.floor(), x.floor()  # indices are clamped as integers: a NaN must reach the outputs, not the memory
    down, right = y - top, x - left
    indices, weights = [], []
    for y_corner, y_share in ((top, 1 - down), (top + 1, down)):
        y_share = y_share * modulation * ((y_corner >= 0) & (y_corner < height))
        y_index = y_corner.long().clamp(0, height - 1) * width
        for x_corner, x_share in ((left, 1 - right), (left + 1, right)):
            weights.append(y_share * x_share * ((x_corner >= 0) & (x_corner < width)))
            indices.append(y_index + x_corner.long().clamp(0, width - 1))
    # batch tap row column corner -> batch place tap corner
    index = torch.stack(indices, -1).flatten(2, 3).transpose(1, 2)
    share = torch.stack(weights, -1).flatten(2, 3).transpose(1, 2)
    return Corners(index, share)


def _gather(table: Tensor, rows: Tensor, shares: Tensor) -> Float[Tensor, "place*tap chan"]:
    """What each tap of each output place reads: the weighted sum of four pixels.

    To multiply first, with the weights of all taps at every pixel, and gather the products costs the same time; but
    what it keeps for the backward pass is nine maps also where the weights are frozen.
    """
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
