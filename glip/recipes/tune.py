"""Tune a model for one task: choose images, train, measure, and write the task file with a report and a curve."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glip.config import VALIDATED, SetConfig, TaskConfig, TuneConfig
from glip.console import counted, printable
from glip.data.catalog import class_prompts, find_set, folders_of, read_set
from glip.data.check import refuse_wrong_boxes
from glip.data.mixture import count_classes, data_fingerprint, data_record, draw_shots, images_fingerprint
from glip.data.sets import SampleSet, SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import DataError
from glip.evaluate.coco import Score, average_precision
from glip.evaluate.figures import draw_epochs
from glip.evaluate.run import detect_all
from glip.evaluate.validate import evenly_spaced
from glip.experiment import to_dict
from glip.files import file_name, fingerprint, write_json
from glip.model.adapt import TASK_FILE, Adaptation, save_adaptation
from glip.provenance import RECORD, files_in, record
from glip.structures import Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes
from glip.train.distributed import ONE, Group, main_only
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

IMAGE_LIST, REPORT, CURVE = "images.json", "report.json", "curve.png"
FROZEN_STAGES = 2  # of the image encoder in mode full, as in the release
_VALIDATE_EVERY = 5  # without a validation set every fifth image is held out, of those with boxes and of the others
_FEW = 10  # images to validate on, below which the best epoch and the thresholds are partly chance


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
    sets: Mapping[str, SetConfig] = field(default_factory=dict)  # where its parts are, where that is known

    def fingerprint(self) -> str:
        """Differs when an image, a box or a prompt changes."""
        words = sorted((name, prompt.text) for name, prompt in self.prompts.items())
        return "; ".join([*map(data_fingerprint, (self.train, self.validate, self.test)), *map(str, words)])


def task_data(name: str, parts: Mapping[str, SampleSet], prompts: Mapping[str, ClassPrompt]) -> TaskData:
    """A task of some of the parts ``train``, ``validate`` and ``test``."""
    skipped = SkipCounter()
    for part in parts.values():
        skipped.merge(part.skipped)
    train, validate, test = (parts[title].samples if title in parts else () for title in ("train", "validate", "test"))
    return TaskData(name, parts["train"].vocabulary, train, validate, test, prompts, skipped)


def read_task_data(files: TaskConfig, root: str | None = None, name: str = "") -> TaskData:
    """Read the datasets of a task; without a name it is called like its training file.

    Raises:
        DataError: datasets without one list of class names, or with different lists.
    """
    given = {part: file for part in ("train", "validate", "test") if (file := getattr(files, part))}
    folders = folders_of(list(given.values()), files.images, root)
    parts, sets = dict[str, SampleSet](), dict[str, SetConfig]()
    for part, file in given.items():
        split = "val" if part == "validate" else part  # of a file with several
        sets[part] = find_set(file, images=folders[file], root=root, split=split)
        parts[part] = read_set(sets[part], root)
        own, names = parts[part].vocabulary, parts["train"].vocabulary
        if not own or own != names or any(sample.vocabulary != own for sample in parts[part].samples):
            listed = f"the classes {', '.join(own)[:80]}" if own else "no class names that all images share"
            raise DataError(
                f"{part}: dataset {file!r} has {listed}: give datasets, such as COCO json, with the same classes"
            )
        refuse_wrong_boxes(f"{part}: dataset {file!r}", parts[part])
    prompts = class_prompts(find_set(files.train, root=root), root, parts["train"].vocabulary, file=files.prompts)
    return replace(task_data(name or Path(files.train).stem.removesuffix("_train"), parts, prompts), sets=sets)


def run_name(task: str, config: TuneConfig) -> str:
    """The folder name of a tuning, such as ``chess-prompt-5-0``: task, mode, shots, seed."""
    return f"{file_name(task)}-{config.mode}-{config.shots or 'all'}-{config.seed}"


def preprocessing_of(detector: Detector) -> str:
    """A short hash of how a model resizes images and decodes, which the figures depend on beside its weights."""
    return fingerprint(detector.config.image, detector.config.inference)[:8]


def tune_task(
    detector: Detector, task: TaskData, config: TuneConfig, folder: Path, *, cache: FeatureCache, group: Group = ONE
) -> Adaptation:
    """Tune a model for a task; run again after an interruption to resume.

    The detector's own weights do not change. The folder receives the task file, the list of training images, a report
    and a curve; the main process of the group writes and prints. Tunings of the same task may share a cache.

    Raises:
        DataError: nothing to train or validate on, or a folder with another tuning.
        TrainingError: losses stayed non-finite.
        Interrupted: a signal came.
    """
    train, validate = split_task(task, config)
    report, skipped, unreadable = main_only(group, print), SkipCounter(), dict[str, int]()
    skipped.merge(task.skipped)
    for title, samples in (("validation", validate), ("test", task.test)):
        _report_missing(title, samples, report)
    prompt = prompt_from_classes(task.names, task.prompts)
    tuner = Tuner(detector, task.names, prompt, config, frozen_stages=FROZEN_STAGES)
    images = Images(train, tuner, augment=config.augment, cache=cache, skipped=skipped)
    _report_data(task, train, validate, images, skipped, report)

    def score(title: str, tuned: Detector, samples: Sequence[Sample]) -> Score:
        """Images are encoded once if the image encoder is the model's own."""
        lost, own = SkipCounter(), tuned.adaptation is None or tuned.adaptation.keeps_encoder
        scored = average_precision(detect_all(tuned, samples, tally=lost, kept=cache if own else None))
        if lost:  # the same images every time
            unreadable[title] = sum(lost.counts.values())
        return scored

    about = {"set": task.name, "shots": config.shots, "per": config.per, "seed": config.seed}
    if group.main:
        sets = {part: data_record(one, getattr(task, part)) for part, one in task.sets.items()}
        model = {"name": detector.config.name, "weights": detector.fingerprint}
        record(folder / RECORD, config=to_dict(config), model=model, data=sets)
        write_json(folder / IMAGE_LIST, {**about, "ids": [str(sample.image_id) for sample in train]})
    data = [data_fingerprint(samples) for samples in (train, validate)]
    inputs = fingerprint(detector.fingerprint, preprocessing_of(detector), task.name, *data)
    run = TuneRun(tuner, images, config, lambda own: score("validation", own, validate).ap, folder, group, inputs)
    found = run(report)
    if config.thresholds:
        rankings, usual = score("validation", detector.adapted(found), validate).rankings, detector.config.inference
        found = replace(found, thresholds=tuple(one.best.get("threshold", usual.threshold) for one in rankings))
    figures = dict(found.figures)
    untuned = replace(found, offsets=None if found.offsets is None else found.offsets * 0, weights={}, thresholds=())
    for title, adaptation in (("before ", untuned), ("", found)) if task.test else ():
        tested = score("test", detector.adapted(adaptation), task.test)
        figures |= {f"test {title}AP": tested.ap, f"test {title}AP50": tested.ap50}
    for title, count in unreadable.items():
        skipped.add(f"unreadable {title} image", times=count)
    stated = {"task": task.name, "shots": str(config.shots or "all"), "per": config.per, "seed": str(config.seed)}
    stated["data"] = ", ".join([data_fingerprint(task.train), images_fingerprint(task.train)])
    stated["data"] += f", {VALIDATED}{data_fingerprint(task.validate)}" if task.validate else ""
    found = replace(found, figures=figures, about={**stated, "images": str(len(images.usable))})
    if group.main:
        save_adaptation(folder / TASK_FILE, found)
        _write_report(folder, found, run.state.history, skipped)
        record(folder / RECORD, files=files_in(folder))
    return found


def split_task(task: TaskData, config: TuneConfig) -> tuple[list[Sample], list[Sample]]:
    """The images to train on and those to validate on; no image is in both.

    Raises:
        DataError: an unknown image id, or nothing with a box for one of the two.
    """
    ids = {str(sample.image_id): index for index, sample in enumerate(task.train)}
    every = range(len(task.train))
    labelled = [index for index in every if any(task.train[index].box_phrases)]
    if config.image_list:
        unknown = next((name for name in config.image_list if name not in ids), None)
        if unknown is not None:
            raise DataError(f"task {task.name!r} has no image {unknown!r}: give ids of its training images")
        chosen = sorted({ids[name] for name in config.image_list})
    elif config.shots:
        chosen = draw_shots(task.train, task.names, config.shots, seed=config.seed, per=config.per)
    else:
        others = [index for index in every if index not in set(labelled)]
        held_out = {*labelled[::_VALIDATE_EVERY], *others[::_VALIDATE_EVERY]} if not task.validate else set()
        chosen = [index for index in every if index not in held_out]
    rest = list(task.validate) or [task.train[index] for index in every if index not in set(chosen)]
    train = [task.train[index] for index in chosen]
    for what, samples in (("train", train), ("validate", rest)):
        if not any(phrases for sample in samples for phrases in sample.box_phrases):
            raise DataError(
                f"task {task.name!r}: no image with a labelled box is left to {what} on: give more images, fewer shots "
                "or --validate SET"
            )
    return train, list(evenly_spaced(rest, config.max_val_images))


def _report_missing(title: str, samples: Sequence[Sample], report: Callable[[str], None]) -> None:
    """Say before the work which image files are missing; without any of them there is nothing to measure."""
    files = [sample.image for sample in samples if isinstance(sample.image, Path)]
    missing = [file for file in files if not file.is_file()]
    if missing and len(missing) == len(samples):
        raise DataError(f"{title}: none of its {len(samples)} images exists, such as {str(missing[0])!r}")
    if missing:
        report(f"{title}: {len(missing)} of {len(samples)} images do not exist, such as {str(missing[0])!r}")


def _report_data(
    task: TaskData,
    train: Sequence[Sample],
    validate: Sequence[Sample],
    images: Images,
    skipped: SkipCounter,
    report: Callable[[str], None],
) -> None:
    boxes = sum((count_classes(sample, "box") for sample in train), Counter[int]())
    count = sum(len(sample.boxes) - len(sample.crowd) for sample in train)
    report(
        f"{printable(task.name)}: {counted(len(task.names), 'class')}; training on "
        f"{counted(len(images.usable), 'image')} with {counted(count, 'box')}, {len(images.cached)} of them cached; "
        f"validating on {counted(len(validate), 'image')}, {sum(not any(one.box_phrases) for one in validate)} of them "
        "without a box"
    )
    if len(validate) < _FEW:
        report(f"{len(validate)} images are few to choose the best epoch and thresholds by: validate on more")
    without = [name for label, name in enumerate(task.names) if not boxes[label]]
    if without:
        more = ", ..." if len(without) > 8 else ""
        report(f"classes without a box to train on: {len(without)} ({', '.join(without[:8])}{more})")
    if skipped:
        report(f"skipped: {skipped}")


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
