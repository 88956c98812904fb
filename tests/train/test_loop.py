"""The loop on a tiny model: resumed equals uninterrupted, bad batches break nothing, frozen parts stay."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from runs import (
    RESNET,
    STILL,
    SWIN,
    Found,
    batches_of,
    equal,
    metrics,
    poisoned,
    quiet,
    same,
    settings,
    step_of,
    stream,
)
from small import seeded

from glip.config import DatasetConfig
from glip.data.loader import Step
from glip.errors import DataError, TrainingError
from glip.model.glip import GLIP
from glip.signals import Interrupted
from glip.train.loop import train
from glip.train.optim import wise_ft


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return [step_of(batch) for batch in batches_of(1)[:3]]


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_resumed_run_equals_an_uninterrupted_one(config, steps, tmp_path):
    changes = {"ema": 0.9, "log_every": 3}  # the checkpoint falls between two lines
    whole = train(settings(tmp_path / "a", **changes), seeded(config), stream(steps, 6), report=quiet)
    with pytest.raises(KeyboardInterrupt):  # after step 5, of which the checkpoint holds 4
        train(settings(tmp_path / "b", **changes), seeded(config), stream(steps, 6, stop=5), report=quiet)
    torch.rand(17)
    said: list[str] = []
    other = seeded(config, seed=3)
    resumed = train(settings(tmp_path / "b", **changes), other, stream(steps, 6), report=said.append)
    assert "at step 4" in said[0]
    assert equal(whole, resumed) and not whole.training
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert [row["step"] for row in metrics(tmp_path / "a")] == [3, 6]
    first, second = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in "ab")
    for state in (first, second):
        state.pop("made_from")  # the output folders differ
    assert same(first, second), "weights, average, optimizer, random numbers, counts"


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_a_bad_batch_leaves_everything_alone(config, steps, tmp_path):
    changes = {"ema": 0.9, "save_every": 1, "log_every": 1, "warmup": 0, "drops": ()}
    said: list[str] = []
    train(settings(tmp_path, steps=1, **changes), seeded(config), stream(steps, 1), report=quiet)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    bad = stream([steps[0], poisoned(steps[0]), steps[2]], 3)
    train(settings(tmp_path, steps=2, **changes), seeded(config), bad, report=said.append)
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(same(before[key], after[key]) for key in ("model", "ema", "ema_updates"))
    assert same(before["optimizer"]["state"], after["optimizer"]["state"])
    assert after["progress"]["skipped_steps"] == after["progress"]["bad_in_row"] == 1 and "1 skipped" in said[1]
    assert metrics(tmp_path)[-1]["loss"] is None and metrics(tmp_path)[-1]["skipped_steps"] == 1
    train(settings(tmp_path, steps=3, **changes), seeded(config), bad, report=said.append)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert not same(last["model"], after["model"]), "and the next one is learned from"
    assert last["progress"]["bad_in_row"] == 0 and said[-1] == "steps skipped: 1 of 3"


def test_a_run_that_stays_bad_stops_with_a_diagnosis(steps, tmp_path):
    bad = [steps[0], poisoned(steps[0])]
    experiment = settings(tmp_path, max_bad_steps=2, save_every=50)

    def since(start):
        return iter([*bad, bad[1], bad[1], steps[2], steps[2]][start:])

    with pytest.raises(TrainingError) as caught:
        train(experiment, seeded(SWIN), since, report=quiet)
    parts = ("2 steps in a row, up to step 3", "token nan", "vision nan", "rate 0.001", "last.pt", "lower train.lr")
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)
    stored = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in stored["model"].values())
    assert stored["progress"]["step"] == 3
    finished = train(experiment, seeded(SWIN), since, report=quiet)
    assert all(torch.isfinite(value).all() for value in finished.state_dict().values()), "goes on behind them"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_behind_its_step(number, steps, tmp_path):
    whole = train(settings(tmp_path / "a"), seeded(SWIN), stream(steps, 6), report=quiet)
    before = signal.getsignal(number)

    def signalled(start):
        for step in range(start, 6):
            if step == 2:
                os.kill(os.getpid(), number)
            yield steps[step % 3]

    with pytest.raises(Interrupted) as stopped:
        train(settings(tmp_path / "b", save_every=50), seeded(SWIN), signalled, report=quiet)
    assert stopped.value.code == 128 + number and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["progress"]["step"] == 3
    resumed = train(settings(tmp_path / "b"), seeded(SWIN), stream(steps, 6), report=quiet)
    assert equal(whole, resumed) and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_best_validation_is_kept_and_shipped(steps, tmp_path):
    figures = iter([0.3, 0.7, 0.5])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: GLIP) -> Found:
        assert not model.training
        torch.rand(3)
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return Found(next(figures))

    said: list[str] = []
    changes = {"validate_every": 2, "ema": 0.5, "wise_ft": 0.25, "keep_every": 3}
    experiment = settings(tmp_path / "a", **changes)
    start = seeded(SWIN)
    begun = {key: value.clone() for key, value in start.state_dict().items()}
    shipped = train(experiment, start, stream(steps, 6), validate=validate, report=said.append)
    assert same(dict(shipped.state_dict()), seen[1]), "step 4, as it was validated"
    best = torch.load(tmp_path / "a" / "best.pt", weights_only=True)
    assert best["progress"]["best"] == 0.7 and best["progress"]["step"] == best["progress"]["best_step"] == 4
    assert same(seen[1], wise_ft(begun, best["model"] | best["ema"], 0.25))
    assert not same(seen[1], best["model"])
    rows = [row for row in metrics(tmp_path / "a") if "validation" in row]
    assert [(row["step"], row["best"]) for row in rows] == [(2, True), (4, True), (6, False)]
    assert "validated best (0.700)" in said[-1]
    assert {file.name for file in (tmp_path / "a").glob("*.pt")} == {"last.pt", "best.pt", "step-3.pt", "step-6.pt"}
    unvalidated = settings(tmp_path / "b", **{**changes, "validate_every": 0})
    train(unvalidated, seeded(SWIN), stream(steps, 6), report=quiet)
    last = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in "ab"]
    assert same(last[0]["model"], last[1]["model"]), "validation changes nothing"


def test_a_validation_made_up_for_is_reported_once_after_a_kill(steps, tmp_path):
    def signalled(start):
        for step in range(start, 2):
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield steps[step]

    experiment = settings(tmp_path, steps=4, save_every=50, validate_every=2)
    found = {"validate": lambda model: Found(0.1), "report": quiet}
    with pytest.raises(Interrupted):
        train(experiment, seeded(SWIN), signalled, **found)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, seeded(SWIN), stream(steps, 4, stop=2), **found)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["validated"] == 2
    train(experiment, seeded(SWIN), stream(steps, 4), **found)
    assert [row["step"] for row in metrics(tmp_path) if "validation" in row] == [2, 4]


def test_a_validation_that_fails_loses_no_step(steps, tmp_path):
    def fail(model: GLIP) -> Found:
        raise ValueError("validation set 'x': nothing to score")

    experiment = settings(tmp_path, steps=4, save_every=50, keep_every=2, validate_every=2)
    with pytest.raises(ValueError, match="nothing to score"):
        train(experiment, seeded(SWIN), stream(steps, 4), validate=fail, report=quiet)
    assert (tmp_path / "step-2.pt").is_file()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["step"] == 2
    train(experiment, seeded(SWIN), stream(steps, 4), validate=lambda model: Found(0.1), report=quiet)
    last = torch.load(tmp_path / "last.pt", weights_only=True)["progress"]
    assert (last["step"], last["validated"], last["best"], last["best_step"]) == (4, 4, 0.1, 2)


@pytest.mark.parametrize("now", ["other sets", "no validation", "never", "the same"])
def test_the_best_of_another_validation_is_forgotten(now, steps, tmp_path):
    experiment = settings(tmp_path, steps=4, warmup=0, validate_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, seeded(SWIN), stream(steps, 4, stop=2), validate=lambda model: Found(0.9), report=quiet)
    sets = (DatasetConfig(name="bccd_val"),) if now == "other sets" else ()
    again = replace(experiment, data=replace(experiment.data, validate=sets))
    again = replace(again, train=replace(again.train, validate_every=0 if now == "never" else 2))
    said: list[str] = []
    validate = None if now == "no validation" else lambda model: Found(0.1)
    train(again, seeded(SWIN), stream(steps, 4), validate=validate, report=said.append)
    told = [line for line in said if "best so far (0.900, step 2) is forgotten" in line]
    last = torch.load(tmp_path / "last.pt", weights_only=True)["progress"]
    best = {"other sets": (0.1, 2), "no validation": (None, 0), "never": (None, 0), "the same": (0.9, 2)}
    assert len(told) == (now != "the same") and (last["best"], last["best_step"]) == best[now]
    assert any("validated best" in line for line in said) == (now in ("other sets", "the same"))


@pytest.mark.parametrize(
    ("changes", "seed", "images", "message"),
    [
        ({"wise_ft": 0.5}, 1, "4 images, 1a2b", "starting weights"),  # they are mixed in
        ({}, 0, "4 images, 3c4d", r"training sets.drawn .4 images, 1a2b., not .4 images, 3c4d"),
    ],
)
def test_another_start_and_other_data_are_refused(changes, seed, images, message, steps, tmp_path):
    experiment = settings(tmp_path, steps=2, warmup=1, **changes)
    for _ in range(2):
        contents = {"drawn": "4 images, 1a2b"}
        train(experiment, seeded(SWIN), stream(steps, 2), contents=contents, report=quiet)
    with pytest.raises(DataError, match=f"holds results made with {message}"):
        train(experiment, seeded(SWIN, seed=seed), stream(steps, 2), contents={"drawn": images}, report=quiet)


def test_what_was_skipped_is_reported_and_stays_counted(steps, tmp_path):
    lossy = [step_of(*steps[0].batches, skipped="box without area", broken=("image 'x.jpg': cut",))]
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path), seeded(SWIN), stream(lossy, 6, stop=5), report=quiet)
    train(settings(tmp_path), seeded(SWIN), stream(lossy, 6), report=said.append)
    assert "boxes skipped in this run: 6 x box without area" in said
    assert "samples that could not be used: 6 of 12 tried" in said
    assert metrics(tmp_path)[-1]["skipped"] == {"box without area": 6} and metrics(tmp_path)[-1]["broken"] == 6


def test_bfloat16_and_checkpointing_learn(tmp_path):
    steps = [step_of(batch) for batch in batches_of(1, side=128)]
    exact = train(settings(tmp_path / "a"), seeded(SWIN), stream(steps, 6), report=quiet)
    experiment = settings(tmp_path / "b", precision="bfloat16", checkpointing=True)
    rounded = train(experiment, seeded(SWIN), stream(steps, 6), report=quiet)
    assert all(value.dtype == torch.float32 for value in rounded.parameters())
    theirs, ours = ([row["loss"] for row in metrics(tmp_path / name)] for name in "ab")
    assert ours == pytest.approx(theirs, rel=0.1) and not equal(exact, rounded)


@pytest.mark.slow
def test_compiled_learns_alike(steps, tmp_path, monkeypatch):
    """With graphs captured but run as they are: a compiler for this CPU takes minutes, and finds the same losses."""
    real = torch.nn.Module.compile
    compiled: list[str] = []

    def capture(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        real(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    changes = {"steps": 3, "log_every": 1}
    train(settings(tmp_path / "a", **changes), seeded(STILL), stream(steps, 3), report=quiet)
    train(settings(tmp_path / "b", compile=True, **changes), seeded(STILL), stream(steps, 3), report=quiet)
    theirs, ours = ([row["loss"] for row in metrics(tmp_path / name)] for name in "ab")
    assert ours == pytest.approx(theirs, rel=1e-4) and compiled == ["Swin", "DynamicBlock"]


def test_frozen_parts_neither_move_nor_blur(steps, tmp_path):
    model = seeded(SWIN)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes: list[bool] = []
    towers: list[bool] = []
    model.language.bert.register_forward_hook(
        lambda bert, *_: modes.append(any(part.training for part in bert.modules()))
    )
    model.tower[0].register_forward_hook(lambda module, *_: towers.append(module.text.training))
    experiment = settings(tmp_path, steps=2, warmup=1, freeze_language=True, frozen_stages=1, wise_ft=0.3, ema=0.9)
    shipped = train(experiment, model, stream(steps, 2), report=quiet).state_dict()
    still = [key for key in before if key.startswith(("language.", "vision.patch", "vision.stages.0."))]
    assert still and all(torch.equal(shipped[key], before[key]) for key in still), "to the last bit, mixed as they are"
    moved = "vision.stages.1.blocks.0.fc1.weight"
    assert not torch.equal(shipped[moved], before[moved])
    assert modes == [False, False] and towers == [True, True]
