"""Losses against their formulas, written out with Python numbers where they are short."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from glip.geometry.anchors import grid_anchors, level_sizes
from glip.geometry.boxes import giou_loss, iou
from glip.loss import Criterion, Totals, centerness_targets, compute_losses, match, token_focal_loss
from glip.structures import Outputs, Target


def boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 80
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_focal_loss_is_its_formula(seed: int) -> None:
    """Lin et al. 2017, equation 5: -alpha_t (1 - p_t)^gamma log p_t, alpha 0.25, gamma 2; masked tokens are silent."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, 5, generator=generator) * 4
    targets = (torch.rand(2, 7, 5, generator=generator) < 0.3).float()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected = 0.0
    for image, place, token in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(5)).tolist():
        if mask[image, token]:
            probability = 1 / (1 + math.exp(-logits[image, place, token].item()))
            wanted = targets[image, place, token].item() == 1
            right, alpha = (probability, 0.25) if wanted else (1 - probability, 0.75)
            expected -= alpha * (1 - right) ** 2 * math.log(right)
    assert token_focal_loss(logits, targets, mask).item() == pytest.approx(expected, rel=1e-5)


def test_giou_loss_is_torchvisions() -> None:
    first, second = boxes(50, 0), boxes(50, 1)
    torch.testing.assert_close(
        giou_loss(first, second), 1 - generalized_box_iou(first, second).diagonal(), rtol=1e-5, atol=1e-5
    )


def test_inclusive_overlap_counts_the_last_pixel() -> None:
    """A box from 3 to 5 covers the pixels 3, 4, 5: it is the box from 3 to 6 of continuous coordinates."""
    first, second = boxes(6, 2).round(), boxes(6, 3).round()
    end = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(iou(first, second, inclusive=True), box_iou(first + end, second + end))


def test_centerness_is_one_in_the_middle_and_its_formula_elsewhere() -> None:
    """Tian et al. 2019 (FCOS), equation 3."""
    box = torch.tensor([[0.0, 0.0, 40.0, 20.0]] * 3)
    anchors = torch.tensor([[10.0, 0.0, 30.0, 20.0], [0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 10.0]])
    expected = [1.0, math.sqrt(10 / 30), math.sqrt(10 / 30 * 5 / 15)]
    assert centerness_targets(box, anchors).tolist() == pytest.approx(expected)


SIZES = level_sizes(96, 128)
ANCHORS = grid_anchors(SIZES)


def random_outputs(count: int) -> Outputs:
    generator = torch.Generator().manual_seed(4)
    shapes = ((count, len(ANCHORS), 6), (count, len(ANCHORS), 4), (count, len(ANCHORS)))
    logits, deltas, centerness = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return Outputs(logits, deltas, centerness, ANCHORS, SIZES)


def image(outputs: Outputs, index: int) -> Outputs:
    rows = slice(index, index + 1)
    logits, deltas, centerness = outputs.token_logits[rows], outputs.box_deltas[rows], outputs.centerness[rows]
    return replace(outputs, token_logits=logits, box_deltas=deltas, centerness=centerness)


def target(count: int, seed: int) -> Target:
    return Target(boxes(count, seed), torch.eye(6, dtype=torch.bool)[:count])


def test_losses_of_parts_divided_by_the_totals_are_those_of_the_whole() -> None:
    targets, outputs, mask = [target(3, 5), target(1, 6), target(0, 7)], random_outputs(3), torch.ones(3, 6).bool()
    whole = Criterion()(outputs, targets, mask)
    matchings = [match([one], ANCHORS, SIZES) for one in targets]
    totals = Totals(
        sum(each.totals.num_positive for each in matchings), sum(each.totals.centerness for each in matchings)
    )
    parts = [
        compute_losses(image(outputs, index), each, mask[:1], totals=totals) for index, each in enumerate(matchings)
    ]
    assert whole.num_positive == totals.num_positive == sum(part.num_positive for part in parts) > 10
    for term in ("token", "box", "centerness", "total"):
        summed = torch.stack([getattr(part, term) for part in parts]).sum()
        torch.testing.assert_close(summed, getattr(whole, term), rtol=1e-5, atol=1e-6)
    alone = Criterion()(image(outputs, 1), targets[1:2], mask[:1])
    assert alone.total > parts[1].total * 1.5, "divided by itself alone a part weighs more"


def test_without_a_box_only_tokens_are_learned_and_every_gradient_is_there() -> None:
    outputs = random_outputs(2)
    losses = Criterion()(outputs, [target(0, 0)] * 2, torch.ones(2, 6).bool())
    assert losses.num_positive == 0 and losses.box == losses.centerness == 0 and losses.token > 0
    losses.total.backward()
    for value in (outputs.box_deltas, outputs.centerness):
        assert value.grad is not None and not value.grad.any()
    assert outputs.token_logits.grad is not None and outputs.token_logits.grad.all()


def test_weights_scale_what_each_box_teaches() -> None:
    outputs, mask, one = random_outputs(1), torch.ones(1, 6).bool(), target(2, 5)
    plain = Criterion()(outputs, [one], mask)
    sure = Criterion()(outputs, [replace(one, weights=torch.ones(2))], mask)
    for term in ("token", "box", "centerness"):
        torch.testing.assert_close(getattr(plain, term), getattr(sure, term))
    halves = replace(one, weights=torch.full((2,), 0.5))
    half = Criterion()(outputs, [halves], mask)
    torch.testing.assert_close(half.centerness, plain.centerness / 2)
    torch.testing.assert_close(half.box, plain.box)  # its own weights are what it is divided by
    matching = match([halves], ANCHORS, SIZES)
    positive = matching.assigned_box[0] >= 0
    shares = []
    for chosen in (positive, ~positive):
        targets = (one.positive_map[matching.assigned_box[0][chosen]] & positive[chosen][:, None]).float()[None]
        shares.append(token_focal_loss(outputs.token_logits[:, chosen], targets, mask))
    torch.testing.assert_close(half.token, (shares[0] / 2 + shares[1]) / half.num_positive, rtol=1e-4, atol=1e-5)


def test_boxes_that_are_not_located_teach_words_only() -> None:
    outputs, mask, one = random_outputs(2), torch.ones(2, 6).bool(), target(2, 5)
    mixed = Criterion()(outputs, [one, replace(one, box_loss=False)], mask)
    mixed.total.backward()
    assert outputs.box_deltas.grad is not None and outputs.centerness.grad is not None
    assert outputs.box_deltas.grad[0].any() and not outputs.box_deltas.grad[1].any()
    assert outputs.centerness.grad[0].any() and not outputs.centerness.grad[1].any()
    fresh = random_outputs(2)
    both = Criterion()(fresh, [one, one], mask)
    torch.testing.assert_close(mixed.token, both.token)
