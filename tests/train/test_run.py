"""What a run makes of a config: values out of range are refused, models and datasets get names."""

from pathlib import Path

import pytest

from glip.config import ModelConfig
from glip.errors import ConfigError
from glip.train.run import readable_names, starting_model
from glip.train.start import load_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=-1e-3", "train.lr: got -0.001: give a number, 0 or more"),
        ("train.lr=.nan", "train.lr: got nan"),
        ("train.bert_lr=.inf", "train.bert_lr: got inf"),
        ("train.seed=-1", "train.seed: got -1: give a whole number, 0 or more"),
        ("train.steps=0", "train.steps: got 0: give a whole number, 1 or more"),
        ("train.warmup=300", "train.warmup: got 300 of 300 steps"),
        ("train.drops=[89]", "train.drops[0]: got 89: give a number, 0 or more and at most 1"),
        ("train.ema=1", "train.ema: got 1: give a number, 0 or more and less than 1"),
        ("data.short_side=[]", "data.short_side: got []: give a list that is not empty"),
        ("data.train=[{name: a, weight: .nan}]", "data.train[0].weight: got nan"),
        ("data.replay=0.3", "data.replay: got 0.3 with replay_from ''"),
        ("train={start: null, wise_ft: 0.5}", "train.wise_ft: got 0.5 without train.start"),
    ],
)
def test_a_value_out_of_range(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config("finetune/own", [override])
    assert message in str(caught.value)


def test_a_fine_tuned_model_is_named_after_its_folder():
    assert load_config("finetune/own", ["train.output=runs/raccoon"]).model.name == "raccoon"
    assert load_config("finetune/own", ["train.output=runs/raccoon", "model.name=mine"]).model.name == "mine"
    assert load_config("pretrain/nano").model.name == "glip-nano"


def test_names_of_datasets():
    names = ["coco_train2017", "/data/raccoon/train/annotations.json", "/data/mouse/train/annotations.json", "b/c.json"]
    assert list(readable_names(names).values()) == [
        "coco_train2017",
        "raccoon/train/annotations",
        "mouse/train/annotations",
        f"{Path.cwd().name}/b/c",
    ]
    assert readable_names(["/data/raccoon/boxes.json"]) == {"/data/raccoon/boxes.json": "raccoon/boxes"}
    assert readable_names([]) == {}


def test_a_model_keeps_what_its_start_was_trained_on():
    row = "data.train=[{name: /data/raccoon/boxes.json}]"
    config = starting_model(load_config("finetune/own", [row]))[1]
    assert config.trained_on[0] == "drawn world" and config.trained_on[-1] == "raccoon/boxes"
    assert config.trained_on_data == ModelConfig().trained_on_data
    stated = starting_model(load_config("finetune/own", [row, "model.trained_on=[mine]"]))[1]
    assert stated.trained_on == ("mine",)
