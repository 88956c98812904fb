"""Rounds of self-training in miniature: each step feeds the next, and finished rounds are not repeated."""

import json
from dataclasses import replace

import pytest
import yaml

from glip.config import LabelConfig, SelectConfig, SelfTrainConfig
from glip.data.catalog import find_set, read_set
from glip.errors import DataError
from glip.pseudo.label import find_captions
from glip.recipes.self_training import SelfTraining, self_train
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


@pytest.mark.slow
def test_two_rounds_and_then_nothing_is_left_to_do(plan, pool, tmp_path):
    out, said = tmp_path / "out", list[str]()
    sets = {"pool": read_set(find_set(str(pool / "grounding.json"))).samples}
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
