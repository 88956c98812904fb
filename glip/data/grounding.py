"""Captions with phrases and boxes: MDETR json (Kamath et al. 2021), ``grounding_silver_*.json``, and ODVG jsonl.

ODVG (MM-Grounding-DINO) has detection lines too, also both kinds in one file.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from glip.data import records
from glip.data.coco import Categories, categories_of, read_categories
from glip.data.records import Named, Spans, as_list, as_map, is_text, is_visible, read_id
from glip.data.sets import Folders, Id, Row, SampleSet, SkipCounter, require
from glip.errors import GlipError
from glip.structures import Prompt, Sample
from glip.text.prompt import clean_name


def read_mdetr(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read grounding annotations in MDETR's form of COCO json: one sample for each entry of ``images``.

    A phrase is one distinct tuple of spans (``tokens_positive``: [[start, end], ...] characters of the caption).
    Where an entry lists its phrases (``tokens_positive_eval``, in the files of Flickr30K), a box that stands for
    several of them is named by each, instead of by one phrase of all their words. Where it states the ids of
    Flickr30K's release (``original_img_id``, ``sentence_id``), its id is "<image>:<sentence>" as in
    ``read_flickr30k``. Arguments as for ``read_coco``; mixed GoldG has two image folders.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = records.read_lists(path, ("images", "annotations"), "MDETR grounding", tree)

    def read(entry: tuple[Row, list[Row]]) -> Sample:
        record, rows = entry
        image, sentence = read_id(record.get("original_img_id")), read_id(record.get("sentence_id"))
        image_id = record["id"] if image is None or sentence is None else f"{image}:{sentence}"
        return _caption_sample(record, [(row.get("id"), row) for row in rows], image_id, folders, skipped)

    return records.pack_sample_set(path, skipped.each(records.by_image(tree, skipped), read, "image"), skipped)


def read_silver(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read grounding derived by rule: one sample for each caption, ``image_id`` "<image>:<caption>".

    The json's ``data`` has entries of image_id, id (of the caption), file_name, width, height, caption and ``phrases``:
    each has ``tokens_positive`` = [[start, end], ...] and ``boxes`` = [[x, y, width, height], ...]. Arguments as for
    ``read_coco``.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    entries = records.read_lists(path, ("data",), "silver grounding", tree)["data"]

    def read(numbered: tuple[int, Any]) -> Sample:
        number, entry = numbered[0], as_map(numbered[1])
        image, caption = read_id(entry.get("image_id")), read_id(entry.get("id"))
        require(image is not None, "entry without an image_id")
        image_id = f"{image}:{number if caption is None else caption}"
        rows = list[tuple[str, Row]]()  # each box of each phrase, as MDETR's json has them
        for place, phrase in enumerate(map(as_map, as_list(entry.get("phrases")))):
            spans, boxes = phrase.get("tokens_positive"), as_list(phrase.get("boxes"))
            rows += [(f"of phrase {place}", {"tokens_positive": spans, "bbox": box}) for box in boxes]
            if not boxes:
                skipped.add("phrase without a box", f"phrase {place}")
        return _caption_sample(entry, rows, image_id, folders, skipped)

    return records.pack_sample_set(path, skipped.each(enumerate(enumerate(entries)), read, "entry"), skipped)


def _caption_sample(
    record: Row, rows: Iterable[tuple[Any, Row]], image_id: Id, folders: Folders, skipped: SkipCounter
) -> Sample:
    """The sample of a caption and its numbered boxes."""
    caption = records.read_caption(record.get("caption"))
    image = folders.locate(record.get("file_name"))
    # the boxes say all that is needed, so a malformed phrase in the list is no loss
    stated = enumerate(as_list(record.get("tokens_positive_eval")))
    listed = set(SkipCounter().each(stated, lambda spans: records.read_spans(spans, caption), ""))

    def read(row: Row) -> Named:
        """A box, named by the listed phrases that its spans consist of, if they do, else by one phrase of them all."""
        spans = records.read_spans(row.get("tokens_positive"), caption)
        parts = tuple(phrase for phrase in sorted(listed) if set(phrase) <= set(spans))
        split = spans not in listed and set(chain(*parts)) == set(spans)
        return Named(records.read_box(row.get("bbox")), parts if split else (spans,), row.get("iscrowd") in (1, "1"))

    named = list(skipped.each(rows, read, "box"))
    return records.grounding_sample(image, caption, named, image_id=image_id, size=records.read_size(record))


def read_odvg(annotations: str | Path, images: Sequence[str | Path], names: str | Path) -> SampleSet:
    """Read ODVG lines: ``image_id`` is the number of the line, from 1; boxes are both corners in pixels.

    A line has filename, height, width, and ``detection`` (instances of bbox, label, category) or ``grounding``
    (caption; regions of one or several bbox, phrase, tokens_positive). A region without ``tokens_positive`` is found by
    its words in the caption, as ``Prompt.from_caption`` finds them. ``names`` is the label map, json {"0": "person",
    ...}, or "" to gather the class names from the categories; a box whose category is not what it says is skipped.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    categories = _read_label_map(Path(names), skipped) if str(names) else _gather_categories(path)

    def read(numbered: tuple[int, bytes]) -> Sample:
        number, record = numbered[0], records.parse_line(numbered[1])
        image, size = folders.locate(record.get("filename")), records.read_size(record)
        if "detection" in record:
            found = list(skipped.each(_instances(record), lambda row: _read_instance(row, categories), "instance"))
            return records.detection_sample(image, found, categories.names, image_id=number, size=size)
        grounding = as_map(record.get("grounding"))
        caption = records.read_caption(grounding.get("caption"))
        rows = enumerate(map(as_map, as_list(grounding.get("regions"))))
        regions = list(skipped.each(rows, lambda region: (_read_phrase(region, caption), region.get("bbox")), "region"))
        # words are located all together, so that a repeated one is found in turn
        texts = [text for words, _ in regions if isinstance(words, list) for text in words]
        located = iter(Prompt.from_caption(caption, texts).phrases if texts else ())
        named = list[Named]()
        for words, stated in regions:
            spans = words if isinstance(words, tuple) else sorted({span for _ in words for span in next(located).spans})
            boxes = stated if isinstance(stated, list) and stated and isinstance(stated[0], list) else [stated]
            for box in skipped.each(enumerate(boxes), lambda box: records.read_box(box, corners=True), "box"):
                named.append(Named(box, (tuple(spans),)))
        return records.grounding_sample(image, caption, named, image_id=number, size=size)

    numbered = ((number, (number, line)) for number, line in records.read_lines(path))
    samples = skipped.each(numbered, read, "line")
    return records.pack_sample_set(path, samples, skipped, vocabulary=categories.names, ids=categories.ids)


def _read_label_map(path: Path, skipped: SkipCounter) -> Categories:
    listed = as_map(records.parse_file(path)).items()
    # a key that is no number stays a text, which no label is
    rows = [{"id": int(key) if key.isdecimal() and len(key) < 10 else key, "name": name} for key, name in listed]
    return read_categories(rows, path, skipped)


def _gather_categories(path: Path) -> Categories:
    """The categories of all detection lines, without ids; broken lines are counted when they are read for boxes."""
    lines = ((number, line) for number, line in records.read_lines(path) if b'"detection"' in line)
    rows = chain.from_iterable(SkipCounter().each(lines, lambda line: _instances(records.parse_line(line)), ""))
    return categories_of(as_map(row).get("category") for _, row in rows)


def _instances(record: Row) -> Iterable[tuple[int, Any]]:
    instances = as_map(record.get("detection")).get("instances")
    require(isinstance(instances, list), "detection without a list of instances")
    return enumerate(as_list(instances))


def _read_instance(row: Any, categories: Categories) -> Named:
    """The box of an instance, named by the place of its category."""
    label, category = [as_map(row).get(key) for key in ("label", "category")]
    key: Any = read_id(label if categories.ids else category)  # without a label map the category's name says it all
    require(key in categories.label, records.unknown("unknown category", key, categories.label))
    index = categories.label[key]
    stated, meant = (
        " ".join(clean_name(name).split()).casefold() for name in (str(category or ""), categories.names[index])
    )
    require(not stated or stated == meant, "label and category that disagree")
    return Named(records.read_box(row.get("bbox"), corners=True), (index,))


def _read_phrase(region: Row, caption: str) -> Spans | list[str]:
    """The spans of a region's phrase if they are stated, else a list of its words, all of which are in the caption."""
    if region.get("tokens_positive") is not None:
        return records.read_spans(region["tokens_positive"], caption)
    phrase: Any = region.get("phrase")
    words: list[str] = phrase if isinstance(phrase, list) else [phrase]
    require(words and all(is_text(piece) and is_visible(piece) for piece in words), "phrase without words")
    try:
        Prompt.from_caption(caption, words)
    except GlipError:
        require(False, "phrase that is not in the caption")
    return words
