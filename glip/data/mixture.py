"""From a config to the sources of a mixture, each dataset read, and gone through once before a run (``survey``).

Also few-shot samples of a dataset, k images or k boxes of each class, as ODinW draws them.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from glip.config import DataConfig, DatasetConfig, SetConfig
from glip.console import counted
from glip.data.caption import foreign_names, word_key
from glip.data.catalog import class_prompts, find_set, read_set, with_split
from glip.data.check import refuse_wrong_boxes
from glip.data.loader import FEW, Source
from glip.data.sets import PackedSamples, SampleSet, require
from glip.data.transforms import says_side
from glip.errors import ConfigError, DataError
from glip.experiment import read_tree, to_dict
from glip.files import fingerprint
from glip.processor import Processor
from glip.schema import parse
from glip.structures import Sample, TarMember
from glip.text.prompt import TokenBudget, says_one_of
from glip.text.tokens import alike

Per = Literal["image", "box"]
PER: tuple[Per, ...] = get_args(Per)


def build_sources(data: DataConfig) -> list[Source]:
    """Read the datasets of a mixture; errors as for ``read_training_set``."""
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


def resolve(config: DatasetConfig, data: DataConfig, split: str = "train") -> SetConfig:
    """Where a dataset of a mixture is: as its config says in full, or by its name; of several splits ``split``."""
    own = {part.name: getattr(config, part.name) for part in fields(SetConfig)}
    if own["annotations"]:
        return SetConfig(**{**own, "annotations": with_split(own["annotations"], split, data.root)})
    entry = find_set(config.name, images=config.images, format=config.format, root=data.root, split=split)
    usual = SetConfig()
    given = {key: value for key, value in own.items() if value != getattr(usual, key)}
    return replace(entry, **{**given, "images": entry.images, "format": entry.format})


def read_training_set(config: DatasetConfig, data: DataConfig) -> SampleSet:
    """A dataset without held-out names and without the samples whose image is missing, which are counted.

    Raises:
        FileNotFoundError, GlipError: it is not there, cannot be read, or has nothing to learn from.
    """
    read = read_set(resolve(config, data), data.root)
    listing = cache(lambda folder: set(os.listdir(folder)) if folder.is_dir() else set())  # a look at each file is slow
    there, missing = list[int](), list[Path]()
    for index, sample in enumerate(islice(read.samples, config.first or None)):
        file = sample.image
        if isinstance(file, Path) and file.name not in listing(file.parent):
            missing.append(file)
            read.skipped.add("image that is not there", str(file))
        else:
            there.append(index)
    read, total = read.select(there), len(there) + len(missing)
    captioned = any(sample.prompt is not None for sample in read.samples) if config.held_out else False
    if config.held_out and not captioned:
        vocabulary = tuple(name for name in read.vocabulary if not says_one_of(name, config.held_out))
        samples = PackedSamples(hold_out(sample, config.held_out) for sample in read.samples)
        read = replace(read, vocabulary=vocabulary, samples=samples)
    problem = ""
    if not there or len(missing) > max(FEW, data.max_broken * total):
        problem = f"{read.tell_missing(missing, total)}: check its images and data.root, or raise data.max_broken"
    elif captioned:
        problem = "has captions: held_out works on class names only, remove it here"
    elif not any(len(sample.boxes) for sample in read.samples):
        problem = read.tell_boxless(len(there))
    require(not problem, f"dataset {config.name!r}: {problem}")
    refuse_wrong_boxes(f"dataset {config.name!r}", read)
    return read


def hold_out(sample: Sample, words: Sequence[str]) -> Sample:
    """A detection sample without the class names that contain one of the words, and without their boxes.

    Such names are unseen in training (base and novel classes, as in OVR-CNN and ViLD).
    """
    kept = [index for index, name in enumerate(sample.vocabulary) if not says_one_of(name, words)]
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        sample.renumbered(place),
        vocabulary=tuple(sample.vocabulary[index] for index in kept),
        absent=None if sample.absent is None else tuple(place[index] for index in sample.absent if index in place),
        incomplete=tuple(place[index] for index in sample.incomplete if index in place),
    )


@dataclass(frozen=True)
class Survey:
    """A dataset in one line, with what is skipped, and its fingerprints."""

    summary: str
    data: tuple[str, str]  # of images and annotations, and of images alone
    fingerprint: str  # also of the prompts' texts
    record: Mapping[str, Any]  # as ``data_record`` has it


def survey(source: Source, processor: Processor) -> Survey:
    """Go through a dataset once.

    Names with boxes that the model reads alike, though they are other words, are an error: it could only learn that the
    same words are present and absent.
    """
    written = {name: prompt.text for name, prompt in source.prompts.items()}
    boxes, crowded, files, boxed = 0, 0, set[str](), dict[str, str]()
    count_tokens = cache(processor.count_tokens)

    def noted() -> Iterator[Sample]:
        nonlocal boxes, crowded
        for sample in source.samples:
            names = sample.vocabulary  # none where a caption has phrases
            shown = [names[index] for own in sample.box_phrases for index in own if names]
            texts = {name: written.get(name, name) for name in shown}
            budget = TokenBudget(count_tokens, processor.max_tokens)
            crowded += not all(map(budget.take, texts.values()))
            files.add(_file_of(sample))
            boxes += len(sample.boxes)
            boxed.update(texts)
            yield sample

    data = data_fingerprint(noted())
    skipped = [str(source.skipped)] if source.skipped else []
    if crowded:
        skipped.append(f"boxes of {crowded} x image with more names than a caption holds")
    summary = f"{source.config.name}: {counted(len(source.samples), 'image')}, {counted(boxes, 'box')}"
    summary += f"; skipped: {', '.join(skipped)}" if skipped else ""
    same = alike(processor.tokenizer, boxed)
    for group in same:
        if len({word_key(boxed[name]) for name in group}) > 1:
            two = " and ".join(map(repr, group[:2]))
            raise DataError(
                f"Dataset {source.config.name!r}: the model reads {two} alike, as the same tokens (unknown words, or "
                "other spaces): write other words for them (prompts: of the dataset, docs/data.md), or give their "
                "boxes one category"
            )
    summary += f"; taken for one name: {'; '.join(', '.join(map(repr, group)) for group in same)}" if same else ""
    noted_as = data_record(source.config, source.samples, data)
    return Survey(summary, (data, _of_files(files)), fingerprint(data, sorted(written.items()))[:16], noted_as)


def data_fingerprint(samples: Iterable[Sample]) -> str:
    """Tells a dataset from others, and from itself with other images, boxes or words; where it is stored is irrelevant.

    Images count by their file names, annotations in full; each list of class names once.
    """
    digest, vocabularies = "", set[tuple[str, ...]]()
    for sample in samples:
        if sample.vocabulary not in vocabularies:
            vocabularies.add(sample.vocabulary)
            digest = fingerprint(digest, sample.vocabulary)
        prompt = (sample.prompt.caption, [phrase.spans for phrase in sample.prompt.phrases]) if sample.prompt else ""
        rows = (sample.box_phrases, sample.crowd, sample.scores, sample.absent, sample.incomplete)
        digest = fingerprint(digest, sample.image_id, _file_of(sample), prompt, rows, sample.boxes.numpy().tobytes())
    return digest[:16]


def images_fingerprint(samples: Iterable[Sample]) -> str:
    """Identifies the images of a dataset by their file names, with any annotations."""
    return _of_files({_file_of(sample) for sample in samples})


def _of_files(names: set[str]) -> str:
    return f"images {fingerprint(*sorted(names))[:16]}"


def _file_of(sample: Sample) -> str:
    return sample.image.name if isinstance(sample.image, Path | TarMember) else ""


def data_record(config: SetConfig, samples: Sequence[Sample], known: str = "") -> dict[str, Any]:
    """A dataset as a run notes it: where it is, what it has, and its fingerprint, which may be ``known``."""
    content = f"{counted(len(samples), 'image')}, {counted(sum(len(sample.boxes) for sample in samples), 'box')}"
    where = {key: value for key, value in to_dict(config).items() if value}
    return {"set": where, "content": content, "fingerprint": known or data_fingerprint(samples)}


def draw_shots(samples: Sequence[Sample], names: Sequence[str], shots: int, *, seed: int, per: Per) -> list[int]:
    """The indices of samples that give every class its shots, ``per`` image that shows it or per box.

    The release's rule (``DATASETS.FEW_SHOT``): images come in an order drawn from the seed; one is taken if it shows
    a class that still lacks some, and then counts for all classes it shows. So common classes may have more.

    Raises:
        DataError: a class with fewer shots.
    """
    shown = [count_classes(sample, per) for sample in samples]
    total = sum(shown, Counter[int]())
    short = [f"{name!r} {total[number]}" for number, name in enumerate(names) if total[number] < shots]
    listed, unit = ", ".join(short[:5]) + ", ..." * (len(short) > 5), "images" if per == "image" else "boxes"
    wrong = f"{shots} {unit} of each class cannot be drawn ({listed}): give 1 or more, at most that, or 'all'"
    require(shots > 0 and not short, wrong)
    lacking = Counter({number: shots for number in range(len(names))})
    chosen = []
    for index in np.random.default_rng(seed).permutation(len(samples)).tolist():
        if any(lacking[number] > 0 for number in shown[index]):
            chosen.append(index)
            lacking.subtract(shown[index])
    return sorted(chosen)


def count_classes(sample: Sample, per: Per) -> Counter[int]:
    """How often each class is shown: once in an image, or as many times as it has boxes; groups do not count."""
    labels = [label for box, labels in enumerate(sample.box_phrases) if box not in sample.crowd for label in labels]
    return Counter(set(labels) if per == "image" else labels)
