"""Our own label files: what a teacher found, or any set without loss; jsonl, one line per image.

A line with a caption has spans for its phrases and, for each box, the phrases that name it::

    {"image": "a.jpg", "width": 640, "height": 480, "caption": "a dog and a cat",
     "phrases": [{"text": "a dog", "spans": [[0, 5]]}],
     "boxes": [{"box": [x1, y1, x2, y2], "phrases": [0], "score": 0.9}]}

A line of a detection set has ``names`` in place of the caption, and "phrases" of its boxes index them. Names hold for
that line and those after it, until others are given, so that a long list is written once; after a line that cannot be
read, or names that are none, no names hold. ``docs/data.md`` has all keys; the writer is in ``glip/data/writers.py``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glip.data.readers.fields import (
    Box,
    InvalidRecord,
    box_tensor,
    check_file,
    is_id,
    is_text,
    is_visible,
    read_box,
    read_caption,
    read_image,
    read_size,
    read_spans,
    sample_set,
)
from glip.data.readers.shards import MAX_IMAGE
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.structures import Phrase, Prompt, Sample, TarMember

Names = tuple[str, ...]
_FAR = 1 << 62  # no archive has a byte there


@dataclass(frozen=True)
class _Boxes:
    """The usable boxes of a line, one entry of the first three lists per box; crowd holds indices."""

    corners: list[Box] = field(default_factory=list)
    phrases: list[tuple[int, ...]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    crowd: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Words:
    """What a line says its boxes are called: names, or a caption, whose prompt is None when nothing in it is a phrase.

    ``numbers`` is the place in the sample of each usable phrase of the line.
    """

    numbers: dict[int, int]
    names: Names = ()
    caption: str = ""
    prompt: Prompt | None = None


def read_labels(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read a label file.

    Where some boxes of a line have a score, those without one have been drawn by people: they score 1.

    Args:
        annotations: the jsonl.
        images: folders of the images, or of the tars that hold them.

    Raises:
        FileNotFoundError: the file or a folder is not there.
        ValueError: no line of it can be used.
    """
    path, tally = Path(annotations), SkipCounter()
    check_file(path)
    lists: dict[Names, None] = {}
    found = sample_set(path, _read(path, Folders(images or [path.parent]), tally, lists), tally)
    return SampleSet(found.samples, next(iter(lists)) if len(lists) == 1 else (), tally)


def _read(path: Path, folders: Folders, tally: SkipCounter, lists: dict[Names, None]) -> Iterator[Sample]:
    names: Names = ()
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            place = f"line {number}"
            try:
                before, names = names, ()  # what cannot be read may have been other names: the old ones would be wrong
                record = _parsed(raw)
                names = read_names(record["names"]) if "names" in record else before
                sample = sample_of_row(record, names, folders, place, tally)
            except InvalidRecord as reason:
                tally.add(str(reason), place)
                continue
            lists[sample.vocabulary] = None
            yield sample


def sample_of_row(record: dict[str, Any], names: Names, folders: Folders, place: str, tally: SkipCounter) -> Sample:
    """The sample of one line; the names hold where it has no caption.

    Raises:
        Unfit: nothing of it can be learned from; what only a part of it is unfit for is counted.
    """
    image = _image(record, folders)
    words = _words(record, names, place, tally)
    boxes = _boxes(record, words.numbers, place, tally)
    return Sample(
        image=image,
        boxes=box_tensor(boxes.corners),
        box_phrases=tuple(boxes.phrases),
        vocabulary=words.names,
        prompt=words.prompt,
        caption="" if words.prompt else words.caption,
        image_id=record["id"] if is_id(record.get("id")) else str(record["image"]),
        size=read_size(record),
        crowd=tuple(boxes.crowd),
        absent=_indices(record["absent"], words.names) if isinstance(record.get("absent"), list) else None,
        incomplete=_indices(record.get("incomplete"), words.names),
        scores=tuple(boxes.scores),
    )


def _image(record: dict[str, Any], folders: Folders) -> Path | TarMember:
    file = read_image(folders, record.get("image"))
    if "member" not in record:
        return file
    member, start, length = record["member"], record.get("start"), record.get("length")
    if not (is_text(member) and _is_index(start, _FAR) and _is_index(length, MAX_IMAGE + 1)):
        raise InvalidRecord("member of an archive without start and length")
    assert isinstance(start, int) and isinstance(length, int)
    return TarMember(file, member, start, length)


def _words(record: dict[str, Any], names: Names, place: str, tally: SkipCounter) -> _Words:
    if "caption" not in record:
        if not names:
            raise InvalidRecord("line with neither a caption nor names")
        return _Words({index: index for index in range(len(names))}, names)
    caption = read_caption(record["caption"])
    given = record.get("phrases") if isinstance(record.get("phrases"), list) else []
    kept: list[Phrase] = []
    numbers: dict[int, int] = {}
    for index, item in enumerate(given or []):
        try:
            phrase = _phrase(item, caption)
        except InvalidRecord as reason:
            tally.add(str(reason), place)
            continue
        numbers[index] = len(kept)
        kept.append(phrase)
    if not kept:
        return _Words({}, (), caption)
    classes = record.get("classes")
    stated = isinstance(classes, list) and all(
        index < len(classes) and type(classes[index]) is int for index in numbers
    )
    own = tuple(classes[index] for index in numbers) if stated and classes else ()
    return _Words(numbers, (), caption, Prompt(caption, tuple(kept), own, is_list=record.get("list") is True))


def _phrase(item: Any, caption: str) -> Phrase:
    if not isinstance(item, dict):
        raise InvalidRecord("malformed phrase")
    spans = read_spans(item.get("spans"), caption)
    text: str = item["text"] if is_text(item.get("text")) else " ".join(caption[start:end] for start, end in spans)
    return Phrase(text, spans)


def _boxes(record: dict[str, Any], numbers: dict[int, int], place: str, tally: SkipCounter) -> _Boxes:
    given = record.get("boxes")
    rows = [row if isinstance(row, dict) else {} for row in given] if isinstance(given, list) else []
    scored, found = any("score" in row for row in rows), _Boxes()
    for row in rows:
        try:
            box, phrases, score = read_box(row.get("box"), corners=True), _own(row, numbers), row.get("score", 1.0)
            if type(score) not in (int, float) or not -_FAR < score < _FAR:
                raise InvalidRecord("score that is no number")
        except InvalidRecord as reason:
            tally.add(str(reason), place)
            continue
        if row.get("crowd") is True:
            found.crowd.append(len(found.corners))
        found.corners.append(box)
        found.phrases.append(phrases)
        if scored:
            found.scores.append(float(score))
    return found


def _own(row: dict[str, Any], numbers: dict[int, int]) -> tuple[int, ...]:
    """The phrases of a box, without those that could not be used."""
    given = row.get("phrases")
    listed = given if isinstance(given, list) else []
    phrases = tuple(numbers[index] for index in listed if type(index) is int and index in numbers)
    if not phrases:
        raise InvalidRecord("box of an unknown phrase")
    return phrases


def read_names(given: Any) -> Names:
    """The names of a detection set.

    Raises:
        Unfit: not a list of words.
    """
    if not (isinstance(given, list) and given and all(is_text(name) and is_visible(name) for name in given)):
        raise InvalidRecord("names that are no list of words")
    return tuple(given)


def _indices(given: Any, names: Names) -> tuple[int, ...]:
    return tuple(index for index in given if _is_index(index, len(names))) if isinstance(given, list) else ()


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):  # also of the encoding
        raise InvalidRecord("line that is no json") from None
    if not isinstance(record, dict):
        raise InvalidRecord("line that is no record")
    return record


def _is_index(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end
