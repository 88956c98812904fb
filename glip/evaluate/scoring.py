"""The answers for a set -> its report: figures, tables, results in the standard formats, images on request."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from glip.config import ModelConfig
from glip.data.sets import CocoFile, SkipCounter
from glip.errors import DataError
from glip.evaluate.benchmark import LVIS_KEPT, Benchmark, answered, count_passed_over
from glip.evaluate.coco import STATS, Ranking, Score, score_results
from glip.evaluate.false_positives import false_positives, operating_points
from glip.evaluate.figures import draw_curves, draw_worst
from glip.evaluate.flickr import prediction_row, read_predictions
from glip.evaluate.ground_truth import GroundTruth, LvisTruth, read_coco_truth, read_lvis_truth, truth_of
from glip.evaluate.journal import Journal
from glip.evaluate.lvis import BestOfCategories, LvisScore, fixed_ap, standard_ap
from glip.evaluate.phrases import PhraseRecall, caption_recall, caption_truth, ranked_boxes
from glip.evaluate.report import Report, Row, Table
from glip.evaluate.results import UNKNOWN, Results, concatenate, read_results, results_of, rows_of
from glip.evaluate.run import QueryOptions
from glip.files import atomic_write
from glip.structures import Detections, Sample

RESULTS, GROUNDINGS = "results.json", "groundings.json"
Found = tuple[int, Sample, Detections]  # number of a sample, the sample, what was found in it


@dataclass(frozen=True)
class Scored:
    """Figures by name, the tables behind them, and for lists of names what curves are drawn of."""

    figures: dict[str, float]
    tables: tuple[Table, ...] = ()
    names: tuple[str, ...] = ()
    rankings: tuple[Ranking, ...] = ()


def score(
    exam: Benchmark, journal: Journal, config: ModelConfig, options: QueryOptions, folder: Path, *, draw: bool = False
) -> Report:
    """Score the answers of a set, and write its report, its results and, if asked for, its images.

    Args:
        exam: the set and the protocol.
        journal: an answer for each of its samples.
        config: of the model that gave them.
        options: how they were asked for.
        folder: where all is written.
        draw: also draw curves, scores and the worst images.

    Raises:
        ValueError: nothing to score with.
    """
    missing = len(set(range(len(exam.samples))) - journal.done)
    if missing:
        raise DataError(
            f"{missing} of {len(exam.samples)} samples of {exam.name!r} have no answer in {journal.folder}: run the "
            "same command again; several machines need one --out that all of them see"
        )
    tally = SkipCounter()
    tally.merge(exam.read.skipped)
    count_passed_over(journal, tally)

    def found() -> Iterator[Found]:  # read anew each time: the answers for a large set need not fit into memory
        return answered(journal, exam.samples, options)

    parts: list[Scored] = []
    if any(sample.prompt is None for sample in exam.samples):
        listed = ((n, s, d) for n, s, d in found() if s.prompt is None)
        parts.append(_score_lists(exam, listed, folder, tally, inclusive=config.inference.inclusive))
    if any(sample.prompt for sample in exam.samples):
        said = {number: detections for number, sample, detections in found() if sample.prompt}
        pairs = [(sample, said.get(number)) for number, sample in enumerate(exam.samples) if sample.prompt]
        parts.append(_score_captions(exam, pairs, folder))
    report = _report(exam, config.name, parts, tally, seen=exam.seen_in(config.trained_on))
    report.write(folder)
    if draw:
        _draw(parts, folder)
        draw_worst(found(), exam.read.samples, config.inference.threshold, folder / "worst.png")
    return report


def score_file(exam: Benchmark, file: Path, folder: Path, *, draw: bool = False) -> Report:
    """Score a file of results in the standard format without any model.

    Of a set with captions and lists of names the protocol says which are scored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not results of this set.
    """
    tally = SkipCounter()
    tally.merge(exam.read.skipped)
    if exam.protocol in ("any-box", "merged-boxes"):
        truths = [caption_truth(sample) for sample in exam.samples if sample.prompt]
        boxes = read_predictions(file, truths, tally)
        parts = [_recall(caption_recall(zip(truths, boxes, strict=True), protocol=exam.protocol))]
    elif exam.protocol == "lvis":
        truth = read_lvis_truth(_annotations(exam), tally)
        results = read_results(file, truth.images, truth.categories, tally)
        if np.bincount(results.images).max() == LVIS_KEPT:
            tally.add("image whose results end at 300: Fixed AP is of those only", "the file")
        parts = [_lvis(truth, results, fixed_ap(truth, results))]
    else:
        coco = read_coco_truth(_annotations(exam), tally) if exam.annotations else truth_of(exam.samples)
        parts = [_coco(coco, read_results(file, coco.images, coco.categories, tally))]
    report = _report(exam, file.name, parts, tally, seen=False)
    report.write(folder)
    if draw:
        _draw(parts, folder)
    return report


def _draw(parts: Sequence[Scored], folder: Path) -> None:
    for part in parts:
        if part.rankings:
            draw_curves(part.names, part.rankings, folder / "curves.png")


# ---- lists of names


def _score_lists(
    exam: Benchmark, found: Iterable[Found], folder: Path, tally: SkipCounter, *, inclusive: bool
) -> Scored:
    if exam.protocol == "lvis":
        return _score_lvis(exam, found, folder, tally)
    if exam.annotations is None:
        truth = truth_of(exam.samples)
        labels = lru_cache(truth.labels_of)
        parts = [results_of(d, number, labels(sample.vocabulary)) for number, sample, d in found]
    else:
        truth = read_coco_truth(_annotations(exam), tally)
        parts = list(_official(found, exam, truth, inclusive=inclusive))
    results = concatenate(parts)
    _write_rows(results, truth, folder / RESULTS)
    return _coco(truth, results)


def _official(found: Iterable[Found], exam: Benchmark, truth: GroundTruth, *, inclusive: bool) -> Iterator[Results]:
    """The answers under the ids of the annotation file."""
    place = {number: index for index, number in enumerate(truth.images)}
    label = {number: index for index, number in enumerate(truth.categories)}
    labels = [label.get(number, UNKNOWN) for number in exam.read.ids]
    for _, sample, detections in found:
        yield results_of(detections, place[sample.image_id], labels, inclusive=inclusive)


def _coco(truth: GroundTruth, results: Results) -> Scored:
    scored = score_results(truth, results)
    names = ("AP50 low (95 %)", "AP50 high (95 %)")
    interval = dict(zip(names, scored.interval() or (), strict=False))
    figures = {**dict(zip(STATS, scored.stats, strict=True)), **interval}
    more = _false_positives(truth, results, lambda kept: score_results(truth, kept).stats[:2])
    tables = (_categories(scored), *more.tables)
    return Scored({**figures, **more.figures}, tables, truth.names, scored.rankings)


def _categories(scored: Score) -> Table:
    rows: list[Row] = [
        {"name": row.name, "boxes": row.boxes, "AP": row.ap, "AP50": row.ap50} for row in scored.categories
    ]
    return Table("Per category", tuple(rows))


def _false_positives(truth: GroundTruth, results: Results, ap: Callable[[Results], Sequence[float]]) -> Scored:
    """AP where names that are not there are rarely drawn to something; ``ap`` gives AP and AP50 of results."""
    found = false_positives(truth, results)
    if found is None:
        return Scored({})
    points = operating_points(results, found, ap)
    figures = {f"AP at false positive rate {point.allowed:g}": point.ap for point in points}
    rows: list[Row] = [
        {
            "false positive rate at most": point.allowed,
            "threshold": point.threshold,
            "rate": point.rate,
            "AP": point.ap,
            "AP50": point.ap50,
        }
        for point in points
    ]
    curve: list[Row] = [{"threshold": t, "rate": found.rate(t)} for t in (i / 20 for i in range(1, 20))]
    title = "Names that are not in the image, but drawn to something"
    return Scored(figures, (Table(title, tuple(rows)), Table("False positive rate by threshold", tuple(curve))))


def _score_lvis(exam: Benchmark, found: Iterable[Found], folder: Path, tally: SkipCounter) -> Scored:
    truth = read_lvis_truth(_annotations(exam), tally)
    best, top = BestOfCategories(len(truth.categories)), list[Results]()
    for part in _official(found, exam, truth, inclusive=False):
        best.add(part)
        top.append(part.select(np.arange(min(len(part), LVIS_KEPT))))  # best first: what the standard AP looks at
    results = concatenate(top)
    _write_rows(results, truth, folder / RESULTS)
    return _lvis(truth, results, fixed_ap(truth, best.results()))


def _lvis(truth: LvisTruth, results: Results, fixed: LvisScore) -> Scored:
    standard = standard_ap(truth, results)
    figures = {f"Fixed {name}": value for name, value in zip(fixed.names, fixed.stats, strict=True)}
    figures |= dict(zip(standard.names, standard.stats, strict=True))
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
    more = _false_positives(truth, results, lambda kept: standard_ap(truth, kept).stats[:2])
    return Scored({**figures, **more.figures}, (Table("Per category", tuple(rows)), *more.tables))


def _annotations(exam: Benchmark) -> Path | CocoFile:
    """The annotation file as it was parsed when the samples were read, else its path."""
    found = exam.read.annotations or exam.annotations
    assert found is not None
    return found


def _write_rows(results: Results, truth: GroundTruth, path: Path) -> None:
    """Results in COCO's format, a row in a line."""
    with atomic_write(path) as file:
        file.write("[")
        for number, row in enumerate(rows_of(results, truth.images, truth.categories)):
            file.write((",\n" if number else "\n") + json.dumps(row))
        file.write("\n]\n")


# ---- captions


def _score_captions(exam: Benchmark, pairs: Sequence[tuple[Sample, Detections | None]], folder: Path) -> Scored:
    """Captions that were passed over have found nothing: leaving them out would raise the recall."""
    truths = [caption_truth(sample) for sample, _ in pairs]
    boxes = [
        ranked_boxes(sample, found) if found is not None else [torch.zeros(1, 4)] * len(truth.phrases)
        for (sample, found), truth in zip(pairs, truths, strict=True)
    ]
    rows = [prediction_row(truth, ranked) for truth, ranked in zip(truths, boxes, strict=True)]
    with atomic_write(folder / GROUNDINGS) as file:
        json.dump(rows, file)
    protocol = "merged-boxes" if exam.protocol == "merged-boxes" else "any-box"
    return _recall(caption_recall(zip(truths, boxes, strict=True), protocol=protocol))


def _recall(recall: PhraseRecall) -> Scored:
    rows: list[Row] = [{"phrases of": "all", "phrases": recall.phrases, **_ranks(recall)}]
    rows += [{"phrases of": kind, "phrases": one.phrases, **_ranks(one)} for kind, one in recall.kinds.items()]
    return Scored(_ranks(recall), (Table("Recall of phrases", tuple(rows)),))


def _ranks(recall: PhraseRecall) -> dict[str, float]:
    return {**{f"R@{rank}": value for rank, value in recall.at.items()}, "upper bound": recall.upper_bound}


def _report(exam: Benchmark, model: str, parts: Sequence[Scored], tally: SkipCounter, *, seen: bool) -> Report:
    figures = {name: value for part in parts for name, value in part.figures.items()}
    tables = tuple(table for part in parts for table in part.tables)
    report = Report(model, exam.name, exam.protocol, len(exam.samples), seen, figures, tables)
    return replace(report, noted=dict(tally.counts), places={k: list(v) for k, v in tally.places.items()})
