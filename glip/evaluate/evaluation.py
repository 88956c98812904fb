"""A model on a set: its answers are collected (resumable, by any number of processes), then scored by a protocol.

What a set gives decides what is counted: lists of names have average precision against the annotation file itself
(COCO's and LVIS's) or against the samples (other formats), captions have the recall of their phrases.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from glip.config import SetConfig
from glip.data.catalog import data_root
from glip.data.phrasing import ClassPrompt
from glip.data.sets import SampleSet, Tally
from glip.detector import Detector
from glip.evaluate.flickr import with_released_ids
from glip.evaluate.journal import Journal
from glip.evaluate.lvis import load_package
from glip.evaluate.odinw import Task, read_task
from glip.evaluate.run import Asking, answers
from glip.structures import Detections, Sample

Protocol = Literal["coco", "lvis", "any-box", "merged-boxes"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
LVIS_NAMES, LVIS_KEPT = 40, 300  # names in a chunk and detections of a chunk, as the 2022 release evaluates


@dataclass(frozen=True)
class Examination:
    """A set to be evaluated on.

    Args:
        name: of the set.
        config: where its files lie, all paths complete.
        read: its samples and category ids.
        protocol: what is counted.
        prompts: by class name, what is written instead of it.
        same_as: sets under which a model may have been trained on it.
    """

    name: str
    config: SetConfig
    read: SampleSet
    protocol: Protocol
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    same_as: tuple[str, ...] = ()

    @property
    def annotations(self) -> Path | None:
        """The json that lists of names are scored against; None: against the samples."""
        listed = self.config.format in ("coco", "lvis")
        return Path(self.config.annotations) if listed else None

    def seen_in(self, trained_on: Sequence[str]) -> bool:
        """Whether a model was trained on this set, or on another split of it, by the names of its training sets."""
        own = {"drawn world"} if self.config.format == "world" else {self.name, *self.same_as}
        return bool({_without_split(name) for name in own} & {_without_split(name) for name in trained_on})


def examine(name: str, config: SetConfig, read: SampleSet, protocol: Protocol | None) -> Examination:
    """A set with the protocol of its format, or the given one.

    Raises:
        ValueError: a protocol that does not go with the set, or captions without phrases.
    """
    first = read.samples[0]
    if config.format == "captions":
        raise ValueError(f"set {name!r} has captions without boxes: there is nothing to score; take a set with boxes")
    captioned = first.prompt is not None
    usual: Protocol = "any-box" if captioned else "lvis" if config.format == "lvis" else "coco"
    chosen = protocol or usual
    if captioned != (chosen in ("any-box", "merged-boxes")) and config.format != "world":
        fitting = "any-box or merged-boxes" if captioned else "coco (or lvis, for LVIS's json)"
        what = "captions" if captioned else "lists of names"
        raise ValueError(f"--protocol {chosen}: set {name!r} has {what}: take {fitting}")
    if chosen == "lvis" and config.format != "lvis":
        raise ValueError(f"--protocol lvis: set {name!r} is no LVIS json: it has no neg_category_ids; take coco")
    if chosen == "lvis":
        load_package()  # where it cannot be loaded one should know before the model has run for a day
    if config.format == "mdetr":
        read = replace(read, samples=list(with_released_ids(read.samples, config.annotations)))
    return Examination(name, config, read, chosen)


def examine_task(task: Task, root: str | Path | None) -> Examination:
    """A task of ODinW with its caption prompts.

    Raises:
        FileNotFoundError: its files are not under the root.
        ValueError: not the annotations that ODinW distributes.
    """
    config = task.files()
    config = replace(config, annotations=str(data_root(root) / config.annotations))
    return Examination(task.name, config, read_task(task, root), "coco", task.prompts, task.same_as)


def asking_for(protocol: Protocol, asking: Asking) -> Asking:
    """How the protocol has the model asked, where the caller leaves it open."""
    if protocol != "lvis":
        return asking
    names = LVIS_NAMES if asking.max_names is None else asking.max_names
    kept = LVIS_KEPT if asking.max_detections is None else asking.max_detections
    return replace(asking, max_names=names or None, max_detections=0, chunk_detections=kept)


def collect(
    detector: Detector, samples: Sequence[Sample], journal: Journal, asking: Asking, *, share: tuple[int, int] = (0, 1)
) -> None:
    """Ask for all samples that have no answer yet, and write each answer as it comes.

    Args:
        detector: the model.
        samples: of the set.
        journal: where answers go; those in it are not made again.
        asking: how.
        share: number of this process, and how many there are; each takes a run of samples, so that captions of one
            picture stay together.

    Raises:
        ValueError: a vocabulary that the model cannot read.
    """
    pending = sorted(set(range(len(samples))) - journal.done)
    number, processes = share
    own = pending[number * len(pending) // processes : (number + 1) * len(pending) // processes]
    quiet = True if number else None  # one process speaks, and only on a terminal
    with tqdm(total=len(samples), initial=len(samples) - len(own), unit="sample", disable=quiet, leave=False) as bar:
        for answer in answers(detector, samples, own, asking):
            journal.add(answer)
            bar.update()


def answered(
    journal: Journal, samples: Sequence[Sample], asking: Asking, tally: Tally
) -> Iterator[tuple[int, Sample, Detections]]:
    """Samples with their numbers and answers, in order; what was passed over is counted."""
    for entry in journal.entries():
        if entry.reason:
            tally.note(entry.reason, entry.place)
        else:
            sample = samples[entry.sample]
            yield entry.sample, sample, entry.detections(asking.words(sample))


def check_pictures(name: str, samples: Sequence[Sample]) -> None:
    """Refuse to evaluate on a part of a set: its figures would not be those of the set.

    Raises:
        FileNotFoundError: a picture file is not there.
    """
    gone = [str(s.picture) for s in samples if isinstance(s.picture, Path) and not s.picture.is_file()]
    if gone:
        shown = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        raise FileNotFoundError(
            f"set {name!r}: {len(gone)} of its {len(samples)} pictures are not there ({shown}): correct --images or "
            "--root, or take them out of the annotations"
        )


def _without_split(name: str) -> str:
    """The name of a set without its split."""
    for split in ("_train", "_val", "_test", "_train2017", "_val2017"):
        name = name.removesuffix(split)
    return name
