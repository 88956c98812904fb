"""``glip train`` from json to detections, in-process, on four drawn pictures."""

import json
from pathlib import Path

import pytest
import torch
from small import write_coco

from glip.cli.main import main
from glip.config import load_config, to_yaml

CONFIG = """
extends: tiny.yaml
model:
  vision: {depths: [1, 1, 1, 1]}
  language: {layers: 1}
  head: {blocks: 1, fusion_width: 64}
data:
  crop: 64
  short_side: [64, 80]
  train: [{name: drawn, annotations: instances.json, images: images}]
train: {steps: 6, batch_size: 1, warmup: 2, save_every: 3, log_every: 1}
"""


def glip(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    return int(exit_.value.code)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("GLIP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


def steps_of(place: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def test_train_resume_detect(place, capsys, monkeypatch):
    monkeypatch.setenv("GLIP_DATA", str(place / "data"))
    command = ["train", "--device", "cpu", "small.yaml", "train.output=run"]
    assert glip(*command) == 0
    said = capsys.readouterr().out
    assert "drawn: 4 pictures, 9 boxes\n" in said and "step 6/6" in said and "glip detect" in said
    before = torch.load(place / "run" / "last.pt", weights_only=True)["model"]["pyramid.p6.weight"]
    assert glip(*command, "train.steps=10") == 0
    said = capsys.readouterr().out
    assert "at step 6" in said and "step 7/10" in said and "step 6/10" not in said
    assert steps_of(place) == list(range(1, 11))
    after = torch.load(place / "run" / "last.pt", weights_only=True)
    assert after["step"] == 10 and not torch.equal(after["model"]["pyramid.p6.weight"], before)
    assert "steps: 10" in (place / "run" / "experiment.yaml").read_text()
    model = str(Path("run", "model"))
    picture = str(Path("data", "images", "0.png"))
    assert glip("detect", picture, "red circle. blue star", "--model", model, "--json", "-", "--device", "cpu") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["phrases"] == ["red circle", "blue star"] and record["width"] == 128


def test_left_out_is_said(place, capsys):
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    tree["annotations"] += [{"image_id": 0, "category_id": 10, "bbox": [1, 2, 3]}] * 2
    file.write_text(json.dumps(tree))
    assert glip("train", "small.yaml", "train.output=run", "data.root=data", "train.steps=1", "data.max_names=2") == 0
    said = capsys.readouterr().out
    assert "4 pictures, 9 boxes; left out: 2 x malformed box, boxes of 1 x picture with more names than" in said


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "data.root or GLIP_DATA"),
        (["data.root=nowhere"], "nowhere/images' is not there: set data.root or GLIP_DATA"),
        (["data.train=[]", "data.root=data"], "data.train lists no set"),
        (["train.stepz=3"], "train.stepz: no such key (did you mean 'steps'?)"),
        (["train.steps=many"], "train.steps: expected int, got 'many'"),
        (["train.steps"], "key.path=value"),
        (["data.root=data", "train.start=glip-x"], "model 'glip-x' is not known"),
        (["data.root=data", "model.language.heads=5"], "heads"),
    ],
)
def test_errors_are_one_line(overrides, told, place, capsys):
    assert glip("train", "small.yaml", "train.output=run", *overrides) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("glip train: ") and told in said and "\n" not in said


def test_unknown_config(place, capsys):
    assert glip("train", "pretrain/nanno") == 2
    assert "did you mean 'pretrain/nano'?" in capsys.readouterr().err


def test_run_of_another_model(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "last.pt").write_bytes(b"not a checkpoint")
    assert glip("train", "small.yaml", "train.output=run", "data.root=data") == 2
    assert "last.pt' cannot be read" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(place, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("glip.train.loop._step", interrupt)
    assert glip("train", "small.yaml", "train.output=run", "data.root=data") == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_a_run_that_stays_bad_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setattr("glip.train.loop._MAX_BAD_STEPS", 1)
    overrides = ["train.output=run", "data.root=data", "train.lr=1.0e+30", "train.clip=1.0e+30", "train.warmup=0"]
    assert glip("train", "small.yaml", *overrides) == 2
    assert "lower train.lr" in capsys.readouterr().err


def test_resolved_experiment_can_be_run_again(place):
    experiment = load_config("small.yaml")
    (place / "again.yaml").write_text(to_yaml(experiment))
    assert load_config("again.yaml") == experiment
