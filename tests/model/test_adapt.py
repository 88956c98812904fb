"""Adaptations: the file, and a detector with one or several."""

import json
import time
from dataclasses import replace

import pytest
import torch
from alike import assert_alike, identical
from safetensors.torch import save_file
from small import NAMES, TINY, VOCABULARY, scenes, seeded

from glip.adaptation import Adaptation
from glip.detector import Detector
from glip.errors import CheckpointError
from glip.model.adapt import FORMAT, digest_of, load_adaptation, save_adaptation, with_weights
from glip.structures import Prompt
from glip.text.tokens import Tokenizer

PROMPT = Prompt.from_names(NAMES)
IMAGE = scenes()[0][0]


@pytest.fixture(scope="module")
def detector():
    config = replace(
        TINY,
        image=replace(TINY.image, min_size=96, max_size=128),
        inference=replace(TINY.inference, threshold=0.0, candidate_threshold=0.0, max_detections=20),
    )
    return Detector(seeded(config), config, Tokenizer(VOCABULARY), "cpu")


def prompt_task(detector, *, scale=3.0, **more):
    hidden = detector.encode_text(PROMPT).features.hidden[0]
    offsets = scale * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    return Adaptation("prompt", "tiny", detector.fingerprint, NAMES, PROMPT, offsets, **more)


def linear_task(detector):
    weights = {"tokens.bias": detector.model.tokens.bias.detach() + 1, "boxes.box.bias": torch.full((4,), 0.1)}
    return Adaptation("linear", "tiny", detector.fingerprint, NAMES, PROMPT, weights=weights)


@pytest.mark.parametrize("make", [prompt_task, linear_task])
def test_the_file_gives_back_all(make, detector, tmp_path):
    task = replace(make(detector), thresholds=(0.1, 0.2, 0.3, 0.4), figures={"AP": 0.5}, about={"shots": "5"})
    save_adaptation(tmp_path / "new" / "task.safetensors", task)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["task.safetensors"]
    found = load_adaptation(tmp_path / "new" / "task.safetensors")
    assert found.prompt.caption == PROMPT.caption and found.prompt.phrases == PROMPT.phrases
    assert (found.names, found.thresholds, dict(found.figures), dict(found.about)) == (
        task.names,
        task.thresholds,
        task.figures,
        task.about,
    )
    assert found.weights.keys() == task.weights.keys()
    assert all(torch.equal(value, task.weights[name]) for name, value in found.weights.items())
    assert digest_of(found) == digest_of(task) != digest_of(replace(task, thresholds=()))
    assert found.offsets is None or torch.equal(found.offsets, task.offsets)


def test_a_task_of_prompt_tuning_is_small(detector, tmp_path):
    save_adaptation(tmp_path / "task.safetensors", prompt_task(detector))
    assert (tmp_path / "task.safetensors").stat().st_size < 1e5


def test_other_prompts_are_answered_bit_for_bit_as_before(detector):
    other = ["a red bus", "a star"]
    before, own = detector(IMAGE, other), detector(IMAGE, list(NAMES))
    tuned = detector.adapted(prompt_task(detector))
    assert not identical(tuned(IMAGE), own), "the task's own words are answered as tuned"
    assert identical(tuned(IMAGE, other), before) and identical(tuned(IMAGE, list(NAMES)), own)
    assert identical(detector(IMAGE, other), before)


def test_several_tasks_share_one_model_and_are_switched_at_once(detector):
    one, two = detector.adapted(prompt_task(detector)), detector.adapted(linear_task(detector))
    first, second = one(IMAGE), two(IMAGE)
    assert one.model is detector.model
    own = {value.data_ptr() for value in detector.model.parameters()}
    others = [name for name, value in two.model.named_parameters() if value.data_ptr() not in own]
    assert others == ["boxes.box.bias", "tokens.bias"]
    assert identical(one(IMAGE), first) and identical(two(IMAGE), second)
    assert identical(two.adapted(prompt_task(detector))(IMAGE), first), "tasks do not stack"
    start = time.perf_counter()
    detector.adapted(prompt_task(detector))
    assert time.perf_counter() - start < 5, "no copy of the model (docs/adaptation.md has the time)"


def test_one_encoded_image_serves_all_tasks(detector):
    image = detector.encode_image([IMAGE])
    tuned = detector.adapted(prompt_task(detector))
    assert_alike(tuned.ground(image, tuned.encode_text())[0], tuned(IMAGE))
    assert_alike(tuned([IMAGE, IMAGE])[1], tuned(IMAGE), scores=1e-4, boxes=1e-2)


def test_thresholds_are_used_by_default_and_can_be_switched_off(detector):
    plain = detector.adapted(prompt_task(detector))(IMAGE)
    limits = (0.0, 1.0, float(plain.scores.median()), 0.0)
    tuned = detector.adapted(prompt_task(detector, thresholds=limits))
    found = tuned(IMAGE)
    assert len(found) < len(plain) and 1 not in found.labels.tolist()
    assert identical(tuned(IMAGE, threshold=0.0), plain)
    assert identical(tuned(IMAGE, list(NAMES)), detector(IMAGE, list(NAMES))), "they are of the task's words alone"


def test_offsets_and_thresholds_belong_to_the_tuned_text_alone(detector):
    """The same words, even the task's own Prompt, given by the caller are answered by the model as it is."""
    task = prompt_task(detector, thresholds=(1.0,) * 4)
    tuned = detector.adapted(task)
    assert len(tuned(IMAGE)) == 0 and identical(tuned(IMAGE, task.prompt), detector(IMAGE, PROMPT))
    text = tuned.encode_text()
    assert text.tuned and not tuned.encode_text(task.prompt).tuned
    assert len(tuned.ground(tuned.encode_image([IMAGE, IMAGE]), text)[1]) == 0


def test_without_a_prompt_or_a_task(detector):
    with pytest.raises(ValueError, match="no prompt: say what to look for"):
        detector(IMAGE)


def test_a_task_of_another_model(detector):
    with pytest.raises(CheckpointError, match="was tuned on other weights"):
        detector.adapted(replace(prompt_task(detector), fingerprint="f00"))
    with pytest.raises(CheckpointError, match="of another model"):
        with_weights(detector.model, {"no.such": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has shape"):
        with_weights(detector.model, {"tokens.bias": torch.zeros(7)})
    short = replace(prompt_task(detector), offsets=torch.zeros(3, 4))
    with pytest.raises(CheckpointError, match="broken or of another model"):
        detector.adapted(short)(IMAGE)


def broken_files(folder, detector):
    good = folder / "good.safetensors"
    save_adaptation(good, prompt_task(detector))
    (folder / "cut.safetensors").write_bytes(good.read_bytes()[:-50])
    (folder / "text.safetensors").write_text("no tensors")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "json.safetensors", metadata={"format": FORMAT, "task": "{"})
    save_file({"a": torch.zeros(1)}, folder / "keys.safetensors", metadata={"format": FORMAT, "task": json.dumps({})})
    save_file({"a": torch.zeros(1)}, folder / "list.safetensors", metadata={"format": FORMAT, "task": "[1]"})
    nan = replace(prompt_task(detector), offsets=torch.full((2, 2), float("nan")))
    save_adaptation(folder / "nan.safetensors", nan)
    save_adaptation(folder / "whole.safetensors", replace(nan, offsets=torch.zeros(2, 2, dtype=torch.int32)))
    deep = {"format": FORMAT, "task": "[" * 100_000}
    save_file({"a": torch.zeros(1)}, folder / "deep.safetensors", metadata=deep)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "is not there"),
        ("cut", "cannot be read"),
        ("text", "cannot be read"),
        ("model", "is no task of ours"),
        ("json", "is broken"),
        ("keys", "is broken"),
        ("list", "is broken"),
        ("nan", "is broken"),
        ("whole", "is broken"),
        ("deep", "is broken"),
    ],
)
def test_files_that_are_no_task(name, message, detector, tmp_path):
    broken_files(tmp_path, detector)
    with pytest.raises(CheckpointError, match=message):
        load_adaptation(tmp_path / f"{name}.safetensors")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "v3"}, "mode: got 'v3'"),
        ({"names": ("a",)}, "1 names, 4 phrases"),
        ({"thresholds": (0.5,)}, "1 thresholds"),
        ({"thresholds": (0.5, 0.5, 0.5, 2.0)}, r"thresholds\[3\]: got 2.0"),
        ({"offsets": None}, "offsets belong to mode prompt"),
    ],
)
def test_what_no_task_can_be(changed, message, detector):
    with pytest.raises(ValueError, match=message):
        replace(prompt_task(detector), **changed)


def test_whether_images_are_encoded_as_by_the_model_itself():
    model = seeded(TINY)
    sum(level.sum() for level in model.encode_image(torch.rand(1, 3, 64, 64))).backward()
    for name, value in model.named_parameters():
        changed = Adaptation("full", "tiny", "", ("a",), Prompt.from_names(("a",)), weights={name: value})
        assert changed.keeps_encoder == (value.grad is None), name
