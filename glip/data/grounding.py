"""Captions with phrases and boxes: MDETR json (Kamath et al. 2021) and ``grounding_silver_*.json``."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glip.data import records
from glip.data.records import Named, Spans, as_list, as_map, is_id
from glip.data.sets import Folders, Id, Row, SampleSet, SkipCounter, require
from glip.structures import Sample


def read_mdetr(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read grounding annotations in MDETR's form of COCO json: one sample for each entry of ``images``.

    A phrase is one distinct tuple of spans (``tokens_positive``: [[start, end], ...] characters of the caption).
    Where an entry lists its phrases (``tokens_positive_eval``, in the files of Flickr30K), a box that stands for
    several of them is named by each, instead of by one phrase of all their words. Where it states the ids of
    Flickr30K's release (``original_img_id``, ``sentence_id``), its id is "<image>:<sentence>" as in
    ``read_flickr30k``.

    Args:
        annotations: json with ``images`` (file_name, id, caption) and ``annotations`` (image_id, bbox = x, y, width,
            height, tokens_positive).
        images: image folders (mixed GoldG has two), searched in order.
        tree: the content of the json, if it was parsed before.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = records.read_lists(path, ("images", "annotations"), "MDETR grounding", tree)

    def samples() -> Iterator[Sample]:
        for record, rows in records.by_image(tree, skipped):
            place = f"image {str(record['id'])[:40]}"
            with skipped.catch(place):
                placed = ((f"annotation {str(row.get('id'))[:40]} of {place}", row) for row in rows)
                yield _captioned(record, placed if rows else None, _mdetr_id(record), folders, skipped)

    return records.pack_sample_set(path, samples(), skipped)


def _mdetr_id(record: Row) -> Id:
    image, sentence = record.get("original_img_id"), record.get("sentence_id")
    return f"{image}:{sentence}" if is_id(image) and is_id(sentence) else record["id"]


def read_silver(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read grounding derived by rule: one sample for each caption, ``image_id`` "<image>:<caption>".

    Args:
        annotations: json whose ``data`` has entries of image_id, id (of the caption), file_name, width, height,
            caption and ``phrases``: each has ``tokens_positive`` = [[start, end], ...] and ``boxes`` = [[x, y, width,
            height], ...].
        images: image folders, searched in order.
        tree: the content of the json, if it was parsed before.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    entries = records.read_lists(path, ("data",), "silver grounding", tree)["data"]

    def samples() -> Iterator[Sample]:
        for number, entry in enumerate(entries):
            place = f"data[{number}]"
            with skipped.catch(place):
                require(isinstance(entry, dict) and is_id(entry.get("image_id")), "entry without an image_id")
                image_id = f"{entry['image_id']}:{entry['id'] if is_id(entry.get('id')) else number}"
                phrases = as_list(entry.get("phrases"))
                rows = _silver_rows(phrases, place, skipped) if phrases else None
                yield _captioned(entry, rows, image_id, folders, skipped)

    return records.pack_sample_set(path, samples(), skipped)


def _silver_rows(phrases: Sequence[Any], place: str, skipped: SkipCounter) -> Iterator[tuple[str, Row]]:
    """Each box of each phrase, as MDETR's json has them."""
    for number, phrase in enumerate(map(as_map, phrases)):
        at, boxes = f"{place}.phrases[{number}]", as_list(phrase.get("boxes"))
        if not boxes:
            skipped.add("phrase without a box", at)
        yield from ((at, {"tokens_positive": phrase.get("tokens_positive"), "bbox": box}) for box in boxes)


def _captioned(
    record: Row, rows: Iterable[tuple[str, Row]] | None, image_id: Id, folders: Folders, skipped: SkipCounter
) -> Sample:
    """The sample of a caption and its boxes, each with its place in the file."""
    caption = records.read_caption(record.get("caption"))
    image = folders.locate(record.get("file_name"))
    require(rows is not None, "caption without a box")
    # the boxes say all that is needed, so a malformed phrase in the list is no loss
    stated = as_list(record.get("tokens_positive_eval"))
    listed = set(SkipCounter().each(stated, lambda spans: records.read_spans(spans, caption), ""))
    named = []
    for place, row in rows or ():
        with skipped.catch(place):
            spans = records.read_spans(row.get("tokens_positive"), caption)
            box = records.read_box(row.get("bbox"))
            named.append(Named(box, _split_into_phrases(spans, listed), row.get("iscrowd") in (1, "1")))
    return records.grounding_sample(image, caption, named, image_id=image_id, size=records.read_size(record))


def _split_into_phrases(spans: Spans, listed: set[Spans]) -> tuple[Spans, ...]:
    """The listed phrases that a box's spans consist of, if they do, else one phrase of them all."""
    if spans in listed or len(spans) == 1:
        return (spans,)
    parts = tuple(phrase for phrase in sorted(listed) if set(phrase) <= set(spans))
    covered = {span for phrase in parts for span in phrase}
    return parts if covered == set(spans) else (spans,)
