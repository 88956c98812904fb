"""Weights in and out: the release's layout, mmdetection's, ours, and a BERT to start from."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import RELEASED, SMALL, TINY, VOCABULARY, release_state, saved, seeded, to_mmdet, without_fusion

from glip.detector import Detector
from glip.errors import CheckpointError, ConfigError
from glip.model.release import load_yacs
from glip.model.weights import load_pretrained, save_pretrained, start_language

YACS = """
MODEL:
  ATSS: {NUM_CLASSES: 81, PRE_NMS_TOP_N: 700, INFERENCE_TH: 0.01, NMS_TH: 0.5, DETECTIONS_PER_IMG: 300}
  DYHEAD: {SCORE_AGG: "MAX"}
  LANGUAGE_BACKBONE: {MAX_QUERY_LEN: 128}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}
"""


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return release_state(SMALL)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


# ---- the 2022 release


@pytest.mark.parametrize("wrapping", ["bare", "model", "module", "training", "without position_ids"])
def test_release_in_every_wrapping(released, wrapping, tmp_path):
    tree = {
        "bare": released,
        "model": {"model": released},
        "module": {"model": prefixed(released)},
        "training": {"model": prefixed(released), "optimizer": {"state": {}}, "scheduler": {"last": 3}, "iteration": 9},
        "without position_ids": {k: v for k, v in released.items() if "position_ids" not in k},
    }[wrapping]
    loaded = load_pretrained(saved(tree, tmp_path))
    state = loaded.model.state_dict()
    assert torch.equal(state["vision.patch.weight"], released["backbone.body.patch_embed.proj.weight"])
    assert torch.equal(state["boxes.scales"][3:4], released["rpn.head.scales.3.scale"])
    assert torch.equal(state["tower.1.fusion.key.bias"], released["rpn.head.dyhead_tower.3.b_attn.attn.l_proj.bias"])
    assert not loaded.model.training


def test_sizes_are_inferred(released, tmp_path):
    config = load_pretrained(saved(released, tmp_path)).config
    assert config.vision == SMALL.vision
    assert config.language == SMALL.language
    assert config.head == SMALL.head
    assert (config.image.min_size, config.inference.aggregate) == (800, "mean")


def test_form_without_fusion(tmp_path):
    config = without_fusion(SMALL)
    state = release_state(config)
    loaded = load_pretrained(saved({"model": state}, tmp_path))
    assert not loaded.config.head.fusion and loaded.config.head.blocks == 2
    key = "rpn.head.dyhead_tower.1.offset.weight"
    assert torch.equal(loaded.model.state_dict()["tower.1.image.offset.weight"], state[key])


def test_tuned_prompt_becomes_offsets(released, tmp_path):
    table = torch.randn(1000, SMALL.language.hidden)
    loaded = load_pretrained(saved({**released, "rpn.tunable_linear.weight": table}, tmp_path))
    assert loaded.config.head.prompt_offsets
    assert torch.equal(loaded.model.state_dict()["prompt_offsets"], table[:256])


def test_yacs_beside_is_read(released, tmp_path):
    (tmp_path / "glip.yaml").write_text(YACS)
    (tmp_path / "other.yaml").write_text("MODEL: {DYHEAD: {SCORE_AGG: MEAN}}")
    config = load_pretrained(saved(released, tmp_path)).config
    assert (config.image.min_size, config.image.max_size, config.max_tokens) == (64, 96, 128)
    inference = config.inference
    assert (inference.aggregate, inference.candidate_threshold, inference.nms) == ("max", 0.01, 0.5)
    assert (inference.candidates_per_level, inference.max_detections) == (700, 300)


def test_a_lone_yaml_needs_no_name_and_two_foreign_ones_are_not_guessed(released, tmp_path):
    (tmp_path / "a.yaml").write_text(YACS)
    path = saved(released, tmp_path)
    assert load_pretrained(path).config.inference.aggregate == "max"
    (tmp_path / "b.yml").write_text("x: 1")
    assert load_pretrained(path).config.inference.aggregate == "mean"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("MODEL: {DYHEAD: {SCORE_AGG: MODE}}", "SCORE_AGG"),
        ("INPUT: {MIN_SIZE_TEST: large}", "MIN_SIZE_TEST: expected int, got 'large'"),
        ("MODEL: {ATSS: {NMS_TH: [1]}}", "NMS_TH: expected float"),
        ("MODEL: [", "not valid YAML"),
    ],
)
def test_yacs_that_makes_no_sense(text, told, released, tmp_path):
    (tmp_path / "glip.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_yacs(tmp_path / "glip.yaml", SMALL)
    with pytest.raises(CheckpointError, match="the config beside"):
        load_pretrained(saved(released, tmp_path))


def test_yacs_of_other_things_changes_nothing(tmp_path):
    (tmp_path / "x.yaml").write_text("- a\n- b")
    assert load_yacs(tmp_path / "x.yaml", SMALL) == SMALL


def test_detector_runs_a_released_checkpoint(tmp_path):
    (tmp_path / "glip.yaml").write_text(YACS)
    path = saved({"model": prefixed(release_state(RELEASED))}, tmp_path)
    detector = Detector.from_pretrained(path, device="cpu")
    image = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8)
    found = detector(image, "red circle. blue star", threshold=0.0)
    detector.save_pretrained(tmp_path / "ours")
    again = Detector.from_pretrained(tmp_path / "ours", device="cpu")(image, "red circle. blue star", threshold=0.0)
    assert len(found) and found.boxes.equal(again.boxes) and found.scores.equal(again.scores)


# ---- mmdetection


@pytest.mark.parametrize("wrapper", ["state_dict", None])
def test_mmdetection_holds_the_same_weights(released, wrapper, tmp_path):
    theirs = to_mmdet(released)
    assert "neck.fpn_convs.4.conv.weight" in theirs and "bbox_head.head.dyhead_tower.2.dyconvs.0.conv.bias" in theirs
    first = load_pretrained(saved(released, tmp_path, "release.pth"))
    second = load_pretrained(saved({wrapper: theirs, "meta": {}} if wrapper else theirs, tmp_path, "mmdet.pth"))
    assert same(first.model.state_dict(), second.model.state_dict())
    assert first.config == replace(second.config, name=first.config.name)


# ---- ours


def outputs(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    levels = model.encode_image(torch.randn(1, 3, 64, 64, generator=generator))
    ids = torch.tensor([[101, 2417, 4418, 102]])
    text = model.language(ids, torch.ones(1, 4, dtype=torch.bool))
    out = model.fuse_and_predict(levels, text)
    return torch.cat([out.token_logits.flatten(), out.box_deltas.flatten(), out.centerness.flatten()])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@torch.no_grad()
def test_saving_and_loading_again(half, bits, tmp_path):
    config = replace(TINY, language=replace(TINY.language, bits=bits))
    model = seeded(config)
    save_pretrained(tmp_path / "a", model, config, VOCABULARY, half=half)
    loaded = load_pretrained(tmp_path / "a")
    assert loaded.config == config
    if not half and bits == 32:
        assert same(model.state_dict(), loaded.model.state_dict())
        assert torch.equal(outputs(model), outputs(loaded.model))
    save_pretrained(tmp_path / "b", loaded.model, loaded.config, loaded.tokenizer, half=half)
    assert same(load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors"))
    assert torch.equal(outputs(loaded.model), outputs(load_pretrained(tmp_path / "b").model))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]


def test_rounded_weights_are_stored_without_loss(tmp_path):
    config = replace(SMALL, language=replace(SMALL.language, bits=8))
    model = seeded(config)
    model.language.round_weights()
    save_pretrained(tmp_path, model, config, VOCABULARY)
    stored = load_file(tmp_path / "model.safetensors")
    rows = stored["language.bert.embeddings.word_embeddings.weight.int8_rows"]
    assert rows.dtype == torch.int8 and rows.shape == (300, 128)
    assert same(model.state_dict(), load_pretrained(tmp_path).model.state_dict())


def test_saving_over_itself(tmp_path):
    save_pretrained(tmp_path, seeded(SMALL), SMALL, VOCABULARY)
    loaded = load_pretrained(tmp_path)
    save_pretrained(tmp_path, loaded.model, loaded.config, loaded.tokenizer)
    assert same(loaded.model.state_dict(), load_pretrained(tmp_path).model.state_dict())


# ---- a pretrained BERT to start from


def bert_state(layers: int) -> dict[str, torch.Tensor]:
    config = replace(SMALL, language=replace(SMALL.language, layers=layers, positions=512))
    state = seeded(config, seed=7).language.bert.state_dict()
    return {f"bert.{key}": value.clone() for key, value in state.items()} | {"bert.pooler.dense.bias": torch.zeros(3)}


def test_start_language_fills_encoder_and_tower(tmp_path):
    state = bert_state(layers=3)
    save_file(state, tmp_path / "model.safetensors")
    model = seeded(SMALL)
    untouched = model.tower[1].text.layer.intermediate.dense.bias.detach().clone()
    start_language(model, tmp_path)
    prefix = "bert.encoder.layer."
    query = model.language.bert.encoder.layer[1].attention.self.query.weight
    assert torch.equal(query, state[f"{prefix}1.attention.self.query.weight"])
    positions = model.language.bert.embeddings.position_embeddings.weight
    assert torch.equal(positions, state["bert.embeddings.position_embeddings.weight"][:256])
    dense = model.tower[0].text.layer.intermediate.dense.weight
    assert torch.equal(dense, state[f"{prefix}2.intermediate.dense.weight"])
    assert torch.equal(model.tower[1].text.layer.intermediate.dense.bias, untouched), "no layer is left for it"


def test_start_language_from_something_else(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"are not of this model: missing embeddings\.word"):
        start_language(seeded(SMALL), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="are not there"):
        start_language(seeded(SMALL), tmp_path)
    shutil.copy(VOCABULARY / "vocab.txt", tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="broken"):
        start_language(seeded(SMALL), tmp_path)
