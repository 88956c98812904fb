"""One task from its sets to its artefact: shots, tuning, thresholds, figures; what ``glip tune`` does for each task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip.adaptation import Adaptation, Mode
from glip.data.sets import SkipCounter
from glip.errors import ConfigError
from glip.structures import Prompt, Sample
from glip.text.class_prompts import ClassPrompt

if TYPE_CHECKING:
    from glip.config import ModelConfig
    from glip.data.shots import Per
    from glip.detector import Detector
    from glip.encoded import FeatureCache
    from glip.evaluate.coco import Score

ARTEFACT, SPLIT, REPORT, CURVE = "task.safetensors", "images.json", "report.json", "curve.png"
OUT = "runs/tune"
FROZEN_STAGES = 1  # of the image encoder in mode full, and the stem: the release's FREEZE_CONV_BODY_AT 2


@dataclass(frozen=True)
class TaskSets:
    """What a task is tuned, validated and tested on.

    Args:
        name: of the task.
        names: its classes.
        train: images to tune on, or to draw shots from.
        validate: images to choose by; empty: a share of those not tuned on.
        test: images for the figures at the end; may be empty.
        prompts: by class, what is written instead of its name.
        skipped: what the readers left out of the sets.
    """

    name: str
    names: tuple[str, ...]
    train: Sequence[Sample]
    validate: Sequence[Sample] = ()
    test: Sequence[Sample] = ()
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    skipped: SkipCounter = field(default_factory=SkipCounter)

    def __post_init__(self) -> None:
        for part in (self.train, self.validate, self.test):
            if len(part) and part[0].vocabulary != self.names:
                raise ConfigError(
                    f"task {self.name!r} has the names {', '.join(self.names)[:80]!r}, its images "
                    f"{', '.join(part[0].vocabulary)[:80]!r}: labels would be mixed up"
                )

    @cached_property
    def mark(self) -> str:
        """Tells these sets from the same with other images, boxes or words."""
        from glip.data.survey import mark_of

        parts = (self.train, self.validate, self.test)
        words = sorted((name, prompt.text) for name, prompt in self.prompts.items())
        return "; ".join([*map(mark_of, parts), *map(str, words)])


@dataclass(frozen=True)
class TuneConfig:
    """How a task is tuned.

    Args:
        mode: what trains.
        shots: images (or boxes) of each class; None: all.
        per: what shots count.
        seed: of the draw and of the tuning.
        chosen: ids of the images to tune on, instead of a draw.
        settings: changes to the usual settings of the mode.
        vary: mirror and resize images anew in each epoch.
        thresholds: store the thresholds of best F1.
        most_validated: validation images at most.
    """

    mode: Mode = "prompt"
    shots: int | None = None
    per: "Per" = "image"
    seed: int = 0
    chosen: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    vary: bool = False
    thresholds: bool = True
    max_val_images: int = 100

    @property
    def shots_text(self) -> str:
        """The shots as rows, folders and people name them."""
        return str(self.shots or "all")


def read_sets(
    train: str,
    *,
    validate: str | None,
    test: str | None,
    images: Sequence[str],
    prompts: str | None,
    root: str | None,
    name: str = "",
) -> TaskSets:
    """The sets of a task, by their names or files; the task is called as its training set is.

    Raises:
        ValueError: sets of captions, with names of their own for each image, or with different names.
    """
    from glip.data.catalog import data_root, find_set, folders_of
    from glip.experiment import read_yaml
    from glip.text.class_prompts import read_prompts

    skipped = SkipCounter()
    folders = folders_of([name for name in (train, validate, test) if name], images, root)
    samples, names = _read_named(train, folders[train], root, skipped)
    parts: dict[str, Sequence[Sample]] = {"validate": (), "test": ()}
    for part, given in (("validate", validate), ("test", test)):
        if given:
            parts[part], own = _read_named(given, folders[given], root, skipped)
            if own != names:
                raise ConfigError(
                    f"{part}: {given!r} has the names {', '.join(own)[:80]}, the task {', '.join(names)[:80]}: give a "
                    "set with the same classes"
                )
    usual = find_set(train, root=root).prompts
    file = prompts or (usual and data_root(root) / usual)
    written = read_prompts(read_yaml(Path(file)), names) if file else {}
    task = name or Path(train).stem.removesuffix("_train")
    return TaskSets(task, names, samples, parts["validate"], parts["test"], written, skipped)


def _read_named(
    name: str, images: Sequence[str], root: str | None, skipped: SkipCounter
) -> tuple[Sequence[Sample], tuple[str, ...]]:
    """The samples of a set whose images share one list of names, and that list."""
    from glip.data.catalog import find_set, read_set

    read = read_set(find_set(name, images=images, root=root), root)
    skipped.merge(read.skipped)
    if not read.vocabulary or any(sample.vocabulary != read.vocabulary for sample in read.samples):
        raise ConfigError(
            f"set {name!r} has no list of names that all its images share: a task is tuned on boxes with class "
            "names, such as COCO json"
        )
    return read.samples, read.vocabulary


def tune_task(
    detector: "Detector",
    sets: TaskSets,
    how: TuneConfig,
    folder: Path,
    *,
    kept: "FeatureCache",
) -> Adaptation:
    """Tune a model for a task and write the artefact, the images it was tuned on, a report and a curve.

    ``kept`` holds the images of the task as the model's own encoder sees them, for the next tuning of the same task.

    Raises:
        ValueError: sets that cannot be tuned on, or a folder of another tuning.
        TrainingError: losses stayed non-finite.
        Interrupted: a signal came; the same call goes on.
    """
    from glip.data.survey import mark_of
    from glip.evaluate.thresholds import best_thresholds
    from glip.model.adapt import save_adaptation
    from glip.train.tune import TuneRun, usual_settings
    from glip.train.tuning import Images, Tuner

    chosen, max_val_images = _divide(sets, how)
    train, tally = [sets.train[index] for index in chosen], SkipCounter()
    tally.merge(sets.skipped)
    for title, samples in (("validation", max_val_images), ("test", sets.test)):
        _tell_missing(title, samples)
    tuner = Tuner(detector, sets.names, prompt_of(sets), mode=how.mode, frozen_stages=FROZEN_STAGES)
    images = Images(train, tuner, vary=how.vary, kept=kept, skipped=tally)
    _tell(sets, train, max_val_images, images, tally)
    ids = [str(sample.image_id) for sample in train]
    settings = usual_settings(how.mode, seed=how.seed, **how.settings)
    score_of = _Scorer(kept)
    read = reading_of(detector.config)
    of = f"{detector.fingerprint} {read} {sets.name} {mark_of(train)} {mark_of(max_val_images)} {how.vary}"
    judged = partial(score_of, "validation", samples=max_val_images)
    run = TuneRun(tuner, images, settings, validate=lambda adapted: judged(adapted).ap, folder=folder, of=of)
    _write_json(folder / SPLIT, {"set": sets.name, "shots": how.shots, "per": how.per, "seed": how.seed, "ids": ids})
    found = run()
    figures = dict(found.figures)
    if how.thresholds:
        usual = detector.config.inference.threshold
        found = replace(found, thresholds=best_thresholds(judged(detector.adapted(found)).rankings, usual))
    if sets.test:
        for title, tested in (("test before", detector.adapted(_untuned(found))), ("test", detector.adapted(found))):
            score = score_of("test", tested, sets.test)
            figures |= {f"{title} AP": score.ap, f"{title} AP50": score.ap50}
    for title, passed in score_of.passed.items():
        tally.add(f"image of the {title} that cannot be read", times=passed)
    about = {"task": sets.name, "shots": how.shots_text, "per": how.per, "seed": str(how.seed)}
    found = replace(found, figures=figures, about={**about, "images": str(len(images))})
    save_adaptation(folder / ARTEFACT, found)
    _write_report(folder, found, run.state.history, tally)
    return found


class _Scorer:
    """Scores adapted detectors: images are encoded once where their image encoder is the model's own.

    ``passed`` counts the images that could not be looked at, by what was scored.
    """

    def __init__(self, kept: "FeatureCache") -> None:
        self.kept = kept
        self.passed: dict[str, int] = {}

    def __call__(self, title: str, detector: "Detector", samples: Sequence[Sample]) -> "Score":
        from glip.evaluate.coco import average_precision
        from glip.evaluate.run import detect_all

        tally, own = SkipCounter(), detector.adaptation is None or detector.adaptation.keeps_encoder
        score = average_precision(detect_all(detector, samples, tally=tally, kept=self.kept if own else None))
        if tally:
            self.passed[title] = sum(tally.counts.values())
        return score


def _tell_missing(title: str, samples: Sequence[Sample]) -> None:
    """Say before the work which images of a part are not there; without any of them there is nothing to measure."""
    files = [sample.image for sample in samples if isinstance(sample.image, Path)]
    missing = [file for file in files if not file.is_file()]
    if missing and len(missing) == len(samples):
        raise ConfigError(f"{title}: none of its {len(samples)} images is there, such as {str(missing[0])!r}")
    if missing:
        print(f"{title}: {len(missing)} of {len(samples)} images are not there, such as {str(missing[0])!r}")


def folder_of(out: str, name: str, how: TuneConfig) -> Path:
    """Where a tuning goes."""
    return Path(out) / f"{name}-{how.mode}-{how.shots_text}-{how.seed}"


def reading_of(config: "ModelConfig") -> str:
    """Tells models of the same weights that read images or decode in another way."""
    from zlib import crc32

    return f"{crc32(repr((asdict(config.image), asdict(config.inference))).encode()):08x}"


def prompt_of(sets: TaskSets) -> Prompt:
    """The caption of a task: all its names in their order, some as their prompts say."""
    from glip.text.class_prompts import prompt_from_classes

    return prompt_from_classes(sets.names, sets.prompts)


def _untuned(found: Adaptation) -> Adaptation:
    """The same words with nothing learned."""
    offsets = None if found.offsets is None else found.offsets * 0
    return replace(found, offsets=offsets, weights={}, thresholds=())


def _divide(sets: TaskSets, how: TuneConfig) -> tuple[list[int], list[Sample]]:
    """Which images are tuned on, and those to validate on, which never are the same."""
    from glip.data.shots import draw_shots
    from glip.evaluate.validate import Chosen

    shown = [index for index, sample in enumerate(sets.train) if any(sample.box_phrases)]
    if not shown:
        raise ConfigError(f"task {sets.name!r}: no image to tune on has a named box: look at it with glip data check")
    held: list[int] = []
    if not sets.validate and how.shots is None and how.chosen is None:
        held = shown[::5]  # a fifth, spread over the set
    usable = [index for index in range(len(sets.train)) if index not in set(held)]
    if how.chosen is not None:
        place = {str(sets.train[index].image_id): index for index in usable}
        strange = [name for name in how.chosen if name not in place]
        if strange:
            raise ConfigError(f"task {sets.name!r} has no image {strange[0]!r}: give ids of its training images")
        chosen = sorted({place[name] for name in how.chosen})
    elif how.shots is None:
        chosen = usable
    else:
        samples = [sets.train[index] for index in usable]
        drawn = draw_shots(samples, sets.names, how.shots, seed=how.seed, per=how.per)
        chosen = [usable[index] for index in drawn]
    if not set(chosen) & set(shown):
        raise ConfigError(
            f"task {sets.name!r}: of its {len(shown)} images with a named box none is left to tune on, since some "
            "are held back to validate: give --validate SET, or more images"
        )
    own = set(chosen)
    rest = list(sets.validate) or [sets.train[index] for index in shown if index not in own]
    if not any(phrases for sample in rest for phrases in sample.box_phrases):
        raise ConfigError(
            f"task {sets.name!r}: no image with a named box is left to validate on: give --validate SET, or tune on "
            "fewer shots"
        )
    limited = Chosen(rest, how.max_val_images)
    return chosen, [limited[index] for index in range(len(limited))]


def _tell(
    sets: TaskSets,
    train: Sequence[Sample],
    max_val_images: Sequence[Sample],
    images: Any,
    tally: SkipCounter,
) -> None:
    boxes = sum(len(sample.boxes) - len(sample.crowd) for sample in train)
    print(
        f"{sets.name}: {len(sets.names)} names; tuned on {len(images)} images with {boxes} boxes, "
        f"{images.kept} encoded once; validated on {len(max_val_images)} images"
    )
    bare = [
        name
        for label, name in enumerate(sets.names)
        if not any(
            label in labels and box not in sample.crowd
            for sample in train
            for box, labels in enumerate(sample.box_phrases)
        )
    ]
    if bare:
        print(f"{len(bare)} names have no box to tune on: {', '.join(bare[:8])}{', ...' if len(bare) > 8 else ''}")
    if tally:
        print(f"left out: {tally}")


def _write_report(folder: Path, found: Adaptation, history: Sequence[Mapping[str, float]], tally: SkipCounter) -> None:
    from glip.evaluate.figures import draw_epochs

    named = dict(zip(found.names, found.thresholds, strict=False))
    tree = {"figures": dict(found.figures), "about": dict(found.about), "thresholds": named, "epochs": list(history)}
    _write_json(folder / REPORT, {**tree, "mode": found.mode, "left out": dict(tally.counts)})
    draw_epochs([row["validation"] for row in history], [row["loss"] for row in history][1:], folder / CURVE)


def _write_json(path: Path, tree: Any) -> None:
    import json

    from glip.data.writers import whole_file

    with whole_file(path) as file:
        json.dump(tree, file, indent=1, ensure_ascii=False)
