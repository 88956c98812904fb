"""Figures of an evaluation: precision over recall, scores of right and wrong detections, the worst images."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glip.evaluate.coco import Ranking, pooled
from glip.evaluate.false_positives import FalsePositives
from glip.geometry.boxes import iou
from glip.lettering import BLUE, GREEN, RED, TextRun, legible
from glip.structures import Detections, Sample
from glip.visualize import Cell, figure, save_image, sheet

_CURVES = 10  # categories with a curve of their own: those with most boxes
_CELLS = 25  # names in a confusion matrix, the same; the others are one row and column
_OVERLAP = 0.5
_RIGHT, _WRONG, _MISSED = GREEN, RED, BLUE


def draw_curves(names: Sequence[str], rankings: Sequence[Ranking], path: Path) -> None:
    """Precision over recall at IoU 0.5 of the most frequent categories, and scores of right and wrong detections."""
    with _axes(path, 12, 4.5, columns=2) as (curves, spread):
        order = sorted(range(len(names)), key=lambda index: -len(rankings[index].boxes))
        for index in [index for index in order if len(rankings[index].boxes)][:_CURVES]:
            ranking = rankings[index]
            right = np.cumsum(ranking.right)
            precision = right / np.arange(1, len(right) + 1)
            label = _without_formulas(names[index])
            curves.plot(right / len(ranking.boxes), precision, label=f"{label} ({len(ranking.boxes)})")
        curves.set(title="precision over recall at IoU 0.5", xlabel="recall", ylabel="precision")
        curves.set(xlim=(0, 1), ylim=(0, 1.05))
        if curves.lines:
            curves.legend(fontsize="small", title="class (boxes)")
        right = np.concatenate([ranking.right for ranking in rankings])
        scores = np.concatenate([ranking.scores for ranking in rankings])
        style: dict[str, Any] = {"histtype": "step", "log": True, "bins": 40, "range": (0, 1), "color": ["C2", "C1"]}
        spread.hist([scores[right], scores[~right]], label=["right", "wrong"], **style)
        spread.set(title="scores of all detections", xlabel="score", ylabel="detections", xlim=(0, 1))
        spread.legend()


def draw_worst(
    found: Iterable[tuple[int, Sample, Detections]],
    samples: Sequence[Sample],
    threshold: float,
    path: Path,
    *,
    count: int = 8,
) -> None:
    """The images with most mistakes at a threshold: what was found, and right of it the ground truth.

    A mistake is a box that no detection of its name overlaps by a half, or a detection that overlaps no box of its
    name. Boxes that are right, wrong and missed have three colours, mistakes have tags. ``found`` gives the index of a
    sample, the sample (its image is not used) and its detections; ``samples`` have the images. No file is written
    where there is no mistake.
    """
    above = ((index, sample, detections.above(threshold)) for index, sample, detections in found)
    counted = ((-sum(map(len, _mistakes(sample, shown))), index, shown) for index, sample, shown in above)
    worst = heapq.nsmallest(count, (entry for entry in counted if entry[0]), key=lambda entry: entry[:2])
    cells = [cell for _, index, shown in worst for cell in _compared(samples[index], shown)]
    if cells:
        save_image(sheet(cells), path)


def _compared(sample: Sample, found: Detections) -> Iterator[Cell]:
    """The detections in a sample and its ground truth, side by side."""
    wrong, missed = _mistakes(sample, found)
    names = sample.prompt.texts if sample.prompt else sample.vocabulary
    truth = replace(sample, scores=())
    sides = (
        ("found", found_sample(sample, found), [found.prompt.texts[label] for label in found.labels.tolist()], wrong),
        ("ground truth", truth, [" / ".join(names[index] for index in own) for own in sample.box_phrases], missed),
    )
    for heading, shown, own, mistakes in sides:
        colour, verdict = (_WRONG, "wrong") if heading == "found" else (_MISSED, "missed")
        colours = [colour if box in mistakes else _RIGHT for box in range(len(own))]
        ends = [f" {score:.2f}" for score in shown.scores] or [""] * len(own)
        tags = [own[box] + ends[box] if box in mistakes else "" for box in range(len(own))]
        listed = ", ".join(f"{name} x{n}" for name, n in Counter(own[box] for box in sorted(mistakes)).most_common())
        words = [TextRun(f"{len(own) - len(mistakes)} right", _RIGHT), TextRun("   ", None)]
        words += [TextRun(f"{len(mistakes)} {verdict}", colour), TextRun(f": {listed}", None)] if mistakes else []
        yield Cell(shown, colours, tags, words, heading)


def _mistakes(sample: Sample, found: Detections) -> tuple[set[int], set[int]]:
    """The wrong detections and the missed boxes, by index.

    Groups cannot be missed; a detection of a name that may have more boxes, or that nobody looked for, is not wrong.
    """
    boxes, labels = sample.box_phrases, found.labels.tolist()
    near = iou(found.boxes, sample.boxes, inclusive=False) >= _OVERLAP
    same = torch.tensor([[label in own for own in boxes] for label in labels], dtype=torch.bool)
    hits = same.reshape(near.shape) & near
    known = set(range(len(found.prompt.phrases if sample.prompt else sample.vocabulary)))
    if sample.prompt is None and sample.absent is not None:
        known = set().union(*boxes, sample.absent)
    known -= set(sample.incomplete)
    wrong = {index for index, label in enumerate(labels) if label in known and not hits[index].any()}
    missed = {box for box, own in enumerate(boxes) if own and box not in sample.crowd and not hits[:, box].any()}
    return wrong, missed


def found_sample(sample: Sample, found: Detections) -> Sample:
    """The same image with its detections and their scores in place of the ground truth."""
    return replace(
        sample,
        prompt=found.prompt,
        vocabulary=(),
        boxes=found.boxes,
        box_phrases=tuple((label,) for label in found.labels.tolist()),
        scores=tuple(found.scores.tolist()),
        crowd=(),
    )


def draw_epochs(validation: Sequence[float], loss: Sequence[float], path: Path) -> None:
    """A tuning epoch by epoch: validation from before the first epoch on, and the loss."""
    with _axes(path, 9, 3.5, columns=2) as (left, right):
        left.plot(range(len(validation)), validation, marker=".")
        left.set(title="AP on validation", xlabel="epoch (0: before tuning)", ylabel="AP", ylim=(0, None))
        right.plot(range(1, len(loss) + 1), loss, marker=".", color="C1")
        right.set(title="training loss", xlabel="epoch", ylabel="mean over the steps", ylim=(0, None))
        for panel in (left, right):
            panel.xaxis.get_major_locator().set_params(integer=True)


def draw_by_shots(
    curves: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]],
    path: Path,
    *,
    shots: Sequence[str],
    figure: str,
    title: str,
) -> None:
    """Mean and spread by shots, a line for each model and mode (the paper's Figure 4).

    ``curves`` give by (model, mode), and by shots ("1", "5", "all"), mean and standard deviation of a ``figure``;
    ``shots`` are in the order of the axis.
    """
    models, modes = (list(dict.fromkeys(key[part] for key in curves)) for part in (0, 1))
    with _axes(path, 8.5, 4.5) as (axes,):
        for place, ((model, mode), points) in enumerate(curves.items()):
            means, spreads = zip(*points.values(), strict=True)
            # Side by side around the place of their shots: markers of equal height stay readable.
            x = [shots.index(name) + 0.03 * (place - (len(curves) - 1) / 2) for name in points]
            style: dict[str, Any] = {
                "marker": "os^vD"[models.index(model) % 5],
                "linestyle": ("-", "--", ":", "-.")[models.index(model) % 4],
                "color": f"C{modes.index(mode)}",
                "label": f"{mode}, {_short(model)}" if len(models) > 1 else mode,
            }
            axes.errorbar(x, means, yerr=spreads, capsize=3, **style)
        axes.set(xlabel="shots per class", ylabel=figure, ylim=(0, 1), xlim=(-0.5, len(shots) - 0.5))
        axes.set_xticks(range(len(shots)), shots)
        axes.set_title(_without_formulas(title), fontsize="medium", wrap=True)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_confidence(names: Sequence[str], rankings: Sequence[Ranking], path: Path) -> None:
    """F1, precision and recall at IoU 0.5 by the score threshold: of all classes together, and of the most frequent."""
    order = sorted(range(len(names)), key=lambda index: -len(rankings[index].boxes))
    lines = [(_short(names[index]), rankings[index], dict[str, Any](linewidth=1.0)) for index in order[:_CURVES]]
    lines.append(("all classes", every := pooled(rankings), {"linewidth": 2.5, "color": "black"}))
    titles = {"F1": 3, "precision": 1, "recall": 2}  # and their places in a ranking's curves
    with _axes(path, 15, 4.5, columns=3) as panels:
        for axes, (title, place) in zip(panels, titles.items(), strict=True):
            for label, ranking, style in lines if len(every.scores) else ():
                scores, values = ranking.curves()[0], ranking.curves()[place]
                x, y = np.append(scores, 0.0)[::-1], np.append(values, values[-1:])[::-1]  # the same down to 0
                axes.plot(x[: len(y)], y, drawstyle="steps-pre", label=label, **style)
            axes.set(title=title, xlabel="score threshold", ylabel=title, xlim=(0, 1), ylim=(0, 1.05))
        if every.best:
            panels[0].set_title("F1: best {F1:.2f} at {threshold:.2f} over all classes".format(**every.best))
            panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")


def draw_absent(found: FalsePositives, path: Path) -> None:
    """Image-level figures by the score threshold: false positive rate, recall and MCC."""
    x = np.linspace(0.0, 1.0, 101)
    levels = [found.image_level(threshold) for threshold in x.tolist()]
    titles = {"IL_recall": "recall (name present)", "IL_FPR": "false positive rate (name absent)", "IL_MCC": "MCC"}
    with _axes(path, 8.5, 4.5) as (axes,):
        for figure, title in titles.items():
            axes.plot(x, [level[figure] for level in levels], label=title)
        axes.set(title="any detection of a name in an image", xlabel="score threshold", ylabel="share of pairs, or MCC")
        axes.set(xlim=(0, 1), ylim=(0, 1.05))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_confusion(names: Sequence[str], table: np.ndarray, threshold: float, path: Path) -> None:
    """A confusion matrix as ``coco.confusion`` counts it: a column for each true name, coloured by its shares."""
    order = np.argsort(-table[:, :-1].sum(0), kind="stable")
    labels = [_short(names[index]) for index in order[:_CELLS]]
    place = np.full(len(names) + 1, len(labels))
    place[order[:_CELLS]] = np.arange(len(labels))
    if len(names) > _CELLS:
        labels.append(f"{len(names) - _CELLS} others")
        place[-1] += 1
    labels.append("background")
    groups = np.eye(len(labels), dtype=int)[place]
    shown = groups.T @ table @ groups
    side = 3 + 0.4 * len(labels)
    with _axes(path, side + 0.5, side) as (axes,):
        axes.imshow(shown / np.maximum(shown.sum(0), 1), cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(shown).tolist():
            dark = shown[row, column] > shown[:, column].sum() / 2
            style = {"ha": "center", "va": "center", "fontsize": "x-small", "color": "white" if dark else "black"}
            axes.text(column, row, shown[row, column], **style)
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="ground truth", ylabel="found")
        axes.set_title(f"found at threshold {threshold:.2f}, IoU 0.5", fontsize="medium")


def _short(name: str) -> str:
    """A name in a crowded place of a figure."""
    return _without_formulas(name if len(name) < 25 else f"{name[:23]}...")


def _without_formulas(name: str) -> str:
    """A name as matplotlib shows it: without formulas and control characters."""
    return legible(name)[0].replace("$", r"\$")


@contextmanager
def _axes(path: Path, width: float, height: float, *, columns: int = 1) -> Iterator[Any]:
    """Axes side by side, written to ``path`` at the end; width and height are in inches."""
    with figure(path, width, height) as canvas:
        yield canvas.subplots(1, columns, squeeze=False)[0]
