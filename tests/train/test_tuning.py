"""Tuning for a task: what each mode trains and leaves, that it learns, that it resumes and that the model stays."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import config_of, load_case, loaded_model, make_batch
from golden_recorder import make_targets
from runs import task_samples
from small import NAMES, TINY, VOCABULARY, seeded, without_fusion

from glip.config import TuneConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import ConfigError, TrainingError
from glip.loss import Criterion
from glip.model.glip import build
from glip.model.release import our_name
from glip.signals import Interrupted
from glip.structures import Prompt
from glip.text.tokens import Tokenizer
from glip.train import tune as tune_file
from glip.train.tune import STATE, TuneRun
from glip.train.tuner import Images, Tuner, by_size, trained_names

VARY = "augment"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RELEASE = {"full": "full", "linear": "linear_prob", "text": "language_prompt_v1", "prompt": "language_prompt_v2"}
CONFIG = replace(
    TINY,
    vision=replace(TINY.vision, depths=(1, 1, 1, 1), drop_path=0.1),
    language=replace(TINY.language, layers=2, dropout=0.1),
    head=replace(TINY.head, blocks=2, fusion_width=128, fusion_dropout=0.1, drop_block=0.3),
    image=replace(TINY.image, min_size=120, max_size=160),
)
PROMPT = Prompt.from_names(NAMES)


def detector_of(config=CONFIG):
    return Detector(seeded(config), config, Tokenizer(VOCABULARY), "cpu")


def images_of(tuner, made=None, *, gb=1.0, augment=False, skipped=None) -> Images:
    made = task_samples() if made is None else made
    return Images(
        made, tuner, augment=augment, cache=FeatureCache(gb), skipped=SkipCounter() if skipped is None else skipped
    )


def run_of(detector, folder, *, mode="prompt", epochs=3, validate=None, augment=False, cache_gb=1.0, **changed):
    tuner = Tuner(detector, NAMES, PROMPT, mode=mode)
    images = images_of(tuner, gb=cache_gb, augment=augment)
    config = TuneConfig(mode=mode, epochs=epochs, **{"images_per_epoch": 4, "batch_size": 2, **changed})
    rising = iter(range(1000))
    return TuneRun(tuner, images, config, validate=validate or (lambda _: next(rising)), folder=folder)


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
    detector = detector_of()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    found = run_of(detector, tmp_path, mode=mode, epochs=2)(lambda line: None)
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())
    assert not detector.model.training
    assert (found.offsets is not None) == (mode == "prompt")
    assert set(found.weights) <= {*trained_names(detector.model, mode), *dict(detector.model.named_buffers())}
    assert bool(found.weights) == (mode != "prompt")
    assert all(not torch.equal(value, before[name]) for name, value in found.weights.items())
    if mode == "prompt":
        assert (
            found.offsets.abs().sum() > 0
            and len(found.offsets) == detector.encode_text(PROMPT).batch.input_ids.shape[1]
        )


@pytest.mark.parametrize("mode", RELEASE)
def test_frozen_parts_run_in_eval_mode(mode):
    tuner = Tuner(detector_of(), NAMES, PROMPT, mode=mode)
    tuner.model.train()
    tuner.set_modes()
    parts = {name: getattr(tuner.model, name).training for name in ("vision", "pyramid", "language", "tower", "boxes")}
    head = mode in ("linear", "full")
    full = mode == "full"
    assert parts == {
        "vision": full,
        "pyramid": full,
        "language": mode in ("text", "full"),
        "tower": head,
        "boxes": head,
    }
    assert any(module.training for module in tuner.model.tower.modules()) == head


def test_full_tuning_freezes_the_bottom_stages():
    detector = detector_of()
    tuner = Tuner(detector, NAMES, PROMPT, mode="full", frozen_stages=1)
    still = {name for name, value in tuner.model.named_parameters() if not value.requires_grad}
    assert still and still == {name for name in still if name.startswith("vision.")}
    assert not any(
        module.training for part in tuner.model.vision.parts()[:2] for own in part for module in own.modules()
    )
    assert all(value.requires_grad for value in detector.model.parameters()), "flags of the detector's own weights"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prompt", "full"])
def test_a_few_rounds_lower_the_loss(mode, tmp_path):
    run = run_of(
        detector_of(), tmp_path, mode=mode, epochs=12, images_per_epoch=8, lr=0.05 if mode == "prompt" else 2e-3
    )
    run(lambda line: None)
    losses = [row["loss"] for row in run.state.history[1:]]
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_kept_features_change_nothing(tmp_path):
    kept = run_of(detector_of(), tmp_path / "kept")
    anew = run_of(detector_of(), tmp_path / "anew", cache_gb=0.0)
    assert (kept.images.cached, anew.images.cached) == (4, 0)
    first, second = kept(lambda line: None), anew(lambda line: None)
    assert torch.allclose(first.offsets, second.offsets, atol=1e-5)


def test_a_small_memory_keeps_some():
    tuner = Tuner(detector_of(), NAMES, PROMPT, mode="prompt")
    size = sum(level.numel() * 4 for level in images_of(tuner).get(0, np.random.default_rng(0)).levels)
    some = images_of(tuner, gb=2.5 * size / 1e9)
    assert some.cached == 2 and len(some) == 4


@pytest.mark.parametrize(("most", "sizes"), [(0, [1, 4]), (3, [1, 1, 3])])
def test_images_of_one_size_share_a_pass(most, sizes):
    tuner = Tuner(detector_of(), NAMES, PROMPT, mode="prompt")
    wide = replace(task_samples()[0], image=task_samples()[0].image.resize((256, 120)), image_id=9)
    images = images_of(tuner, [*task_samples(), wide])
    groups = list(by_size([images.get(index, np.random.default_rng(0)) for index in range(5)], most))
    assert sorted(len(group.targets) for group in groups) == sizes
    assert all(len(group.targets) == len(group.levels[0]) == len(group.text.attention_mask) for group in groups)


@pytest.mark.parametrize("mode", ["prompt", "full"])
def test_micro_batches_and_checkpointing_change_nothing(mode, tmp_path):
    config = replace(
        CONFIG,
        vision=replace(CONFIG.vision, drop_path=0.0),
        language=replace(CONFIG.language, dropout=0.0),
        head=replace(CONFIG.head, fusion_dropout=0.0, drop_block=0.0),
    )
    whole, divided = (
        run_of(detector_of(config), tmp_path / name, mode=mode, epochs=1, lr=1e-4, batch_size=4, **options)
        for name, options in {"whole": {}, "divided": {"micro_batch": 1, "checkpointing": True}}.items()
    )
    batches = [whole.images.get(index, np.random.default_rng(0)) for index in range(4)]
    first, second = whole.step(batches), divided.step(batches)
    assert first.losses == pytest.approx(second.losses, rel=1e-5) and first.norm == pytest.approx(second.norm, rel=1e-4)
    assert first.images == second.images == 4


def test_bfloat16_tunes(tmp_path):
    run = run_of(detector_of(), tmp_path, epochs=1, precision="bfloat16")
    assert run(lambda line: None).offsets.isfinite().all() and math.isfinite(run.state.history[1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "stopped_in"), [("prompt", 2), ("linear", 1), ("full", 1)])
def test_interrupted_and_resumed_ends_the_same(mode, stopped_in, tmp_path, monkeypatch):
    figures = [0.1, 0.5, 0.2, 0.4, 0.3]
    rows = iter([*figures, *figures])
    whole = run_of(detector_of(), tmp_path / "whole", mode=mode, epochs=4, validate=lambda _: next(rows))
    expected = whole(lambda line: None)
    first = run_of(detector_of(), tmp_path / "cut", mode=mode, epochs=4, validate=lambda _: next(rows))
    asked = property(lambda self: 15 * (first.state.epochs == stopped_in), lambda self, value: None)
    monkeypatch.setattr(tune_file.GracefulStop, "number", asked, raising=False)
    with pytest.raises(Interrupted) as stopped:
        first(lambda line: None)
    assert stopped.value.code == 143 and first.state.epochs == stopped_in
    monkeypatch.undo()
    again = run_of(detector_of(), tmp_path / "cut", mode=mode, epochs=4, validate=lambda _: next(rows))
    assert again.state.epochs == stopped_in
    found = again(lambda line: None)
    assert found.figures == expected.figures == {"validation": 0.5, "validation before": 0.1}
    for one, other in (
        (found.offsets, expected.offsets),
        *((found.weights[n], expected.weights[n]) for n in found.weights),
    ):
        assert (one is None and other is None) or torch.equal(one, other)
    assert [row["loss"] for row in again.state.history] == [row["loss"] for row in whole.state.history]


def test_the_best_is_kept_the_rate_falls_and_it_ends(tmp_path):
    figures = iter([0.0, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    seen = []

    def validate(adapted):
        seen.append(adapted.adaptation.offsets.clone())
        return next(figures)

    run = run_of(detector_of(), tmp_path, epochs=50, drop_after=2, patience=4, validate=validate)
    found = run(lambda line: None)
    assert run.state.epochs == 6 and found.figures["validation"] == 0.9
    assert torch.equal(found.offsets, seen[2])
    assert [row["rate"] for row in run.state.history] == pytest.approx([0.05] * 5 + [0.005] * 2)


def test_rounds_go_on_where_the_last_ended(tmp_path):
    """A epoch of 3 of the 4 images: none is shown again before all were, and a resumed run has the same order."""
    run = run_of(detector_of(), tmp_path, images_per_epoch=3)
    shown = []
    for run.state.epochs in range(8):
        batches = run._batches()
        assert batches == run._batches() and [len(batch) for batch in batches] == [2, 1]
        shown += [index for batch in batches for index in batch]
    passes = [shown[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes) and len(set(map(tuple, passes))) > 1
    assert sum(map(len, run_of(detector_of(), tmp_path / "usual", images_per_epoch=0)._batches())) == 64


def test_another_tuning_in_the_folder_is_refused(tmp_path):
    run_of(detector_of(), tmp_path, epochs=1)(lambda line: None)
    run_of(detector_of(), tmp_path, epochs=2, micro_batch=1)
    with pytest.raises(ValueError, match=r"holds a run with lr 0\.05, not 0\.01"):
        run_of(detector_of(), tmp_path, epochs=1, lr=0.01)
    (tmp_path / STATE).write_bytes(b"PK broken")
    with pytest.raises(ValueError, match="cannot be read"):
        run_of(detector_of(), tmp_path, epochs=1)


def test_numbers_that_are_not_finite_stop_it(tmp_path):
    run = run_of(detector_of(), tmp_path, max_bad_steps=2)
    with torch.no_grad():
        run.tuner.offsets.fill_(math.nan)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        run(lambda line: None)


def test_broken_images_are_counted(tmp_path):
    broken = replace(task_samples()[0], image=tmp_path / "broken.jpg")
    broken.image.write_bytes(b"no image")
    tuner, skipped = Tuner(detector_of(), NAMES, PROMPT, mode="prompt"), SkipCounter()
    images = images_of(tuner, [*task_samples(), broken], skipped=skipped)
    assert len(images) == 4 and skipped.counts == {"unreadable image": 1}
    with pytest.raises(ConfigError, match="none of the 1 training images"):
        images_of(tuner, [broken])


def test_too_many_names():
    names = [f"thing number {number}" for number in range(200)]
    with pytest.raises(ValueError, match="the 200 names need .* tokens, the model reads 256"):
        Tuner(detector_of(), names, Prompt.from_names(names), mode="prompt")


def test_without_fusion_offsets_reach_the_head_alone(tmp_path):
    found = run_of(detector_of(without_fusion(CONFIG)), tmp_path, epochs=2)(lambda line: None)
    assert found.offsets.abs().sum() > 0


@pytest.mark.parametrize(
    ("figures", "epochs", "patience", "ends"),
    [
        (range(9), 2, 8, ["ends after 1 more epoch (", "the last epoch"]),
        ([5, 4, 3, 2], 9, 2, ["ends after 1 more epoch (", "the last epoch"]),
        ([5, 4, 3, 2, 1], 9, 4, ["ends after 3 more epochs (", "2 more epochs (", "1 more epoch (", "the last epoch"]),
    ],
)
def test_a_round_tells_how_long_it_goes_on(tmp_path, figures, epochs, patience, ends):
    figures, lines = iter(figures), []
    settings = {"epochs": epochs, "patience": patience, "validate": lambda _: next(figures)}
    run_of(detector_of(), tmp_path, **settings)(lines.append)
    assert len(lines) == len(ends) + 1
    for line, end in zip(lines[1:], ends, strict=True):
        assert end in line
        assert line.endswith("unless it improves") == (patience < epochs and end != "the last epoch")
