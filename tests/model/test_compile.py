"""torch.compile sees the image encoder, the tower and the heads as one graph each: nothing falls back to Python."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small import ROOT, SMALL, seeded

from glip.config import ModelConfig, VisionConfig
from glip.structures import TextFeatures

SWIN: ModelConfig = replace(
    SMALL, vision=replace(SMALL.vision, depths=(1, 2, 1, 1)), head=replace(SMALL.head, blocks=1)
)
RESNET = replace(SWIN, vision=VisionConfig(kind="resnet", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path=0.2))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Compiled code of other tests does not count."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.unchecked
@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_the_image_encoder_is_one_graph(config: ModelConfig) -> None:
    """In training, random layers on."""
    pixels = torch.randn(1, 3, 64, 64)
    plain, compiled = seeded(config).train(), seeded(config).train()
    encode = torch.compile(compiled.encode_image, fullgraph=True, backend="eager")
    torch.manual_seed(2)
    expected = plain.encode_image(pixels)
    torch.manual_seed(2)
    for found, wanted in zip(encode(pixels), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_tower_and_heads_are_one_graph() -> None:
    """In a process of its own: torch.compile does not see through the checker of shapes."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=unchecked_environment())
    assert done.returncode == 0, done.stderr[-2000:]


def unchecked_environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def check_tower_and_heads() -> None:
    model = seeded(SWIN).train()
    levels = model.encode_image(torch.randn(1, 3, 64, 64))
    text = TextFeatures(torch.randn(1, 5, SWIN.language.hidden), torch.arange(5)[None] < 4)
    ground = torch.compile(model.fuse_and_predict, fullgraph=True, backend="eager")
    torch.manual_seed(2)
    expected = model.fuse_and_predict(levels, text)
    torch.manual_seed(2)
    found = ground(levels, text)
    torch.testing.assert_close(found.token_logits, expected.token_logits)
    torch.testing.assert_close(found.box_deltas, expected.box_deltas)


if __name__ == "__main__":
    check_tower_and_heads()
