"""A sample is given the caption it is learned with.

A detection sample: the names of what it shows and names that are absent, shuffled, within a token budget (paper
section 3.1; the release's ``od_to_grounding.py``). A caption sample: captions of other images beside its own.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.structures import SEPARATOR, Prompt, Sample
from glip.text.prompt import join_names

CountTokens = Callable[[str], int]  # of a caption, [CLS] and [SEP] included

_WORD = re.compile(r"\w+")
_BRACKETS = re.compile(r"([^\[\]]*)\[([^\[\]]*)\]([^\[\]]*)")
_SPECIAL = 2  # [CLS] and [SEP]
_SENTENCE_ENDS = (".", "!", "?", "\u2026")
_ALL_OTHERS, _SOME_OTHERS = 0.3, 0.3  # how often all, and some, negative captions are packed beside the true one


class PhrasingError(DataError):
    """No caption can be written for a sample: it is left out and counted."""


class CaptionTooLong(PhrasingError):
    """A caption needs more tokens than the model reads."""


@dataclass(frozen=True)
class ClassPrompt:
    """How a class is written (ODinW's caption prompts): the words of ``name`` are its span, the rest stands around."""

    prefix: str
    name: str
    suffix: str

    @property
    def text(self) -> str:
        """All that is written."""
        return self.prefix + self.name + self.suffix


@dataclass(frozen=True)
class Phrasing:
    """How captions are written.

    Args:
        max_negatives: absent names in a caption at most.
        max_tokens: tokens of a caption at most, [CLS] and [SEP] included.
        full_vocabulary: probability that all names of the set are written (within the two limits), else a random
            number of absent ones.
        borrow: probability that names of other sets join as absent ones.
        foreign: those names.
        prompts: by class name, what is written instead of it.
        pack_captions: captions of other images beside the true one at most.
    """

    max_negatives: int
    max_tokens: int
    full_vocabulary: float
    borrow: float = 0.0
    foreign: tuple[str, ...] = ()
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    pack_captions: int = 0


def build_caption(
    sample: Sample,
    phrasing: Phrasing,
    count_tokens: CountTokens,
    rng: np.random.Generator,
    others: Sequence[Prompt] = (),
) -> tuple[Sample, SkipCounter]:
    """The sample with the prompt it is learned with, and the boxes it lost, by reason.

    A detection sample without boxes gets absent names only. In a federated set (``absent`` is not None) only names
    verified as absent are asked for, so foreign ones, which nobody has verified, never join there; ``incomplete``
    names are not written at all. A caption sample gets captions of ``others`` beside its own: their phrases are not
    phrases of the prompt, nothing is to be found for their words.

    Raises:
        CaptionTooLong: the caption of a caption sample over the budget.
        PhrasingError: no name fits, or none may be asked for.
        ValueError: a sample with neither phrases nor a vocabulary.
    """
    if sample.prompt is not None:
        return replace(sample, prompt=_pack(sample.prompt, phrasing, count_tokens, rng, others)), SkipCounter()
    if not sample.vocabulary:
        raise DataError(
            f"image {sample.image_id} (caption {sample.caption[:40]!r}) has no phrases and no class names: find the "
            "noun phrases of its caption and label them with boxes first, then train on the file that gives"
        )
    return _caption_from_names(sample, phrasing, count_tokens, rng)


def caption_of(prompts: Sequence[ClassPrompt]) -> Prompt:
    """Classes as one caption, as the release joins them: a phrase is the name only, the separator follows the suffix.

    Raises:
        ValueError: no class.
    """
    plain = all(prompt.text == prompt.name for prompt in prompts)
    return replace(join_names((one.prefix, one.name, one.suffix) for one in prompts), is_list=plain)


def read_prompts(tree: Any, vocabulary: Sequence[str] | None = None) -> dict[str, ClassPrompt]:
    """Class prompts from the plain values of a YAML or JSON file.

    Args:
        tree: maps a class name to its text with the words that name it in brackets ("there are some [holes] on the
            road"), or to a map of prefix, name and suffix (what is left out: nothing, the class name, nothing).
        vocabulary: names of the set; a prompt for none of them is then an error.

    Raises:
        ValueError: naming the class, what is there and what is expected.
    """
    if not isinstance(tree, Mapping):
        raise DataError(f"class prompts: got {tree!r:.80}: give a map such as pothole: 'some [holes] on the road'")
    prompts = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise DataError(f"class prompts: the class {name!r} is no text: write it in quotes")
        if vocabulary is not None and name not in vocabulary:
            shown = ", ".join(repr(known) for known in vocabulary[:10])
            raise DataError(f"class prompts: no class {name!r} in the set: its names are {shown}")
        prompts[name] = _read_prompt(name, value)
    return prompts


def foreign_names(own: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Names of other sets that share no word with any name of this one.

    Whether they are truly absent from its images is for the one to know who mixes the sets and sets ``borrow``.
    """
    words = {word for name in own for word in _WORD.findall(name.lower())}
    chosen: dict[str, str] = {}
    for name in others:
        if not words & set(_WORD.findall(name.lower())):
            chosen.setdefault(word_key(name), name)
    return tuple(chosen.values())


def _read_prompt(name: str, value: Any) -> ClassPrompt:
    if isinstance(value, str):
        parts = _BRACKETS.fullmatch(value)
        if parts is None:
            raise DataError(
                f"class prompt of {name!r}: {value!r} needs one pair of [brackets] around the words that name the "
                "thing, such as 'there are some [holes] on the road'"
            )
        prompt = ClassPrompt(parts[1], parts[2], parts[3])
    elif isinstance(value, Mapping):
        known = ("prefix", "name", "suffix")
        strange = [key for key, text in value.items() if key not in known or not isinstance(text, str)]
        if strange:
            raise DataError(
                f"class prompt of {name!r}: {strange[0]!r}: {value[strange[0]]!r} is not expected: give texts for "
                "prefix, name and suffix"
            )
        prompt = ClassPrompt(value.get("prefix", ""), value.get("name", name), value.get("suffix", ""))
    else:
        raise DataError(
            f"class prompt of {name!r}: got {value!r}: give a text with [brackets], or prefix, name, suffix"
        )
    if not prompt.name.strip():
        raise DataError(
            f"class prompt of {name!r}: the words that name the thing are empty: write them, or drop the line"
        )
    return prompt


@lru_cache(maxsize=2**16)
def _plain(name: str) -> ClassPrompt:
    return ClassPrompt("", name, "")


@lru_cache(maxsize=2**16)
def word_key(text: str) -> str:
    """Texts of one key are the same words to BERT's uncased tokenizer, so that they must be one phrase."""
    letters = unicodedata.normalize("NFD", text.lower())
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter) != "Mn").split())


@lru_cache(maxsize=2**16)  # a name is tokenized once, not in every caption
def _cost(count_tokens: CountTokens, text: str) -> int:
    return count_tokens(text) - _SPECIAL


def _caption_from_names(
    sample: Sample, phrasing: Phrasing, count_tokens: CountTokens, rng: np.random.Generator
) -> tuple[Sample, SkipCounter]:
    """A detection sample's names as a caption; its boxes point at the phrases, those without one are dropped."""
    wordings = [phrasing.prompts.get(name) or _plain(name) for name in sample.vocabulary]
    keys = [word_key(wording.text) for wording in wordings]
    unsure = {keys[number] for number in sample.incomplete}
    own = dict(zip(keys, wordings, strict=True))
    present, absent = _shown_and_absent(sample, keys, unsure)
    negatives = [own[key] for key in _sample_negatives(absent, phrasing, rng, least=0 if present else 1)]
    if sample.absent is None and rng.random() < phrasing.borrow:
        negatives += _borrow(phrasing, len(negatives), rng)
    if not present and not negatives:
        raise PhrasingError(
            f"image {sample.image_id} has no class that may be asked for: none of its boxes is of a class annotated "
            "exhaustively and no class is verified as absent: leave it out"
        )
    shuffled = [own[present[index]] for index in rng.permutation(len(present))]
    fitting = _fitting(shuffled + negatives, phrasing.max_tokens, count_tokens)
    written = [fitting[index] for index in rng.permutation(len(fitting))]
    place = {word_key(wording.text): index for index, wording in enumerate(written)}
    rows = [
        tuple(dict.fromkeys(place[keys[number]] for number in numbers if keys[number] in place))
        for numbers in sample.box_phrases
    ]
    kept = [index for index, row in enumerate(rows) if row]
    named = replace(
        sample.keep(kept),
        prompt=caption_of(written),
        box_phrases=tuple(rows[index] for index in kept),
        vocabulary=(),
        absent=None,
        incomplete=(),
    )
    return named, _count_nameless(sample, rows, [key in unsure for key in keys])


def _count_nameless(sample: Sample, rows: Sequence[Sequence[int]], unsure: Sequence[bool]) -> SkipCounter:
    tally = SkipCounter()
    for row, numbers in zip(rows, sample.box_phrases, strict=True):
        if row:
            continue
        never_asked = bool(numbers) and all(unsure[number] for number in numbers)
        reason = (
            "box of a class not exhaustively annotated" if never_asked else "box whose name did not fit the caption"
        )
        names = ", ".join(repr(sample.vocabulary[number]) for number in numbers)
        tally.add(reason, f"{names} in image {sample.image_id}")
    return tally


def _shown_and_absent(sample: Sample, keys: Sequence[str], unsure: set[str]) -> tuple[list[str], list[str]]:
    """Keys of the names that may be asked for, each once: those with boxes, and those surely not in the image."""
    shown = dict.fromkeys(keys[number] for numbers in sample.box_phrases for number in numbers)
    candidates = keys if sample.absent is None else [keys[number] for number in sample.absent]
    absent = [key for key in dict.fromkeys(candidates) if key not in unsure and key not in shown]
    return [key for key in shown if key not in unsure], absent


def _sample_negatives(absent: Sequence[str], phrasing: Phrasing, rng: np.random.Generator, *, least: int) -> list[str]:
    most = min(len(absent), max(phrasing.max_negatives, least))
    everything = rng.random() < phrasing.full_vocabulary
    number = most if everything or most <= least else int(rng.integers(least, most + 1))
    return [absent[index] for index in rng.permutation(len(absent))[:number]]


def _borrow(phrasing: Phrasing, used: int, rng: np.random.Generator) -> list[ClassPrompt]:
    room = min(len(phrasing.foreign), phrasing.max_negatives - used)
    number = int(rng.integers(1, room + 1)) if room > 0 else 0
    return [_plain(phrasing.foreign[index]) for index in rng.permutation(len(phrasing.foreign))[:number]]


def _fitting(wordings: Sequence[ClassPrompt], max_tokens: int, count_tokens: CountTokens) -> list[ClassPrompt]:
    """What is written: each that still fits when its turn comes, and that the tokenizer can read at all."""
    room = max_tokens - _SPECIAL + 1  # each takes its tokens and a separator; the last has none after it
    fitting: dict[str, ClassPrompt] = {}
    for wording in wordings:
        # Word pieces never cross white space or punctuation, so costs add up.
        cost = _cost(count_tokens, wording.text) + 1
        if cost <= room and _cost(count_tokens, wording.name) > 0:
            room -= cost
            fitting[word_key(wording.text)] = wording
    if not fitting:
        shown = ", ".join(repr(wording.text[:40]) for wording in wordings[:3])
        raise PhrasingError(f"no name of {shown} fits a caption of {max_tokens} tokens: shorten or remove them")
    return list(fitting.values())


def _pack(
    own: Prompt, phrasing: Phrasing, count_tokens: CountTokens, rng: np.random.Generator, others: Sequence[Prompt]
) -> Prompt:
    """The caption among captions of other images, in random order, as many as fit.

    Raises:
        CaptionTooLong: the caption alone does not fit.
    """
    silent = next((phrase.text for phrase in own.phrases if _cost(count_tokens, phrase.text) <= 0), None)
    if silent is not None:
        raise PhrasingError(f"phrase {silent!r} has no word that the tokenizer reads: leave it out")
    length = count_tokens(own.caption)
    if length > phrasing.max_tokens:
        raise CaptionTooLong(
            f"caption needs {length} tokens, the model reads {phrasing.max_tokens}: shorten it or leave it out (it "
            f"begins {own.caption[:40]!r})"
        )
    room, captions = phrasing.max_tokens - length, {word_key(own.caption): own.caption}
    for text in _negative_captions(others[: phrasing.pack_captions], rng):
        cost = count_tokens(text) - _SPECIAL + 1  # with a separating dot
        if 1 < cost <= room and word_key(text) not in captions:
            room -= cost
            captions[word_key(text)] = text
    if len(captions) == 1:
        return own
    texts = list(captions.values())
    joined, start = "", 0
    for number in rng.permutation(len(texts)).tolist():
        if joined:
            joined += " " if joined.rstrip().endswith(_SENTENCE_ENDS) else SEPARATOR
        start = len(joined) if number == 0 else start
        joined += texts[number]
    return Prompt(joined, tuple(phrase.shifted(start) for phrase in own.phrases), own.classes)


def _negative_captions(others: Sequence[Prompt], rng: np.random.Generator) -> list[str]:
    """All, some or none of the other captions, shuffled (the paper's appendix on its captions)."""
    draw = rng.random()
    if not others or draw >= _ALL_OTHERS + _SOME_OTHERS:
        return []
    number = len(others) if draw < _ALL_OTHERS else int(rng.integers(1, len(others) + 1))
    return [others[index].caption.strip() for index in rng.permutation(len(others))[:number]]
