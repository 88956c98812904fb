"""Tuning for a task: what each mode trains and leaves, that it learns, that it resumes and that the model stays."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import config_of, load_case, loaded_model, make_batch
from golden_recorder import make_targets
from small import NAMES, VOCABULARY, seeded, without_fusion
from small_runs import SWIN, TASK, quiet, same, still, task_samples

from glip.config import TuneConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import ConfigError, DataError, GlipError, TrainingError
from glip.loss import Criterion
from glip.model.adapt import load_adaptation, save_adaptation
from glip.model.glip import build
from glip.model.release import our_name
from glip.signals import Interrupted
from glip.structures import Prompt
from glip.text.tokens import Tokenizer
from glip.train import tune as tune_file
from glip.train.lora import add_lora
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner, by_size, trained_names

pytestmark = pytest.mark.usefixtures("peft_for_lora")

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RELEASE = {"full": "full", "linear": "linear_prob", "text": "language_prompt_v1", "prompt": "language_prompt_v2"}
PROMPT = Prompt.from_names(NAMES)


SWIN_TASK = replace(TASK, vision=SWIN.vision)
SOME = 2.5 * 4 * TASK.head.channels * 341 / 1e9  # GB for the features of two images and a half


def detector_of(config=TASK):
    return Detector(seeded(config), config, Tokenizer(VOCABULARY), "cpu")


def tuner_of(mode="prompt", **changed):
    return Tuner(detector_of(), NAMES, PROMPT, TuneConfig(mode=mode), **changed)


def images_of(tuner, made=None, *, gb=1.0, augment=False, skipped=None) -> Images:
    made = task_samples() if made is None else made
    skipped = SkipCounter() if skipped is None else skipped
    return Images(made, tuner, augment=augment, cache=FeatureCache(gb), skipped=skipped)


def run_of(folder, *, config=TASK, mode="prompt", epochs=3, figures=range(1000), cache_gb=1.0, **changed):
    """A tuning whose validations give the figures."""
    options = TuneConfig(mode=mode, epochs=epochs, **{"images_per_epoch": 4, "batch_size": 2, **changed})
    tuner, rest = Tuner(detector_of(config), NAMES, PROMPT, options), iter(figures)
    return TuneRun(
        tuner,
        images_of(tuner, gb=cache_gb, augment=options.augment),
        options,
        validate=lambda _: next(rest),
        folder=folder,
    )


@pytest.mark.parametrize("mode", RELEASE)
def test_golden_what_each_mode_trains(mode):
    rows = [line.split("\t") for line in (GOLDEN / "trainable.tsv").read_text().splitlines()]
    column = rows[0].index(RELEASE[mode])
    config = config_of("glip_t_c")
    with torch.device("meta"):
        model = build(config)
    known = dict(model.named_parameters())
    named = [our_name(row[0], fused=True) for row in rows[1:] if row[column] == "1"]
    expected = {"boxes.scales" if name.startswith("boxes.scales.") else name for name in named} - {"prompt_offsets"}
    assert set(trained_names(model, mode)) == expected
    if mode == "linear":
        assert sum(known[name].numel() for name in expected) == 198_919


def test_golden_gradient_of_the_offsets():
    """Offsets that are no part of the model have the gradient of the release's tunable_linear on the real tokens."""
    case = load_case("tiny_prompt_train")
    loaded = loaded_model(case.form, prompt_offsets=True)
    batch = make_batch(case, loaded.config)
    hidden = loaded.model.encode_text(batch.text)
    stored, loaded.model.prompt_offsets = loaded.model.prompt_offsets, None
    offsets = torch.nn.Parameter(stored.detach()[: hidden.shape[1]].clone())
    outputs = loaded.model.fuse_and_predict(
        loaded.model.encode_image(batch.images.pixels), hidden.detach() + offsets, batch.text.attention_mask
    )
    Criterion()(outputs, make_targets(case, batch), batch.text.attention_mask).total.backward()
    loaded.model.prompt_offsets = stored
    expected = case.tensor("grad:rpn.tunable_linear.weight")[: len(offsets)]
    real = batch.text.attention_mask.all(0)
    assert real.sum() > 5 and offsets.grad is not None
    assert torch.allclose(offsets.grad[real], expected[real], rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", RELEASE)
def test_the_detector_keeps_its_weights_and_the_task_has_what_changed(mode, tmp_path):
    run = run_of(tmp_path, mode=mode, epochs=2)
    detector = run.tuner.detector
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    found = run(quiet)
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())
    assert not detector.model.training
    assert set(found.weights) <= {*trained_names(detector.model, mode), *dict(detector.model.named_buffers())}
    assert all(not torch.equal(value, before[name]) for name, value in found.weights.items())
    assert (found.offsets is not None) == (mode == "prompt") != bool(found.weights)
    if mode == "prompt":
        assert found.offsets.any() and len(found.offsets) == detector.encode_text(PROMPT).batch.input_ids.shape[1]


def test_lora_learns_what_its_file_gives_back_without_peft(tmp_path, monkeypatch):
    """Trained beside the weights, used as part of them: the fusion, which reads weights, and called layers."""
    run = run_of(tmp_path, mode="lora", epochs=2, lr=1e-2)
    tuner, detector = run.tuner, run.tuner.detector
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    save_adaptation(tmp_path / "task.safetensors", run(quiet))
    monkeypatch.setitem(sys.modules, "peft", None)
    found = load_adaptation(tmp_path / "task.safetensors")
    adapted = detector.adapted(found)
    layers = {name.partition(".lora_")[0] for name in found.weights}
    assert len(layers) == 6 + 4 and len(found.weights) == 2 * len(layers) and found.keeps_encoder
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(before[name], detector.model.state_dict()[name])
        assert torch.equal(before[name], value) == (name.removesuffix(".weight") not in layers), name
    levels = run.images.cached[0].levels
    with torch.no_grad():
        trained = tuner(run.images.cached[0])
        merged = adapted.model.fuse_and_predict(levels, tuner.hidden, tuner.text.attention_mask)
    assert torch.allclose(trained.token_logits, merged.token_logits, atol=1e-5)
    assert torch.allclose(trained.box_deltas, merged.box_deltas, atol=1e-5)


@pytest.mark.parametrize(("targets", "images", "text"), [("language", True, False), ("qkv", False, True)])
def test_lora_on_an_encoder_encodes_again(targets, images, text, tmp_path):
    run = run_of(tmp_path, config=SWIN_TASK, mode="lora", epochs=1, targets=(targets,))
    tuner, found = run.tuner, run(quiet)
    assert tuner.keeps_images == found.keeps_encoder == images and len(run.images.cached) == 4 * images
    assert tuner.keeps_text == text and all(value.any() for value in found.weights.values())


def test_lora_of_glip_t_in_numbers():
    """The figure in docs/adaptation.md."""
    with torch.device("meta"):
        model = build(config_of("glip_t_c"))
        add_lora(model.requires_grad_(False), TuneConfig(mode="lora"), int8=False)
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == 1_032_192


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 65}, "rank: got 65: give at most 64, the smaller side of tower.0.fusion.query"),
        ({"targets": ("fusion", "fussion")}, "targets: 'fussion' matches no layer: give a part of a name"),
        ({"targets": ("attention",)}, "targets: 'attention' matches language.bert.encoder.layer.0.attention.self.query,"
         " an int8 matrix, which stays as it is: give others"),
    ],
)  # fmt: skip
def test_lora_refuses(options, words):
    config = replace(TASK, language=replace(TASK.language, bits=8))
    with pytest.raises(ConfigError, match=re.escape(words)):
        Tuner(detector_of(config), NAMES, PROMPT, TuneConfig(mode="lora", **options))


def test_lora_needs_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(GlipError, match=r"^peft is not installed: pip install .*\[lora\]\S*$"):
        tuner_of("lora")


@pytest.mark.parametrize(
    ("mode", "training"),
    [("prompt", []), ("lora", []), ("linear", ["tower", "boxes"]), ("text", ["language"])]
    + [("full", ["vision", "pyramid", "language", "tower", "boxes"])],
)
def test_frozen_parts_run_in_eval_mode(mode, training):
    tuner = tuner_of(mode, frozen_stages=1)
    parts = ("vision", "pyramid", "language", "tower", "boxes")
    assert [part for part in parts if tuner.model.get_submodule(part).training] == training
    frozen = [value for part in tuner.model.vision.parts()[:2] for own in part for value in own.modules()]
    assert not any(module.training for module in frozen)
    still = {name.split(".")[0] for name, value in tuner.model.named_parameters() if not value.requires_grad}
    assert (still == {"vision"}) == (mode == "full")
    assert all(value.requires_grad for value in tuner.detector.model.parameters()), (
        "flags of the detector's own weights"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "lr"), [("prompt", 0.05), ("full", 2e-3)])
def test_a_few_epochs_lower_the_loss(mode, lr, tmp_path):
    run = run_of(tmp_path, mode=mode, epochs=12, images_per_epoch=8, lr=lr)
    run(quiet)
    losses = [row["loss"] for row in run.state.history[1:]]
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_cached_features_change_nothing(tmp_path):
    cached, uncached = run_of(tmp_path / "cached"), run_of(tmp_path / "uncached", cache_gb=0.0)
    assert (len(cached.images.cached), len(uncached.images.cached)) == (4, 0)
    assert torch.allclose(cached(quiet).offsets, uncached(quiet).offsets, atol=1e-4)  # AdamW magnifies rounding


@pytest.mark.parametrize(
    ("most", "gb", "cached", "sizes"), [(0, 1.0, 5, [1, 4]), (3, 1.0, 5, [1, 1, 3]), (0, SOME, 2, [1, 2, 2])]
)
def test_images_of_one_size_share_a_pass(most, gb, cached, sizes):
    """In a small memory only some have cached features; these have passes of their own."""
    wide = replace(task_samples()[0], image=task_samples()[0].image.resize((256, 120)), image_id=9)
    images = images_of(tuner_of(), [*task_samples(), wide], gb=gb)
    assert len(images.cached) == cached and len(images.usable) == 5
    groups = list(by_size([images.get(index, np.random.default_rng(0)) for index in range(5)], most))
    assert sorted(len(group.targets) for group in groups) == sizes
    for group in groups:
        levels = group.images.pixels if group.levels is None else group.levels[0]
        assert len(group.targets) == len(levels) == len(group.text.attention_mask) == len(group.images.resized)


@pytest.mark.parametrize("mode", ["prompt", "lora", "full"])
def test_micro_batches_and_checkpointing_change_nothing(mode, tmp_path):
    whole, divided = (
        run_of(tmp_path / name, config=still(TASK), mode=mode, epochs=1, lr=1e-4, batch_size=4, **options)
        for name, options in {"whole": {}, "divided": {"micro_batch": 1, "checkpointing": True}}.items()
    )
    batches = [whole.images.get(index, np.random.default_rng(0)) for index in range(4)]
    first, second = whole.step(batches), divided.step(batches)
    assert first.losses == pytest.approx(second.losses, rel=1e-5) and first.norm == pytest.approx(second.norm, rel=1e-4)
    assert first.images == second.images == 4


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "stopped_in"), [("prompt", 2), ("linear", 1), ("lora", 1), ("full", 1)])
def test_interrupted_and_resumed_ends_the_same(mode, stopped_in, tmp_path, monkeypatch):
    options = {"mode": mode, "epochs": 4}
    whole = run_of(tmp_path / "whole", figures=[0.1, 0.5, 0.2, 0.4, 0.3], **options)
    expected = whole(quiet)
    first = run_of(tmp_path / "cut", figures=[0.1, 0.5, 0.2], **options)
    number = property(lambda self: 15 * (first.state.epochs == stopped_in), lambda self, value: None)
    monkeypatch.setattr(tune_file.GracefulStop, "number", number, raising=False)
    with pytest.raises(Interrupted) as stopped:
        first(quiet)
    assert stopped.value.code == 143 and first.state.epochs == stopped_in
    monkeypatch.undo()
    again = run_of(tmp_path / "cut", figures=[0.5, 0.2, 0.4, 0.3][stopped_in:], **options)
    assert again.state.epochs == stopped_in
    found = again(quiet)
    assert found.figures == expected.figures == {"validation": 0.5, "validation before": 0.1}
    assert same(found.offsets, expected.offsets) and same(dict(found.weights), dict(expected.weights))
    assert [row["loss"] for row in again.state.history] == [row["loss"] for row in whole.state.history]


def test_the_best_is_kept_the_rate_falls_and_it_ends(tmp_path):
    run = run_of(tmp_path, epochs=50, drop_after=2, patience=4)
    figures, seen = iter([0.0, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), []

    def validate(adapted):
        seen.append(adapted.adaptation.offsets.clone())
        return next(figures)

    run.validate = validate
    found = run(quiet)
    assert run.state.epochs == 6 and found.figures["validation"] == 0.9
    assert torch.equal(found.offsets, seen[2])
    assert [row["rate"] for row in run.state.history] == pytest.approx([0.05] * 5 + [0.005] * 2)


@pytest.mark.parametrize(("figures", "times"), [([0.5, 0.1, 0.5], 1), ([0.5, 0.1, 0.6], 0)])
def test_no_better_epoch_is_said(figures, times, tmp_path):
    said = []
    run_of(tmp_path, figures=figures, epochs=2)(said.append)
    assert (
        sum("no epoch was better on validation: the task is the untuned model, but for" in line for line in said)
        == times
    )


@pytest.mark.parametrize(("ended_by", "more"), [("epochs", {"epochs": 3}), ("patience", {"patience": 3})])
def test_the_advice_of_a_finished_tuning_tunes_longer(ended_by, more, tmp_path):
    short, said = {"epochs": 2} if ended_by == "epochs" else {"epochs": 50, "patience": 2}, []
    for options in (short, short, short | more):
        run = run_of(tmp_path, figures=[0.5, 0.1, 0.1] if not said else [0.1] * 9, **options)
        run(said.append)
    advice = f"this tuning has finished after 2 epochs; to tune longer give a larger --{ended_by}"
    assert said.count(advice) == 1 and run.state.epochs == 3


def test_epochs_go_on_where_the_last_ended(tmp_path):
    """An epoch of 3 of the 4 images: none is shown again before all were, and a resumed run has the same order."""
    run = run_of(tmp_path, images_per_epoch=3)
    shown = []
    for run.state.epochs in range(8):
        batches = run._batches()
        assert batches == run._batches() and [len(batch) for batch in batches] == [2, 1]
        shown += [index for batch in batches for index in batch]
    passes = [shown[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes) and len(set(map(tuple, passes))) > 1
    assert sum(map(len, run_of(tmp_path / "usual", images_per_epoch=0)._batches())) == 64


def test_another_tuning_in_the_folder_is_refused(tmp_path):
    run_of(tmp_path, epochs=1)(quiet)
    run_of(tmp_path, epochs=2, micro_batch=1)
    with pytest.raises(DataError, match=r"holds results made with lr 0\.05, not 0\.01"):
        run_of(tmp_path, epochs=1, lr=0.01)


def test_numbers_that_are_not_finite_stop_it(tmp_path):
    run = run_of(tmp_path, max_bad_steps=2)
    with torch.no_grad():
        run.tuner.offsets.fill_(math.nan)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        run(quiet)


def test_broken_images_are_counted(tmp_path):
    broken = replace(task_samples()[0], image=tmp_path / "broken.jpg")
    broken.image.write_bytes(b"no image")
    tuner, skipped = tuner_of(), SkipCounter()
    images = images_of(tuner, [*task_samples(), broken], skipped=skipped)
    assert len(images.usable) == 4 and skipped.counts == {"unreadable image": 1}
    with pytest.raises(ConfigError, match="none of the 1 training images"):
        images_of(tuner, [broken])


@pytest.mark.parametrize(
    "options",
    [{"config": without_fusion(TASK)}, {"precision": "bfloat16"}, {"augment": True}]
    + [{"mode": "lora", "precision": "bfloat16"}, {"mode": "lora", "augment": True}],
    ids=["unfused", "bfloat16", "augmented", "lora-bfloat16", "lora-augmented"],
)
def test_without_fusion_in_bfloat16_and_augmented_a_task_learns(options, tmp_path):
    run = run_of(tmp_path, epochs=1, **options)
    found = run(quiet)
    learned = [found.offsets] if found.weights == {} else list(found.weights.values())
    assert all(own.any() and own.isfinite().all() for own in learned)
    assert math.isfinite(run.state.history[1]["loss"])


@pytest.mark.parametrize(("figures", "epochs", "patience"), [(range(9), 2, 8), ([5, 4, 3, 2, 1], 9, 4)])
def test_an_epoch_says_how_long_it_goes_on(tmp_path, figures, epochs, patience):
    lines = []
    run_of(tmp_path, epochs=epochs, patience=patience, figures=figures)(lines.append)
    for left, line in enumerate(reversed([line for line in lines if line.startswith("epoch")])):
        assert f"epochs left: {left} (" in line
        assert line.endswith("unless it improves") == (patience < epochs and left > 0)
