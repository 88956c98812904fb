"""The caption that a training sample is learned with (paper section 3.1; the release's ``od_to_grounding.py``).

A detection sample: the names of its boxes and absent names, shuffled, within the model's token limit. A grounding
sample: its own caption among captions of other images.
"""

import re
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations
from typing import TypeVar

import numpy as np

from glip.config import DataConfig
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.processor import Processor
from glip.structures import Prompt, Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes
from glip.text.prompt import SEPARATOR, SPECIAL_TOKENS, TokenBudget

T = TypeVar("T")
_WORD = re.compile(r"\w+")
_SENTENCE_ENDS = (".", "!", "?", "\u2026")
_ALL_OTHERS, _SOME_OTHERS = 0.3, 0.3  # how often all, and some, captions of other images are added


class CaptionError(DataError):
    """No caption can be written for a sample: it is skipped and counted."""


def caption_from_names(
    sample: Sample,
    data: DataConfig,
    processor: Processor,
    rng: np.random.Generator,
    prompts: Mapping[str, ClassPrompt],
    foreign: Sequence[str],
) -> tuple[Sample, SkipCounter]:
    """A detection sample with a caption of its own and absent names, and the boxes it lost, by reason.

    Names with boxes come first in line for the token limit. A sample without boxes gets absent names only. In a
    federated dataset (``absent`` is not None) only names verified as absent are negatives, never ``foreign`` ones;
    ``incomplete`` names are not written at all. ``prompts`` has the text that is written for a name.

    Raises:
        CaptionError: no name fits, or none is known to be present or absent.
    """
    keys = [word_key(prompts[name].text if name in prompts else name) for name in sample.vocabulary]
    names = dict(zip(keys, sample.vocabulary, strict=True))
    unsure = {keys[index] for index in sample.incomplete}
    shown = dict.fromkeys(keys[index] for own in sample.box_phrases for index in own)
    candidates = keys if sample.absent is None else [keys[index] for index in sample.absent]
    absent = [names[key] for key in dict.fromkeys(candidates) if key not in shown and key not in unsure]
    positives = [names[key] for key in shown if key not in unsure]
    # all absent names up to the limit, or a random number of them; an image without boxes is asked for one at least
    least = 0 if positives else 1
    most = min(len(absent), max(data.max_negatives, least))
    take_all = rng.random() < data.full_vocabulary
    number = most if take_all or most <= least else int(rng.integers(least, most + 1))
    negatives = _resembling_first(_shuffled(absent, rng), positives, round(data.hard_negatives * number))[:number]
    if sample.absent is None and rng.random() < data.borrow:
        room = min(len(foreign), data.max_negatives - len(negatives))
        number = int(rng.integers(1, room + 1)) if room > 0 else 0
        negatives += _shuffled(foreign, rng)[:number]
    fitting = _fitting([*_shuffled(positives, rng), *negatives], prompts, processor)
    if not fitting:
        tried = ", ".join(repr(name[:40]) for name in (positives + negatives)[:3])
        reason = f"{tried} do not fit into {processor.max_tokens} tokens" if tried else "no class is known to be absent"
        if unsure and not tried:
            reason += ", and those that are there have no box of their own (cut by the crop, a crowd, or not annotated)"
        raise CaptionError(f"image {sample.image_id}: no caption can be written: {reason}")
    written = _shuffled(list(fitting), rng)
    prompt = prompt_from_classes([fitting[key] for key in written], prompts)
    phrases = {key: number for number, key in enumerate(written)}
    pointed = sample.renumbered({index: phrases[key] for index, key in enumerate(keys) if key in phrases})
    made = replace(pointed, prompt=prompt, vocabulary=(), absent=None, incomplete=())
    return made, _lost_boxes(sample, keys, written, unsure)


def _resembling_first(absent: Sequence[str], positives: Sequence[str], number: int) -> list[str]:
    """Absent names in their order, but first up to ``number`` that share a word with a name in the image."""
    words = _words(positives)
    alike = [name for name in absent if words & _words([name])][:number] if number else []
    return [*alike, *(name for name in absent if name not in alike)]


def swapped_words(own: Prompt, rng: np.random.Generator) -> str:
    """The caption with the last words of two phrases exchanged; "" where that gives no new phrase.

    "a red car and a blue house" becomes "a red house and a blue car": each word is in the image, but most often no such
    thing.
    """
    single = [phrase.spans[0] for phrase in own.phrases if len(phrase.spans) == 1]
    known = {_phrase_key(own.caption[slice(*span)]) for span in single}
    spans = [(start, end) for start, end in single if " " in own.caption[start:end]]
    for one, other in _shuffled(list(combinations(sorted(spans), 2)), rng):
        (start, end), (begin, stop) = one, other
        (first, noun), (second, last) = (own.caption[slice(*span)].rsplit(" ", 1) for span in (one, other))
        made = f"{first} {last}", f"{second} {noun}"
        if end <= begin and known.isdisjoint(map(_phrase_key, made)):
            return own.caption[:start] + made[0] + own.caption[end:begin] + made[1] + own.caption[stop:]
    return ""


def _phrase_key(phrase: str) -> str:
    return " ".join(word for word in word_key(phrase).split() if word not in ("a", "an", "the"))


def _fitting(names: Sequence[str], prompts: Mapping[str, ClassPrompt], processor: Processor) -> dict[str, str]:
    """By word key, each name that still fits when its turn comes and that the tokenizer can read."""
    count = partial(_count_tokens, processor)
    budget, fitting = TokenBudget(count, processor.max_tokens), dict[str, str]()
    for name in names:
        prompt = prompts.get(name) or ClassPrompt(name=name)
        if count(prompt.name) > SPECIAL_TOKENS and budget.take(prompt.text):
            fitting[word_key(prompt.text)] = name
    return fitting


def _lost_boxes(sample: Sample, keys: Sequence[str], written: Sequence[str], unsure: Container[str]) -> SkipCounter:
    """The boxes none of whose names is written, by reason; ``keys`` are the word keys of the vocabulary."""
    skipped = SkipCounter()
    for own in sample.box_phrases:
        place = f"{', '.join(repr(sample.vocabulary[index]) for index in own)} in image {sample.image_id}"
        if all(keys[index] in unsure for index in own):
            skipped.add("box of a class not exhaustively annotated", place)
        elif not any(keys[index] in written for index in own):
            skipped.add("box whose name did not fit the caption", place)
    return skipped


def pack_captions(
    own: Prompt, others: Sequence[Prompt], processor: Processor, rng: np.random.Generator, *, swap_words: float = 0.0
) -> Prompt:
    """A caption among captions of other images, as many as are drawn and fit, in random order.

    The other captions have no phrases: nothing is to be found for their words. With the probability ``swap_words`` a
    copy with ``swapped_words`` is among them.

    Raises:
        CaptionError: the caption itself does not fit, or the tokenizer reads nothing of a phrase.
    """
    count, shown = partial(_count_tokens, processor), f"caption {own.caption[:40]!r}"
    budget = TokenBudget(count, processor.max_tokens)
    for text in own.texts:
        if count(text) <= SPECIAL_TOKENS:
            raise CaptionError(f"{shown} has the phrase {text!r}, of which the tokenizer reads no word")
    if not budget.take(own.caption):
        needed = count(own.caption)
        raise CaptionError(f"{shown} needs {needed} tokens, the model reads {processor.max_tokens}: shorten it")
    captions = {word_key(own.caption): own.caption}
    hard = swapped_words(own, rng) if swap_words and rng.random() < swap_words else ""
    if hard and budget.take(hard):
        captions[word_key(hard)] = hard
    draw = rng.random()
    if others and draw < _ALL_OTHERS + _SOME_OTHERS:  # all, some or none of them (the paper's appendix on its captions)
        number = len(others) if draw < _ALL_OTHERS else int(rng.integers(1, len(others) + 1))
        for text in (other.caption.strip() for other in _shuffled(others, rng)[:number]):
            if word_key(text) not in captions and count(text) > SPECIAL_TOKENS and budget.take(text):
                captions[word_key(text)] = text
    return own if len(captions) == 1 else _with_negatives(own, _shuffled(list(captions.values()), rng))


def _with_negatives(own: Prompt, captions: Sequence[str]) -> Prompt:
    """Captions as one text in which only the own one has phrases."""
    joined, start = "", 0
    for text in captions:
        if joined:
            joined += " " if joined.rstrip().endswith(_SENTENCE_ENDS) else SEPARATOR
        start = len(joined) if text is own.caption else start
        joined += text
    return Prompt(joined, tuple(phrase.shifted(start) for phrase in own.phrases), own.classes)


def foreign_names(own: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """Names of other datasets that share no word with any name of this one.

    Whether they are truly absent from its images is for those to judge who set ``data.borrow``.
    """
    words, chosen = _words(own), dict[str, str]()
    for name in others:
        if words.isdisjoint(_words([name])):
            chosen.setdefault(word_key(name), name)
    return tuple(chosen.values())


def _words(names: Iterable[str]) -> set[str]:
    return {word for name in names for word in _WORD.findall(name.lower())}


@lru_cache(maxsize=2**16)
def word_key(text: str) -> str:
    """Texts with the same key are the same words to BERT's uncased tokenizer, so they must be one phrase."""
    letters = unicodedata.normalize("NFD", text.lower())
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter) != "Mn").split())


@lru_cache(maxsize=2**16)  # a name is tokenized once, not in every caption
def _count_tokens(processor: Processor, text: str) -> int:
    return processor.count_tokens(text)


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]
