"""Tune a model for one task: choose images, train, measure, and write the task file with a report and a curve."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glip.config import TuneConfig
from glip.data.catalog import class_prompts, find_set, folders_of, read_set
from glip.data.sets import SkipCounter
from glip.data.shots import draw_shots
from glip.data.survey import data_fingerprint
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import DataError
from glip.evaluate.coco import Score, average_precision, best_thresholds
from glip.evaluate.figures import draw_epochs
from glip.evaluate.run import detect_all
from glip.evaluate.validate import Chosen
from glip.files import fingerprint, write_json
from glip.model.adapt import Adaptation, save_adaptation
from glip.structures import Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes
from glip.train.distributed import ONE, Group, main_only
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

TASK_FILE, IMAGE_LIST, REPORT, CURVE = "task.safetensors", "images.json", "report.json", "curve.png"
FROZEN_STAGES = 2  # of the image encoder in mode full, as in the release
_VALIDATE_EVERY = 5  # without a validation set every fifth image is held out


@dataclass(frozen=True)
class TaskData:
    """The datasets of one task: its class names, and samples to train, validate and test on."""

    name: str
    names: tuple[str, ...]
    train: Sequence[Sample]
    validate: Sequence[Sample] = ()
    test: Sequence[Sample] = ()
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)  # text written instead of a class name
    skipped: SkipCounter = field(default_factory=SkipCounter)

    def fingerprint(self) -> str:
        """Differs when an image, a box or a prompt changes."""
        words = sorted((name, prompt.text) for name, prompt in self.prompts.items())
        return "; ".join([*map(data_fingerprint, (self.train, self.validate, self.test)), *map(str, words)])


def read_task_data(
    train: str,
    *,
    validate: str = "",
    test: str = "",
    images: Sequence[str] = (),
    prompts: str = "",
    root: str | None = None,
    name: str = "",
) -> TaskData:
    """The datasets of a task, each a name of datasets.yaml or an annotation file.

    Raises:
        DataError: datasets without one list of class names, or with different lists.
    """
    given = {"train": train, "validate": validate, "test": test}
    folders = folders_of([text for text in given.values() if text], images, root)
    skipped, parts, names = SkipCounter(), dict[str, Sequence[Sample]](), tuple[str, ...]()
    for part, text in given.items():
        if not text:
            continue
        read = read_set(find_set(text, images=folders[text], root=root), root)
        skipped.merge(read.skipped)
        if not read.vocabulary or any(sample.vocabulary != read.vocabulary for sample in read.samples):
            raise DataError(f"dataset {text!r} has no class names that all images share: give COCO json, say")
        names = names or read.vocabulary
        if read.vocabulary != names:
            raise DataError(
                f"{part}: {text!r} has the classes {', '.join(read.vocabulary)[:80]}, not {', '.join(names)[:80]}: "
                "give a dataset with the same classes"
            )
        parts[part] = read.samples
    written = class_prompts(find_set(train, root=root), root, names, file=prompts)
    return TaskData(name or Path(train).stem.removesuffix("_train"), names, **parts, prompts=written, skipped=skipped)


def run_name(task: str, config: TuneConfig) -> str:
    """The folder name of a tuning, such as ``chess-prompt-5-0``: task, mode, shots, seed."""
    return f"{task}-{config.mode}-{config.shots or 'all'}-{config.seed}"


def preprocessing_of(detector: Detector) -> str:
    """A short hash of how a model resizes images and decodes, which the figures depend on beside its weights."""
    return fingerprint(detector.config.image, detector.config.inference)[:8]


def tune_task(
    detector: Detector, task: TaskData, config: TuneConfig, folder: Path, *, cache: FeatureCache, group: Group = ONE
) -> Adaptation:
    """Tune a model for a task; run again after an interruption to resume.

    Args:
        detector: its own weights do not change.
        task: the datasets.
        config: how to tune.
        folder: receives the task file, the list of training images, a report and a curve.
        cache: features of the task's images, shared by several tunings of the same task.
        group: the processes that tune together; the main one writes and prints.

    Raises:
        DataError: nothing to train or validate on, or a folder with another tuning.
        TrainingError: losses stayed non-finite.
        Interrupted: a signal came.
    """
    train, validate = split_task(task, config)
    report, skipped = main_only(group, print), SkipCounter()
    skipped.merge(task.skipped)
    for title, samples in (("validation", validate), ("test", task.test)):
        _report_missing(title, samples, report)
    prompt = prompt_from_classes(task.names, task.prompts)
    tuner = Tuner(detector, task.names, prompt, mode=config.mode, frozen_stages=FROZEN_STAGES)
    images = Images(train, tuner, augment=config.augment, cache=cache, skipped=skipped)
    for line in _data_lines(task, train, validate, images, skipped):
        report(line)
    ids = [str(sample.image_id) for sample in train]
    about = {"set": task.name, "shots": config.shots, "per": config.per, "seed": config.seed, "ids": ids}
    if group.main:
        write_json(folder / IMAGE_LIST, about)
    scorer = _Scorer(cache)
    inputs = fingerprint(
        detector.fingerprint, preprocessing_of(detector), task.name, data_fingerprint(train), data_fingerprint(validate)
    )
    run = TuneRun(
        tuner,
        images,
        config,
        validate=lambda tuned: scorer("validation", tuned, validate).ap,
        folder=folder,
        group=group,
        inputs=inputs,
    )
    found = run(report)
    if config.thresholds:
        rankings = scorer("validation", detector.adapted(found), validate).rankings
        found = replace(found, thresholds=best_thresholds(rankings, detector.config.inference.threshold))
    figures = {**found.figures, **_test(detector, found, task.test, scorer)}
    for title, count in scorer.unreadable.items():
        skipped.add(f"unreadable {title} image", times=count)
    stored = {"task": task.name, "shots": str(config.shots or "all"), "per": config.per, "seed": str(config.seed)}
    found = replace(found, figures=figures, about={**stored, "images": str(len(images))})
    if group.main:
        save_adaptation(folder / TASK_FILE, found)
        _write_report(folder, found, run.state.history, skipped)
    return found


def split_task(task: TaskData, config: TuneConfig) -> tuple[list[Sample], list[Sample]]:
    """The images to train on and those to validate on; no image is in both.

    Raises:
        DataError: an unknown image id, or nothing with a box for one of the two.
    """
    ids = {str(sample.image_id): index for index, sample in enumerate(task.train)}
    labelled = [index for index, sample in enumerate(task.train) if any(sample.box_phrases)]
    if config.image_list:
        unknown = next((name for name in config.image_list if name not in ids), None)
        if unknown is not None:
            raise DataError(f"task {task.name!r} has no image {unknown!r}: give ids of its training images")
        chosen = sorted({ids[name] for name in config.image_list})
    elif config.shots:
        chosen = draw_shots(task.train, task.names, config.shots, seed=config.seed, per=config.per)
    else:
        held_out = set() if task.validate else set(labelled[::_VALIDATE_EVERY])
        chosen = [index for index in range(len(task.train)) if index not in held_out]
    rest = list(task.validate) or [task.train[index] for index in labelled if index not in set(chosen)]
    train = [task.train[index] for index in chosen]
    for what, samples in (("train", train), ("validate", rest)):
        if not any(phrases for sample in samples for phrases in sample.box_phrases):
            raise DataError(
                f"task {task.name!r}: no image with a labelled box is left to {what} on: give more images, fewer shots "
                "or --validate SET"
            )
    return train, list(Chosen(rest, config.max_val_images))


class _Scorer:
    """Scores a detector; images are encoded once if its image encoder is the model's own."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        self.unreadable: dict[str, int] = {}

    def __call__(self, title: str, detector: Detector, samples: Sequence[Sample]) -> Score:
        skipped, own = SkipCounter(), detector.adaptation is None or detector.adaptation.keeps_encoder
        score = average_precision(detect_all(detector, samples, tally=skipped, kept=self.cache if own else None))
        if skipped:
            self.unreadable[title] = sum(skipped.counts.values())
        return score


def _test(detector: Detector, found: Adaptation, samples: Sequence[Sample], scorer: _Scorer) -> dict[str, float]:
    """AP and AP50 on the test set before and after tuning, for the same prompt."""
    if not samples:
        return {}
    offsets = None if found.offsets is None else found.offsets * 0
    before = replace(found, offsets=offsets, weights={}, thresholds=())
    scores = {
        title: scorer("test", detector.adapted(one), samples) for title, one in (("before ", before), ("", found))
    }
    return {
        f"test {title}{name}": value
        for title, score in scores.items()
        for name, value in (("AP", score.ap), ("AP50", score.ap50))
    }


def _report_missing(title: str, samples: Sequence[Sample], report: Callable[[str], None]) -> None:
    """Say before the work which image files are missing; without any of them there is nothing to measure."""
    files = [sample.image for sample in samples if isinstance(sample.image, Path)]
    missing = [file for file in files if not file.is_file()]
    if missing and len(missing) == len(samples):
        raise DataError(f"{title}: none of its {len(samples)} images exists, such as {str(missing[0])!r}")
    if missing:
        report(f"{title}: {len(missing)} of {len(samples)} images do not exist, such as {str(missing[0])!r}")


def _data_lines(
    task: TaskData, train: Sequence[Sample], validate: Sequence[Sample], images: Images, skipped: SkipCounter
) -> Iterator[str]:
    boxes = Counter(
        label
        for sample in train
        for box, labels in enumerate(sample.box_phrases)
        if box not in sample.crowd
        for label in labels
    )
    count = sum(len(sample.boxes) - len(sample.crowd) for sample in train)
    yield (
        f"{task.name}: {len(task.names)} classes; training on {len(images)} images with {count} boxes, "
        f"{images.cached} of them cached; validating on {len(validate)} images"
    )
    without = [name for label, name in enumerate(task.names) if not boxes[label]]
    if without:
        more = ", ..." if len(without) > 8 else ""
        yield f"classes without a box to train on: {len(without)} ({', '.join(without[:8])}{more})"
    if skipped:
        yield f"skipped: {skipped}"


def _write_report(folder: Path, found: Adaptation, history: Sequence[Mapping[str, Any]], skipped: SkipCounter) -> None:
    report = {
        "mode": found.mode,
        "figures": dict(found.figures),
        "about": dict(found.about),
        "thresholds": dict(zip(found.names, found.thresholds, strict=False)),
        "epochs": list(history),
        "skipped": skipped.counts,
    }
    write_json(folder / REPORT, report)
    draw_epochs([row["validation"] for row in history], [row["loss"] for row in history][1:], folder / CURVE)
