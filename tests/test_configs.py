"""Every shipped config resolves and builds; every mistake in one is named before anything loads."""

from pathlib import Path

import pytest
import torch

from glip.errors import ConfigError
from glip.experiment import Experiment, config_folder, find_config, to_dict, to_yaml
from glip.model.glip import build
from glip.model.release import load_yacs
from glip.schema import parse
from glip.train.start import load_config

FOLDER = config_folder()
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yaml")
    if path.name not in ("datasets.yaml", "odinw.yaml") and path.parent.name != "tasks"
)


@pytest.fixture
def write(tmp_path):
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize("name", NAMES)
def test_every_config_resolves(name):
    experiment = load_config(name)
    assert parse(Experiment, to_dict(experiment)) == experiment
    assert load_config(FOLDER / f"{name}.yaml") == experiment


@pytest.mark.parametrize("name", NAMES)
def test_every_config_begins_with_three_lines(name):
    """What it reproduces, the command, the expected number."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("# ") and len(line) > 10 for line in lines[:3])
    assert not lines[3].startswith("#")
    assert any("glip " in line or "python tools/" in line for line in lines[:3])


@pytest.mark.parametrize("name", NAMES)
def test_every_model_builds(name):
    with torch.device("meta"):
        model = build(load_config(name).model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6


def test_printed_config_reads_back(write):
    experiment = load_config("pretrain/nano", ["train.steps=7", "train.warmup=1"])
    assert load_config(write("again.yaml", to_yaml(experiment))) == experiment


def test_overrides():
    experiment = load_config(
        "tiny", ["train.lr=1e-4", "model.head.fusion=false", "model.vision.widths=[8, 16, 24, 32]"]
    )
    assert experiment.train.lr == 1e-4
    assert experiment.model.head.fusion is False
    assert experiment.model.vision.widths == (8, 16, 24, 32)
    assert load_config("tiny", ["train.start=null", "train.output=a=b"]).train.output == "a=b"


def test_floats_may_be_written_as_people_write_them(write):
    path = write("a.yaml", "train: {lr: 1e-4, clip: 3, weight_decay: .1}")
    train = load_config(path).train
    assert (train.lr, train.clip, train.weight_decay) == (1e-4, 3.0, 0.1)
    assert isinstance(train.clip, float)


def test_extends_merges_maps_and_replaces_lists(write):
    write("parent.yaml", "model: {vision: {widths: [1, 2, 3], window: 9}}\ntrain: {steps: 5, warmup: 1}")
    child = write("child.yaml", "extends: parent.yaml\nmodel: {vision: {widths: [7]}}")
    experiment = load_config(child)
    assert experiment.model.vision.widths == (7,)
    assert (experiment.model.vision.window, experiment.train.steps) == (9, 5)


def test_extends_an_installed_config(write):
    assert load_config(write("mine.yaml", "extends: glip_t.yaml\ntrain: {steps: 3, warmup: 0}")).model.name == "glip-t"
    assert load_config(write("mine.yaml", "extends: pretrain/nano")).model.name == "glip-nano"


def test_empty_file_is_the_default_experiment(write):
    assert load_config(write("empty.yaml", "# nothing\n")) == Experiment()


def test_names_with_dots_are_not_cut():
    with pytest.raises(ConfigError, match=r"'glip_t.old': no such file \(did you mean 'glip_t'"):
        find_config("glip_t.old")
    assert find_config("glip_t.yaml") == find_config("glip_t") == FOLDER / "glip_t.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.languge.layers=2"],
            "model.languge: no such key (did you mean 'language'?). Known keys: name, vision,",
        ),
        (["train.stepps=2"], "train.stepps: no such key (did you mean 'steps'?)"),
        (["optim.lr=2"], "optim: no such key. Known keys: model, data, train"),
        (
            ["model.vision.kind=swinn"],
            "model.vision.kind: got 'swinn' (did you mean 'swin'?): give one of swin, resnet",
        ),
        (["model.language.bits=16"], "model.language.bits: got 16: give one of 8, 32"),
        (["model.language.bits=true"], "model.language.bits: got True: give one of 8, 32"),
        (["train.steps=ten"], "train.steps: got 'ten': give a whole number, 1 or more"),
        (["train.steps=1.5"], "train.steps: got 1.5: give a whole number"),
        (["train.steps=true"], "train.steps: got True: give a whole number"),
        (["train.steps="], "train.steps: got None: give a whole number"),
        (["train.lr=fast"], "train.lr: got 'fast': give a number"),
        (["train.lr=true"], "train.lr: got True: give a number"),
        (["model.head.fusion=1"], "model.head.fusion: got 1: give true or false"),
        (["model.vision.widths=5"], "model.vision.widths: got 5: give a list"),
        (["model.vision.widths=[1, x]"], "model.vision.widths[1]: got 'x': give a whole number"),
        (["data.train=[{weight: 2}]"], "data.train[0]: missing key 'name'"),
        (["data.train=[{name: a, wieght: 2}]"], "data.train[0].wieght: no such key (did you mean 'weight'?)"),
        (["model=5"], "model: got 5: give a map of keys"),
        (["model.name.x=5"], "model.name.x: 'name' is a value, not a map of keys"),
        (["train.steps"], "override 'train.steps': give key.path=value, such as train.steps=100"),
        (["=3"], "override '=3': give key.path=value"),
        (["train.steps=[1"], "train.steps=[1: not valid YAML: while parsing"),
        (["train.steps=1", "train.steps.x=1"], "train.steps.x: 'steps' is a value, not a map of keys"),
    ],
)
def test_wrong_overrides_are_explained(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_missing_file_is_explained():
    with pytest.raises(ConfigError, match=r"'glip_tt': no such file \(did you mean 'glip_t'\?\).*pretrain/nano"):
        load_config("glip_tt")
    for path in ("", "/nowhere/x.yaml", "configs"):
        with pytest.raises(ConfigError, match="no such file"):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {vision: [", "not valid YAML"),
        ("- a\n- b", "expected a map of keys, got list"),
        ("just words", "expected a map of keys, got str"),
        ("model:", "model: got None: give a map of keys"),
        ("1: 2", "1: no such key"),
        ("extends: nowhere.yaml", "'nowhere.yaml': no such file"),
    ],
)
def test_broken_files_are_explained(write, text, message):
    path = write("broken.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_binary_file_is_explained(tmp_path):
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="image.yaml: not UTF-8 text"):
        load_config(path)


def test_chain_too_deep(write):
    write("0.yaml", "train: {steps: 1, warmup: 0}")
    for number in range(1, 7):
        write(f"{number}.yaml", f"extends: {number - 1}.yaml")
    assert load_config(write("5.yaml", "extends: 4.yaml")).train.steps == 1
    with pytest.raises(ConfigError, match="'extends' goes deeper than 5 files; flatten the chain"):
        load_config(write("6.yaml", "extends: 5.yaml"))
    with pytest.raises(ConfigError, match="goes deeper"):
        load_config(write("loop.yaml", "extends: loop.yaml"))


def test_a_config_of_the_release_is_read(write):
    path = write(
        "release.yaml",
        "MODEL: {DYHEAD: {SCORE_AGG: MAX}, ATSS: {DETECTIONS_PER_IMG: 300}}\nINPUT: {MIN_SIZE_TEST: 640}",
    )
    model = load_yacs(path, Experiment().model)
    assert (model.inference.aggregate, model.inference.max_detections, model.image.min_size) == ("max", 300, 640)
    assert model.image.max_size == 1333
    with pytest.raises(ConfigError, match="aggregate: got 'onehot': give one of mean, max"):
        load_yacs(write("bad.yaml", "MODEL: {DYHEAD: {SCORE_AGG: ONEHOT}}"), Experiment().model)
