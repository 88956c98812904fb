"""Every shipped config resolves and builds; every mistake in one is named before anything loads."""

from pathlib import Path

import pytest
import torch

from glip.errors import ConfigError
from glip.experiment import Experiment, config_folder, find_config, to_dict
from glip.model.glip import build
from glip.schema import parse
from glip.train.start import load_config

FOLDER = config_folder()
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yaml")
    if path.name not in ("datasets.yaml", "models.yaml", "odinw.yaml") and path.parent.name != "tasks"
)


@pytest.fixture
def write(tmp_path):
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize("name", NAMES)
def test_every_config_resolves_and_builds(name):
    """Its first three lines: what it reproduces, the command, the expected number."""
    experiment = load_config(name)
    assert parse(Experiment, to_dict(experiment)) == experiment == load_config(FOLDER / f"{name}.yaml")
    with torch.device("meta"):
        model = build(experiment.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("# ") and len(line) > 10 for line in lines[:3]) and not lines[3].startswith("#")
    assert any("glip " in line or "python tools/" in line for line in lines[:3])


def test_overrides_and_numbers_as_people_write_them(write):
    overrides = ["train.lr=1e-4", "model.head.fusion=false", "model.vision.widths=[8, 16, 32, 64]", "train.start=null"]
    experiment = load_config("tiny", [*overrides, "train.output=a=b", "train.clip=3"])
    assert experiment.model.head.fusion is False and experiment.model.vision.widths == (8, 16, 32, 64)
    train = experiment.train
    assert (train.lr, train.start, train.output, train.clip) == (1e-4, None, "a=b", 3.0)
    assert isinstance(train.clip, float)
    assert load_config(write("a.yaml", "train: {weight_decay: .1}")).train.weight_decay == 0.1


def test_extends_merges_maps_and_replaces_lists(write):
    write("parent.yaml", "model: {vision: {window: 9}}\ntrain: {steps: 5, warmup: 1, drops: [0.1, 0.2]}")
    experiment = load_config(write("child.yaml", "extends: parent.yaml\ntrain: {warmup: 2, drops: [0.3]}"))
    assert (experiment.model.vision.window, experiment.train.steps, experiment.train.warmup) == (9, 5, 2)
    assert experiment.train.drops == (0.3,)


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
    ("override", "message"),
    [
        ("model.languge.layers=2", "model.languge: no such key (did you mean 'language'?). Known keys: name, vision,"),
        ("optim.lr=2", "optim: no such key. Known keys: model, data, train"),
        ("model.vision.kind=swinn", "model.vision.kind: got 'swinn' (did you mean 'swin'?): give one of swin, resnet"),
        ("model.language.bits=16", "model.language.bits: got 16: give one of 8, 32"),
        ("model.language.heads=5", "model.language.heads: got 5: give a divisor of hidden"),
        ("model.vision.depths=[1]", "model.vision.depths: got [1]: give a list of 4; each a whole number"),
        ("train.steps=ten", "train.steps: got 'ten': give a whole number, 1 or more"),
        ("train.steps=true", "train.steps: got True: give a whole number"),
        ("train.steps=", "train.steps: got None: give a whole number"),
        ("train.lr=true", "train.lr: got True: give a number"),
        ("train.lr=-1e-3", "train.lr: got -0.001: give a number, 0 or more"),
        ("train.lr=.nan", "train.lr: got nan"),
        ("train.bert_lr=.inf", "train.bert_lr: got inf"),
        ("train.warmup=300000", "train.warmup: got 300000 of "),
        ("train.drops=[89]", "train.drops[0]: got 89: give a number, 0 or more and at most 1"),
        ("train.ema=1", "train.ema: got 1: give a number, 0 or more and less than 1"),
        ("train={start: null, wise_ft: 0.5, warmup: 0}", "train.wise_ft: got 0.5 without train.start"),
        ("data.short_side=[]", "data.short_side: got []: give a list that is not empty"),
        ("data.replay=0.3", "data.replay: got 0.3 with replay_from ''"),
        ("model.head.fusion=1", "model.head.fusion: got 1: give true or false"),
        ("model.vision.widths=5", "model.vision.widths: got 5: give a list of 4"),
        ("model.vision.widths=[4, x, 2, 3]", "model.vision.widths[1]: got 'x': give a whole number"),
        ("data.train=[{weight: 2}]", "data.train[0]: missing key 'name'"),
        ("data.train=[{name: a, wieght: 2}]", "data.train[0].wieght: no such key (did you mean 'weight'?)"),
        ("model=5", "model: got 5: give a map of keys"),
        ("model.name.x=5", "model.name: got {'x': 5}: give text"),
        ("train.steps", "override 'train.steps': give key.path=value, such as train.steps=100"),
        ("=3", "override '=3': give key.path=value"),
        ("train.steps=[1", "train.steps=[1: not valid YAML: while parsing"),
    ],
)
def test_wrong_overrides_are_explained(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", [override])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["glip_tt", "", "/nowhere/x.yaml", "configs"])
def test_missing_file_is_explained(path):
    with pytest.raises(ConfigError, match=r"no such file.*pretrain/nano") as caught:
        load_config(path)
    assert path != "glip_tt" or "did you mean 'glip_t'?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"model: {vision: [", "not valid YAML"),
        (b"\x89PNG\xff\xfe", "broken.yaml: not valid YAML"),
        (b"- a\n- b", "broken.yaml: got ['a', 'b']: give a map of keys"),
        (b"just words", "broken.yaml: got 'just words': give a map of keys"),
        (b"model:", "model: got None: give a map of keys"),
        (b"1: 2", "1: no such key"),
        (b"extends: nowhere.yaml", "'nowhere.yaml': no such file"),
        (b"extends: broken.yaml", "extends itself, by way of"),
    ],
)
def test_broken_files_are_explained(tmp_path, text, message):
    (tmp_path / "broken.yaml").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "broken.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


LAUGHS = "a: &a [1, 2]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=" + "9" * 400, r"train\.lr: got 9{150}\.\.\. \(400 characters\): give a number, 0 or more$"),
        ("train.steps=" + "9" * 400, r"give a whole number, 1 or more and at most 9,007,199,254,740,992$"),
        ("train.steps=" + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("train.steps=" + "[" * 1200, "not valid YAML"),
        ("train.steps=2020-13-01", "train.steps: got '2020-13-01': give a whole number"),
        ("train.steps=!!timestamp x", "train.steps=!!timestamp x: not valid YAML"),
        ("train.steps=!!int ''", "train.steps=!!int '': not valid YAML"),
        ("train.output=&a [*a]", "more than 1,000,000 values, or one that holds itself"),
        ("train.\x1b[31mlr=1", r"train\.\\x1b\[31mlr: no such key"),
    ],
)
def test_hostile_values_are_one_sentence(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("tiny", [override])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_few_bytes_of_yaml_cannot_fill_the_memory(write):
    with pytest.raises(ConfigError, match="more than 1,000,000 values"):
        load_config(write("laughs.yaml", LAUGHS))
