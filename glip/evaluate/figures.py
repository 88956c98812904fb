"""Images of an evaluation: precision over recall, scores of what is right and wrong, and where it fails worst."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from glip.evaluate.coco import Ranking
from glip.geometry.boxes import iou
from glip.structures import Detections, Sample
from glip.visualize import contact_sheet, save_image

_CURVES = 10  # categories with a curve of their own: those with most boxes
_OVERLAP = 0.5


def draw_curves(names: Sequence[str], rankings: Sequence[Ranking], path: Path) -> None:
    """Precision over recall at IoU 0.5 of the commonest categories, and how scores of right and wrong ones spread."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 4.5), layout="tight")
    curves, spread = canvas.subplots(1, 2)
    order = sorted(range(len(names)), key=lambda index: -len(rankings[index].boxes))
    for index in [index for index in order if len(rankings[index].boxes)][:_CURVES]:
        ranking = rankings[index]
        right = np.cumsum(ranking.right)
        precision = right / np.arange(1, len(right) + 1)
        label = names[index].replace("$", r"\$")  # else matplotlib reads it as a formula
        curves.plot(right / len(ranking.boxes), precision, label=f"{label} ({len(ranking.boxes)})")
    curves.set(
        title="precision over recall at IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05)
    )
    if curves.lines:
        curves.legend(fontsize="small")
    right = np.concatenate([ranking.right for ranking in rankings])
    scores = np.concatenate([ranking.scores for ranking in rankings])
    spread.hist([scores[right], scores[~right]], bins=40, label=["right", "wrong"], histtype="step", log=True)
    spread.set(title="scores of all detections", xlabel="score", ylabel="detections")
    spread.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=100)


def draw_worst(
    found: Iterable[tuple[int, Sample, Detections]],
    samples: Sequence[Sample],
    threshold: float,
    path: Path,
    *,
    count: int = 8,
) -> None:
    """The images with most mistakes at a threshold: what was found with its scores, and right of it what there is.

    A mistake is a box that nothing of its name overlaps by a half, or a detection that overlaps no box of its name.

    Args:
        found: number of a sample, the sample (its image is not looked at), what was found.
        samples: of the set, with their images.
        threshold: score from which a detection counts.
        path: the image to write; none is where there is no mistake.
        count: samples drawn at most.
    """
    worst: list[tuple[int, int, Detections]] = []
    for number, sample, detections in found:
        shown = detections.above(threshold)
        entry = (mistakes(sample, shown), -number, shown)
        if entry[0]:
            (heapq.heappush if len(worst) < count else heapq.heappushpop)(worst, entry)
    cells: list[Sample] = []
    for _, number, shown in sorted(worst, key=lambda entry: (-entry[0], -entry[1])):
        cells += [found_sample(samples[-number], shown), samples[-number]]
    if cells:
        save_image(contact_sheet(cells), path)


def mistakes(sample: Sample, found: Detections) -> int:
    """Boxes that were missed and detections that are wrong; groups, and names that may have more, count for neither."""
    labels = [set(numbers) for numbers in sample.box_phrases]
    open_names = set(sample.incomplete)
    same = torch.tensor([[label in own for own in labels] for label in found.labels.tolist()], dtype=torch.bool)
    near = iou(found.boxes, sample.boxes, inclusive=False) >= _OVERLAP
    hits = same.reshape(near.shape) & near
    known = set(range(len(sample.vocabulary))) if sample.absent is None else set().union(*labels, sample.absent)
    wrong = [
        not row.any() and label not in open_names and (sample.prompt is not None or label in known)
        for row, label in zip(hits, found.labels.tolist(), strict=True)
    ]
    missed = [not hits[:, box].any() for box in range(len(labels)) if box not in sample.crowd and labels[box]]
    return sum(wrong) + sum(missed)


def found_sample(asked: Sample, found: Detections) -> Sample:
    """The same image and the words asked for, with the found boxes and their scores in the place of the true ones."""
    return replace(
        asked,
        prompt=found.prompt,
        vocabulary=(),
        boxes=found.boxes,
        box_phrases=tuple((label,) for label in found.labels.tolist()),
        scores=tuple(found.scores.tolist()),
        crowd=(),
    )


def draw_epochs(validation: Sequence[float], loss: Sequence[float], path: Path) -> None:
    """A tuning round by round: the validation from before it on, and the loss."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.5), layout="tight")
    left, right = canvas.subplots(1, 2)
    left.plot(range(len(validation)), validation, marker=".")
    left.set(title="AP on validation", xlabel="round (0: before)", ylabel="AP", ylim=(0, 1))
    right.plot(range(1, len(loss) + 1), loss, marker=".", color="tab:orange")
    right.set(title="loss", xlabel="round", ylabel="mean of the steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=100)


def draw_by_shots(
    curves: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]],
    path: Path,
    *,
    shots: Sequence[str],
    figure: str,
    title: str,
) -> None:
    """Mean and spread by shots, a line for each model and mode (the paper's Figure 4).

    Args:
        curves: by (model, mode), by shots ("1", "5", "all"): mean and standard deviation.
        path: the image.
        shots: those of the curves in the order of the axis.
        figure: what is shown.
        title: over what it is averaged.
    """
    from matplotlib.figure import Figure

    models, modes = (list(dict.fromkeys(key[part] for key in curves)) for part in (0, 1))
    canvas = Figure(figsize=(8.5, 4.5), layout="tight")
    axes = canvas.subplots()
    for place, ((model, mode), points) in enumerate(curves.items()):
        means, spreads = zip(*points.values(), strict=True)
        # Side by side around the place of their shots: marks of equal height stay readable.
        x = [shots.index(name) + 0.03 * (place - (len(curves) - 1) / 2) for name in points]
        axes.errorbar(
            x,
            means,
            yerr=spreads,
            marker="os^vD"[models.index(model) % 5],
            linestyle=("-", "--", ":", "-.")[models.index(model) % 4],
            color=f"C{modes.index(mode)}",
            capsize=3,
            label=f"{mode}, {model}" if len(models) > 1 else mode,
        )
    axes.set(xlabel="shots of each class", ylabel=figure, ylim=(0, 1), xlim=(-0.5, len(shots) - 0.5))
    axes.set_xticks(range(len(shots)), shots)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=100)
