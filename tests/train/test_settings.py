"""Values that cannot work are refused as the config is read, naming the key, the value and what is allowed."""

import pytest

from glip.errors import ConfigError
from glip.train.start import load_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=-1e-3", "train.lr: got -0.001: give a number, 0 or more"),
        ("train.lr=.nan", "train.lr: got nan"),
        ("train.bert_lr=.inf", "train.bert_lr: got inf"),
        ("train.weight_decay=-5", "train.weight_decay: got -5"),
        ("train.seed=-1", "train.seed: got -1: give a whole number, 0 or more"),
        ("train.steps=0", "train.steps: got 0: give a whole number, 1 or more"),
        ("train.warmup=300", "train.warmup: got 300 of 300 steps"),
        ("train.drops=[89]", "train.drops[0]: got 89: give a number, 0 or more and at most 1"),
        ("train.ema=1", "train.ema: got 1: give a number, 0 or more and less than 1"),
        ("data.full_vocabulary=7", "data.full_vocabulary: got 7: give a number, 0 or more and at most 1"),
        ("data.colour=.nan", "data.colour: got nan"),
        ("data.workers=-1", "data.workers: got -1"),
        ("data.crop=8", "data.crop: got 8: give 32 or more pixels, or 0 for whole images"),
        ("data.short_side=[]", "data.short_side: got []: give a list that is not empty"),
        ("data.short_side=[-5, 10]", "data.short_side[0]: got -5"),
        ("data.train=[{name: a, weight: .nan}]", "data.train[0].weight: got nan"),
        ("data.train=[{name: a, flip: 3}]", "data.train[0].flip: got 3: give a number, 0 or more and at most 1"),
        ("data.replay=0.3", "data.replay: 0.3 needs replay_from"),
    ],
)
def test_a_value_out_of_range(override, message):
    load_config("finetune/own")
    with pytest.raises(ConfigError) as caught:
        load_config("finetune/own", [override])
    assert message in str(caught.value)
