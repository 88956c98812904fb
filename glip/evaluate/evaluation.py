"""The evaluation of models on benchmarks: predictions are collected (resumable, by several processes), then scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from glip.config import UNSTATED, VALIDATED, EvaluateConfig, ModelConfig
from glip.console import ProgressBar, counted
from glip.data.catalog import class_prompts
from glip.data.mixture import data_record
from glip.detector import Detector
from glip.errors import ConfigError, DataError
from glip.evaluate.benchmark import SCORERS, Benchmark, load_benchmarks, parts_of
from glip.evaluate.report import (
    Report,
    Variant,
    compared_categories,
    comparison,
    for_terminal,
    made_line,
    markdown_table,
    markdown_text,
    overview,
    parts_page,
)
from glip.evaluate.run import PredictionStore, QueryOptions, predictions, too_long
from glip.evaluate.scoring import score
from glip.experiment import to_dict
from glip.files import atomic_write, exclusive, file_name, remove_partials
from glip.model.adapt import digest_of, save_adaptation, task_file, trained_with
from glip.model.weights import pretrained_config, store_thresholds
from glip.provenance import RECORD, files_in, record
from glip.text.class_prompts import ClassPrompt

OUT, COMPARISON = "runs/evaluate", "comparison.md"
LVIS_NAMES, LVIS_DETECTIONS = 40, 300  # per chunk, as the 2022 release evaluates
# The same of others: D3 as its script asks, OmniLabel as GLIP was evaluated on it (DesCo).
_CHUNKS: Mapping[str, tuple[int, int]] = {
    "lvis": (LVIS_NAMES, LVIS_DETECTIONS),
    "d3": (1, 100),
    "omnilabel": (20, 100),
}
Gather = Callable[[str], list[str]]  # what each process has, by its number


def evaluate(
    models: Sequence[str],
    names: Sequence[str],
    config: EvaluateConfig,
    show: Callable[[str], None] = print,
    *,
    device: str | None = None,
    share: tuple[int, int] = (0, 1),
    gather: Gather = lambda message: [message],
) -> Path:
    """Evaluate models on sets; returns the folder of the results.

    Args:
        models: names or paths; each is compared with the first.
        names: of sets, annotation files, odinw13 or odinw35; default: every known set that is there.
        config: the options.
        show: is given reports and tables as Markdown, as they come, in the main process.
        device: cpu, cuda, cuda:1; default: cuda if available.
        share: number of this process, 0 for the main one, and how many there are.
        gather: exchanges messages between the processes.
    """
    out, reports = Path(config.out or OUT), dict[Variant, list[Report]]()
    remove_partials(out)
    with _all_or_none(gather):
        benchmarks = load_benchmarks(names, config)
        if problem := _early_problem(models, [benchmark for own in benchmarks.values() for benchmark in own], config):
            raise ConfigError(problem)
    variants = list(product(models, dict.fromkeys(config.task or [""])))
    for model, task in variants:
        file = None if task in ("", "none") else task
        with _all_or_none(gather):
            detector = Detector.from_pretrained(model, task=file, device=device, dtype=config.dtype)
            detector = detector.with_inference(compete=config.compete)
            detector = detector.resized(config.image_size) if config.image_size else detector
        # two trainings of one config differ in their weights
        label = file_name(_named(detector).name) + (f"-{detector.fingerprint[:6]}" if Path(model).exists() else "")
        folder = out / (label + (f"-task-{_task_of(detector)[:6]}" if file else ""))
        for (name, own), (prompts, part) in product(benchmarks.items(), prompt_folders(config.prompts).items()):
            found: list[Report] = []
            for benchmark in own:
                place = folder / part / file_name(benchmark.name)
                found += _evaluate_set(detector, benchmark, config, prompts, place, show, share, gather)
            reports.setdefault((model, task, prompts), []).extend(found)
            if found and (parts := parts_of(name, config.root)):
                page = parts_page(name, found, parts)
                _write(folder / part / f"{name}.md", page)
                show(for_terminal(page))
        if config.save_thresholds and found:
            show(_save_thresholds(file or model, detector, config, benchmark, found[0].thresholds))
    written = folder if len(variants) == 1 else out
    if share[0] == 0:
        _compare(reports, written, show)
    return written


def _task_of(detector: Detector) -> str:
    """A hash of what predictions depend on of a task: not of its thresholds, nor of what it was tuned on."""
    return digest_of(replace(detector.adaptation, thresholds=(), about={})) if detector.adaptation else ""


def _named(detector: Detector) -> ModelConfig:
    """The config of the model; a dtype other than float32 is part of its name."""
    dtype = "" if detector.dtype == torch.float32 else f"-{str(detector.dtype).removeprefix('torch.')}"
    return replace(detector.config, name=detector.config.name + dtype)


def _asked(detector: Detector, options: EvaluateConfig) -> ModelConfig:
    """The same with other options and the task in its name, and what that was tuned on in what it was trained on."""
    config, task = _named(detector), detector.adaptation
    changed = {"image size": options.image_size, "compete": options.compete}
    changes = "".join(f", {option} {value:g}" for option, value in changed.items() if value)
    if not task:
        return replace(config, name=config.name + changes)
    about = ", ".join([task.mode, *(f"{key} {task.about[key]}" for key in ("shots", "seed") if key in task.about)])
    own = config.thresholds | dict(zip(task.names, task.thresholds, strict=False))
    name = f"{config.name} with task {task.about.get('task', '')} ({about}){changes}"
    return replace(trained_with(config, task), name=name, thresholds=own)


def _early_problem(models: Sequence[str], benchmarks: Sequence[Benchmark], config: EvaluateConfig) -> str:
    """What would fail after hours, and can be seen before the first model runs; "" if nothing."""
    places = [Path(model).resolve() if Path(model).exists() else model for model in models]
    twice = [model for number, model in enumerate(models) if places[number] in places[:number]]
    if twice:
        return f"--model: {twice[0]!r} is given twice: give each model once"
    for model in models if len(models) > 1 else ():
        pretrained_config(model)
    if not config.save_thresholds:
        return ""
    unfit = [model for model in models if config.task in ((), ("none",)) and not Path(model).is_dir()]
    if unfit:
        return f"--save-thresholds: {unfit[0]!r} is no model folder: make one, glip convert {unfit[0]} FOLDER"
    if [one.protocol for one in benchmarks] == ["coco"] and max(len(config.prompts), len(config.task)) < 2:
        return ""
    listed = ", ".join(f"{one.name} ({one.protocol})" for one in benchmarks[:3])
    return f"--save-thresholds takes one dataset with class names (protocol coco), one task, one wording: got {listed}"


def _evaluate_set(
    detector: Detector,
    benchmark: Benchmark,
    config: EvaluateConfig,
    prompts: str,
    place: Path,
    show: Callable[[str], None],
    share: tuple[int, int],
    gather: Gather,
) -> list[Report]:
    """The report of one model on one set, in the main process."""
    main = share[0] == 0
    with exclusive(place, main=main, gather=gather):
        with _all_or_none(gather):
            options = query_options(benchmark, config, prompts)
            if benchmark.protocol in SCORERS or benchmark.read.asked:
                options = replace(options, left_out=too_long(detector, benchmark.read.samples, options))
            store = PredictionStore(place / "predictions", _settings(detector, benchmark, options), process=share[0])
            others = _has_other_names(detector, benchmark, refuse=config.save_thresholds)
        if main and others:
            show(f"{benchmark.name} has other names than the task: they are detected without its prompt")
        with _all_or_none(gather):
            _collect(detector, benchmark, store, options, share)
        if main:
            model = {"name": detector.config.name, "weights": detector.fingerprint}
            data = data_record(benchmark.config, benchmark.read.samples, benchmark.fingerprint)
            record(place / RECORD, config=to_dict(config), model=model, data={benchmark.name: data})
        with _all_or_none(gather):
            found = (
                [score(benchmark, store, _asked(detector, config), options, place, draw=config.draw)] if main else []
            )
    if main:
        record(place / RECORD, files=files_in(place))
        show(for_terminal(found[0].markdown()))
    return found


def _save_thresholds(
    path: str, detector: Detector, config: EvaluateConfig, benchmark: Benchmark, found: Mapping[str, float]
) -> str:
    """Store thresholds by class name: in the task's file, or in the model's folder under the phrases asked for."""
    if task := detector.adaptation:
        before = task.thresholds or (detector.config.inference.threshold,) * len(task.names)
        own = tuple(found.get(name, value) for name, value in zip(task.names, before, strict=True))
        chosen = f"{task.about.get('data', UNSTATED)}, {VALIDATED}{benchmark.fingerprint}"
        save_adaptation(task_file(path), replace(task, thresholds=own, about={**task.about, "data": chosen}))
    else:
        options = query_options(benchmark, config, *config.prompts)
        thresholds = {options.prompt_of([name]).texts[0]: value for name, value in found.items()}
        store_thresholds(path, thresholds, benchmark.fingerprint)
    return f"stored the threshold of best F1 of {counted(len(found), 'class')} in {path}"


def query_options(benchmark: Benchmark, config: EvaluateConfig, prompts: str = "") -> QueryOptions:
    """How the model is called: as the config says (0 names per chunk: as many as fit), else as the protocol does.

    ``prompts`` is a YAML of texts for class names, "none" for plain names, "" for those of the set.
    """
    texts = dict[str, ClassPrompt]()
    if prompts != "none":
        written = class_prompts(benchmark.config, config.root, benchmark.read.vocabulary, file=prompts)
        texts = written or dict(benchmark.prompts)
    if benchmark.protocol not in _CHUNKS:
        return QueryOptions(config.batch_size, config.max_names or None, config.max_detections, prompts=texts)
    names, limit = _CHUNKS[benchmark.protocol]
    names = names if config.max_names is None else config.max_names
    limit = limit if config.max_detections is None else config.max_detections
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


def _has_other_names(detector: Detector, benchmark: Benchmark, *, refuse: bool) -> bool:
    """Whether a set has other names than the task that the model was tuned for, which may be refused."""
    own, names = (detector.adaptation.names if detector.adaptation else ()), benchmark.read.vocabulary
    same = set(own) == set(names)  # would be detected without the task's prompt, unnoticed
    if own != names and (same or (own and refuse)):
        order = f"the task has the names of {benchmark.name!r} in another order: list them in the same order"
        other = f"--save-thresholds: {benchmark.name!r} has other names than the task: give its own set"
        raise DataError(order if same else other)
    return bool(own) and own != names


def _settings(detector: Detector, benchmark: Benchmark, options: QueryOptions) -> dict[str, str]:
    """What predictions depend on."""
    config = detector.config
    return {
        "model": config.name,
        "weights": detector.fingerprint[:16],
        "dtype": str(detector.dtype),
        "task": _task_of(detector)[:16],
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


def _compare(reports: Mapping[Variant, Sequence[Report]], folder: Path, show: Callable[[str], None]) -> None:
    """A table over all sets; of several models or wordings what they gain over the first, which is written too."""
    first, own = next(iter(reports.items()))
    if len(reports) == 1:
        if len(own) > 1:
            show(for_terminal("\n".join(markdown_table(overview(own)))))
        return
    title = f"# Compared with {markdown_text(' and '.join(filter(None, first)))}"
    page = "\n".join([title, "", *markdown_table(comparison(reports))])
    if rows := compared_categories(reports):
        classes = "\n".join(["", "", "## Per category", "", *markdown_table(rows)])
    _write(folder / COMPARISON, f"{page}{classes if rows else ''}\n{made_line()}")
    show(for_terminal(page))


def _write(path: Path, page: str) -> None:
    with atomic_write(path) as file:
        file.write(page)
