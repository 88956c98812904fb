"""Flickr30K Entities as released (Annotations/*.xml, Sentences/*.txt; Plummer et al. 2015)."""

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from glip.data import records
from glip.data.records import Box, Named, Spans
from glip.data.sets import Folders, InvalidRecord, SampleSet, SkipCounter, require
from glip.structures import Sample, Span

_LARGEST = 10_000_000  # bytes; a file of the release has some thousands
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

    Args:
        folder: holds ``Annotations`` and ``Sentences``.
        images: image folders ("<image>.jpg"), searched in order.
        names: the list of a split's images, one id per line (test.txt); "" for all images.
        flat_boxes: keep boxes without area, and the phrases that have no others. Nothing can be learned from them,
            but the release's evaluator counts them.
    """
    root, folders, skipped = Path(folder), Folders(images), SkipCounter()
    records.check_exists(root / "Annotations")
    records.check_exists(root / "Sentences")
    listed = _read_split(Path(names), skipped) if str(names) else None
    every = sorted(file.stem for file in (root / "Annotations").glob("*.xml")) if listed is None else listed

    def samples() -> Iterator[Sample]:
        for name in every:
            with skipped.catch(f"image {name}"):
                yield from _image_samples(root, name, folders, skipped, flat_boxes=flat_boxes)

    return records.pack_sample_set(root, samples(), skipped)


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


def _image_samples(
    root: Path, name: str, folders: Folders, skipped: SkipCounter, *, flat_boxes: bool
) -> Iterator[Sample]:
    image = folders.locate(f"{name}.jpg")
    scene = _parse_xml(root / "Annotations" / f"{name}.xml")
    size = records.read_size({edge: scene.findtext(f"size/{edge}", "").strip() for edge in ("width", "height")})
    boxes = _boxes_of(scene, f"image {name}", skipped, flat_boxes=flat_boxes)
    sentences = filter(None, _read_text(root / "Sentences" / f"{name}.txt").split("\n"))
    for number, sentence in enumerate(sentences):
        place = f"sentence {name}:{number}"
        with skipped.catch(place):
            words, mentions = _parse_sentence(sentence, place, skipped)
            caption = records.read_caption(words)
            named, kinds = _named_boxes(mentions, caption, boxes, place, skipped)
            sample = records.grounding_sample(image, caption, named, image_id=f"{name}:{number}", size=size)
            assert sample.prompt is not None
            yield replace(sample, kinds=tuple(kinds[phrase.spans] for phrase in sample.prompt.phrases))


def _named_boxes(
    mentions: Sequence[_Mention], caption: str, boxes: dict[Box, Chains], place: str, skipped: SkipCounter
) -> tuple[list[Named], dict[Spans, tuple[str, ...]]]:
    """The boxes that a sentence's mentions name, and the kinds of each of its phrases."""
    spans: dict[str, list[Spans]] = {}
    kinds: dict[Spans, tuple[str, ...]] = {}
    shown = {chain for chains in boxes.values() for chain in chains}
    for mention in mentions:
        with skipped.catch(place):
            require(mention.chain in shown, "phrase without a box")
            phrase = records.read_spans([mention.span], caption)
            spans.setdefault(mention.chain, []).append(phrase)
            kinds[phrase] = mention.kinds
    every = [
        Named(box, tuple(phrase for chain in chains for phrase in spans.get(chain, ())))
        for box, chains in boxes.items()
    ]
    named = [item for item in every if item.phrases]
    require(named, "caption without a box")
    return named, kinds


def _parse_sentence(sentence: str, place: str, skipped: SkipCounter) -> tuple[str, list[_Mention]]:
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
        skipped.add("phrase without an end", place)
    return caption, mentions


class _PlainTree(ElementTree.TreeBuilder):
    """Builds the tree of a file without a DOCTYPE: only there can entities be declared that expand without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called by the parser before it reads what the DOCTYPE declares."""
        require(False, "annotations with a DOCTYPE")


def _read_bytes(file: Path) -> bytes:
    require(file.is_file(), f"no {file.suffix[1:]} file of the image")
    require(file.stat().st_size <= _LARGEST, f"file of more than {_LARGEST // 1_000_000} MB")
    return file.read_bytes()


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise InvalidRecord("sentences that are not UTF-8") from None


def _parse_xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(_read_bytes(file), ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, LookupError, UnicodeError):  # broken xml, or an encoding that is none
        raise InvalidRecord("annotations that are not xml") from None


def _boxes_of(scene: ElementTree.Element, image: str, skipped: SkipCounter, *, flat_boxes: bool) -> dict[Box, Chains]:
    """The boxes of an image, each with the chains that it shows; the same box drawn for two things names both."""
    boxes: dict[Box, Chains] = {}
    for number, thing in enumerate(scene.findall("object")):
        corners = thing.find("bndbox")
        if corners is None:  # a scene, or a thing without clear bounds
            continue
        with skipped.catch(f"object {number} of {image}"):
            chains = [(name.text or "").strip() for name in thing.findall("name")]
            own = boxes.setdefault(_read_corners(corners, flat_boxes), {})
            own.update(dict.fromkeys(chain for chain in chains if chain not in ("", "0")))  # 0: not visible
    return boxes


def _read_corners(corners: ElementTree.Element, flat_boxes: bool) -> Box:
    try:
        x1, y1, x2, y2 = (float(corners.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise InvalidRecord("malformed box") from None
    if flat_boxes and (x2 <= x1 or y2 <= y1) and all(map(math.isfinite, array("f", (x1, y1, x2, y2)))):
        return x1, y1, x2, y2
    return records.read_box([x1, y1, x2, y2], corners=True)
