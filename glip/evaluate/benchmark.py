"""Sets to evaluate on: what their names stand for, their samples, ground truth and protocol.

The annotations decide what is computed: lists of names have average precision against the annotation file itself
(COCO's and LVIS's) or against the samples (other formats), captions have the recall of their phrases.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from glip.config import EvaluateConfig, Format, ModelConfig, Protocol, SetConfig
from glip.data.catalog import data_root, dataset_name, find_set, folders_of, known_sets, missing_part, read_set
from glip.data.mixture import data_fingerprint
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import ConfigError, DataError
from glip.evaluate.ground_truth import GroundTruth, read_coco_truth, read_lvis_truth, truth_of
from glip.evaluate.lvis import import_lvis
from glip.evaluate.odinw import ODINW, Task, read_task, tasks
from glip.evaluate.report import TrainedOn
from glip.structures import Sample
from glip.text.class_prompts import ClassPrompt

_FAMILIES = {  # what a name stands for
    "goldg": ("flickr30k", "flickr_goldg", "mixed_goldg", "mixed_goldg_coco"),
    "drawn world": ("world_seen", "world_novel", "world_seen_captions", "world_novel_captions"),
}
_SPLITS = ("_train", "_val", "_test", "_minival", "_train2017", "_val2017")
_FOR_EVALUATION = re.compile(r"_(val|test|minival|val2017|seen|novel)(_|$)")  # in names of sets not to train on


@dataclass(frozen=True)
class Benchmark:
    """A set to evaluate on.

    Args:
        name: of the set; a file is named after its folder and itself.
        config: where its files are, all paths complete.
        read: its samples and category ids.
        protocol: which metrics are computed.
        prompts: by class name, the text written instead of it.
        same_as: other names under which a model may have been trained on it.
        listed: whether it has its name from a table of sets, as the sets that models were trained on.
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
        """What there is to find: as the annotation file says, or for other formats than COCO's as the samples say."""
        file = self.read.annotations or self.config.annotations
        if self.protocol == "lvis":
            return read_lvis_truth(file, skipped)
        if self.config.format in ("coco", "lvis"):
            return read_coco_truth(file, skipped)
        return truth_of(self.read.samples)

    def trained_on(self, model: ModelConfig) -> TrainedOn:
        """Whether a model was trained on this set, or on another split of it, as far as its config can say.

        Names tell it of sets from a table, fingerprints of any set; the weights of the release know only names.
        """
        names = (self.name, *self.same_as) if self.listed else ()
        if self.fingerprint in model.trained_on_data or seen_in(model.trained_on, *names):
            return "yes"
        return "no" if model.trained_on_data or (self.listed and model.trained_on) else "unknown"


def seen_in(trained_on: Sequence[str], *names: str) -> bool:
    """Whether a model trained on these sets has seen the set with any of the names, or another split of it."""
    trained = {part for name in trained_on for part in _FAMILIES.get(name, (name,))}
    return bool({_without_split(name) for name in names} & {_without_split(name) for name in trained})


def _without_split(name: str) -> str:
    for split in _SPLITS:
        name = name.removesuffix(split)
    return name


def has_boxes(samples: Iterable[Sample]) -> bool:
    """Whether there is a named box to find, groups not counted."""
    return any(phrases and box not in one.crowd for one in samples for box, phrases in enumerate(one.box_phrases))


# ---- names -> benchmarks


def load_benchmarks(names: Sequence[str], config: EvaluateConfig) -> dict[str, list[Benchmark]]:
    """The benchmark of each set, the tasks of odinw13 and odinw35; without names of all sets that are there.

    Raises:
        ConfigError: an unknown set, or two of one name.
        DataError: a set that cannot be evaluated.
        FileNotFoundError: files of a set are missing.
    """
    names = names or _sets_there(config.root)
    folders = folders_of([name for name in names if name not in ODINW], config.images, config.root)
    found = {
        name: _load_tasks(name, config.root) if name in ODINW else [_load_set(name, config, folders[name])]
        for name in names
    }
    listed = [benchmark.name for own in found.values() for benchmark in own]
    twins = [name for name in listed if listed.count(name) > 1]
    if twins:
        raise ConfigError(f"Two sets are called {twins[0]!r}: evaluate them one by one, or name them in datasets.yaml")
    return found


def _sets_there(root: str | None) -> list[str]:
    """Every known set with boxes for validation or tests whose files are under the root, and ODinW."""
    found = [
        name
        for name, config in known_sets(root).items()
        if config.format != "captions" and _FOR_EVALUATION.search(name) and not missing_part(config, root)
    ]
    found += ["odinw13"] if _tasks_there("odinw13", root) else []
    if not found:
        raise ConfigError(
            f"No known set for evaluation is under {str(data_root(root))!r}: give --root, GLIP_DATA, or the sets"
        )
    return found


def _tasks_there(name: str, root: str | None) -> list[Task]:
    return [task for task in tasks(ODINW[name]) if not missing_part(task.files(), root)]


def _load_set(name: str, config: EvaluateConfig, images: Sequence[str]) -> Benchmark:
    entry = find_set(name, images=images, root=config.root)
    read = read_set(entry, config.root, to_score=True)
    entry = replace(entry, format=cast(Format, read.format))
    made = load_benchmark(dataset_name(name, config.root), _complete(entry, config.root), read, config.protocol)
    return replace(made, listed=name in known_sets(config.root))


def _load_tasks(name: str, root: str | None) -> list[Benchmark]:
    """The tasks of ODinW that are there; the others are named in the table."""
    there = _tasks_there(name, root)
    if not there:
        raise ConfigError(
            f"{name}: none of its tasks is under {str(data_root(root))!r}: they are in odinw/ there, such as "
            f"{tasks(ODINW[name])[0].files().annotations}; give --root or GLIP_DATA"
        )
    made = (load_benchmark(task.name, _complete(task.files(), root), read_task(task, root), "coco") for task in there)
    return [replace(one, prompts=task.prompts, same_as=task.same_as) for task, one in zip(there, made, strict=True)]


def _complete(config: SetConfig, root: str | None) -> SetConfig:
    return replace(config, annotations=str(data_root(root) / config.annotations))


def load_benchmark(name: str, config: SetConfig, read: SampleSet, protocol: Protocol | None) -> Benchmark:
    """A set with the protocol of its format, or the given one.

    What could not be scored is refused before the model runs. Figures over a part of a set would not be those of the
    set, so every image must be there.

    Raises:
        DataError: a protocol that does not fit the set, or nothing that could be scored.
        FileNotFoundError: an image file is missing.
    """
    if config.format == "captions":
        raise DataError(f"Set {name!r} has captions without boxes, so there is nothing to score: give a set with boxes")
    captioned = {sample.prompt is not None for sample in read.samples}
    usual: Protocol = "any-box" if captioned == {True} else "lvis" if config.format == "lvis" else "coco"
    chosen = protocol or usual
    what, fitting = ("captions", "any-box or merged-boxes") if captioned == {True} else ("lists of names", "coco")
    if captioned == {chosen in ("coco", "lvis")} or (chosen == "lvis" and config.format != "lvis"):
        raise DataError(f"Protocol {chosen!r} does not fit set {name!r}, {what} in {config.format}: take {fitting}")
    if chosen == "lvis":
        import_lvis()  # if it cannot be loaded, say so before the model has run for a day
    if not has_boxes(read.samples):
        raise DataError(
            f"Set {name!r}: none of its {len(read.samples)} samples has a named box, so there is nothing to score: "
            "check it with glip data check"
        )
    files = [sample.image for sample in read.samples if isinstance(sample.image, Path)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"Set {name!r}: {len(missing)} of its {len(files)} images are missing ({shown}): correct --images or "
            "--root, or remove them from the annotations"
        )
    return Benchmark(name, config, read, chosen)
