"""Captions -> the noun phrases in them, as characters: what a free sentence asks a grounding model for.

The bundled pipeline is a tagger of our own (its card: glip/assets/phrases/README.md), nothing is downloaded; any parsed
spaCy pipeline can stand in for it. spaCy is imported when the first finder is made.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glip.errors import GlipError
from glip.structures import Span

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.tokens import Span as Chunk

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "phrases"
TAGGER = "phrases"  # the component that a pipeline of tools/train_phrases.py has; others are asked for noun_chunks
BATCH = 32  # captions; so few stay in the processor's cache
NEW_WORDS = 200_000  # after so many the pipeline is loaded anew, so that memory stays bounded
PIECE = 1000  # characters that are read at once; a longer caption is cut at the end of a sentence, or at a space
EXPRESSION = 12  # words of a referring expression at most; a longer one stays a phrase

WORDS = {
    "determiners": "a an the this that these those some any each every all both either neither another such what which "
    "whose my your his her its our their several many few thier it 's",  # the last as captions misspell them
    "ties": "of in on at with near by under over behind beside next to above below inside outside against along around "
    "across between among beneath underneath atop upon onto into from front top wearing holding carrying",
}
DETERMINERS, TIES = (frozenset(words.split()) for words in WORDS.values())
# Tags that pages have in their texts, by name: CC12M's "<PERSON>" and "<3" are none.
TAGS = (
    "a|abbr|audio|b|big|blockquote|body|br|button|center|code|div|em|embed|font|form|h[1-6]|head|hr|html|i|iframe|img|"
    "input|li|link|meta|object|ol|p|pre|q|s|script|small|source|span|strong|style|sub|sup|table|tbody|td|th|tr|tt|u|ul|"
    "video"
)
MARKUP = re.compile(
    rf"</?(?:{TAGS})(?:\s[^<>]{{0,500}}|/)?>|<!--.{{0,500}}?-->|&(?:[a-z]{{2,8}}\d?|#\d{{1,7}}|#x[0-9a-f]{{1,6}});",
    re.IGNORECASE,
)
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u2028-\u202e\ufeff]")
ROUGH = re.compile(rf"[<&]|\s\s|[^\S ]|^\s|\s$|{ODD.pattern}")
PLACES = "BIESO"  # of a word in a phrase: first, inside, last, the only one; or outside
FOLLOWERS = {"B": "IE", "I": "IE", "E": "BSO", "S": "BSO", "O": "BSO"}
NEVER = -1e9


@dataclass(frozen=True)
class Plain:
    """A caption as it is read: words with single spaces; ``places[i]`` is where character i is in the caption."""

    text: str
    places: Sequence[int]

    def span(self, start: int, end: int) -> Span:
        """The same characters in the caption as given."""
        return self.places[start], self.places[end - 1] + 1


@dataclass(frozen=True)
class Reading:
    """What was found in a caption: its words in lower case, where they are, and phrases as word ranges [first, last).

    ``reaches[i]`` is the word where the referring expression of phrase i ends; empty where nothing was parsed.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    phrases: tuple[tuple[int, int], ...]
    reaches: tuple[int, ...]

    def characters(self, first: int, last: int) -> Span:
        """The characters of a word range in the caption as given."""
        return self.spans[first][0], self.spans[last - 1][1]


class PhraseFinder:
    """Finds the noun phrases of captions.

    A phrase is a noun or a name with what stands before it and belongs to it, without a break: determiners, adjectives,
    nouns, numbers and possessives; and with the rest of a name after it. `chunks` gives them all, `many` and a call
    only what an image can show, each without its determiner: phrases of one word less the leading ones ("his hat" ->
    "hat"), and none whose head is in the list of what is no thing ("view", "a group of"). A phrase that occurs twice
    is found twice, each with its own characters; phrases never overlap.

    Args:
        pipeline: None for the bundled one, else a parsed spaCy pipeline, whose ``noun_chunks`` are taken (those of
            pronouns left out): its name (``en_core_web_sm``) or folder. Also a folder of tools/train_phrases.py.
        drop: what is no thing, instead of glip/assets/phrases/not_things.txt, in the same words: ``view`` drops each
            phrase that ends so, ``group of`` only where "of" follows, ``=top`` only where it is the whole phrase.
        referring: widen each phrase to its referring expression ("a man in a red shirt"). A parsed pipeline gives the
            words below the head, without what is coordinated, and without relative clauses where these make it too
            long. The bundled one joins what prepositions of place, "of", "with", "wearing", "holding" or "carrying"
            tie to the phrase before. At most 12 words; an expression within another one is left out.

    Raises:
        ValueError: a pipeline that is not installed, or that finds no noun phrases.
    """

    def __init__(
        self, pipeline: str | Path | None = None, *, drop: Collection[str] | None = None, referring: bool = False
    ) -> None:
        if isinstance(drop, str):
            raise GlipError(f"drop: got the string {drop!r}: pass a list of words, such as ['view', 'group of']")
        self.drop = frozenset(_listed(BUNDLED / "not_things.txt") if drop is None else (w.lower() for w in drop))
        self.referring = referring
        self.pipeline = BUNDLED if pipeline is None else pipeline
        self._open()

    def chunks(self, captions: Iterable[str]) -> list[tuple[Span, ...]]:
        """All noun phrases of each caption, with their determiners, in reading order."""
        readings = self._readings(captions)
        return [tuple(reading.characters(*phrase) for phrase in reading.phrases) for reading in readings]

    def __call__(self, caption: str) -> tuple[Span, ...]:
        """The things that a caption names, as characters [start, end) of it, in reading order; () if it names none."""
        return self.many([caption])[0]

    def many(self, captions: Iterable[str]) -> list[tuple[Span, ...]]:
        """The things that each caption names, as a call gives them."""
        return [tuple(self._things(reading)) for reading in self._readings(captions)]

    def _open(self) -> None:
        nlp = _load(self.pipeline)
        self._read = _Tagger(nlp) if TAGGER in nlp.pipe_names else _Parser(nlp, self.pipeline)
        self._vocabulary, self._known = nlp.vocab, len(nlp.vocab)

    def _readings(self, captions: Iterable[str]) -> Iterator[Reading]:
        if isinstance(captions, str):
            raise GlipError(f"captions: got the string {captions[:40]!r}: pass a list of captions")
        waiting = iter(captions)
        while batch := list(islice(waiting, BATCH)):
            read = [plain(caption) for caption in batch]
            pieces = [_pieces(one.text) for one in read]
            docs = iter(self._read(list(chain.from_iterable(pieces))))
            yield from (_join(one, list(islice(docs, len(parts)))) for one, parts in zip(read, pieces, strict=True))
            if len(self._vocabulary) - self._known > NEW_WORDS:  # spaCy keeps every word that it ever saw
                self._open()

    def _things(self, reading: Reading) -> Iterator[Span]:
        reaches = [last for _, last in reading.phrases]
        if self.referring:
            reaches = [*reading.reaches] or _linked(reading.words, reading.phrases)
        done = 0
        for (start, last), reach in zip(reading.phrases, reaches, strict=True):
            first = _undetermined(reading.words, start, last)
            absent = reading.words[start] == "no"
            if absent or first == last or first < done or self._is_no_thing(reading.words, first, last):
                continue
            done = reach
            yield reading.characters(first, done)

    def _is_no_thing(self, words: Sequence[str], first: int, last: int) -> bool:
        head = words[last - 1]
        if not any(letter.isalpha() for word in words[first:last] for letter in word):
            return True
        of = last < len(words) and words[last] == "of" and f"{head} of" in self.drop
        return head in self.drop or of or (last - first == 1 and f"={head}" in self.drop)


def noun_phrases(caption: str) -> tuple[Span, ...]:
    """The things that a caption names, by the bundled finder: characters [start, end) of it, in reading order."""
    return _bundled()(caption)


@cache
def _bundled() -> PhraseFinder:
    return PhraseFinder()


def _listed(path: Path) -> Iterator[str]:
    lines = (line.split("#")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    return (line for line in lines if line)


def _load(pipeline: str | Path) -> "Language":
    import spacy
    from thinc.api import use_ops

    try:
        with use_ops("numpy", use_blis=False):  # NumPy's own products are about three times as fast as BLIS
            return spacy.load(pipeline)
    except (OSError, ValueError, ImportError) as error:
        raise GlipError(
            f"spaCy pipeline {str(pipeline)!r} cannot be loaded: give the name of an installed one "
            "(python -m spacy download en_core_web_sm), its folder, or None for the bundled one"
        ) from error


@dataclass(frozen=True)
class _Found:
    """What was found in a piece of a caption: phrases as word ranges, and where their expressions end, if parsed."""

    doc: "Doc"
    phrases: list[tuple[int, int]]
    reaches: tuple[int, ...] = ()


class _Tagger:
    """The bundled way: the likeliest sequence of places, as the tagger's scores say."""

    def __init__(self, nlp: "Language") -> None:
        self.make = nlp.make_doc
        tagger = nlp.get_pipe(TAGGER)
        self.predict: Callable[[list[Doc]], list[np.ndarray]] = tagger.model.predict  # type: ignore[attr-defined]
        labels: Sequence[str] = tagger.labels  # type: ignore[attr-defined]
        self.place = np.array([[label[0] == place for place in PLACES] for label in labels], np.float32)

    def __call__(self, texts: list[str]) -> list[_Found]:
        docs = [self.make(text) for text in texts]
        if not any(len(doc) for doc in docs):
            return [_Found(doc, []) for doc in docs]
        scores = np.concatenate(self.predict(docs))
        chances = np.exp(scores - scores.max(1, keepdims=True)) @ self.place
        chances = np.log(chances / chances.sum(1, keepdims=True) + 1e-9)
        found = _decode(chances, [len(doc) for doc in docs])
        return [_Found(doc, phrases) for doc, phrases in zip(docs, found, strict=True)]


class _Parser:
    """Any parsed pipeline: its noun chunks."""

    def __init__(self, nlp: "Language", name: str | Path) -> None:
        self.nlp = nlp
        try:
            list(nlp("A cat lies on the mat.").noun_chunks)
        except (ValueError, NotImplementedError) as error:
            raise GlipError(
                f"spaCy pipeline {str(name)!r} finds no noun phrases, it has {nlp.pipe_names or 'no component'}: give "
                "one with a parser, such as en_core_web_sm, or None for the bundled one"
            ) from error

    def __call__(self, texts: list[str]) -> list[_Found]:
        return [self._found(doc) for doc in self.nlp.pipe(texts)]

    def _found(self, doc: "Doc") -> _Found:
        chunks = [chunk for chunk in doc.noun_chunks if chunk.root.pos_ != "PRON"]
        return _Found(doc, [(chunk.start, chunk.end) for chunk in chunks], tuple(_below(chunk) for chunk in chunks))


def _below(chunk: "Chunk") -> int:
    """Where the referring expression of a parsed noun chunk ends: its subtree, as far as nothing is left out of it."""
    for without in (("conj", "cc", "punct"), ("conj", "cc", "punct", "relcl", "acl:relcl")):
        end = chunk.end
        for child in chunk.root.rights:
            if child.i >= end and child.dep_ in without:
                break
            end = max(end, child.right_edge.i + 1)
        if end - chunk.start <= EXPRESSION:
            return end
    return chunk.end


def _linked(words: Sequence[str], phrases: Sequence[tuple[int, int]]) -> list[int]:
    """Where the referring expression of each phrase ends: words of TIES tie the next phrase to it, and so on."""
    reaches = [last for _, last in phrases]
    for index in range(len(phrases) - 2, -1, -1):
        first, last = phrases[index]
        between = words[last : phrases[index + 1][0]]
        if between and all(word in TIES for word in between):
            ends = (reaches[index + 1], phrases[index + 1][1])
            reaches[index] = next((end for end in ends if end - first <= EXPRESSION), last)
    return reaches


def _decode(chances: np.ndarray, lengths: Sequence[int]) -> list[list[tuple[int, int]]]:
    """The likeliest lawful places of each sequence (Viterbi, over all at once), as word ranges of its phrases.

    Args:
        chances: log-probabilities of the places, [word, place], all sequences in a row.
        lengths: how many words each has.
    """
    allowed = np.array([[0.0 if b in FOLLOWERS[a] else NEVER for b in PLACES] for a in PLACES], np.float32)
    counts = np.array(lengths)
    inside = np.arange(counts.max()) < counts[:, None]
    grid = np.zeros((*inside.shape, len(PLACES)), np.float32)
    grid[..., :-1] = NEVER  # behind the end all is outside, so that no phrase runs over it
    grid[inside] = chances
    score = grid[:, 0] + [0.0, NEVER, NEVER, 0.0, 0.0]
    steps: list[np.ndarray] = []
    for column in range(1, grid.shape[1]):
        ways = score[:, :, None] + allowed
        steps.append(ways.argmax(1))
        score = ways.max(1) + grid[:, column]
    path = np.zeros(inside.shape, int)
    path[:, -1] = (score + [NEVER, NEVER, 0.0, 0.0, 0.0]).argmax(1)
    for column in range(grid.shape[1] - 1, 0, -1):
        path[:, column - 1] = steps[column - 1][np.arange(len(path)), path[:, column]]
    rows, firsts = np.nonzero(np.isin(path, [0, 3]) & inside)
    lasts = np.nonzero(np.isin(path, [2, 3]) & inside)[1] + 1
    found: list[list[tuple[int, int]]] = [[] for _ in lengths]
    for row, first, last in zip(rows.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        found[row].append((first, last))
    return found


def plain(caption: str) -> Plain:
    """Markup, control characters and halves of letters become spaces, and spaces single ones."""
    if not isinstance(caption, str):
        raise GlipError(f"caption {caption!r} is no text: pass a string")
    if not ROUGH.search(caption):
        return Plain(caption, range(len(caption)))
    text = ODD.sub(" ", MARKUP.sub(lambda match: " " * len(match[0]), caption))
    words = [(match.start(), match[0]) for match in re.finditer(r"\S+", text)]
    places = [place for start, word in words for place in range(start, start + len(word) + 1)]
    return Plain(" ".join(word for _, word in words), places)


def _pieces(text: str) -> list[str]:
    """A text cut so that no piece is longer than PIECE, and no sentence, else no word is cut where that can be helped.

    The pieces together are the text.
    """
    pieces: list[str] = []
    start = 0
    while len(text) - start > PIECE:
        part = text[start : start + PIECE + 1]
        ends = [match.end() for match in re.finditer(r"[.!?] ", part)] or [part.rfind(" ") + 1]
        start += ends[-1] or PIECE
        pieces.append(part[: ends[-1] or PIECE])
    return [*pieces, text[start:]]


def _join(read: Plain, parts: list[_Found]) -> Reading:
    """The pieces of a caption, together again."""
    words: list[str] = []
    spans: list[Span] = []
    phrases: list[tuple[int, int]] = []
    reaches: list[int] = []
    start = 0
    for part in parts:
        first, text = len(words), part.doc.text
        phrases += [(a + first, b + first) for a, b in part.phrases]
        reaches += [reach + first for reach in part.reaches]
        for place, length in part.doc.to_array(["IDX", "LENGTH"]).tolist():
            words.append(text[place : place + length].lower())
            spans.append(read.span(start + place, start + place + length))
        start += len(text)
    return Reading(tuple(words), tuple(spans), tuple(phrases), tuple(reaches))


def _undetermined(words: Sequence[str], first: int, last: int) -> int:
    """Where a phrase begins without its determiners and possessive pronouns (last, if nothing else is in it)."""
    while first < last and (words[first] in DETERMINERS or not any(letter.isalnum() for letter in words[first])):
        first += 1
    return first
