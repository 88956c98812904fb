"""Modulated deformable 3x3 convolution (Zhu et al. 2019): one function for CPU and CUDA.

CUDA uses torchvision's op, and so do exported models, whose formats know it. On a CPU that op is slow, its backward
pass above all. There the same sum is computed by ``embedding_bag``, which gathers and adds weighted rows and is fast in
both directions, and a matrix product.
"""

import torch
import torch.nn.functional as F

from glip.model.products import linear
from glip.shapes import Float, Int, Tensor

TAPS = 9
_PLACES = 512  # at once without gradients: 4.7 MB of GLIP-T


def deform_conv(
    x: Float[Tensor, "batch chan height width"],
    offset: Float[Tensor, "batch 18 h w"],
    modulation: Float[Tensor, "batch 9 h w"],
    weight: Float[Tensor, "out chan 3 3"],
    bias: Float[Tensor, " out"],
    stride: int,
) -> Float[Tensor, "batch out h w"]:
    """Convolve ``x`` at places moved by ``offset`` (pairs dy, dx for each tap) and scaled by ``modulation``."""
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        from torchvision.ops import deform_conv2d  # not at import: torchvision takes as long as torch

        offset, modulation = offset.to(x.dtype), modulation.to(x.dtype)
        return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    (batch, chan, height, width), size = x.shape, offset.shape[2:]
    rows, shares = _corners(offset, modulation, height, width, stride)
    # In the type of the weights, which is float32 under autocast.
    table = x.to(weight.dtype).flatten(2).transpose(1, 2).reshape(batch * height * width, chan)
    shares = shares.to(weight.dtype)
    matrix = weight.permute(0, 2, 3, 1).reshape(-1, TAPS * chan)
    # A few places at a time: what they read stays in the processor's cache until it is multiplied. With a backward
    # pass, in which each part would fill a gradient as large as the map, all at once. (To multiply every pixel with all
    # taps and gather the products takes as long, but keeps nine maps even if the weights are frozen.)
    at_once = torch.is_grad_enabled() or torch.compiler.is_compiling()  # a loop would compile anew for each size
    together = TAPS * (batch * size.numel() if at_once else _PLACES)
    summed = [
        linear(F.embedding_bag(part, table, mode="sum", per_sample_weights=share).view(-1, TAPS * chan), matrix)
        for part, share in zip(rows.split(together), shares.split(together), strict=True)
    ]
    whole = summed[0] if len(summed) == 1 else torch.cat(summed)
    # Channels last, with the strides that torch knows as such: otherwise the norm, the resizing and the next fusion
    # take two to six times as long.
    return (whole + bias).view(batch, *size, -1).permute(0, 3, 1, 2)


def _corners(
    offset: Tensor, modulation: Tensor, height: int, width: int, stride: int
) -> tuple[Int[Tensor, "read corner"], Float[Tensor, "read corner"]]:
    """The four pixels that each tap of each output place reads, as rows of all images' pixels, and their weights.

    A weight is the bilinear share times the modulation, zero for a pixel outside the map.
    """
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
    return torch.stack(indices, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4)


def _inside(place: Tensor, length: int, share: Tensor) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """Integer places along an axis, clamped to the map, and their shares, zero for those that were outside."""
    return place.int().clamp_(0, length - 1), share * ((place >= 0) & (place < length))
