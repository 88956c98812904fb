"""A training set before a run: how much it has, what cannot be learned, and its fingerprint."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glip.data.caption import word_key
from glip.data.loader import Source
from glip.errors import DataError
from glip.files import fingerprint
from glip.processor import Processor
from glip.structures import Sample, TarMember
from glip.text.tokens import alike


@dataclass(frozen=True)
class Survey:
    """A dataset in one line, with what is skipped.

    ``data`` is the fingerprint of images and annotations, ``fingerprint`` also of the prompts' texts.
    """

    summary: str
    data: str
    fingerprint: str


def survey(source: Source, processor: Processor) -> Survey:
    """Go through a dataset once.

    Raises:
        DataError: names with boxes that the model reads alike, though they are other words: it could only learn that
            the same words are present and absent.
    """
    written = {name: prompt.text for name, prompt in source.prompts.items()}
    seen = _Seen(processor, processor.max_tokens)
    data = data_fingerprint(seen.count(source.samples))[:16]
    notes = [str(source.skipped)] if source.skipped else []
    if seen.crowded:
        notes.append(f"boxes of {seen.crowded} x image with more names than a caption holds")
    boxed = {name: written.get(name, name) for name in seen.boxes if name}
    one = [", ".join(map(repr, group)) for group in _merged(source.config.name, boxed, processor)]
    return Survey(
        f"{source.config.name}: {len(source.samples)} images, {sum(seen.boxes.values())} boxes"
        + (f"; skipped: {', '.join(notes)}" if notes else "")
        + (f"; taken for one name: {'; '.join(one)}" if one else ""),
        data,
        fingerprint(data, sorted(written.items()))[:16],
    )


def data_fingerprint(samples: Iterable[Sample]) -> str:
    """Tells a dataset from others, and from itself with other images, boxes or words; where it is stored is irrelevant.

    Images count by their file names, annotations in full; each list of class names once.
    """
    digest, vocabularies = "", set[tuple[str, ...]]()
    for sample in samples:
        if sample.vocabulary not in vocabularies:
            vocabularies.add(sample.vocabulary)
            digest = fingerprint(digest, sample.vocabulary)
        image = sample.image.name if isinstance(sample.image, Path | TarMember) else ""
        prompt = (sample.prompt.caption, [phrase.spans for phrase in sample.prompt.phrases]) if sample.prompt else ""
        rows = (sample.box_phrases, sample.crowd, sample.scores, sample.absent, sample.incomplete)
        digest = fingerprint(digest, sample.image_id, image, prompt, rows, sample.boxes.numpy().tobytes())
    return digest[:16]


@dataclass
class _Seen:
    """Boxes of each name ("" for phrases), tokens of each name, and images with more names than a caption holds."""

    processor: Processor
    max_tokens: int
    boxes: Counter[str] = field(default_factory=Counter)
    costs: dict[str, int] = field(default_factory=dict)
    crowded: int = 0

    def count(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Count samples while they pass."""
        for sample in samples:
            numbers = [number for phrases in sample.box_phrases for number in phrases]
            names = {sample.vocabulary[number] for number in numbers} if sample.vocabulary else set()
            for name in names - self.costs.keys():
                self.costs[name] = self.processor.count_tokens(name) - 1
            self.crowded += sum(self.costs[name] for name in names) > self.max_tokens - 2
            self.boxes.update(sample.vocabulary[p[0]] if sample.vocabulary and p else "" for p in sample.box_phrases)
            yield sample


def _merged(title: str, written: Mapping[str, str], processor: Processor) -> list[tuple[str, ...]]:
    """Names whose texts are the same words (Cat, cat) and so become one phrase."""
    groups = alike(processor.tokenizer, written)
    for group in groups:
        if len({word_key(written[name]) for name in group}) > 1:
            two = " and ".join(map(repr, group[:2]))
            raise DataError(
                f"Dataset {title!r}: the model reads {two} alike, as the same tokens (unknown words, or other spaces): "
                "write other words for them (prompts: of the dataset, docs/data.md), or give their boxes one category"
            )
    return groups
