"""Whole models against runs of the 2022 release: every stage, every output, losses and gradients.

Tolerances are those that were measured with the runs: a few times the release's own float32 noise, and less than a
typical mistake changes. The tiny cases are always there; the full-size ones (25 MB) only on some machines.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_cases import BIG_NAMES, TINY_NAMES, TRAIN_NAMES, case_path, load_case
from golden_recorder import Run, TrainingRun, run_case, run_training_case
from torch import Tensor

from glip.geometry.anchors import decode, encode
from glip.geometry.boxes import scale
from glip.loss import centerness_targets
from glip.postprocess import Candidates, Decoding, cap, find_candidates, postprocess, suppress_candidates

# Quantity -> tolerance for tiny and A, for B and C, for L.
TOLERANCES = {
    "pixels": (1e-5, 1e-5, 1e-5),
    "lang": (5e-5, 5e-5, 5e-5),
    "head_in": (5e-5, 5e-5, 5e-5),
    "body": (5e-5, 5e-5, 5e-5),
    "fpn": (5e-5, 5e-5, 5e-5),
    "tower": (1e-4, 5e-4, 1e-3),
    "logits": (2e-4, 1e-3, 2e-3),
    "bbox": (1e-4, 5e-4, 2e-3),
    "ctr": (1e-4, 5e-4, 2e-3),
    "anchors": (0.0, 0.0, 0.0),
}
SIZE_OF = {"tiny": 0, "tiny_nofuse": 0, "glip_t_a": 0, "glip_t_b": 1, "glip_t_c": 1, "glip_l": 2}
BOX_PIXELS, SCORE = 0.1, 1e-3  # what a detection may move
CANDIDATES_APART = 0.005  # share of candidates that may appear or vanish at the thresholds
LOSS, GRADIENT, GRADIENT_ATOL = 1e-4, 1e-3, 1e-4  # relative, relative, absolute
DIGESTS = {
    "glip_t_a": "2b33f386e7dc3e81",
    "glip_t_b": "c5a40ef347bc063a",
    "glip_t_c": "c5a40ef347bc063a",
    "glip_l": "d1a71b8e6e03b1e9",
}


def _case_or_skip(name: str) -> Any:
    if not case_path(name).is_file():
        pytest.skip(f"{case_path(name)} is not on this machine")
    return load_case(name)


@pytest.fixture(scope="module", params=[*TINY_NAMES, *BIG_NAMES])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """One inference case, computed once for all tests."""
    yield run_case(_case_or_skip(request.param))


@pytest.fixture(scope="module", params=TRAIN_NAMES)
def training(request: pytest.FixtureRequest) -> Iterator[TrainingRun]:
    """One training case, computed once for all tests."""
    yield run_training_case(_case_or_skip(request.param))


@pytest.fixture
def note(record_property: Any, request: pytest.FixtureRequest) -> Any:
    """Keeps the largest deviation of a test in the report (``--junitxml``)."""
    return lambda name, value: record_property(f"{request.node.name} {name}", value)


def test_weights_are_those_of_the_run(run: Run) -> None:
    expected = DIGESTS.get(run.case.form)
    assert expected is None or run.loaded.digest.startswith(expected)


def test_pixels(run: Run, note: Any) -> None:
    images, case = run.batch.images, run.case
    assert [list(size) for size in images.resized] == case.arrays["image_sizes"].tolist()
    assert list(images.pixels.shape) == case.arrays["pixels_shape"].tolist()
    compare_stat(images.pixels, case.tensor("pixels_stat"), TOLERANCES["pixels"][0])
    gap = apart(images.pixels[:, :, ::7, ::7], case.tensor("pixels_sub"))
    if "pixels" in case.arrays:
        gap = max(gap, apart(images.pixels, case.tensor("pixels")))
    note("pixels", gap)
    assert gap <= TOLERANCES["pixels"][0]


def test_caption_tokens_and_positive_map(run: Run) -> None:
    text, case = run.batch.text, run.case
    assert [prompt.caption for prompt in text.prompts] == case.meta["captions"]
    assert_same_tokens(text, case)
    expected = [tokens for _, tokens in sorted(case.meta["positive_map"].items(), key=lambda item: int(item[0]))]
    for rows in text.phrase_tokens:
        assert [row.nonzero()[:, 0].tolist() for row in rows] == [sorted(set(tokens)) for tokens in expected]


@pytest.mark.parametrize("quantity", [name for name in TOLERANCES if name != "pixels"])
def test_stage(run: Run, quantity: str, note: Any) -> None:
    """Every stored array, sample and statistic of one kind."""
    tolerance = TOLERANCES[quantity][SIZE_OF[run.case.form]]
    worst, seen = 0.0, 0
    for name in run.case.arrays:
        if not name.startswith(f"{quantity}_"):
            continue
        seen += 1
        gap = compare_array(run, name, tolerance)
        assert gap <= tolerance, f"{name} is {gap} apart"
        worst = max(worst, gap)
    if not seen:
        pytest.skip(f"{run.case.name} stores no {quantity}")
    note(quantity, worst)


def test_candidates(run: Run, note: Any) -> None:
    """Before suppression: the same set, but for those at the threshold or at the cut."""
    for index, size in enumerate(run.batch.images.resized):
        ours = find_candidates(run.outputs, index, run.batch.text.phrase_tokens[index], size, Decoding())
        golden = golden_candidates(run, index)
        levels = run.case.tensor(f"pre_{index}_levels")
        lengths = torch.tensor([height * width for height, width in run.outputs.level_sizes])
        our_levels = torch.bucketize(ours.places, lengths.cumsum(0), right=True) + 3
        first = Found(ours.boxes, ours.scores, ours.labels * 8 + our_levels)
        second = Found(golden.boxes, golden.scores, golden.labels * 8 + levels)
        lost, gained = unmatched(second, first), unmatched(first, second)
        note("candidates apart", (lost, gained, len(second.scores)))
        assert lost <= CANDIDATES_APART * len(second.scores)
        assert gained <= CANDIDATES_APART * len(second.scores)


def test_suppression_of_the_release_candidates_is_exact(run: Run) -> None:
    """The release's candidates through our suppression and cap are the release's detections, bit by bit."""
    for index, size in enumerate(run.batch.images.resized):
        prompt = run.batch.text.prompts[index]
        kept = cap(suppress_candidates(golden_candidates(run, index), prompt, Decoding()), Decoding().max_detections)
        ours = table(kept.boxes, kept.scores, kept.labels)
        boxes = run.case.tensor(f"det_{index}_boxes_net")
        scores, labels = (run.case.tensor(f"det_{index}_{what}") for what in ("scores", "labels"))
        assert ours == table(boxes, scores, labels - 1)
        original = scale(boxes, size, run.batch.images.original[index])
        assert apart(original, run.case.tensor(f"det_{index}_boxes")) <= 1e-3


def test_detections(run: Run, note: Any) -> None:
    """Pictures and captions in, detections out: at least 99 of 100 are the release's."""
    found = postprocess(run.outputs, run.batch.images, run.batch.text, Decoding())
    for index, detections in enumerate(found):
        boxes, scores, labels = (run.case.tensor(f"det_{index}_{what}") for what in ("boxes", "scores", "labels"))
        first = Found(detections.boxes, detections.scores, detections.labels)
        second = Found(boxes, scores, labels - 1)
        lost, gained = unmatched(second, first), unmatched(first, second)
        note("detections apart", (lost, gained, len(scores)))
        allowed = max(1, len(scores) // 100)
        assert lost <= allowed and gained <= allowed


def test_training_inputs(training: TrainingRun) -> None:
    images, text, case = training.batch.images, training.batch.text, training.case
    assert [list(size) for size in images.resized] == case.arrays["image_sizes"].tolist()
    assert list(images.pixels.shape) == case.arrays["pixels_shape"].tolist()
    compare_stat(images.pixels, case.tensor("pixels_stat"), TOLERANCES["pixels"][0])
    assert_same_tokens(text, case)
    width = text.input_ids.shape[1]
    ours = torch.cat(text.phrase_tokens) > 0
    assert torch.equal(ours, case.tensor("positive_map")[:, :width].bool())
    assert not case.arrays["positive_map"][:, width:].any()


def test_assignment_and_targets(training: TrainingRun, note: Any) -> None:
    positive = 0
    for index, owner in enumerate(training.owners):
        assert torch.equal(owner, training.case.tensor(f"assign_{index}"))
        chosen = owner >= 0
        positive += int(chosen.sum())
        anchors = training.outputs.anchors[chosen]
        deltas = encode(training.case.tensor(f"gt_{index}_boxes")[owner[chosen]], anchors)
        share = centerness_targets(decode(deltas, anchors), anchors)
        gaps = [apart(deltas, training.case.tensor(f"reg_targets_{index}"))]
        gaps.append(apart(share, training.case.tensor(f"ctr_targets_{index}")))
        note("targets", max(gaps))
        assert max(gaps) <= TOLERANCES["bbox"][0]
    assert positive == training.losses.num_positive == training.case.meta["num_pos"]


def test_losses(training: TrainingRun, note: Any) -> None:
    losses, stored = training.losses, training.case.arrays
    pairs = {
        "loss_dot_product_token": losses.token,
        "loss_reg": losses.box,
        "loss_centerness": losses.centerness,
        "loss_total": losses.total,
    }
    for name, ours in pairs.items():
        note(name, abs(ours.item() / float(stored[name]) - 1))
        assert ours.item() == pytest.approx(float(stored[name]), rel=LOSS), name
    assert float(stored["loss_cls"]) == 0


def test_gradient_norms(training: TrainingRun, note: Any) -> None:
    stored = training.case.arrays
    worst = 0.0
    for key, norm in zip(stored["grad_keys"].tolist(), stored["grad_norms"].tolist(), strict=True):
        gap = abs(training.gradients[key].double().norm().item() - norm)
        assert gap <= GRADIENT * norm + GRADIENT_ATOL, f"{key}: {gap} of {norm}"
        worst = max(worst, gap / (GRADIENT * norm + GRADIENT_ATOL))
    note("gradient norms, 1 = tolerance", worst)


def test_gradients(training: TrainingRun, note: Any) -> None:
    """Whole gradients (the first 64 rows): the difference is as small as the norms must agree."""
    names = [name for name in training.case.arrays if name.startswith("grad:")]
    assert names
    for name in names:
        golden = training.case.tensor(name)
        gap = (training.gradients[name.removeprefix("grad:")][: len(golden)] - golden).norm().item()
        note(name, gap / golden.norm().item())
        assert gap <= GRADIENT * golden.norm().item() + GRADIENT_ATOL, name


class Found:
    """Boxes with scores and labels."""

    def __init__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> None:
        self.boxes, self.scores, self.labels = boxes, scores, labels


def unmatched(wanted: Found, offered: Found) -> int:
    """How many of ``wanted`` have no partner of their label, nearby and of nearly their score, in ``offered``."""
    near = torch.cdist(wanted.boxes, offered.boxes, p=float("inf")) <= BOX_PIXELS
    alike = (wanted.scores[:, None] - offered.scores[None]).abs() <= SCORE
    same = wanted.labels[:, None] == offered.labels[None]
    return int((~(near & alike & same).any(1)).sum())


def golden_candidates(run: Run, index: int) -> Candidates:
    boxes, scores, labels = (run.case.tensor(f"pre_{index}_{what}") for what in ("boxes", "scores", "labels"))
    return Candidates(boxes, scores, labels - 1, torch.arange(len(scores)))


def table(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[list[float]]:
    """Rows in an order that does not depend on how ties were sorted."""
    return sorted(torch.cat([scores[:, None], labels[:, None].float(), boxes], dim=1).tolist(), reverse=True)


def compare_array(run: Run, name: str, tolerance: float) -> float:
    """How far our array is from one stored array, of which it may be a sample, its shape or its statistic."""
    base, _, kind = name.rpartition("_")
    stored = run.case.tensor(name)
    if kind == "stat":
        return compare_stat(run.arrays[base], stored, tolerance)
    if kind == "shape":
        assert list(run.arrays[base].shape) == stored.tolist()
        return 0.0
    if kind == "sub":
        whole = run.arrays[base]
        sample = whole[:, ::7] if whole.ndim == 3 else whole[:, ::8, ::3, ::3]
        return apart(sample, stored)
    ours = run.arrays[name]
    if name.startswith("bbox") and stored.shape != ours.shape:
        ours = ours[:, :, ::3, ::3]
    return apart(ours, stored)


def compare_stat(ours: Tensor, stored: Tensor, tolerance: float) -> float:
    """Mean, deviation and maximum move at most as far as the values do; the L2 norm at most sqrt(count) times that."""
    values = ours.double()
    root = values.numel() ** 0.5
    statistics = torch.stack([values.mean(), values.std(correction=0), values.abs().max(), values.norm() / root])
    expected = stored / torch.tensor([1.0, 1.0, 1.0, root])
    gap = apart(statistics, expected)
    assert gap <= tolerance
    return gap


def apart(ours: Tensor, golden: Tensor) -> float:
    """Largest difference of two arrays, which must have one shape."""
    assert ours.shape == golden.shape, f"{tuple(ours.shape)} is not {tuple(golden.shape)}"
    return float((ours.double() - golden.double()).abs().max())


def assert_same_tokens(text: Any, case: Any) -> None:
    width = text.input_ids.shape[1]
    assert width == int(case.arrays["attention_mask"].sum(1).max())
    assert torch.equal(text.attention_mask, case.tensor("attention_mask")[:, :width].bool())
    golden = case.tensor("input_ids")[:, :width]
    assert torch.equal(text.input_ids.where(text.attention_mask, 0), golden.where(text.attention_mask, 0))
