"""What a detector computes in: the results stay close in bfloat16, and what cannot be is refused in one sentence."""

import subprocess
import sys
import warnings
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from small import ROOT

from glip.detector import Detector
from glip.device import bfloat16_time, choose_dtype
from glip.errors import GlipError, ImageError
from glip.geometry.boxes import iou
from glip.model.adapt import Adaptation
from glip.model.weights import save_pretrained
from glip.structures import Prompt

WORDS = "a red bus. a blue fish. a tree"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def street() -> Image.Image:
    return Image.open(ROOT / "docs" / "images" / "street.png").convert("RGB")


@pytest.fixture(scope="module")
def half() -> Detector:
    with warnings.catch_warnings():  # slow without instructions for it, but the same
        warnings.simplefilter("ignore")
        return Detector.from_pretrained("glip-nano", device="cpu", dtype="bfloat16")


def test_bfloat16_finds_the_same(half, street):
    exact = Detector.from_pretrained("glip-nano", device="cpu")
    expected, found = exact(street, WORDS), half(street, WORDS)
    assert half.dtype == torch.bfloat16 and exact.dtype == torch.float32
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    clear = expected.above(float(exact.config.inference.threshold) + 0.05)
    assert len(clear) >= 1
    overlaps = iou(clear.boxes, found.boxes, inclusive=False)
    for row, label, score in zip(overlaps, clear.labels, clear.scores, strict=True):
        best = row.argmax()
        assert row[best] > 0.9 and found.labels[best] == label and abs(found.scores[best] - score) < 0.03


def test_scores_boxes_and_places_are_computed_in_float32(half, street):
    outputs = half.model(half.processor([street], [Prompt.parse(WORDS)]))
    kinds = {value.dtype for value in (outputs.token_logits, outputs.box_deltas, outputs.centerness, outputs.anchors)}
    assert kinds == {torch.float32}
    block = half.model.tower[0].image
    assert block.offset.weight.dtype == torch.float32 and block.same.weight.dtype == torch.bfloat16


def test_the_fingerprint_is_that_of_the_exact_weights(half, street):
    exact = Detector.from_pretrained("glip-nano", device="cpu")
    assert half.fingerprint == exact.fingerprint
    prompt = Prompt.from_names(["a red bus"])
    length = exact.encode_text(prompt).hidden.shape[1]
    offsets = torch.zeros(length, exact.config.language.hidden)
    task = Adaptation("prompt", "glip-nano", exact.fingerprint, ("a red bus",), prompt, offsets=offsets)
    assert len(half.adapted(task)(street)) == len(half(street, prompt))


def test_a_checkpoint_stored_in_half_loads_into_every_dtype(tmp_path, half):
    exact = Detector.from_pretrained("glip-nano", device="cpu")
    save_pretrained(tmp_path, exact.model, exact.config, exact.processor.tokenizer.folder, half=True)
    for dtype in ("float32", "bfloat16"):
        assert str(Detector.from_pretrained(tmp_path, device="cpu", dtype=dtype).dtype) == f"torch.{dtype}"


def test_rounded_weights_do_not_become_exact_again(half):
    with pytest.raises(GlipError, match=r"rounded to torch.bfloat16 already: load the model again"):
        half.to(dtype="float32")
    assert half.to(dtype="bfloat16") is half


@pytest.mark.parametrize(
    ("dtype", "problem"),
    [
        ("fp16", "dtype 'fp16' is unknown: give one of auto, float32"),
        ("float16", "float16 is for GPUs, .* give bfloat16, auto or float32"),
    ],
)
def test_dtypes_that_cannot_be(dtype, problem):
    with pytest.raises(GlipError, match=problem):
        Detector.from_pretrained("glip-nano", device="cpu", dtype=dtype)


def test_auto_takes_what_is_faster():
    expected = torch.bfloat16 if bfloat16_time(CPU) <= 0.8 else torch.float32
    assert choose_dtype("auto", CPU) == expected


@pytest.mark.slow
def test_emulated_bfloat16_is_warned_of():
    code = (
        "import warnings, torch\nfrom glip.device import choose_dtype\n"
        "with warnings.catch_warnings(record=True) as seen:\n    warnings.simplefilter('always')\n"
        "    choose_dtype('bfloat16', torch.device('cpu'))\n"
        "print(*(one.message for one in seen))\nprint(choose_dtype('auto', torch.device('cpu')))"
    )
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    warning, auto = done.stdout.strip().split("\n")
    assert "times as long as in float32" in warning and "float32 is faster here" in warning
    assert auto == "torch.float32"


def test_a_gpu_without_room_says_what_to_lower(tiny_detector, image, monkeypatch):
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."))
    monkeypatch.setattr(tiny_detector.model.tokens, "forward", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        tiny_detector(image, "dog")
    assert caught.value.__notes__ == ["lower batch_size, max_names or the image size"]


def test_a_stream_goes_on_after_a_broken_image(tiny_detector, image, tmp_path):
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    image.save(good)
    broken.write_bytes(good.read_bytes()[:200])
    paths, problems = [good, broken, good, tmp_path / "gone.png", good], list[tuple[int, str]]()
    note = lambda number, error: problems.append((number, str(error)))  # noqa: E731
    found = list(tiny_detector.stream(paths, "dog", on_error=note))
    assert len(found) == 3
    assert [number for number, _ in problems] == [1, 3]
    assert "broken.png" in problems[0][1] and "gone.png" in problems[1][1]
    one_each = [Prompt.from_names([name]) for name in ("dog", "bus", "cat", "tree", "zebra")]
    found = list(tiny_detector.stream(paths, one_each, on_error=lambda *_: None))
    assert [part.prompt.texts[0].strip() for part in found] == ["dog", "cat", "zebra"]
    with pytest.raises(ImageError, match="broken.png"):
        list(tiny_detector.stream(paths, "dog"))
