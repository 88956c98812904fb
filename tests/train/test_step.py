"""One step: however it is divided it is one big batch; numbers that are not finite change nothing."""

import math
from dataclasses import replace

import pytest
import torch
from small import seeded
from small_runs import RESNET, STILL, batches_of, poisoned, step_of

from glip.config import StepConfig, TrainConfig
from glip.errors import ConfigError, TrainingError
from glip.loss import Criterion
from glip.train.distributed import ONE
from glip.train.loop import build_stepper
from glip.train.step import TERMS, Stepper, frozen_to_eval


def stepper(model, *, lr=1e-3, clip=1e9, optimizer=torch.optim.SGD, **changes) -> Stepper:
    model.train()
    config = StepConfig(clip=clip, **changes)
    return Stepper(model, model, optimizer(model.parameters(), lr=lr), config, ONE)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_are_one_big_batch(size):
    whole, divided = seeded(STILL), seeded(STILL)
    first, second = stepper(whole)(batches_of(4)), stepper(divided)(batches_of(size))
    assert first.losses == pytest.approx(second.losses, rel=1e-5) and first.norm == pytest.approx(second.norm, rel=1e-4)
    assert first.images == second.images == 4
    theirs = gradients(divided)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_losses_are_the_criterions():
    model, (big,) = seeded(STILL), batches_of(4)
    given = Criterion()(model.train()(big), big.targets, big.text.attention_mask)
    outcome = stepper(model)([big])
    for term in TERMS:
        assert outcome.losses[term] == pytest.approx(getattr(given, term).item(), rel=1e-6)
    assert outcome.losses["loss"] == pytest.approx(given.total.item(), rel=1e-6)
    assert outcome.stepped and not outcome.overflow and not outcome.stopping


def test_gradients_are_clipped_to_their_norm():
    plain, clipped = seeded(STILL), seeded(STILL)
    batches = batches_of(2)
    norm = stepper(plain)(batches).norm
    expected = torch.cat([p.grad.flatten().double() for p in plain.parameters()]).norm()
    assert norm == pytest.approx(expected.item(), rel=1e-5)
    assert stepper(clipped, clip=norm / 4)(batches).norm == pytest.approx(norm), "reported as it was"
    theirs = gradients(clipped)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(theirs[name], gradient / 4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("config", [STILL, RESNET], ids=["swin", "resnet"])
def test_what_is_not_finite_changes_nothing(config):
    model = seeded(config)
    take = stepper(model, optimizer=torch.optim.AdamW, max_bad_steps=2)
    good = batches_of(2)[:1]
    take(good)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    half_bad = batches_of(1)[:1] + list(poisoned(step_of(batches_of(1)[1])).batches)
    outcome = take(half_bad)
    assert outcome.bad and math.isnan(outcome.losses["loss"]) and not outcome.stepped and not outcome.overflow
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(TrainingError, match=r"2 steps in a row \(token nan.* learning rate 0.1\)") as caught:
        take.stop_if_bad(outcome, 2, 0.1)
    assert all(f"{part} nan" in str(caught.value) for part in ("vision", "tower", "boxes"))
    take.stop_if_bad(outcome, 1, 0.1)
    assert take(good).stepped


def test_float16_needs_a_gpu():
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        stepper(seeded(STILL), precision="float16")


def test_a_language_model_at_rate_zero_is_frozen():
    """Else its gradients would count in the norm that all are clipped by."""
    for rate in (0.0, 1e-5):
        model = build_stepper(seeded(STILL), TrainConfig(bert_lr=rate)).model
        assert {parameter.requires_grad for parameter in model.language.parameters()} == {rate > 0}


def test_partly_frozen_language_trains_the_rest():
    config = replace(STILL, language=replace(STILL.language, frozen_layers=1))
    model = seeded(config).train()
    frozen_to_eval(model)
    layers = model.language.bert.encoder.layer
    assert not layers[0].training and layers[1].training and not model.language.bert.embeddings.training
