"""A training set gone through once before a run: how much it has, what of it cannot be learned, and its mark."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from glip.data.caption import word_key
from glip.data.loader import Source
from glip.data.sets import PackedSamples
from glip.errors import DataError
from glip.processor import Processor
from glip.structures import Sample
from glip.text.tokens import alike


@dataclass(frozen=True)
class Survey:
    """What a set brings.

    Args:
        summary: counts and what is left out, as one line; nothing goes missing silently.
        fingerprint: tells the set from any other, and from itself with other images, boxes or words.
    """

    summary: str
    fingerprint: str


def survey(source: Source, processor: Processor) -> Survey:
    """Go through a set; sets that are drawn as needed are what their config says.

    Raises:
        ValueError: names with boxes that the model reads alike, though they are other words: it could only learn that
            the same words are there and are not.
    """
    if not isinstance(source.samples, PackedSamples):
        return Survey(f"{source.config.name}: drawn as needed", "drawn as needed")
    written = {name: prompt.text for name, prompt in source.prompts.items()}
    seen = _Seen(_Sum(repr(sorted(written.items()))), Counter(), {}, processor)
    for sample in source.samples:
        seen.add(sample)
    notes = [str(source.skipped)] if source.skipped else []
    if seen.crowded:
        notes.append(f"boxes of {seen.crowded} x image with more names than a caption holds")
    counts = f"{len(source.samples)} images, {sum(seen.boxes.values())} boxes"
    told = f"{source.config.name}: {counts}" + (f"; left out: {', '.join(notes)}" if notes else "")
    boxed = {name: written.get(name, name) for name in seen.boxes if name}
    one = [", ".join(map(repr, group)) for group in _merged(source.config.name, boxed, processor)]
    return Survey(told + (f"; taken for one name: {'; '.join(one)}" if one else ""), f"{counts}, {seen.sum}")


def mark_of(samples: Iterable[Sample]) -> str:
    """Tells samples from others, and from the same with other boxes or words; the folders of images do not count."""
    total = _Sum()
    for sample in samples:
        total.add(sample)
    return f"{total.number} samples, {total}"


class _Sum:
    """A checksum of samples, each list of names taken once."""

    def __init__(self, words: str = "") -> None:
        self.crc, self.number, self.vocabularies = _crc(words, 0), 0, set[tuple[str, ...]]()

    def add(self, sample: Sample) -> None:
        """Take in a sample."""
        self.number += 1
        if sample.vocabulary not in self.vocabularies:
            self.vocabularies.add(sample.vocabulary)
            self.crc = _crc(repr(sample.vocabulary), self.crc)
        self.crc = zlib.crc32(sample.boxes.numpy().tobytes(), _crc(_words(sample), self.crc))

    def __str__(self) -> str:
        return f"{self.crc:08x}"


@dataclass
class _Seen:
    """What was met so far: a checksum, boxes of each name ("" for phrases), tokens of each name, images too full."""

    sum: _Sum
    boxes: Counter[str]
    costs: dict[str, int]
    processor: Processor
    crowded: int = 0

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.sum.add(sample)
        numbers = [number for phrases in sample.box_phrases for number in phrases]
        names = {sample.vocabulary[number] for number in numbers} if sample.vocabulary else set()
        for name in names - self.costs.keys():
            self.costs[name] = self.processor.count_tokens(name) - 1
        self.crowded += sum(self.costs[name] for name in names) > self.processor.max_tokens - 2
        for phrases in sample.box_phrases:
            self.boxes[sample.vocabulary[phrases[0]] if sample.vocabulary and phrases else ""] += 1


def _crc(words: str, crc: int) -> int:
    return zlib.crc32(words.encode("utf-8", "surrogatepass"), crc)


def _words(sample: Sample) -> str:
    """All of a sample but its boxes, the folder of its image and its list of names."""
    image = sample.image.name if isinstance(sample.image, Path) else ""
    prompt = (sample.prompt.caption, [phrase.spans for phrase in sample.prompt.phrases]) if sample.prompt else ""
    rows = (sample.box_phrases, sample.crowd, sample.scores, sample.absent, sample.incomplete)
    return repr((sample.image_id, image, prompt, rows))


def _merged(title: str, written: Mapping[str, str], processor: Processor) -> list[tuple[str, ...]]:
    """Names, of which it is known what is written, that are the same words (Cat, cat) and so become one phrase."""
    groups = alike(processor.tokenizer, written)
    for group in groups:
        if len({word_key(written[name]) for name in group}) > 1:
            two = " and ".join(map(repr, group[:2]))
            raise DataError(
                f"set {title!r}: the model reads {two} alike, which are the same tokens (of words it does not know, or "
                "of other spaces): write other words for them (prompts: of the set, docs/data.md), or give their boxes "
                "one category"
            )
    return groups
