"""Scoring: from stored predictions, or a file of results, to a report, results in the standard formats and images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from glip.config import ModelConfig
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate import columns
from glip.evaluate.benchmark import SCORERS, Benchmark
from glip.evaluate.coco import BEST, Score, confusion, pooled, score_results, thresholds_by_name
from glip.evaluate.columns import UNKNOWN, GroundTruth, LvisTruth, Results
from glip.evaluate.expressions import (
    EXPRESSIONS,
    Pair,
    expression_row,
    found_of,
    grec_by_threshold,
    grec_figures,
    precision,
    read_found,
)
from glip.evaluate.false_positives import AT, RATES, FalsePositives, false_positives
from glip.evaluate.figures import draw_absent, draw_confidence, draw_confusion, draw_curves, draw_worst
from glip.evaluate.lvis import BestOfCategories, fixed_ap, standard_ap
from glip.evaluate.ovdeval import nms_figures
from glip.evaluate.phrases import PhraseRecall, caption_recall, prediction_row, ranked_boxes, read_predictions
from glip.evaluate.report import ENDS, NOTHING, Report, Row
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions
from glip.files import write_json
from glip.options import read_thresholds
from glip.structures import Sample

CURVES, CONFIDENCE, CONFUSION, WORST = "curves.png", "confidence.png", "confusion.png", "worst.png"
ABSENT = "absent.png"
PER_IMAGE = 300  # detections of an image that LVIS's standard AP counts
Limits = Callable[[Sequence[str]], list[float]]  # the lowest scores of classes
Predictions = Iterable[tuple[Sample, Prediction]]


def score(
    benchmark: Benchmark,
    store: PredictionStore,
    config: ModelConfig,
    options: QueryOptions,
    folder: Path,
    *,
    draw: bool = False,
) -> Report:
    """Score the predictions for a set, and write its report, its results and, with ``draw``, curves and images.

    ``config`` is of the model that made them, ``options`` are with which they were made.

    Raises:
        DataError: predictions are missing, or there is nothing to score.
    """
    samples, skipped = benchmark.read.samples, SkipCounter()
    kinds = {sample.prompt is not None for sample in samples}
    store.reload()  # with what other processes have written
    if missing := len(samples) - len(store.done):
        raise DataError(
            f"{missing} of {len(samples)} samples of {benchmark.name!r} have no prediction in {store.folder}: run the "
            "same command again; several machines need one --out that all of them can read"
        )
    skipped.merge(benchmark.read.skipped)
    if options.left_out:
        skipped.add("text that the model cannot read: not asked for", min(options.left_out), len(options.left_out))

    def stored(*, captions: bool) -> Predictions:
        """Read again each time: those for a large set need not fit into memory."""
        return (pair for pair in store.read(samples, options) if (pair[0].prompt is not None) == captions)

    for _, one in store.read(samples, options):
        if one.found is None:
            skipped.add(one.reason, one.place)
    report = Report(config.name, benchmark.name, benchmark.protocol, len(samples), benchmark.trained_on(config))
    own = benchmark.protocol in SCORERS
    if own or False in kinds:
        truth, chosen = benchmark.ground_truth(skipped), store.read(samples, options) if own else stored(captions=False)
        results, best = _as_results(benchmark, truth, chosen, inclusive=config.inference.inclusive)
        limits = partial(_thresholds, config, options)
        _score_boxes(report, benchmark, truth, results, best, folder if draw else None, limits)
        described = benchmark.protocol == "omnilabel"
        columns.write_results(folder / "results.json", results, truth.images, truth.categories, described=described)
    if True in kinds and not own:
        _score_captions(report, stored(captions=True), folder / "groundings.json")
    if draw:
        every = store.read(samples, options)
        found = ((one.index, sample, one.found) for sample, one in every if one.found is not None)
        draw_worst(found, samples, config.inference.threshold, folder / WORST)
        report.plots += [WORST] * (folder / WORST).is_file()
    report.write(folder, skipped)
    return report


def _thresholds(config: ModelConfig, options: QueryOptions, names: Sequence[str]) -> list[float]:
    """The lowest score of each class that the model, or its task, returns by itself."""
    usual, stored = config.inference.threshold, config.thresholds
    asked = (options.prompt_of([name]) for name in names)
    return [read_thresholds(None, prompt, usual, stored)[0].item() for prompt in asked]


def score_file(benchmark: Benchmark, file: Path, folder: Path, *, draw: bool = False) -> Report:
    """Score a file of results in the standard format without any model.

    For a set with captions and lists of names the protocol says which are scored.

    Raises:
        FileNotFoundError: no such file.
        DataError: not results of this set.
    """
    skipped = SkipCounter()
    skipped.merge(benchmark.read.skipped)
    report = Report(file.name, benchmark.name, benchmark.protocol, len(benchmark.read.samples), "unknown")
    if benchmark.protocol in ("any-box", "merged-boxes"):
        captions = [sample for sample in benchmark.read.samples if sample.prompt]
        boxes = read_predictions(file, captions, skipped)
        _add_recall(report, caption_recall(zip(captions, boxes, strict=True), protocol=benchmark.protocol))
    elif benchmark.protocol in EXPRESSIONS:
        samples = benchmark.read.samples
        _add_expressions(report, list(zip(samples, read_found(file, samples, skipped), strict=True)))
    else:
        truth = benchmark.ground_truth(skipped)
        results = columns.read_results(file, truth.images, truth.categories, skipped)
        if isinstance(truth, LvisTruth) and np.bincount(results.images, minlength=1).max() == PER_IMAGE:
            skipped.add("image whose results end at 300: Fixed AP is of those only", "the file")
        _score_boxes(report, benchmark, truth, results, results, folder if draw else None)
    report.write(folder, skipped)
    return report


def _as_results(
    benchmark: Benchmark, truth: GroundTruth, predictions: Predictions, *, inclusive: bool
) -> tuple[Results, Results]:
    """Predictions under the images and categories of the ground truth, and those of which Fixed AP is computed.

    In LVIS these are the first 300 of each image, which are the best, and the best of each category.
    """
    place = {number: index for index, number in enumerate(truth.images)}
    label = {number: index for index, number in enumerate(truth.categories)}
    is_lvis, own_labels = isinstance(truth, LvisTruth), lru_cache(partial(columns.labels_of, truth.names))
    best, top = BestOfCategories(len(truth.categories)), list[Results]()
    for sample, one in predictions:
        if one.found is None:
            continue
        if benchmark.read.annotations:
            ids = [label.get(number, UNKNOWN) for number in benchmark.read.ids_of(sample)]
            wider = inclusive and benchmark.protocol == "coco"
            part = columns.results_of(one.found, place[sample.image_id], ids, inclusive=wider)
            if benchmark.protocol == "saco":  # fractions of the sides, as in its files
                part = replace(part, boxes=part.boxes / np.tile(one.found.size[::-1], 2))
        else:
            part = columns.results_of(one.found, one.index, own_labels(sample.vocabulary))
        if is_lvis:
            best.add(part)
            part = part.select(np.arange(min(len(part), PER_IMAGE)))
        top.append(part)
    results = columns.concatenate(top)
    return results, best.results() if is_lvis else results


def _score_boxes(
    report: Report,
    benchmark: Benchmark,
    truth: GroundTruth,
    results: Results,
    best: Results,
    folder: Path | None,
    limits: Limits | None = None,
) -> None:
    """A benchmark's own figures; else AP, and how it falls where false positives are rare, drawn in a folder."""
    if scorer := SCORERS.get(benchmark.protocol):
        figures, tables = scorer.score(truth, results)
        report.figures |= figures
        report.tables |= tables
        return
    if isinstance(truth, LvisTruth):
        score_some: Callable[[Results], Score] = partial(standard_ap, truth)
        scored, fixed = score_some(results), fixed_ap(truth, best)
        report.figures |= {f"Fixed {name}": value for name, value in fixed.figures.items()} | dict(scored.figures)
        rows: list[Row] = [
            {**{key: own[key] for key in ("name", "frequency", "boxes")}, "Fixed AP": own["AP"]}
            | {key: other[key] for key in ("AP", "AP50")}
            for own, other in zip(fixed.categories, scored.categories, strict=True)
        ]
    else:
        official = benchmark.protocol == "ovdeval"
        score_some = partial(score_results, truth, as_filed=official)
        report.figures |= nms_figures(truth, results) if official else {}
        report.score = scored = score_some(results)
        report.figures |= dict(scored.figures)
        for figure in ("AP", "AP50"):
            report.figures |= dict(
                zip((f"{figure} {end}" for end in ENDS), scored.interval(figure) or (), strict=False)
            )
        rows = list(scored.categories)
    report.tables["Per category"] = rows
    if report.score:
        _add_thresholds(report, benchmark, truth, results, folder, limits)
    if found := false_positives(truth, results):
        _add_absent(report, truth, found, results, score_some)
        if folder:
            draw_absent(found, folder / ABSENT)
            report.plots.append(ABSENT)


def _add_absent(
    report: Report,
    truth: GroundTruth,
    found: FalsePositives,
    results: Results,
    score_some: Callable[[Results], Score],
) -> None:
    """What happens where a name is absent: AP where false positives are rare, image-level figures, by class too."""
    rates, known = list[Row](), results.select(results.categories != UNKNOWN)
    for allowed in RATES:
        threshold = found.threshold_at(allowed)
        scored = score_some(known.select(known.scores >= threshold))
        report.figures[f"AP at false positive rate {allowed:g}"] = scored.ap
        row = {"false positive rate at most": allowed, "threshold": threshold, "rate": found.rate(threshold)}
        rates.append({**row, "AP": scored.ap, "AP50": scored.ap50})
    level = found.image_level(AT)
    report.figures |= {figure: level[figure] for figure in ("IL_MCC", "IL_F1", "IL_FPR")}
    report.figures["images with a false positive"] = found.image_rate(AT)
    report.tables["False positives on absent names"] = rates
    report.tables["Image-level figures by threshold"] = [
        {"threshold": step / 20, **found.image_level(step / 20), "images": found.image_rate(step / 20)}
        for step in range(1, 20)
    ]
    report.tables[f"Image-level figures by class (threshold {AT})"] = [
        {"name": name, **found.image_level(AT, index)} for index, name in enumerate(truth.names)
    ]


def _add_thresholds(
    report: Report,
    benchmark: Benchmark,
    truth: GroundTruth,
    results: Results,
    folder: Path | None,
    limits: Limits | None,
) -> None:
    """F1 at the thresholds of the model, and the best ones, of each class and of all together; drawn in a folder."""
    assert report.score
    names, rankings, nothing = truth.names, report.score.rankings, dict.fromkeys(BEST, NOTHING)
    every = pooled(rankings)
    listed = [("all classes", every), *zip(names, rankings, strict=True)]
    if benchmark.read.annotations:  # the file's names as they are asked for
        asked = dict(zip(benchmark.read.ids, benchmark.read.vocabulary, strict=True))
        names = tuple(asked.get(number, name) for number, name in zip(truth.categories, names, strict=True))
    if limits:
        lowest = limits(names)
        cut = [one.above(limit) for one, limit in zip(rankings, lowest, strict=True)]
        stated: list[float | str] = ["", *lowest]
        rows = zip(("all classes", *truth.names), stated, (pooled(cut), *cut), strict=True)
        report.tables["At the thresholds of the model (IoU 0.5)"] = [
            {"name": name, "threshold": limit, **one.shares} for name, limit, one in rows
        ]
    report.tables["Threshold of best F1 on these very images (IoU 0.5)"] = [
        {"name": name, **(one.best or nothing)} for name, one in listed
    ]
    report.thresholds = thresholds_by_name(zip(names, rankings, strict=True))
    if folder:
        threshold = every.best.get("threshold", 0.5)
        draw_curves(truth.names, rankings, folder / CURVES)
        draw_confidence(truth.names, rankings, folder / CONFIDENCE)
        draw_confusion(truth.names, confusion(truth, results, threshold), threshold, folder / CONFUSION)
        report.plots += [CURVES, CONFIDENCE, CONFUSION]


def _score_captions(report: Report, predictions: Predictions, file: Path) -> None:
    """Score what was found for captions, and write it."""
    if report.protocol in EXPRESSIONS:
        answers = [(sample, found_of(sample, one.found)) for sample, one in predictions]
        write_json(file, [expression_row(sample, found) for sample, found in answers if found])
        _add_expressions(report, answers)
    else:
        pairs = [(sample, ranked_boxes(sample, one.found)) for sample, one in predictions]
        write_json(file, [prediction_row(sample, ranked) for sample, ranked in pairs])
        _add_recall(report, caption_recall(pairs, protocol=report.protocol))


def _add_expressions(report: Report, pairs: Sequence[Pair]) -> None:
    if report.protocol == "grefcoco":
        report.figures |= grec_figures(pairs)
        report.tables["By score threshold"] = grec_by_threshold(pairs)
    else:
        found = precision(pairs)
        report.figures |= found["all"]
        report.tables["Precision"] = [{"expressions of": name, **own} for name, own in found.items()]


def _add_recall(report: Report, recall: PhraseRecall) -> None:
    report.figures |= recall.figures
    kinds = {"all": recall, **recall.kinds}
    report.tables["Recall of phrases"] = [
        {"phrases of": kind, "phrases": one.phrases, **one.figures} for kind, one in kinds.items()
    ]
