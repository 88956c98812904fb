"""What training minimizes: token focal loss, GIoU and centerness over ATSS assignments.

Paper equation 2; the release's ``rpn/loss.py`` fixes the details.
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
    """The three terms of one batch and their sum; ``num_positive`` is the number of anchors that learn a box."""

    token: Float[Tensor, ""]
    box: Float[Tensor, ""]
    centerness: Float[Tensor, ""]
    num_positive: int

    @property
    def total(self) -> Float[Tensor, ""]:
        """What is differentiated."""
        return self.token + self.box + self.centerness


@dataclass(frozen=True)
class Totals:
    """What losses are divided by: the number of positive anchors, and the sum of their centerness.

    A step that sees its images in several batches, or in several processes, divides by the totals of all of them;
    the sum of its losses is then that of one big batch, as is its gradient.
    """

    num_positive: float
    centerness: float


@dataclass(frozen=True)
class Matching:
    """Who learns what in one batch. It depends on targets and anchors alone: no network has to run for it.

    ``boxes`` and ``centerness`` are what the positive anchors learn, image by image in the order of locations;
    ``weights`` and ``located`` say how much each learns of its words, and of its box.
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
        """The losses of one batch; targets are in resized pixels, one for each image."""
        matching = match(targets, outputs.anchors, outputs.level_sizes)
        return compute_losses(outputs, matching, attention_mask, totals=matching.totals)


def match(targets: Sequence[Target], anchors: Float[Tensor, "loc 4"], sizes: Sequence[tuple[int, int]]) -> Matching:
    """Assign the anchors of one batch to the boxes of its images.

    Args:
        targets: in resized pixels, one for each image.
        anchors: of all levels.
        sizes: (height, width) of each level.
    """
    lengths = [height * width for height, width in sizes]
    assigned_box = torch.stack([assign(anchors, target.boxes, lengths) for target in targets])
    chosen = assigned_box != BACKGROUND
    mine = [own[own != BACKGROUND] for own in assigned_box]
    matched = torch.cat([target.boxes[own] for own, target in zip(mine, targets, strict=True)])
    weights = torch.cat([_weights(target)[own] for own, target in zip(mine, targets, strict=True)])
    box_loss = torch.cat([_weights(t)[own] * float(t.box_loss) for own, t in zip(mine, targets, strict=True)])
    near = anchors[chosen.nonzero()[:, 1]]
    boxes = decode(encode(matched, near), near)  # through the coder and back, as the release does
    return Matching(assigned_box, boxes, centerness_targets(boxes, near), weights, box_loss, tuple(targets))


def _weights(target: Target) -> Float[Tensor, " box"]:
    return target.boxes.new_ones(len(target.boxes)) if target.weights is None else target.weights


def compute_losses(
    outputs: Outputs, matching: Matching, attention_mask: Bool[Tensor, "batch tok"], *, totals: Totals
) -> Losses:
    """The losses of one batch, in float32 whatever the network ran in."""
    num_positive = max(totals.num_positive, 1.0)
    wanted = torch.stack(
        [_token_targets(own, t) for own, t in zip(matching.assigned_box, matching.targets, strict=True)]
    )
    rows, places = (matching.assigned_box != BACKGROUND).nonzero(as_tuple=True)
    weights = None
    if any(target.weights is not None for target in matching.targets):
        weights = outputs.anchors.new_ones(matching.assigned_box.shape)
        weights[rows, places] = matching.weights
    token = token_focal_loss(outputs.token_logits.float(), wanted, attention_mask, weights) / num_positive
    # Without a positive the sums below are of nothing: zero, with a gradient of zeros for every parameter.
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
    """Sigmoid focal loss (Lin et al. 2017), summed over all locations, each by its weight, and the valid tokens."""
    losses: Tensor = sigmoid_focal_loss(logits, targets, alpha=_ALPHA, gamma=_GAMMA, reduction="none")
    if weights is not None:
        losses = losses * weights[..., None]
    return (losses * attention_mask[:, None]).sum()


def centerness_targets(boxes: Float[Tensor, "box 4"], anchors: Float[Tensor, "box 4"]) -> Float[Tensor, " box"]:
    """How central an anchor's centre lies in its box: sqrt(min/max * min/max) of the distances to the sides (FCOS)."""
    x = (anchors[:, 0] + anchors[:, 2]) / 2
    y = (anchors[:, 1] + anchors[:, 3]) / 2
    horizontal = torch.stack([x - boxes[:, 0], boxes[:, 2] - x], dim=1)
    vertical = torch.stack([y - boxes[:, 1], boxes[:, 3] - y], dim=1)
    ratios = [side.amin(1) / side.amax(1) for side in (horizontal, vertical)]
    return (ratios[0] * ratios[1]).sqrt()


def _token_targets(owner: Int[Tensor, " loc"], target: Target) -> Float[Tensor, "loc tok"]:
    width = target.positive_map.shape[1]
    background = target.positive_map.new_zeros(1, width)
    if width > _NO_OBJECT_TOKEN:
        background[0, _NO_OBJECT_TOKEN] = True
    rows = torch.cat([target.positive_map, background]).float()
    return rows[owner]  # BACKGROUND is -1: the last row
