"""Boxes as xyxy tensors: IoU, clipping, scaling, suppression, greedy matching.

The release counts pixels inclusively (a box from 3 to 5 is 3 wide) in NMS, assignment and the coder, and does not in
GIoU; ``inclusive`` says which convention a function follows.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from glip.shapes import Float, Int, Tensor


def iou(first: Float[Tensor, "a 4"], second: Float[Tensor, "b 4"], *, inclusive: bool) -> Float[Tensor, "a b"]:
    """Intersection over union of every pair; ``inclusive`` adds one to widths and heights."""
    extra = 1.0 if inclusive else 0.0
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = ((high - low + extra).clamp(min=0), *(boxes[:, 2:] - boxes[:, :2] + extra for boxes in (first, second)))
    shared, one, other = (side[..., 0] * side[..., 1] for side in sides)
    return shared / (one[:, None] + other[None] - shared)


def giou(first: Float[Tensor, "a 4"], second: Float[Tensor, "b 4"]) -> Float[Tensor, "a b"]:
    """Generalized IoU of every pair (Rezatofighi et al. 2019), without the +1 convention; NaN for two equal points."""
    from torchvision.ops import generalized_box_iou  # only evaluation needs it

    pairs: Tensor = generalized_box_iou(first, second)
    return pairs


def pair_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes as plain numbers: for few boxes tensors cost more than they save."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (sum(areas) - shared)


def greedy_hits(found: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], threshold: float) -> list[bool]:
    """For each found box, best first, whether it overlaps a ground-truth box that no better one has taken."""
    free, hits = list(truth), list[bool]()
    for box in found:
        nearest = max(free, key=lambda true: pair_iou(box, true), default=None)
        hits.append(nearest is not None and pair_iou(box, nearest) >= threshold)
        if nearest is not None and hits[-1]:
            free.remove(nearest)
    return hits


def giou_loss(predicted: Float[Tensor, "box 4"], target: Float[Tensor, "box 4"]) -> Float[Tensor, " box"]:
    """1 - GIoU of each pair (Rezatofighi et al. 2019), without the +1 convention."""
    from torchvision.ops import generalized_box_iou_loss  # only training needs it

    losses: Tensor = generalized_box_iou_loss(predicted, target, reduction="none", eps=1e-7)
    return losses


def clip(boxes: Float[Tensor, "box 4"], size: tuple[int, int]) -> Float[Tensor, "box 4"]:
    """Keep boxes inside an image of (height, width) pixels: x in [0, width - 1], y in [0, height - 1]."""
    height, width = size
    x = boxes[:, 0::2].clamp(0, width - 1)
    y = boxes[:, 1::2].clamp(0, height - 1)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def scale(
    boxes: Float[Tensor, "box 4"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "box 4"]:
    """Boxes of an image of one (height, width), in the pixels of the same image at another."""
    factor_y, factor_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * boxes.new_tensor([factor_x, factor_y, factor_x, factor_y])


def suppress(
    boxes: Float[Tensor, "box 4"], scores: Float[Tensor, " box"], classes: Int[Tensor, " box"], threshold: float
) -> Int[Tensor, " keep"]:
    """Per-class greedy non-maximum suppression with the +1 convention; indices of what stays, best score first.

    torchvision's kernel has no +1 convention: boxes that are one pixel wider and higher (x2 + 1, y2 + 1) have, under
    the ordinary formula, exactly the areas and overlaps of the inclusive one. On a CPU classes are taken one by one,
    so that only boxes of one class are compared; a GPU would wait after each, so there one call takes all.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    order = scores.argsort(descending=True, stable=True)
    if boxes.device.type != "cpu":
        return order[_greedy_by_class(boxes[order], classes[order], threshold)]
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for number in classes.unique().tolist():
        members = order[classes[order] == number]
        keep[members[_greedy(boxes[members], threshold)]] = True
    return order[keep[order]]


def _greedy_by_class(
    boxes: Float[Tensor, "box 4"], classes: Int[Tensor, " box"], threshold: float
) -> Int[Tensor, " keep"]:
    """All classes in one call; indices of what stays, in order.

    Classes are set apart by an offset. In float32 it would round the coordinates; float64 holds them exactly.
    """
    extent = boxes.max() - boxes.min() + 2
    moved = boxes.double() + (classes.double() * extent)[:, None]
    return _greedy(moved, threshold).sort().values


def _greedy(boxes: Float[Tensor, "box 4"], threshold: float) -> Int[Tensor, " keep"]:
    wider = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return _nms()(wider, ranks, threshold)


@cache
def _nms() -> Callable[[Tensor, Tensor, float], Tensor]:
    """torchvision's kernel, from its library alone: to import the package takes as long as to import torch."""
    spec = find_spec("torchvision")
    libraries = sorted(Path(spec.origin).parent.glob("_C*")) if spec and spec.origin else []
    if "torchvision" in sys.modules or len(libraries) != 1:
        import_module("torchvision")
    else:
        torch.ops.load_library(str(libraries[0]))
    kernel: Callable[[Tensor, Tensor, float], Tensor] = torch.ops.torchvision.nms
    return kernel
