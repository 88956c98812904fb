"""The steps of a training run. Every step is drawn from (seed, step) alone.

So the order does not depend on the number of workers or processes, and a run resumed at step n, in the middle of an
epoch too, sees what it would have seen. Read downhill: ``Source`` (one dataset), ``draws`` (which samples make a step),
``MixtureDataset`` (a step's batches), ``load_steps`` (steps, made by worker processes).
"""

import logging
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import resource_tracker

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from glip.config import DataConfig, DatasetConfig, TrainConfig
from glip.data.caption import CaptionError, caption_from_names, pack_captions
from glip.data.image import load_image
from glip.data.sets import SkipCounter
from glip.data.transforms import augment
from glip.errors import DataError, GlipError, ImageError, TrainingError
from glip.processor import Processor
from glip.structures import Batch, Sample
from glip.text.class_prompts import ClassPrompt

_CYCLE = 1000  # images after which the order of datasets repeats; their shares are exact to a thousandth
_WINDOW = 16  # steps whose images are sorted by shape among themselves
_TRIES = 20  # other samples tried in place of one that cannot be used
FEW = 3  # this many bad or missing samples never stop a run, whatever their share
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset of the mixture."""

    config: DatasetConfig  # its weight and how its images are varied; ``short_side`` and ``flip`` as they are used
    samples: Sequence[Sample]
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)  # by class name, the text written for it
    foreign: tuple[str, ...] = ()  # names of other datasets, which may be borrowed as negatives
    skipped: SkipCounter = field(default_factory=SkipCounter)  # when it was read


@dataclass(frozen=True)
class Step:
    """What one process computes in one optimizer step: its micro-batches, and what was lost on the way."""

    batches: tuple[Batch, ...]
    skipped: SkipCounter  # boxes and captions, by the reason they were dropped for
    broken: tuple[str, ...]  # samples that could not be used, and why
    tried: int  # samples that were read


@dataclass(frozen=True)
class Draw:
    """A sample of a step: a source, which of its samples, and the seed of what is random about it."""

    source: Source
    index: int
    seed: tuple[int, int, int]


def draws(sources: Sequence[Source], step: int, *, batch_size: int, seed: int) -> list[Draw]:
    """The samples of a step. Datasets share each batch as evenly as whole images allow; each epoch has a new order."""
    cycle = _cycle(tuple(source.config.weight for source in sources))
    drawn = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        cycles, place = divmod(position, _CYCLE)
        chosen = cycle[place]
        source, number = sources[chosen], cycles * cycle.count(chosen) + cycle[:place].count(chosen)
        key = zlib.crc32(source.config.name.encode())  # so that the order of the datasets in the config does not matter
        epoch, own = divmod(number, len(source.samples))
        index = _epoch_order(seed, key, epoch, len(source.samples))[own]
        drawn.append(Draw(source, int(index), (seed, key, number)))
    return drawn


def draws_by_shape(sources: Sequence[Source], step: int, *, batch_size: int, seed: int) -> list[Draw]:
    """The same samples in another order: wide and tall images get batches of their own, which saves padding."""
    window, place = divmod(step, _WINDOW)
    return _sorted_window(tuple(sources), window, batch_size, seed)[place]


@lru_cache(maxsize=16)
def _epoch_order(seed: int, key: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, key, epoch, 1]).permutation(length).astype(np.int32)


@lru_cache(maxsize=1)
def _cycle(weights: tuple[float, ...]) -> tuple[int, ...]:
    """The source of each of ``_CYCLE`` images in turn: always the one that is furthest behind its share."""
    shares, given = np.array(weights) / np.sum(weights), np.zeros(len(weights))
    order = []
    for place in range(_CYCLE):
        order.append(int(np.argmax(shares * (place + 1) - given)))
        given[order[-1]] += 1
    return tuple(order)


@lru_cache(maxsize=1)  # its steps are needed one after another
def _sorted_window(sources: tuple[Source, ...], window: int, batch_size: int, seed: int) -> list[list[Draw]]:
    """The draws of some steps sorted by shape, as batches in random order."""
    steps = range(window * _WINDOW, (window + 1) * _WINDOW)
    drawn = [draw for step in steps for draw in draws(sources, step, batch_size=batch_size, seed=seed)]
    sizes = [draw.source.samples[draw.index].size for draw in drawn]
    tall = [size is not None and size[1] > size[0] for size in sizes]
    order = np.argsort(tall, kind="stable").tolist()  # within a group the order stays
    batches = [
        [drawn[place] for place in order[first : first + batch_size]] for first in range(0, len(drawn), batch_size)
    ]
    return [batches[number] for number in np.random.default_rng([seed, window]).permutation(len(batches))]


@dataclass(frozen=True, eq=False)
class MixtureDataset(Dataset["Step | GlipError"]):
    """Item ``step`` is what process ``rank`` of ``processes`` computes in that step: an equal run of its images."""

    sources: Sequence[Source]
    processor: Processor
    data: DataConfig
    train: TrainConfig
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return self.train.steps

    def __getitem__(self, step: int) -> Step | GlipError:
        """The step, or the user's mistake that prevents it: raised in a worker, torch would wrap it in a traceback."""
        skipped, broken, size = SkipCounter(), list[str](), self.train.batch_size
        choose = draws if self.data.crop else draws_by_shape  # crops all have one shape
        drawn = choose(self.sources, step, batch_size=size, seed=self.train.seed)
        first, end = (number * size // self.processes for number in (self.rank, self.rank + 1))
        try:
            samples = [self._sample(draw, skipped, broken) for draw in drawn[first:end]]
            size = self.train.micro_batch or len(samples)
            parts = (samples[first : first + size] for first in range(0, len(samples), size))
            batches = tuple(self.processor.training(part) for part in parts)
        except GlipError as error:
            return error
        return Step(batches, skipped, tuple(broken), len(samples) + len(broken))

    def _sample(self, draw: Draw, skipped: SkipCounter, broken: list[str]) -> Sample:
        """The sample of a draw or, where that cannot be used, another one of its dataset."""
        source, index, random = draw.source, draw.index, np.random.default_rng(draw.seed)
        problem = ""
        for _ in range(_TRIES):
            try:
                return self._prepare(source.samples[index], source, random, skipped)
            except CaptionError as error:  # nothing is broken: its words do not fit
                problem = f"dataset {source.config.name!r}: {error}"
                skipped.add("sample whose caption cannot be written", problem)
            except (ImageError, DataError) as error:
                problem = f"dataset {source.config.name!r}: {error}"
                broken.append(problem)
            index = int(random.integers(len(source.samples)))
        raise ImageError(f"{_TRIES} samples in a row cannot be used, the last one: {problem}")

    def _prepare(self, sample: Sample, source: Source, random: np.random.Generator, skipped: SkipCounter) -> Sample:
        """Load, augment and caption a sample; the boxes it loses are counted, also where it cannot be used."""
        config, data, others = source.config, self.data, list[Sample]()
        if sample.prompt is not None:  # prompts of other images are written beside its own
            chosen = random.integers(len(source.samples), size=data.pack_captions)
            others = [source.samples[int(index)] for index in chosen]
        prompts = [other.prompt for other in others if other.prompt is not None and other.image != sample.image]
        image = sample.image if isinstance(sample.image, Image.Image) else load_image(sample.image)
        if image is not sample.image and sample.size and sample.size != image.size:
            stated, found = (f"{width} x {height}" for width, height in (sample.size, image.size))
            name = str(sample.image)
            raise ImageError(f"image {name!r} is annotated as {stated} pixels and has {found}: run glip data check")
        sample, lost = augment(
            replace(sample, image=image, scores=sample.scores if config.soft else (), box_loss=config.box_loss),
            random,
            short_side=config.short_side,
            max_size=self.processor.max_size,
            flip=config.flip,
            crop=data.crop,
            colour=data.colour,
        )
        skipped.merge(lost)
        if sample.prompt:
            packed = pack_captions(sample.prompt, prompts, self.processor, random, swap_words=data.swap_words)
            return replace(sample, prompt=packed)
        sample, lost = caption_from_names(sample, data, self.processor, random, source.prompts, source.foreign)
        skipped.merge(lost)
        return sample


def load_steps(dataset: MixtureDataset, *, start: int) -> Iterator[Step]:
    """Steps ``start``, ``start`` + 1, ... in order, made by ``data.workers`` spawned processes or in this one.

    Raises:
        GlipError: the share of samples that cannot be used is above ``data.max_broken``, a step cannot be made, or
            workers die again and again.
    """
    max_broken, tried, broken = dataset.data.max_broken, 0, set[str]()
    for step in _restarted(dataset, start):
        if isinstance(step, GlipError):
            raise step
        for line in sorted(set(step.broken) - broken):
            _log.warning("skipped: %s", line)
        tried, broken = tried + step.tried, broken | set(step.broken)
        if len(broken) > max(FEW, max_broken * tried):
            raise ImageError(
                f"{len(broken)} of {tried} samples cannot be used, more than data.max_broken = {max_broken:g} allows; "
                f"the last one: {step.broken[-1]}. Run glip data check, or raise data.max_broken"
            )
        yield step


def _restarted(dataset: MixtureDataset, start: int) -> Iterator[Step | GlipError]:
    """The steps in order; where a worker dies, such as for want of memory, new ones go on with the step that is due."""
    workers, begun, reason = dataset.data.workers, -1, ""
    while begun < start:
        begun = start
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(start, len(dataset)),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # its own, so that the model's random numbers do not depend on the loader
        )
        steps = _started(loader)
        try:
            for step in steps:
                yield step
                start += 1
            return
        except (RuntimeError, EOFError, OSError) as error:  # what the dead one has sent may be out of reach, too
            if not workers or str(error).startswith("Caught"):  # an error in a worker is no death
                raise
            reason = f"{type(error).__name__} {error}"[:80]
            _log.warning("a loader worker died, new ones go on with step %d", start + 1)
            for process in steps._workers:  # type: ignore[attr-defined]  # may wait forever for what the dead one held
                process.kill()
    raise TrainingError(
        f"loader workers die before step {start + 1} is made ({reason}): lower data.workers={workers}, or free memory"
    )


def _started(loader: "DataLoader[Step | GlipError]") -> Iterator[Step | GlipError]:
    """Start the workers, which never see Ctrl-C and SIGTERM: the main process ends its step first, then its workers.

    A worker's death is noticed where its step is due, not in the middle of other work of the main process.
    """
    resource_tracker.ensure_running()  # as it starts, it unblocks these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # processes inherit it
    at_death = signal.getsignal(signal.SIGCHLD)
    steps = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, at_death)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return steps
