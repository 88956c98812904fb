"""The mixture: which samples make step n. Every step is drawn from (seed, step) alone.

So the order does not depend on the number of workers or processes, and a run resumed at step n, in the middle of an
epoch too, sees what it would have seen. Read downhill: ``Source`` (one set), ``Schedule`` (which draws of which sets
make a step), ``MixtureDataset`` (a step's batches), ``load_steps`` (steps, made by worker processes).
"""

import logging
import signal
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from glip.data.image import load_image
from glip.data.phrasing import Phrasing, PhrasingError, build_caption
from glip.data.sets import SkipCounter
from glip.data.transforms import Augmentation, augment
from glip.errors import DataError, GlipError, ImageError
from glip.processor import Processor
from glip.structures import Batch, Prompt, Sample, TarMember

_CYCLE = 1000  # images after which the sets' shares of a mixture repeat; shares are exact to a thousandth
_WINDOW = 16  # steps whose images are grouped by shape among themselves
_TRIES = 20  # other samples tried in place of one that cannot be used
_FEW = 3  # so many bad samples never stop a run, whatever their share
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One set of the mixture: its samples, how they vary, and its share (``weight``) of the images."""

    name: str
    weight: float
    samples: Sequence[Sample]
    augmentation: Augmentation
    phrasing: Phrasing
    skipped: SkipCounter = field(default_factory=SkipCounter)

    @property
    def key(self) -> int:
        """Tells its random numbers from those of other sets, whatever their order in the mixture."""
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class Step:
    """What one process computes in one optimizer step: its micro-batches, and what was lost on the way.

    ``skipped`` counts boxes by the reason they were dropped for, ``broken`` names the samples that could not be used
    and why, ``tried`` counts all samples that were read.
    """

    batches: tuple[Batch, ...]
    skipped: SkipCounter
    broken: tuple[str, ...]
    tried: int


@dataclass(frozen=True)
class Draw:
    """The ``number``-th sample that a run takes from a source."""

    source: int
    number: int


class Schedule:
    """Which draws make a step: sets share each batch as evenly as whole images allow.

    Args:
        sources: the sets.
        batch_size: images per step.
        seed: of the run.
        grouped: whether wide and tall images are put in batches of their own, which saves padding.
    """

    def __init__(self, sources: Sequence[Source], *, batch_size: int, seed: int, grouped: bool) -> None:
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if len(weights) == 0 or weights.min() < 0 or weights.sum() <= 0:
            raise DataError(f"data.train: weights {weights.tolist()} share nothing out: give each set a positive one")
        self.sources, self.batch_size, self.seed, self.grouped = tuple(sources), batch_size, seed, grouped
        self.cycle = _cycle(weights / weights.sum())
        taken = self.cycle[:, None] == np.arange(len(weights))
        self.before = np.concatenate([np.zeros((1, len(weights)), dtype=np.int64), taken.cumsum(0)])
        for source, weight, draws in zip(sources, weights, self.before[-1], strict=True):
            if weight > 0 and not draws:
                raise DataError(
                    f"set {source.name!r}: its weight is {weight / weights.sum():.2g} of all; less than a thousandth "
                    "is never drawn: raise it, or leave the set out"
                )
        self._window: tuple[int, list[list[Draw]]] = (-1, [])  # the last one asked for, and its number
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of each source the last epoch asked for, and its order

    def step(self, step: int) -> list[Draw]:
        """The draws of a step, in the order of its batch."""
        if not self.grouped:
            return self._plain(step)
        window, place = divmod(step, _WINDOW)
        if self._window[0] != window:
            self._window = window, self._grouped_window(window)
        return self._window[1][place]

    def index(self, draw: Draw) -> int:
        """Which sample a draw is: each set is gone through in an order of its own, new in every epoch."""
        epoch, place = divmod(draw.number, len(self.sources[draw.source].samples))
        if self._orders.get(draw.source, (-1,))[0] != epoch:
            self._orders[draw.source] = epoch, self._permutation(draw.source, epoch)
        return int(self._orders[draw.source][1][place])

    def random(self, draw: Draw) -> np.random.Generator:
        """The random numbers of a draw."""
        return np.random.default_rng([self.seed, self.sources[draw.source].key, draw.number])

    def _plain(self, step: int) -> list[Draw]:
        draws = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            rounds, place = divmod(position, _CYCLE)
            source = int(self.cycle[place])
            draws.append(Draw(source, int(rounds * self.before[-1, source] + self.before[place, source])))
        return draws

    def _grouped_window(self, window: int) -> list[list[Draw]]:
        draws = [draw for step in range(window * _WINDOW, (window + 1) * _WINDOW) for draw in self._plain(step)]
        draws.sort(key=self._is_tall)  # stable: within a group the order stays
        size = self.batch_size
        batches = [draws[first : first + size] for first in range(0, len(draws), size)]
        order = np.random.default_rng([self.seed, window]).permutation(len(batches))
        return [batches[number] for number in order]

    def _is_tall(self, draw: Draw) -> bool:
        size = self.sources[draw.source].samples[self.index(draw)].size
        return size is not None and size[1] > size[0]

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, self.sources[source].key, epoch, 1])
        return random.permutation(len(self.sources[source].samples))


class MixtureDataset(Dataset[Step]):
    """Item ``step`` is what one process computes in that step.

    Args:
        sources: the sets.
        processor: makes batches of samples.
        batch_size: images per step, of all processes together.
        steps: how many there are.
        seed: of the run.
        rank: number of this process.
        processes: how many share a step; each takes an equal run of its images.
        micro_batch: images at once; 0 for all.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        micro_batch: int = 0,
    ) -> None:
        if batch_size % processes:
            raise DataError(
                f"train.batch_size: {batch_size} images cannot be shared by {processes} processes: "
                f"take a multiple of {processes}"
            )
        grouped = not any(source.augmentation.crop for source in sources)  # crops all have one shape
        self.schedule = Schedule(sources, batch_size=batch_size, seed=seed, grouped=grouped)
        self.processor, self.steps = processor, steps
        self.share = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self.micro_batch = micro_batch or batch_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Step:
        skipped, broken = SkipCounter(), list[str]()
        samples = [self._sample(draw, skipped, broken) for draw in self.schedule.step(step)[self.share]]
        size = self.micro_batch
        batches = tuple(
            self.processor.training(samples[first : first + size]) for first in range(0, len(samples), size)
        )
        return Step(batches, skipped, tuple(broken), len(samples) + len(broken))

    def _sample(self, draw: Draw, skipped: SkipCounter, broken: list[str]) -> Sample:
        """The sample of a draw, or, where that cannot be used, another one of its set."""
        why = ""
        source, random, index = (
            self.schedule.sources[draw.source],
            self.schedule.random(draw),
            self.schedule.index(draw),
        )
        for _ in range(_TRIES):
            sample = source.samples[index]
            try:
                made, lost = self._vary(sample, source, random)
            except PhrasingError as error:  # nothing is broken: its words do not fit
                why = f"set {source.name!r}, {_named(sample)}: {error}"
                skipped.add("sample whose caption cannot be written", why)
            except (ImageError, DataError) as error:
                why = f"set {source.name!r}, {_named(sample)}: {error}"
                broken.append(why)
            else:
                skipped.merge(lost)
                return made
            index = int(random.integers(len(source.samples)))
        raise ImageError(f"{_TRIES} samples in a row cannot be used, the last one: {why}")

    def _vary(self, sample: Sample, source: Source, random: np.random.Generator) -> tuple[Sample, SkipCounter]:
        others = _captions(source, sample, random) if sample.prompt else ()
        if not isinstance(sample.image, Image.Image):
            sample = replace(sample, image=_opened(sample.image, sample.size))
        sample, skipped = augment(sample, source.augmentation, random)
        sample, lost = build_caption(sample, source.phrasing, self.processor.count_tokens, random, others)
        skipped.merge(lost)
        return sample, skipped


def load_steps(dataset: MixtureDataset, *, start: int, workers: int, max_broken: float) -> Iterator[Step]:
    """Steps ``start``, ``start`` + 1, ... in order; worker processes are spawned.

    Args:
        dataset: makes the steps.
        start: the first one.
        workers: how many processes make them; 0 makes them in this one.
        max_broken: the share of samples that cannot be used at which the data itself must be looked at.

    Raises:
        ValueError: more samples than that share cannot be used, or a step cannot be made, in one line.
    """
    loader = DataLoader(
        _Carried(dataset),
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # its own, so that the model's random numbers do not depend on the loader
    )
    tried, broken = 0, set[str]()
    for step in loader:
        if isinstance(step, GlipError):
            raise step
        for line in sorted(set(step.broken) - broken):
            _log.warning("passed over: %s", line)
        tried, broken = tried + step.tried, broken | set(step.broken)
        if len(broken) > max(_FEW, max_broken * tried):
            raise ImageError(
                f"{len(broken)} of {tried} samples cannot be used, more than data.max_broken = {max_broken:g} allows; "
                f"the last one: {step.broken[-1]}. Run glip data check, or raise data.max_broken"
            )
        yield step


def _leave_signals(worker: int) -> None:
    """A worker does not end by Ctrl-C or SIGTERM: the main process first finishes its step, then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Carried(Dataset["Step | GlipError"]):
    """Carries an error to the main process as a value: torch would wrap its message in a traceback."""

    def __init__(self, dataset: MixtureDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> "Step | GlipError":
        try:
            return self.dataset[step]
        except GlipError as error:
            return error


def _cycle(shares: np.ndarray) -> np.ndarray:
    """The set of each of ``_CYCLE`` images in turn: always the one that is furthest behind its share."""
    given, order = np.zeros(len(shares)), np.empty(_CYCLE, dtype=np.int64)
    for place in range(_CYCLE):
        order[place] = int(np.argmax(shares * (place + 1) - given))
        given[order[place]] += 1
    return order


def _opened(image: Path | TarMember, stated: tuple[int, int] | None) -> Image.Image:
    """The image, if it has the size that its annotations are for.

    Raises:
        ImageError: it cannot be read, or is another one, resized or turned, so that no box would be where it says.
    """
    opened = load_image(image)
    if stated and stated != opened.size:
        raise ImageError(
            f"annotated as {stated[0]} x {stated[1]} pixels, the file has {opened.width} x {opened.height}: its boxes "
            "are of another image; run glip data check"
        )
    return opened


def _captions(source: Source, sample: Sample, random: np.random.Generator) -> list[Prompt]:
    """Captions of other images to pack beside the true one."""
    chosen = random.integers(len(source.samples), size=source.phrasing.pack_captions)
    others = [source.samples[int(index)] for index in chosen]
    return [other.prompt for other in others if other.prompt is not None and other.image != sample.image]


def _named(sample: Sample) -> str:
    drawn = isinstance(sample.image, Image.Image)
    return f"sample {sample.image_id}" if drawn else f"image {str(sample.image)!r}"
