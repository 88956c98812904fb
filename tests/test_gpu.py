"""What a device could change: the same numbers as on the CPU, tensors where they belong, and training that goes on.

Run on a GPU by ``pytest -m gpu`` (tools/check_gpu.py does so); ``--device cpu`` tries the tests themselves.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import small_runs as runs
import torch
from alike import assert_alike
from PIL import Image
from small import NAMES, QUICK, VOCABULARY, scenes, seeded, write_coco
from torch import Tensor

from glip.cli.main import main
from glip.config import InferenceConfig, LabelConfig, ModelConfig, StepConfig, TuneConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.evaluate.run import QueryOptions, detect_all
from glip.geometry.boxes import suppress
from glip.loss import Criterion, Losses
from glip.model.adapt import Adaptation
from glip.model.deform import deform_conv
from glip.model.fusion import Fusion, _dropout_unscaled
from glip.model.weights import weights_fingerprint
from glip.postprocess import postprocess
from glip.pseudo.label import Labeller, find_captions, find_shards
from glip.pseudo.store import read_rows
from glip.structures import Detections, Prompt, Sample
from glip.text.tokens import Tokenizer
from glip.train.checkpoint import random_state, restore_random
from glip.train.distributed import Group
from glip.train.step import Stepper
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Float32 on a GPU means float32 here."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def pair(device: str) -> tuple[Detector, Detector]:
    """The same small detector on the CPU and on the device."""

    def made(where: str) -> Detector:
        model = seeded(QUICK)
        with torch.no_grad():
            model.tokens.log_scale.fill_(-3.0)
            model.boxes.centerness.weight.mul_(50)
        return Detector(model, QUICK, Tokenizer(VOCABULARY), where)

    return made("cpu"), made(device)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Two sizes, so that batches are grouped."""
    return [image if index % 2 else image.resize((90, 120)) for index, (image, _) in enumerate(scenes())]


def assert_near(first: Detections, second: Detections, *, scores: float = 1e-4) -> None:
    """Alike, and on the CPU."""
    assert second.boxes.device.type == second.scores.device.type == second.labels.device.type == "cpu"
    assert_alike(first, second, scores=scores, boxes=0.1)


def assert_gradients_alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """By the norm of their difference: most single entries are tiny."""
    for name, gradient in first.items():
        gap = float((gradient - second[name]).norm())
        assert gap <= 1e-2 * float(gradient.norm()) + 1e-5, f"{name}: {gap} of {float(gradient.norm())}"


def test_a_detector_finds_what_it_finds_on_the_cpu(pair, images):
    here, there = pair
    for one, other in zip(here(images, list(NAMES)), there(images, list(NAMES)), strict=True):
        assert_near(one, other)


def test_chunks_and_token_scores(pair, images):
    here, there = pair
    names = [f"{name} {number}" for number in range(3) for name in NAMES]
    assert_near(here(images[0], names, max_names=5), there(images[0], names, max_names=5))
    for one, other in zip(*(d([images[0]], list(NAMES), token_scores=True) for d in pair), strict=True):
        assert other.token_scores is not None and other.token_scores.device.type == "cpu"
        torch.testing.assert_close(one.token_scores.amax(0), other.token_scores.amax(0), rtol=0, atol=1e-3)


def test_encodings_come_from_the_cpu_or_stay_on_the_device(pair, images, device):
    _, there = pair
    text, encoded = there.encode_text(list(NAMES)), there.encode_image(images[1:2])
    assert encoded.levels[0].device.type == torch.device(device).type
    [whole] = there.ground(encoded, text)
    kept = FeatureCache(1.0)
    stored = kept.get("one", lambda: encoded)
    assert stored.levels[0].device.type == "cpu"
    [again] = there.ground(stored.to(device), text)
    assert_near(whole, again, scores=1e-6)
    samples = [Sample(images[1], torch.empty(0, 4), (), vocabulary=NAMES)] * 3
    for _, found in detect_all(there, samples, options=QueryOptions(batch_size=2), kept=FeatureCache(1.0)):
        assert len(found) and found.boxes.device.type == "cpu"


def test_a_tuned_prompt_is_found_with_its_offsets(pair, images):
    here, there = pair
    prompt = Prompt.from_names(NAMES)
    hidden = here.encode_text(prompt).hidden[0]
    offsets = 3 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for detector in pair:
        task = Adaptation("prompt", "tiny", detector.fingerprint, NAMES, prompt, offsets)
        found.append(detector.adapted(task)(images[1]))
    assert_near(*found)


def test_weights_have_one_fingerprint_and_are_stored_alike(pair, tmp_path):
    here, there = pair
    assert weights_fingerprint(here.model.state_dict()) == weights_fingerprint(there.model.state_dict())
    there.save_pretrained(tmp_path)
    assert Detector.from_pretrained(tmp_path, device="cpu").fingerprint == here.fingerprint


def test_decoding_on_the_device(pair, images, device):
    here, _ = pair
    batch = here.processor([images[1]], [Prompt.from_names(NAMES)])
    with torch.no_grad():
        outputs = here.model(batch)
    parts = ("token_logits", "box_deltas", "centerness", "anchors")
    moved = replace(outputs, **{name: getattr(outputs, name).to(device) for name in parts})
    config, sizes = InferenceConfig(candidate_threshold=0.0), (batch.images.resized, batch.images.original)
    [one] = postprocess(outputs, batch.text, *sizes, config)
    [other] = postprocess(moved, batch.text.to(device), *sizes, config)
    assert_near(one, other.to("cpu"), scores=1e-5)


@pytest.mark.parametrize("classes", [1, 80])
def test_suppression_keeps_what_the_cpu_keeps(device, classes):
    generator = torch.Generator().manual_seed(classes)
    corners, sides = torch.rand(2000, 2, generator=generator) * 800, torch.rand(2000, 2, generator=generator) * 200
    boxes, scores = torch.cat([corners, corners + sides], 1), torch.rand(2000, generator=generator)
    labels = torch.randint(0, classes, (2000,), generator=generator)
    kept = suppress(boxes, scores, labels, 0.6)
    there = suppress(boxes.to(device), scores.to(device), labels.to(device), 0.6)
    assert len(kept) > 500 and len(set(there.tolist()) ^ set(kept.tolist())) <= 2


def assert_same_numbers(device: str, compute: Callable[[str], Sequence[Tensor]], *, atol: float) -> None:
    """What is computed on the CPU is computed on the device."""
    here, there = ([tensor.detach().cpu() for tensor in compute(where)] for where in ("cpu", device))
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_and_its_gradients(device, stride):
    torch.manual_seed(0)
    height, width = -(-13 // stride), -(-11 // stride)
    shapes = [(2, 8, 13, 11), (2, 18, height, width), (2, 9, height, width), (6, 8, 3, 3), (6,)]
    values, direction = [torch.randn(shape) for shape in shapes], torch.randn(2, 6, height, width)

    def compute(where: str) -> Sequence[Tensor]:
        own = [value.to(where, copy=True).requires_grad_() for value in values]
        out = deform_conv(own[0], own[1], own[2], own[3], own[4], stride)
        return [out, *torch.autograd.grad((out * direction.to(where)).sum(), own)]

    assert_same_numbers(device, compute, atol=1e-4)


def test_fusion_and_its_gradients(device):
    torch.manual_seed(0)
    module = Fusion(16, 24, width=32, heads=4, dropout=0.0, residual=0.5)
    image, text = torch.randn(2, 50, 16), torch.randn(2, 7, 24)
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]])

    def compute(where: str) -> Sequence[Tensor]:
        module.to(where)
        fused, hidden = module(image.to(where), text.to(where), mask.to(where))
        hidden = hidden * mask.to(where)[..., None]
        loss = fused.square().mean() + hidden.square().mean()
        return [fused, hidden, *torch.autograd.grad(loss, list(module.parameters()))]

    assert_same_numbers(device, compute, atol=1e-5)


def test_dropout_of_the_fusion_drops_its_share(device):
    torch.manual_seed(0)
    dropped = _dropout_unscaled(torch.ones(64, 1001, device=device), 0.25)
    assert dropped.device.type == torch.device(device).type
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def trained_step(config: ModelConfig, device: str, *, checkpointing: bool = False) -> tuple[Losses, dict[str, Tensor]]:
    """The losses and gradients of one batch, from the same weights and random numbers each time."""
    model = seeded(config).to(device).train()
    model.checkpoint_gradients(checkpointing)
    torch.manual_seed(3)
    batch = runs.batches_of(4, side=128)[0].to(device)
    losses = Criterion()(model(batch), batch.targets, batch.text.attention_mask)
    losses.total.backward()
    return losses, {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


def test_losses_and_gradients_of_a_model(device):
    (here, own), (there, theirs) = (trained_step(runs.STILL, where) for where in ("cpu", device))
    assert there.total.item() == pytest.approx(here.total.item(), rel=1e-4)
    assert int(there.num_positive) == int(here.num_positive)
    assert_gradients_alike(own, theirs)


@pytest.mark.parametrize("config", [runs.SWIN, runs.RESNET], ids=["swin", "resnet"])
def test_checkpointing_repeats_the_random_layers(device, config):
    """Dropout, drop path and DropBlock draw the same numbers again in the backward pass."""
    (plain, own), (repeated, theirs) = (trained_step(config, device, checkpointing=on) for on in (False, True))
    assert plain.total.item() == pytest.approx(repeated.total.item(), rel=1e-5)
    assert_gradients_alike(own, theirs)


def test_random_numbers_go_on_where_they_were(device):
    where = torch.device(device)
    torch.manual_seed(1)
    torch.rand(3, device=where)
    state = random_state(where)
    drawn = torch.rand(5, device=where), torch.rand(5)
    restore_random(state, where)
    again = torch.rand(5, device=where), torch.rand(5)
    assert torch.equal(drawn[0], again[0]) and torch.equal(drawn[1], again[1])


def test_float16_lowers_its_scale_until_gradients_fit(device):
    if not device.startswith("cuda"):
        pytest.skip("float16 is trained on a GPU only")
    model = seeded(runs.STILL).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    group = Group(device=torch.device(device))
    take = Stepper(model, model, optimizer, StepConfig(precision="float16"), group)
    take.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    batches = runs.batches_of(2, side=128)
    outcomes = [take(batches) for _ in range(40)]
    assert outcomes[0].overflow and not outcomes[0].stepped and outcomes[-1].stepped
    assert take.scale < 2.0**40


@pytest.mark.parametrize("mode", ["prompt", "linear", "lora", "full"])
def test_a_tuned_task_comes_back_on_the_cpu(device, mode, tmp_path):
    detector = Detector(seeded(QUICK), QUICK, Tokenizer(VOCABULARY), device)
    samples = runs.task_samples()
    before = weights_fingerprint(detector.model.state_dict())
    settings = TuneConfig(mode=mode, images_per_epoch=4, epochs=2, batch_size=2)
    tuner = Tuner(detector, NAMES, Prompt.from_names(NAMES), settings)
    images = Images(samples, tuner, augment=False, cache=FeatureCache(1.0), skipped=SkipCounter())
    rising = iter(range(10))
    task = TuneRun(tuner, images, settings, validate=lambda _: next(rising), folder=tmp_path)(runs.quiet)
    assert weights_fingerprint(detector.model.state_dict()) == before, "the detector keeps its weights"
    learned = [task.offsets] if mode == "prompt" else list(task.weights.values())
    assert learned and all(value is not None and value.isfinite().all() for value in learned)
    assert any(value.any() for value in learned), "something was learned"
    assert all(value.device.type == "cpu" for value in learned)
    found = detector.adapted(task)(scenes()[0][0], threshold=0.0)
    assert found.boxes.device.type == "cpu"


def test_labels_are_those_of_the_cpu(pair, images, tmp_path, device):
    pytest.importorskip("spacy")
    pair[0].save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for index, image in enumerate(images):
        image.save(tmp_path / "images" / f"{index}.png")
    rows = [{"image": f"{index}.png", "captions": ["a red circle near a blue star"]} for index in range(len(images))]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = find_captions(str(tmp_path / "captions.jsonl"), [str(tmp_path / "images")], None)
    [shard] = find_shards(entry, 100)
    config = LabelConfig(threshold=0.0, max_detections=5, min_bytes=0, min_side=0, same_image=-1, max_repeats=0)
    stored = []
    for where in ("cpu", device):
        report = Labeller(tmp_path / "model", config, tmp_path / where, where)(shard)
        assert report["kept"] == len(images)
        stored.append(list(read_rows(tmp_path / where)))
    for mine, theirs in zip(*stored, strict=True):
        best = [max(row["boxes"], key=lambda box: box["score"]) for row in (mine, theirs)]
        assert best[1]["score"] == pytest.approx(best[0]["score"], abs=1e-3)
        assert best[1]["box"] == pytest.approx(best[0]["box"], abs=0.1)


def test_commands_take_the_device(pair, tmp_path, device, capsys, monkeypatch):
    pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    pair[0].save_pretrained(tmp_path / "model")
    annotations = write_coco(tmp_path / "set")
    scenes()[0][0].save(tmp_path / "one.png")
    words = ["--model", str(tmp_path / "model"), "--device", device]
    for command in (
        ["detect", str(tmp_path / "one.png"), "red circle", "--out", str(tmp_path / "out"), *words],
        ["evaluate", str(tmp_path / "model"), str(annotations), "--device", device],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    assert "AP" in capsys.readouterr().out
