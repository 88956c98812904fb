"""Weights that cannot be loaded: one line each, with what is wrong and what to do; nothing crashes."""

import hashlib
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import SMALL, VOCABULARY, release_state, saved, seeded, to_mmdet

from glip.detector import Detector
from glip.errors import CheckpointError
from glip.model.weights import RELEASED as NAMED
from glip.model.weights import list_pretrained, load_pretrained, save_pretrained
from glip.model.zoo import checkpoints


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return release_state(SMALL)


def error_of(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_truncated_checkpoint(released, tmp_path):
    path = saved(released, tmp_path)
    path.write_bytes(path.read_bytes()[:20000])
    assert "glip.pth" in (message := error_of(path)) and "ends early or is broken (20,000 bytes)" in message


@pytest.mark.parametrize("text", ["", "hello, this is no checkpoint\n", "<!doctype html>\n<html>", "(lp0\nI1\na."])
def test_files_of_another_kind(text, tmp_path):
    (tmp_path / "x.pth").write_text(text)
    assert "it is no checkpoint" in error_of(tmp_path / "x.pth")


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
    message = error_of(saved(tree, tmp_path))
    assert "holds no state dict" in message or "is not a GLIP checkpoint" in message


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
        ["conv1.weight"],
        ["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_predictor.bbox_pred.weight"],
        ["backbone.conv1.weight", "neck.lateral_convs.0.conv.weight", "bbox_head.atss_cls.weight"],
        ["backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "bbox_head.cls_branches.0.bias"],
    ],
)
def test_another_model(keys, tmp_path):
    message = error_of(saved({"model": {key: torch.zeros(4, 4) for key in keys}}, tmp_path))
    assert "is not a GLIP checkpoint" in message and keys[0] in message


@pytest.mark.parametrize("drop", ["patch_embed.proj", "layers.2.", "word_embeddings", "position_embeddings", "p6"])
def test_whatever_is_missing_sizes_are_never_guessed(drop, released, tmp_path):
    state = {key: value for key, value in released.items() if drop not in key}
    assert "is not a GLIP checkpoint" in error_of(saved(state, tmp_path))


@pytest.mark.parametrize("part", ["patch_embed.proj", "bias_table", "word_embeddings", "b_attn.attn.v_proj", "p6"])
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 5)])
def test_odd_shapes_never_crash(part, shape, released, tmp_path):
    odd = {key: torch.zeros(shape) if part in key else value for key, value in released.items()}
    error_of(saved(odd, tmp_path))
    odd = {key: torch.zeros(shape) if ".downsample." in key else value for key, value in to_mmdet(released).items()}
    assert "vision.stages.1.merge" in error_of(saved(odd, tmp_path))


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(tmp_path / "ours", seeded(SMALL), SMALL, VOCABULARY)
    return tmp_path / "ours"


def test_incomplete_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error_of(tmp_path / "empty")
    weights = folder / "model.safetensors"
    assert "give such a checkpoint, or a model folder" in error_of(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "ends early or is broken" in error_of(folder)
    weights.unlink()
    assert "does not exist" in error_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languge": {}}, "did you mean 'language'?"),
        ({"language": {"heads": 7}}, "language.heads: got 7: give a divisor of hidden 128"),
        ({"head": {"channels": 64}}, "are not of this model"),
        ({"language": {"vocabulary": 400_000}}, "are not of this model"),  # no memory is reserved for it
        (
            {"language": {"vocabulary": 10**12}},
            "language.vocabulary: got 1000000000000: give a whole number, 4 or more",
        ),
        ({"language": {"dropout": math.nan}}, "language.dropout: got nan: give a number, 0 or more and at most 1"),
        ({"vision": {"widths": [16, 32, 64, 64]}}, "give each stage of swin twice the width before it"),
        ({"inference": {"candidates_per_level": 10**30}}, "1 or more and at most 9,007,199,254,740,992"),
        ({"language": {"layers": 10**9}}, "language.layers: got 1000000000"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
    ],
)
def test_broken_config_json(changes, message, folder):
    file = folder / "config.json"
    tree = json.loads(file.read_text())
    if isinstance(changes, dict):
        changes = json.dumps(tree | {key: tree.get(key, {}) | value for key, value in changes.items()}).encode()
    file.write_bytes(changes)
    assert message in error_of(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, "no vocab.txt or tokenizer.json there"),
        (b"\xff\xfe[UNK]", "valid UTF-8"),
        (b"[CLS]\n[SEP]\ncat\n", "no [UNK] in it"),
        (b"", "cannot be read"),
        (b"[UNK]\n[CLS]\n[SEP]\n" + b"\n".join(b"w%d" % n for n in range(300)), "303 tokens, the model 300"),
    ],
)
def test_broken_vocabularies(words, message, folder, tmp_path):
    (folder / "vocab.txt").unlink()
    if words is not None:
        (folder / "vocab.txt").write_bytes(words)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Detector.from_pretrained(folder, device="cpu")
    if words is None:
        loaded = load_pretrained(folder)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            save_pretrained(tmp_path / "copy", loaded.model, loaded.config, loaded.tokenizer)


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
    message, known = error_of(name), next(one for one in checkpoints() if one.name == name)
    assert f": download {known.address}{known.file} ({known.size}, sha256 {known.sha256}) on a machine with" in message
    assert "pass its path instead of the name (docs/models.md)" in message


@pytest.mark.parametrize(("name", "cached"), [("glip-t", True), ("glip-l", False)])
def test_a_cached_file_is_used_and_a_download_says_its_size(
    name, cached, released, offline, monkeypatch, tmp_path, capsys
):
    path = str(saved(released, tmp_path, NAMED[name]))
    asked = []
    find, fetch = ("try_to_load_from_cache", "hf_hub_download")
    monkeypatch.setattr(huggingface_hub, find if cached else fetch, lambda *what: asked.append(what) or path)
    stated = SimpleNamespace(size=3_700_000_000, etag=hashlib.sha256(Path(path).read_bytes()).hexdigest())
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: stated)
    assert load_pretrained(name).config.name == name and asked == [("GLIPModel/GLIP", NAMED[name])]
    printed = capsys.readouterr()
    assert not printed.out and (f"{NAMED[name]} (3700 MB)" in printed.err) is not cached
    stated.etag = "0" * 64
    if not cached:
        assert f"has sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}" in error_of(name)
        assert not Path(path).exists(), "the next run would take it from the cache"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: "http://mirror/x")
        assert "'http://mirror/x' is no https address" in error_of(name)
