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
from glip.experiment import to_dict, to_yaml
from glip.train.run import starting_model
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
    assert "drawn: 4 images, 9 boxes\n" in said and "step 6/6" in said and "glip detect" in said
    before = torch.load(place / "run" / "last.pt", weights_only=True)["model"]["pyramid.p6.weight"]
    assert glip(*command, "train.steps=10") == 0
    said = capsys.readouterr().out
    assert "at step 6" in said and "step 7/10" in said and "step 6/10" not in said
    assert steps_of(place) == list(range(1, 11))
    after = torch.load(place / "run" / "last.pt", weights_only=True)
    assert after["progress"]["step"] == 10 and not torch.equal(after["model"]["pyramid.p6.weight"], before)
    assert "steps: 10" in (place / "run" / "experiment.yaml").read_text()
    model = str(Path("run", "model"))
    image = str(Path("data", "images", "0.png"))
    assert glip("detect", image, "red circle. blue star", "--model", model, "--json", "-", "--device", "cpu") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["phrases"] == ["red circle", "blue star"] and record["width"] == 128


def test_left_out_is_said(place, capsys):
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    tree["annotations"] += [{"image_id": 0, "category_id": 10, "bbox": [1, 2, 3]}] * 2
    file.write_text(json.dumps(tree))
    assert glip("train", "small.yaml", "train.output=run", "data.root=data", "train.steps=1") == 0
    said = capsys.readouterr().out
    assert "4 images, 9 boxes; left out: 2 x" in said


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "data.root or GLIP_DATA"),
        (["data.root=nowhere"], "'nowhere/instances.json' are not there: set data.root or GLIP_DATA"),
        (["data.train=[]", "data.root=data"], "data.train lists no set"),
        (["train.stepz=3"], "train.stepz: no such key (did you mean 'steps'?)"),
        (["train.steps=many"], "train.steps: expected int, got 'many'"),
        (["train.steps"], "key.path=value"),
        (["data.root=data", "train.start=glip-x"], "model 'glip-x' is not known"),
        (["--validate", "no_such_set"], "--validate: the config never validates: give train.validate_every"),
        (["--images", "images"], "--images says where the images of --data and --validate lie"),
        (["data.root=data", "data.replay_from=pretrain/nano"], "without data.replay: give the share"),
        (["train.wise_ft=0.5"], "train.wise_ft: got 0.5 without train.start"),
        (["model.vision.kind=resnet", "model.vision.pretrained=x"], "'x' cannot be read into a resnet"),
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
        os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    monkeypatch.setattr("glip.train.loop.rate_factor", interrupt)
    assert glip("train", "small.yaml", "train.output=run", "data.root=data", "--device", "cpu") == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert torch.load(place / "run" / "last.pt", weights_only=True)["progress"]["step"] == 1


def test_a_run_that_stays_bad_is_one_line(place, capsys):
    overrides = ["train.output=run", "data.root=data", "train.lr=1.0e+30", "train.clip=1.0e+30", "train.warmup=0"]
    assert glip("train", "small.yaml", *overrides, "train.max_bad_steps=2", "--device", "cpu") == 2
    said = capsys.readouterr().err.strip()
    assert "lower train.lr" in said and "\n" not in said


def test_own_data_in_one_command(place, capsys):
    """What the README promises: an annotation file, its images, a validation, and a model that detects."""
    (place / "data" / "images").rename(place / "photos")
    own = str(Path("data", "instances.json"))
    command = ["train", "small.yaml", "--data", own, "--images", "photos", "--validate", own, "--device", "cpu"]
    assert glip(*command, "train.output=run", "train.validate_every=3", "train.steps=3") == 0
    said = capsys.readouterr().out
    assert f"{own}: 4 images, 9 boxes" in said and "AP50" in said and "trained model in run/model" in said
    assert (place / "run" / "best.pt").is_file()


def test_replay_and_kept_start(place, capsys):
    """The two options against forgetting, of the same command; wise_ft=1 gives back the starting weights."""
    assert glip("train", "small.yaml", "train.output=first", "data.root=data", "train.steps=1", "--device", "cpu") == 0
    (place / "old.yaml").write_text("data: {train: [{name: replayed, annotations: instances.json, images: [images]}]}")
    start = str(Path("first", "model"))
    overrides = ["data.root=data", f"train.start={start}", "data.replay=0.5", "data.replay_from=old.yaml"]
    command = ["train", "small.yaml", *overrides, "train.output=second", "train.wise_ft=1.0", "train.batch_size=2"]
    assert glip(*command, "train.steps=2", "--device", "cpu") == 0
    assert "replayed: 4 images, 9 boxes" in capsys.readouterr().out
    first, second = (load_file(place / run / "model" / "model.safetensors") for run in ("first", "second"))
    floats = [name for name, value in first.items() if value.is_floating_point()]
    assert all(torch.allclose(first[name], second[name]) for name in floats)


def test_the_model_of_a_config_starts_from_weights(place, capsys):
    """Where the config describes a model its image sizes hold; other sizes of layers are refused in one line."""
    first = ["train", "small.yaml", "train.output=first", "data.root=data", "train.steps=1", "--device", "cpu"]
    assert glip(*first) == 0
    start = ["train.output=second", "train.start=first/model", "data.root=data", "train.steps=1", "--device", "cpu"]
    assert glip("train", "small.yaml", *start, "model.image.min_size=88") == 0
    config = json.loads((place / "second" / "model" / "config.json").read_text())
    assert config["image"]["min_size"] == 88
    assert glip("train", "small.yaml", *start, "model.head.channels=32", "train.output=third") == 2
    assert "weights 'first/model' are not of this model" in capsys.readouterr().err
    (place / "bare.yaml").write_text(
        "data: {crop: 64, train: [{name: mine, annotations: instances.json, images: [images]}]}"
    )
    assert glip("train", "bare.yaml", *start, "train.batch_size=1", "train.warmup=0", "train.output=fourth") == 0
    config = json.loads((place / "fourth" / "model" / "config.json").read_text())
    assert config["name"] == "fourth" and config["trained_on"][-1] == "mine", "named after its folder"
    assert config["trained_on_data"] and len(set(config["trained_on_data"])) == len(config["trained_on_data"])
    bare = [
        "train",
        "bare.yaml",
        *start,
        "train.batch_size=1",
        "train.warmup=0",
        "model.name=mine",
        "model.inference.threshold=0.3",
    ]
    assert glip(*bare, "train.output=fifth") == 0
    config = json.loads((place / "fifth" / "model" / "config.json").read_text())
    assert (config["name"], config["inference"]["threshold"], config["head"]["blocks"]) == ("mine", 0.3, 1)


def test_boxes_that_match_no_class_are_an_error(place, capsys):
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    for row in tree["categories"]:
        row["id"] += 500
    file.write_text(json.dumps(tree))
    assert glip("train", "small.yaml", "train.output=run", "data.root=data") == 2
    assert "no box of a known class in 4 images" in capsys.readouterr().err


def test_what_is_stated_has_its_way_though_it_is_the_default(place):
    """A start's sizes stay unless the config or an override says otherwise, be it the value that is usual."""
    first = ["train", "small.yaml", "train.output=first", "data.root=data", "train.steps=1", "--device", "cpu"]
    assert (
        glip(*first, "model.image.min_size=88", "model.inference.threshold=0.3", "model.inference.inclusive=true") == 0
    )
    (place / "bare.yaml").write_text(
        "data: {crop: 64, train: [{name: mine, annotations: instances.json, images: [images]}]}"
    )
    start = ["train.start=first/model", "data.root=data", "train.steps=1", "train.batch_size=1", "train.warmup=0"]
    bare = ["train", "bare.yaml", *start, "--device", "cpu"]
    usual = ModelConfig()
    for output, said, wanted in (
        ("second", [], (88, 0.3)),
        ("third", [f"model.image.min_size={usual.image.min_size}"], (usual.image.min_size, 0.3)),
        ("fourth", [f"model.inference.threshold={usual.inference.threshold}"], (88, usual.inference.threshold)),
    ):
        assert glip(*bare, *said, f"train.output={output}") == 0
        config = json.loads((place / output / "model" / "config.json").read_text())
        assert (config["image"]["min_size"], config["inference"]["threshold"]) == wanted
        assert not config["inference"]["inclusive"], "our readers give outer edges, whatever the start learned"
        resolved = load_config(place / output / "experiment.yaml")
        assert to_dict(resolved.model) == config
    assert glip("train", "third/experiment.yaml", "train.output=fifth", "--device", "cpu") == 0
    config = json.loads((place / "fifth" / "model" / "config.json").read_text())
    assert config["image"]["min_size"] == usual.image.min_size


def test_other_annotations_in_the_same_folder_are_refused(place, capsys):
    command = ["train", "small.yaml", "train.output=run", "data.root=data", "--device", "cpu"]
    assert glip(*command, "train.steps=2") == 0
    assert glip(*command, "train.steps=2") == 0
    assert "this run has finished its 2 steps" in capsys.readouterr().out
    file = place / "data" / "instances.json"
    tree = json.loads(file.read_text())
    first = tree["annotations"][0]["bbox"]
    tree["annotations"][0]["bbox"] = [value + 1 for value in first]
    file.write_text(json.dumps(tree))
    assert glip(*command, "train.steps=4") == 2
    assert "'run' holds a run with training sets.drawn 4 images, 9 boxes, " in capsys.readouterr().err
    tree["annotations"].pop()
    file.write_text(json.dumps(tree))
    assert glip(*command, "train.steps=4") == 2
    assert ", not 4 images, 8 boxes, " in capsys.readouterr().err


def test_settings_are_refused_before_any_set_is_read(place, capsys):
    def refused(*overrides: str) -> str:
        assert glip("train", "small.yaml", "data.root=nowhere", "--device", "cpu", *overrides) == 2
        return capsys.readouterr().err

    assert "train.warmup: got 50" in refused("train.warmup=50")
    (place / "file").write_text("")
    assert "file" in refused("train.output=file/run") and "nowhere" not in refused("train.output=file/run")
    (place / "run").mkdir()
    (place / "run" / "last.pt").write_bytes(b"not a checkpoint")
    assert "last.pt' cannot be read" in refused("train.output=run")


def test_own_files_beside_sets_of_the_table(place, capsys):
    """--images is for the files; a set of the table keeps the folder that the table gives it."""
    (place / "mine").mkdir()
    (place / "data" / "datasets.yaml").write_text("listed: {annotations: instances.json, images: [images]}")
    own = write_coco(place / "mine")
    (place / "mine" / "images").rename(place / "mine" / "photos")
    command = ["train", "small.yaml", "--data", str(own), "--data", "listed", "--images", "mine/photos"]
    more = ["--validate", "listed", "data.root=data", "train.output=run", "train.steps=1", "train.validate_every=1"]
    assert glip(*command, *more, "train.validate_images=3", "train.batch_size=2", "--device", "cpu") == 0
    assert "listed: validated on 3 of 4 samples, evenly spread" in capsys.readouterr().out


def test_a_printed_config_is_the_same_config(place, capsys):
    """What glip config prints holds what was stated, and no more, so that a start's own sizes stay."""
    (place / "mine.yaml").write_text("model: {image: {min_size: 800}}\ntrain: {start: glip-nano}")
    assert glip("config", "mine.yaml", "model.name=own") == 0
    (place / "printed.yaml").write_text(capsys.readouterr().out)
    printed = load_config("printed.yaml")
    assert printed == load_config("mine.yaml", ["model.name=own"])
    assert printed.stated == ("model.name", "model.image.min_size")
    (place / "child.yaml").write_text("extends: printed.yaml\nmodel: {image: {max_size: 1333}}")
    model = starting_model(load_config("child.yaml", ["model.inference.threshold=0.5"]))[1]
    assert (model.name, model.image.min_size, model.image.max_size) == ("own", 800, 1333)
    assert model.inference.threshold == 0.5 and model.vision.kind == "resnet"


def test_validation_sets_are_found_before_training_sets_are_read(place, capsys):
    command = ["train", "small.yaml", "data.root=data", "train.validate_every=1", "--device", "cpu"]
    assert glip(*command, "--validate", "typo") == 2
    said = capsys.readouterr()
    assert "set 'typo' is neither in datasets.yaml nor a file" in said.err and "images" not in said.out


def test_a_moved_project_goes_on(place, monkeypatch):
    """Folders typed relative to the project stay so in its checkpoint."""
    command = ["train", "small.yaml", "--data", "data/instances.json", "--images", "data/images", "--device", "cpu"]
    assert glip(*command, "train.output=run", "train.steps=1") == 0
    shutil.copytree(place, place / "moved", ignore=lambda folder, names: ["moved"])
    monkeypatch.chdir(place / "moved")
    assert glip(*command, "train.output=run", "train.steps=2") == 0


def test_resolved_experiment_can_be_run_again(place):
    experiment = load_config("small.yaml")
    (place / "again.yaml").write_text(to_yaml(experiment))
    assert load_config("again.yaml") == experiment
