"""One step: however it is divided it is one big batch; numbers that are not finite change nothing."""

import math

import pytest
import torch
from runs import RESNET, STILL, batches_of, poisoned, step_of
from small import seeded

from glip.loss import Criterion
from glip.train import step as steps
from glip.train.distributed import Group
from glip.train.step import Stepper


def stepper(model, *, lr=1e-3, clip=1e9, optimizer=torch.optim.SGD) -> Stepper:
    model.train()
    return Stepper(
        model, model, optimizer=optimizer(model.parameters(), lr=lr), group=Group(), clip=clip, precision="float32"
    )


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_are_one_big_batch(size):
    whole, divided = seeded(STILL), seeded(STILL)
    (big,) = batches_of(4)
    first, second = stepper(whole)(step_of(big)), stepper(divided)(step_of(*batches_of(size)))
    assert first.losses == pytest.approx(second.losses, rel=1e-5) and first.norm == pytest.approx(second.norm, rel=1e-4)
    assert first.images == second.images == 4
    theirs = gradients(divided)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_losses_are_the_criterions():
    model, (big,) = seeded(STILL), batches_of(4)
    given = Criterion()(model.train()(big), big.targets, big.text.attention_mask)
    outcome = stepper(model)(step_of(big))
    for term in steps.TERMS:
        assert outcome.losses[term] == pytest.approx(getattr(given, term).item(), rel=1e-6)
    assert outcome.losses["loss"] == pytest.approx(given.total.item(), rel=1e-6)
    assert outcome.stepped and not outcome.overflow and not outcome.stopping


def test_gradients_are_clipped_to_their_norm():
    plain, clipped = seeded(STILL), seeded(STILL)
    step = step_of(*batches_of(2))
    norm = stepper(plain)(step).norm
    expected = torch.cat([p.grad.flatten().double() for p in plain.parameters()]).norm()
    assert norm == pytest.approx(expected.item(), rel=1e-5)
    assert stepper(clipped, clip=norm / 4)(step).norm == pytest.approx(norm), "told as it was"
    theirs = gradients(clipped)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(theirs[name], gradient / 4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("config", [STILL, RESNET], ids=["swin", "resnet"])
def test_what_is_not_finite_changes_nothing(config):
    model = seeded(config)
    take = stepper(model, optimizer=torch.optim.AdamW)
    good, bad = step_of(batches_of(2)[0]), step_of(*batches_of(1)[:2])
    take(good)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    half_bad = step_of(bad.batches[0], poisoned(bad).batches[1])
    outcome = take(half_bad)
    assert not outcome.stepped and math.isnan(outcome.losses["loss"]) and not outcome.overflow
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(math.isnan(value) for value in take.gradients().values())
    assert take(good).stepped


def test_gradients_are_told_by_part():
    model = seeded(STILL)
    take = stepper(model)
    take(step_of(*batches_of(2)))
    told = take.gradients()
    assert set(told) == {"vision", "pyramid", "language", "tower", "boxes", "tokens"}
    assert told["boxes"] == max(parameter.grad.abs().max().item() for parameter in model.boxes.parameters())
