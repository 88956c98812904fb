"""From a config to the sources of a mixture: each set read, given its share, and what is left out of it counted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from glip.config import DataConfig, DatasetConfig, SetConfig
from glip.data.catalog import data_root, find_set, read_set
from glip.data.held_out import HeldOut, says_one_of
from glip.data.loader import Source
from glip.data.phrasing import ClassPrompt, Phrasing, foreign_names, read_prompts
from glip.data.sets import PackedSamples, SampleSet, SkipCounter
from glip.data.transforms import Augmentation, says_side
from glip.errors import ConfigError, DataError
from glip.experiment import read_tree, read_yaml
from glip.schema import parse
from glip.structures import Sample

_MISSING = "image that is not there"
_FEW = 3  # so many missing images never stop a run, whatever their share


@dataclass(frozen=True)
class _Row:
    """A set of the mixture: its config with its final weight and sizes, and what its reader gave."""

    config: DatasetConfig
    read: SampleSet


def build_sources(data: DataConfig, *, max_tokens: int, max_size: int) -> list[Source]:
    """Read the sets of a mixture.

    Args:
        data: what to read.
        max_tokens: longest caption the model reads.
        max_size: longest side of an image, pixels.

    Raises:
        FileNotFoundError, ValueError: a set that is not there, cannot be read, or has nothing to learn from.
    """
    rows = [_Row(config, read_training_set(config, data)) for config in with_replay(data)]
    sources = []
    for row in rows:
        others = [name for other in rows if other is not row for name in other.read.vocabulary]
        prompts = _class_prompts(row, data)
        phrasing = Phrasing(
            max_negatives=data.max_negatives,
            max_tokens=max_tokens,
            full_vocabulary=data.full_vocabulary,
            borrow=data.borrow,
            foreign=foreign_names(row.read.vocabulary, others),
            prompts=prompts,
            pack_captions=data.pack_captions,
        )
        sided = any(says_side(prompt.text) for prompt in prompts.values())  # a flip would make them untrue
        sides = row.config.short_side or data.short_side
        how = Augmentation(
            (min(sides), max(sides)),
            max_size,
            crop=data.crop,
            flip=0.0 if sided else row.config.flip,
            colour=data.colour,
        )
        sources.append(Source(row.config.name, row.config.weight, row.read.samples, how, phrasing, row.read.skipped))
    return sources


def _class_prompts(row: _Row, data: DataConfig) -> dict[str, ClassPrompt]:
    file = resolve(row.config, data).prompts
    return read_prompts(read_yaml(data_root(data.root) / file), row.read.vocabulary) if file else {}


def with_replay(data: DataConfig) -> tuple[DatasetConfig, ...]:
    """The sets of a run and, at the share ``data.replay`` of the images, those of the mixture it must not forget.

    Raises:
        ConfigError: a set listed twice, or a share without a mixture.
    """
    names = [row.name for row in data.train]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"data.train lists the set {twice!r} twice: give each its own name")
    if not data.replay:
        if data.replay_from:
            raise ConfigError(
                f"data.replay_from {data.replay_from!r} without data.replay: give the share of the images that come "
                "from there too, such as data.replay=0.3, or data.replay_from=''"
            )
        return data.train
    if not 0 < data.replay < 1 or not data.replay_from:
        raise ConfigError(
            f"data.replay: {data.replay:g} with data.replay_from {data.replay_from!r}: give a share in 0..1 and the "
            "config whose mixture is to be remembered, such as pretrain/nano"
        )
    old = parse(DataConfig, read_tree(data.replay_from).get("data") or {}, at=f"{data.replay_from}: data")
    kept = [row for row in old.train if row.name not in names]
    own, theirs = sum(row.weight for row in data.train), sum(row.weight for row in kept)
    if not own or not theirs:
        raise ConfigError(
            f"data.replay_from {data.replay_from!r}: all its sets are in data.train already, or no set has a weight: "
            "give another config, or data.replay=0 data.replay_from=''"
        )
    return (
        *(replace(row, weight=(1 - data.replay) * row.weight / own) for row in data.train),
        *(
            replace(row, weight=data.replay * row.weight / theirs, short_side=row.short_side or old.short_side)
            for row in kept
        ),
    )


def resolve(config: DatasetConfig, data: DataConfig) -> SetConfig:
    """Where a set of a mixture lies: as the config says in full, or as the table of sets has it under that name."""
    own = {part.name: getattr(config, part.name) for part in fields(SetConfig)}
    if own["annotations"]:
        return SetConfig(**own)
    entry = find_set(config.name, images=config.images, format=config.format, root=data.root)
    usual = SetConfig()
    given = {
        key: value for key, value in own.items() if key not in ("images", "format") and value != getattr(usual, key)
    }
    return replace(entry, **given)


def read_training_set(config: DatasetConfig, data: DataConfig) -> SampleSet:
    """A set without the samples that nothing can be learned from, which are counted.

    Raises:
        FileNotFoundError, ValueError: it is not there, cannot be read, or has nothing to learn from.
    """
    entry = resolve(config, data)
    read = read_set(entry, data.root)
    if config.held_out:
        names = tuple(name for name in read.vocabulary if not says_one_of(name, config.held_out))
        read = replace(read, samples=HeldOut(read.samples, config.held_out), vocabulary=names)
    first, there = config.first or len(read.samples), _Listing(read.skipped)
    chosen, changed = list[int](), False
    for index, sample in zip(range(first), read.samples, strict=False):
        if there.has(sample):
            chosen.append(index)
            changed = changed or _weighed(sample, config) is not sample
    if isinstance(read.samples, PackedSamples) and not changed:
        kept = read.samples.select(chosen)
    else:
        kept = PackedSamples(_weighed(read.samples[index], config) for index in chosen)
    if not len(kept):
        example = read.samples[0].image
        raise DataError(
            f"set {config.name!r}: none of its {len(read.samples)} images is there, such as {str(example)!r}: check "
            "its images= folder and data.root"
        )
    _refuse_nothing(config.name, kept, read)
    missing = read.skipped.counts.get(_MISSING, 0)
    if missing > max(_FEW, data.max_broken * (missing + len(kept))):
        raise DataError(
            f"set {config.name!r}: {missing} of {missing + len(kept)} images are not there, such as "
            f"{read.skipped.places[_MISSING][0]!r}: check its images= folder, or raise data.max_broken"
        )
    return replace(read, samples=kept)


def _weighed(sample: Sample, config: DatasetConfig) -> Sample:
    """Scores weigh losses only where that is asked for, and boxes may teach their words alone."""
    if config.box_loss and (config.soft or not sample.scores):
        return sample
    return replace(sample, scores=sample.scores if config.soft else (), box_loss=config.box_loss)


class _Listing:
    """Which image files exist: one listing per folder, since asking for each of a million files takes minutes."""

    def __init__(self, skipped: SkipCounter) -> None:
        self.skipped, self.folders = skipped, dict[Path, set[str]]()

    def has(self, sample: Sample) -> bool:
        """Whether the image is there; counted if not."""
        file = sample.image
        if not isinstance(file, Path):
            return True
        if file.parent not in self.folders:
            self.folders[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()
        there = file.name in self.folders[file.parent]
        if not there:
            self.skipped.add(_MISSING, str(file))
        return there


def _refuse_nothing(name: str, kept: Sequence[Sample], read: SampleSet) -> None:
    """A set that would train towards "nothing is ever there" is an error: its ids or names cannot be right."""
    if kept[0].caption:
        raise DataError(f"set {name!r} has captions without boxes: label them first (docs/data.md), then train on that")
    if not any(len(sample.boxes) for sample in kept):
        raise DataError(
            f"set {name!r}: not one box of a known class in {len(kept)} images ({read.skipped or 'it lists none'}): "
            "the category ids of its annotations match none of its categories; run glip data check"
        )
