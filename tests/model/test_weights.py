"""Weights in and out: the release's layout, mmdetection's, ours; what is broken is told in one line."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import RELEASED, TINY, VOCABULARY, release_state, seeded, without_fusion

from glip.config import ConfigError, load_yacs
from glip.detector import Detector
from glip.model.weights import RELEASED as NAMED
from glip.model.weights import WeightsError, list_pretrained, load_pretrained, save_pretrained, start_language

SMALL = replace(RELEASED, language=replace(RELEASED.language, vocabulary=300))  # for tests that read no words
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


def saved(tree: object, folder: Path, name: str = "glip.pth") -> Path:
    torch.save(tree, folder / name)
    return folder / name


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
    with pytest.raises(WeightsError, match="the config beside"):
        load_pretrained(saved(released, tmp_path))


def test_yacs_of_other_things_changes_nothing(tmp_path):
    (tmp_path / "x.yaml").write_text("- a\n- b")
    assert load_yacs(tmp_path / "x.yaml", SMALL) == SMALL


def test_detector_runs_a_released_checkpoint(tmp_path):
    (tmp_path / "glip.yaml").write_text(YACS)
    path = saved({"model": prefixed(release_state(RELEASED))}, tmp_path)
    detector = Detector.from_pretrained(path, device="cpu")
    picture = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8)
    found = detector(picture, "red circle. blue star", threshold=0.0)
    detector.save_pretrained(tmp_path / "ours")
    again = Detector.from_pretrained(tmp_path / "ours", device="cpu")(picture, "red circle. blue star", threshold=0.0)
    assert len(found) and found.boxes.equal(again.boxes) and found.scores.equal(again.scores)


# ---- mmdetection


def to_mmdet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What mmdetection's converter makes of the release's names and of Swin's merging (glip_to_mmdet.py, 3.3)."""
    pyramid = {"fpn_inner": ("lateral_convs", 2), "fpn_layer": ("fpn_convs", 2), "top_blocks.p": ("fpn_convs", 3)}
    renamed = {}
    for key, value in state.items():
        if any(part in key for part in ("anchor_generator", "cls_logits", "pooler")):
            continue
        if ".downsample." in key:
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        new = key.replace("backbone.body.", "backbone.", 1) if key.startswith("backbone.body.") else key
        new = new.replace("backbone.layers.", "backbone.stages.").replace("embed.proj.", "embed.projection.")
        new = new.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        if new.startswith("backbone."):
            new = new.replace(".attn.", ".attn.w_msa.")
        for part, (place, first) in pyramid.items():
            stem = f"backbone.fpn.{part}"
            if new.startswith(stem):
                number, kind = new.removeprefix(stem).split(".")
                new = f"neck.{place}.{int(number) - first}.conv.{kind}"
        if new.startswith("language_backbone."):
            new = f"language_model.{new}"
        if new.startswith("rpn."):
            new = "bbox_head." + new.removeprefix("rpn.")
        renamed[new.replace("DyConv", "dyconvs").replace("AttnConv", "attnconv")] = value.contiguous()
    return renamed


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
    out = model.ground(levels, text)
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


# ---- what is broken


def error_of(source: str | Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_pretrained(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_truncated_checkpoint(released, tmp_path):
    path = saved(released, tmp_path)
    path.write_bytes(path.read_bytes()[:20000])
    assert "glip.pth" in error_of(path) and "ends early or is broken (20,000 bytes)" in error_of(path)


def test_checkpoint_of_no_bytes_and_text_files(tmp_path):
    for text in ("", "hello, this is no checkpoint\n", "<!doctype html>\n<html>", "(lp0\nI1\na."):
        (tmp_path / "x.pth").write_text(text)
        assert "it is no checkpoint" in error_of(tmp_path / "x.pth"), text


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    saved({"model": {"rpn.x": torch.zeros(1), "evil": Evil()}}, tmp_path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"evil": Evil()}, protocol=2))
    assert "never run" in error_of(tmp_path / "glip.pth")
    error_of(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", [{}, [1, 2], {"model": {"a": 1}}, {"model": {}}, {3: torch.zeros(1)}, torch.zeros(2)])
def test_no_state_dict(tree, tmp_path):
    assert "hold no state dict" in error_of(saved(tree, tmp_path))


def test_missing_extra_and_misshapen(released, tmp_path):
    state = dict(released)
    del state["rpn.head.bbox_pred.bias"]
    state["rpn.head.spare.weight"] = torch.zeros(1)
    state["rpn.head.centerness.bias"] = torch.zeros(2)
    message = error_of(saved(state, tmp_path))
    assert "missing boxes.box.bias" in message and "extra rpn.head.spare.weight" in message
    assert "boxes.centerness.bias has shape (2,), the model (1,)" in message


@pytest.mark.parametrize(
    "keys",
    [
        ["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_predictor.bbox_pred.weight"],
        ["backbone.conv1.weight", "neck.lateral_convs.0.conv.weight", "bbox_head.atss_cls.weight"],
        ["backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "bbox_head.cls_branches.0.bias"],
    ],
)
def test_another_detector_of_coco(keys, tmp_path):
    message = error_of(saved({"model": {key: torch.zeros(4, 4) for key in keys}}, tmp_path))
    assert "are no GLIP" in message and keys[0] in message and "another detector" in message


def test_a_model_without_boxes(tmp_path):
    message = error_of(saved({"conv1.weight": torch.zeros(4, 4)}, tmp_path))
    assert "are no GLIP" in message and "'conv1.weight'" in message and "save_pretrained" in message


@pytest.mark.parametrize("drop", ["patch_embed.proj", "layers.2.", "word_embeddings", "position_embeddings", "p6"])
def test_whatever_is_missing_sizes_are_never_guessed(drop, released, tmp_path):
    assert "are no GLIP" in error_of(saved({k: v for k, v in released.items() if drop not in k}, tmp_path))


@pytest.mark.parametrize("part", ["patch_embed.proj", "bias_table", "word_embeddings", "b_attn.attn.v_proj", "p6"])
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 5)])
def test_odd_shapes_never_crash(part, shape, released, tmp_path):
    odd = {key: torch.zeros(shape) if part in key else value for key, value in released.items()}
    error_of(saved(odd, tmp_path))


def test_odd_shapes_in_mmdetections_layout(released, tmp_path):
    odd = {key: torch.zeros(3) if ".downsample." in key else value for key, value in to_mmdet(released).items()}
    assert "vision.stages.1.merge" in error_of(saved(odd, tmp_path))


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(tmp_path / "ours", seeded(SMALL), SMALL, VOCABULARY)
    return tmp_path / "ours"


def test_folders_that_are_not_whole(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error_of(tmp_path / "empty")
    weights = folder / "model.safetensors"
    assert f"give a checkpoint of the release or of mmdetection, or the folder {str(folder)!r}" in error_of(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "ends early or is broken" in error_of(folder)
    weights.unlink()
    assert "are not there" in error_of(folder)


def test_config_json_that_is_broken(folder):
    file = folder / "config.json"
    tree = json.loads(file.read_text())
    file.write_text("{")
    assert "is not JSON" in error_of(folder)
    file.write_text(json.dumps({**tree, "languge": {}}))
    assert "did you mean 'language'?" in error_of(folder)
    file.write_text(json.dumps({**tree, "language": {**tree["language"], "heads": 7}}))
    assert "no model has such sizes" in error_of(folder)
    file.write_text(json.dumps({**tree, "head": {**tree["head"], "channels": 64}}))
    assert "are not of this model" in error_of(folder)
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in error_of(folder)


def test_rows_without_scales(tmp_path):
    config = replace(SMALL, language=replace(SMALL.language, bits=8))
    save_pretrained(tmp_path, seeded(config), config, VOCABULARY)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in stored.items() if not k.endswith("int8_scales")}, tmp_path / "model.safetensors")
    assert "missing language.bert" in error_of(tmp_path)


# ---- names


def test_unknown_name():
    message = error_of("glip-x")
    assert "'glip-x'" in message and all(name in message for name in list_pretrained())


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


@pytest.mark.parametrize("name", NAMED)
def test_public_names_without_network(name, offline):
    message = error_of(name)
    assert NAMED[name] in message and "GLIPModel/GLIP" in message and "pass its path" in message


def test_cached_file_is_used(released, offline, monkeypatch, tmp_path):
    path = saved(released, tmp_path, NAMED["glip-t"])
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *what: asked.append(what) or str(path))
    loaded = load_pretrained("glip-t")
    assert loaded.config.name == "glip-t" and asked == [("GLIPModel/GLIP", NAMED["glip-t"])]


def test_download_says_the_size(released, offline, monkeypatch, tmp_path, capsys):
    path = saved(released, tmp_path, NAMED["glip-l"])
    size = type("Metadata", (), {"size": 3_700_000_000})()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: size)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *what: str(path))
    assert load_pretrained("glip-l").config.name == "glip-l"
    said = capsys.readouterr()
    assert "glip_large_model.pth (3700 MB)" in said.err and not said.out


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
    with pytest.raises(WeightsError, match=r"are not of this model: missing embeddings\.word"):
        start_language(seeded(SMALL), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="are not there"):
        start_language(seeded(SMALL), tmp_path)
    shutil.copy(VOCABULARY / "vocab.txt", tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="broken"):
        start_language(seeded(SMALL), tmp_path)
