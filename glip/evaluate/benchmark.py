"""A model on a set: its answers are collected (resumable, by any number of processes), then scored by a protocol.

What a set gives decides what is counted: lists of names have average precision against the annotation file itself
(COCO's and LVIS's) or against the samples (other formats), captions have the recall of their phrases.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm import tqdm

from glip.config import SetConfig
from glip.data.catalog import data_root
from glip.data.sets import SampleSet, SkipCounter
from glip.detector import Detector
from glip.errors import DataError
from glip.evaluate.journal import Journal
from glip.evaluate.lvis import load_package
from glip.evaluate.odinw import Task, read_task
from glip.evaluate.run import QueryOptions, answers
from glip.structures import Detections, Sample
from glip.text.class_prompts import ClassPrompt

Protocol = Literal["coco", "lvis", "any-box", "merged-boxes"]
_FAMILIES = {"goldg": ("flickr30k", "flickr_goldg", "mixed_goldg", "mixed_goldg_coco")}  # what a name stands for
LVIS_NAMES, LVIS_KEPT = 40, 300  # names in a chunk and detections of a chunk, as the 2022 release evaluates


@dataclass(frozen=True)
class Benchmark:
    """A set to be evaluated on.

    Args:
        name: of the set.
        config: where its files lie, all paths complete.
        read: its samples and category ids.
        samples: the same samples, read once, drawn ones without their images.
        protocol: what is counted.
        prompts: by class name, what is written instead of it.
        same_as: sets under which a model may have been trained on it.
    """

    name: str
    config: SetConfig
    read: SampleSet
    samples: tuple[Sample, ...]
    protocol: Protocol
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    same_as: tuple[str, ...] = ()

    @property
    def annotations(self) -> Path | None:
        """The json that lists of names are scored against; None: against the samples."""
        listed = self.config.format in ("coco", "lvis")
        return Path(self.config.annotations) if listed else None

    @property
    def digest(self) -> str:
        """Tells whether it is the same words that are asked of the same images."""
        digest = hashlib.sha256(repr(self.config).encode())
        for sample in self.samples:
            words = (sample.prompt.caption, sample.prompt.phrases) if sample.prompt else _digest(sample.vocabulary)
            digest.update(repr((sample.image_id, str(sample.image), words)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def seen_in(self, trained_on: Sequence[str]) -> bool:
        """Whether a model was trained on this set, or on another split of it, by the names of its training sets."""
        return seen_in(trained_on, self.config, self.name, *self.same_as)


def seen_in(trained_on: Sequence[str], config: SetConfig, *names: str) -> bool:
    """Whether a model trained on these sets has seen the set of any of the names, or another split of it."""
    own = ("drawn world",) if config.format == "world" else names
    trained = {part for name in trained_on for part in _FAMILIES.get(name, (name,))}
    return bool({_without_split(name) for name in own} & {_without_split(name) for name in trained})


@lru_cache(maxsize=64)
def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(repr(names).encode("utf-8", "surrogatepass")).hexdigest()


def load_benchmark(name: str, config: SetConfig, read: SampleSet, protocol: Protocol | None) -> Benchmark:
    """A set with the protocol of its format, or the given one.

    Raises:
        ValueError: a protocol that does not go with the set, nothing that could be scored, or a set without end.
        FileNotFoundError: an image file is not there.
    """
    if config.format == "captions":
        raise DataError(f"set {name!r} has captions without boxes: there is nothing to score; take a set with boxes")
    if config.format == "world" and not config.count:
        raise DataError(f"set {name!r} has no end: take world_seen or world_novel, or give it a count in datasets.yaml")
    samples = tuple(_without_drawing(sample) for sample in read.samples)
    captioned = {sample.prompt is not None for sample in samples}
    usual: Protocol = "any-box" if captioned == {True} else "lvis" if config.format == "lvis" else "coco"
    chosen = protocol or usual
    if captioned == {chosen in ("coco", "lvis")}:
        fitting = "any-box or merged-boxes" if captioned == {True} else "coco (or lvis, for LVIS's json)"
        what = "captions" if captioned == {True} else "lists of names"
        raise DataError(f"--protocol {chosen}: set {name!r} has {what}: take {fitting}")
    if chosen == "lvis" and config.format != "lvis":
        raise DataError(f"--protocol lvis: set {name!r} is no LVIS json: it has no neg_category_ids; take coco")
    if chosen == "lvis":
        load_package()  # where it cannot be loaded one should know before the model has run for a day
    return _checked(Benchmark(name, config, read, samples, chosen))


def examine_task(task: Task, root: str | Path | None) -> Benchmark:
    """A task of ODinW with its caption prompts.

    Raises:
        FileNotFoundError: its files are not under the root.
        ValueError: not the annotations that ODinW distributes, or nothing that could be scored.
    """
    config = task.files()
    config = replace(config, annotations=str(data_root(root) / config.annotations))
    read = read_task(task, root)
    return _checked(Benchmark(task.name, config, read, tuple(read.samples), "coco", task.prompts, task.same_as))


def _checked(exam: Benchmark) -> Benchmark:
    """Refuse before the model runs what could not be scored after it.

    Figures over a part of a set would not be those of the set, so every image must be there.
    """
    if not any(phrases and box not in s.crowd for s in exam.samples for box, phrases in enumerate(s.box_phrases)):
        raise DataError(
            f"set {exam.name!r}: none of its {len(exam.samples)} samples has a named box: there is nothing to score; "
            "look at it with glip data check"
        )
    files = [sample.image for sample in exam.samples if isinstance(sample.image, Path)]
    gone = [str(file) for file in files if file != Path() and not file.is_file()]
    if gone:
        shown = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        raise FileNotFoundError(
            f"set {exam.name!r}: {len(gone)} of its {len(files)} images are not there ({shown}): correct --images or "
            "--root, or take them out of the annotations"
        )
    return exam


def _without_drawing(sample: Sample) -> Sample:
    return replace(sample, image=Path()) if isinstance(sample.image, Image.Image) else sample


def asking_for(protocol: Protocol, options: QueryOptions) -> QueryOptions:
    """How the protocol has the model asked, where the caller leaves it open; 0 names in a chunk: as many as fit."""
    if protocol != "lvis":
        return replace(options, max_names=options.max_names or None)
    names = LVIS_NAMES if options.max_names is None else options.max_names
    kept = LVIS_KEPT if options.max_detections is None else options.max_detections
    return replace(options, max_names=names or None, max_detections=0, chunk_detections=kept)


def collect(
    detector: Detector,
    samples: Sequence[Sample],
    journal: Journal,
    options: QueryOptions,
    *,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Ask for all samples that have no answer yet, and write each answer as it comes.

    Args:
        detector: the model.
        samples: of the set.
        journal: where answers go; those in it are not made again.
        options: how.
        share: number of this process, and how many there are; each takes a run of samples, so that captions of one
            image stay together.

    Raises:
        ValueError: a vocabulary that the model cannot read.
    """
    pending = sorted(set(range(len(samples))) - journal.done)
    number, processes = share
    own = pending[number * len(pending) // processes : (number + 1) * len(pending) // processes]
    quiet = True if number else None  # one process speaks, and only on a terminal
    with tqdm(total=len(samples), initial=len(samples) - len(own), unit="sample", disable=quiet, leave=False) as bar:
        for answer in answers(detector, samples, own, options):
            journal.add(answer)
            bar.update()


def count_passed_over(journal: Journal, tally: SkipCounter) -> None:
    """Count the samples that could not be asked about, by reason."""
    for entry in journal.entries():
        if entry.reason:
            tally.add(entry.reason, entry.place)


def answered(
    journal: Journal, samples: Sequence[Sample], options: QueryOptions
) -> Iterator[tuple[int, Sample, Detections]]:
    """Samples with their numbers and answers, in order, read as they are needed; without those passed over."""
    listed = lru_cache(maxsize=64)(options.listed)
    for entry in journal.entries():
        if not entry.reason:
            sample = samples[entry.sample]
            yield entry.sample, sample, entry.detections(sample.prompt or listed(sample.vocabulary))


def _without_split(name: str) -> str:
    """The name of a set without its split."""
    for split in ("_train", "_val", "_test", "_minival", "_train2017", "_val2017"):
        name = name.removesuffix(split)
    return name
