"""Phrase grounding derived by rule from captions and boxes (``grounding_silver_*.json``) -> Samples."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glip.data.readers.fields import (
    InvalidRecord,
    Named,
    grounding_sample,
    is_id,
    read_box,
    read_caption,
    read_image,
    read_json,
    read_size,
    read_spans,
    sample_set,
)
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.structures import Sample


def read_silver(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read a list of captions with their phrases and boxes: one sample each, ``image_id`` "<image>:<caption>".

    Args:
        annotations: json whose ``data`` has entries of image_id, id (of the caption), file_name, width, height,
            caption and ``phrases``: each has ``tokens_positive`` = [[start, end], ...] and ``boxes`` = [[x, y, width,
            height], ...].
        images: the folders of the images, looked through in order.

    Raises:
        FileNotFoundError: no such json or folder.
        ValueError: not such json, or nothing in it can be used.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    entries = read_json(path, ("data",), "silver grounding")["data"]
    return sample_set(path, _samples(entries, folders, skipped), skipped)


def _samples(entries: list[Any], folders: Folders, skipped: SkipCounter) -> Iterator[Sample]:
    for number, entry in enumerate(entries):
        place = f"data[{number}]"
        try:
            if not isinstance(entry, dict) or not is_id(entry.get("image_id")):
                raise InvalidRecord("entry without an image_id")
            caption = read_caption(entry.get("caption"))
            image = read_image(folders, entry.get("file_name"))
            phrases = entry.get("phrases")
            if not isinstance(phrases, list) or not phrases:
                raise InvalidRecord("caption without a box")
            named = _named(phrases, caption, place, skipped)
            caption_id = entry["id"] if is_id(entry.get("id")) else number
            yield grounding_sample(
                image, caption, named, image_id=f"{entry['image_id']}:{caption_id}", size=read_size(entry)
            )
        except InvalidRecord as reason:
            skipped.add(str(reason), place)


def _named(phrases: list[Any], caption: str, place: str, skipped: SkipCounter) -> list[Named]:
    named = []
    for number, phrase in enumerate(phrases):
        at = f"{place}.phrases[{number}]"
        boxes = phrase.get("boxes") if isinstance(phrase, dict) else None
        if not isinstance(boxes, list) or not boxes:
            skipped.add("phrase without a box", at)
            continue
        try:
            spans = read_spans(phrase.get("tokens_positive"), caption)
        except InvalidRecord as reason:
            skipped.add(str(reason), at, len(boxes))
            continue
        for box in boxes:
            try:
                named.append(Named(read_box(box), (spans,)))
            except InvalidRecord as reason:
                skipped.add(str(reason), at)
    return named
