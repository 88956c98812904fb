"""Modulated deformable 3x3 convolution (Zhu et al. 2019): one function, two kernels.

On CUDA torchvision's op is used. On CPU it is slow, its backward above all, so there the same sum is written as a
matrix product and ``embedding_bag``, which gathers and adds weighted rows and is fast in both directions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from glip.shapes import Float, Int, Tensor

TAPS = 9


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
    corners = _corners(offset, modulation, x.shape[2], x.shape[3], stride)
    if stride == 1:
        return _multiply_then_gather(x, corners, weight, bias, offset.shape[2:])
    return _gather_then_multiply(x, corners, weight, bias, offset.shape[2:])


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


def _multiply_then_gather(
    x: Tensor, corners: Corners, weight: Tensor, bias: Tensor, size: tuple[int, ...]
) -> Float[Tensor, "batch out h w"]:
    """All nine taps' products at every input pixel, then for each output place the sum of its 36 weighted rows."""
    batch, chan, height, width = x.shape
    out = weight.shape[0]
    products = x.flatten(2).transpose(1, 2) @ weight.permute(1, 2, 3, 0).reshape(chan, TAPS * out)
    table = products.float().reshape(batch * height * width * TAPS, out)  # bfloat16 sums of 36 rows would drift
    image = torch.arange(batch, device=x.device)[:, None, None, None] * (height * width)
    tap = torch.arange(TAPS, device=x.device)[:, None]
    rows = ((corners.index + image) * TAPS + tap).reshape(-1, TAPS * 4)
    summed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=corners.weight.reshape(-1, TAPS * 4))
    return (summed + bias).view(batch, *size, out).permute(0, 3, 1, 2)


def _gather_then_multiply(
    x: Tensor, corners: Corners, weight: Tensor, bias: Tensor, size: tuple[int, ...]
) -> Float[Tensor, "batch out h w"]:
    """The value under each tap of each output place, then one product: cheaper where outputs are fewer than inputs."""
    batch, chan, height, width = x.shape
    table = x.float().flatten(2).transpose(1, 2).reshape(batch * height * width, chan)
    image = torch.arange(batch, device=x.device)[:, None, None, None] * (height * width)
    rows = (corners.index + image).reshape(-1, 4)
    values = F.embedding_bag(rows, table, mode="sum", per_sample_weights=corners.weight.reshape(-1, 4))
    columns = values.view(batch, -1, TAPS * chan)
    summed = columns @ weight.permute(2, 3, 1, 0).reshape(TAPS * chan, -1) + bias
    return summed.transpose(1, 2).reshape(batch, -1, *size)
