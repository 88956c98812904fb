"""Flickr30K Entities as released (Annotations/*.xml, Sentences/*.txt; Plummer et al. 2015)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from glip.data import records
from glip.data.records import Box, Named, Spans
from glip.data.sets import Folders, SampleSet, SkipCounter, check_exists, require
from glip.data.voc import parse_xml, read_bytes, xml_corners, xml_size
from glip.structures import Sample, Span

_IMAGE = re.compile(r"[\w-]+(\.[\w-]+)*")  # an id: a file name without folders
_OPENING = "[/EN#"  # of "[/EN#<chain>/<type> the words]"

Chains = dict[str, None]  # things mentioned again and again, in the order of the file


class _Mention(NamedTuple):
    """Words of a sentence, the chain they belong to, and its kinds (people, clothing, ...) as they are written."""

    chain: str
    span: Span
    kinds: tuple[str, ...]


def read_flickr30k(
    folder: str | Path, images: Sequence[str | Path], names: str | Path, *, flat_boxes: bool = False
) -> SampleSet:
    """Read the released files: one sample for each sentence with at least one phrase that has a box.

    ``image_id`` is "<image>:<sentence>", sentences counted from 0 without the empty lines, as the release's evaluator
    counts them. Two mentions of one chain in a sentence are two phrases, and each has all boxes of the chain. Phrases
    without a box (not visual, scenes, things without clear bounds) are no phrases of the prompt.

    ``folder`` holds ``Annotations`` and ``Sentences``, the file ``names`` a split's images, one id per line (test.txt);
    "" stands for all. ``flat_boxes`` keeps boxes without area, and the phrases that have no others: nothing can be
    learned from them, but the release's evaluator counts them.
    """
    root, folders, skipped = Path(folder), Folders(images), SkipCounter()
    for part in ("Annotations", "Sentences"):
        check_exists(root / part)
    listed = _read_split(Path(names), skipped) if str(names) else None
    every = sorted(file.stem for file in (root / "Annotations").glob("*.xml")) if listed is None else listed

    def read(name: str) -> list[Sample]:
        image = folders.locate(f"{name}.jpg")
        scene = parse_xml(root / "Annotations" / f"{name}.xml")
        size = xml_size(scene)
        boxes = _boxes_of(scene, skipped, flat_boxes=flat_boxes)
        text = records.decode_text(read_bytes(root / "Sentences" / f"{name}.txt")).replace("\r\n", "\n")
        sentences = enumerate(filter(None, text.split("\n")))
        numbered = ((f"{name}:{number}", (f"{name}:{number}", sentence)) for number, sentence in sentences)
        return list(
            skipped.each(numbered, lambda row: _read_sentence(row[0], row[1], image, size, boxes, skipped), "sentence")
        )

    samples = chain.from_iterable(skipped.each(((name, name) for name in every), read, "image"))
    return records.pack_sample_set(root, samples, skipped)


def _read_split(path: Path, skipped: SkipCounter) -> list[str]:
    found: dict[str, None] = {}
    for number, line in records.read_lines(path):
        name = line.decode("utf-8-sig", "replace").strip()
        if not _IMAGE.fullmatch(name):
            skipped.add("image name outside its folder", f"line {number} of {path.name}")
        elif name in found:
            skipped.add("image listed twice", name)
        else:
            found[name] = None
    return list(found)


def _read_sentence(
    image_id: str,
    sentence: str,
    image: Path,
    size: tuple[int, int] | None,
    boxes: dict[Box, Chains],
    skipped: SkipCounter,
) -> Sample:
    """The sample of a sentence: the boxes that its mentions name, and the kinds of each of its phrases."""
    words, mentions = _parse_sentence(sentence, skipped)
    caption = records.read_caption(words)
    spans: dict[str, list[Spans]] = {}
    kinds: dict[Spans, tuple[str, ...]] = {}
    shown = set(chain(*boxes.values()))
    for mention in mentions:
        with skipped.catch(f"chain {mention.chain[:40]}"):
            require(mention.chain in shown, "phrase without a box")
            phrase = records.read_spans([mention.span], caption)
            spans.setdefault(mention.chain, []).append(phrase)
            kinds[phrase] = mention.kinds
    every = [Named(box, tuple(phrase for one in own for phrase in spans.get(one, ()))) for box, own in boxes.items()]
    named = [item for item in every if item.phrases]
    sample = records.grounding_sample(image, caption, named, image_id=image_id, size=size)
    assert sample.prompt is not None
    return replace(sample, kinds=tuple(kinds[phrase.spans] for phrase in sample.prompt.phrases))


def _parse_sentence(sentence: str, skipped: SkipCounter) -> tuple[str, list[_Mention]]:
    """The words without the marks, one blank between them, and the marked mentions."""
    caption, start = "", 0
    mark: list[str] | None = None  # chain and kinds of the mention that is open
    mentions: list[_Mention] = []
    for word in sentence.split():
        if mark is None and word.startswith(_OPENING):
            mark, start = word.removeprefix(_OPENING).split("/"), len(caption) + bool(caption)
            continue
        closes = mark is not None and word.endswith("]")
        caption += " " * bool(caption) + (word[:-1] if closes else word)
        if mark is not None and closes:
            mentions.append(_Mention(mark[0], (start, len(caption)), tuple(filter(None, mark[1:]))))
            mark = None
    if mark is not None:
        skipped.add("phrase without an end")
    return caption, mentions


def _boxes_of(scene: ElementTree.Element, skipped: SkipCounter, *, flat_boxes: bool) -> dict[Box, Chains]:
    """The boxes of an image, each with the chains that it shows; the same box drawn for two things names both."""
    boxes: dict[Box, Chains] = {}
    for number, thing in enumerate(scene.findall("object")):
        corners = thing.find("bndbox")
        if corners is None:  # a scene, or a thing without clear bounds
            continue
        with skipped.catch(f"object {number}"):
            chains = [(name.text or "").strip() for name in thing.findall("name")]
            box = records.read_box(xml_corners(corners), corners=True, flat=flat_boxes)
            own = boxes.setdefault(box, {})
            own.update(dict.fromkeys(chain for chain in chains if chain not in ("", "0")))  # 0: not visible
    return boxes
