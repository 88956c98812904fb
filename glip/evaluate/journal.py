"""What an evaluation has found so far, on disk as it comes: a killed one goes on where it was.

One file for each process, appended sample by sample in 24 bytes for each detection: all that LVIS's protocol keeps of
its 20,000 images are 186 million. ``results.json`` is made of it when all is there.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from glip.errors import DataError
from glip.evaluate.run import Answer
from glip.files import atomic_write
from glip.shapes import Float, Int
from glip.structures import Detections, Prompt

_OF = "of.json"
_HEAD = struct.Struct("<IIIIII")  # sample, detections, height, width, bytes of the reason, checksum of all that follows
_ROW = 24  # bytes: label, score, four edges


@dataclass(frozen=True)
class Entry:
    """The answer for one sample: detections best first, or the reason and the place of what was passed over."""

    sample: int
    size: tuple[int, int]
    labels: Int[np.ndarray, " det"]
    scores: Float[np.ndarray, " det"]
    boxes: Float[np.ndarray, "det 4"]
    reason: str = ""
    place: str = ""

    def detections(self, prompt: Prompt) -> Detections:
        """The same as Detections of a prompt."""
        parts = (torch.from_numpy(part.copy()) for part in (self.boxes, self.scores, self.labels.astype(np.int64)))
        boxes, scores, labels = parts
        return Detections(boxes, scores, labels, prompt, self.size)


class Journal:
    """The answers of one evaluation.

    Args:
        folder: where they are kept; made if missing.
        of: what they are answers of: the model, the set, how it was asked.
        process: number of this process; each writes a file of its own and reads those of all.

    Raises:
        ValueError: the folder holds answers of something else.
    """

    def __init__(self, folder: Path, of: Mapping[str, str], *, process: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if process == 0:
            _check_same(folder, of)
        self._path = folder / f"answers-{process}.bin"
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[Path, int]] = {}
        for path in sorted(folder.glob("answers-*.bin")):
            end = 0
            for sample, start, next_start in _records(path):
                self._places.setdefault(sample, (path, start))
                end = next_start
            if path == self._path and end < path.stat().st_size:  # the last record was cut off by a kill
                with path.open("r+b") as file:
                    file.truncate(end)

    @property
    def done(self) -> set[int]:
        """The samples that have an answer."""
        return set(self._places)

    def add(self, answer: Answer) -> None:
        """Write an answer behind the others."""
        if self._file is None:
            self._file = self._path.open("ab")
        found, reason = answer.found, f"{answer.reason}\0{answer.place}".encode() if answer.reason else b""
        columns, size, count = b"", (0, 0), 0
        if found is not None:
            size, count = found.size, len(found)
            columns = found.labels.numpy().astype("<i4").tobytes()
            columns += found.scores.numpy().astype("<f4").tobytes() + found.boxes.numpy().astype("<f4").tobytes()
        body = reason + columns
        start = self._file.tell()
        self._file.write(_HEAD.pack(answer.index, count, *size, len(reason), zlib.crc32(body)) + body)
        self._file.flush()  # what is written survives the process; a machine's failure costs the last seconds
        self._places[answer.index] = self._path, start

    def entries(self) -> Iterator[Entry]:
        """All answers, in the order of the samples."""
        files: dict[Path, IO[bytes]] = {}
        try:
            for sample in sorted(self._places):
                path, start = self._places[sample]
                if path not in files:
                    files[path] = path.open("rb")
                files[path].seek(start)
                yield _entry(files[path])
        finally:
            for file in files.values():
                file.close()

    def close(self) -> None:
        """Close the file; ``entries`` still works."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _check_same(folder: Path, of: Mapping[str, str]) -> None:
    path = folder / _OF
    if not path.is_file():
        with atomic_write(path) as file:
            json.dump(dict(of), file, indent=1)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise DataError(f"{path}: not readable: delete the folder, or give another with --out")
    odd = [key for key in {**of, **before} if of.get(key) != before.get(key)]
    if odd:
        raise DataError(
            f"{folder} holds answers of another evaluation ({odd[0]} was {before.get(odd[0])!r}, is "
            f"{of.get(odd[0])!r}): give another folder with --out, or delete it"
        )


def _records(path: Path) -> Iterator[tuple[int, int, int]]:
    """(sample, start, end) of every whole record, up to the first that is cut off or broken."""
    with path.open("rb") as file:
        while True:
            start = file.tell()
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            sample, count, _, _, reason, checksum = _HEAD.unpack(head)
            length = reason + _ROW * count
            body = file.read(length)
            if len(body) < length or zlib.crc32(body) != checksum:
                return
            yield sample, start, file.tell()


def _entry(file: IO[bytes]) -> Entry:
    sample, count, height, width, letters, _ = _HEAD.unpack(file.read(_HEAD.size))
    reason, _, place = file.read(letters).decode().partition("\0")
    labels = np.frombuffer(file.read(4 * count), dtype="<i4")
    scores = np.frombuffer(file.read(4 * count), dtype="<f4")
    boxes = np.frombuffer(file.read(16 * count), dtype="<f4").reshape(-1, 4)
    return Entry(sample, (height, width), labels, scores, boxes, reason, place)
