"""Adaptations: the file, and detectors that use one or several."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from alike import assert_alike, identical
from safetensors.torch import save_file
from small import NAMES, QUICK, TINY, VOCABULARY, scenes, seeded

from glip.detector import Detector
from glip.errors import CheckpointError, GlipError
from glip.model.adapt import (
    FORMAT,
    Adaptation,
    digest_of,
    load_adaptation,
    save_adaptation,
    save_peft_adapter,
    with_weights,
)
from glip.structures import Prompt
from glip.text.tokens import Tokenizer

PROMPT = Prompt.from_names(NAMES)
IMAGE = scenes()[0][0]


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded(QUICK), QUICK, Tokenizer(VOCABULARY), "cpu")


def prompt_task(detector, **more):
    hidden = detector.encode_text(PROMPT).hidden[0]
    offsets = 3 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    return Adaptation("prompt", "tiny", detector.fingerprint, NAMES, PROMPT, offsets, **more)


def linear_task(detector):
    weights = {"tokens.bias": detector.model.tokens.bias.detach() + 1, "boxes.box.bias": torch.full((4,), 0.1)}
    return Adaptation("linear", "tiny", detector.fingerprint, NAMES, PROMPT, weights=weights)


def lora_task(detector, **more):
    generator = torch.Generator().manual_seed(2)
    factors = {"lora_A.weight": torch.randn(2, 64, generator=generator), "lora_B.weight": torch.ones(2048, 2)}
    weights = {f"tower.0.fusion.key.{name}": value for name, value in factors.items()} | more
    return Adaptation("lora", "tiny", detector.fingerprint, NAMES, PROMPT, weights=weights)


@pytest.mark.parametrize("make", [prompt_task, linear_task, lora_task])
def test_a_task_file_is_small_and_gives_back_all(make, detector, tmp_path):
    file = tmp_path / "new" / "task.safetensors"
    task = replace(make(detector), thresholds=(0.1, 0.2, 0.3, 0.4), figures={"AP": 0.5}, about={"shots": "5"})
    save_adaptation(file, task)
    assert list(file.parent.iterdir()) == [file] and file.stat().st_size < 1e5
    found = load_adaptation(file)
    assert (found.prompt.caption, found.prompt.phrases) == (PROMPT.caption, PROMPT.phrases)
    assert replace(found, prompt=PROMPT, offsets=task.offsets, weights=task.weights) == task
    assert found.weights.keys() == task.weights.keys()
    assert all(torch.equal(value, task.weights[name]) for name, value in found.weights.items())
    assert found.offsets is None or torch.equal(found.offsets, task.offsets)
    assert digest_of(found) == digest_of(task) != digest_of(replace(task, thresholds=()))


def test_a_tuned_detector_answers_other_prompts_bit_for_bit_as_before(detector):
    """The task's own words too, even its own Prompt, where the caller gives them: no offsets and no thresholds."""
    plain, task = detector(IMAGE, list(NAMES)), prompt_task(detector, thresholds=(1.0,) * 4)
    tuned = detector.adapted(replace(task, thresholds=()))
    assert not identical(tuned(IMAGE), plain), "the task's own words are answered as tuned"
    for words in (["a red bus", "a star"], list(NAMES), task.prompt):
        assert identical(detector.adapted(task)(IMAGE, words), detector(IMAGE, words))
        assert identical(tuned(IMAGE, words), detector(IMAGE, words))
    strict = detector.adapted(task)
    assert strict.encode_text().tuned and not strict.encode_text(task.prompt).tuned
    assert len(strict(IMAGE)) == len(strict.ground(strict.encode_image([IMAGE, IMAGE]), strict.encode_text())[1]) == 0
    with pytest.raises(ValueError, match="no prompt"):
        detector(IMAGE)


def test_several_tasks_share_one_model_and_are_switched_at_once(detector):
    one, two = detector.adapted(prompt_task(detector)), detector.adapted(linear_task(detector))
    first, second = one(IMAGE), two(IMAGE)
    assert one.model is detector.model
    own = {value.data_ptr() for value in detector.model.parameters()}
    others = [name for name, value in two.model.named_parameters() if value.data_ptr() not in own]
    assert others == ["boxes.box.bias", "tokens.bias"]
    assert not any(value.requires_grad for value in two.model.parameters())
    assert all(value.requires_grad for value in detector.model.parameters())
    assert identical(one(IMAGE), first) and identical(two(IMAGE), second)
    assert identical(two.adapted(prompt_task(detector))(IMAGE), first), "tasks do not stack"
    start = time.perf_counter()
    detector.adapted(prompt_task(detector))
    assert time.perf_counter() - start < 5, "the model is not copied (docs/adaptation.md has the time)"


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


def test_a_task_of_another_model(detector):
    with pytest.raises(CheckpointError, match="was tuned on other weights"):
        detector.adapted(replace(prompt_task(detector), fingerprint="f00"))
    with pytest.raises(CheckpointError, match=r"extra no\.such"):
        with_weights(detector.model, {"no.such": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"tokens\.bias has shape \(7,\), the model \(1,\)"):
        with_weights(detector.model, {"tokens.bias": torch.zeros(7)})
    short = replace(prompt_task(detector), offsets=torch.zeros(3, 4))
    with pytest.raises(CheckpointError, match="of another model"):
        detector.adapted(short)(IMAGE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tower.0.fusion.key.lora_A.weight": None}, r"missing tower\.0\.fusion\.key\.lora_A\.weight"),
        (
            {"tower.0.fusion.key.lora_A.weight": torch.zeros(3, 64)},
            r"lora_B\.weight has shape \(2048, 2\), the model \(2048, 3\)",
        ),
        ({"tower.0.fusion.key.lora_A.weight": torch.zeros(2, 1)}, r"lora_A\.weight has shape \(2, 1\), the model"),
        (
            {f"no.such.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"},
            r"no\.such\.lora_A\.weight has shape \(2, 2\), the model \(2, 0\)",
        ),
    ],
)
def test_lora_that_does_not_fit(changed, message, detector):
    task = lora_task(detector)
    weights = {name: value for name, value in {**task.weights, **changed}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        detector.adapted(replace(task, weights=weights))


def test_peft_reads_an_adapter_and_so_does_glip(detector, tmp_path):
    peft = pytest.importorskip("peft")
    task = replace(lora_task(detector), thresholds=(0.1, 0.2, 0.3, 0.4))
    save_peft_adapter(tmp_path, task)
    found = load_adaptation(tmp_path / "adapter_model.safetensors")
    assert digest_of(found) == digest_of(task)
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(detector.model), tmp_path).merge_and_unload().state_dict()
    wanted = detector.adapted(task).model.state_dict()
    assert merged.keys() == wanted.keys()
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in merged.items())
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors' is not a task"):
        load_adaptation(tmp_path / "foreign.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt' is not a task"):
        load_adaptation(tmp_path / "last.pt")
    with pytest.raises(GlipError, match="mode 'prompt' cannot become an adapter of peft: give one of mode lora"):
        save_peft_adapter(tmp_path, prompt_task(detector))


def text_task(detector):
    name = "language.bert.encoder.layer.0.attention.self.query.weight"
    weights = {name: detector.model.state_dict()[name] + 0.001}
    return Adaptation("text", "tiny", detector.fingerprint, NAMES, PROMPT, weights=weights)


@pytest.mark.parametrize("make", [linear_task, lora_task, text_task])
def test_a_merged_model_detects_what_the_task_does(make, tmp_path):
    """Also where the text encoder is stored as int8, of which a task that changes it is no longer part."""
    config = replace(QUICK, language=replace(QUICK.language, bits=8), thresholds={"a star": 0.3})
    model = seeded(config)
    model.language.round_weights()
    detector = Detector(model, config, Tokenizer(VOCABULARY), "cpu")
    found = detector.adapted(make(detector))(IMAGE)
    task = replace(make(detector), thresholds=(float(found.scores.median()),) * 4)
    detector.adapted(task).save_pretrained(tmp_path)
    merged = Detector.from_pretrained(tmp_path, device="cpu")
    assert_alike(merged(IMAGE, list(NAMES)), detector.adapted(task)(IMAGE), scores=1e-5, boxes=1e-3)
    assert 0 < len(merged(IMAGE, list(NAMES))) < len(found) and merged.config.thresholds["a star"] == 0.3
    assert merged.config.language.bits == (32 if make is text_task else 8)
    assert not identical(merged(IMAGE, list(NAMES), threshold=0.0), detector(IMAGE, list(NAMES), threshold=0.0))
    with pytest.raises(GlipError, match="mode 'prompt' cannot be merged, since it changes no weights"):
        detector.adapted(prompt_task(detector)).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is not a task"),
        ({"format": FORMAT}, "not valid JSON"),
        ({"format": FORMAT, "task": "[" * 100_000}, "not valid JSON"),
        ({"format": FORMAT, "task": "{}"}, "missing key 'mode'"),
        ({"format": FORMAT, "task": "[1]"}, "give a map of keys"),
    ],
)
def test_files_that_are_no_task(metadata, message, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        load_adaptation(tmp_path / "x.safetensors")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "v3"),
        ("mode", "linear"),
        ("names", ("a",)),
        ("thresholds", (0.5,)),
        ("thresholds", (0.5, 0.5, 2.0, 0.0)),
        ("offsets", None),
        ("offsets", torch.full((2, 2), float("nan"))),
        ("offsets", torch.zeros(2, 2, dtype=torch.int32)),
        ("offsets", torch.zeros(2)),
        ("caption", "short"),  # the spans are not in it
    ],
)
def test_broken_tasks(key, value, detector, tmp_path):
    task, file = prompt_task(detector), tmp_path / "x.safetensors"
    if key == "caption":
        task = replace(task, prompt=copy.copy(PROMPT))
        object.__setattr__(task.prompt, key, value)
    else:
        task = replace(task, **{key: value})
    save_adaptation(file, task)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_adaptation(file)


@pytest.mark.parametrize("names", [("",), ("a",), ("a", "b"), ()])
def test_a_folder_with_one_task_is_that_task(names, detector, tmp_path):
    for name in names:
        save_adaptation(tmp_path / name / "task.safetensors", prompt_task(detector))
    if len(names) == 1:
        assert load_adaptation(tmp_path).names == load_adaptation(tmp_path / names[0] / "task.safetensors").names
    else:
        with pytest.raises(CheckpointError, match=f"is a folder with {len(names)} task.safetensors.*: give the file"):
            load_adaptation(tmp_path)


def test_whether_images_are_encoded_as_by_the_model_itself():
    model = seeded(TINY)
    sum(level.sum() for level in model.encode_image(torch.rand(1, 3, 64, 64))).backward()
    for name, value in model.named_parameters():
        changed = Adaptation("full", "tiny", "", ("a",), Prompt.from_names(("a",)), weights={name: value})
        assert changed.keeps_encoder == (value.grad is None), name
