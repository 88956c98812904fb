"""How far a run of ours is from a stored run of the 2022 release, and how far it may be.

Tolerances are those that were measured with the runs: a few times the release's own float32 noise, and less than a
typical mistake changes. They hold for float32 on a CPU; tools/check_gpu.py allows a GPU four times as much.
"""

import math
from dataclasses import dataclass

import torch
from golden_recorder import Run, TrainingRun
from torch import Tensor

from glip.structures import Detections

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
    "anchors": (1e-4, 1e-4, 1e-4),
}
SIZE_OF = {"tiny": 0, "tiny_nofuse": 0, "glip_t_a": 0, "glip_t_b": 1, "glip_t_c": 1, "glip_l": 2}
BOX_PIXELS, SCORE = 0.1, 1e-3  # what a detection may move
CANDIDATES_APART = 0.005  # share of candidates that may appear or vanish at the thresholds
LOSS, GRADIENT, GRADIENT_ATOL = 1e-4, 1e-3, 1e-4  # relative, relative, absolute


@dataclass(frozen=True)
class Found:
    """Boxes with scores and labels: detections, or candidates before suppression."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def unmatched(wanted: Found, offered: Found) -> int:
    """How many of ``wanted`` have no partner of their label, nearby and of nearly their score, in ``offered``."""
    near = torch.cdist(wanted.boxes, offered.boxes, p=float("inf")) <= BOX_PIXELS
    alike = (wanted.scores[:, None] - offered.scores[None]).abs() <= SCORE
    same = wanted.labels[:, None] == offered.labels[None]
    return int((~(near & alike & same).any(1)).sum())


def golden_candidates(run: Run, index: int) -> Detections:
    """The release's candidates of one image before suppression."""
    boxes, scores, labels = (run.case.tensor(f"pre_{index}_{what}") for what in ("boxes", "scores", "labels"))
    prompt, size = run.batch.text.prompts[index], run.batch.images.resized[index]
    return Detections(boxes, scores, labels - 1, prompt, size)


def detections_apart(run: Run, index: int) -> tuple[int, int, int]:
    """Detections of the release that are missing, ours that it has not, and how many it has."""
    ours = run.detections[index].to("cpu")
    boxes, scores, labels = (run.case.tensor(f"det_{index}_{what}") for what in ("boxes", "scores", "labels"))
    first, second = Found(ours.boxes, ours.scores, ours.labels), Found(boxes, scores, labels - 1)
    return unmatched(second, first), unmatched(first, second), len(scores)


def deviations(run: Run, quantity: str) -> dict[str, float]:
    """The largest difference to each stored array, sample and statistic of one quantity, by the array's name."""
    return {name: _deviation(run, name) for name in run.case.arrays if name.startswith(f"{quantity}_")}


def pixel_deviation(run: Run | TrainingRun) -> float:
    """How far the network's input is from the stored one."""
    pixels, case = run.batch.images.pixels.cpu(), run.case
    gaps = [stat_deviation(pixels, case.tensor("pixels_stat"))]
    if "pixels_sub" in case.arrays:
        gaps.append(largest_difference(pixels[:, :, ::7, ::7], case.tensor("pixels_sub")))
    if "pixels" in case.arrays:
        gaps.append(largest_difference(pixels, case.tensor("pixels")))
    return max(gaps)


def loss_deviations(run: TrainingRun) -> dict[str, float]:
    """The relative difference of each loss."""
    ours = {
        "loss_dot_product_token": run.losses.token,
        "loss_reg": run.losses.box,
        "loss_centerness": run.losses.centerness,
        "loss_total": run.losses.total,
    }
    return {name: finite(abs(value.item() / float(run.case.arrays[name]) - 1)) for name, value in ours.items()}


def gradient_deviations(run: TrainingRun) -> dict[str, float]:
    """The difference of each gradient's norm, and of the gradients stored whole, as a share of what is allowed."""
    stored, shares = run.case.arrays, {}
    for key, norm in zip(stored["grad_keys"].tolist(), stored["grad_norms"].tolist(), strict=True):
        gap = abs(run.gradients[key].double().norm().item() - norm)
        shares[key] = finite(gap / (GRADIENT * norm + GRADIENT_ATOL))
    for name in (name for name in stored if name.startswith("grad:")):
        golden = run.case.tensor(name)  # the first 64 rows
        gap = (run.gradients[name.removeprefix("grad:")][: len(golden)] - golden).norm().item()
        shares[name] = finite(gap / (GRADIENT * golden.norm().item() + GRADIENT_ATOL))
    return shares


def _deviation(run: Run, name: str) -> float:
    """How far our array is from a stored array, of which it may be a sample, its shape or its statistic."""
    base, _, kind = name.rpartition("_")
    stored = run.case.tensor(name)
    if kind == "stat":
        return stat_deviation(run.arrays[base], stored)
    if kind == "shape":
        assert list(run.arrays[base].shape) == stored.tolist()
        return 0.0
    if kind == "sub":
        whole = run.arrays[base]
        return largest_difference(whole[:, ::7] if whole.ndim == 3 else whole[:, ::8, ::3, ::3], stored)
    ours = run.arrays[name]
    if name.startswith("bbox") and stored.shape != ours.shape:
        ours = ours[:, :, ::3, ::3]
    return largest_difference(ours, stored)


def stat_deviation(ours: Tensor, stored: Tensor) -> float:
    """Mean, deviation and maximum move at most as far as the values do; the L2 norm at most sqrt(count) times that."""
    values = ours.double()
    root = values.numel() ** 0.5
    statistics = torch.stack([values.mean(), values.std(correction=0), values.abs().max(), values.norm() / root])
    return largest_difference(statistics, stored / torch.tensor([1.0, 1.0, 1.0, root]))


def largest_difference(ours: Tensor, golden: Tensor) -> float:
    """Of two arrays, which must have one shape."""
    assert ours.shape == golden.shape, f"{tuple(ours.shape)} is not {tuple(golden.shape)}"
    return finite(float((ours.double() - golden.double()).abs().max()))


def finite(gap: float) -> float:
    """A deviation; infinite where a number is NaN, which no comparison would show."""
    return gap if math.isfinite(gap) else math.inf
