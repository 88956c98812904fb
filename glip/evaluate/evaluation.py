"""The evaluation of a model on benchmarks: predictions are collected (resumable, by several processes), then scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from tqdm import tqdm

from glip.config import EvaluateConfig
from glip.data.catalog import class_prompts
from glip.detector import Detector
from glip.errors import ConfigError
from glip.evaluate.benchmark import Benchmark, load_benchmarks
from glip.evaluate.odinw import ODINW, odinw_page
from glip.evaluate.report import Report, Row, markdown_table
from glip.evaluate.run import PredictionStore, QueryOptions, predictions
from glip.evaluate.scoring import score
from glip.files import atomic_write
from glip.model.adapt import digest_of
from glip.text.class_prompts import ClassPrompt

OUT = "runs/evaluate"
HEADLINES = ("AP", "AP50", "Fixed AP", "Fixed APr", "AP at false positive rate 0.05", "R@1", "R@5", "R@10")
LVIS_NAMES, LVIS_DETECTIONS = 40, 300  # per chunk, as the 2022 release evaluates
Gather = Callable[[str], list[str]]  # what each process has, by its number


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
        detector = Detector.from_pretrained(names[0], task=config.task, device=device)
    task = digest_of(detector.adaptation) if detector.adaptation else ""
    # two trainings of one config differ in their weights
    label = detector.config.name + (f"-{detector.fingerprint[:6]}" if Path(names[0]).exists() else "")
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
            if main and detector.adaptation and detector.adaptation.names != benchmark.read.vocabulary:
                show(f"{benchmark.name} has other names than the task, or in another order: they go without its prompt")
            with _all_or_none(gather):
                _collect(detector, benchmark, store, options, share)
            with _all_or_none(gather):
                found += [score(benchmark, store, detector.config, options, place, draw=config.draw)] if main else []
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


def _settings(benchmark: Benchmark, detector: Detector, task: str, options: QueryOptions) -> dict[str, str]:
    """What predictions depend on."""
    config = detector.config
    return {
        "model": config.name,
        "weights": detector.fingerprint[:16],
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
    quiet = True if number else None  # one process shows its progress, and only on a terminal
    with tqdm(total=len(samples), initial=len(samples) - len(own), unit="sample", disable=quiet, leave=False) as bar:
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
