"""Captions -> their noun phrases, as characters: what a free sentence asks a grounding model to find.

The bundled pipeline is a small tagger (its card: glip/assets/phrases/README.md), nothing is downloaded; any spaCy
pipeline with a parser can replace it. spaCy is imported when the first finder is made.
"""

import html
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from glip.errors import GlipError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.tokens import Span as Chunk

Span = tuple[int, int]  # characters or words [start, end)

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "phrases"
TAGGER = "phrases"  # the component that pipelines of tools/train_phrases.py have; others give their noun_chunks
BATCH = 32  # captions; so few stay in the processor's cache
NEW_WORDS = 200_000  # new words after which the pipeline is loaded again, to bound memory
PIECE = 1000  # characters that are read at once; a longer caption is cut at the end of a sentence, or at a space
EXPRESSION = 12  # words of a referring expression at most; a longer one stays a phrase

WORDS = {
    "determiners": "a an the this that these those some any each every all both either neither another such what which "
    "whose my your his her its our their several many few thier it 's",  # the last as captions misspell them
    "ties": "of in on at with near by under over behind beside next to above below inside outside against along around "
    "across between among beneath underneath atop upon onto into from front top wearing holding carrying",
}
DETERMINERS, TIES = (frozenset(words.split()) for words in WORDS.values())
# HTML tags by name: CC12M's "<PERSON>" and "<3" are none.
TAGS = (
    "a|abbr|audio|b|big|blockquote|body|br|button|center|code|div|em|embed|font|form|h[1-6]|head|hr|html|i|iframe|img|"
    "input|li|link|meta|object|ol|p|pre|q|s|script|small|source|span|strong|style|sub|sup|table|tbody|td|th|tr|tt|u|ul|"
    "video"
)
ENTITY = r"&(?:[a-z]{2,8}\d?|#\d{1,7}|#x[0-9a-f]{1,6});"
MARKUP = re.compile(rf"</?(?:{TAGS})(?:\s[^<>]{{0,500}}|/)?>|<!--.{{0,500}}?-->|{ENTITY}", re.IGNORECASE)
# What the web writes among words and no image shows: addresses, file names, hashtags and handles.
SITES = "com|org|net|edu|gov|info|biz|io|tv|uk|de|fr|ru|jp|cn|eu|nl|au|ca"
FILES = "jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg|psd|pdf|mp4|mov|avi|html?|php|txt"
ADDRESS = re.compile(
    rf"\b(?:\w{{1,9}}://|www\.)\S+|\b[\w.+-]{{1,64}}@[\w-]+\.[\w.-]+|\b(?:[\w-]{{1,63}}\.){{1,4}}(?:{SITES})\b(?:[/?]\S*)?"
    rf"|\b[\w()-]{{1,99}}\.(?:{FILES})\b|\b(?:IMG|DSC[FN]?|PXL|VID)[-_]?\d{{3,}}\w*|(?<!\w)(?:#(?=\d*[^\W\d])|@)\w+",
    re.IGNORECASE,
)
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u2028-\u202e\ufeff]")
ROUGH = re.compile(rf"[<&]|\s\s|[^\S ]|^\s|\s$|{ODD.pattern}")

PLACES = "BIESO"  # of a word in a phrase: beginning, inside, end, single; or outside
NEVER = -1e9


def _only(places: str) -> np.ndarray:
    """What is added to the score of each place, so that only these are taken."""
    return np.array([0.0 if place in places else NEVER for place in PLACES])


START, END = _only("BSO"), _only("ESO")  # places of the first and the last word
NEXT = np.stack([_only("IE" if place in "BI" else "BSO") for place in PLACES])  # [place, place of the next word]


@dataclass(frozen=True)
class Plain:
    """A caption as it is read: words with single spaces; ``places[i]`` is where character i is in the caption."""

    text: str
    places: Sequence[int]


@dataclass(frozen=True)
class Reading:
    """What was found in a caption: its words in lower case, where they are, and phrases as word ranges.

    ``reaches[i]`` is the word where the referring expression of phrase i ends; empty where nothing was parsed.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    phrases: tuple[Span, ...]
    reaches: tuple[int, ...]

    def characters(self, first: int, last: int) -> Span:
        """The characters of a word range in the caption as given."""
        return self.spans[first][0], self.spans[last - 1][1]


class PhraseFinder:
    """Finds the noun phrases of captions.

    A phrase is a noun or a name with what stands before it and belongs to it, without a break: determiners, adjectives,
    nouns, numbers and possessives; and with the rest of a name after it. `chunks` gives them all, `many` and a call
    only what an image can show, each without its determiner ("his hat" -> "hat"), and none whose head is in the list
    of words that are no thing ("view", "a group of"). A phrase that occurs twice is found twice, each with its own
    characters; phrases never overlap.

    Args:
        pipeline: None for the bundled one; else a spaCy pipeline with a parser, by name (``en_core_web_sm``) or folder,
            whose ``noun_chunks`` are taken without pronouns. Also a folder of tools/train_phrases.py.
        drop: words that are no thing, instead of glip/assets/phrases/not_things.txt, in the same form: ``view`` drops
            each phrase that ends so, ``group of`` only where "of" follows, ``=top`` only where it is the whole phrase.
            A string is one such word.
        referring: widen each phrase to its referring expression ("a man in a red shirt"). With a parser these are the
            words below the head, without coordinated ones, and without relative clauses where these make it too long.
            The bundled pipeline joins what prepositions of place, "of", "with", "wearing", "holding" or "carrying"
            tie to the phrase before. At most 12 words; an expression within another one is left out.

    Raises:
        GlipError: a pipeline that is not installed, or that finds no noun phrases.
    """

    def __init__(
        self, pipeline: str | Path | None = None, *, drop: Collection[str] | None = None, referring: bool = False
    ) -> None:
        if drop is None:
            lines = (BUNDLED / "not_things.txt").read_text(encoding="utf-8").splitlines()
            drop = [line.split("#")[0].strip() for line in lines]
        self.drop = frozenset(word.lower() for word in ([drop] if isinstance(drop, str) else drop))
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
        self._read = partial(_tag if TAGGER in nlp.pipe_names else _parse, nlp)
        self._vocabulary, self._known = nlp.vocab, len(nlp.vocab)

    def _readings(self, captions: Iterable[str]) -> Iterator[Reading]:
        waiting = iter([captions] if isinstance(captions, str) else captions)
        while batch := list(islice(waiting, BATCH)):
            read = [plain(caption) for caption in batch]
            pieces = [_pieces(one.text) for one in read]
            found = iter(self._read(list(chain.from_iterable(pieces))))
            yield from (_join(one, islice(found, len(parts))) for one, parts in zip(read, pieces, strict=True))
            if len(self._vocabulary) - self._known > NEW_WORDS:  # spaCy keeps every word that it ever saw
                self._open()

    def _things(self, reading: Reading) -> Iterator[Span]:
        words, reaches = reading.words, [last for _, last in reading.phrases]
        if self.referring:
            reaches = [*reading.reaches] or _linked(words, reading.phrases)
        done = 0
        for (start, last), reach in zip(reading.phrases, reaches, strict=True):
            first = start
            while first < last and (words[first] in DETERMINERS or not any(map(str.isalnum, words[first]))):
                first += 1
            head, has_letters = words[last - 1], any(map(str.isalpha, "".join(words[first:last])))
            is_measure = words[last : last + 1] == ("of",) and f"{head} of" in self.drop
            is_bare = last - first == 1 and f"={head}" in self.drop
            is_dropped = words[start] == "no" or head in self.drop or is_measure or is_bare
            if has_letters and first >= done and not is_dropped:
                done = reach
                yield reading.characters(first, reach)


@cache
def _bundled() -> PhraseFinder:
    return PhraseFinder()


def noun_phrases(caption: str) -> tuple[Span, ...]:
    """The things that a caption names, by the bundled finder: characters [start, end) of it, in reading order."""
    return _bundled()(caption)


# ---- pipelines


class _ParsedPiece(NamedTuple):
    """What was found in a piece of a caption: phrases as word ranges, and where their expressions end, if parsed."""

    doc: "Doc"
    phrases: list[Span]
    reaches: list[int]


def _load(pipeline: str | Path) -> "Language":
    import spacy
    from thinc.api import use_ops

    try:
        with use_ops("numpy", use_blis=False):  # NumPy's own products are about three times as fast as BLIS
            nlp = spacy.load(pipeline)
        if TAGGER not in nlp.pipe_names:
            list(nlp("A cat lies on the mat.").noun_chunks)  # an error where nothing parses, or in other languages
        return nlp
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise GlipError(
            f"spaCy pipeline {str(pipeline)!r} finds no noun phrases ({reason}): give an installed one with a "
            "parser by name (python -m spacy download en_core_web_sm), its folder, or None for the bundled one"
        ) from error


def _tag(nlp: "Language", texts: list[str]) -> list[_ParsedPiece]:
    """The bundled way: the likeliest sequence of places by the tagger's scores."""
    tagger: Any = nlp.get_pipe(TAGGER)
    docs = [nlp.make_doc(text) for text in texts]
    if not any(map(len, docs)):
        return [_ParsedPiece(doc, [], []) for doc in docs]
    place_of_label = np.array([[label[0] == place for place in PLACES] for label in tagger.labels], np.float32)
    scores = np.concatenate(tagger.model.predict(docs))
    chances = np.exp(scores - scores.max(1, keepdims=True)) @ place_of_label
    chances = np.log(chances / chances.sum(1, keepdims=True) + 1e-9)
    phrases = _decode(chances, [len(doc) for doc in docs])
    return [_ParsedPiece(doc, own, []) for doc, own in zip(docs, phrases, strict=True)]


def _parse(nlp: "Language", texts: list[str]) -> list[_ParsedPiece]:
    """The noun chunks of any pipeline with a parser."""
    found = []
    for doc in nlp.pipe(texts):
        chunks = [chunk for chunk in doc.noun_chunks if chunk.root.pos_ != "PRON"]
        found.append(_ParsedPiece(doc, [(chunk.start, chunk.end) for chunk in chunks], list(map(_reach, chunks))))
    return found


def _reach(chunk: "Chunk") -> int:
    """Where the referring expression of a parsed noun chunk ends: its subtree, up to the first part left out."""
    for without in (("conj", "cc", "punct"), ("conj", "cc", "punct", "relcl", "acl:relcl")):
        end = chunk.end
        for child in chunk.root.rights:
            if child.i >= end and child.dep_ in without:
                break
            end = max(end, child.right_edge.i + 1)
        if end - chunk.start <= EXPRESSION:
            return end
    return chunk.end


def _linked(words: Sequence[str], phrases: Sequence[Span]) -> list[int]:
    """Where the referring expression of each phrase ends: words of TIES tie the next phrase to it, and so on."""
    reaches = [last for _, last in phrases]
    for index in range(len(phrases) - 2, -1, -1):
        first, last = phrases[index]
        between = words[last : phrases[index + 1][0]]
        if between and all(word in TIES for word in between):
            ends = (reaches[index + 1], phrases[index + 1][1])
            reaches[index] = next((end for end in ends if end - first <= EXPRESSION), last)
    return reaches


def _decode(chances: np.ndarray, lengths: Sequence[int]) -> list[list[Span]]:
    """The likeliest sequence of places of each text that NEXT allows (Viterbi, all texts at once), as phrases.

    ``chances`` are log-probabilities [word, place], the words of all texts in a row.
    """
    counts = np.array(lengths)
    inside = np.arange(counts.max()) < counts[:, None]
    grid = np.where(np.array(list(PLACES)) == "O", 0.0, NEVER) * np.ones((*inside.shape, 1))  # after the end: outside
    grid[inside] = chances
    score, before = grid[:, 0] + START, list[np.ndarray]()
    for column in range(1, grid.shape[1]):
        steps = score[:, :, None] + NEXT
        before.append(steps.argmax(1))  # the best place of the word before, for each place
        score = steps.max(1) + grid[:, column]
    path = [(score + END).argmax(1)]
    for step in reversed(before):
        path.append(step[np.arange(len(counts)), path[-1]])
    places = np.array(list(PLACES))[np.stack(path[::-1], 1)]
    rows, firsts = np.nonzero(np.isin(places, ["B", "S"]) & inside)
    lasts = np.nonzero(np.isin(places, ["E", "S"]) & inside)[1] + 1
    found: list[list[Span]] = [[] for _ in lengths]
    for row, first, last in zip(rows.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        found[row].append((first, last))
    return found


# ---- captions in pieces


def unescape(caption: str) -> str:
    """A caption of the web with its HTML entities as characters, also where they were escaped twice (&amp;quot;)."""
    for _ in range(2 * ("&" in caption)):
        caption = re.sub(ENTITY, lambda match: html.unescape(match[0]), caption, flags=re.IGNORECASE)
    return caption


def plain(caption: str) -> Plain:
    """Replace markup, control characters and halves of letters by spaces, and spaces by single ones.

    An address, a file name, a hashtag or a handle becomes a comma, which ends the phrase before it.
    """
    if not ROUGH.search(caption) and not ADDRESS.search(caption):
        return Plain(caption, range(len(caption)))
    text = ODD.sub(" ", MARKUP.sub(lambda match: " " * len(match[0]), caption))
    text = ADDRESS.sub(lambda match: ",".ljust(len(match[0])), text)
    words = [(match.start(), match[0]) for match in re.finditer(r"\S+", text)]
    places = [place for start, word in words for place in range(start, start + len(word) + 1)]
    return Plain(" ".join(word for _, word in words), places)


def _pieces(text: str) -> list[str]:
    """Cut a text into pieces of at most PIECE characters: at the end of a sentence, else at a space, else anywhere."""
    pieces, start = list[str](), 0
    while len(text) - start > PIECE:
        part = text[start : start + PIECE + 1]
        ends = [match.end() for match in re.finditer(r"[.!?] ", part)] or [part.rfind(" ") + 1]
        start += ends[-1] or PIECE
        pieces.append(part[: ends[-1] or PIECE])
    return [*pieces, text[start:]]


def _join(read: Plain, parts: Iterable[_ParsedPiece]) -> Reading:
    """The pieces of a caption, together again."""
    words, spans, phrases, reaches, start = list[str](), list[Span](), list[Span](), list[int](), 0
    for part in parts:
        first, text = len(words), part.doc.text
        phrases += [(a + first, b + first) for a, b in part.phrases]
        reaches += [reach + first for reach in part.reaches]
        for place, length in part.doc.to_array(["IDX", "LENGTH"]).tolist():
            words.append(text[place : place + length].lower())
            spans.append((read.places[start + place], read.places[start + place + length - 1] + 1))
        start += len(text)
    return Reading(tuple(words), tuple(spans), tuple(phrases), tuple(reaches))
