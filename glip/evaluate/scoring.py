"""The predictions for a set -> its report: figures, tables, results in the standard formats, images on request."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from glip.config import ModelConfig
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate.benchmark import Benchmark
from glip.evaluate.coco import STATS, score_results
from glip.evaluate.false_positives import RATES, false_positives
from glip.evaluate.figures import draw_curves, draw_worst
from glip.evaluate.ground_truth import GroundTruth, LvisTruth
from glip.evaluate.lvis import BestOfCategories, fixed_ap, standard_ap
from glip.evaluate.phrases import (
    PhraseRecall,
    caption_recall,
    caption_truth,
    prediction_row,
    ranked_boxes,
    read_predictions,
)
from glip.evaluate.report import Report, Row, Table
from glip.evaluate.results import UNKNOWN, Results, concatenate, read_results, results_of, write_results
from glip.evaluate.run import Prediction, QueryOptions
from glip.evaluate.store import PredictionStore
from glip.files import write_json

PER_IMAGE = 300  # detections of an image that LVIS's standard AP counts


def score(
    benchmark: Benchmark,
    store: PredictionStore,
    config: ModelConfig,
    options: QueryOptions,
    folder: Path,
    *,
    draw: bool = False,
) -> Report:
    """Score the predictions for a set, and write its report, its results and, on request, its images.

    Args:
        benchmark: the set and the protocol.
        store: a prediction for each of its samples.
        config: of the model that made them.
        options: with which they were made.
        folder: where everything is written.
        draw: also draw curves, scores and the worst images.

    Raises:
        DataError: predictions are missing, or there is nothing to score.
    """
    samples = benchmark.samples
    store.reload()  # with what other processes have written
    missing = len(set(range(len(samples))) - store.done)
    if missing:
        raise DataError(
            f"{missing} of {len(samples)} samples of {benchmark.name!r} have no prediction in {store.folder}: run the "
            "same command again; several machines need one --out that all of them can read"
        )
    skipped = SkipCounter()
    skipped.merge(benchmark.read.skipped)

    def stored() -> Iterator[Prediction]:  # read again each time: those for a large set need not fit into memory
        return store.read(samples, options)

    for prediction in stored():
        if prediction.found is None:
            skipped.add(prediction.reason, prediction.place)
    report = Report(config.name, benchmark.name, benchmark.protocol, len(samples), benchmark.trained_on(config))
    curves = folder / "curves.png" if draw else None
    if any(sample.prompt is None for sample in samples):
        truth = benchmark.ground_truth(skipped)
        parts = _as_results(benchmark, truth, stored(), inclusive=config.inference.inclusive)
        if isinstance(truth, LvisTruth):
            results, best = _best_of(parts, len(truth.categories))
            _score_lvis(report, truth, results, best)
        else:
            results = concatenate(list(parts))
            _score_coco(report, truth, results, curves)
        write_results(folder / "results.json", results, truth.images, truth.categories)
    if any(sample.prompt for sample in samples):
        _score_captions(report, (prediction for prediction in stored() if prediction.sample.prompt), folder)
    report.write(folder, skipped)
    if draw:
        found = ((one.index, one.sample, one.found) for one in stored() if one.found is not None)
        draw_worst(found, benchmark.read.samples, config.inference.threshold, folder / "worst.png")
    return report


def score_file(benchmark: Benchmark, file: Path, folder: Path, *, draw: bool = False) -> Report:
    """Score a file of results in the standard format without any model.

    For a set with captions and lists of names the protocol says which are scored.

    Raises:
        FileNotFoundError: no such file.
        DataError: not results of this set.
    """
    skipped = SkipCounter()
    skipped.merge(benchmark.read.skipped)
    report = Report(file.name, benchmark.name, benchmark.protocol, len(benchmark.samples), "unknown")
    if benchmark.protocol in ("any-box", "merged-boxes"):
        truths = [caption_truth(sample) for sample in benchmark.samples if sample.prompt]
        boxes = read_predictions(file, truths, skipped)
        _add_recall(report, caption_recall(zip(truths, boxes, strict=True), protocol=benchmark.protocol))
    else:
        truth = benchmark.ground_truth(skipped)
        results = read_results(file, truth.images, truth.categories, skipped)
        if isinstance(truth, LvisTruth):
            if np.bincount(results.images).max() == PER_IMAGE:
                skipped.add("image whose results end at 300: Fixed AP is of those only", "the file")
            _score_lvis(report, truth, results, results)
        else:
            _score_coco(report, truth, results, folder / "curves.png" if draw else None)
    report.write(folder, skipped)
    return report


# ---- lists of names


def _as_results(
    benchmark: Benchmark, truth: GroundTruth, predictions: Iterable[Prediction], *, inclusive: bool
) -> Iterator[Results]:
    """Predictions under the images and categories of the ground truth, image by image."""
    if benchmark.config.format in ("coco", "lvis"):
        place = {number: index for index, number in enumerate(truth.images)}
        label = {number: index for index, number in enumerate(truth.categories)}
        labels = [label.get(number, UNKNOWN) for number in benchmark.read.ids]
        inclusive = inclusive and benchmark.protocol != "lvis"
        for one in predictions:
            if one.found is not None:
                yield results_of(one.found, place[one.sample.image_id], labels, inclusive=inclusive)
        return
    labels_of = lru_cache(truth.labels_of)
    for one in predictions:
        if one.found is not None and one.sample.prompt is None:
            yield results_of(one.found, one.index, labels_of(one.sample.vocabulary))


def _best_of(parts: Iterable[Results], categories: int) -> tuple[Results, Results]:
    """The first 300 results of each image, which are the best, for standard AP; the best per category for Fixed AP."""
    best, top = BestOfCategories(categories), list[Results]()
    for part in parts:
        best.add(part)
        top.append(part.select(np.arange(min(len(part), PER_IMAGE))))
    return concatenate(top), best.results()


def _score_coco(report: Report, truth: GroundTruth, results: Results, curves: Path | None) -> None:
    scored = score_results(truth, results)
    report.figures |= dict(zip(STATS, scored.stats, strict=True))
    report.figures |= dict(zip(("AP50 low (95 %)", "AP50 high (95 %)"), scored.interval() or (), strict=False))
    rows: list[Row] = [
        {"name": row.name, "boxes": row.boxes, "AP": row.ap, "AP50": row.ap50} for row in scored.categories
    ]
    report.tables.append(Table("Per category", rows))
    _add_false_positives(report, truth, results, lambda kept: score_results(truth, kept).stats)
    if curves:
        draw_curves(truth.names, scored.rankings, curves)


def _score_lvis(report: Report, truth: LvisTruth, results: Results, best: Results) -> None:
    fixed, standard = fixed_ap(truth, best), standard_ap(truth, results)
    report.figures |= {f"Fixed {name}": value for name, value in zip(fixed.names, fixed.stats, strict=True)}
    report.figures |= dict(zip(standard.names, standard.stats, strict=True))
    rows: list[Row] = [
        {
            "name": own.name,
            "frequency": own.frequency,
            "boxes": own.boxes,
            "Fixed AP": own.ap,
            "AP": other.ap,
            "AP50": other.ap50,
        }
        for own, other in zip(fixed.categories, standard.categories, strict=True)
    ]
    report.tables.append(Table("Per category", rows))
    _add_false_positives(report, truth, results, lambda kept: standard_ap(truth, kept).stats)


def _add_false_positives(
    report: Report, truth: GroundTruth, results: Results, stats: Callable[[Results], Sequence[float]]
) -> None:
    """AP where absent names are rarely detected; ``stats`` computes AP, AP50, ... of results."""
    found = false_positives(truth, results)
    if found is None:
        return
    rows, known = [], results.select(results.categories != UNKNOWN)
    for allowed in RATES:
        threshold = found.threshold_at(allowed)
        ap, ap50, *_ = stats(known.select(known.scores >= threshold))
        report.figures[f"AP at false positive rate {allowed:g}"] = ap
        row = {"false positive rate at most": allowed, "threshold": threshold, "rate": found.rate(threshold)}
        rows.append({**row, "AP": ap, "AP50": ap50})
    report.tables.append(Table("False positives on absent names", rows))
    curve = [{"threshold": step / 20, "rate": found.rate(step / 20)} for step in range(1, 20)]
    report.tables.append(Table("False positive rate by threshold", curve))


# ---- captions


def _score_captions(report: Report, predictions: Iterable[Prediction], folder: Path) -> None:
    """Skipped captions count as having no detection: leaving them out would raise the recall."""
    truths, boxes = [], []
    for one in predictions:
        truths.append(caption_truth(one.sample))
        nothing = [torch.zeros(1, 4)] * len(truths[-1].phrases)
        boxes.append(nothing if one.found is None else ranked_boxes(one.sample, one.found))
    pairs = list(zip(truths, boxes, strict=True))
    write_json(folder / "groundings.json", [prediction_row(truth, ranked) for truth, ranked in pairs])
    protocol = "merged-boxes" if report.protocol == "merged-boxes" else "any-box"
    _add_recall(report, caption_recall(pairs, protocol=protocol))


def _add_recall(report: Report, recall: PhraseRecall) -> None:
    report.figures |= _ranks(recall)
    kinds = {"all": recall, **recall.kinds}
    rows: list[Row] = [{"phrases of": kind, "phrases": one.phrases, **_ranks(one)} for kind, one in kinds.items()]
    report.tables.append(Table("Recall of phrases", rows))


def _ranks(recall: PhraseRecall) -> dict[str, float]:
    return {**{f"R@{rank}": value for rank, value in recall.at.items()}, "upper bound": recall.upper_bound}
