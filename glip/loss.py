"""The training loss (paper equation 2): token focal loss, GIoU and centerness over ATSS assignments.

Details are those of the release's ``rpn/loss.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from glip.geometry.anchors import decode, encode
from glip.geometry.assign import BACKGROUND, assign
from glip.geometry.boxes import giou_loss
from glip.shapes import Bool, Float, Int, Tensor
from glip.structures import Outputs, Target

_ALPHA, _GAMMA = 0.25, 2.0
_BOX_WEIGHT = 2.0
_NO_OBJECT_TOKEN = 255  # the release gives background this token; it is real only in a caption of 256 tokens


@dataclass(frozen=True)
class Losses:
    """The three terms of one batch; ``num_positive`` is the number of anchors that learn a box."""

    token: Float[Tensor, ""]
    box: Float[Tensor, ""]
    centerness: Float[Tensor, ""]
    num_positive: int

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum, which training minimizes."""
        return self.token + self.box + self.centerness


@dataclass(frozen=True)
class Totals:
    """The divisors of the losses: the number of positive anchors, and the sum of their centerness.

    A step whose images come in several batches or processes divides by the totals of all of them. Its summed losses
    and gradients are then those of one big batch.
    """

    num_positive: float
    centerness: float


@dataclass(frozen=True)
class Matching:
    """Which anchor learns what in one batch; it depends on targets and anchors alone, not on the network.

    ``boxes`` and ``centerness`` are the targets of the positive anchors, image by image in the order of locations;
    ``weights`` and ``box_loss`` are the weights of their token loss and of their box and centerness losses.
    """

    assigned_box: Int[Tensor, "batch loc"]
    boxes: Float[Tensor, "positive 4"]
    centerness: Float[Tensor, " positive"]
    weights: Float[Tensor, " positive"]
    box_loss: Float[Tensor, " positive"]
    targets: tuple[Target, ...]

    @property
    def totals(self) -> Totals:
        """The totals of this batch alone."""
        return Totals(float(len(self.boxes)), float((self.centerness * self.box_loss).sum()))


class Criterion:
    """Outputs and targets -> Losses of one batch, divided by its own totals."""

    def __call__(
        self, outputs: Outputs, targets: Sequence[Target], attention_mask: Bool[Tensor, "batch tok"]
    ) -> Losses:
        """The losses of one batch, with one target in resized pixels for each image."""
        matching = match(targets, outputs.anchors, outputs.level_sizes)
        return compute_losses(outputs, matching, attention_mask, totals=matching.totals)


def match(targets: Sequence[Target], anchors: Float[Tensor, "loc 4"], sizes: Sequence[tuple[int, int]]) -> Matching:
    """Assign the anchors of levels of these sizes (height, width) to the boxes of a batch, in resized pixels."""
    lengths = [height * width for height, width in sizes]
    assigned_box = torch.stack([assign(anchors, target.boxes, lengths) for target in targets])
    matched, weights, box_loss = [], [], []
    for target, assigned in zip(targets, assigned_box, strict=True):
        own = assigned[assigned != BACKGROUND]
        matched.append(target.boxes[own])
        weights.append(target.boxes.new_ones(len(own)) if target.weights is None else target.weights[own])
        box_loss.append(weights[-1] * float(target.box_loss))
    near = anchors[(assigned_box != BACKGROUND).nonzero()[:, 1]]
    boxes = decode(encode(torch.cat(matched), near), near)  # through the coder and back, as the release does
    centerness = centerness_targets(boxes, near)
    return Matching(assigned_box, boxes, centerness, torch.cat(weights), torch.cat(box_loss), tuple(targets))


def compute_losses(
    outputs: Outputs, matching: Matching, attention_mask: Bool[Tensor, "batch tok"], *, totals: Totals
) -> Losses:
    """The losses of one batch, in float32 whatever precision the network ran in."""
    num_positive = max(totals.num_positive, 1.0)
    assigned = matching.assigned_box
    wanted = torch.stack([_token_targets(own, target) for own, target in zip(assigned, matching.targets, strict=True)])
    rows, places = (assigned != BACKGROUND).nonzero(as_tuple=True)
    weights = None
    if any(target.weights is not None for target in matching.targets):
        weights = outputs.anchors.new_ones(assigned.shape)
        weights[rows, places] = matching.weights
    token = token_focal_loss(outputs.token_logits.float(), wanted, attention_mask, weights) / num_positive
    # Without a positive anchor the sums below are zero, and every parameter still gets a gradient of zeros.
    predicted = decode(outputs.box_deltas[rows, places].float(), outputs.anchors[places])
    weighted = (giou_loss(predicted, matching.boxes) * matching.centerness * matching.box_loss).sum()
    box = _BOX_WEIGHT * weighted / max(totals.centerness, 1e-6)
    logits = outputs.centerness[rows, places].float()
    centred = F.binary_cross_entropy_with_logits(logits, matching.centerness, weight=matching.box_loss, reduction="sum")
    centerness = centred / num_positive
    return Losses(token, box, centerness, len(rows))


def token_focal_loss(
    logits: Float[Tensor, "batch loc tok"],
    targets: Float[Tensor, "batch loc tok"],
    attention_mask: Bool[Tensor, "batch tok"],
    weights: Float[Tensor, "batch loc"] | None = None,
) -> Float[Tensor, ""]:
    """Sigmoid focal loss (Lin et al. 2017), summed over weighted locations and valid tokens."""
    losses: Tensor = sigmoid_focal_loss(logits, targets, alpha=_ALPHA, gamma=_GAMMA, reduction="none")
    if weights is not None:
        losses = losses * weights[..., None]
    return (losses * attention_mask[:, None]).sum()


def centerness_targets(boxes: Float[Tensor, "box 4"], anchors: Float[Tensor, "box 4"]) -> Float[Tensor, " box"]:
    """How central an anchor is in its box: sqrt(min/max * min/max) of its centre's distances to the sides (FCOS)."""
    x = (anchors[:, 0] + anchors[:, 2]) / 2
    y = (anchors[:, 1] + anchors[:, 3]) / 2
    horizontal = torch.stack([x - boxes[:, 0], boxes[:, 2] - x], dim=1)
    vertical = torch.stack([y - boxes[:, 1], boxes[:, 3] - y], dim=1)
    ratios = [side.amin(1) / side.amax(1) for side in (horizontal, vertical)]
    return (ratios[0] * ratios[1]).sqrt()


def _token_targets(assigned: Int[Tensor, " loc"], target: Target) -> Float[Tensor, "loc tok"]:
    width = target.positive_map.shape[1]
    background = target.positive_map.new_zeros(1, width)
    if width > _NO_OBJECT_TOKEN:
        background[0, _NO_OBJECT_TOKEN] = True
    rows = torch.cat([target.positive_map, background]).float()
    return rows[assigned]  # BACKGROUND is -1: the last row
