"""``glip train`` from json to detections, in-process, on four drawn images."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import write_coco

from glip.cli.main import main
from glip.config import ModelConfig
from glip.experiment import to_dict
from glip.train.start import load_config

CONFIG = """
extends: tiny.yaml
model:
  vision: {depths: [1, 1, 1, 1]}
  language: {layers: 1}
  head: {blocks: 1, fusion_width: 64}
data:
  crop: 64
  short_side: [64, 80]
  train: [{name: drawn, annotations: instances.json, images: [images]}]
train: {steps: 6, batch_size: 1, warmup: 0, drops: [], save_every: 3, log_every: 1}
"""
BARE = "data: {crop: 64, train: [{name: mine, annotations: instances.json, images: [images]}]}"


def glip(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    return int(exit_.value.code)


def train(output: str, *overrides: str, config: str = "small.yaml") -> int:
    return glip("train", config, "data.root=data", "--device", "cpu", f"train.output={output}", *overrides)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("GLIP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "bare.yaml").write_text(BARE)
    return tmp_path


def test_train_resume_detect(place, capsys, monkeypatch):
    monkeypatch.setenv("GLIP_DATA", str(place / "data"))
    command = ["train", "--device", "cpu", "small.yaml", "train.output=run"]
    assert glip(*command) == 0
    said = capsys.readouterr().out
    assert "drawn: 4 images, 9 boxes\n" in said and "step 6/6" in said and "glip detect" in said
    before = torch.load(place / "run" / "last.pt", weights_only=True)["model"]["pyramid.p6.weight"]
    assert glip(*command, "train.steps=10") == 0
    said = capsys.readouterr().out
    assert "at step 6" in said and "step 7/10" in said and "step 6/10" not in said
    rows = (place / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 11))
    after = torch.load(place / "run" / "last.pt", weights_only=True)
    assert after["progress"]["step"] == 10 and not torch.equal(after["model"]["pyramid.p6.weight"], before)
    assert "steps: 10" in (place / "run" / "experiment.yaml").read_text()
    model = str(Path("run", "model"))
    image = str(Path("data", "images", "0.png"))
    assert glip("detect", image, "red circle. blue star", "--model", model, "--json", "-", "--device", "cpu") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["phrases"] == ["red circle", "blue star"] and record["width"] == 128


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.root=nowhere"], "'nowhere/instances.json'"),
        (["data.train=[]"], "data.train lists no set"),
        (["train.start=glip-x"], "model 'glip-x' is not known"),
        (["--validate", "no_such_set"], "--validate without train.validate_every"),
        (["--images", "images"], "--images without --data or --validate"),
        (["data.replay_from=pretrain/nano"], "'pretrain/nano' needs replay"),
        (["train.wise_ft=0.5"], "train.wise_ft: got 0.5 without train.start"),
        (["model.vision.kind=resnet", "model.vision.pretrained=x"], "'x' cannot be read into a resnet"),
        (["train.output=file/run", "data.root=nowhere"], "'file"),  # settings come before any dataset is read
        (["train.output=broken", "data.root=nowhere"], "last.pt' cannot be read"),
        (["--validate", "typo", "train.validate_every=1"], "'typo'"),
        (["train.lr=1.0e+30", "train.clip=1.0e+30", "train.max_bad_steps=2"], "lower train.lr"),
    ],
)
def test_errors_are_one_line(overrides, part, place, capsys):
    (place / "file").write_text("")
    (place / "broken").mkdir()
    (place / "broken" / "last.pt").write_bytes(b"not a checkpoint")
    assert train("run", *overrides) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("glip train: ") and part in said and "\n" not in said


def test_interrupt_says_how_to_go_on(place, capsys, monkeypatch):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    monkeypatch.setattr("glip.train.loop.rate_factor", interrupt)
    assert train("run") == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert torch.load(place / "run" / "last.pt", weights_only=True)["progress"]["step"] == 1


def test_own_data_in_one_command(place, capsys):
    """What the README promises: an annotation file, its images, a validation, and a model that detects."""
    (place / "data" / "images").rename(place / "photos")
    own = str(Path("data", "instances.json"))
    command = ["train", "small.yaml", "--data", own, "--images", "photos", "--validate", own, "--device", "cpu"]
    assert glip(*command, "train.output=run", "train.validate_every=3", "train.steps=3") == 0
    said = capsys.readouterr().out
    assert f"{own}: 4 images, 9 boxes" in said and "AP50" in said and "trained model in run/model" in said
    assert (place / "run" / "best.pt").is_file()


def test_own_files_beside_sets_of_the_table(place, capsys):
    """--images is for the files; a set of the table keeps the folder that the table gives it."""
    (place / "mine").mkdir()
    (place / "data" / "datasets.yaml").write_text("listed: {annotations: instances.json, images: [images]}")
    own = write_coco(place / "mine")
    (place / "mine" / "images").rename(place / "mine" / "photos")
    sets = ["--data", str(own), "--data", "listed", "--images", "mine/photos", "--validate", "listed"]
    more = ["train.steps=1", "train.validate_every=1", "train.validate_images=3", "train.batch_size=2"]
    assert train("run", *sets, *more) == 0
    assert "listed: validating on 3 of 4 samples, evenly spread" in capsys.readouterr().out


def test_replay_and_wise_ft(place, capsys):
    """The two options against forgetting, of the same command; wise_ft=1 gives back the starting weights."""
    assert train("first", "train.steps=1") == 0
    (place / "old.yaml").write_text("data: {train: [{name: replayed, annotations: instances.json, images: [images]}]}")
    overrides = ["train.start=first/model", "data.replay=0.5", "data.replay_from=old.yaml"]
    assert train("second", *overrides, "train.wise_ft=1.0", "train.batch_size=2", "train.steps=2") == 0
    assert "replayed: 4 images, 9 boxes" in capsys.readouterr().out
    first, second = (load_file(place / run / "model" / "model.safetensors") for run in ("first", "second"))
    floats = [name for name, value in first.items() if value.is_floating_point()]
    assert all(torch.allclose(first[name], second[name]) for name in floats)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "model" / "config.json").read_text())


def test_a_start_gives_what_the_config_does_not_state(place, capsys):
    """Its sizes and options stay unless the config or an override says otherwise, be it with the default value."""
    first = ["model.image.min_size=88", "model.inference.threshold=0.3", "model.inference.inclusive=true"]
    assert train("first", "train.steps=1", *first) == 0
    start = ["train.start=first/model", "train.steps=1", "train.batch_size=1", "train.warmup=0"]
    usual = ModelConfig()
    for output, stated, wanted in (
        ("second", [], ("second", 88, 0.3)),
        ("third", [f"model.image.min_size={usual.image.min_size}"], ("third", usual.image.min_size, 0.3)),
        ("fourth", ["model.name=mine", "model.inference.threshold=0.5"], ("mine", 88, 0.5)),
    ):
        assert train(output, *start, *stated, config="bare.yaml") == 0
        config = config_of(place / output)
        assert (config["name"], config["image"]["min_size"], config["inference"]["threshold"]) == wanted
        assert not config["inference"]["inclusive"], "our readers give outer edges, whatever the start learned"
        assert config["trained_on"][-1] == "mine" and len(config["trained_on_data"]) == 1
        assert to_dict(load_config(place / output / "experiment.yaml").model) == config
    assert glip("train", "third/experiment.yaml", "train.output=fifth", "--device", "cpu") == 0
    assert config_of(place / "fifth")["image"]["min_size"] == usual.image.min_size
    assert train("sixth", *start, "model.head.channels=32") == 2
    assert "weights 'first/model' are not of this model" in capsys.readouterr().err


def test_other_annotations_in_the_same_folder_are_refused(place, capsys):
    assert train("run", "train.steps=2") == train("run", "train.steps=2") == 0
    assert "this run has finished its 2 steps" in capsys.readouterr().out
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(tree))
    assert train("run", "train.steps=4") == 2
    assert "'run' holds results made with training sets.drawn" in capsys.readouterr().err


def test_a_moved_project_goes_on(place, monkeypatch):
    """Folders typed relative to the project stay so in its checkpoint."""
    command = ["train", "small.yaml", "--data", "data/instances.json", "--images", "data/images", "--device", "cpu"]
    assert glip(*command, "train.output=run", "train.steps=1") == 0
    shutil.copytree(place, place / "moved", ignore=lambda folder, names: ["moved"])
    monkeypatch.chdir(place / "moved")
    assert glip(*command, "train.output=run", "train.steps=2") == 0
