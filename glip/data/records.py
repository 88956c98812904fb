"""Fields of annotation files checked one by one, and samples made from them.

``require`` raises InvalidRecord where a record cannot be used; its message is the reason that readers count.
"""

import json
import sys
import unicodedata
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import floordiv, mod
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch

from glip.data.sets import CocoFile, Id, PackedSamples, Row, SampleSet, SkipCounter, check_exists, require
from glip.files import read_json
from glip.structures import Prompt, Sample, Span, TarMember

Box = tuple[float, float, float, float]  # xyxy in pixels, rounded to float32
Spans = tuple[Span, ...]
ImageSize = tuple[int, int]  # width and height, as annotations state them

FARTHEST = 1e9  # pixels; beyond it a number is no coordinate
MAX_IMAGE = 1 << 26  # bytes of an image inside an archive
MAX_LINE = 1 << 26  # bytes of a line
NO_BOX = "annotation without a box"
OUTLINED = "outlined"  # key of an annotation whose box is that of its outline
_LARGEST = sys.float_info.max  # json has whole numbers of any length
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
    if "segmentation" in record and not record.get("bbox") and (box := outline_box(record["segmentation"])):
        record |= {"bbox": box, OUTLINED: True}
    for key in _UNUSED & record.keys():
        del record[key]
    return record


def outline_box(outline: Any) -> list[float]:
    """x, y, width, height around an outline, polygons or a mask in COCO's run lengths; [] where it is neither."""
    if isinstance(outline, dict):
        return _mask_box(outline.get("counts"), as_list(outline.get("size")))
    parts = [as_list(part) for part in as_list(outline)]
    if not parts or not all(len(part) >= 6 and len(part) % 2 == 0 and all(map(is_number, part)) for part in parts):
        return []
    xs, ys = ([value for part in parts for value in part[edge::2]] for edge in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _mask_box(counts: Any, size: list[Any]) -> list[float]:
    """The box of a mask: lengths of runs down the columns, of background and object in turn, also packed in letters."""
    runs = _unpack(counts) if isinstance(counts, str) else as_list(counts)
    sound = len(size) == 2 and all(type(value) is int and value >= 0 for value in (*size, *runs))
    ends = list(accumulate(runs)) if sound and sum(runs) <= size[0] * size[1] else []
    spans = [(start, end - 1) for start, end in zip(ends[::2], ends[1::2], strict=False) if end > start]
    xs, ys = ([way(edge, size[0]) for span in spans for edge in span] for way in (floordiv, mod))
    if any(first < last for first, last in zip(xs[::2], xs[1::2], strict=True)):  # over the end of a column
        ys = [0, size[0] - 1]
    return [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1] if spans else []


def _unpack(text: str) -> list[int]:
    """Run lengths from COCO's letters: five bits each and one that more follow; from the third on, differences."""
    runs: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16 > 0) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file but for blank ones, counted from 1; one that never ends comes in parts."""
    check_exists(path)
    with path.open("rb") as file:
        lines = enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1)
        yield from ((number, line) for number, line in lines if line.strip())


def first_json_line(path: Path) -> str:
    """The first line of a file of json lines, which some converters call .json; "" where it is another file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line, second = (file.readline(1 << 20).strip() for _ in range(2))
    many = line.startswith("{") and line.endswith("}") and second.startswith("{")
    return line if many or path.suffix.lower() == ".jsonl" else ""


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


def read_words(path: Path) -> list[str]:
    """The lines of a text file, such as class names, without those that are blank at its end."""
    check_exists(path)
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    require(is_text(text), f"{path}: not text in UTF-8: save it as UTF-8")
    return text.rstrip().splitlines()


def read_lists(path: Path, lists: Sequence[str], kind: str, tree: Any = None) -> Row:
    """A json file that is a map with the given lists; ``tree`` is its content where it was parsed before.

    Raises:
        FileNotFoundError: no such file.
        DataError: not json, or a list is missing: not a file of that kind.
    """
    found = as_map(parse_file(path) if tree is None else tree)
    missing = next((key for key in lists if not isinstance(found.get(key), list)), None)
    require(missing is None, f"{path}: not {kind} json: no list {missing!r} (it needs {', '.join(lists)})")
    return found


def records_by_id(records: Iterable[Any], kind: str, skipped: SkipCounter) -> dict[Id, Row]:
    """Records by their id, in their order; those without an id, or with one seen before, are counted."""
    found: dict[Id, Row] = {}
    for number, record in enumerate(records):
        own = read_id(as_map(record).get("id"))
        if own is None:
            skipped.add(f"{kind} without an id", f"record {number}")
        elif own in found:
            skipped.add(f"{kind} id seen before", f"record {number}")
        else:
            found[own] = record
            record["id"] = own
    return found


def by_image(tree: Row, skipped: SkipCounter) -> Iterator[tuple[Id, tuple[Row, list[Row]]]]:
    """Each record of ``images`` with its records of ``annotations``, under its id, in the order of the file.

    Both lists are emptied, and yielded records are not kept, so that memory falls as the samples grow.
    """
    records = records_by_id(tree["images"], "image", skipped)
    rows: dict[Id, list[Row]] = {number: [] for number in records}
    for number, row in enumerate(tree["annotations"]):
        image = read_id(as_map(row).get("image_id"))
        if image in rows:
            rows[image].append(row)
        else:
            skipped.add(unknown("annotation of an unknown image", image, rows), f"annotations[{number}]")
    tree["images"].clear()
    tree["annotations"].clear()
    return ((number, (records.pop(number), rows.pop(number))) for number in list(records))


def as_map(value: Any) -> Row:
    """The value if it is a map, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def read_id(value: Any) -> Id | None:
    """The id of an image or a category, None where it is none; 1.0, as pandas, R and JavaScript write it, is 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def unknown(reason: str, number: Id | None, known: Container[Id]) -> str:
    """The reason why something of an unknown image or category is skipped: its id may only be of another type."""
    if isinstance(number, str) and number.isdecimal() and len(number) < 20 and int(number) in known:
        return f"{reason}: its id is text such as '1', that of the set a number such as 1"
    if isinstance(number, int) and str(number) in known:
        return f"{reason}: its id is a number such as 1, that of the set text such as '1'"
    return reason


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a json is a finite number."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that UTF-8 can write; json may hold halves of characters (surrogates)."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def is_visible(text: str) -> bool:
    """Whether a text has a visible character: no space, no control or format character (zero width)."""
    return any(unicodedata.category(letter) not in ("Cf", "Cc", "Zs", "Zl", "Zp") for letter in text)


def read_box(value: Any, *, corners: bool = False, flat: bool = False) -> Box:
    """A box from four numbers: x, y, width, height, or both corners; without an area only where it may be ``flat``."""
    require(value is not None, NO_BOX)
    four = isinstance(value, list | tuple) and len(value) == 4
    require(four and all(type(n) in (int, float) and -FARTHEST < n < FARTHEST for n in value), "malformed box")
    x, y, third, fourth = value
    box = array("f", value if corners else (x, y, x + third, y + fourth))
    require(flat or (box[2] > box[0] and box[3] > box[1]), "box without area")
    return box[0], box[1], box[2], box[3]


def read_size(record: Row) -> ImageSize | None:
    """Width and height of an image, if they are stated; MDETR's files state them as text."""
    stated: list[Any] = [record.get("width"), record.get("height")]
    sides = [int(side) if isinstance(side, str) and side.isdecimal() and len(side) < 10 else side for side in stated]
    if not all(type(side) in (int, float) and 0 < side < FARTHEST and side == int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


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
    image: Path, caption: str, named: Sequence[Named], *, image_id: Id, size: ImageSize | None
) -> Sample:
    """The sample of a caption and its named boxes: phrases are the distinct tuples of spans, in reading order."""
    require(named, "caption without a box that can be used")
    phrases = sorted({spans for item in named for spans in item.phrases})
    index = {spans: number for number, spans in enumerate(phrases)}
    named = [item._replace(phrases=tuple(sorted({index[spans] for spans in item.phrases}))) for item in named]
    sample = detection_sample(image, named, (), image_id=image_id, size=size)
    return replace(sample, prompt=Prompt.from_caption(caption, phrases))


def detection_sample(
    image: Path | TarMember, named: Sequence[Named], names: tuple[str, ...], *, image_id: Id, size: ImageSize | None
) -> Sample:
    """The sample of an image whose boxes are named by indices, of a detection dataset into its class names."""
    return Sample(
        image=image,
        boxes=torch.tensor([item.box for item in named], dtype=torch.float32).reshape(-1, 4),
        box_phrases=tuple(item.phrases for item in named),
        vocabulary=names,
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
    why = f"skipped: {skipped}" if skipped else "it lists none"
    require(len(packed), f"{path}: no sample in it can be used ({why}): see docs/data.md for its format")
    if vocabulary is None:
        vocabulary = packed.vocabularies[0] if len(packed.vocabularies) == 1 else ()
    return SampleSet(packed, vocabulary, skipped, ids, annotations=annotations)
