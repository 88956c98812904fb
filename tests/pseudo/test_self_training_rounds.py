"""Rounds of teaching, in miniature: steps are joined, rows that exist are skipped, labels are read as they are."""

import json

import pytest
import yaml

from glip.config import DatasetConfig
from glip.data.mixture import read_training_set
from glip.pseudo.filters import PairRules
from glip.pseudo.label import LabelConfig
from glip.pseudo.run import Workers, find_captions
from glip.pseudo.select import SelectRules
from glip.self_training import SelfTrainConfig, SelfTraining
from glip.train.start import load_config


@pytest.fixture
def experiment(tmp_path):
    tree = {
        "extends": "tiny",
        "data": {
            "train": [{"name": "drawings", "format": "world", "captioned": 0.0, "sides": [112, 140]}],
            "short_side": [64, 64],
            "crop": 64,
            "max_negatives": 3,
        },
        "train": {"steps": 2, "batch_size": 2, "warmup": 1, "output": str(tmp_path / "unused")},
    }
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(tree))
    return load_config(tmp_path / "student.yaml")


def teaching(experiment, pool, model, folder, said, rounds=1, **more) -> SelfTraining:
    label = LabelConfig(model=str(model), threshold=0.0, pairs=PairRules(min_bytes=0, same_image=-1), device="cpu")
    rules = SelectRules(box=0.0, image=0.0, per_phrase=2)
    truth = read_training_set(
        DatasetConfig(name="t", format="labels", annotations=str(pool / "truth.jsonl"), images=(str(pool / "images"),)),
        experiment.data,
    )
    return SelfTraining(
        experiment,
        find_captions(str(pool / "captions.jsonl"), (), None),
        label,
        SelfTrainConfig(rounds=rounds, rules=rules, **more),
        folder,
        sets={"pool": truth.samples},
        workers=Workers(),
        say=said.append,
    )


@pytest.mark.slow
def test_two_rounds_and_then_nothing_is_left_to_do(experiment, pool, tiny_folder, tmp_path):
    said: list[str] = []
    rows = teaching(experiment, pool, tiny_folder, tmp_path / "out", said)()
    assert [row["round"] for row in rows] == [0, 1] and rows[1]["labels"]["boxes"] > 0
    assert "pool/recall@1" in rows[0]["figures"]
    rows = teaching(experiment, pool, tiny_folder, tmp_path / "out", said, rounds=2)()
    assert [row["round"] for row in rows] == [0, 1, 2]
    second = json.loads((tmp_path / "out" / "round-2" / "labels" / "manifest.json").read_text())
    first = json.loads((tmp_path / "out" / "round-1" / "labels" / "manifest.json").read_text())
    assert second["teacher"] != first["teacher"]  # the student of the first labels
    said.clear()
    assert teaching(experiment, pool, tiny_folder, tmp_path / "out", said, rounds=2)() == rows and not said
    assert "student 2" in (tmp_path / "out" / "table.md").read_text()


def test_another_teaching_is_refused(experiment, pool, tiny_folder, tmp_path):
    teaching(experiment, pool, tiny_folder, tmp_path / "out", [])
    with pytest.raises(ValueError, match="holds labels made with share 0.5, not 0.25"):
        teaching(experiment, pool, tiny_folder, tmp_path / "out", [], share=0.25)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"share": 0.0}, {"share": 1.0}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        SelfTrainConfig(**wrong)
