"""The mixture: which samples make step n. Every step is drawn from (seed, step) alone.

So the order does not depend on the number of workers, and a run resumed at step n sees what it would have seen.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from glip.config import DataConfig, DatasetConfig
from glip.data.phrasing import Phrasing, foreign_names, phrase
from glip.data.picture import open_picture
from glip.data.readers.coco import read_coco
from glip.data.transforms import Augmentation, augment
from glip.data.world import draw_sample
from glip.processor import Processor
from glip.structures import Batch, Sample


@dataclass(frozen=True)
class Source:
    """One set of the mixture. ``samples`` is None for the drawn world, where every seed is a new picture."""

    name: str
    weight: float
    samples: tuple[Sample, ...] | None
    augmentation: Augmentation
    phrasing: Phrasing

    def draw(self, rng: np.random.Generator) -> Sample:
        """A sample with its picture loaded."""
        if self.samples is None:
            return draw_sample(int(rng.integers(2**31)))
        sample = self.samples[int(rng.integers(len(self.samples)))]
        assert isinstance(sample.picture, Path)
        return replace(sample, picture=open_picture(sample.picture))


class MixtureDataset(Dataset[Batch]):
    """Item ``step`` is that step's batch; sets share a batch in proportion to their weights."""

    def __init__(
        self, sources: Sequence[Source], processor: Processor, *, batch_size: int, steps: int, seed: int
    ) -> None:
        self.sources, self.processor = tuple(sources), processor
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        weights = np.array([source.weight for source in sources], dtype=np.float64)
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
        FileNotFoundError, ValueError: a set that is not there or cannot be read.
    """
    vocabularies: dict[str, tuple[str, ...]] = {}
    samples: dict[str, tuple[Sample, ...] | None] = {}
    for dataset in data.train:
        samples[dataset.name], vocabularies[dataset.name] = None, ()
        if dataset.annotations:
            read = read_coco(data_path(data, dataset.annotations), data_path(data, dataset.images))
            samples[dataset.name], vocabularies[dataset.name] = read.samples, read.vocabulary
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
        sources.append(Source(dataset.name, dataset.weight, samples[dataset.name], how, phrasing))
    return sources


def load_steps(dataset: MixtureDataset, *, start: int, workers: int) -> Iterator[Batch]:
    """Batches of steps ``start``, ``start`` + 1, ... in order; worker processes are spawned."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def data_path(data: DataConfig, relative: str) -> Path:
    """A file under the data root; an absolute path stays itself."""
    root = data.root or os.environ.get("GLIP_DATA", ".")
    return Path(root) / relative


def _augmentation(data: DataConfig, dataset: DatasetConfig, max_size: int) -> Augmentation:
    sides = dataset.short_side or data.short_side
    return Augmentation((min(sides), max(sides)), max_size, crop=data.crop, flip=dataset.flip, colour=data.colour)
