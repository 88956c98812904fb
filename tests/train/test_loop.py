"""The loop on a tiny model: resumed equals uninterrupted, bad batches break nothing, frozen parts stay."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small import RELEASED, VOCABULARY, scenes, seeded

from glip.config import Experiment, ModelConfig, TrainConfig, VisionConfig
from glip.detector import build_processor
from glip.model.glip import GLIP
from glip.structures import Batch, Prompt, Sample
from glip.text.tokens import Tokenizer
from glip.train import loop
from glip.train.loop import TrainingError, train

SWIN: ModelConfig = replace(RELEASED, head=replace(RELEASED.head, blocks=1))
RESNET = replace(SWIN, vision=VisionConfig(kind="resnet", widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), drop_path=0.1))


def settings(output, **changes) -> Experiment:
    quick = TrainConfig(steps=6, batch_size=1, lr=1e-3, warmup=2, save_every=2, log_every=2, output=str(output))
    return Experiment(train=replace(quick, **changes))


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    processor = build_processor(SWIN, Tokenizer(VOCABULARY))
    made = []
    for picture, things in scenes()[:3]:
        names = [f"{thing.colour} {thing.kind}" for thing in things]
        boxes = torch.tensor([thing.box for thing in things])
        phrases = tuple((index,) for index in range(len(things)))
        sample = Sample(picture.resize((64, 64)), boxes / 2, phrases, prompt=Prompt.from_names(names))
        made.append(processor.training([sample]))
    return made


def stream(batches: list[Batch], steps: int, stop: int | None = None):
    def since(start: int) -> Iterator[Batch]:
        for step in range(start, steps):
            if step == stop:
                raise KeyboardInterrupt
            yield batches[step % len(batches)]

    return since


def metrics(folder) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in rows]


def equal(first: GLIP, second: GLIP) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_resumed_run_equals_an_uninterrupted_one(config, batches, tmp_path):
    whole = train(settings(tmp_path / "a"), seeded(config), stream(batches, 6), report=lambda line: None)
    with pytest.raises(KeyboardInterrupt):  # after step 5, of which the checkpoint holds 4
        train(settings(tmp_path / "b"), seeded(config), stream(batches, 6, stop=5), report=lambda line: None)
    torch.rand(17)
    said: list[str] = []
    resumed = train(settings(tmp_path / "b"), seeded(config, seed=3), stream(batches, 6), report=said.append)
    assert "at step 4" in said[0]
    assert equal(whole, resumed) and not whole.training
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert [row["step"] for row in metrics(tmp_path / "a")] == [2, 4, 6]


def test_metrics_past_the_checkpoint_are_forgotten(batches, tmp_path):
    changes = {"save_every": 4, "log_every": 1}
    whole = train(settings(tmp_path / "a", **changes), seeded(SWIN), stream(batches, 6), report=lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / "b", **changes), seeded(SWIN), stream(batches, 6, stop=5), report=lambda line: None)
    assert len(metrics(tmp_path / "b")) == 5
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the write itself was killed
    resumed = train(settings(tmp_path / "b", **changes), seeded(SWIN), stream(batches, 6), report=lambda line: None)
    assert equal(whole, resumed) and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_line_tells_losses_rate_and_time_left(batches, tmp_path):
    said: list[str] = []
    train(settings(tmp_path, steps=2), seeded(SWIN), stream(batches, 2), report=said.append)
    (line,) = said
    assert line.startswith("step 2/2  token ") and "pictures/s" in line and line.endswith("0:00:00 left")
    for term in ("box", "centerness", "loss", "lr 1.0e-03"):
        assert term in line


def poisoned(batch: Batch) -> Batch:
    pixels = torch.full_like(batch.images.pixels, torch.nan)
    return replace(batch, images=replace(batch.images, pixels=pixels))


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet"])
def test_a_bad_batch_leaves_the_weights_alone(config, batches, tmp_path):
    model = seeded(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(settings(tmp_path, steps=1), model, stream([poisoned(batches[0])], 1), report=lambda line: None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train(settings(tmp_path, steps=2), model, stream(batches, 2), report=lambda line: None)
    assert not torch.equal(model.pyramid.p6.weight, before["pyramid.p6.weight"]), "and the next one is learned from"


def test_a_run_that_stays_bad_stops(batches, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_MAX_BAD_STEPS", 2)
    with pytest.raises(TrainingError, match=r"not finite in the 3 steps up to step 3: lower train\.lr \(now 0\.001\)"):
        train(settings(tmp_path), seeded(SWIN), stream([poisoned(batches[0])], 6), report=lambda line: None)
    assert isinstance(TrainingError("x"), ValueError), "the command line shows these in one line"


def test_frozen_parts_neither_move_nor_blur(batches, tmp_path):
    config = replace(SWIN, language=replace(SWIN.language, frozen_layers=2))
    model = seeded(config)
    before = {key: value.clone() for key, value in model.language.state_dict().items()}
    modes: list[bool] = []
    towers: list[bool] = []
    model.language.bert.register_forward_hook(
        lambda bert, *_: modes.append(any(part.training for part in bert.modules()))
    )
    model.tower[0].register_forward_hook(lambda module, *_: towers.append(module.text.training))
    train(settings(tmp_path, steps=2), model, stream(batches, 2), report=lambda line: None)
    assert all(torch.equal(value, before[key]) for key, value in model.language.state_dict().items())
    assert modes == [False, False] and towers == [True, True]


def test_partly_frozen_language_trains_the_rest():
    config = replace(SWIN, language=replace(SWIN.language, frozen_layers=1))
    model = seeded(config).train()
    loop.keep_frozen_still(model)
    layers = model.language.bert.encoder.layer
    assert not layers[0].training and layers[1].training and not model.language.bert.embeddings.training
