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


class Criterion:
    """Outputs and targets -> Losses. Computed in float32 whatever the network ran in."""

    def __call__(
        self, outputs: Outputs, targets: Sequence[Target], attention_mask: Bool[Tensor, "batch tok"]
    ) -> Losses:
        """The losses of one batch; targets are in resized pixels, one for each picture."""
        lengths = [height * width for height, width in outputs.level_sizes]
        owners = [assign(outputs.anchors, target.boxes, lengths) for target in targets]
        positive = torch.stack([owner != BACKGROUND for owner in owners])
        num_positive = max(int(positive.sum()), 1)
        token_targets = torch.stack(
            [_token_targets(owner, target) for owner, target in zip(owners, targets, strict=True)]
        )
        token = token_focal_loss(outputs.token_logits.float(), token_targets, attention_mask) / num_positive
        box, centerness = self._box_terms(outputs, owners, targets, num_positive)
        return Losses(token, box, centerness, int(positive.sum()))

    def _box_terms(
        self, outputs: Outputs, owners: Sequence[Int[Tensor, " loc"]], targets: Sequence[Target], num_positive: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        rows = torch.cat([torch.full_like(owner, index) for index, owner in enumerate(owners)])
        owner = torch.cat(list(owners))
        places = torch.arange(len(outputs.anchors), device=owner.device).repeat(len(owners))
        chosen = owner != BACKGROUND
        rows, places = rows[chosen], places[chosen]
        if len(rows) == 0:  # keeps every parameter in the graph, so that gradients are zero and not missing
            return outputs.box_deltas.sum() * 0.0, outputs.centerness.sum() * 0.0
        anchors = outputs.anchors[places]
        matched = torch.cat([target.boxes[own[own != BACKGROUND]] for own, target in zip(owners, targets, strict=True)])
        boxes = decode(encode(matched, anchors), anchors)  # through the coder and back, as the release does
        share = centerness_targets(boxes, anchors)
        predicted = decode(outputs.box_deltas[rows, places].float(), anchors)
        box = _BOX_WEIGHT * (giou_loss(predicted, boxes) * share).sum() / share.sum().clamp(min=1e-6)
        logits = outputs.centerness[rows, places].float()
        return box, F.binary_cross_entropy_with_logits(logits, share, reduction="sum") / num_positive


def token_focal_loss(
    logits: Float[Tensor, "batch loc tok"],
    targets: Float[Tensor, "batch loc tok"],
    attention_mask: Bool[Tensor, "batch tok"],
) -> Float[Tensor, ""]:
    """Sigmoid focal loss (Lin et al. 2017), summed over all locations and the valid tokens."""
    losses: Tensor = sigmoid_focal_loss(logits, targets, alpha=_ALPHA, gamma=_GAMMA, reduction="none")
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
