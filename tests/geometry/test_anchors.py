"""Level sizes are those of the network, so that assignment can be done before it runs."""

from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded

from glip.config import VisionConfig
from glip.geometry.anchors import grid_anchors, level_sizes

RESNET = replace(SMALL, vision=VisionConfig(kind="resnet", widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), drop_path=0.0))


@pytest.mark.parametrize("config", [SMALL, RESNET], ids=["swin", "resnet"])
@pytest.mark.parametrize("size", [(32, 64), (96, 160), (224, 32), (50, 77), (33, 129)])
def test_sizes_are_those_of_the_pyramid(config, size):
    model = seeded(config)
    with torch.no_grad():
        levels = model.encode_image(torch.zeros(1, 3, *size))
    assert level_sizes(*size) == tuple((level.shape[2], level.shape[3]) for level in levels)


def test_a_whole_image_has_so_many_anchors():
    sizes = level_sizes(800, 1088)
    assert sizes == ((100, 136), (50, 68), (25, 34), (13, 17), (7, 9))
    assert len(grid_anchors(sizes)) == sum(height * width for height, width in sizes)
