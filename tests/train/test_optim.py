"""The optimizer's groups, its learning rates, and averages of weights."""

import pytest
import torch
from small import TINY, seeded

from glip.config import TrainConfig
from glip.train.optim import EMA, build_optimizer, rate_factor, set_rates, wise_ft

RATES = {"lr": 1e-4, "bert_lr": 1e-5, "text_lr": 3e-5, "weight_decay": 0.05}


@pytest.fixture(scope="module")
def model():
    return seeded(TINY)


def test_every_trained_parameter_has_one_group_whose_rate_is_set_from_its_base():
    partly = seeded(TINY)
    partly.freeze(stages=1)
    optimizer = build_optimizer(partly, **RATES)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in partly.parameters() if p.requires_grad)
    assert len(grouped) < len(list(partly.parameters()))
    for factor in (0.5, 0.25):
        set_rates(optimizer, factor)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-5, 7.5e-6, 2.5e-6}


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay"),
    [
        ("language.bert.encoder.layer.0.intermediate.dense.weight", 1e-5, 0.05),
        ("language.bert.embeddings.word_embeddings.weight", 1e-5, 0.0),
        ("vision.patch.weight", 1e-4, 0.05),
        ("vision.stages.0.blocks.0.attn.bias_table", 1e-4, 0.0),
        ("boxes.scales", 1e-4, 0.0),
        ("tower.0.text.layer.intermediate.dense.weight", 3e-5, 0.05),
        ("tower.0.text.layer.output.LayerNorm.weight", 3e-5, 0.0),
        ("tower.0.fusion.gamma_text", 3e-5, 0.0),
        ("tower.0.fusion.norm_text.weight", 3e-5, 0.0),
        ("tower.0.fusion.value_image.weight", 3e-5, 0.05),
        ("tower.0.fusion.value_text.weight", 1e-4, 0.05),
        ("tower.0.image.offset.weight", 1e-4, 0.05),
        ("tokens.project.weight", 1e-4, 0.05),  # the head is no part of the tower
    ],
)
def test_rate_and_decay_of_parts(name, lr, weight_decay, model):
    parameter = model.get_parameter(name)
    groups = build_optimizer(model, **RATES).param_groups
    (found,) = [group for group in groups if any(own is parameter for own in group["params"])]
    assert (found["lr"], found["weight_decay"]) == (lr, weight_decay)


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "factor"),
    [
        ("step", 100, 0, 0.01),
        ("step", 100, 99, 1.0),
        ("step", 100, 669, 1.0),
        ("step", 100, 670, 0.1),
        ("step", 100, 890, 0.01),
        ("step", 0, 0, 1.0),
        ("cosine", 100, 100, 1.0),
        ("cosine", 100, 550, 0.5),
        ("cosine", 100, 1000, 0.0),
        ("cosine", 0, 0, 1.0),
    ],
)
def test_schedules(schedule, warmup, step, factor):
    given = rate_factor(step, 1000, TrainConfig(warmup=warmup, schedule=schedule))
    assert given == pytest.approx(factor, abs=1e-12)


def build_with(value: float) -> torch.nn.Module:
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def test_ema_warms_up_and_then_keeps_its_decay():
    ema = EMA(build_with(0.0), 0.8)
    expected = 0.0
    for number in range(60):
        decay = min(0.8, (1 + number) / (10 + number))
        value = float(number % 7)
        expected = decay * expected + (1 - decay) * value
        ema.update(build_with(value))
    assert ema.updates == 60 and ema.weights["0.weight"][0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert set(ema.weights) == {"0.weight", "0.bias", "1.weight", "1.bias"}, "statistics are the model's own"


def test_what_does_not_move_stays_to_the_last_bit():
    still = torch.nn.Linear(50, 50)
    ema = EMA(still, 0.9998)
    for _ in range(20):
        ema.update(still)
    assert torch.equal(ema.weights["weight"], still.weight)
    both = dict(still.state_dict())
    assert all(torch.equal(value, both[key]) for key, value in wise_ft(both, both, 0.3).items())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_wise_ft_keeps_a_share_of_the_start(share):
    start, trained = build_with(4.0).state_dict(), build_with(8.0).state_dict()
    trained["1.num_batches_tracked"] += 5
    trained["1.running_mean"] += 1.0
    mixed = wise_ft(start, trained, share)
    assert torch.allclose(mixed["0.weight"], torch.full((2, 2), 8.0 - 4.0 * share))
    assert torch.allclose(mixed["1.running_mean"], torch.full((2,), 1.0 - share))
    assert mixed["1.num_batches_tracked"] == 5
    assert trained["0.weight"][0, 0] == 8.0, "neither is changed"
