"""torch.compile sees the image encoder, the tower and the heads as one graph each: nothing falls back to Python."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded

from glip.config import ModelConfig, VisionConfig
from glip.structures import TextFeatures

RESNET = replace(SMALL, vision=VisionConfig(kind="resnet", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path=0.2))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Compiled code of other tests does not count."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("config", [SMALL, RESNET], ids=["swin", "resnet"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_one_graph(config: ModelConfig, training: bool) -> None:
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 64, 64)
    text = TextFeatures(torch.randn(1, 5, config.language.hidden), torch.arange(5)[None] < 4)
    plain, compiled = seeded(config).train(training), seeded(config).train(training)
    encode = torch.compile(compiled.encode_image, fullgraph=True, backend="eager")
    ground = torch.compile(compiled.ground, fullgraph=True, backend="eager")
    torch.manual_seed(2)
    expected = plain.ground(plain.encode_image(pixels), text)
    torch.manual_seed(2)
    found = ground(encode(pixels), text)
    torch.testing.assert_close(found.token_logits, expected.token_logits)
    torch.testing.assert_close(found.box_deltas, expected.box_deltas)
