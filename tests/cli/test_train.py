"""``glip train`` from json to detections, in-process, on four drawn images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import write_coco

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


@pytest.fixture
def place(tmp_path, command_line) -> Path:
    write_coco(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "bare.yaml").write_text(BARE)
    return tmp_path


@pytest.fixture
def train(place, command_line):
    """Train on the CPU in ``place``: exit code, standard output, standard error."""

    def run(output: str, *more: str, config: str = "small.yaml") -> tuple[int, str, str]:
        return command_line("train", config, "--device", "cpu", "data.root=data", f"train.output={output}", *more)

    return run


def test_train_resume_detect(train, place, command_line):
    code, said, _ = train("run")
    assert code == 0 and "drawn: 4 images, 9 boxes\n" in said and "step 6/6" in said and "glip detect" in said
    before = torch.load(place / "run" / "last.pt", weights_only=True)["model"]["pyramid.p6.weight"]
    code, said, _ = train("run", "train.steps=10")
    assert code == 0 and "at step 6" in said and "step 7/10" in said and "step 6/10" not in said
    rows = (place / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 11))
    after = torch.load(place / "run" / "last.pt", weights_only=True)
    assert after["progress"]["step"] == 10 and not torch.equal(after["model"]["pyramid.p6.weight"], before)
    assert "steps: 10" in (place / "run" / "experiment.yaml").read_text()
    image = Path("data", "images", "0.png")
    command = ("detect", image, "red circle. blue star", "--model", "run/model", "--out", "-", "--device", "cpu")
    record = json.loads(command_line(*command)[1])
    assert record["phrases"] == ["red circle", "blue star"] and record["width"] == 128
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(tree))
    code, _, err = train("run", "train.steps=12")
    assert code == 2 and "'run' holds results made with training sets.drawn" in err


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.root=nowhere"], "instances.json and images are not there: put them into the data folder 'nowhere'"),
        (["data.train=[]"], "data.train lists no set"),
        (["train.start=glip-x"], "model 'glip-x' is not known"),
        (["--images", "images"], "--images without --data or --validate"),
        (["data.replay_from=pretrain/nano"], "data.replay: got 0 with replay_from 'pretrain/nano'"),
        (["train.wise_ft=0.5"], "train.wise_ft: got 0.5 without train.start"),
        (["train.output=file/run", "data.root=nowhere"], "'file"),  # settings come before any dataset is read
        (["train.output=broken", "data.root=nowhere"], "last.pt' cannot be read"),
        (["--validate", "typo"], "'typo'"),
        (["train.lr=1.0e+30", "train.clip=1.0e+30", "train.max_bad_steps=2"], "lower learning rate"),
    ],
)
def test_errors_are_one_line(overrides, part, train, place):
    (place / "file").write_text("")
    (place / "broken").mkdir()
    (place / "broken" / "last.pt").write_bytes(b"not a checkpoint")
    code, _, err = train("run", *overrides)
    assert code == 2 and err.startswith("glip train: ") and part in err and err.count("\n") == 1


def test_own_files_beside_sets_of_the_table(train, place):
    """--images is for the files; a set of the table keeps the folder that the table gives it."""
    (place / "data" / "datasets.yaml").write_text("listed: {annotations: instances.json, images: [images]}")
    own = str(write_coco(place / "mine"))
    (place / "mine" / "images").rename(place / "photos")
    sets = ["--data", own, "--data", "listed", "--images", "photos", "--validate", "listed", "--validate", own]
    code, said, _ = train("run", *sets, "train.steps=1", "train.validate_images=3")
    assert code == 0 and f"{own}: 4 images, 9 boxes" in said and "trained model in run/model" in said
    assert "listed: validating on 3 of 4 samples, evenly spread" in said and "listed/AP50" in said
    assert (place / "run" / "best.pt").is_file()


def test_replay_and_wise_ft(train, place):
    """The two options against forgetting, of the same command; wise_ft=1 gives back the starting weights."""
    assert train("first", "train.steps=1")[0] == 0
    (place / "old.yaml").write_text("data: {train: [{name: replayed, annotations: instances.json, images: [images]}]}")
    overrides = ["train.start=first/model", "data.replay=0.5", "data.replay_from=old.yaml"]
    code, said, _ = train("second", *overrides, "train.wise_ft=1.0", "train.batch_size=2", "train.steps=2")
    assert code == 0 and "replayed: 4 images, 9 boxes" in said
    first, second = (load_file(place / run / "model" / "model.safetensors") for run in ("first", "second"))
    floats = [name for name, value in first.items() if value.is_floating_point()]
    assert all(torch.allclose(first[name], second[name]) for name in floats)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "model" / "config.json").read_text())


def test_a_start_gives_what_the_config_does_not_state(train, place, command_line):
    """Its sizes and options stay unless the config or an override says otherwise, be it with the default value."""
    first = ["model.image.min_size=88", "model.inference.threshold=0.3", "model.inference.inclusive=true"]
    assert train("first", "train.steps=1", *first)[0] == 0
    start = ["train.start=first/model", "train.steps=1", "train.batch_size=1", "train.warmup=0"]
    usual = ModelConfig()
    for output, stated, wanted in (
        ("second", [], ("second", 88, 0.3)),
        ("third", [f"model.image.min_size={usual.image.min_size}"], ("third", usual.image.min_size, 0.3)),
        ("fourth", ["model.name=mine", "model.inference.threshold=0.5"], ("mine", 88, 0.5)),
    ):
        assert train(output, *start, *stated, config="bare.yaml")[0] == 0
        config = config_of(place / output)
        assert (config["name"], config["image"]["min_size"], config["inference"]["threshold"]) == wanted
        assert not config["inference"]["inclusive"], "our readers give outer edges, whatever the start learned"
        assert config["trained_on"][-1] == "mine" and len(config["trained_on_data"]) == 2
        assert to_dict(load_config(place / output / "experiment.yaml").model) == config
    assert command_line("train", "third/experiment.yaml", "train.output=fifth", "--device", "cpu")[0] == 0
    assert config_of(place / "fifth")["image"]["min_size"] == usual.image.min_size
    code, _, err = train("sixth", *start, "model.head.channels=32")
    assert code == 2 and "weights 'first/model' are not of this model" in err


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_advice_of_a_finished_run_trains_longer(train, place, schedule):
    own = ("train.steps=2", f"train.schedule={schedule}", "train.drops=[0.5]")
    assert train("run", *own)[0] == 0
    (place / "run-2").mkdir()  # a name that is taken
    said = [train("run", *own)[1], train("run", *own, "train.steps=4")[2]]
    assert "this run has finished its 2 steps; to train longer" in said[0]
    assert "train.steps=4 would have given them other learning rates" in said[1]
    advice = ["train.start=run/model", "train.output=run-3"]
    assert all(" ".join(advice) in line for line in said)
    code, out, err = train("run", *own, *advice)
    assert code == 0 and "step 2/2" in out and "resumed" not in out and (place / "run-3" / "model").is_dir(), err


def test_a_moved_project_goes_on(train, place, monkeypatch):
    """Folders typed relative to the project stay so in its checkpoint."""
    own = ["--data", "data/instances.json", "--images", "data/images"]
    assert train("run", *own, "train.steps=1")[0] == 0
    shutil.copytree(place, place / "moved", ignore=lambda folder, names: ["moved"])
    monkeypatch.chdir(place / "moved")
    assert train("run", *own, "train.steps=2")[0] == 0
    assert "this run has finished its 2 steps" in train("run", *own, "train.steps=2")[1]


def test_a_trained_model_has_the_thresholds_of_its_validation(train, place, monkeypatch):
    """Its own, not those of the model that it starts from; one that is stated stays."""
    own = ["--validate", "data/instances.json", "train.steps=1"]
    monkeypatch.setattr("glip.evaluate.validate.thresholds_by_name", lambda ranked: {"red circle": 0.25, "owl": 0.5})
    code, said, _ = train("first", *own, "model.thresholds.owl=0.75")
    assert code == 0 and "the model has a score threshold for 2 classes: that of best F1 on validation" in said
    assert config_of(place / "first")["thresholds"] == {"red circle": 0.25, "owl": 0.75}
    assert train("second", "train.start=first/model", "train.steps=1")[0] == 0
    assert config_of(place / "second")["thresholds"] == {}
