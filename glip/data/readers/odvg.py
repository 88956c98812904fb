"""ODVG jsonl (MM-Grounding-DINO) -> Samples: detection lines and grounding lines, in one file too."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip.data.readers.coco import read_categories
from glip.data.readers.fields import (
    Box,
    InvalidRecord,
    Named,
    Spans,
    box_tensor,
    check_file,
    grounding_sample,
    is_id,
    is_text,
    is_visible,
    parse_json,
    read_box,
    read_caption,
    read_image,
    read_size,
    read_spans,
    sample_set,
)
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Prompt, Sample
from glip.text.prompt import clean_name


@dataclass(frozen=True)
class Labels:
    """The vocabulary of the detection lines, and the index in it of a label or, without a label map, of a category."""

    names: tuple[str, ...]
    ids: tuple[int | str, ...]
    index: Mapping[int | str, int]
    key: str  # the field of an instance that says what it is


@dataclass(frozen=True)
class Region:
    """The phrase of a grounding line's region, as stated spans or as words to be located, and its boxes."""

    spans: Spans
    words: tuple[str, ...]
    boxes: tuple[Box, ...]


def read_odvg(annotations: str | Path, images: Sequence[str | Path], names: str | Path) -> SampleSet:
    """Read ODVG lines: ``image_id`` is the number of the line, from 1; boxes are both corners in pixels.

    A region without ``tokens_positive`` is found by its words in the caption, as ``Prompt.from_caption`` finds them.
    What is said twice must agree, else the box is left out: the phrase and the words under the spans, the category and
    the label's name in the map.

    Args:
        annotations: one json in a line: filename, height, width, and ``detection`` (instances of bbox, label, category)
            or ``grounding`` (caption; regions of one or several bbox, phrase, and tokens_positive if stated).
        images: the folders of the images, looked through in order.
        names: the label map, json {"0": "person", ...}; "" to gather the vocabulary from the categories, in the order
            of the file.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a label map of another shape or with one name twice, or no line that can be used.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    check_file(path)
    labels = _read_labels(Path(names), skipped) if str(names) else _gather_labels(path)
    samples = _samples(path, folders, labels, skipped)
    return sample_set(path, samples, skipped, vocabulary=labels.names, ids=labels.ids)


def _read_labels(path: Path, skipped: SkipCounter) -> Labels:
    tree = parse_json(path)
    if not isinstance(tree, dict) or not all(key.isdecimal() and len(key) < 10 for key in tree):
        raise DataError(f'{path}: not a label map: give json of names by label, such as {{"0": "person"}}')
    named = [{"id": int(key), "name": name} for key, name in tree.items()]
    categories = read_categories(named, path, skipped)
    return Labels(categories.names, categories.ids, categories.label, "label")


def _gather_labels(path: Path) -> Labels:
    """The categories of all detection lines; what is wrong with a line is counted when it is read for its boxes."""
    found: dict[str, int] = {}
    spelled: dict[int | str, int] = {}
    for _, line in _lines(path):
        if b'"detection"' not in line:
            continue
        try:
            instances = _instances(_parse(line))
        except InvalidRecord:
            continue
        for instance in instances:
            category = instance.get("category") if isinstance(instance, dict) else None
            if is_text(category) and category not in spelled and is_visible(clean_name(category)):
                spelled[category] = found.setdefault(clean_name(category).strip(), len(found))
    return Labels(tuple(found), (), spelled, "category")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise InvalidRecord("line that is not json") from None
    if not isinstance(record, dict):
        raise InvalidRecord("line that is no record")
    return record


def _instances(record: dict[str, Any]) -> list[Any]:
    detection = record.get("detection")
    instances = detection.get("instances") if isinstance(detection, dict) else None
    if not isinstance(instances, list):
        raise InvalidRecord("detection without a list of instances")
    return instances


def _samples(path: Path, folders: Folders, labels: Labels, skipped: SkipCounter) -> Iterator[Sample]:
    for number, line in _lines(path):
        try:
            record = _parse(line)
            if "detection" in record:
                yield _detection(record, number, folders, labels, skipped)
            elif "grounding" in record:
                yield _grounding(record, number, folders, skipped)
            else:
                raise InvalidRecord("line with neither detection nor grounding")
        except InvalidRecord as reason:
            skipped.add(str(reason), f"line {number}")


def _detection(record: dict[str, Any], number: int, folders: Folders, labels: Labels, skipped: SkipCounter) -> Sample:
    instances = _instances(record)
    image = read_image(folders, record.get("filename"))
    if not labels.names:
        raise InvalidRecord("detection in a file without any category")
    boxes: list[Box] = []
    found: list[int] = []
    for place, instance in enumerate(instances):
        try:
            if not isinstance(instance, dict):
                raise InvalidRecord("malformed instance")
            label = instance.get(labels.key)
            if not is_id(label) or label not in labels.index:
                raise InvalidRecord("unknown category")
            if labels.key == "label" and not _agrees(instance.get("category"), labels.names[labels.index[label]]):
                raise InvalidRecord("label and category that disagree")
            boxes.append(read_box(instance.get("bbox"), corners=True))
            found.append(labels.index[label])
        except InvalidRecord as reason:
            skipped.add(str(reason), f"line {number}, instance {place}")
    return Sample(
        image=image,
        boxes=box_tensor(boxes),
        box_phrases=tuple((index,) for index in found),
        vocabulary=labels.names,
        image_id=number,
        size=read_size(record),
    )


def _agrees(category: Any, name: str) -> bool:
    """Whether an instance's category is the name of its label; capitals do not count."""
    stated = clean_name(category).split() if is_text(category) else []
    return not stated or " ".join(stated).casefold() == " ".join(name.split()).casefold()


def _words(text: str) -> list[str]:
    """The words of a text to compare it by, without capitals, punctuation and ways to write an accent."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _grounding(record: dict[str, Any], number: int, folders: Folders, skipped: SkipCounter) -> Sample:
    grounding = record["grounding"]
    stated = grounding.get("regions") if isinstance(grounding, dict) else None
    if not isinstance(stated, list):
        raise InvalidRecord("grounding without a list of regions")
    caption = read_caption(grounding.get("caption"))
    image = read_image(folders, record.get("filename"))
    if not stated:
        raise InvalidRecord("caption without a box")
    regions: list[Region] = []
    for place, region in enumerate(stated):
        at = f"line {number}, region {place}"
        try:
            regions.append(Region(*_phrase(region, caption), _boxes(region, at, skipped)))
        except InvalidRecord as reason:
            skipped.add(str(reason), at)
    named = [
        Named(box, (spans,))
        for region, spans in zip(regions, _spans(regions, caption), strict=True)
        for box in region.boxes
    ]
    return grounding_sample(image, caption, named, image_id=number, size=read_size(record))


def _boxes(region: dict[str, Any], at: str, skipped: SkipCounter) -> tuple[Box, ...]:
    """The usable boxes of a region, which states one or a list of them."""
    stated = region.get("bbox")
    if not isinstance(stated, list) or not stated:
        raise InvalidRecord("malformed box")
    boxes = []
    for box in stated if isinstance(stated[0], list) else [stated]:
        try:
            boxes.append(read_box(box, corners=True))
        except InvalidRecord as reason:
            skipped.add(str(reason), at)
    return tuple(boxes)


def _phrase(region: Any, caption: str) -> tuple[Spans, tuple[str, ...]]:
    """The spans of a region's phrase if they are stated, else its words, all of which are in the caption."""
    if not isinstance(region, dict):
        raise InvalidRecord("malformed region")
    phrase = region.get("phrase")
    stated = phrase if isinstance(phrase, list) else [phrase]
    pieces = [piece for piece in stated if is_text(piece) and piece.strip()]
    if region.get("tokens_positive") is not None:
        spans = read_spans(region["tokens_positive"], caption)
        # pieces may come in another order than spans, which are sorted
        told, shown = set(_words(" ".join(pieces))), set(_words(" ".join(caption[s:e] for s, e in spans)))
        if told and told != shown:
            raise InvalidRecord("span that misses its words")
        return spans, ()
    if not pieces or len(pieces) < len(stated):
        raise InvalidRecord("empty phrase")
    if not any(is_visible(piece) for piece in pieces):
        raise InvalidRecord("phrase without words")
    try:
        Prompt.from_caption(caption, pieces)
    except ValueError:
        raise InvalidRecord("phrase that is not in the caption") from None
    return (), tuple(pieces)


def _spans(regions: Sequence[Region], caption: str) -> Iterator[Spans]:
    """The spans of each region; words are located all together, so that a repeated one is found in turn."""
    texts = [text for region in regions for text in region.words]
    box_loss = iter(Prompt.from_caption(caption, texts).phrases if texts else ())
    for region in regions:
        yield region.spans or tuple(sorted({span for _ in region.words for span in next(box_loss).spans}))
