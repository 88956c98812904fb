"""Sets to evaluate on: what their names stand for, their samples, ground truth and protocol.

The annotations decide what is computed: lists of names have average precision against the annotation file itself
(COCO's and LVIS's) or against the samples (other formats), captions have the recall of their phrases.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from glip.config import UNSTATED, VALIDATED, EvaluateConfig, ModelConfig, Protocol, SetConfig
from glip.data.catalog import data_root, dataset_name, find_set, folders_of, known_sets, missing_part, read_set
from glip.data.check import refuse_wrong_boxes
from glip.data.mixture import data_fingerprint, images_fingerprint
from glip.data.sets import AMBIGUOUS, SampleSet, SkipCounter
from glip.errors import ConfigError, DataError
from glip.evaluate.columns import GroundTruth, Results, read_truth, truth_of
from glip.evaluate.d3 import read_descriptions, score_descriptions
from glip.evaluate.lvis import import_lvis
from glip.evaluate.odinw import ODINW, read_task, tasks
from glip.evaluate.omnilabel import read_spaces, score_spaces
from glip.evaluate.report import Row, TrainedOn
from glip.evaluate.saco import read_pairs, score_pairs
from glip.structures import Sample
from glip.text.class_prompts import ClassPrompt

_FAMILIES = {  # what a name stands for
    "goldg": ("flickr30k", "flickr_goldg", "mixed_goldg", "mixed_goldg_coco"),
    "drawn world": ("world_seen", "world_novel", "world_seen_captions", "world_novel_captions"),
}
_GENERAL: tuple[tuple[bool, Protocol], ...] = ((False, "coco"), (True, "any-box"), (True, "merged-boxes"))  # captions?
_OWN: Mapping[str, tuple[Protocol, ...]] = {  # by format, the protocols that fit its sets; the first is the usual one
    "lvis": ("lvis", "coco"),
    "refcoco": ("refcoco",),
    "grefcoco": ("grefcoco",),
    "ovdeval": ("ovdeval", "coco"),
    "saco": ("saco",),
    "d3": ("d3",),
    "omnilabel": ("omnilabel",),
}
_OF_PARTS = ("refcoco", "grefcoco", "ovdeval", "saco")  # formats of benchmarks whose sets are parts of a whole
_SPLIT = re.compile(r"_(train|val|test|testA|testB|minival)(2017)?$")
_FOR_EVALUATION = re.compile(r"_(val|test|minival|val2017|seen|novel)(_|$)")  # in names of sets not to train on


class Scorer(NamedTuple):
    """The protocol of a benchmark with figures of its own, for files of its own format."""

    truth: Callable[[SampleSet, SkipCounter], GroundTruth]
    score: Callable[[Any, Results], tuple[dict[str, float], dict[str, list[Row]]]]  # figures and tables by name


SCORERS: Mapping[str, Scorer] = {
    "saco": Scorer(read_pairs, score_pairs),
    "d3": Scorer(read_descriptions, score_descriptions),
    "omnilabel": Scorer(read_spaces, score_spaces),
}


@dataclass(frozen=True)
class Benchmark:
    """A set to evaluate on; a file is named after its folder and itself.

    ``prompts`` are texts written instead of class names, ``same_as`` other names under which a model may have been
    trained on it. ``listed`` says whether its name is from a table of sets, as those that models were trained on.
    """

    name: str
    config: SetConfig
    read: SampleSet
    protocol: Protocol
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    same_as: tuple[str, ...] = ()
    listed: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """Tells images and annotations from others, wherever they are stored."""
        return data_fingerprint(self.read.samples)

    def ground_truth(self, skipped: SkipCounter) -> GroundTruth:
        """What there is to find: as the annotation file says, or for other formats than COCO's as the samples say.

        What cannot be scored is counted, unless it was when the set was read.
        """
        if not self.read.annotations:
            return truth_of(self.read.samples)
        found, own = SkipCounter(), SCORERS.get(self.protocol)
        lvis = self.protocol == "lvis"
        truth = own.truth(self.read, found) if own else read_truth(self.read.annotations, found, lvis=lvis)
        skipped.merge(found.only(found.counts.keys() - self.read.skipped.counts.keys()))
        return truth

    def trained_on(self, model: ModelConfig) -> TrainedOn:
        """Whether a model was trained on this set or chosen by it, as far as its config can say.

        Fingerprints tell it of any set, names of sets from a table; the weights of the release know only names.
        """
        stored, images = set(model.trained_on_data), images_fingerprint(self.read.samples)
        if stored & {self.fingerprint, images} or (self.listed and self.name in model.trained_on):
            return "yes"
        if VALIDATED + self.fingerprint in stored:
            return "validated on"
        if seen_in(model.trained_on, self.name, *self.same_as):
            return "same dataset by name"
        known = (stored, set(model.trained_on) if self.listed else set[str]())
        return "no" if any(one and UNSTATED not in one for one in known) else "unknown"


def seen_in(trained_on: Sequence[str], *names: str) -> bool:
    """Whether a model trained on these sets has seen the set with any of the names, or another split of it."""
    trained = {_SPLIT.sub("", part) for name in trained_on for part in _FAMILIES.get(name, (name,))}
    return not trained.isdisjoint(_SPLIT.sub("", name) for name in names)


def has_boxes(samples: Iterable[Sample]) -> bool:
    """Whether there is a named box to find, groups not counted."""
    return any(phrases and box not in one.crowd for one in samples for box, phrases in enumerate(one.box_phrases))


def check_samples(title: str, read: SampleSet, *, every: bool) -> None:
    """Refuse what could not be scored before a model runs for hours; doubts about boxes join what was skipped.

    With ``every`` each image must be there, as for the official figures; else one is enough.

    Raises:
        DataError: missing image files, no named box, or boxes that cannot be right.
    """
    total, files = len(read.samples), (sample.image for sample in read.samples)
    missing = [file for file in files if isinstance(file, Path) and not file.is_file()]
    if missing and (every or len(missing) == total):
        raise DataError(f"{title}: {read.tell_missing(missing, total)}: correct its image folder or the data root")
    doubtful = every and read.skipped.counts.get(AMBIGUOUS, 0)
    if doubtful or not (read.format == "saco" or has_boxes(read.samples)):  # phrases of nothing have figures there
        raise DataError(f"{title}: {f'{doubtful} x {AMBIGUOUS}' if doubtful else read.tell_boxless(total)}")
    read.skipped.merge(refuse_wrong_boxes(title, read))


def parts_of(name: str, root: str | Path | None = None) -> list[str]:
    """The sets that a name stands for: tasks of ODinW, or those called NAME_... of a benchmark; [] for a single set."""
    if name in ODINW:
        return [task.name for task in tasks(ODINW[name])]
    known = known_sets(root)
    parts = [part for part, entry in known.items() if part.startswith(f"{name}_") and entry.format in _OF_PARTS]
    return [] if name in known else parts


def load_benchmarks(names: Sequence[str], config: EvaluateConfig) -> dict[str, list[Benchmark]]:
    """The benchmark of each set, and of a name that stands for several (``parts_of``) those that are there.

    Without names these are all known sets for validation or tests that have boxes and are under the root, and ODinW.

    Raises:
        ConfigError: an unknown set, two of one name, or nothing that is there.
        DataError: a set that cannot be evaluated.
        FileNotFoundError: files of a set are missing.
    """
    root, known = config.root, known_sets(config.root)
    there = {
        name: [task for task in tasks(which) if not missing_part(task.files(), root)] for name, which in ODINW.items()
    }
    usable = [name for name, entry in known.items() if entry.format != "captions" and not missing_part(entry, root)]
    every = [name for name in usable if _FOR_EVALUATION.search(name) or known[name].format in _OF_PARTS]
    chosen = names or [*every, *(["odinw13"] if there["odinw13"] else [])]
    parts = {name: parts_of(name, root) for name in chosen if name not in ODINW}
    sets = {name: [part for part in own if part in usable] if own else [name] for name, own in parts.items()}
    folders = folders_of([part for own in sets.values() for part in own], config.images, root)
    found: dict[str, list[Benchmark]] = {name: [] for name in chosen}
    for name in chosen:
        for task in there.get(name, ()):
            made = load_benchmark(task.name, task.files(), read_task(task, root), "coco")
            found[name].append(replace(made, prompts=task.prompts, same_as=task.same_as))
        for part in sets.get(name, ()):
            entry = find_set(part, images=folders[part], root=root, split="val")
            read = read_set(entry, root, to_score=True)
            made = load_benchmark(dataset_name(part, root, "val"), entry, read, config.protocol)
            found[name].append(replace(made, listed=part in known))
    empty = [name for name, own in found.items() if not own]
    if empty or not found:
        what, hint = "No known set for evaluation", "give --root or GLIP_DATA, or the path of a set"
        if empty:  # of its parts the first says where they belong
            name = empty[0]
            first = tasks(ODINW[name])[0].files() if name in ODINW else known[parts[name][0]]
            what, hint = f"{name}: none of its parts", f"it needs {missing_part(first, root)}, ...: {hint}"
        raise ConfigError(f"{what} is under {str(data_root(root))!r}: {hint}")
    listed = [benchmark.name for own in found.values() for benchmark in own]
    twins = [name for name in listed if listed.count(name) > 1]
    if twins:
        raise ConfigError(f"Two sets are called {twins[0]!r}: evaluate them one by one, or name them in datasets.yaml")
    return found


def load_benchmark(name: str, config: SetConfig, read: SampleSet, protocol: Protocol | None) -> Benchmark:
    """A set with the protocol of its format, or the given one.

    Figures over a part of a set would not be those of the set, so every image must be there.

    Raises:
        DataError: a protocol that does not fit the set, nothing that could be scored, or a missing image file.
    """
    check_samples(f"Set {name!r}", read, every=True)
    captioned = {sample.prompt is not None for sample in read.samples}
    fitting = _OWN.get(read.format) or tuple(own for kind, own in _GENERAL if kind in captioned)
    chosen = protocol or fitting[0]
    if chosen not in fitting:
        what = "captions" if captioned == {True} else "lists of names"
        take = " or ".join(fitting)
        raise DataError(f"Protocol {chosen!r} does not fit set {name!r}, {what} in {read.format}: take {take}")
    if chosen == "lvis":
        import_lvis()  # if it cannot be loaded, say so before the model has run for a day
    return Benchmark(name, config, read, chosen)
