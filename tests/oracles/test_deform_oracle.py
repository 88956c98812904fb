"""The CPU kernel of the deformable convolution against torchvision's op."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from glip.model.deform import deform_conv

SIZES = [(1, 1), (5, 8), (7, 3), (13, 11)]


def inputs(size: tuple[int, int], stride: int, spread: float) -> list[Tensor]:
    """Image, offsets, modulation, weight, bias."""
    torch.manual_seed(0)
    height, width = size
    rows, columns = -(-height // stride), -(-width // stride)
    shapes = [(2, 4, height, width), (2, 18, rows, columns), (2, 9, rows, columns), (5, 4, 3, 3), (5,)]
    values = [torch.randn(shape) for shape in shapes]
    values[1] *= spread
    return [value.requires_grad_() for value in values]


@pytest.mark.parametrize("stride", [1, 2])
def test_many_places_without_gradients(stride: int) -> None:
    """More than are read at once; the last part is smaller."""
    values = inputs((31, 37), stride, 3.0)
    with torch.no_grad():
        parts = deform_conv(*values, stride)
    torch.testing.assert_close(parts, deform_conv(*values, stride).detach(), rtol=1e-5, atol=1e-5)
    assert parts.shape[2:].numel() * 2 > 256


def test_frozen_weights_keep_no_products() -> None:
    """Tensors nine times the size of the map are kept for the backward pass only if the weights learn."""
    kept: list[int] = []
    x, offset, modulation, weight, bias = inputs((13, 11), 1, 0.3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        deform_conv(x, offset, modulation, weight.detach(), bias.detach(), 1)
        frozen, products = kept.copy(), 2 * 13 * 11 * 9 * 4
        kept.clear()
        deform_conv(x, offset, modulation, weight, bias, 1)
    assert frozen.count(products) < kept.count(products)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spread", [0.3, 3.0, 100.0], ids=["near", "across", "far outside"])
def test_output_and_gradients_are_torchvisions(size: tuple[int, int], stride: int, spread: float) -> None:
    x, offset, modulation, weight, bias = values = inputs(size, stride, spread)
    ours = deform_conv(x, offset, modulation, weight, bias, stride)
    oracle = deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(oracle)
    found = torch.autograd.grad((ours * direction).sum(), values)
    expected = torch.autograd.grad((oracle * direction).sum(), values)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
