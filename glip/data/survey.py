"""A training set before a run: how much it has, what cannot be learned, and its fingerprint."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glip.data.caption import word_key
from glip.data.loader import Source
from glip.errors import DataError
from glip.files import fingerprint
from glip.processor import Processor
from glip.structures import Sample, TarMember
from glip.text.prompt import TokenBudget
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
    boxes, crowded, count_tokens = Counter[str](), 0, cache(processor.count_tokens)

    def counted() -> Iterator[Sample]:
        nonlocal crowded
        for sample in source.samples:
            names = sample.vocabulary  # none: boxes of phrases count together
            shown = {names[index] for own in sample.box_phrases for index in own} if names else set()
            budget = TokenBudget(count_tokens, processor.max_tokens)
            crowded += not all(budget.take(written.get(name, name)) for name in shown)
            boxes.update(names[own[0]] if names and own else "" for own in sample.box_phrases)
            yield sample

    data = data_fingerprint(counted())
    skipped = [str(source.skipped)] if source.skipped else []
    if crowded:
        skipped.append(f"boxes of {crowded} x image with more names than a caption holds")
    summary = f"{source.config.name}: {len(source.samples)} images, {boxes.total()} boxes"
    summary += f"; skipped: {', '.join(skipped)}" if skipped else ""
    boxed = {name: written.get(name, name) for name in boxes if name}
    same = alike(processor.tokenizer, boxed)
    for group in same:
        if len({word_key(boxed[name]) for name in group}) > 1:
            two = " and ".join(map(repr, group[:2]))
            raise DataError(
                f"Dataset {source.config.name!r}: the model reads {two} alike, as the same tokens (unknown words, or "
                "other spaces): write other words for them (prompts: of the dataset, docs/data.md), or give their "
                "boxes one category"
            )
    summary += f"; taken for one name: {'; '.join(', '.join(map(repr, group)) for group in same)}" if same else ""
    return Survey(summary, data, fingerprint(data, sorted(written.items()))[:16])


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
