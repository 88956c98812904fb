"""Checkpointing changes memory only; frozen parts are those that were named."""

from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded
from torch import Tensor, nn

from glip.config import HeadConfig, ModelConfig, VisionConfig
from glip.model.dyhead import DynamicBlock
from glip.model.fusion import Fusion
from glip.model.glip import GLIP
from glip.model.vision import SwinBlock
from glip.structures import Batch, ImageBatch, Prompt, TextBatch
from glip.train.loop import keep_frozen_still

BLURRED: HeadConfig = replace(SMALL.head, drop_block=0.3, fusion_dropout=0.2)
SWIN: ModelConfig = replace(SMALL, vision=replace(SMALL.vision, drop_path=0.5), head=BLURRED)
RESNET = replace(SWIN, vision=VisionConfig(kind="resnet", widths=(8, 8, 16, 16), depths=(1, 2, 1, 1), drop_path=0.5))
KINDS = pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])


def batch() -> Batch:
    """Two noise pictures and two captions, the second one shorter."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 300, (2, 9), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    prompt = Prompt.from_names(["dot"])
    rows = (torch.ones(1, 9),) * 2
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    sizes = ((64, 96), (64, 96))
    return Batch(ImageBatch(pixels, sizes, sizes), TextBatch(ids, mask, (prompt, prompt), rows))


def learn(model: GLIP) -> Tensor:
    """A forward and a backward pass; what a loss of all outputs is."""
    torch.manual_seed(3)
    outputs = model(batch())
    loss = outputs.token_logits.sigmoid().sum() + outputs.box_deltas.square().sum() + outputs.centerness.square().sum()
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@KINDS
def test_same_gradients_and_running_means_with_random_layers_on(config: ModelConfig) -> None:
    kept, again = seeded(config).train(), seeded(config).train()
    again.checkpoint_gradients(True)
    assert torch.equal(learn(kept), learn(again))
    assert torch.rand(1) == torch.rand(1, generator=_as_left_by(kept))
    theirs = gradients(again)
    assert {name for name, _ in kept.named_parameters()} >= set(theirs) == set(gradients(kept))
    assert not [name for name, grad in gradients(kept).items() if not torch.equal(grad, theirs[name])]
    means = dict(again.named_buffers())
    assert not [name for name, value in kept.named_buffers() if not torch.equal(value, means[name])]
