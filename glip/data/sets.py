"""What every reader gives: a SampleSet, and a count of what was skipped and why."""

import copy
import math
import os
import pickle
import re
import tempfile
import unicodedata
import weakref
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from glip.console import ProgressBar
from glip.errors import DataError
from glip.files import refuse_special, writing
from glip.shapes import Bool, Float, Int
from glip.structures import Sample

Id = int | str  # of an image or a category
Row = dict[str, Any]
T = TypeVar("T")
AMBIGUOUS = "image name that fits several files (give the folder of the right ones)"
_LONGEST = 2000  # characters of an image's name with its folders
_DEEPEST = 6  # sub-folders in which a name is searched
_URL = re.compile(r"[A-Za-z][\w+.-]+://[^/?#]*([^?#]*)")
_EXAMPLES = 5  # places kept for each reason; the rest is only counted


class InvalidRecord(DataError):
    """A record that cannot be used; the message is the reason under which it is counted."""


def require(holds: object, reason: str) -> None:
    """Go on only if something holds for a record; else InvalidRecord skips it for this reason."""
    if not holds:
        raise InvalidRecord(reason)


def check_exists(path: Path, missing: str = "Annotations {!r} are not there") -> None:
    """Make sure that a file or folder of a dataset exists, and is no pipe or device.

    Raises:
        FileNotFoundError: it does not.
        DataError: it is a pipe or a device.
    """
    refuse_special(path)
    if not path.exists():
        hint = "give --root (in a config data.root) or GLIP_DATA to the data folder, or give the full path"
        raise FileNotFoundError(f"{missing.format(str(path))}: {hint}")


class SkipCounter:
    """Counts what was skipped by reason, with the first few places of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}
        self._at: list[str] = []  # where the reader is: ["line 3", "box 2"]

    def add(self, reason: str, place: str = "", times: int = 1) -> None:
        """Count a reason, such as "box without area", at a place inside that of ``catch``."""
        self.counts[reason] = self.counts.get(reason, 0) + times
        places, full = self.places.setdefault(reason, []), ", ".join(filter(None, [*self._at, place]))
        if full and len(places) < _EXAMPLES:
            places.append(full)

    @contextmanager
    def catch(self, place: str = "", times: int = 1) -> Iterator[None]:
        """Count the InvalidRecord that the block raises, and go on. Places nest, its cause last: "line 3, box 2"."""
        self._at.append(place)
        try:
            yield
        except InvalidRecord as reason:
            self.add(str(reason), str(reason.__cause__ or ""), times)
        finally:
            self._at.pop()

    def each(self, numbered: Iterable[tuple[Any, Any]], read: Callable[[Any], T], place: str) -> Iterator[T]:
        """What ``read`` makes of each (number, row); where that raises InvalidRecord, it is counted."""
        for number, row in numbered:
            with self.catch(f"{place} {str(number)[:40]}"):
                yield read(row)

    def merge(self, other: "SkipCounter") -> None:
        """Add the counts and places of another counter."""
        for reason, count in other.counts.items():
            self.add(reason, times=count)
            places = self.places[reason]
            places += other.places[reason][: _EXAMPLES - len(places)]

    def only(self, reasons: Collection[str]) -> "SkipCounter":
        """The counts and places of some reasons."""
        found = SkipCounter()
        found.counts = {reason: count for reason, count in self.counts.items() if reason in reasons}
        found.places = {reason: list(self.places[reason]) for reason in found.counts}
        return found

    def lines(self) -> Iterator[str]:
        """Each reason with its count, and its places below it."""
        for reason, count in self.counts.items():
            yield f"  {count:>6} x {reason}"
            yield from (f"           {' '.join(place.split())}" for place in self.places[reason])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.counts.items())


@dataclass(frozen=True)
class Validation:
    """The figures of a model in training."""

    figures: dict[str, float] = field(default_factory=dict)  # by "SET/FIGURE", such as "bccd_val/AP50"
    images: dict[str, Image.Image] = field(default_factory=dict)  # predictions beside targets, by "SET/NUMBER"
    skipped: SkipCounter = field(default_factory=SkipCounter)
    thresholds: dict[str, float] = field(default_factory=dict)  # of best F1, by class name

    @property
    def best(self) -> float:
        """What the best checkpoint is chosen by: the mean of every set's AP50 and recall@1; nan without these."""
        deciding = [value for name, value in self.figures.items() if name.endswith(("/AP50", "/recall@1"))]
        return sum(deciding) / len(deciding) if deciding else math.nan


@dataclass(frozen=True)
class CocoFile:
    """A COCO or LVIS json, parsed once for training and for scoring. Annotations are columns in the file's order."""

    path: Path
    images: Mapping[Id, Row]  # records by id, in the order of the file
    categories: Sequence[Any]  # all records, unchecked
    skipped: SkipCounter  # records of images that cannot be used
    image: Int[np.ndarray, " box"]  # index of each annotation's image in ``images``; -1: unknown
    category: Int[np.ndarray, " box"]  # index of its category in ``category_ids``; -1: no id
    category_ids: Sequence[Id]  # of categories and annotations
    boxes: Float[np.ndarray, "box 4"]  # x, y, width, height; NaN where they are not four finite numbers
    areas: Float[np.ndarray, " box"]  # as stated; NaN where they are not
    crowd: Bool[np.ndarray, " box"]  # ``iscrowd`` is set
    ignore: Bool[np.ndarray, " box"]  # LVIS's ``ignore`` is set
    zero: Bool[np.ndarray, " box"]  # its own id is 0, which pycocotools takes for "no match"


@dataclass(frozen=True)
class SampleSet:
    """The samples of a dataset."""

    samples: Sequence[Sample]  # packed annotations
    vocabulary: tuple[str, ...] = ()  # class names; empty for captions
    skipped: SkipCounter = field(default_factory=SkipCounter)  # what cannot be used
    ids: tuple[Id, ...] = ()  # category ids of the file, one for each class name
    format: str = ""  # how it is written
    folders: tuple[Path, ...] = ()  # where its images are searched
    annotations: CocoFile | None = None  # the parsed COCO or LVIS file, where it was read for scoring
    companions: tuple[CocoFile, ...] = ()  # files scored with it: other annotators of SA-Co, parts of D3
    asked: Mapping[Id, tuple[Id, ...]] = field(default_factory=dict)  # category ids by image, where they differ

    def ids_of(self, sample: Sample) -> tuple[Id, ...]:
        """The category id of each name of the sample's own vocabulary."""
        return self.asked.get(sample.image_id, self.ids) if self.asked else self.ids

    def walk(self, title: str) -> Iterator[Sample]:
        """All samples; a slow walk shows its progress on a terminal."""
        return iter(ProgressBar(self.samples, desc=title, unit="sample", delay=1))

    def tell_missing(self, missing: Sequence[Path], total: int) -> str:
        """How many images are not there, one of them, and where they were searched."""
        searched = f" (searched in {', '.join(map(str, self.folders))})" if self.folders else ""
        return f"{len(missing)} of {total} images are not there, such as {str(missing[0])!r}{searched}"

    def tell_boxless(self, total: int) -> str:
        """Why there is no box among some samples."""
        if self.samples[0].caption:
            return "it has captions only: pseudo-label them first (docs/data.md)"
        why = f"skipped: {self.skipped}" if self.skipped else "none was skipped"
        return f"no box of a known class in {total} images ({why}): run glip data check"

    def select(self, indices: Sequence[int]) -> "SampleSet":
        """The dataset with some of its samples, by index."""
        if isinstance(self.samples, PackedSamples):
            return replace(self, samples=self.samples.select(indices))
        return replace(self, samples=[self.samples[index] for index in indices])


class PackedSamples(Sequence[Sample]):
    """Samples in a private temporary file that processes map into memory, instead of millions of small objects each.

    Objects365 has 1.7 M images: as objects they fill several GB in every worker process. Shared memory proper is
    not used, because containers often have only 64 MB of it. Each of the ``vocabularies`` is kept once. The file is
    deleted with the object that made it.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        ends, vocabularies = [0], dict[tuple[str, ...], int]()
        with (
            writing(Path(tempfile.gettempdir(), "glip.samples")),
            tempfile.NamedTemporaryFile(prefix="glip-", suffix=".samples", delete=False) as file,
        ):
            self._path = Path(file.name)
            self._finalizer = weakref.finalize(self, self._path.unlink, missing_ok=True)
            for sample in samples:
                number = vocabularies.setdefault(sample.vocabulary, len(vocabularies))
                # Boxes as numpy: a pickled tensor of four numbers takes 400 bytes.
                fields = sample.__dict__ | {"boxes": sample.boxes.numpy(), "vocabulary": number}
                ends.append(ends[-1] + file.write(pickle.dumps(fields, protocol=pickle.HIGHEST_PROTOCOL)))
        places = np.array(ends, dtype=np.int64)
        self._starts, self._ends, self.vocabularies = places[:-1], places[1:], list(vocabularies)
        self._bytes: np.ndarray | None = None
        self._owner: PackedSamples | None = None

    def select(self, indices: Sequence[int]) -> "PackedSamples":
        """Some of the samples, by index, from the same file."""
        part = copy.copy(self)
        chosen = np.array(indices, dtype=np.int64)
        part._owner, part._starts, part._ends = self, self._starts[chosen], self._ends[chosen]
        return part

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        start, end = self._starts[index], self._ends[index]
        if self._bytes is None:
            self._bytes = np.memmap(self._path, dtype=np.uint8, mode="r")
        fields = pickle.loads(self._bytes[start:end].data)  # a private file, written above  # nosec B301
        boxes, vocabulary = torch.from_numpy(fields["boxes"].copy()), self.vocabularies[fields["vocabulary"]]
        return Sample(**{**fields, "boxes": boxes, "vocabulary": vocabulary})

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_bytes": None, "_finalizer": None, "_owner": None}  # another process only reads


class Folders:
    """Where the images of a dataset are: names in annotations are searched in one or more folders.

    Annotation tools write names of another machine: absolute, with "..", backslashes or a drive, as URLs. So a name
    that is no path in a folder also means the file whose path ends the name ("images/v1/patch8/x.jpg" on disk as
    "patch8/x.jpg"), or the one in a sub-folder whose path the name ends; letter case and the Unicode form of accents do
    not count. Of several such files the one that agrees in most parts is taken. Each name is decided alone.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = tuple(map(Path, folders)) or (Path("(none is given)"),)
        for folder in self.folders:
            check_exists(folder, "Image folder {!r} is not there")
        self._listings: dict[tuple[str, ...], list[tuple[Path, set[str]]]] = {}
        self._index: list[tuple[str, str, str]] | None = None

    def locate(self, *names: Any) -> Path:
        """The file of an image that has these names (empty ones do not count), the first that is found.

        Where none is found it is a path in the first folder, which does not exist. A record is invalid without a name,
        with one that no file can have, or with one that fits several files equally well.
        """
        readings = [reading for name in names if name not in (None, "") for reading in _readings(name)]
        require(readings, "image without a file name")
        found = (self._find(reading) for reading in readings)
        return next(filter(None, found), None) or self.folders[0].joinpath(*readings[-1])

    def _find(self, parts: tuple[str, ...]) -> Path | None:
        *above, name = parts
        key = tuple(above)
        if key not in self._listings:  # one look at each folder: millions of single looks are slow
            places = [folder.joinpath(*above) for folder in self.folders]
            self._listings[key] = [(place, set(os.listdir(place))) for place in places if place.is_dir()]
        beside = next((place / name for place, listed in self._listings[key] if name in listed), None)
        return beside or self._search(parts)

    def _search(self, parts: tuple[str, ...]) -> Path | None:
        """The file whose path in its folder ends the name, or is ended by the name."""
        if self._index is None:
            self._index = sorted(self._walk())
        wanted = [_fold(part) for part in reversed(parts)]
        tails = ["/".join(wanted[:size]) for size in range(len(wanted), 0, -1)]
        for start in (f"{tails[0]}//", f"{tails[0]}/", *(f"{tail}//" for tail in tails[1:])):
            first, end = (bisect_left(self._index, (edge,)) for edge in (start, f"{start}\U0010ffff"))
            alike = {
                Path(place, name): len(os.path.commonprefix([wanted, key.replace("//", "/").split("/")]))
                for key, place, name in self._index[first:end]
            }
            best = [file for file, parts_alike in alike.items() if parts_alike == max(alike.values())]
            best = [file for file in best if file.name == parts[-1]] or best  # "a.jpg" and "A.jpg" are two files
            one = len(best) < 2 or len({*map(os.path.realpath, best)}) < 2  # links lead to one file by several ways
            require(one, AMBIGUOUS)
            if best:
                return min(best, key=lambda file: len(file.parts))
        return None

    def _walk(self) -> Iterator[tuple[str, str, str]]:
        """Each file below the folders: its folded path backwards, "//" where its folder begins; its place, its name."""
        for folder in self.folders:
            above = [_fold(part) for part in reversed(folder.absolute().parts[1:])]
            for place, below, files in os.walk(folder, followlinks=True):
                inside = [_fold(part) for part in reversed(Path(place).relative_to(folder).parts)]
                deep = len(inside) >= _DEEPEST  # links may lead in circles
                below[:] = [] if deep else [name for name in below if not name.startswith(".")]
                for file in files:
                    yield "/".join([_fold(file), *inside, "", *above]), place, file


def _fold(name: str) -> str:
    """A name as file systems that ignore letter case and the form of accents compare it."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _readings(name: Any) -> Iterator[tuple[str, ...]]:
    """The parts of an image's name below the last ".."; of a URL those of its path; escapes (%20) also as meant."""
    require(isinstance(name, str), "image without a file name")
    link = _URL.match(name)
    text = (link[1] if link else name).replace("\\", "/")
    for meant in dict.fromkeys((text, unquote(text))):
        parts = tuple(part for part in meant.split("/") if part not in ("", "."))
        if ".." in parts:
            parts = parts[len(parts) - parts[::-1].index("..") :]
        require(parts and "\0" not in meant, "image without a file name")
        # the system would refuse to look for longer names
        short = len(meant) <= _LONGEST and all(len(part.encode("utf-8", "replace")) < 256 for part in parts)
        require(short, "image name that is too long")
        yield parts
