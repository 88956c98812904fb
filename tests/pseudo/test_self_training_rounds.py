"""Rounds of self-training in miniature: each step feeds the next, and finished rounds are not repeated."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from glip.config import DatasetConfig, LabelConfig, SelectConfig, SelfTrainConfig
from glip.data.mixture import read_training_set
from glip.errors import DataError
from glip.pseudo.shards import find_captions
from glip.recipes.self_training import PSEUDO, SelfTraining, self_train
from glip.train.start import load_config


@pytest.fixture
def plan(pool, drawn_root, tiny_folder, tmp_path) -> SelfTraining:
    tree = {
        "extends": "tiny",
        "data": {
            "root": str(drawn_root),
            "train": [{"name": "world_train"}],
            "short_side": [64, 64],
            "crop": 64,
            "max_negatives": 3,
        },
        "train": {"steps": 2, "batch_size": 2, "warmup": 1, "output": str(tmp_path / "unused")},
    }
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(tree))
    return SelfTraining(
        load_config(tmp_path / "student.yaml"),
        find_captions(str(pool / "captions.jsonl"), [], None),
        str(tiny_folder),
        LabelConfig(threshold=0.0, min_bytes=0, same_image=-1, threads=1),
        SelectConfig(min_score=0.0, min_best_score=0.0, max_per_phrase=2),
        SelfTrainConfig(),
    )


def labels(pool, path, **options: object) -> DatasetConfig:
    images = (str(pool / "images"),)
    return DatasetConfig(name=PSEUDO, format="labels", annotations=str(path), images=images, **options)


@pytest.mark.slow
def test_two_rounds_and_then_nothing_is_left_to_do(plan, pool, tmp_path):
    out, said = tmp_path / "out", list[str]()
    sets = {"pool": read_training_set(labels(pool, pool / "truth.jsonl"), plan.experiment.data).samples}
    rows = self_train(plan, out, sets=sets, device="cpu", say=said.append)
    assert [row["round"] for row in rows] == [0, 1] and rows[1]["labels"]["boxes"] > 0
    assert "pool/recall@1" in rows[0]["figures"]
    longer = replace(plan, options=SelfTrainConfig(rounds=2))
    rows = self_train(longer, out, sets=sets, device="cpu", say=said.append)
    assert [row["round"] for row in rows] == [0, 1, 2] and "student 2" in (out / "table.md").read_text()
    manifests = [json.loads((out / f"round-{number}/labels/manifest.json").read_text()) for number in (1, 2)]
    assert manifests[0]["teacher"] != manifests[1]["teacher"], "the first student labels in the second round"
    said.clear()
    assert self_train(longer, out, sets=sets, device="cpu", say=said.append) == rows and not said
    with pytest.raises(DataError, match=r"share 0.5, not 0.25"):
        self_train(replace(plan, options=SelfTrainConfig(share=0.25)), out, sets=sets, device="cpu")


def test_scores_and_boxes_count_on_request(pool, tmp_path, plan):
    row = {
        "image": "00000700.jpg",
        "id": 1,
        "width": 100,
        "height": 100,
        "caption": "a dog",
        "phrases": [{"text": "dog", "spans": [[2, 5]]}],
        "boxes": [{"box": [1.0, 1.0, 30.0, 30.0], "phrases": [0], "score": 0.7}],
    }
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    for soft, box_loss in ((False, True), (True, True), (False, False)):
        entry = labels(pool, tmp_path / "labels.jsonl", soft=soft, box_loss=box_loss)
        sample = read_training_set(entry, plan.experiment.data).samples[0]
        assert sample.scores == ((0.7,) if soft else ()) and sample.box_loss == box_loss
        torch.testing.assert_close(sample.boxes, torch.tensor([[1.0, 1.0, 30.0, 30.0]]))
