"""Our own label files: pseudo-labels, or any dataset without loss; jsonl, one line per image.

A line with a caption has spans for its phrases and, for each box, the phrases that name it::

    {"image": "a.jpg", "width": 640, "height": 480, "caption": "a dog and a cat",
     "phrases": [{"text": "a dog", "spans": [[0, 5]]}],
     "boxes": [{"box": [x1, y1, x2, y2], "phrases": [0], "score": 0.9}]}

A line of a detection dataset has ``names`` in place of the caption, and "phrases" of its boxes index them. Names hold
for that line and those after it, until others are given, so that a long list is written once; after a line that cannot
be read, no names hold. ``docs/data.md`` has all keys; ``write_labels`` in ``writers.py`` writes them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip.data import records
from glip.data.records import MAX_IMAGE, Named, as_list, as_map, is_text, is_visible, read_id
from glip.data.sets import Folders, Row, SampleSet, SkipCounter, require
from glip.structures import Phrase, Prompt, Sample, TarMember

Names = tuple[str, ...]
_FAR = 1 << 62  # no archive has a byte there


def read_labels(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read a label file; ``images`` are folders of the images, or of the tars that hold them.

    Where some boxes of a line have a score, those without one were drawn by people: they score 1.
    """
    path, skipped = Path(annotations), SkipCounter()
    folders, names = Folders(images or [path.parent]), Names()

    def read(line: bytes) -> Sample:
        nonlocal names
        before, names = names, ()  # what cannot be read may have been other names: the old ones would be wrong
        record = records.parse_line(line)
        names = read_names(record["names"]) if "names" in record else before
        return sample_of_row(record, names, folders, skipped)

    return records.pack_sample_set(path, skipped.each(records.read_lines(path), read, "line"), skipped)


def sample_of_row(record: Row, names: Names, folders: Folders, skipped: SkipCounter) -> Sample:
    """The sample of one line; the names hold where it has no caption. Unusable phrases and boxes are counted.

    Raises:
        InvalidRecord: nothing of it can be used.
    """
    file = folders.locate(record.get("image"))
    image: Path | TarMember = file
    if "member" in record:
        places = _indices([record.get("start")], _FAR) + _indices([record.get("length")], MAX_IMAGE + 1)
        require(len(places) == 2 and is_text(record["member"]), "member of an archive without start and length")
        image = TarMember(file, record["member"], *places)
    caption, prompt, numbers = "", None, dict(enumerate(range(len(names))))
    if "caption" in record:
        names, caption = (), records.read_caption(record["caption"])
        prompt, numbers = _read_prompt(record, caption, skipped)
    else:
        require(names, "line with neither a caption nor names")
    rows, own = [as_map(row) for row in as_list(record.get("boxes"))], read_id(record.get("id"))
    boxes = list(skipped.each(enumerate(rows), lambda row: _read_box(row, numbers), "box"))
    image_id, size = str(record["image"]) if own is None else own, records.read_size(record)
    return replace(
        records.detection_sample(image, boxes, names, image_id=image_id, size=size),
        prompt=prompt,
        caption="" if prompt else caption,
        absent=_indices(record["absent"], len(names)) if isinstance(record.get("absent"), list) else None,
        incomplete=_indices(as_list(record.get("incomplete")), len(names)),
        scores=tuple(item.score for item in boxes) if any("score" in row for row in rows) else (),
    )


def _read_prompt(record: Row, caption: str, skipped: SkipCounter) -> tuple[Prompt | None, dict[int, int]]:
    """The prompt of a caption, None without a usable phrase, and the index in it of each usable phrase of the line."""
    phrases: list[Phrase] = []
    numbers: dict[int, int] = {}
    for index, item in enumerate(map(as_map, as_list(record.get("phrases")))):
        with skipped.catch(f"phrase {index}"):
            spans = records.read_spans(item.get("spans"), caption)
            shown = " ".join(caption[start:end] for start, end in spans)
            numbers[index] = len(phrases)
            phrases.append(Phrase(item["text"] if is_text(item.get("text")) else shown, spans))
    if not phrases:
        return None, {}
    classes = as_list(record.get("classes"))
    stated = all(index < len(classes) and type(classes[index]) is int for index in numbers)
    own = tuple(classes[index] for index in numbers) if stated else ()
    return Prompt(caption, tuple(phrases), own, is_list=record.get("list") is True), numbers


def _read_box(row: Row, numbers: dict[int, int]) -> Named:
    box, score = records.read_box(row.get("box"), corners=True), row.get("score", 1.0)
    listed = as_list(row.get("phrases"))
    phrases = tuple(numbers[index] for index in listed if type(index) is int and index in numbers)
    require(phrases, "box of an unknown phrase")
    require(type(score) in (int, float) and -_FAR < score < _FAR, "score that is no number")
    return Named(box, phrases, row.get("crowd") is True, float(score))


def read_names(given: Any) -> Names:
    """The class names of a detection dataset."""
    words = as_list(given)
    good = words and all(is_text(name) and is_visible(name) for name in words)
    require(good, "names that are no list of words")
    return tuple(words)


def _indices(given: Iterable[Any], end: int) -> tuple[int, ...]:
    """The values that are whole numbers from 0 to ``end``."""
    return tuple(index for index in given if type(index) is int and 0 <= index < end)
