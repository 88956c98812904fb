"""Fusion added to a trained model (``head.fusion_gate``): no effect at first, then it learns."""

from dataclasses import replace

import pytest
import torch
from small import SMALL, seeded
from test_training_modes import RESNET, SWIN, batch, learn

from glip.errors import ConfigError
from glip.model.glip import GLIP, add_fusion
from glip.model.weights import load_pretrained, save_pretrained


def plain(config=SWIN):
    """A model without fusion whose gammas, norms and heads are not those of the start, and its config."""
    config = replace(config, head=replace(config.head, fusion=False))
    return seeded(config).eval(), config


def outputs(model: GLIP):
    with torch.no_grad():
        found = model.eval()(batch())
    return found.token_logits, found.box_deltas, found.centerness


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_added_fusion_changes_no_bit_at_first(config):
    model, config = plain(config)
    fused, fused_config = add_fusion(model, config)
    assert fused_config.head.fusion and fused_config.head.fusion_gate == "tanh"
    for own, other in zip(outputs(model), outputs(fused), strict=True):
        assert torch.equal(own, other)
    fused.tower[0].gate_text.value.data += 0.5
    assert not torch.equal(outputs(model)[0], outputs(fused)[0]), "an open gate has an effect"


def test_the_gate_learns_first_then_what_is_behind_it():
    model = add_fusion(*plain())[0].train()
    gates = {name: value for name, value in model.named_parameters() if ".gate_" in name}
    behind = {name: value for name, value in model.named_parameters() if ".fusion." in name or ".text." in name}
    assert len(gates) == 2 * SMALL.head.blocks
    assert behind
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learn(model)
    assert all(value.grad.abs() > 0 for value in gates.values())
    assert not any(value.grad.any() for value in behind.values())
    optimizer.step()
    optimizer.zero_grad()
    learn(model)
    silent = {name for name, value in behind.items() if not value.grad.any()}
    assert {name for name in silent if not name.endswith("key.bias")} == set(), "softmax ignores the keys' bias"


def test_a_gated_model_is_saved_and_loaded(tmp_path, tiny_folder):
    model, config = add_fusion(*plain())
    model.tower[0].gate_image.value.data += 0.5
    save_pretrained(tmp_path / "gated", model, config, tiny_folder)
    loaded = load_pretrained(tmp_path / "gated")
    assert loaded.config.head.fusion_gate == "tanh"
    assert torch.equal(outputs(loaded.model)[0], outputs(model)[0])


def test_what_cannot_be_gated():
    with pytest.raises(ConfigError, match="'small' has fusion already: give a model without it"):
        add_fusion(seeded(SMALL), replace(SMALL, name="small"))
    with pytest.raises(ValueError, match="head.fusion_gate: got 'tanh' without head.fusion, which it gates: give none"):
        replace(SMALL, head=replace(SMALL.head, fusion=False, fusion_gate="tanh"))
