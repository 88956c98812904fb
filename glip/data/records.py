"""Fields of annotation files checked one by one, and samples made from them.

``require`` raises InvalidRecord where a record cannot be used; its message is the reason that readers count.
"""

import json
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch

from glip.data.sets import CocoFile, Id, PackedSamples, Row, SampleSet, SkipCounter, check_exists, require
from glip.errors import DataError
from glip.files import read_json
from glip.structures import Prompt, Sample, Span

Box = tuple[float, float, float, float]  # xyxy in pixels, rounded to float32
Spans = tuple[Span, ...]

FARTHEST = 1e9  # pixels; beyond it a number is no coordinate
MAX_IMAGE = 1 << 26  # bytes of an image inside an archive
MAX_LINE = 1 << 26  # bytes of a line
_UNUSED = frozenset(  # what no reader reads; in COCO's and LVIS's files the outlines are most of the file
    ("segmentation", "isfake", "isreflected", "license", "date_captured", "flickr_url", "keypoints")
)


class Named(NamedTuple):
    """A box and what names it: the spans of each phrase, or its index; crowd: it marks a group."""

    box: Box
    phrases: tuple[Any, ...]
    crowd: bool = False
    score: float = 1.0


def parse_file(path: Path) -> Any:
    """The content of a json file without the keys that no reader reads (outlines); errors as ``read_json``."""
    check_exists(path)
    return read_json(path, object_hook=_without_unused)


def _without_unused(record: Row) -> Row:
    """Called as each object closes, so that the outlines of a whole dataset are never in memory at once."""
    for key in _UNUSED & record.keys():
        del record[key]
    return record


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file but for blank ones, counted from 1; one that never ends comes in parts."""
    check_exists(path)
    with path.open("rb") as file:
        lines = enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1)
        yield from ((number, line) for number, line in lines if line.strip())


def parse_line(line: bytes) -> Row:
    """The record in a line of json."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also of the encoding
        record = None
    require(isinstance(record, dict), "line that is no json record")
    return dict(record)


def decode_text(data: bytes) -> str:
    """Text in UTF-8."""
    text = data.decode("utf-8-sig", "surrogateescape")
    require(is_text(text), "text that is not UTF-8")
    return text


def read_lists(path: Path, lists: Sequence[str], kind: str, tree: Any = None) -> Row:
    """A json file that is a map with the given lists; ``tree`` is its content where it was parsed before.

    Raises:
        FileNotFoundError: no such file.
        DataError: not json, or a list is missing: not a file of that kind.
    """
    found = as_map(parse_file(path) if tree is None else tree)
    missing = [key for key in lists if not isinstance(found.get(key), list)]
    if missing:
        raise DataError(f"{path}: not {kind} json: no list {missing[0]!r} (it needs {', '.join(lists)})")
    return found


def records_by_id(records: Iterable[Any], kind: str, skipped: SkipCounter) -> dict[Id, Row]:
    """Records by their id, in their order; those without an id, or with one seen before, are counted."""
    found: dict[Id, Row] = {}
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not is_id(record.get("id")):
            skipped.add(f"{kind} without an id", f"record {number}")
        elif record["id"] in found:
            skipped.add(f"{kind} id seen before", f"record {number}")
        else:
            found[record["id"]] = record
    return found


def by_image(tree: Row, skipped: SkipCounter) -> Iterator[tuple[Id, tuple[Row, list[Row]]]]:
    """Each record of ``images`` with its records of ``annotations``, under its id, in the order of the file.

    Both lists are emptied, and yielded records are not kept, so that memory falls as the samples grow.
    """
    records = records_by_id(tree["images"], "image", skipped)
    rows: dict[Id, list[Row]] = {number: [] for number in records}
    for number, row in enumerate(tree["annotations"]):
        image = as_map(row).get("image_id")
        if is_id(image) and image in rows:
            rows[image].append(row)
        else:
            skipped.add("annotation of an unknown image", f"annotations[{number}]")
    tree["images"].clear()
    tree["annotations"].clear()
    return ((number, (records.pop(number), rows.pop(number))) for number in list(records))


def as_map(value: Any) -> Row:
    """The value if it is a map, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_id(value: Any) -> TypeGuard[Id]:
    """Whether a value can be the id of an image or a category."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that UTF-8 can write; json may hold halves of characters (surrogates)."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def is_visible(text: str) -> bool:
    """Whether a text has a visible character: no space, no control or format character (zero width)."""
    return any(unicodedata.category(letter) not in ("Cf", "Cc", "Zs", "Zl", "Zp") for letter in text)


def read_box(value: Any, *, corners: bool = False) -> Box:
    """A box from four numbers: x, y, width, height, or both corners; the rule of ``geometry.boxes.is_degenerate``."""
    four = isinstance(value, list | tuple) and len(value) == 4
    require(four and all(type(n) in (int, float) and -FARTHEST < n < FARTHEST for n in value), "malformed box")
    x, y, third, fourth = value
    box = array("f", value if corners else (x, y, x + third, y + fourth))
    require(box[2] > box[0] and box[3] > box[1], "box without area")
    return box[0], box[1], box[2], box[3]


def read_size(record: Row) -> tuple[int, int] | None:
    """Width and height of an image, if they are stated; MDETR's files state them as text."""
    sides = []
    for value in (record.get("width"), record.get("height")):
        number: Any = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if type(number) not in (int, float) or not 0 < number < FARTHEST or number != int(number):
            return None
        sides.append(int(number))
    return sides[0], sides[1]


def read_caption(value: Any) -> str:
    """A caption that a prompt can be made of."""
    require(is_text(value) and value.strip(), "caption that is empty or no text")
    return str(value)


def read_spans(value: Any, caption: str) -> Spans:
    """The spans [[start, end], ...] of one phrase, in reading order."""
    require(as_list(value), "box without a phrase")
    for span in value:
        pair = isinstance(span, list | tuple) and len(span) == 2 and all(type(edge) is int for edge in span)
        require(pair and 0 <= span[0] < span[1] <= len(caption), "span that is no part of its caption")
    spans = tuple(sorted({(start, end) for start, end in value}))
    require(any(is_visible(caption[start:end]) for start, end in spans), "phrase without words")
    return spans


def grounding_sample(
    image: Path, caption: str, named: Sequence[Named], *, image_id: Id, size: tuple[int, int] | None
) -> Sample:
    """The sample of a caption and its named boxes: phrases are the distinct tuples of spans, in reading order."""
    require(named, "caption without a box that can be used")
    phrases = sorted({spans for item in named for spans in item.phrases})
    index = {spans: number for number, spans in enumerate(phrases)}
    return Sample(
        image=image,
        boxes=torch.tensor([item.box for item in named]),
        box_phrases=tuple(tuple(sorted({index[spans] for spans in item.phrases})) for item in named),
        prompt=Prompt.from_caption(caption, phrases),
        image_id=image_id,
        size=size,
        crowd=tuple(number for number, item in enumerate(named) if item.crowd),
    )


def pack_sample_set(
    path: Path,
    samples: Iterable[Sample],
    skipped: SkipCounter,
    *,
    vocabulary: tuple[str, ...] | None = None,
    ids: tuple[Id, ...] = (),
    annotations: CocoFile | None = None,
) -> SampleSet:
    """Pack what a reader yields; without a given vocabulary, the set has that of its samples, if all share one.

    Raises:
        DataError: no sample.
    """
    packed = PackedSamples(samples)
    if not len(packed):
        why = f"skipped: {skipped}" if skipped else "it lists none"
        raise DataError(f"{path}: no sample in it can be used ({why}): see docs/data.md for its format")
    if vocabulary is None:
        vocabulary = packed.vocabularies[0] if len(packed.vocabularies) == 1 else ()
    return SampleSet(packed, vocabulary, skipped, ids, annotations=annotations)
