"""ODVG jsonl (MM-Grounding-DINO): detection lines and grounding lines, also both in one file."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glip.data import records
from glip.data.coco import Categories, read_categories
from glip.data.records import Box, Named, Spans, as_list, as_map, is_id, is_text, is_visible
from glip.data.sets import Folders, Id, Row, SampleSet, SkipCounter, require
from glip.errors import DataError, GlipError
from glip.structures import Prompt, Sample
from glip.text.prompt import clean_name


class _Region(NamedTuple):
    """The phrase of a grounding line's region, as stated spans or as words to be located, and its boxes."""

    spans: Spans
    words: tuple[str, ...]
    boxes: tuple[Box, ...]


def read_odvg(annotations: str | Path, images: Sequence[str | Path], names: str | Path) -> SampleSet:
    """Read ODVG lines: ``image_id`` is the number of the line, from 1; boxes are both corners in pixels.

    A region without ``tokens_positive`` is found by its words in the caption, as ``Prompt.from_caption`` finds them.
    What is stated twice must agree, else the box is skipped: the phrase and the words under the spans, the category
    and the label's name in the map.

    Args:
        annotations: one json per line: filename, height, width, and ``detection`` (instances of bbox, label,
            category) or ``grounding`` (caption; regions of one or several bbox, phrase, and tokens_positive).
        images: image folders, searched in order.
        names: the label map, json {"0": "person", ...}; "" to gather the class names from the categories, in the
            order of the file.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    categories = _read_label_map(Path(names), skipped) if str(names) else _gather_categories(path)

    def samples() -> Iterator[Sample]:
        for number, line in records.read_lines(path):
            with skipped.catch(f"line {number}"):
                record = records.parse_line(line)
                if "detection" in record:
                    yield _detection(record, number, folders, categories, skipped)
                else:
                    require("grounding" in record, "line with neither detection nor grounding")
                    yield _grounding(record, number, folders, skipped)

    return records.pack_sample_set(path, samples(), skipped, vocabulary=categories.names, ids=categories.ids)


def _read_label_map(path: Path, skipped: SkipCounter) -> Categories:
    tree = records.parse_json(path)
    if not isinstance(tree, dict) or not all(key.isdecimal() and len(key) < 10 for key in tree):
        raise DataError(f'{path}: not a label map: give json of names by label, such as {{"0": "person"}}')
    return read_categories([{"id": int(key), "name": name} for key, name in tree.items()], path, skipped)


def _gather_categories(path: Path) -> Categories:
    """The categories of all detection lines, without ids; broken lines are counted when they are read for boxes."""
    found: dict[str, int] = {}
    spelled: dict[Id, int] = {}
    for _, line in records.read_lines(path):
        for name in filter(is_text, _stated_categories(line)):
            if name not in spelled and is_visible(clean_name(name)):
                spelled[name] = found.setdefault(clean_name(name).strip(), len(found))
    return Categories(tuple(found), (), spelled)


def _stated_categories(line: bytes) -> Iterator[Any]:
    if b'"detection"' in line:
        with SkipCounter().catch(""):
            yield from [as_map(instance).get("category") for instance in _instances(records.parse_line(line))]


def _instances(record: Row) -> list[Any]:
    instances = as_map(record.get("detection")).get("instances")
    require(isinstance(instances, list), "detection without a list of instances")
    return as_list(instances)


def _detection(record: Row, number: int, folders: Folders, categories: Categories, skipped: SkipCounter) -> Sample:
    key = "label" if categories.ids else "category"  # without a label map the category's name says it all

    def read_instance(instance: Any) -> tuple[Box, int]:
        require(isinstance(instance, dict), "malformed instance")
        label = instance.get(key)
        require(is_id(label) and label in categories.label, "unknown category")
        index = categories.label[label]
        agrees = key != "label" or _agrees(instance.get("category"), categories.names[index])
        require(agrees, "label and category that disagree")
        return records.read_box(instance.get("bbox"), corners=True), index

    instances, image = _instances(record), folders.locate(record.get("filename"))
    require(categories.names, "detection in a file without any category")
    found = list(skipped.each(instances, read_instance, f"line {number}, instance"))
    return Sample(
        image=image,
        boxes=records.box_tensor([box for box, _ in found]),
        box_phrases=tuple((index,) for _, index in found),
        vocabulary=categories.names,
        image_id=number,
        size=records.read_size(record),
    )


def _agrees(category: Any, name: str) -> bool:
    """Whether an instance's category is the name of its label; capitals do not count."""
    stated = clean_name(category).split() if is_text(category) else []
    return not stated or " ".join(stated).casefold() == " ".join(name.split()).casefold()


def _grounding(record: Row, number: int, folders: Folders, skipped: SkipCounter) -> Sample:
    grounding = as_map(record["grounding"])
    require(isinstance(grounding.get("regions"), list), "grounding without a list of regions")
    caption = records.read_caption(grounding.get("caption"))
    image = folders.locate(record.get("filename"))
    require(grounding["regions"], "caption without a box")
    regions: list[_Region] = []
    for index, region in enumerate(grounding["regions"]):
        place = f"line {number}, region {index}"
        with skipped.catch(place):
            require(isinstance(region, dict), "malformed region")
            spans, words = _read_phrase(region, caption)
            regions.append(_Region(spans, words, _read_boxes(region.get("bbox"), place, skipped)))
    located = zip(regions, _locate(regions, caption), strict=True)
    named = [Named(box, (spans,)) for region, spans in located for box in region.boxes]
    return records.grounding_sample(image, caption, named, image_id=number, size=records.read_size(record))


def _read_boxes(stated: Any, place: str, skipped: SkipCounter) -> tuple[Box, ...]:
    """The usable boxes of a region, which states one or a list of them."""
    require(as_list(stated), "malformed box")
    boxes = stated if isinstance(stated[0], list) else [stated]
    return tuple(skipped.each(boxes, lambda box: records.read_box(box, corners=True), f"{place}, box"))


def _read_phrase(region: Row, caption: str) -> tuple[Spans, tuple[str, ...]]:
    """The spans of a region's phrase if they are stated, else its words, all of which are in the caption."""
    phrase = region.get("phrase")
    stated = phrase if isinstance(phrase, list) else [phrase]
    pieces = [piece for piece in stated if is_text(piece) and piece.strip()]
    if region.get("tokens_positive") is not None:
        spans = records.read_spans(region["tokens_positive"], caption)
        # pieces may come in another order than spans, which are sorted
        wanted, shown = _words(" ".join(pieces)), _words(" ".join(caption[start:end] for start, end in spans))
        require(not wanted or wanted == shown, "span that misses its words")
        return spans, ()
    require(pieces and len(pieces) == len(stated), "empty phrase")
    require(any(map(is_visible, pieces)), "phrase without words")
    try:
        Prompt.from_caption(caption, pieces)
    except GlipError:
        require(False, "phrase that is not in the caption")
    return (), tuple(pieces)


def _words(text: str) -> set[str]:
    """The words of a text to compare it by, without capitals, punctuation and ways to write an accent."""
    return set(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _locate(regions: Sequence[_Region], caption: str) -> Iterator[Spans]:
    """The spans of each region; words are located all together, so that a repeated one is found in turn."""
    texts = [text for region in regions for text in region.words]
    located = iter(Prompt.from_caption(caption, texts).phrases if texts else ())
    for region in regions:
        yield region.spans or tuple(sorted({span for _ in region.words for span in next(located).spans}))
