"""MDETR-style grounding json (mixed GoldG, ``final_flickr_separateGT_*``) -> Samples (Kamath et al. 2021)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glip.data.readers.fields import (
    InvalidRecord,
    Named,
    Spans,
    annotation_place,
    by_image,
    grounding_sample,
    image_place,
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


def read_mdetr(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read grounding annotations in MDETR's form of COCO json: one sample for each entry of ``images``.

    Where an entry states the ids of Flickr30K's release (``original_img_id`` and ``sentence_id``), they are the id,
    "<image>:<sentence>" as ``read_flickr30k`` gives it; else the entry's own id is.

    A phrase is one distinct tuple of spans. Where an entry lists its phrases (``tokens_positive_eval``, in the files
    of Flickr30K), a box that stands for several of them is named by each, instead of by one phrase of all their words.

    Args:
        annotations: json with ``images`` (file_name, id, caption) and ``annotations`` (image_id, bbox = x, y, width,
            height, and ``tokens_positive`` = [[start, end], ...] characters of the caption).
        images: the folders of the images (mixed GoldG has two), looked through in order.

    Raises:
        FileNotFoundError: no such json or folder.
        ValueError: not such json, or nothing in it can be used.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = read_json(path, ("images", "annotations"), "MDETR grounding")
    return sample_set(path, _samples(tree, folders, skipped), skipped)


def _samples(tree: dict[str, Any], folders: Folders, skipped: SkipCounter) -> Iterator[Sample]:
    for record, annotations in by_image(tree, skipped):
        try:
            caption = read_caption(record.get("caption"))
            image = read_image(folders, record.get("file_name"))
            if not annotations:
                raise InvalidRecord("caption without a box")
            named = _named(annotations, caption, _listed(record, caption), skipped)
            yield grounding_sample(image, caption, named, image_id=_released_id(record), size=read_size(record))
        except InvalidRecord as reason:
            skipped.add(str(reason), image_place(record))


def _released_id(record: dict[str, Any]) -> int | str:
    if is_id(record.get("original_img_id")) and is_id(record.get("sentence_id")):
        return f"{record['original_img_id']}:{record['sentence_id']}"
    own: int | str = record["id"]
    return own


def _named(annotations: list[dict[str, Any]], caption: str, listed: set[Spans], skipped: SkipCounter) -> list[Named]:
    named = []
    for row in annotations:
        try:
            spans = read_spans(row.get("tokens_positive"), caption)
            box = read_box(row.get("bbox"))
        except InvalidRecord as reason:
            skipped.add(str(reason), annotation_place(row))
            continue
        named.append(Named(box, _split(spans, listed), row.get("iscrowd") in (1, "1")))
    return named


def _listed(record: dict[str, Any], caption: str) -> set[Spans]:
    """The phrases an entry lists; the boxes say all that is needed, so a malformed one is no loss."""
    found = set()
    entries = record.get("tokens_positive_eval")
    for entry in entries if isinstance(entries, list) else []:
        try:
            found.add(read_spans(entry, caption))
        except InvalidRecord:
            continue
    return found


def _split(spans: Spans, listed: set[Spans]) -> tuple[Spans, ...]:
    """The listed phrases that a box's spans consist of, if they do, else one phrase of them all."""
    if spans in listed or len(spans) == 1:
        return (spans,)
    parts = tuple(phrase for phrase in sorted(listed) if set(phrase) <= set(spans))
    covered = {span for phrase in parts for span in phrase}
    return parts if covered == set(spans) else (spans,)
