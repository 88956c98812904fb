"""From a config to the sources of a mixture: each dataset read, with its share, and what was skipped counted."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import islice
from pathlib import Path

from glip.config import DataConfig, DatasetConfig, SetConfig
from glip.data.caption import foreign_names
from glip.data.catalog import class_prompts, find_set, read_set
from glip.data.loader import Source
from glip.data.sets import PackedSamples, SampleSet
from glip.data.transforms import says_side
from glip.errors import ConfigError, DataError
from glip.experiment import read_tree
from glip.schema import parse
from glip.structures import Sample
from glip.text.prompt import says_one_of

_MISSING = "image that is not there"
_FEW = 3  # this many missing images never stop a run, whatever their share


def build_sources(data: DataConfig) -> list[Source]:
    """Read the datasets of a mixture.

    Raises:
        FileNotFoundError, GlipError: a dataset that is not there, cannot be read, or has nothing to learn from.
    """
    rows = with_replay(data)
    sets = [read_training_set(row, data) for row in rows]
    sources = []
    for row, read in zip(rows, sets, strict=True):
        prompts = class_prompts(resolve(row, data), data.root, read.vocabulary)
        sided = any(says_side(prompt.text) for prompt in prompts.values())  # wrong for flipped images
        config = replace(row, short_side=row.short_side or data.short_side, flip=0.0 if sided else row.flip)
        others = [name for other in sets if other is not read for name in other.vocabulary]
        sources.append(Source(config, read.samples, prompts, foreign_names(read.vocabulary, others), read.skipped))
    return sources


def with_replay(data: DataConfig) -> tuple[DatasetConfig, ...]:
    """The datasets of a run and, at the share ``data.replay`` of the images, those of the old mixture.

    Raises:
        ConfigError: the old mixture adds nothing.
    """
    if not data.replay:
        return data.train
    old = parse(DataConfig, read_tree(data.replay_from).get("data") or {}, at=f"{data.replay_from}: data")
    names = {row.name for row in data.train}
    replayed = [row for row in old.train if row.name not in names]
    own, theirs = sum(row.weight for row in data.train), sum(row.weight for row in replayed)
    if not theirs:
        raise ConfigError(
            f"data.replay_from {data.replay_from!r}: all its datasets are in data.train already: give another config, "
            "or data.replay=0 data.replay_from=''"
        )
    return (
        *(replace(row, weight=(1 - data.replay) * row.weight / own) for row in data.train),
        *(
            replace(row, weight=data.replay * row.weight / theirs, short_side=row.short_side or old.short_side)
            for row in replayed
        ),
    )


def resolve(config: DatasetConfig, data: DataConfig) -> SetConfig:
    """Where a dataset of a mixture is: as its config says in full, or as the table of datasets has it by its name."""
    own = {part.name: getattr(config, part.name) for part in fields(SetConfig)}
    if own["annotations"]:
        return SetConfig(**own)
    entry = find_set(config.name, images=config.images, format=config.format, root=data.root)
    usual = SetConfig()
    given = {key: value for key, value in own.items() if value != getattr(usual, key)}
    return replace(entry, **{**given, "images": entry.images, "format": entry.format})


def read_training_set(config: DatasetConfig, data: DataConfig) -> SampleSet:
    """A dataset without held-out names and without the samples whose image is missing, which are counted.

    Raises:
        FileNotFoundError, GlipError: it is not there, cannot be read, or has nothing to learn from.
    """
    read = read_set(resolve(config, data), data.root)
    read = read.select(_with_image(read, config, data))
    if config.held_out:
        vocabulary = tuple(name for name in read.vocabulary if not says_one_of(name, config.held_out))
        samples = PackedSamples(hold_out(sample, config.held_out) for sample in read.samples)
        read = replace(read, vocabulary=vocabulary, samples=samples)
    if not any(len(sample.boxes) for sample in read.samples):
        reason = f"({read.skipped or 'it lists none'}): its ids match none of its categories; run glip data check"
        if read.samples[0].caption:
            reason = "since it has captions only: pseudo-label them first (docs/data.md)"
        raise DataError(f"dataset {config.name!r}: no box of a known class in {len(read.samples)} images {reason}")
    return read


def hold_out(sample: Sample, words: Sequence[str]) -> Sample:
    """A detection sample without the class names that contain one of the words, and without their boxes.

    Such names are unseen in training (base and novel classes, as in OVR-CNN and ViLD).

    Raises:
        DataError: a sample with a caption, which would no longer be the same without some of its words.
    """
    if sample.prompt is not None:
        raise DataError(f"image {sample.image_id} has a caption: held_out works on class names only, remove it here")
    kept = [index for index, name in enumerate(sample.vocabulary) if not says_one_of(name, words)]
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        sample.renumbered(place),
        vocabulary=tuple(sample.vocabulary[index] for index in kept),
        absent=None if sample.absent is None else tuple(place[index] for index in sample.absent if index in place),
        incomplete=tuple(place[index] for index in sample.incomplete if index in place),
    )


def _with_image(read: SampleSet, config: DatasetConfig, data: DataConfig) -> list[int]:
    """Which of the first ``config.first`` samples have their image; the others are counted.

    Raises:
        DataError: too many have not.
    """
    listing = cache(_files_in)  # one listing per folder: a look at each of a million files takes minutes
    there, missing = list[int](), list[str]()
    for index, sample in enumerate(islice(read.samples, config.first or None)):
        file = sample.image
        if isinstance(file, Path) and file.name not in listing(file.parent):
            missing.append(str(file))
            read.skipped.add(_MISSING, str(file))
        else:
            there.append(index)
    total = len(there) + len(missing)
    if not there or len(missing) > max(_FEW, data.max_broken * total):
        raise DataError(
            f"dataset {config.name!r}: {len(missing)} of {total} images are not there, such as {missing[0]!r}: check "
            "its images and data.root, or raise data.max_broken"
        )
    return there


def _files_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
