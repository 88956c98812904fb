"""Whole models against runs of the 2022 release: every stage, every output, losses and gradients.

Tolerances are those that were measured with the runs: a few times the release's own float32 noise, and less than a
typical mistake changes. The tiny cases are always there; the full-size ones (25 MB) only on some machines.
"""

from collections.abc import Iterator
from typing import Any

import golden_compare as compare
import pytest
import torch
from golden_cases import BIG_NAMES, TINY_NAMES, TRAIN_NAMES, case_path, load_case
from golden_recorder import Run, TrainingRun, run_case, run_training_case
from torch import Tensor

from glip.config import InferenceConfig
from glip.geometry.anchors import decode, encode
from glip.geometry.boxes import scale
from glip.loss import centerness_targets
from glip.postprocess import cap, find_candidates, suppress_classes

DIGESTS = {
    "glip_t_a": "2b33f386e7dc3e81",
    "glip_t_b": "c5a40ef347bc063a",
    "glip_t_c": "c5a40ef347bc063a",
    "glip_l": "d1a71b8e6e03b1e9",
}


def slow(name: str) -> Any:
    """A case of a full-size model, whose weights take seconds to draw."""
    return pytest.param(name, marks=pytest.mark.slow)


def _case_or_skip(name: str) -> Any:
    if not case_path(name).is_file():
        pytest.skip(f"{case_path(name)} is not on this machine")
    return load_case(name)


@pytest.fixture(scope="module", params=[*TINY_NAMES, *map(slow, BIG_NAMES)])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """One inference case, computed once for all tests."""
    yield run_case(_case_or_skip(request.param))


@pytest.fixture(scope="module", params=[slow(TRAIN_NAMES[0]), *TRAIN_NAMES[1:]])
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
    gap = compare.pixel_deviation(run)
    note("pixels", gap)
    assert gap <= compare.TOLERANCES["pixels"][0]


def test_caption_tokens_and_positive_map(run: Run) -> None:
    text, case = run.batch.text, run.case
    assert [prompt.caption for prompt in text.prompts] == case.meta["captions"]
    assert_same_tokens(text, case)
    expected = [tokens for _, tokens in sorted(case.meta["positive_map"].items(), key=lambda item: int(item[0]))]
    for rows in text.phrase_tokens:
        assert [row.nonzero()[:, 0].tolist() for row in rows] == [sorted(set(tokens)) for tokens in expected]


@pytest.mark.parametrize("quantity", [name for name in compare.TOLERANCES if name != "pixels"])
def test_stage(run: Run, quantity: str, note: Any) -> None:
    """Every stored array, sample and statistic of one kind."""
    tolerance = compare.TOLERANCES[quantity][compare.SIZE_OF[run.case.form]]
    gaps = compare.deviations(run, quantity)
    if not gaps:
        pytest.skip(f"{run.case.name} stores no {quantity}")
    note(quantity, max(gaps.values()))
    assert {name: gap for name, gap in gaps.items() if gap > tolerance} == {}


def test_candidates(run: Run, note: Any) -> None:
    """Before suppression: the same set, but for those at the threshold or at the cut."""
    for index, size in enumerate(run.batch.images.resized):
        ours, places = find_candidates(run.outputs, index, run.batch.text, size, InferenceConfig())
        golden = compare.golden_candidates(run, index)
        levels = run.case.tensor(f"pre_{index}_levels")
        lengths = torch.tensor([height * width for height, width in run.outputs.level_sizes])
        our_levels = torch.bucketize(places, lengths.cumsum(0), right=True) + 3
        first = compare.Found(ours.boxes, ours.scores, ours.labels * 8 + our_levels)
        second = compare.Found(golden.boxes, golden.scores, golden.labels * 8 + levels)
        lost, gained = compare.unmatched(second, first), compare.unmatched(first, second)
        note("candidates apart", (lost, gained, len(second.scores)))
        assert lost <= compare.CANDIDATES_APART * len(second.scores)
        assert gained <= compare.CANDIDATES_APART * len(second.scores)


def test_suppression_of_the_release_candidates_is_exact(run: Run) -> None:
    """The release's candidates through our suppression and cap are the release's detections, bit by bit."""
    for index, size in enumerate(run.batch.images.resized):
        config = InferenceConfig()
        kept = cap(suppress_classes(compare.golden_candidates(run, index), config.nms), config.max_detections)
        ours = table(kept.boxes, kept.scores, kept.labels)
        boxes = run.case.tensor(f"det_{index}_boxes_net")
        scores, labels = (run.case.tensor(f"det_{index}_{what}") for what in ("scores", "labels"))
        assert ours == table(boxes, scores, labels - 1)
        original = scale(boxes, size, run.batch.images.original[index])
        assert compare.largest_difference(original, run.case.tensor(f"det_{index}_boxes")) <= 1e-3


def test_detections(run: Run, note: Any) -> None:
    """Images and captions in, detections out: at least 99 of 100 are the release's."""
    for index in range(len(run.detections)):
        lost, gained, count = compare.detections_apart(run, index)
        note("detections apart", (lost, gained, count))
        allowed = max(1, count // 100)
        assert lost <= allowed and gained <= allowed


def test_numbers_that_are_not_finite_are_infinitely_far_off() -> None:
    broken = torch.tensor([1.0, float("nan")])
    assert compare.largest_difference(broken, torch.ones(2)) == float("inf")
    assert compare.largest_difference(torch.ones(2), torch.ones(2)) == 0


def test_training_inputs(training: TrainingRun) -> None:
    images, text, case = training.batch.images, training.batch.text, training.case
    assert [list(size) for size in images.resized] == case.arrays["image_sizes"].tolist()
    assert list(images.pixels.shape) == case.arrays["pixels_shape"].tolist()
    assert compare.pixel_deviation(training) <= compare.TOLERANCES["pixels"][0]
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
        gaps = [compare.largest_difference(deltas, training.case.tensor(f"reg_targets_{index}"))]
        gaps.append(compare.largest_difference(share, training.case.tensor(f"ctr_targets_{index}")))
        note("targets", max(gaps))
        assert max(gaps) <= compare.TOLERANCES["bbox"][0]
    assert positive == training.losses.num_positive == training.case.meta["num_pos"]


def test_losses(training: TrainingRun, note: Any) -> None:
    for name, gap in compare.loss_deviations(training).items():
        note(name, gap)
        assert gap <= compare.LOSS, name
    assert float(training.case.arrays["loss_cls"]) == 0


def test_gradients(training: TrainingRun, note: Any) -> None:
    """Norms of all, and some whole: their difference is as small as the norms must agree."""
    shares = compare.gradient_deviations(training)
    assert any(name.startswith("grad:") for name in shares)
    note("gradients, 1 = tolerance", max(shares.values()))
    assert {name: share for name, share in shares.items() if share > 1} == {}


def table(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[list[float]]:
    """Rows in an order that does not depend on how ties were sorted."""
    return sorted(torch.cat([scores[:, None], labels[:, None].float(), boxes], dim=1).tolist(), reverse=True)


def assert_same_tokens(text: Any, case: Any) -> None:
    width = text.input_ids.shape[1]
    assert width == int(case.arrays["attention_mask"].sum(1).max())
    assert torch.equal(text.attention_mask, case.tensor("attention_mask")[:, :width].bool())
    golden = case.tensor("input_ids")[:, :width]
    assert torch.equal(text.input_ids.where(text.attention_mask, 0), golden.where(text.attention_mask, 0))
