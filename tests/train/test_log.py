"""What a run counts and reports, and that its curves go on where they stopped."""

import builtins
import json
import sys

import pytest
import torch
from PIL import Image

from glip.data.sets import SkipCounter, Validation
from glip.errors import ConfigError
from glip.train.log import Progress, RunLog, peak_memory
from glip.train.step import Outcome

CPU = torch.device("cpu")


def outcome(loss: float, *, stepped: bool = True) -> Outcome:
    losses = {"token": loss - 2, "box": 1.0, "centerness": 1.0, "loss": loss}
    return Outcome(losses, 0.5 * loss, 4, stepped, False, False)


def opened(folder, progress: Progress, *, tensorboard: bool = False) -> RunLog:
    return RunLog(folder, 10, progress, CPU, tensorboard)


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


def test_missing_tensorboard(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *given, **named):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'glip.tensorboard.'"):
        opened(tmp_path, Progress(), tensorboard=True)


def test_tensorboard_gets_curves_and_images(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    progress = Progress(step=3)
    log = opened(tmp_path, progress, tensorboard=True)
    progress.add(outcome(4.0))
    log.row(1e-3)
    log.validated(Validation({"drawn/AP50": 0.5}, images={"drawn/0": Image.new("L", (8, 6))}), best=False)
    log.flush()
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in (("train/loss", 4.0), ("train/lr", 1e-3), ("validation/drawn/AP50", 0.5)):
        (event,) = board.Scalars(name)
        assert event.step == 4 and event.value == pytest.approx(value)
    (image,) = board.Images("drawn/0")
    assert (image.step, image.width, image.height) == (4, 8, 6)
