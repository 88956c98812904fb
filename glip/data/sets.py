"""What every reader gives: a SampleSet, and a count of what was skipped and why."""

import copy
import math
import pickle
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from glip.console import ProgressBar
from glip.errors import DataError
from glip.shapes import Bool, Float, Int
from glip.structures import Sample

Id = int | str  # of an image or a category
Row = dict[str, Any]
T = TypeVar("T")
_LONGEST = 2000  # characters of an image's name with its folders
_EXAMPLES = 5  # places kept for each reason; the rest is only counted


class InvalidRecord(DataError):
    """A record that cannot be used; the message is the reason under which it is counted."""


def require(holds: object, reason: str) -> None:
    """Go on only if something holds for a record; else it is skipped for this reason.

    Raises:
        InvalidRecord: it does not hold.
    """
    if not holds:
        raise InvalidRecord(reason)


def check_exists(path: Path, missing: str = "Annotations {!r} are not there") -> None:
    """Make sure that a file or folder of a dataset exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not path.exists():
        hint = "set data.root or GLIP_DATA to the data folder, or give the full path"
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
        places, full = self.places.setdefault(reason, []), [*self._at, *filter(None, [place])]
        if full and len(places) < _EXAMPLES:
            places.append(", ".join(full))

    @contextmanager
    def catch(self, place: str, times: int = 1) -> Iterator[None]:
        """Count the InvalidRecord that the block raises, and go on after it. Places nest: "line 3, box 2"."""
        self._at.append(place)
        try:
            yield
        except InvalidRecord as reason:
            self.add(str(reason), times=times)
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


@dataclass(frozen=True)
class SampleSet:
    """The samples of a dataset."""

    samples: Sequence[Sample]  # packed annotations
    vocabulary: tuple[str, ...] = ()  # class names; empty for captions
    skipped: SkipCounter = field(default_factory=SkipCounter)  # what cannot be used
    ids: tuple[Id, ...] = ()  # category ids of the file, one for each class name
    format: str = ""  # how it is written
    annotations: CocoFile | None = None  # the parsed COCO or LVIS file, where it was read for scoring

    def walk(self, title: str) -> Iterator[Sample]:
        """All samples; a slow walk shows its progress on a terminal."""
        return iter(ProgressBar(self.samples, desc=title, unit="sample", delay=1))

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
        with tempfile.NamedTemporaryFile(prefix="glip-", suffix=".samples", delete=False) as file:
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
        fields = pickle.loads(self._bytes[start:end].data)  # written above into a file that only this user can open
        boxes, vocabulary = torch.from_numpy(fields["boxes"].copy()), self.vocabularies[fields["vocabulary"]]
        return Sample(**{**fields, "boxes": boxes, "vocabulary": vocabulary})

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_bytes": None, "_finalizer": None, "_owner": None}  # another process only reads


class Folders:
    """Where the images of a dataset are: names in annotations are searched in one or more folders.

    Some datasets state a longer path than people have on disk ("images/v1/patch8/x.jpg" for "patch8/x.jpg"); how
    many leading parts to leave out is found with the first name.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        listed = [folders] if isinstance(folders, str | Path) else folders
        self.folders = tuple(Path(folder) for folder in listed) or (Path("(none is given)"),)
        for folder in self.folders:
            check_exists(folder, "Image folder {!r} is not there")
        self._skip: int | None = None

    def locate(self, name: Any) -> Path:
        """The file of an image's name; it may not exist.

        Raises:
            InvalidRecord: no name, one that no file can have, or one that leads out of the folders.
        """
        require(isinstance(name, str) and name, "image without a file name")
        # the system would refuse to look for longer names
        short = len(name) <= _LONGEST and all(len(part.encode("utf-8", "replace")) < 256 for part in name.split("/"))
        require(short, "image name that is too long")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        inside = parts and parts[0] != "/" and ".." not in parts and "\0" not in name and not Path(name).is_absolute()
        require(inside, "image name outside its folder")
        if self._skip is None:
            places = ((skip, folder) for skip in range(len(parts)) for folder in self.folders)
            found = (skip for skip, folder in places if folder.joinpath(*parts[skip:]).is_file())
            self._skip = next(found, None)
        skip = min(self._skip or 0, len(parts) - 1)
        candidates = [folder.joinpath(*parts[skip:]) for folder in self.folders]
        if len(candidates) == 1:
            return candidates[0]
        return next((file for file in candidates if file.is_file()), candidates[0])
