"""Gradient checkpointing, freezing and mixed precision: what each changes, and what it leaves alone."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded
from torch import Tensor, nn

from glip.config import ModelConfig, VisionConfig
from glip.errors import ConfigError
from glip.model.glip import GLIP
from glip.model.vision import BasicBlock, FeaturePyramid, SwinBlock
from glip.structures import Batch, ImageBatch, Prompt, TextBatch
from glip.train.step import frozen_to_eval

BLURRED = replace(SMALL.head, drop_block=0.3, fusion_dropout=0.2)
SWIN: ModelConfig = replace(SMALL, vision=replace(SMALL.vision, drop_path=0.5), head=BLURRED)
RESNET = replace(SWIN, vision=VisionConfig(kind="resnet", widths=(8, 8, 16, 16), depths=(1, 2, 1, 1), drop_path=0.5))
KINDS = pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
STEM = {"swin": ("vision.patch.", "vision.patch_norm."), "resnet": ("vision.body.conv1.", "vision.body.bn1.")}
STAGES = {
    "swin": [(f"vision.stages.{index}.blocks.", f"vision.stages.{index + 1}.merge.") for index in range(4)],
    "resnet": [(f"vision.body.layer{index}.",) for index in range(1, 5)],
}


def batch() -> Batch:
    """Two noise images and two captions, the second one shorter."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    ids = torch.randint(1, 300, (2, 9), generator=generator)
    prompt, sizes = Prompt.from_names(["dot"]), ((64, 96), (64, 96))
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    return Batch(ImageBatch(pixels, sizes, sizes), TextBatch(ids, mask, (torch.ones(1, 9),) * 2, (prompt, prompt)))


def learn(model: GLIP) -> Tensor:
    """The loss of a forward and a backward pass from a fixed random state; every output moves it."""
    torch.manual_seed(3)
    outputs = model(batch())
    loss = outputs.token_logits.sigmoid().mean() + outputs.box_deltas.square().mean() + outputs.centerness.exp().mean()
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


def unequal(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


# ---- gradient checkpointing


@KINDS
@pytest.mark.parametrize(("frozen", "mixed"), [(0, False), (2, False), (0, True)])
def test_gradients_and_running_means_are_bit_identical(config: ModelConfig, frozen: int, mixed: bool) -> None:
    """Drop path, DropBlock, both dropouts and batch norm are on: random numbers and means must be the same."""
    kept, again = seeded(config).train(), seeded(config).train()
    again.checkpoint_gradients(True)
    buffers = dict(again.named_buffers())
    states = []
    for model in (kept, again):
        model.freeze(stages=frozen)
        frozen_to_eval(model)
        with torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext():
            states.append((learn(model), learn(model), torch.get_rng_state()))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert not unequal(gradients(kept), gradients(again))
    assert not unequal(dict(kept.named_buffers()), dict(again.named_buffers()))
    assert all(value is buffers[name] for name, value in again.named_buffers())


@KINDS
def test_activations_are_computed_again(config: ModelConfig) -> None:
    model, calls = seeded(config).train(), list[nn.Module]()
    block = next(part for part in model.vision.modules() if isinstance(part, SwinBlock | BasicBlock))
    for part in (model.tower[0], block):
        part.register_forward_pre_hook(lambda part, *_: calls.append(part))
    for checkpointing in (False, True):
        model.checkpoint_gradients(checkpointing)
        calls.clear()
        learn(model)
        assert len(calls) == (4 if checkpointing else 2)


# ---- freezing


@pytest.mark.parametrize("stages", range(5))
@KINDS
def test_freezing_stages(config: ModelConfig, stages: int) -> None:
    kind = config.vision.kind
    model = seeded(config).train()
    model.freeze(stages=stages)
    frozen_to_eval(model)
    prefixes = sum(STAGES[kind][:stages], STEM[kind]) if stages else ()
    expected = {name for name, _ in model.named_parameters() if prefixes and name.startswith(prefixes)}
    assert {name for name, part in model.named_parameters() if not part.requires_grad} == expected
    means = {name: value.clone() for name, value in model.named_buffers() if prefixes and name.startswith(prefixes)}
    learn(model)
    assert not expected & gradients(model).keys()
    assert not unequal(means, {name: value for name, value in model.named_buffers() if name in means})
    still = [module for name, module in model.named_modules() if f"{name}." in prefixes]
    assert not any(part.training for module in still for part in module.modules())
    assert model.training and model.pyramid.training
    with pytest.raises(ConfigError, match="frozen_stages: got 5"):
        model.freeze(stages=5)


def test_freezing_the_language_model_leaves_the_text_layers() -> None:
    model = seeded(SWIN).train()
    model.freeze(language=True)
    frozen = {name for name, part in model.named_parameters() if not part.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("language.")}
    learn(model)
    assert any(".text." in name for name in gradients(model))


# ---- mixed precision


def test_one_pixel_learns_under_bfloat16() -> None:
    """On a CPU the gradient of a bfloat16 convolution over one pixel is uninitialized memory (torch 2.15)."""
    pyramid = FeaturePyramid((8, 8, 8), 64, drop_block=0.0)
    maps = [torch.randn(2, 8, side, side) for side in (8, 4, 2)]  # an image of 64 pixels: P7 is a single pixel
    junk = [torch.full((64 * 64 * 9,), 1e30) for _ in range(20)]  # what freed memory may hold
    del junk
    found = []
    for mixed in (False, True):
        pyramid.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            levels = pyramid(maps)
        assert levels[-1].shape[-2:] == (1, 1)
        sum(level.float().square().sum() for level in levels).backward()
        found.append([conv.weight.grad.clone() for conv in (pyramid.p6, pyramid.p7)])
    for exact, mixed_gradient in zip(*found, strict=True):
        assert (exact - mixed_gradient).abs().max() < 0.05 * exact.abs().max()
