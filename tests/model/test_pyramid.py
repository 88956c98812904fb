"""The feature pyramid under autocast: its tiniest maps learn what they learn in float32."""

import torch

from glip.model.vision import FeaturePyramid
from glip.shapes import Tensor


def gradients(pyramid: FeaturePyramid, *, autocast: bool) -> list[Tensor]:
    """Of P6's and P7's weights, for an image of 64 pixels, whose P6 is a single pixel."""
    maps = [torch.randn(2, 8, side, side, generator=torch.Generator().manual_seed(side)) for side in (8, 4, 2)]
    pyramid.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        levels = pyramid(maps)
    assert levels[-1].shape[-2:] == (1, 1)
    sum(level.float().square().sum() for level in levels).backward()
    return [conv.weight.grad.clone() for conv in (pyramid.p6, pyramid.p7)]


def test_one_pixel_learns_under_bfloat16():
    """On a CPU the gradient of a bfloat16 convolution over one pixel is whatever lay in memory (torch 2.15)."""
    pyramid = FeaturePyramid((8, 8, 8), 64, drop_block=0.0)
    junk = [torch.full((64 * 64 * 9,), 1e30) for _ in range(20)]  # what a freed block may hold
    del junk
    for exact, mixed in zip(gradients(pyramid, autocast=False), gradients(pyramid, autocast=True), strict=True):
        assert (exact - mixed).abs().max() < 0.05 * exact.abs().max()
