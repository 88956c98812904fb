"""Checkpointing changes memory only; frozen parts are those that were named."""

from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded
from torch import Tensor, nn

from glip.config import ModelConfig, VisionConfig
from glip.model.glip import GLIP
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
    """A forward and a backward pass from a fixed random state; gives a loss that every output moves."""
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


def kept_bytes(model: GLIP) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    sizes: dict[int, int] = {}
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(batch())  # held until the sum is made, so that no address is used twice
    assert outputs.token_logits.requires_grad
    return sum(sizes.values())


@KINDS
@pytest.mark.parametrize("frozen", [0, 2])
def test_gradients_and_running_means_are_bit_identical(config: ModelConfig, frozen: int) -> None:
    """Drop path, DropBlock, both dropouts and batch norm are on: random numbers and means must be the same."""
    kept, again = seeded(config).train(), seeded(config).train()
    again.checkpoint_gradients(True)
    for model in (kept, again):
        model.freeze(stages=frozen)
        frozen_to_eval(model)
    assert torch.equal(learn(kept), learn(again))
    state = torch.get_rng_state()
    learn(kept)
    assert torch.equal(state, torch.get_rng_state())
    learn(again)
    assert not unequal(gradients(kept), gradients(again))
    assert not unequal(dict(kept.named_buffers()), dict(again.named_buffers()))


def test_running_means_move_once_a_step() -> None:
    model = seeded(RESNET).train()
    model.checkpoint_gradients(True)
    buffers = dict(model.named_buffers())
    learn(model)
    counts = [value for name, value in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and all(int(count) == 1 for count in counts)
    assert all(value is buffers[name] for name, value in model.named_buffers())


@KINDS
def test_less_is_kept(config: ModelConfig) -> None:
    model = seeded(config).train()
    before = kept_bytes(model)
    model.checkpoint_gradients(True)
    assert kept_bytes(model) < before / 3
    model.checkpoint_gradients(False)
    assert kept_bytes(model) > before / 2  # drop path keeps more or less by chance


@KINDS
def test_mixed_precision(config: ModelConfig) -> None:
    kept, again = seeded(config).train(), seeded(config).train()
    again.checkpoint_gradients(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = learn(kept), learn(again)
    assert torch.equal(*losses)
    assert not unequal(gradients(kept), gradients(again))


@KINDS
def test_nothing_changes_in_inference(config: ModelConfig) -> None:
    model = seeded(config)
    with torch.inference_mode():
        before = model(batch()).token_logits
        model.checkpoint_gradients(True)
        assert torch.equal(before, model(batch()).token_logits)


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


def test_freezing_the_language_model_leaves_the_text_layers() -> None:
    model = seeded(SWIN).train()
    model.freeze(language=True)
    frozen = {name for name, part in model.named_parameters() if not part.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("language.")}
    learn(model)
    assert any(".text." in name for name in gradients(model))


@KINDS
@pytest.mark.parametrize("stages", [-1, 5])
def test_stages_that_are_not_there(config: ModelConfig, stages: int) -> None:
    with pytest.raises(ValueError, match=f"stages: got {stages}: the image encoder has 4, so give 0 to 4"):
        seeded(config).freeze(stages=stages)
