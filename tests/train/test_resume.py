"""A run goes on under its own config: what decides its numbers may not differ, all else may."""

import re
from dataclasses import fields, replace

import pytest

from glip.config import DatasetConfig, TrainConfig
from glip.experiment import Experiment
from glip.train.resume import FREE, config_text, refuse_another

FIRST = Experiment(train=TrainConfig(output="runs/first", schedule="step"))


def changed(part: str, **changes: object) -> Experiment:
    return replace(FIRST, **{part: replace(getattr(FIRST, part), **changes)})


@pytest.mark.parametrize(
    ("part", "changes", "told"),
    [
        ("train", {"lr": 1.0}, "train.lr was 0.0001 and is 1.0"),
        ("train", {"seed": 3}, "train.seed was 0 and is 3"),
        ("train", {"batch_size": 8}, "train.batch_size was 4 and is 8"),
        ("train", {"start": "glip-nano"}, "train.start was None and is 'glip-nano'"),
        ("train", {"precision": "bfloat16"}, "train.precision"),
        ("data", {"crop": 224}, "data.crop was 0 and is 224"),
        ("data", {"train": (DatasetConfig(name="world"),)}, "data.train was []"),
        ("model", {"max_tokens": 128}, "model.max_tokens was 256 and is 128"),
    ],
)
def test_what_decides_the_numbers_is_refused(part, changes, told):
    with pytest.raises(ValueError) as error:
        refuse_another(config_text(FIRST), changed(part, **changes), done=0)
    message = str(error.value)
    assert "runs/first" in message and told in message and "set train.output to another folder" in message
    assert "\n" not in message


def test_many_differences_are_summed_up():
    other = changed("train", lr=1.0, bert_lr=1.0, text_lr=1.0, weight_decay=0.0, warmup=3, clip=3.0, seed=2)
    with pytest.raises(ValueError, match="and 2 more"):
        refuse_another(config_text(FIRST), other, done=0)


def test_what_may_differ():
    free = {
        "log_every": 1,
        "save_every": 7,
        "keep_every": 2,
        "validate_every": 5,
        "validate_images": 5,
        "max_bad_steps": 3,
        "micro_batch": 1,
        "tensorboard": True,
        "compile": True,
        "checkpointing": True,
        "parallel": "fsdp",
        "output": "elsewhere",
    }
    refuse_another(config_text(FIRST), changed("train", **free), done=0)
    refuse_another(config_text(FIRST), changed("data", workers=4, root="/data", max_broken=0.5), done=0)
    refuse_another(config_text(FIRST), changed("model", name="other", license="MIT"), done=0)
    assert {name.removeprefix("train.") for name in FREE if name.startswith("train.")} == set(free)


@pytest.mark.parametrize(
    ("schedule", "steps", "done", "first"),
    [
        ("step", 2000, 669, None),  # the next step, number 670 from 0, is the one that the rate of the shorter falls at
        ("step", 2000, 670, 671),
        ("step", 2000, 1000, 671),  # a finished run
        ("step", 500, 499, None),
        ("step", 500, 500, 501),
        ("cosine", 2000, 500, None),  # still in the warm-up, behind which both begin at the same rate
        ("cosine", 2000, 501, 502),
    ],
)
def test_steps_may_differ_until_the_rates_do(schedule, steps, done, first):
    begun = changed("train", schedule=schedule)
    now = replace(begun, train=replace(begun.train, steps=steps))
    if first is None:
        refuse_another(config_text(begun), now, done=done)
        return
    told = f"train.steps was 1000 and is {steps} (the rate of step {first} is another, and {done} steps are done)"
    with pytest.raises(ValueError, match=re.escape(told)):
        refuse_another(config_text(begun), now, done=done)


def test_what_may_differ_exists():
    for name in FREE:
        part, _, key = name.partition(".")
        assert (key or part) in {field.name for field in fields(getattr(FIRST, part) if key else FIRST)}


@pytest.mark.parametrize("text", ["{", '{"train": {"oldkey": 1}}'])
def test_a_config_of_another_version_is_told(text):
    with pytest.raises(ValueError, match="begun by another version"):
        refuse_another(text, FIRST, done=0)
