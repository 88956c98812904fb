"""The loop on a tiny model: resumed equals uninterrupted, bad batches break nothing, frozen parts stay."""

import signal
from dataclasses import replace

import pytest
import torch
from small import seeded
from small_runs import (
    RESNET,
    STILL,
    SWIN,
    batches_of,
    checkpoint,
    metrics,
    poisoned,
    quiet,
    same,
    settings,
    step_of,
    stream,
    validation,
    weights,
)

from glip.config import DatasetConfig
from glip.data.loader import Step
from glip.data.sets import Validation
from glip.errors import DataError, TrainingError
from glip.model.glip import GLIP
from glip.signals import Interrupted
from glip.train.loop import TrainRun
from glip.train.optim import wise_ft


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return [step_of(batch) for batch in batches_of(1)[:3]]


def trained(folder, made, count=6, *, stop=None, number=0, model=None, validate=None, report=quiet, **changes) -> GLIP:
    experiment = settings(folder, steps=count, **changes)
    source = stream(made, count, stop, number)
    return TrainRun(experiment, model or seeded(SWIN), source, validate=validate, report=report)()


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_resumed_run_equals_an_uninterrupted_one(config, steps, tmp_path):
    lossy = step_of(*steps[0].batches, skipped="box without area", broken=("image 'x.jpg': cut",))
    made = [lossy, *steps[1:]]
    changes = {"ema": 0.9, "log_every": 3}  # the checkpoint falls between two lines
    whole = trained(tmp_path / "a", made, model=seeded(config), **changes)
    with pytest.raises(KeyboardInterrupt):  # after step 5, of which the checkpoint holds 4
        trained(tmp_path / "b", made, stop=5, model=seeded(config), **changes)
    torch.rand(17)
    said: list[str] = []
    resumed = trained(tmp_path / "b", made, model=seeded(config, seed=3), report=said.append, **changes)
    assert "at step 4" in said[0]
    assert "boxes skipped in this run: 2 x box without area" in said
    assert "samples that could not be used: 2 of 8 tried" in said
    assert {"skipped": {"box without area": 2}, "broken": 2}.items() <= metrics(tmp_path / "b")[-1].items()
    assert same(weights(whole), weights(resumed)) and not whole.training
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert [row["step"] for row in metrics(tmp_path / "a")] == [3, 6]
    first, second = (checkpoint(tmp_path / name) for name in "ab")
    for state in (first, second):
        state.pop("made_from")  # the output folders differ
    assert same(first, second), "weights, average, optimizer, random numbers, counts"


def test_a_bad_batch_leaves_everything_alone(steps, tmp_path):
    changes = {"ema": 0.9, "save_every": 1, "log_every": 1, "warmup": 0, "drops": ()}
    said: list[str] = []
    trained(tmp_path, steps, 1, **changes)
    before = checkpoint(tmp_path)
    bad = [steps[0], poisoned(steps[0]), steps[2]]
    trained(tmp_path, bad, 2, report=said.append, **changes)
    after = checkpoint(tmp_path)
    assert all(same(before[key], after[key]) for key in ("model", "ema", "ema_updates"))
    assert same(before["optimizer"]["state"], after["optimizer"]["state"])
    assert after["progress"]["skipped_steps"] == after["progress"]["bad_in_row"] == 1 and "1 skipped" in said[1]
    assert metrics(tmp_path)[-1]["loss"] is None and metrics(tmp_path)[-1]["skipped_steps"] == 1
    trained(tmp_path, bad, 3, report=said.append, **changes)
    assert not same(checkpoint(tmp_path)["model"], after["model"]), "and the next one is learned from"
    assert checkpoint(tmp_path)["progress"]["bad_in_row"] == 0 and said[-1] == "steps skipped: 1 of 3"


def test_a_run_that_stays_bad_stops_with_a_diagnosis(steps, tmp_path):
    made = [steps[0], *[poisoned(steps[0])] * 3, steps[2], steps[2]]
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, made, max_bad_steps=2, save_every=50)
    parts = ("2 steps in a row (token nan", "vision nan", "rate 0.001", "last checkpoint", "lower learning rate")
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)
    stored = checkpoint(tmp_path)
    assert all(torch.isfinite(value).all() for value in stored["model"].values())
    assert stored["progress"]["step"] == 3
    finished = trained(tmp_path, made, max_bad_steps=2, save_every=50)
    assert all(torch.isfinite(value).all() for value in finished.state_dict().values()), "goes on behind them"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_behind_its_step(number, steps, tmp_path):
    whole = trained(tmp_path / "a", steps)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        trained(tmp_path / "b", steps, stop=2, number=number, save_every=50)
    assert stopped.value.code == 128 + number and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    assert checkpoint(tmp_path / "b")["progress"]["step"] == 3
    resumed = trained(tmp_path / "b", steps)
    assert same(weights(whole), weights(resumed)) and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_best_validation_is_kept_and_shipped(steps, tmp_path):
    figures = iter([0.3, 0.7, 0.5])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: GLIP) -> Validation:
        assert not model.training
        torch.rand(3)
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return validation(next(figures))

    said: list[str] = []
    changes = {"ema": 0.5, "wise_ft": 0.25, "keep_every": 3}
    begun = seeded(SWIN).state_dict()
    shipped = trained(tmp_path / "a", steps, validate=validate, report=said.append, validate_every=2, **changes)
    assert same(weights(shipped), seen[1]), "step 4, as it was validated"
    best = checkpoint(tmp_path / "a", "best.pt")
    assert best["progress"]["best"] == 0.7 and best["progress"]["step"] == best["progress"]["best_step"] == 4
    assert same(seen[1], wise_ft(begun, best["model"] | best["ema"], 0.25))
    assert not same(seen[1], best["model"])
    rows = [row for row in metrics(tmp_path / "a") if "validation" in row]
    assert [(row["step"], row["best"]) for row in rows] == [(2, True), (4, True), (6, False)]
    assert "validated best (0.700)" in said[-1]
    assert {file.name for file in (tmp_path / "a").glob("*.pt")} == {"last.pt", "best.pt", "step-3.pt", "step-6.pt"}
    last = trained(tmp_path / "a", steps, validate=validate, validate_every=2, final="last", **changes)
    assert same(weights(last), seen[2]), "the finished run gives its last weights too"
    trained(tmp_path / "b", steps, **changes)
    assert same(checkpoint(tmp_path / "a")["model"], checkpoint(tmp_path / "b")["model"]), "validation changes nothing"


def test_a_validation_made_up_for_is_reported_once_after_a_kill(steps, tmp_path):
    options = {"save_every": 50, "validate_every": 2, "validate": lambda model: validation(0.1)}
    with pytest.raises(Interrupted):
        trained(tmp_path, steps, 4, stop=1, number=signal.SIGTERM, **options)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, steps, 4, stop=2, **options)
    assert checkpoint(tmp_path)["progress"]["validated"] == 2
    trained(tmp_path, steps, 4, **options)
    assert [row["step"] for row in metrics(tmp_path) if "validation" in row] == [2, 4]


def test_a_validation_that_fails_loses_no_step(steps, tmp_path):
    def fail(model: GLIP) -> Validation:
        raise ValueError("validation set 'x': nothing to score")

    options = {"save_every": 50, "keep_every": 2, "validate_every": 2}
    with pytest.raises(ValueError, match="nothing to score"):
        trained(tmp_path, steps, 4, validate=fail, **options)
    assert checkpoint(tmp_path, "step-2.pt") and checkpoint(tmp_path)["progress"]["step"] == 2
    trained(tmp_path, steps, 4, validate=lambda model: validation(0.1), **options)
    last = checkpoint(tmp_path)["progress"]
    assert (last["step"], last["validated"], last["best"], last["best_step"]) == (4, 4, 0.1, 2)


@pytest.mark.parametrize(
    ("now", "best", "best_step"),
    [("other sets", 0.1, 2), ("no validation", None, 0), ("never", None, 0), ("the same", 0.9, 2)],
)
def test_the_best_of_another_validation_is_forgotten(now, best, best_step, steps, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, steps, 4, stop=2, validate=lambda model: validation(0.9), warmup=0, validate_every=2)
    experiment = settings(tmp_path, steps=4, warmup=0, validate_every=0 if now == "never" else 2)
    sets = (DatasetConfig(name="bccd_val"),) if now == "other sets" else ()
    again = replace(experiment, data=replace(experiment.data, validate=sets))
    said: list[str] = []
    validate = None if now == "no validation" else lambda model: validation(0.1)
    TrainRun(again, seeded(SWIN), stream(steps, 4), validate=validate, report=said.append)()
    last = checkpoint(tmp_path)["progress"]
    assert (last["best"], last["best_step"]) == (best, best_step)
    assert any("best so far (0.900, step 2) is forgotten" in line for line in said) == (now != "the same")
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
        TrainRun(experiment, seeded(SWIN), stream(steps, 2), contents=contents, report=quiet)()
    with pytest.raises(DataError, match=f"holds results made with {message}"):
        TrainRun(experiment, seeded(SWIN, seed=seed), stream(steps, 2), contents={"drawn": images}, report=quiet)()


def losses(folder) -> list[object]:
    return [row["loss"] for row in metrics(folder)]


def test_bfloat16_and_checkpointing_learn(tmp_path):
    made = [step_of(batch) for batch in batches_of(1, side=128)]
    exact = trained(tmp_path / "a", made)
    rounded = trained(tmp_path / "b", made, precision="bfloat16", checkpointing=True)
    assert all(value.dtype == torch.float32 for value in rounded.parameters())
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=0.1)
    assert not same(weights(exact), weights(rounded))


@pytest.mark.slow
def test_compiled_learns_alike(steps, tmp_path, monkeypatch):
    """With graphs captured but run as they are: a compiler for this CPU takes minutes, and finds the same losses."""
    real = torch.nn.Module.compile
    compiled: list[str] = []

    def capture(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        real(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    for name, compiles in (("a", False), ("b", True)):
        trained(tmp_path / name, steps, 3, model=seeded(STILL), log_every=1, compile=compiles)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-4)
    assert compiled == ["Swin", "DynamicBlock"]


def test_frozen_parts_neither_move_nor_blur(steps, tmp_path):
    model = seeded(SWIN)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes: list[bool] = []
    towers: list[bool] = []
    model.language.bert.register_forward_hook(
        lambda bert, *_: modes.append(any(part.training for part in bert.modules()))
    )
    model.tower[0].register_forward_hook(lambda module, *_: towers.append(module.text.training))
    frozen = {"freeze_language": True, "frozen_stages": 1, "wise_ft": 0.3, "ema": 0.9}
    shipped = trained(tmp_path, steps, 2, model=model, warmup=1, **frozen).state_dict()
    still = [key for key in before if key.startswith(("language.", "vision.patch", "vision.stages.0."))]
    assert still and all(torch.equal(shipped[key], before[key]) for key in still), "to the last bit, mixed as they are"
    moved = "vision.stages.1.blocks.0.fc1.weight"
    assert not torch.equal(shipped[moved], before[moved])
    assert modes == [False, False] and towers == [True, True]
