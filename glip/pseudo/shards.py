"""The captions to label, cut into shards: what one worker labels at a time, and labels again if it dies over it.

A folder of files is cut at its files (tars as img2dataset writes them: one shard each), a single file after so many
images. Whoever labels many millions gives many files, so that no worker reads more than its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from glip.config import SetConfig
from glip.data.captions import caption_files
from glip.data.catalog import read_set
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample, TarMember


@dataclass(frozen=True)
class Shard:
    """The samples [start, stop) of a set; ``stop`` None: to its end. ``name`` is that of its output file."""

    name: str
    entry: SetConfig
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Captioned:
    """An image with all the captions that follow one another for it."""

    image: Path | TarMember
    image_id: int | str
    captions: tuple[str, ...]


def find_shards(entry: SetConfig, images: int) -> list[Shard]:
    """The shards of a set of captions, in the order of its files.

    Args:
        entry: where it lies; full paths.
        images: of a shard cut from a single file.

    Raises:
        FileNotFoundError, ValueError: it is not there, or is no set of captions.
    """
    path = Path(entry.annotations)
    files = caption_files(path)
    if path.is_dir() or path.suffix.lower() == ".tar":
        _refuse_twins(files)
        return [Shard(file.stem, _of_file(entry, file)) for file in files]
    starts, previous, count = [0], None, 0
    samples = _read(entry).samples
    for index, sample in enumerate(samples):
        if sample.image != previous and count == images:
            starts.append(index)
            count = 0
        count += sample.image != previous
        previous = sample.image
    ends = [*starts[1:], len(samples)]
    return [
        Shard(f"{path.stem}-{number:05d}", entry, start, stop)
        for number, (start, stop) in enumerate(zip(starts, ends, strict=True))
    ]


def read_shard_images(shard: Shard) -> tuple[list[Captioned], SkipCounter]:
    """The images of a shard with their captions, and what the reader left out of its file.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not one caption of it can be read.
    """
    read = _read(shard.entry)
    whole = shard.start == 0  # what was left out of a file is counted with its first shard
    return list(_joined(_between(read.samples, shard.start, shard.stop))), read.skipped if whole else SkipCounter()


@lru_cache(maxsize=1)
def _read(entry: SetConfig) -> SampleSet:
    """A set; the last one is kept, because a file cut into many shards is read once for all of them."""
    return read_set(entry)


def _between(samples: Sequence[Sample], start: int, stop: int | None) -> Iterator[Sample]:
    return (samples[index] for index in range(start, len(samples) if stop is None else stop))


def _joined(samples: Iterator[Sample]) -> Iterator[Captioned]:
    current: Captioned | None = None
    for sample in samples:
        assert not isinstance(sample.image, Image.Image), "sets of captions are files"
        caption = sample.caption or (sample.prompt.caption if sample.prompt else "")
        if current is not None and current.image == sample.image:
            current = replace(current, captions=(*current.captions, caption))
            continue
        if current is not None:
            yield current
        current = Captioned(sample.image, sample.image_id, (caption,))
    if current is not None:
        yield current


def _of_file(entry: SetConfig, file: Path) -> SetConfig:
    inside = file.suffix.lower() == ".tar"  # its images are in it
    return replace(entry, annotations=str(file), images=(str(file.parent),) if inside else entry.images)


def _refuse_twins(files: Sequence[Path]) -> None:
    stems = [file.stem for file in files]
    again = next((stem for stem in stems if stems.count(stem) > 1), None)
    if again is not None:
        raise DataError(f"two files are called {again!r}: their labels would go to one file; rename one of them")
