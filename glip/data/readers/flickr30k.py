"""Flickr30K Entities as released (Annotations/*.xml, Sentences/*.txt) -> Samples (Plummer et al. 2015)."""

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from glip.data.readers.fields import (
    Box,
    InvalidRecord,
    Named,
    Spans,
    check_file,
    grounding_sample,
    read_box,
    read_caption,
    read_image,
    read_size,
    read_spans,
    sample_set,
)
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample, Span

_LARGEST = 10_000_000  # bytes; a file of the release has some thousands
_IMAGE = re.compile(r"[\w-]+(\.[\w-]+)*")  # an id: a file name without folders
_OPENING = "[/EN#"  # of "[/EN#<chain>/<type> the words]"


@dataclass(frozen=True)
class Scene:
    """The boxes of one image, each with the chains (things mentioned again and again) that it shows."""

    boxes: tuple[tuple[Box, tuple[str, ...]], ...]
    size: tuple[int, int] | None

    @property
    def chains(self) -> set[str]:
        """The chains that have a box."""
        return {chain for _, chains in self.boxes for chain in chains}


@dataclass(frozen=True)
class Mention:
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
        images: the folders of the images ("<image>.jpg"), looked through in order.
        names: the list of a split's images, one id in a line (test.txt); "" for all images.
        flat_boxes: keep boxes without area, and the phrases that have no others. Nothing can be learned from them,
            but the release's evaluator counts them.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: nothing in it can be used.
    """
    root, folders, skipped = Path(folder), Folders(images), SkipCounter()
    for part in ("Annotations", "Sentences"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"folder {str(root / part)!r} is not there: give the folder of Flickr30K Entities, which holds "
                "Annotations and Sentences"
            )
    listed = _images(root, names, skipped)
    return sample_set(root, _samples(root, listed, folders, skipped, flat_boxes=flat_boxes), skipped)


def _images(root: Path, names: str | Path, skipped: SkipCounter) -> list[str]:
    if not str(names):
        return sorted(file.stem for file in (root / "Annotations").glob("*.xml"))
    path = Path(names)
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text: give a list of image ids, one in a line") from None
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and not _IMAGE.fullmatch(name):
            skipped.add("image name outside its folder", f"line {number} of {path.name}")
        elif name in found:
            skipped.add("image listed twice", name)
        elif name:
            found[name] = None
    return list(found)


def _samples(
    root: Path, images: list[str], folders: Folders, skipped: SkipCounter, *, flat_boxes: bool
) -> Iterator[Sample]:
    for name in images:
        try:
            image = read_image(folders, f"{name}.jpg")
            scene = _read_scene(root / "Annotations" / f"{name}.xml", skipped, flat_boxes=flat_boxes)
            sentences = _read_text(root / "Sentences" / f"{name}.txt").split("\n")
        except InvalidRecord as reason:
            skipped.add(str(reason), f"image {name}")
            continue
        for number, sentence in enumerate(line for line in sentences if line):
            try:
                yield _sample(image, sentence, scene, f"{name}:{number}", skipped)
            except InvalidRecord as reason:
                skipped.add(str(reason), f"sentence {name}:{number}")


def _sample(image: Path, sentence: str, scene: Scene, image_id: str, skipped: SkipCounter) -> Sample:
    words, mentions = _parse_sentence(sentence, image_id, skipped)
    caption = read_caption(words)
    spans: dict[str, list[Spans]] = {}
    kinds: dict[Spans, tuple[str, ...]] = {}
    shown = scene.chains
    for mention in mentions:
        try:
            if mention.chain not in shown:
                raise InvalidRecord("phrase without a box")
            phrase = read_spans([mention.span], caption)
        except InvalidRecord as reason:
            skipped.add(str(reason), f"sentence {image_id}")
            continue
        spans.setdefault(mention.chain, []).append(phrase)
        kinds[phrase] = mention.kinds
    named = []
    for box, chains in scene.boxes:
        phrases = tuple(phrase for chain in chains for phrase in spans.get(chain, ()))
        if phrases:
            named.append(Named(box, phrases))
    if not named:
        raise InvalidRecord("caption without a box")
    sample = grounding_sample(image, caption, named, image_id=image_id, size=scene.size)
    assert sample.prompt is not None
    return replace(sample, kinds=tuple(kinds[phrase.spans] for phrase in sample.prompt.phrases))


def _parse_sentence(sentence: str, image_id: str, skipped: SkipCounter) -> tuple[str, list[Mention]]:
    """The words without the marks, one blank between them, and the marked mentions."""
    caption, start = "", 0
    mark: list[str] | None = None  # of the mention that is open: its chain and its kinds
    mentions: list[Mention] = []
    for word in sentence.split():
        if mark is None and word.startswith(_OPENING):
            mark, start = word.removeprefix(_OPENING).split("/"), len(caption) + bool(caption)
            continue
        closes = mark is not None and word.endswith("]")
        caption += " " * bool(caption) + (word[:-1] if closes else word)
        if mark is not None and closes:
            mentions.append(Mention(mark[0], (start, len(caption)), tuple(filter(None, mark[1:]))))
            mark = None
    if mark is not None:
        skipped.add("phrase without an end", f"sentence {image_id}")
    return caption, mentions


class _PlainTree(ElementTree.TreeBuilder):
    """Builds the tree of a file without a DOCTYPE: only there can entities be declared that expand without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called by the parser before it reads what the DOCTYPE declares."""
        raise InvalidRecord("annotations with a DOCTYPE")


def _read_bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > _LARGEST:
            raise InvalidRecord(f"file of more than {_LARGEST // 1_000_000} MB")
        return file.read_bytes()
    except OSError:
        raise InvalidRecord(f"no {file.suffix[1:]} file of the image") from None


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise InvalidRecord("sentences that are not UTF-8") from None


def _read_scene(file: Path, skipped: SkipCounter, *, flat_boxes: bool) -> Scene:
    try:
        tree = ElementTree.fromstring(_read_bytes(file), ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, LookupError, UnicodeError):  # broken xml, or an encoding that is none
        raise InvalidRecord("annotations that are not xml") from None
    boxes: dict[Box, list[str]] = {}
    for number, thing in enumerate(tree.findall("object")):
        corners = thing.find("bndbox")
        if corners is None:  # a scene, or a thing without clear bounds
            continue
        try:
            box = _read_box(corners, flat_boxes)
        except InvalidRecord as reason:
            skipped.add(str(reason), f"object {number} of image {file.stem}")
            continue
        # chain 0 stands for whatever is not visible; the same box drawn for two things names both
        chains = [(name.text or "").strip() for name in thing.findall("name")]
        boxes.setdefault(box, []).extend(chain for chain in chains if chain not in ("", "0"))
    stated = {edge: tree.findtext(f"size/{edge}", "").strip() for edge in ("width", "height")}
    return Scene(tuple((box, tuple(dict.fromkeys(chains))) for box, chains in boxes.items()), read_size(stated))


def _read_box(corners: ElementTree.Element, flat_boxes: bool) -> Box:
    x1, y1, x2, y2 = (_number(corners, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
    edges = array("f", (x1, y1, x2, y2))
    if flat_boxes and (x2 <= x1 or y2 <= y1) and all(map(math.isfinite, edges)):
        return x1, y1, x2, y2
    return read_box([x1, y1, x2, y2], corners=True)


def _number(corners: ElementTree.Element, edge: str) -> float:
    try:
        return float(corners.findtext(edge, ""))
    except ValueError:
        raise InvalidRecord("malformed box") from None
