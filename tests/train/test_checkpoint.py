"""A run's state is on disk whole or not at all, all of it comes back, and only to the run that it belongs to."""

import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import same

from glip.config import DatasetConfig, StepConfig, TrainConfig
from glip.errors import CheckpointError, ConfigError, DataError
from glip.experiment import Experiment, to_dict
from glip.train.checkpoint import FORMAT, LAST, read_progress, read_state, restore, save_state
from glip.train.distributed import Group
from glip.train.log import Progress
from glip.train.loop import MAY_CHANGE, check_experiment
from glip.train.optim import EMA
from glip.train.step import Stepper


def parts() -> tuple[Stepper, EMA]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    ema = EMA(model, 0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    ema.update(model)
    return Stepper(model, model, optimizer, StepConfig(), Group()), ema


def saved(folder, made: tuple[Stepper, EMA], progress: Progress | None = None):
    path = folder / LAST
    stepper, ema = made
    save_state([path], stepper, stepper.model.state_dict(), progress or Progress(step=1), {"config": 1}, ema)
    return path


def test_everything_comes_back(tmp_path):
    stepper, ema = parts()
    progress = Progress(step=7, best=0.5, skipped={"box without area": 2}, window={"loss": 1.25}, bad_in_row=1)
    path = saved(tmp_path, (stepper, ema), progress)
    drawn = torch.rand(3)
    other, other_ema = parts()
    state = read_state(path)
    restore(path, state, other, other.model.state_dict(), other_ema)
    assert Progress(**state["progress"]) == progress
    assert torch.equal(torch.rand(3), drawn), "random numbers continue where they stopped"
    assert same(dict(stepper.model.state_dict()), dict(other.model.state_dict()))
    assert same(ema.weights, other_ema.weights) and other_ema.updates == 1
    assert same(stepper.optimizer.state_dict(), other.optimizer.state_dict())
    assert state["made_from"] == {"config": 1}
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


def test_a_real_failing_write(tmp_path):
    before = saved(tmp_path, parts()).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writes fail behind 4 KB, as on a full disk
    try:
        with pytest.raises(OSError, match="could not be written"):
            saved(tmp_path, parts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / LAST).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", "cut", {"model": {}, "step": 3}, [1, 2], {"format": FORMAT}]
)
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    path = saved(tmp_path, parts())
    if isinstance(content, bytes | str):
        path.write_bytes(path.read_bytes()[:300] if content == "cut" else content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"last\.pt' cannot be read as a checkpoint"):
        read_state(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(5)),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(())),
        (("optimizer", "state", 0, "step"), "x"),
        (("optimizer", "state", 1), {}),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups", 0, "lr"), None),
        (("model", "0.bias"), 3),
        (("ema", "0.bias"), torch.zeros(3)),
        (("random", 0, "cpu"), torch.zeros(3)),
        (("random", 0, "cpu"), torch.zeros_like(torch.get_rng_state())),
        (("optimizer",), None),
    ],
)
def test_a_state_of_other_shapes_is_refused(path, value, tmp_path):
    stepper, ema = parts()
    file = saved(tmp_path, (stepper, ema))
    state = inner = read_state(file)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(CheckpointError, match=r"state '.*last\.pt' is broken or of another model"):
        restore(file, state, stepper, stepper.model.state_dict(), ema)


@pytest.mark.parametrize("progress", [{"speed": 1}, [1], None])
def test_progress_of_another_kind_is_refused(progress, tmp_path):
    file = saved(tmp_path, parts())
    with pytest.raises(CheckpointError, match=r"last\.pt' is no such training state"):
        read_progress(file, {**read_state(file), "progress": progress}, Progress)


# ---- the run that a checkpoint belongs to


@pytest.fixture
def first(tmp_path) -> Experiment:
    """An experiment with a checkpoint of no step in its folder."""
    experiment = Experiment(train=TrainConfig(output=str(tmp_path / "first"), schedule="step"))
    begin(experiment)
    return experiment


def begin(experiment: Experiment, done: int = 0) -> None:
    path = Path(experiment.train.output, LAST)
    path.parent.mkdir(exist_ok=True)
    torch.save({"format": FORMAT, "made_from": to_dict(experiment), "progress": {"step": done}}, path)


def changed(experiment: Experiment, part: str, **changes: object) -> Experiment:
    return replace(experiment, **{part: replace(getattr(experiment, part), **changes)})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("train", {"lr": 1.0}, "train.lr 0.0001, not 1.0"),
        ("train", {"start": "glip-nano"}, 'train.start null, not "glip-nano"'),
        ("data", {"crop": 224}, "data.crop 0, not 224"),
        ("data", {"train": (DatasetConfig(name="world"),)}, "data.train []"),
        ("train", {"lr": 1.0, "bert_lr": 1.0, "text_lr": 1.0, "clip": 3.0, "warmup": 3, "seed": 2}, "and 1 more"),
    ],
)
def test_what_decides_the_numbers_may_not_change(part, changes, message, first):
    with pytest.raises(DataError, match=re.escape(message)):
        check_experiment(changed(first, part, **changes))


def test_what_may_change(first):
    step = {"log_every": 1, "save_every": 7, "keep_every": 2, "validate_every": 5, "validate_images": 5}
    step |= {"max_bad_steps": 3, "micro_batch": 1, "loggers": ("mlflow",), "compile": True, "checkpointing": True}
    check_experiment(changed(first, "train", parallel="fsdp", **step))
    check_experiment(changed(first, "data", workers=4, root="/data", max_broken=0.5))
    check_experiment(changed(first, "model", name="other", license="MIT", trained_on=("a",), trained_on_data=("b",)))
    known = {f"{part}.{key}" for part, tree in to_dict(first).items() for key in tree}
    assert set(MAY_CHANGE) <= known


@pytest.mark.parametrize(
    ("schedule", "steps", "done", "allowed"),
    [
        ("step", 2000, 669, True),  # the next step, number 670 from 0, is the one at which the shorter run drops
        ("step", 2000, 670, False),
        ("step", 2000, 1000, False),  # a finished run
        ("step", 600, 535, True),
        ("step", 600, 536, False),
        ("cosine", 2000, 500, True),  # still in the warm-up, after which both begin at the same rate
        ("cosine", 2000, 501, False),
    ],
)
def test_steps_may_change_until_the_rates_do(schedule, steps, done, allowed, first):
    begun = changed(first, "train", schedule=schedule, drops=(0.67, 0.89) if steps > 1000 else (0.893,))
    begin(begun, done)
    now = changed(begun, "train", steps=steps)
    if allowed:
        check_experiment(now)
        return
    with pytest.raises(DataError, match=f"train.steps={steps} would have given them other learning rates"):
        check_experiment(now)


def test_images_that_cannot_be_shared():
    with pytest.raises(ConfigError, match=r"batch_size: 3 images cannot be shared by 2 processes"):
        check_experiment(Experiment(train=TrainConfig(batch_size=3)), Group(0, 2))
