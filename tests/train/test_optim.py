"""What is stepped and how fast."""

import math

import pytest
import torch
from small import TINY, seeded

from glip.train.optim import build_optimizer, rate_factor, set_rates


@pytest.fixture(scope="module")
def model():
    return seeded(TINY)


def group_of(optimizer, parameter):
    (found,) = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    return found["lr"], found["weight_decay"]


def test_every_trained_parameter_has_one_group(model):
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=3e-5, weight_decay=0.05)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_bert_has_its_own_rate_and_some_have_no_decay(model):
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=3e-5, weight_decay=0.05)
    bert = model.language.bert
    assert group_of(optimizer, bert.encoder.layer[0].intermediate.dense.weight) == (1e-5, 0.05)
    assert group_of(optimizer, bert.encoder.layer[0].output.LayerNorm.weight) == (1e-5, 0.0)
    assert group_of(optimizer, bert.embeddings.word_embeddings.weight) == (1e-5, 0.0)
    assert group_of(optimizer, model.vision.patch.weight) == (1e-4, 0.05)
    assert group_of(optimizer, model.vision.patch.bias) == (1e-4, 0.0)
    assert group_of(optimizer, model.vision.stages[0].blocks[0].attn.bias_table) == (1e-4, 0.0)
    assert group_of(optimizer, model.vision.patch_norm.weight) == (1e-4, 0.0)
    assert group_of(optimizer, model.boxes.scales) == (1e-4, 0.0)


def test_what_writes_text_in_the_tower_has_its_own_rate(model):
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=3e-5, weight_decay=0.05)
    stage = model.tower[0]
    assert group_of(optimizer, stage.text.layer.intermediate.dense.weight) == (3e-5, 0.05)
    assert group_of(optimizer, stage.text.layer.output.LayerNorm.weight) == (3e-5, 0.0)
    for text in (stage.fusion.gamma_text, stage.fusion.out_text.bias, stage.fusion.norm_text.weight):
        assert group_of(optimizer, text) == (3e-5, 0.0)
    assert group_of(optimizer, stage.fusion.value_image.weight) == (3e-5, 0.05)
    for image in (stage.fusion.value_text.weight, stage.fusion.out_image.weight, stage.image.offset.weight):
        assert group_of(optimizer, image) == (1e-4, 0.05)
    assert group_of(optimizer, model.tokens.project.weight) == (1e-4, 0.05), "the head is no part of the tower"


def test_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, lr=1.0, bert_lr=1.0, text_lr=1.0, weight_decay=0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.01), (49, 0.5), (99, 1.0), (100, 1.0), (669, 1.0), (670, 0.1), (889, 0.1), (890, 0.01), (999, 0.01)],
)
def test_step_schedule(step, factor):
    given = rate_factor(step, steps=1000, warmup=100, schedule="step", drops=(0.67, 0.89))
    assert given == pytest.approx(factor)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.01), (100, 1.0), (550, 0.5), (1000, 0.0)])
def test_cosine_schedule(step, factor):
    given = rate_factor(step, steps=1000, warmup=100, schedule="cosine", drops=())
    assert given == pytest.approx(factor, abs=1e-12)


def test_schedules_without_warmup_and_shorter_than_it():
    assert rate_factor(0, steps=10, warmup=0, schedule="step", drops=()) == 1.0
    assert rate_factor(0, steps=10, warmup=0, schedule="cosine", drops=()) == 1.0
    assert math.isfinite(rate_factor(5, steps=5, warmup=5, schedule="cosine", drops=()))


def test_rates_are_set_from_the_base(model):
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=3e-5, weight_decay=0.05)
    for factor in (0.5, 0.25):
        set_rates(optimizer, factor)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-5, 7.5e-6, 2.5e-6}
