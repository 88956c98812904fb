"""What every reader gives: a SampleSet, and what had to be left out of it, counted by reason."""

import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from glip.errors import DataError
from glip.structures import Sample

_EXAMPLES = 5  # places named for each reason; the rest is only counted


class SkipCounter:
    """Counts by reason, and the first few places where each was seen: nothing goes missing silently."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str = "", times: int = 1) -> None:
        """Count a reason, such as "box without area", at a place, such as "annotation 17 of image 3"."""
        self.counts[reason] = self.counts.get(reason, 0) + times
        places = self.places.setdefault(reason, [])
        if place and len(places) < _EXAMPLES:
            places.append(place)

    def merge(self, other: "SkipCounter") -> None:
        """Take over the counts of another and places."""
        for reason, count in other.counts.items():
            self.add(reason, times=count)
            places = self.places[reason]
            places += other.places[reason][: _EXAMPLES - len(places)]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.counts.items())


@dataclass(frozen=True)
class SampleSet:
    """The samples of one set, its vocabulary (empty for captions), and what was left out.

    ``ids`` are the category ids of the file, beside the names of the vocabulary.
    """

    samples: Sequence[Sample]
    vocabulary: tuple[str, ...] = ()
    skipped: SkipCounter = field(default_factory=SkipCounter)
    ids: tuple[int | str, ...] = ()


class PackedSamples(Sequence[Sample]):
    """Samples in a private temporary file that processes map into memory, instead of millions of small objects each.

    Objects365 has 1.7 M images: as objects they fill several GB in every worker process. Shared memory proper is
    not used, because containers often have only 64 MB of it. The vocabulary, the same for all, is kept once. The
    file goes when the object that made it goes.
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
        self._ends, self._vocabularies = np.array(ends, dtype=np.int64), list(vocabularies)
        self._bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        if self._bytes is None:
            self._bytes = np.memmap(self._path, dtype=np.uint8, mode="r")
        start, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        fields = pickle.loads(self._bytes[start:end].data)  # written above into a file that only this user can open
        boxes, vocabulary = torch.from_numpy(fields["boxes"].copy()), self._vocabularies[fields["vocabulary"]]
        return Sample(**{**fields, "boxes": boxes, "vocabulary": vocabulary})

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_bytes": None, "_finalizer": None}  # another process only reads


class Folders:
    """Where a set's images lie: names in annotations are looked for under one or more folders.

    Some sets state a longer path than people have on disk ("images/v1/patch8/x.jpg" for "patch8/x.jpg"); how many
    leading parts to leave out is found with the first name.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        listed = [folders] if isinstance(folders, str | Path) else folders
        self.folders = tuple(Path(folder) for folder in listed)
        if not self.folders:
            raise DataError("no folder of images is given: give images=, the folders to look through in order")
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"image folder {str(folder)!r} is not there: set data.root or GLIP_DATA to the data folder, or "
                    "give the folder's full path"
                )
        self._skip: int | None = None

    def locate(self, name: str) -> Path:
        """The file of a name; it may not be there.

        Raises:
            ValueError: a name that leads out of the folders.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name or Path(name).is_absolute():
            raise DataError(f"image name {name!r} leads out of its folder: give a path inside it")
        if self._skip is None:
            self._skip = self._leading(parts)
        skip = min(self._skip or 0, len(parts) - 1)
        candidates = [folder.joinpath(*parts[skip:]) for folder in self.folders]
        if len(candidates) == 1:
            return candidates[0]
        return next((file for file in candidates if file.is_file()), candidates[0])

    def _leading(self, parts: tuple[str, ...]) -> int | None:
        """How many parts to leave out to find this file; None where it is not there at all, so that the next tells."""
        found = (
            skip
            for skip in range(len(parts))
            if any(folder.joinpath(*parts[skip:]).is_file() for folder in self.folders)
        )
        return next(found, None)
