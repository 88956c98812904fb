"""The evaluation of a model on benchmarks: predictions are collected (resumable, by several processes), then scored.

Scoring gives figures and tables, results in the standard formats, and images on request.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from glip.config import EvaluateConfig, ModelConfig
from glip.console import ProgressBar
from glip.data.catalog import class_prompts
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.errors import ConfigError, DataError
from glip.evaluate import columns
from glip.evaluate.benchmark import Benchmark, load_benchmarks
from glip.evaluate.coco import Score, score_results
from glip.evaluate.columns import UNKNOWN, GroundTruth, LvisTruth, Results
from glip.evaluate.false_positives import RATES, false_positives
from glip.evaluate.figures import draw_curves, draw_worst
from glip.evaluate.lvis import BestOfCategories, fixed_ap, standard_ap
from glip.evaluate.odinw import ODINW, odinw_page
from glip.evaluate.phrases import PhraseRecall, caption_recall, prediction_row, ranked_boxes, read_predictions
from glip.evaluate.report import Report, Row, markdown_table
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions, predictions
from glip.files import atomic_write, write_json
from glip.model.adapt import digest_of
from glip.structures import Sample
from glip.text.class_prompts import ClassPrompt

OUT = "runs/evaluate"
HEADLINES = ("AP", "AP50", "Fixed AP", "Fixed APr", "AP at false positive rate 0.05", "R@1", "R@5", "R@10")
LVIS_NAMES, LVIS_DETECTIONS = 40, 300  # per chunk, as the 2022 release evaluates
Gather = Callable[[str], list[str]]  # what each process has, by its number
PER_IMAGE = 300  # detections of an image that LVIS's standard AP counts
Predictions = Iterable[tuple[Sample, Prediction]]


def evaluate(
    names: Sequence[str],
    config: EvaluateConfig,
    show: Callable[[str], None] = print,
    *,
    device: str | None = None,
    share: tuple[int, int] = (0, 1),
    gather: Gather = lambda message: [message],
) -> Path:
    """Evaluate a model on sets; returns the folder of the results.

    Args:
        names: a model, then sets: names, annotation files, odinw13 or odinw35; default: every known set that is there.
        config: the options.
        show: is given reports and tables as Markdown, as they come, in the main process.
        device: cpu, cuda, cuda:1; default: cuda if available.
        share: number of this process, 0 for the main one, and how many there are.
        gather: exchanges messages between the processes.
    """
    main = share[0] == 0
    with _all_or_none(gather):
        benchmarks = load_benchmarks(names[1:], config)
        detector = Detector.from_pretrained(names[0], task=config.task, device=device, dtype=config.dtype)
    task = digest_of(detector.adaptation) if detector.adaptation else ""
    dtype = "" if detector.dtype == torch.float32 else f"-{str(detector.dtype).removeprefix('torch.')}"
    named = replace(detector.config, name=detector.config.name + dtype)
    # two trainings of one config differ in their weights
    label = named.name + (f"-{detector.fingerprint[:6]}" if Path(names[0]).exists() else "")
    folder = Path(config.out or OUT) / (label + (f"-task-{task[:6]}" if task else ""))
    reports: dict[str, list[Report]] = {}
    for (name, own), (prompts, part) in product(benchmarks.items(), prompt_folders(config.prompts).items()):
        found: list[Report] = []
        for benchmark in own:
            place = folder / part / benchmark.name
            with _all_or_none(gather):
                options = query_options(benchmark, config, prompts)
                made_with = _settings(benchmark, detector, task, options)
                store = PredictionStore(place / "predictions", made_with, process=share[0])
                others = _has_other_names(detector, benchmark)
            if main and others:
                show(f"{benchmark.name} has other names than the task: they are detected without its prompt")
            with _all_or_none(gather):
                _collect(detector, benchmark, store, options, share)
            with _all_or_none(gather):
                found += [score(benchmark, store, named, options, place, draw=config.draw)] if main else []
            if main:
                show(found[-1].markdown())
        reports.setdefault(prompts, []).extend(found)
        if name in ODINW and found:
            page = odinw_page(found, ODINW[name])
            with atomic_write(folder / part / f"{name}.md") as file:
                file.write(page)
            show(page)
    if main:
        _compare(reports, show)
    return folder


def query_options(benchmark: Benchmark, config: EvaluateConfig, prompts: str = "") -> QueryOptions:
    """How the model is called: as the config says, else as the protocol does.

    Args:
        benchmark: the set.
        config: the options; 0 names per chunk: as many as fit.
        prompts: YAML of texts for class names, "none" for plain names, "" for those of the set.
    """
    texts = dict[str, ClassPrompt]()
    if prompts != "none":
        written = class_prompts(benchmark.config, config.root, benchmark.read.vocabulary, file=prompts)
        texts = written or dict(benchmark.prompts)
    if benchmark.protocol != "lvis":
        return QueryOptions(config.batch_size, config.max_names or None, config.max_detections, prompts=texts)
    names = LVIS_NAMES if config.max_names is None else config.max_names
    limit = LVIS_DETECTIONS if config.max_detections is None else config.max_detections
    return QueryOptions(config.batch_size, names or None, 0, limit, texts)


def prompt_folders(prompts: Sequence[str]) -> dict[str, str]:
    """The folder of each file of prompts inside that of the model; "" for a single one, or none."""
    if len(prompts) < 2:
        return dict.fromkeys(prompts or [""], "")
    folders = [f"prompts-{Path(file).stem}" for file in prompts]
    if len(set(folders)) < len(folders):
        folders = [f"{folder}-{number}" for number, folder in enumerate(folders, start=1)]
    return dict(zip(prompts, folders, strict=True))


@contextmanager
def _all_or_none(gather: Gather) -> Iterator[None]:
    """An error in one process ends all of them, with its message."""
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError, ImportError) as caught:
        error = caught
    messages = gather(str(error) if error else "")
    failed = [f"Process {number} failed: {message}" for number, message in enumerate(messages) if message]
    if error or failed:
        raise error or ConfigError(failed[0])


def _has_other_names(detector: Detector, benchmark: Benchmark) -> bool:
    """Whether a set has other names than the task that the model was tuned for."""
    own, names = (detector.adaptation.names if detector.adaptation else ()), benchmark.read.vocabulary
    if own != names and set(own) == set(names):  # would be detected without the task's prompt, unnoticed
        raise DataError(f"the task has the names of {benchmark.name!r} in another order: list them in the same order")
    return bool(own) and own != names


def _settings(benchmark: Benchmark, detector: Detector, task: str, options: QueryOptions) -> dict[str, str]:
    """What predictions depend on."""
    config = detector.config
    return {
        "model": config.name,
        "weights": detector.fingerprint[:16],
        "dtype": str(detector.dtype),
        "task": task[:16],
        "inference": repr((config.inference, config.image, config.max_tokens)),
        "set": benchmark.name,
        "images and annotations": benchmark.fingerprint,
        "names per chunk": str(options.max_names),
        "detections": f"{options.max_detections}, {options.chunk_detections} per chunk",
        "prompts": str(dict(options.prompts)),
    }


def _collect(
    detector: Detector, benchmark: Benchmark, store: PredictionStore, options: QueryOptions, share: tuple[int, int]
) -> None:
    """Predict the samples that are not in the store yet; each process takes a run of them.

    So captions of one image stay together.
    """
    samples, (number, processes) = benchmark.read.samples, share
    pending = sorted(set(range(len(samples))) - store.done)
    own = pending[number * len(pending) // processes : (number + 1) * len(pending) // processes]
    shown = {"desc": benchmark.name, "unit": "sample", "disable": number > 0}  # one process shows its progress
    with ProgressBar(total=len(samples), initial=len(samples) - len(own), **shown) as bar:
        try:
            for prediction in predictions(detector, samples, own, options):
                store.add(prediction)
                bar.update()
        finally:
            store.flush()


def _compare(reports: Mapping[str, Sequence[Report]], show: Callable[[str], None]) -> None:
    """A table over all sets, and what each file of prompts gains over the first one, set by set."""
    listed = [report for own in reports.values() for report in own]
    shown = [name for name in HEADLINES if any(name in report.figures for report in listed)]
    rows, gains = list[Row](), list[Row]()
    for one in listed:
        figures = {name: one.figures.get(name, "") for name in shown}
        rows.append({"set": one.dataset, **figures, "samples": one.samples, "trained on": one.trained_on})
    first, *others = reports.values()
    for place, before in enumerate(first if others else ()):
        name = next(name for name in HEADLINES if name in before.figures)
        for prompts, own in reports.items():
            value = own[place].figures[name]
            gain = "" if own is first else f"{value - before.figures[name]:+.3f}"
            gains.append({"set": before.dataset, "prompts": prompts, "figure": name, "value": value, "gain": gain})
    for table in (rows if len(rows) > 1 else (), gains):
        if table:
            show("\n".join(markdown_table(table)))


# ---- scoring


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
    samples, skipped, kinds = benchmark.read.samples, SkipCounter(), set[bool]()
    store.reload()  # with what other processes have written
    missing = len(set(range(len(samples))) - store.done)
    if missing:
        raise DataError(
            f"{missing} of {len(samples)} samples of {benchmark.name!r} have no prediction in {store.folder}: run the "
            "same command again; several machines need one --out that all of them can read"
        )
    skipped.merge(benchmark.read.skipped)

    def stored(*, captions: bool) -> Predictions:
        """Read again each time: those for a large set need not fit into memory."""
        return (pair for pair in store.read(samples, options) if (pair[0].prompt is not None) == captions)

    for sample, one in store.read(samples, options):
        kinds.add(sample.prompt is not None)
        if one.found is None:
            skipped.add(one.reason, one.place)
    report = Report(config.name, benchmark.name, benchmark.protocol, len(samples), benchmark.trained_on(config))
    if False in kinds:
        truth = benchmark.ground_truth(skipped)
        results, best = _as_results(benchmark, truth, stored(captions=False), inclusive=config.inference.inclusive)
        _score_boxes(report, truth, results, best, folder / "curves.png" if draw else None)
        columns.write_results(folder / "results.json", results, truth.images, truth.categories)
    if True in kinds:
        pairs = [(sample, ranked_boxes(sample, one.found)) for sample, one in stored(captions=True)]
        write_json(folder / "groundings.json", [prediction_row(sample, ranked) for sample, ranked in pairs])
        _add_recall(report, caption_recall(pairs, protocol=benchmark.protocol))
    report.write(folder, skipped)
    if draw:
        every = store.read(samples, options)
        found = ((one.index, sample, one.found) for sample, one in every if one.found is not None)
        draw_worst(found, samples, config.inference.threshold, folder / "worst.png")
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
    report = Report(file.name, benchmark.name, benchmark.protocol, len(benchmark.read.samples), "unknown")
    if benchmark.protocol in ("any-box", "merged-boxes"):
        captions = [sample for sample in benchmark.read.samples if sample.prompt]
        boxes = read_predictions(file, captions, skipped)
        _add_recall(report, caption_recall(zip(captions, boxes, strict=True), protocol=benchmark.protocol))
    else:
        truth = benchmark.ground_truth(skipped)
        results = columns.read_results(file, truth.images, truth.categories, skipped)
        if isinstance(truth, LvisTruth) and np.bincount(results.images, minlength=1).max() == PER_IMAGE:
            skipped.add("image whose results end at 300: Fixed AP is of those only", "the file")
        _score_boxes(report, truth, results, results, folder / "curves.png" if draw else None)
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
    ids = [label.get(number, UNKNOWN) for number in benchmark.read.ids]
    is_lvis, own_labels = isinstance(truth, LvisTruth), lru_cache(partial(columns.labels_of, truth.names))
    best, top = BestOfCategories(len(truth.categories)), list[Results]()
    for sample, one in predictions:
        if one.found is None:
            continue
        if benchmark.read.annotations:
            part = columns.results_of(one.found, place[sample.image_id], ids, inclusive=inclusive and not is_lvis)
        else:
            part = columns.results_of(one.found, one.index, own_labels(sample.vocabulary))
        if is_lvis:
            best.add(part)
            part = part.select(np.arange(min(len(part), PER_IMAGE)))
        top.append(part)
    results = columns.concatenate(top)
    return results, best.results() if is_lvis else results


def _score_boxes(report: Report, truth: GroundTruth, results: Results, best: Results, curves: Path | None) -> None:
    """Average precision, and how it falls where false positives on absent names are rare."""
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
        score_some = partial(score_results, truth)
        scored = score_some(results)
        interval = zip(("AP50 low (95 %)", "AP50 high (95 %)"), scored.interval() or (), strict=False)
        report.figures |= dict(scored.figures) | dict(interval)
        rows = list(scored.categories)
        if curves:
            draw_curves(truth.names, scored.rankings, curves)
    report.tables["Per category"] = rows
    found = false_positives(truth, results)
    if found is None:
        return
    rates, known = list[Row](), results.select(results.categories != UNKNOWN)
    for allowed in RATES:
        threshold = found.threshold_at(allowed)
        scored = score_some(known.select(known.scores >= threshold))
        report.figures[f"AP at false positive rate {allowed:g}"] = scored.ap
        row = {"false positive rate at most": allowed, "threshold": threshold, "rate": found.rate(threshold)}
        rates.append({**row, "AP": scored.ap, "AP50": scored.ap50})
    report.tables["False positives on absent names"] = rates
    report.tables["False positive rate by threshold"] = [
        {"threshold": step / 20, "rate": found.rate(step / 20)} for step in range(1, 20)
    ]


def _add_recall(report: Report, recall: PhraseRecall) -> None:
    report.figures |= recall.figures
    kinds = {"all": recall, **recall.kinds}
    report.tables["Recall of phrases"] = [
        {"phrases of": kind, "phrases": one.phrases, **one.figures} for kind, one in kinds.items()
    ]
