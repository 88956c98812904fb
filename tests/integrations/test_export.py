"""Exported models: the numbers of torch at sizes and captions that the export has not seen, and what is refused."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from fuzz_doors import exported_files, write_program
from PIL import Image
from small import QUICK, SMALL, seeded

from glip.config import VisionConfig
from glip.detector import Detector
from glip.errors import CheckpointError, ConfigError, GlipError
from glip.files import LockedError, exclusive
from glip.integrations.export import export_model, trace, write_onnx
from glip.model.adapt import Adaptation
from glip.model.exported import HEAD, IMAGE, TEXT
from glip.model.weights import load_pretrained
from glip.recipes.verify import verify
from glip.structures import Prompt

jaxtyping = pytest.importorskip("jaxtyping")
onnx, onnxruntime = (pytest.importorskip(name, reason="needs the extra onnx") for name in ("onnx", "onnxruntime"))
pytestmark = [pytest.mark.slow, pytest.mark.unchecked]  # torch.export cannot trace the checks
SHAPES = [(1, 64, 96, 3), (2, 352, 416, 7), (3, 160, 128, 40)]  # batch, height, width, tokens


CONFIG = replace(  # a ResNet: Swin takes the exporter a minute, and has a test of its own
    QUICK,
    vision=VisionConfig(kind="resnet", widths=(16, 16, 24, 32), depths=(1, 1, 1, 1)),
    head=replace(QUICK.head, blocks=1, fusion_width=64),
)


@pytest.fixture(scope="module")
def detector(tokenizer) -> Detector:
    model = seeded(CONFIG)
    with torch.no_grad():  # so that scores differ clearly
        model.tokens.log_scale.fill_(-3.0)
        model.boxes.centerness.weight.mul_(50)
    return Detector(model, CONFIG, tokenizer, "cpu")


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory) -> Path:
    jaxtyping.config.update("jaxtyping_disable", True)  # set up before the mark counts
    folder = tmp_path_factory.mktemp("exported")
    detector.save_pretrained(folder / "model")
    return export_model(folder / "model", folder / "onnx")


def noise(shape):
    """Words, their mask, and an image."""
    batch, height, width, tokens = shape
    torch.manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, tokens // 2 + 1 :] = False
    return torch.randint(5, 1000, (batch, tokens)), mask, torch.randn(batch, 3, height, width)


def steps(model, shape):
    """What the three steps compute for noise."""
    ids, mask, pixels = noise(shape)
    with torch.no_grad():
        levels, hidden = model.encode_image(pixels), model.language(ids, mask)
        found = model.fuse_and_predict(levels, hidden, mask)
    return [*levels, hidden, found.token_logits, found.box_deltas, found.centerness, found.anchors]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_numbers_at_other_sizes(detector, exported, shape):
    own, theirs = (steps(model, shape) for model in (detector.model, load_pretrained(exported).model))
    for one, other in zip(own, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_detector_finds_the_same(detector, exported, image):
    runtime = Detector.from_pretrained(exported)
    names = [f"thing {number}" for number in range(30)]
    for prompt, options in (
        ("a cat. a dog", {}),
        (Prompt.from_caption("a cat on a mat"), {}),
        (names, {"max_names": 7}),
    ):
        own, theirs = (found(image, prompt, max_detections=20, **options) for found in (detector, runtime))
        assert own.labels.tolist() == theirs.labels.tolist()
        torch.testing.assert_close(own.boxes, theirs.boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(own.scores, theirs.scores, atol=1e-4, rtol=1e-4)
    assert runtime.fingerprint == detector.fingerprint


def test_a_tuned_prompt_runs_in_an_exported_model(detector, exported, image):
    text = detector.encode_text("a cat. a dog")
    task = Adaptation(
        mode="prompt",
        names=("a cat", "a dog"),
        prompt=text.prompts[0],
        model="tiny",
        fingerprint=detector.fingerprint,
        offsets=torch.randn(text.hidden.shape[1:]),
    )
    runtime = Detector.from_pretrained(exported)
    own, theirs = (one.adapted(task)(image, max_detections=9) for one in (detector, runtime))
    torch.testing.assert_close(own.scores, theirs.scores, atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="changes weights"):
        runtime.adapted(replace(task, mode="linear", offsets=None, weights={"tokens.bias": torch.zeros(1)}))
    assert not torch.allclose(own.scores, detector(image, "a cat. a dog", max_detections=9).scores, atol=1e-3)


def test_graphs_describe_themselves(exported):
    assert [changed for _, changed in verify(str(exported))] == [False] * 5
    graph = onnxruntime.InferenceSession(exported / f"{IMAGE}.onnx")
    about = graph.get_modelmeta().custom_metadata_map
    assert about["name"] == CONFIG.name and about["size_divisor"] == "32"
    assert about["image.mean"] == str(list(CONFIG.image.mean))
    assert [type(side) for side in graph.get_inputs()[0].shape] == [str, int, str, str]


def test_swin_with_windows_that_do_not_fit(tmp_path):
    """Nothing of the traced size may be fixed: windows and shifts at sizes that are no multiples of a window."""
    model = seeded(SMALL).requires_grad_(False)
    write_onnx(trace(model, IMAGE), IMAGE, {}, tmp_path / "swin.onnx")
    graph = onnxruntime.InferenceSession(tmp_path / "swin.onnx")
    for batch, height, width in ((1, 352, 416), (3, 160, 224)):
        pixels = torch.randn(batch, 3, height, width)
        for own, found in zip(model.encode_image(pixels), graph.run(None, {"pixels": pixels.numpy()}), strict=True):
            torch.testing.assert_close(own, torch.from_numpy(found), atol=1e-4, rtol=1e-4)


def test_programs_of_torch_run(detector, tmp_path):
    shape = SHAPES[1]
    detector.save_pretrained(tmp_path / "model")
    folder = export_model(tmp_path / "model", tmp_path / "torch", "torch")
    run = {name: torch.export.load(folder / f"{name}.pt2").module(check_guards=False) for name in (IMAGE, TEXT, HEAD)}
    ids, mask, pixels = noise(shape)
    with torch.no_grad():
        levels, hidden = run[IMAGE](pixels), run[TEXT](ids, mask)
        found = [*levels, hidden, *run[HEAD](*levels, hidden, mask)]
    for one, other in zip(steps(detector.model, shape), found, strict=False):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_run_is_explained(exported, tmp_path, monkeypatch):
    def broken(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    cut, gone, mixed = (broken(name) for name in ("cut", "gone", "mixed"))
    (cut / f"{HEAD}.onnx").write_bytes((exported / f"{HEAD}.onnx").read_bytes()[:-5000])
    (gone / f"{TEXT}.onnx").unlink()
    graph = (mixed / f"{TEXT}.onnx").read_bytes()
    own = load_pretrained(exported).model.fingerprint.encode()
    (mixed / f"{TEXT}.onnx").write_bytes(graph.replace(own, own[::-1]))
    for folder, words in ((cut, "cannot be loaded"), (gone, "cannot be loaded"), (mixed, "not of one glip export")):
        with pytest.raises(CheckpointError, match=words):
            Detector.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="computes in float32"):
        Detector.from_pretrained(exported, dtype="bfloat16")
    with pytest.raises(ConfigError, match="is an exported model"):
        export_model(exported, tmp_path / "again")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(GlipError, match=r"pip install .*\[onnx\]"):
        Detector.from_pretrained(exported)


# ---- folders of strangers: hand-made graphs, which need no exporter


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder with the files of an export, which works."""
    for name, data in exported_files().items():
        (tmp_path / name).write_bytes(data)
    assert len(Detector.from_pretrained(tmp_path)(Image.new("RGB", (70, 40)), "a cat", threshold=0.0))
    return tmp_path


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change one of a folder's graphs."""

    def write(folder: Path) -> None:
        graph = onnx.load(folder / f"{name}.onnx")
        change(graph)
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())

    return write


def outside(graph: Any) -> None:
    tensor = graph.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def replaced(name: str, path: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(path)

    return link


def edit_config(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))


def words_of(size: tuple[int, int], graph: Any, value: float = 0) -> None:
    graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(size, value, np.float32), "words"))


def write_odd_bytes(folder: Path) -> None:
    data = (folder / f"{TEXT}.onnx").read_bytes()
    (folder / f"{TEXT}.onnx").write_bytes(data.replace(b"tiny", b"t\xe4ny"))


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda folder: os.truncate(folder / f"{HEAD}.onnx", 900), "cannot be loaded"),
    "swapped": (replaced(f"{TEXT}.onnx", f"{IMAGE}.onnx"), "no graph of GLIP"),
    "without an end": (replaced(f"{HEAD}.onnx", "/dev/zero"), "no such file"),
    "weights outside": (edited(IMAGE, outside), "escapes model directory"),
    "other outputs": (edited(HEAD, lambda graph: graph.graph.output.pop()), "no graph of GLIP"),
    "other metadata": (edited(TEXT, lambda graph: graph.metadata_props.pop()), "not of one glip export"),
    "another config": (
        lambda folder: edit_config(folder, '"max_size": 64', '"max_size": 96'),
        "not of one glip export",
    ),
    "other sizes": (edited(TEXT, partial(words_of, (3000, 31))), "does not compute what GLIP does"),
    "no numbers": (edited(TEXT, partial(words_of, (3000, 32), value=np.nan)), "numbers that are not finite"),
    "metadata that is no text": (write_odd_bytes, "not of one glip export"),
    "few words": (edited(TEXT, partial(words_of, (5, 32))), "does not compute what GLIP does"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_is_no_export_is_one_sentence(foreign, name):
    change, message = FOREIGN[name]
    (foreign.parent / "secret").write_bytes(bytes(10_000))
    change(foreign)
    with pytest.raises(CheckpointError, match=message) as error:
        Detector.from_pretrained(foreign)(Image.new("RGB", (70, 40)), "a cat", threshold=0.0)
    assert len(str(error.value)) < 450 and str(error.value).isprintable()


def test_programs_of_strangers_are_never_run(foreign):
    write_program(foreign, foreign / "ran")
    for path in (foreign, foreign / f"{IMAGE}.pt2"):
        with pytest.raises(CheckpointError, match="never run"):
            Detector.from_pretrained(path)
    assert not (foreign / "ran").exists()


def test_what_an_export_leaves_when_it_is_stopped_is_no_model(foreign, tiny_folder, monkeypatch):
    """Graphs of a new export never meet the config of an old one, and no other run writes between them."""

    def write(program, name, about, file):
        if name == HEAD:
            with pytest.raises(LockedError), exclusive(foreign):
                pass
            raise KeyboardInterrupt
        file.write_bytes(b"new")

    monkeypatch.setattr("glip.integrations.export.trace", lambda *_: None)
    monkeypatch.setattr("glip.integrations.export.write_onnx", write)
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_folder, foreign)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Detector.from_pretrained(foreign)
    with pytest.raises(ConfigError, match="is the folder of a model: give another one"):
        export_model(tiny_folder, tiny_folder)


def test_the_tokenizer_goes_along(tiny_folder, tmp_path, monkeypatch):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizers.BertWordPieceTokenizer(str(model / "vocab.txt")).save(str(model / "tokenizer.json"))
    (model / "vocab.txt").unlink()
    monkeypatch.setattr("glip.integrations.export.trace", lambda *_: None)
    monkeypatch.setattr("glip.integrations.export.write_onnx", lambda *given: given[-1].write_bytes(b"graph"))
    folder = export_model(model, tmp_path / "onnx")
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
