"""Numbers that cannot work are refused before anything long, naming the key and what is allowed."""

from dataclasses import replace

import pytest

from glip.config import DataConfig, DatasetConfig, TrainConfig
from glip.train.distributed import Group
from glip.train.settings import check_data, check_settings

TRAIN = TrainConfig(warmup=0)
DATA = DataConfig(train=(DatasetConfig(name="world"),))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": -1e-3}, r"train\.lr: got -0\.001: give a number from 0 on, such as 1e-4"),
        ({"lr": float("nan")}, r"train\.lr: got nan"),
        ({"bert_lr": float("inf")}, r"train\.bert_lr: got inf"),
        ({"weight_decay": -5.0}, r"train\.weight_decay: got -5"),
        ({"seed": -1}, r"train\.seed: got -1: give 0 or more"),
        ({"frozen_stages": -1}, r"train\.frozen_stages: got -1: give 1 or more, or 0 for none"),
        ({"validate_images": -1}, r"train\.validate_images: got -1: give 1 or more, or 0 for all"),
    ],
)
def test_of_the_run(changes, told):
    check_settings(TRAIN, Group())
    with pytest.raises(ValueError, match=told):
        check_settings(replace(TRAIN, **changes), Group())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"full_vocabulary": 7.0}, r"data\.full_vocabulary: got 7: give a share from 0 to 1, such as 0\.5"),
        ({"borrow": -1.0}, r"data\.borrow: got -1"),
        ({"colour": float("nan")}, r"data\.colour: got nan"),
        ({"max_broken": 5.0}, r"data\.max_broken: got 5"),
        ({"max_negatives": -1}, r"data\.max_negatives: got -1: give a number from 0 on"),
        ({"pack_captions": -3}, r"data\.pack_captions: got -3"),
        ({"workers": -1}, r"data\.workers: got -1"),
        ({"crop": -1}, r"data\.crop: got -1: give the side of crops, from 32 pixels, or 0 for none"),
        ({"short_side": ()}, r"data\.short_side: got \[\]"),
        ({"short_side": (-5, 10)}, r"data\.short_side: got \[-5, 10\]: give sides in pixels"),
        ({"train": (DatasetConfig(name="a", weight=float("nan")),)}, r"set 'a': weight: got nan"),
        ({"train": (DatasetConfig(name="a", flip=3.0),)}, r"set 'a': flip: got 3: give a share from 0 to 1"),
        ({"validate": (DatasetConfig(name="b", short_side=(0,)),)}, r"set 'b'\.short_side: got \[0\]"),
    ],
)
def test_of_the_data(changes, told):
    check_data(DATA)
    with pytest.raises(ValueError, match=told):
        check_data(replace(DATA, **changes))
