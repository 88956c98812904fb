"""What annotation files of strangers say, checked field by field, and the samples that are made of it.

Whatever cannot be learned from is raised as Unfit; the message is the reason under which a reader counts it.
"""

import json
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from glip.data.sets import Folders, PackedSamples, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Prompt, Sample, Span

Box = tuple[float, float, float, float]  # xyxy in pixels, rounded to float32
Spans = tuple[Span, ...]

_FARTHEST = 1e9  # pixels; beyond it a number is no coordinate
_LONGEST = 2000  # characters of an image's name with its folders
_UNUSED = frozenset(  # what no reader reads; in COCO's and LVIS's files the outlines are most of the file
    ("segmentation", "area", "isfake", "isreflected", "license", "date_captured", "flickr_url", "keypoints")
)


class InvalidRecord(DataError):
    """A record that nothing can be learned from; the message is the reason."""


@dataclass(frozen=True)
class Named:
    """A box and the phrases that name it, each as the spans of its words; crowd: it marks a group, not a thing."""

    box: Box
    phrases: tuple[Spans, ...]
    crowd: bool = False


def read_json(path: Path, lists: Sequence[str], kind: str) -> dict[str, Any]:
    """The map in a json file that has the given lists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or a list is missing: not a file of that kind.
    """
    tree = parse_json(path)
    found = tree if isinstance(tree, dict) else {}
    missing = [key for key in lists if not isinstance(found.get(key), list)]
    if missing:
        raise DataError(f"{path}: not {kind} json: no list {missing[0]!r} (it needs {', '.join(lists)})")
    return found


def parse_json(path: Path) -> Any:
    """The content of a json file, whatever it is, without the keys that no reader reads (outlines, licences).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json in UTF-8.
    """
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_unused)
    except (ValueError, RecursionError) as error:  # of json, the encoding, a number with thousands of digits, nesting
        raise DataError(f"{path}: not valid json: {error}") from None


def _without_unused(record: dict[str, Any]) -> dict[str, Any]:
    """Called as each object closes, so that the outlines of a whole set are never in memory at once."""
    for key in _UNUSED & record.keys():
        del record[key]
    return record


def check_file(path: Path) -> None:
    """Make sure that annotations are there.

    Raises:
        FileNotFoundError: they are not.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"annotations {str(path)!r} are not there: set data.root or GLIP_DATA to the data folder"
        )


def by_image(tree: dict[str, Any], skipped: SkipCounter) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each record of ``images`` beside its records of ``annotations``, in the order of the file.

    Both lists are emptied, and what has been given is not kept, so that memory falls as the samples grow.
    """
    records: dict[int | str, dict[str, Any]] = {}
    rows: dict[int | str, list[dict[str, Any]]] = {}
    for number, record in enumerate(tree["images"]):
        if not isinstance(record, dict) or not is_id(record.get("id")):
            skipped.add("image without an id", f"images[{number}]")
        elif record["id"] in records:
            skipped.add("image id seen before", f"images[{number}]")
        else:
            records[record["id"]], rows[record["id"]] = record, []
    for number, row in enumerate(tree["annotations"]):
        if not isinstance(row, dict):
            skipped.add("malformed annotation", f"annotations[{number}]")
        elif not is_id(row.get("image_id")) or row["image_id"] not in rows:
            skipped.add("unknown image", f"annotations[{number}]")
        else:
            rows[row["image_id"]].append(row)
    tree["images"].clear()
    tree["annotations"].clear()
    return ((records.pop(number), rows.pop(number)) for number in list(records))


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value can be the id of an image or a category."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that UTF-8 can write; json may hold halves of characters (surrogates)."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def is_visible(text: str) -> bool:
    """Whether a text has a character to be seen: no space, no control or format character (zero width)."""
    return any(unicodedata.category(letter) not in ("Cf", "Cc", "Zs", "Zl", "Zp") for letter in text)


def image_place(record: dict[str, Any]) -> str:
    """Which image a record is of, for the tally."""
    return f"image {str(record['id'])[:40]}"


def annotation_place(row: dict[str, Any]) -> str:
    """Which annotation a record is, for the tally."""
    return f"annotation {str(row.get('id'))[:40]} of image {str(row['image_id'])[:40]}"


def read_box(value: Any, *, corners: bool = False) -> Box:
    """A box from four numbers: x, y, width, height, or both corners; the rule of ``geometry.boxes.is_degenerate``.

    Raises:
        Unfit: not four finite numbers, or no area in float32.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InvalidRecord("malformed box")
    for number in value:
        if type(number) not in (int, float) or not -_FARTHEST < number < _FARTHEST:
            raise InvalidRecord("malformed box")
    x, y, third, fourth = value
    box = array("f", value if corners else (x, y, x + third, y + fourth))
    if not (box[2] > box[0] and box[3] > box[1]):
        raise InvalidRecord("box without area")
    return box[0], box[1], box[2], box[3]


def read_size(record: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image, if they are stated; MDETR's files state them as text."""
    width, height = _whole(record.get("width")), _whole(record.get("height"))
    return (width, height) if width and height else None


def read_image(folders: Folders, name: Any) -> Path:
    """The file of an image's name.

    Raises:
        Unfit: no name, or one that leads out of the folders, or longer than file systems allow.
    """
    if not isinstance(name, str) or not name:
        raise InvalidRecord("image without a file name")
    if len(name) > _LONGEST or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/")):
        raise InvalidRecord("image name that is too long")
    try:
        return folders.locate(name)
    except ValueError:
        raise InvalidRecord("image name outside its folder") from None


def read_caption(value: Any) -> str:
    """A caption that a prompt can be made of.

    Raises:
        Unfit: no text in it, or none that UTF-8 can write.
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidRecord("image without a caption")
    if not is_text(value):
        raise InvalidRecord("caption that is not UTF-8")
    return value


def read_spans(value: Any, caption: str) -> Spans:
    """The spans [[start, end], ...] of one phrase, in reading order.

    Raises:
        Unfit: none, malformed, outside the caption, or nothing to be seen between them.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRecord("box without a phrase")
    for span in value:
        if not isinstance(span, list | tuple) or len(span) != 2 or not all(type(edge) is int for edge in span):
            raise InvalidRecord("malformed span")
        if not 0 <= span[0] < span[1] <= len(caption):
            raise InvalidRecord("span outside the caption")
    spans = tuple(sorted({(start, end) for start, end in value}))
    if not any(caption[start:end].strip() for start, end in spans):
        raise InvalidRecord("empty phrase")
    if not any(is_visible(caption[start:end]) for start, end in spans):
        raise InvalidRecord("phrase without words")
    return spans


def box_tensor(boxes: Sequence[Box]) -> torch.Tensor:
    """Boxes as a Sample holds them."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def grounding_sample(
    image: Path, caption: str, named: Sequence[Named], *, image_id: int | str, size: tuple[int, int] | None
) -> Sample:
    """The sample of a caption and its named boxes: phrases are the distinct tuples of spans, in reading order.

    Raises:
        Unfit: no box is left.
    """
    if not named:
        raise InvalidRecord("caption whose boxes are all left out")
    phrases = sorted({spans for item in named for spans in item.phrases})
    index = {spans: number for number, spans in enumerate(phrases)}
    return Sample(
        image=image,
        boxes=box_tensor([item.box for item in named]),
        box_phrases=tuple(tuple(sorted({index[spans] for spans in item.phrases})) for item in named),
        prompt=Prompt.from_caption(caption, phrases),
        image_id=image_id,
        size=size,
        crowd=tuple(number for number, item in enumerate(named) if item.crowd),
    )


def sample_set(
    path: Path,
    samples: Iterable[Sample],
    skipped: SkipCounter,
    *,
    vocabulary: tuple[str, ...] = (),
    ids: tuple[int | str, ...] = (),
) -> SampleSet:
    """Pack what a reader yields.

    Raises:
        ValueError: not one sample.
    """
    packed = PackedSamples(samples)
    if not len(packed):
        why = f"left out: {skipped}" if skipped else "it lists none"
        raise DataError(f"{path}: no sample in it can be used ({why}): see docs/data.md for its format")
    return SampleSet(packed, vocabulary, skipped, ids)


def _whole(value: Any) -> int:
    """A positive whole number, else 0."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    good = type(value) in (int, float) and 0 < value < _FARTHEST and value == int(value)
    return int(value) if good else 0
