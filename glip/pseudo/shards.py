"""The captions to label, cut into shards: what one worker labels at a time, and repeats if it is killed.

A folder is cut at its files (tars as img2dataset writes them: one shard each), a single file after a number of images.
For many millions of captions give many files, so that no worker reads more than its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

from glip.config import SetConfig
from glip.data.captions import caption_files
from glip.data.catalog import data_root, find_set, read_set, recognize
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample


@dataclass(frozen=True)
class Shard:
    """The samples [start, stop) of a dataset; ``stop`` None: to its end. ``name`` is the stem of its output file."""

    name: str
    entry: SetConfig
    start: int = 0
    stop: int | None = None


def find_captions(name: str, images: Sequence[str], root: str | Path | None) -> SetConfig:
    """A captioned dataset with full paths.

    Args:
        name: a dataset's name, a file or a folder.
        images: folders of its images, for a file.
        root: the data root.

    Raises:
        GlipError: not a captioned dataset.
    """
    entry = find_set(name, images=[str(Path(folder).absolute()) for folder in images], root=root)
    under = data_root(root).absolute()
    format = entry.format or recognize(under / entry.annotations)[0]
    if format in ("coco", "lvis"):
        raise DataError(
            f"Dataset {name!r} of format {format} has no captions of image files. Give a captioned dataset."
        )
    folders = tuple(str(under / folder) for folder in entry.images)
    return replace(entry, annotations=str(under / entry.annotations), images=folders, format=format)


def find_shards(entry: SetConfig, images: int) -> list[Shard]:
    """The shards of a captioned dataset, in the order of its files; a single file is cut every ``images`` images."""
    path = Path(entry.annotations)
    files = caption_files(path)
    if path.is_dir() or path.suffix.lower() == ".tar":
        shards, stems = list[Shard](), Counter(file.stem for file in files)
        for file in files:
            name = file.stem if stems[file.stem] == 1 else file.name  # a.csv beside a.tsv
            folders = (str(file.parent),) if file.suffix.lower() == ".tar" else entry.images  # a tar holds its images
            shards.append(Shard(name, replace(entry, annotations=str(file), images=folders)))
        return shards
    samples = _read(entry).samples
    firsts = (next(group)[0] for _, group in groupby(enumerate(samples), key=lambda item: item[1].image))
    starts = list(islice(firsts, None, None, images))
    bounds = zip(starts, [*starts[1:], len(samples)], strict=True)
    return [Shard(f"{path.stem}-{number:05d}", entry, *bound) for number, bound in enumerate(bounds)]


def read_shard(shard: Shard) -> tuple[list[list[Sample]], SkipCounter]:
    """The samples of a shard, those of one image together, and what the reader skipped in its file.

    Raises:
        OSError, DataError: the file is missing, or no caption in it can be read.
    """
    read = _read(shard.entry)
    stop = len(read.samples) if shard.stop is None else shard.stop
    samples = (read.samples[index] for index in range(shard.start, stop))
    images = [list(group) for _, group in groupby(samples, key=lambda sample: sample.image)]
    return images, read.skipped if shard.start == 0 else SkipCounter()  # counted once per file


@lru_cache(maxsize=1)
def _read(entry: SetConfig) -> SampleSet:
    """A dataset; the last one is cached, because a file cut into many shards is read once for all of them."""
    return read_set(entry)
