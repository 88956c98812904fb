"""Weights in and out: the release's layout, mmdetection's, ours, and a BERT to start from."""

import json
import shutil
from dataclasses import replace

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from small import RELEASED, SMALL, TINY, VOCABULARY, release_state, saved, seeded, to_mmdet, without_fusion

from glip.detector import Detector
from glip.errors import CheckpointError
from glip.model.weights import load_pretrained, pretrained_config, save_pretrained, start_language, weights_fingerprint
from glip.text.tokens import Tokenizer


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return release_state(SMALL)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


# ---- the 2022 release


@pytest.mark.parametrize("wrapping", ["bare", "model", "training", "without position_ids"])
def test_release_in_every_wrapping(released, wrapping, tmp_path):
    tree = {
        "bare": released,
        "model": {"model": released},
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
    path = saved(released, tmp_path)
    config = load_pretrained(path).config
    assert (config.vision, config.language, config.head) == (SMALL.vision, SMALL.language, SMALL.head)
    assert (config.image.min_size, config.inference.aggregate, config.inference.inclusive) == (800, "mean", True)
    assert pretrained_config(path) == config


def test_form_without_fusion(tmp_path):
    config = without_fusion(SMALL)
    state = release_state(config)
    loaded = load_pretrained(saved({"model": state}, tmp_path))
    assert not loaded.config.head.fusion and loaded.config.head.blocks == 2
    key = "rpn.head.dyhead_tower.1.offset.weight"
    assert torch.equal(loaded.model.state_dict()["tower.1.image.offset.weight"], state[key])


def test_tuned_prompt_becomes_offsets(released, tmp_path):
    table = torch.randn(1000, SMALL.language.hidden)
    path = saved({**released, "rpn.tunable_linear.weight": table}, tmp_path)
    loaded = load_pretrained(path)
    assert loaded.config.head.prompt_offsets
    assert torch.equal(loaded.model.state_dict()["prompt_offsets"], table[:256])


def test_detector_runs_a_released_checkpoint(tmp_path):
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
    mask = torch.ones(1, 4, dtype=torch.bool)
    hidden = model.language(torch.tensor([[101, 217, 218, 102]]), mask)
    out = model.fuse_and_predict(levels, hidden, mask)
    return torch.cat([out.token_logits.flatten(), out.box_deltas.flatten(), out.centerness.flatten()])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@torch.no_grad()
def test_saving_and_loading_again(half, bits, tmp_path):
    config = replace(TINY, language=replace(TINY.language, bits=bits), trained_on=("coco",), trained_on_data=("f00",))
    model = seeded(config)
    save_pretrained(tmp_path / "a", model, config, VOCABULARY, half=half)
    loaded = load_pretrained(tmp_path / "a")
    assert loaded.config == config == pretrained_config(tmp_path / "a")
    if not half and bits == 32:
        assert same(model.state_dict(), loaded.model.state_dict())
        assert torch.equal(outputs(model), outputs(loaded.model))
    save_pretrained(tmp_path / "b", loaded.model, loaded.config, loaded.tokenizer, half=half)
    assert same(load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors"))
    assert torch.equal(outputs(loaded.model), outputs(load_pretrained(tmp_path / "b").model))
    names = ["config.json", "model.safetensors", "run.json", "vocab.txt"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in (tmp_path / "a").iterdir()), "readable by everyone"


def test_loading_draws_no_random_numbers_and_training_goes_on_the_same(tmp_path):
    config = replace(SMALL, head=replace(SMALL.head, drop_block=0.3, fusion_dropout=0.2))
    model = seeded(config)
    save_pretrained(tmp_path, model, config, VOCABULARY)
    before = torch.get_rng_state()
    loaded = load_pretrained(tmp_path).model
    assert torch.equal(torch.get_rng_state(), before)
    found = []
    for one in (model, loaded):
        torch.manual_seed(3)
        loss = outputs(one.train()).square().mean()
        loss.backward()
        found.append([loss, *(part.grad for part in one.parameters() if part.grad is not None)])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_rounded_weights_are_stored_without_loss(tmp_path):
    config = replace(SMALL, language=replace(SMALL.language, bits=8))
    model = seeded(config)
    model.language.round_weights()
    save_pretrained(tmp_path, model, config, VOCABULARY)
    rows = load_file(tmp_path / "model.safetensors")["language.bert.embeddings.word_embeddings.weight.int8_rows"]
    assert rows.dtype == torch.int8 and rows.shape == (300, 128)
    assert same(model.state_dict(), load_pretrained(tmp_path).model.state_dict())


def test_saving_over_itself_and_a_config_of_before(tmp_path):
    save_pretrained(tmp_path, seeded(SMALL), SMALL, VOCABULARY)
    loaded = load_pretrained(tmp_path)
    save_pretrained(tmp_path, loaded.model, loaded.config, loaded.tokenizer)
    assert same(loaded.model.state_dict(), load_pretrained(tmp_path).model.state_dict())
    tree = json.loads((tmp_path / "config.json").read_text())
    del tree["trained_on_data"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert pretrained_config(tmp_path) == SMALL


def test_no_tokenizer_of_another_model_stays(tmp_path):
    """A tokenizer.json is read before a vocab.txt."""
    (tmp_path / "other").mkdir()
    other = tokenizers.BertWordPieceTokenizer(str(VOCABULARY / "vocab.txt"), lowercase=False)
    other.save(str(tmp_path / "other" / "tokenizer.json"))
    for vocabulary, kept in ((tmp_path / "other", "tokenizer.json"), (VOCABULARY, "vocab.txt")):
        save_pretrained(tmp_path / "model", seeded(SMALL), SMALL, vocabulary)
        assert [file.name for file in Tokenizer(tmp_path / "model").files] == [kept]


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    save_pretrained(tmp_path, seeded(SMALL), SMALL, VOCABULARY)

    def full(*_, **__):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("glip.model.weights.save_file", full)
    with pytest.raises(OSError, match=r"model\.safetensors' could not be written .*No space left.* MB free"):
        save_pretrained(tmp_path, seeded(SMALL, 1), replace(SMALL, name="other"), VOCABULARY)
    assert load_pretrained(tmp_path).config == SMALL and len(list(tmp_path.iterdir())) == 4


def test_fingerprints_stay():
    """Tuned tasks refer to their model by it."""
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.int8)}
    assert weights_fingerprint(weights) == "6ae9179ddc7959ae003c26b14d69eb30ed5c5bc8d424339e37b010d208d3dc93"
    assert weights_fingerprint({"a": weights["a"]}) != weights_fingerprint(weights)


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
    with pytest.raises(CheckpointError, match="does not exist"):
        start_language(seeded(SMALL), tmp_path)
    shutil.copy(VOCABULARY / "vocab.txt", tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="broken"):
        start_language(seeded(SMALL), tmp_path)
