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
_PLACES = 512  # at once without gradients: 4.7 MB of GLIP-T


@dataclass(frozen=True)
class Corners:
    """Where each tap of each output place reads: four corner pixels of all images' rows of pixels, and their weights.

    Weights hold the bilinear share times the modulation, zero for corners outside the map.
    """

    index: Int[Tensor, "read corner"]
    weight: Float[Tensor, "read corner"]


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
    matrix = weight.permute(2, 3, 1, 0).reshape(TAPS * chan, -1)
    # What some places read stays in the processor's cache until it is multiplied. For the backward pass, in which each
    # of these parts would fill a gradient of the whole map, all places are read at once.
    together = TAPS * (batch * size.numel() if torch.is_grad_enabled() else _PLACES)
    summed = [
        _gather(table, *part).view(-1, TAPS * chan) @ matrix
        for part in zip(corners.index.split(together), corners.weight.split(together), strict=True)
    ]
    whole = summed[0] if len(summed) == 1 else torch.cat(summed)
    return (whole + bias).view(batch, size.numel(), -1).transpose(1, 2).reshape(batch, -1, *size)


def _corners(offset: Tensor, modulation: Tensor, height: int, width: int, stride: int) -> Corners:
    # Channels last, as the convolution gives them: then nothing is copied until the four corners are stacked.
    moved, modulation = offset.permute(0, 2, 3, 1), modulation.permute(0, 2, 3, 1)  # batch row column tap
    batch, rows, columns, _ = moved.shape
    tap = torch.arange(3, device=offset.device, dtype=offset.dtype) - 1
    row = torch.arange(rows, device=offset.device, dtype=offset.dtype) * stride
    column = torch.arange(columns, device=offset.device, dtype=offset.dtype) * stride
    y = moved[..., 0::2] + (row[:, None, None] + tap.repeat_interleave(3))
    x = moved[..., 1::2] + (column[:, None] + tap.repeat(3))
    top, left = y.floor(), x.floor()  # indices are clamped as integers: a NaN must reach the outputs, not the memory
    down, right = y - top, x - left
    image = torch.arange(batch, device=offset.device, dtype=torch.int32)[:, None, None, None] * (height * width)
    over = [_inside(left, width, 1 - right), _inside(left + 1, width, right)]
    indices, weights = [], []
    for y_index, y_share in (_inside(top, height, 1 - down), _inside(top + 1, height, down)):
        start, share = y_index * width + image, y_share * modulation
        indices += [start + x_index for x_index, _ in over]
        weights += [share * x_share for _, x_share in over]
    return Corners(torch.stack(indices, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4))


def _inside(place: Tensor, length: int, share: Tensor) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """Integer places along an axis, moved to where a pixel is, and their shares, zero where none was."""
    return place.int().clamp_(0, length - 1), share * ((place >= 0) & (place < length))


def _gather(table: Tensor, rows: Tensor, shares: Tensor) -> Float[Tensor, "read chan"]:
    """What each tap of each output place reads: the weighted sum of four pixels.

    To multiply first, with the weights of all taps at every pixel, and gather the products costs the same time; but
    what it keeps for the backward pass is nine maps also where the weights are frozen.
    """
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
