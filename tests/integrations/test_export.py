"""Exported models: the numbers of torch at sizes and captions that the export has not seen, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glip.detector import Detector
from glip.errors import CheckpointError, ConfigError
from glip.integrations.export import export_model
from glip.model.adapt import Adaptation
from glip.model.exported import HEAD, IMAGE, TEXT
from glip.model.weights import load_pretrained
from glip.structures import Prompt

jaxtyping = pytest.importorskip("jaxtyping")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytestmark = [pytest.mark.slow, pytest.mark.unchecked]  # torch.export cannot trace the checks
SHAPES = [(1, 64, 96, 3), (2, 352, 416, 7), (3, 160, 128, 40)]  # batch, height, width, tokens


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory) -> Path:
    jaxtyping.config.update("jaxtyping_disable", True)  # set up before the mark counts
    return export_model(tiny_folder, tmp_path_factory.mktemp("exported"))


def steps(model, shape):
    """What the three steps compute for noise."""
    batch, height, width, tokens = shape
    torch.manual_seed(1)
    ids, mask = torch.randint(5, 1000, (batch, tokens)), torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, tokens // 2 + 1 :] = False
    with torch.no_grad():
        levels, hidden = model.encode_image(torch.randn(batch, 3, height, width)), model.language(ids, mask)
        found = model.fuse_and_predict(levels, hidden, mask)
    return [*levels, hidden, found.token_logits, found.box_deltas, found.centerness, found.anchors]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_numbers_at_other_sizes(tiny_folder, exported, shape):
    own, theirs = (steps(load_pretrained(folder).model, shape) for folder in (tiny_folder, exported))
    for one, other in zip(own, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_detector_finds_the_same(tiny_detector, exported, image):
    runtime = Detector.from_pretrained(exported)
    names = [f"thing {number}" for number in range(30)]
    for prompt, options in (
        ("a cat. a dog", {}),
        (Prompt.from_caption("a cat on a mat"), {}),
        (names, {"max_names": 7}),
    ):
        own, theirs = (found(image, prompt, max_detections=20, **options) for found in (tiny_detector, runtime))
        assert own.labels.tolist() == theirs.labels.tolist()
        torch.testing.assert_close(own.boxes, theirs.boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(own.scores, theirs.scores, atol=1e-4, rtol=1e-4)
    assert runtime.fingerprint == tiny_detector.fingerprint


def test_a_tuned_prompt_runs_in_an_exported_model(tiny_detector, exported, image):
    text = tiny_detector.encode_text("a cat. a dog")
    task = Adaptation(
        mode="prompt",
        names=("a cat", "a dog"),
        prompt=text.prompts[0],
        model="tiny",
        fingerprint=tiny_detector.fingerprint,
        offsets=torch.randn(text.hidden.shape[1:]),
    )
    runtime = Detector.from_pretrained(exported)
    own, theirs = (one.adapted(task)(image, max_detections=9) for one in (tiny_detector, runtime))
    torch.testing.assert_close(own.scores, theirs.scores, atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="changes weights"):
        runtime.adapted(replace(task, mode="linear", offsets=None, weights={"tokens.bias": torch.zeros(1)}))
    assert not torch.allclose(own.scores, tiny_detector(image, "a cat. a dog", max_detections=9).scores, atol=1e-3)


def test_graphs_describe_themselves(exported, tiny_config):
    graph = onnxruntime.InferenceSession(exported / f"{IMAGE}.onnx")
    about = graph.get_modelmeta().custom_metadata_map
    assert about["name"] == tiny_config.name and about["size_divisor"] == "32"
    assert about["image.mean"] == str(list(tiny_config.image.mean))
    assert [type(side) for side in graph.get_inputs()[0].shape] == [str, int, str, str]


def test_programs_of_torch_run(tiny_folder, tmp_path):
    folder, shape = export_model(tiny_folder, tmp_path, "torch"), SHAPES[1]
    run = {name: torch.export.load(folder / f"{name}.pt2").module() for name in (IMAGE, TEXT, HEAD)}
    batch, height, width, tokens = shape
    torch.manual_seed(1)
    ids, mask = torch.randint(5, 1000, (batch, tokens)), torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, tokens // 2 + 1 :] = False
    with torch.no_grad():
        levels, hidden = run[IMAGE](torch.randn(batch, 3, height, width)), run[TEXT](ids, mask)
        found = [*levels, hidden, *run[HEAD](*levels, hidden, mask)]
    for one, other in zip(steps(load_pretrained(tiny_folder).model, shape), found, strict=False):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_run_is_explained(exported, tiny_config, tokenizer, tmp_path, monkeypatch):
    def broken(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    cut, gone, mixed = (broken(name) for name in ("cut", "gone", "mixed"))
    (cut / f"{HEAD}.onnx").write_bytes((exported / f"{HEAD}.onnx").read_bytes()[:-5000])
    (gone / f"{TEXT}.onnx").unlink()
    graph = (mixed / f"{TEXT}.onnx").read_bytes()
    own = load_pretrained(exported).model.fingerprint.encode()
    (mixed / f"{TEXT}.onnx").write_bytes(graph.replace(own, own[::-1]))
    for folder, words in ((cut, "cannot be loaded"), (gone, "is missing"), (mixed, "not of one glip export")):
        with pytest.raises(CheckpointError, match=words):
            Detector.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="computes in float32"):
        Detector.from_pretrained(exported, dtype="bfloat16")
    with pytest.raises(ConfigError, match="is an exported model"):
        export_model(exported, tmp_path / "again")
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(CheckpointError, match=r"1\.24\.4 has no deformable convolution"):
        Detector.from_pretrained(exported)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match=r"glip\[onnx\]"):
        Detector.from_pretrained(exported)
