"""Prompts: what to look for, as a caption and the characters in it that name each thing.

The only home of joining names with their spans, of shifting spans, and of counting whether names fit a caption.
"""

import operator
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NoReturn

from glip.errors import GlipError
from glip.text.names import split_names
from glip.text.phrases import Span, noun_phrases

NEGATIVE = -1  # the class of a phrase that takes part in the prompt but is never returned
SEPARATOR = ". "  # between names, as in the 2022 release (DATASETS.SEPARATION_TOKENS)
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
# What may not continue a word on either side: not the letters of scripts that write words without spaces.
LETTER = "[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"

_WORD_EDGE = re.compile(f"(?:(?<!{LETTER})|(?!{LETTER}))")  # a place that is not inside a word

CountTokens = Callable[[str], int]  # tokens of a text, [CLS] and [SEP] included


@dataclass(frozen=True)
class Phrase:
    """A thing named in a caption: its text and the character ranges [start, end) that name it."""

    text: str
    spans: tuple[Span, ...]

    def shifted(self, characters: int) -> "Phrase":
        """The same phrase in a caption that begins ``characters`` earlier."""
        return Phrase(self.text, tuple((start + characters, end + characters) for start, end in self.spans))


@dataclass(frozen=True)
class Prompt:
    """A caption and the phrases in it that are to be found.

    ``classes[i]`` is the class of phrase ``i``: its own index unless the caller maps several names to one class, or
    ``NEGATIVE`` for a phrase that only competes. Phrases know their characters by construction; nothing is ever
    found again by searching a string, so "car" cannot be mistaken for the start of "cart".
    """

    caption: str
    phrases: tuple[Phrase, ...]
    classes: tuple[int, ...] = ()
    is_list: bool = False  # made of independent names, so it may be split into chunks

    def __post_init__(self) -> None:
        count, length = len(self.phrases), len(self.caption)
        if not self.classes:
            object.__setattr__(self, "classes", tuple(range(count)))
        problem = ""
        if not count:
            problem = "names nothing: write what to look for, such as 'a red bus. a cyclist'"
        elif len(self.classes) != count:
            problem = f"has {count} phrases and {len(self.classes)} classes: give one class per phrase"
        elif not self.caption.isascii() and any("\ud800" <= letter <= "\udfff" for letter in self.caption):
            problem = "holds characters that are not UTF-8: write it in UTF-8"
        for phrase in self.phrases:
            if not phrase.spans or not all(0 <= start < end <= length for start, end in phrase.spans):
                problem = (
                    f"has a phrase {phrase.text!r} with the spans {list(phrase.spans)}: write what to look for, or "
                    f"give at least one [start, end) within the {length} characters of the caption"
                )
        if problem:
            raise GlipError(f"prompt {self.caption[:60]!r} {problem}")

    @classmethod
    def from_names(
        cls, names: Sequence[str], *, negatives: Sequence[str] = (), classes: Sequence[int] | None = None
    ) -> "Prompt":
        """Join names to a caption: ``["person", "stop sign"]`` -> "person. stop sign".

        Args:
            names: what to find; label ``i`` of a detection is ``names[i]``. Duplicates stay separate labels. A string
                is split as `parse` splits it.
            negatives: names that take part and may win a region, but are not returned; or a string, as for ``names``.
            classes: maps names to classes (for instance synonyms to one class); suppression is per class.

        Raises:
            GlipError: no name, an empty one, one that is not text, or a class that is not a whole number.
        """
        wanted, against = _name_list(names), _name_list(negatives)
        joined = join_names(("", name, "") for name in wanted + against)
        try:
            own = tuple(range(len(wanted)) if classes is None else map(operator.index, classes))
        except TypeError:
            raise GlipError(f"classes: got {reprlib.repr(classes)}: give a whole number for each name") from None
        return replace(joined, classes=own + (NEGATIVE,) * len(against), is_list=True)

    @classmethod
    def from_synonyms(cls, synonyms: Mapping[str, Sequence[str]]) -> "Prompt":
        """Each class asked by its name and its synonyms, such as those of WordNet or of LVIS' categories.

        Class ``i`` is the ``i``-th key. Suppression is per class, so the best word of an object wins;
        ``Detections.by_class`` gives results the class names. Spelling such as "hot_dog" or "bat_(animal)" is cleaned.

        Raises:
            GlipError: no class, or a word that is empty or not text.
        """
        words, classes = list[str](), list[int]()
        for number, (name, own) in enumerate(synonyms.items()):
            given = _name_list([name, *([own] if isinstance(own, str) else _items(own))])
            cleaned = dict.fromkeys(clean_name(word).strip() for word in given)
            words += cleaned
            classes += [number] * len(cleaned)
        return cls.from_names(words, classes=classes)

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Names in one text, such as "a red bus. a cyclist" (see ``split_names``).

        A dot inside a word is kept ("7.5 cm"); a name that itself has a dot and a space ("St. Bernard") must be
        passed in a list.

        Raises:
            GlipError: no name is in the text.
        """
        return cls.from_names(text)

    @classmethod
    def from_caption(cls, caption: str, phrases: str | Sequence[str | Sequence[Any]] | None = None) -> "Prompt":
        """A free sentence and the things in it: each a text that occurs in it, a span, or several spans.

        A text stands for its next whole-word occurrence after the phrase given before it (else its first one), so
        phrases listed in reading order find their own words, also when a word occurs twice. Without ``phrases`` the
        noun phrases of the caption are taken.

        Raises:
            GlipError: a text that is not in the caption, a span outside it, or no phrase.
        """
        _name_list([caption])  # refuses what is no text
        if phrases is None:
            phrases = noun_phrases(caption)
        found, position = list[Phrase](), 0
        for item in [phrases] if isinstance(phrases, str) else phrases:
            spans = _spans(caption, item, position)
            position = spans[-1][1] if isinstance(item, str) else position
            found.append(Phrase(" ".join(caption[start:end] for start, end in spans), spans))
        return cls(caption, tuple(found))

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class that is returned: the text of its first phrase."""
        numbers = dict.fromkeys(number for number in self.classes if number != NEGATIVE)
        return {number: self.texts[self.classes.index(number)] for number in numbers}

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each phrase, in the caller's order."""
        return tuple(phrase.text for phrase in self.phrases)


Words = str | Sequence[str] | Prompt  # what a user may give as one prompt


def join_names(names: Iterable[tuple[str, str, str]]) -> Prompt:
    """Names with the text around each (before, name, after) as one caption; only the names are phrases."""
    caption, phrases = "", list[Phrase]()
    for before, name, after in names:
        caption += (SEPARATOR if phrases else "") + before
        phrases.append(Phrase(name, ((len(caption), len(caption) + len(name)),)))
        caption += name + after
    return Prompt(caption, tuple(phrases))


def join_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """One prompt with the phrases of all, in their order; a separator takes the place of a caption's last dot."""
    if len(prompts) == 1:
        return prompts[0]
    caption, phrases = "", list[Phrase]()
    for prompt in prompts:
        caption += SEPARATOR if phrases else ""
        phrases += [phrase.shifted(len(caption)) for phrase in prompt.phrases]
        caption += prompt.caption.rstrip().removesuffix(".")  # no span reaches into the dot
    return Prompt(caption, tuple(phrases))


def clean_name(name: str) -> str:
    """A dataset's class name as words, as in the 2022 release: "bat_(animal)" -> "bat ".

    Text in brackets is deleted (greedily), underscores become spaces, then each double space a single one.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


class TokenBudget:
    """The tokens that are left in a caption of texts joined by separators.

    Word pieces never cross white space or punctuation, so a caption has the tokens of its texts, one for each dot
    between them, [CLS] and [SEP].
    """

    def __init__(self, count_tokens: CountTokens, max_tokens: int) -> None:
        self._count_tokens = count_tokens
        self.left = max_tokens - SPECIAL_TOKENS + 1  # each text brings a separator, which the last one does not need

    def take(self, text: str) -> bool:
        """Reserve the tokens of one more text; False, and nothing is reserved, if it does not fit."""
        cost = self._count_tokens(text) - SPECIAL_TOKENS + 1
        fits = cost <= self.left
        self.left -= cost if fits else 0
        return fits


def split_prompt(
    prompt: Prompt, count_tokens: CountTokens, *, max_tokens: int, max_names: int | None = None
) -> list[tuple[int, Prompt]]:
    """Split a list of names into chunks that the model can read, each with the index of its first name in the list.

    A single name with more tokens is a chunk of its own, which the model refuses.

    Args:
        prompt: the names; a caption is not split, which would change its meaning.
        count_tokens: counts the tokens of a caption, [CLS] and [SEP] included.
        max_tokens: what the model reads.
        max_names: maximum names per chunk (40 in the paper's LVIS protocol); None or 0: as many as fit.
    """
    max_names = max_names or len(prompt.phrases)
    fits = len(prompt.phrases) <= max_names and count_tokens(prompt.caption) <= max_tokens
    if fits or not prompt.is_list:
        return [(0, prompt)]
    starts, budget = [0], TokenBudget(count_tokens, max_tokens)
    for index, name in enumerate(prompt.texts):
        if index - starts[-1] < max_names and budget.take(name):
            continue
        if index:
            starts.append(index)
        budget = TokenBudget(count_tokens, max_tokens)
        budget.take(name)
    ends = [*starts[1:], len(prompt.texts)]
    texts, classes = prompt.texts, prompt.classes
    return [
        (start, Prompt.from_names(texts[start:end], classes=classes[start:end]))
        for start, end in zip(starts, ends, strict=True)
    ]


def says_one_of(text: str, words: Sequence[str]) -> bool:
    """Whether a text contains one of the words (or sequences of words) as whole words; case does not matter."""
    return _whole_words(tuple(words)).search(text) is not None


def is_word_edge(text: str, place: int) -> bool:
    """Whether a cut before the character at ``place`` does not divide a word."""
    return _WORD_EDGE.match(text, place) is not None


@lru_cache(maxsize=256)
def _whole_words(texts: tuple[str, ...]) -> re.Pattern[str]:
    either, edge = "|".join(map(re.escape, texts)), _WORD_EDGE.pattern
    return re.compile(f"{edge}(?:{either}){edge}", re.IGNORECASE)


def _spans(caption: str, item: str | Sequence[Any], start: int) -> tuple[Span, ...]:
    """Where a text occurs as whole words, after ``start`` if it does, else first; or the spans that are given."""
    if isinstance(item, str):
        pattern = _whole_words((item.strip(),))
        if match := pattern.search(caption, start) or pattern.search(caption):
            return (match.span(),)
    else:
        with suppress(TypeError, ValueError, IndexError, KeyError):  # neither a span nor spans
            listed: Sequence[Any] = item if isinstance(item[0], Sequence) else [item]
            return tuple((operator.index(start), operator.index(end)) for start, end in listed)
    raise GlipError(
        f"phrase {item!r} does not occur in the caption {caption!r}: give words of it, (start, end), or such pairs"
    )


def as_prompts(words: Words | Sequence[Words]) -> list[Prompt]:
    """A list of one Prompt, or of one for each image; a plain list of strings is one list of names.

    Raises:
        GlipError: anything else.
    """
    if isinstance(words, Prompt):
        return [words]
    items = [words] if isinstance(words, str) else _items(words)
    if all(isinstance(item, str) for item in items):
        return [Prompt.from_names(words if isinstance(words, str) else items)]
    return [as_prompts(item)[0] for item in items]


def _name_list(given: str | Sequence[str]) -> list[str]:
    if isinstance(given, str):
        return split_names(given)
    names = _items(given)
    for name in names:
        if not isinstance(name, str):
            _refuse(name)
    return names


def _items(given: Any) -> list[Any]:
    """The items of a list; a set has no order, which labels need, and of a dictionary or bytes nobody knows which."""
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping | Set):
        _refuse(given)
    return list(given)


def _refuse(given: Any) -> NoReturn:
    text = f"prompt: got {reprlib.repr(given)} ({type(given).__name__}): "
    raise GlipError(text + "give text such as 'a red bus. a cyclist', a list of names, or a Prompt")
