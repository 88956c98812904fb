"""The mixture: which samples make step n. Every step is drawn from (seed, step) alone.

So the order does not depend on the number of workers, and a run resumed at step n sees what it would have seen.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from glip.config import DataConfig, DatasetConfig
from glip.data.phrasing import Phrasing, foreign_names, phrase
from glip.data.picture import PictureError, open_picture
from glip.data.readers.coco import CocoSet, read_coco
from glip.data.transforms import Augmentation, augment
from glip.data.world import draw_sample
from glip.processor import Processor
from glip.structures import Batch, Sample

MAX_BROKEN = 100  # pictures that cannot be read, before the data itself must be looked at
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One set of the mixture.

    ``samples`` is None for the drawn world, where every seed is a new picture. ``left_out`` counts by reason what was
    not taken over; ``broken`` are pictures found unreadable (in this process) and passed over.
    """

    name: str
    weight: float
    samples: tuple[Sample, ...] | None
    augmentation: Augmentation
    phrasing: Phrasing
    left_out: Mapping[str, int] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)

    def draw(self, rng: np.random.Generator) -> Sample:
        """A sample with its picture loaded; one that cannot be read is noted, and another drawn.

        Raises:
            PictureError: over ``MAX_BROKEN`` pictures, or all that were tried, cannot be read.
        """
        if self.samples is None:
            return draw_sample(int(rng.integers(2**31)))
        while True:
            sample = self.samples[int(rng.integers(len(self.samples)))]
            assert isinstance(sample.picture, Path)
            if sample.picture in self.broken:
                continue
            try:
                return replace(sample, picture=open_picture(sample.picture))
            except PictureError as error:
                self._note(sample.picture, error)

    def _note(self, file: Path, error: PictureError) -> None:
        self.broken.add(file)
        _log.warning("set %r, unreadable picture number %d passed over: %s", self.name, len(self.broken), error)
        if len(self.broken) > MAX_BROKEN or len(self.broken) == len({sample.picture for sample in self.samples or ()}):
            raise PictureError(
                f"set {self.name!r}: {len(self.broken)} of its pictures cannot be read, the last one: {error}"
            )


class MixtureDataset(Dataset[Batch]):
    """Item ``step`` is that step's batch; sets share a batch in proportion to their weights."""

    def __init__(
        self, sources: Sequence[Source], processor: Processor, *, batch_size: int, steps: int, seed: int
    ) -> None:
        self.sources, self.processor = tuple(sources), processor
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if len(weights) == 0 or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(f"data.train: weights {weights.tolist()} share nothing out: give each set a positive one")
        self.edges = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        # Evenly spaced points with one random start: each batch holds the sets in nearly their exact shares.
        points = (np.arange(self.batch_size) + rng.random()) / self.batch_size
        numbers = np.minimum(np.searchsorted(self.edges, points, side="right"), len(self.sources) - 1)
        return self.processor.training([self._sample(self.sources[number], rng) for number in numbers])

    def _sample(self, source: Source, rng: np.random.Generator) -> Sample:
        sample = augment(source.draw(rng), source.augmentation, rng)
        return phrase(sample, source.phrasing, self.processor.count_tokens, rng)


def build_sources(data: DataConfig, *, max_tokens: int, max_size: int) -> list[Source]:
    """Read the sets of a mixture.

    Raises:
        FileNotFoundError, ValueError: a set that is not there, cannot be read, or has nothing to learn from.
    """
    vocabularies: dict[str, tuple[str, ...]] = {}
    samples: dict[str, tuple[Sample, ...] | None] = {}
    left_out: dict[str, Counter[str]] = {}
    for dataset in data.train:
        if dataset.name in samples:
            raise ValueError(f"data.train lists the set {dataset.name!r} twice: give each its own name")
        samples[dataset.name], vocabularies[dataset.name], left_out[dataset.name] = None, (), Counter()
        if dataset.annotations:
            read = read_coco(data_path(data, dataset.annotations), data_path(data, dataset.images))
            left_out[dataset.name] = Counter(read.skipped)
            samples[dataset.name] = _on_disk(dataset.name, read, left_out[dataset.name])
            vocabularies[dataset.name] = read.vocabulary
    sources = []
    for dataset in data.train:
        own = vocabularies[dataset.name]
        others = [name for key, names in vocabularies.items() if key != dataset.name for name in names]
        phrasing = Phrasing(
            max_names=data.max_names,
            max_tokens=max_tokens,
            full_vocabulary=data.full_vocabulary,
            borrow=data.borrow,
            foreign=foreign_names(own, others),
        )
        how = _augmentation(data, dataset, max_size)
        kept = samples[dataset.name]
        sources.append(Source(dataset.name, dataset.weight, kept, how, phrasing, left_out[dataset.name]))
    return sources


def load_steps(dataset: MixtureDataset, *, start: int, workers: int) -> Iterator[Batch]:
    """Batches of steps ``start``, ``start`` + 1, ... in order; worker processes are spawned.

    Raises:
        ValueError: what a step's samples raised, in one line whatever process they were made in.
    """
    loader = DataLoader(
        _Carried(dataset),
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own, so that the model's random numbers do not depend on the loader
    )
    for item in loader:
        if isinstance(item, ValueError):
            raise item
        yield item


class _Carried(Dataset["Batch | ValueError"]):
    """Carries an error to the main process as a value: torch would wrap its message in a traceback."""

    def __init__(self, dataset: MixtureDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> "Batch | ValueError":
        try:
            return self.dataset[step]
        except ValueError as error:
            return error


def count_crowded(source: Source, count_tokens: Callable[[str], int]) -> int:
    """Pictures of a source that show more names than a caption holds, so that boxes are dropped in each step."""
    costs: dict[str, int] = {}
    crowded = 0
    for sample in source.samples or ():
        names = {sample.vocabulary[number] for phrases in sample.box_phrases for number in phrases}
        for name in names - costs.keys():
            costs[name] = count_tokens(name) - 1
        used = sum(costs[name] for name in names)
        crowded += len(names) > source.phrasing.max_names or used > source.phrasing.max_tokens - 2
    return crowded


def data_path(data: DataConfig, relative: str) -> Path:
    """A file under the data root; an absolute path stays itself."""
    root = data.root or os.environ.get("GLIP_DATA", ".")
    return Path(root) / relative


def _on_disk(name: str, read: CocoSet, left_out: Counter[str]) -> tuple[Sample, ...]:
    """The samples whose picture is there; the others are counted.

    Raises:
        ValueError: none is, or the set names nothing.
    """
    there = tuple(sample for sample in read.samples if isinstance(sample.picture, Path) and sample.picture.is_file())
    if not read.vocabulary:
        raise ValueError(f"set {name!r} names nothing: its categories are empty")
    if not there:
        first = f", such as {str(read.samples[0].picture)!r}" if read.samples else ""
        raise ValueError(f"set {name!r}: none of its {len(read.samples)} pictures is there{first}: check data.train")
    if len(there) < len(read.samples):
        left_out["picture that is not there"] += len(read.samples) - len(there)
    return there


def _augmentation(data: DataConfig, dataset: DatasetConfig, max_size: int) -> Augmentation:
    sides = dataset.short_side or data.short_side
    return Augmentation((min(sides), max(sides)), max_size, crop=data.crop, flip=dataset.flip, colour=data.colour)
