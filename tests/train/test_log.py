"""What a run counts and reports, and that its curves go on where they stopped."""

import json

import pytest
import torch
from PIL import Image
from small import seeded
from small_runs import SWIN, batches_of, metrics, quiet, settings, step_of, stream

from glip.data.sets import SkipCounter, Validation
from glip.errors import ConfigError
from glip.train import loggers
from glip.train.log import Progress, RunLog, peak_memory
from glip.train.loggers import Loggers
from glip.train.loop import TrainRun, check_experiment
from glip.train.step import Outcome

CPU = torch.device("cpu")


def outcome(loss: float, *, stepped: bool = True) -> Outcome:
    losses = {"token": loss - 2, "box": 1.0, "centerness": 1.0, "loss": loss}
    return Outcome(losses, 0.5 * loss, 4, stepped, False, False)


def opened(folder, progress: Progress, log: Loggers | None = None) -> RunLog:
    return RunLog(folder, 10, progress, CPU, log or Loggers((), folder, {}, 0, print))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_line_and_its_row(tmp_path):
    progress = Progress(skipped={"box without area": 3})
    log = opened(tmp_path, progress)
    for loss in (4.0, float("nan"), 8.0):
        progress.add(outcome(loss, stepped=loss == loss))
    line = log.row(2e-4)
    assert line.startswith(
        "step 3/10  token 4.000  box 1.000  centerness 1.000  loss 6.000  lr 2.0e-04  gradient 3.000"
    )
    assert "images/s" in line and " GB  1 skipped" in line and line.endswith(" left")
    (row,) = rows(tmp_path)
    expected = {"step": 3, "lr": 2e-4, "loss": 6.0, "gradient_norm": 3.0, "skipped_steps": 1, "broken": 0}
    assert row | expected == row and row["skipped"] == {"box without area": 3} and row["memory_mb"] > 10


def test_a_validation_is_a_row_and_a_line(tmp_path):
    skipped = SkipCounter()
    skipped.add("unreadable image", times=2)
    found = Validation({"drawn/AP50": 0.25, "drawn/AP": float("nan")}, skipped=skipped)
    line = opened(tmp_path, Progress(step=4)).validated(found, best=True)
    assert "drawn/AP50 0.250  drawn/AP -  (best so far)  skipped: 2 x unreadable image" in line
    stored = {"drawn/AP50": 0.25, "drawn/AP": None}
    assert rows(tmp_path) == [{"step": 4, "validation": stored, "best": True, "skipped": skipped.counts}]


def test_rows_past_the_checkpoint_and_half_rows_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 4, "validation": {}}\n{"step": 6}\n{"ste')
    opened(tmp_path, Progress(step=4, validated=4))
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 4]
    opened(tmp_path, Progress(step=4, validated=2))
    assert rows(tmp_path) == [{"step": 2}, {"step": 4}], "a validation that will be made again"


def test_memory_is_of_this_process():
    before = peak_memory(CPU)
    held = torch.ones(50_000_000)
    assert held.sum() > 0 and peak_memory(CPU) >= max(before, 200)


def test_missing_loggers_are_named_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else name)
    experiment = settings(tmp_path, loggers=("tensorboard", "mlflow"))
    with pytest.raises(ConfigError, match=r"train.loggers: mlflow is not installed: pip install .*\[mlflow\]"):
        check_experiment(experiment)


def test_tensorboard_gets_curves_and_images(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    progress = Progress(step=3)
    log = opened(tmp_path, progress, Loggers(("tensorboard",), tmp_path, {"train": {"lr": 0.5}}, 3, print))
    progress.add(outcome(4.0))
    log.row(1e-3)
    log.validated(Validation({"drawn/AP50": 0.5}, images={"drawn/0": Image.new("L", (8, 6))}), best=False)
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in (("train/loss", 4.0), ("train/lr", 1e-3), ("validation/drawn/AP50", 0.5)):
        (event,) = board.Scalars(name)
        assert event.step == 4 and event.value == pytest.approx(value)
    (image,) = board.Images("drawn/0")
    assert (image.step, image.width, image.height) == (4, 8, 6)
    (config,) = board.Tensors("config/text_summary")
    assert b"| train.lr | 0.5 |" in config.tensor_proto.string_val[0]
    log.close()


def in_two_parts(folder, name) -> list[str]:
    """A run of six steps with a logger, killed after the fourth and resumed; gives the lines of the second part."""
    made, said = [step_of(batch) for batch in batches_of(1)[:2]], list[str]()
    experiment = settings(folder, loggers=(name,), validate_every=3)
    found = Validation({"drawn/AP50": 0.25}, images={"drawn/0": Image.new("L", (8, 6))})
    with pytest.raises(KeyboardInterrupt):
        TrainRun(experiment, seeded(SWIN), stream(made, 6, 5), validate=lambda model: found, report=quiet)()
    TrainRun(experiment, seeded(SWIN), stream(made, 6), validate=lambda model: found, report=said.append)()
    return said


def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    in_two_parts(tmp_path / "raccoon", "mlflow")
    client = mlflow.MlflowClient((tmp_path / "raccoon" / "mlruns").as_uri())
    [experiment] = [one for one in client.search_experiments() if one.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (experiment.name, run.info.run_name, run.info.status) == (tmp_path.name, "raccoon", "FINISHED")
    assert run.data.params["train.steps"] == "6" and run.data.metrics["final/best"] == 0.25
    logged = {(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")}
    assert logged == {(row["step"], row["loss"]) for row in metrics(tmp_path / "raccoon") if "loss" in row}
    drawn = (tmp_path / "raccoon" / "mlruns").glob(f"*/{run.info.run_id}/artifacts/drawn/0/*")
    assert sorted(one.name for one in drawn) == ["3.png", "6.png"]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    in_two_parts(tmp_path / "raccoon", "wandb")
    known = json.loads((tmp_path / "raccoon" / "loggers.json").read_text())["wandb"]
    parts = sorted((tmp_path / "raccoon" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(f"-{known}") for part in parts)
    for part in parts:
        content = (part / f"run-{known}.wandb").read_bytes()
        assert all(word in content for word in (tmp_path.name.encode(), b"raccoon", b"train/loss", b"final/best"))


@pytest.mark.parametrize(("has_key", "problem"), [(False, "no API key"), (True, "timed out")])
def test_wandb_that_cannot_be_reached_logs_offline(has_key, problem, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    init, said = wandb.init, list[str]()

    def unreachable(*, mode="online", **given):
        if mode == "online":
            raise wandb.errors.CommError("timed out")
        return init(mode=mode, **given)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda *, prompt: has_key)
    monkeypatch.setattr(wandb, "init", unreachable)
    log = Loggers(("wandb",), tmp_path, {}, 0, said.append)
    log(lambda one: one.close({}, True))
    [line] = said
    assert problem in line and "logged offline; wandb sync" in line
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


class Broken:
    """A logger whose server goes away."""

    id = "a"

    def log(self, values, step, images):
        raise OSError("connection refused")


def test_a_logger_that_fails_is_reported_once_and_the_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers._LOGGERS, "mlflow", lambda *_: Broken())
    said = in_two_parts(tmp_path / "a", "mlflow")
    lost = [line for line in said if "gets nothing more" in line]
    assert lost == [
        "mlflow gets nothing more of this run (OSError: connection refused): the training goes on, and metrics.jsonl "
        "has all figures"
    ]
    assert [row["step"] for row in metrics(tmp_path / "a") if "loss" in row] == [2, 4, 6]
