"""The truth about noun phrases: read off the trees of a UD treebank by a rule, or marked by a person in captions."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glip.structures import Span

HEADS = {"NOUN", "PROPN"}  # pronouns and bare numbers name no thing
LEFT = {"det", "amod", "compound", "nummod"}  # with their subtypes; and nmod:poss


@dataclass(frozen=True)
class Word:
    """A word of a tree: its characters [start, end) of the sentence, and its head's index, -1 for the root."""

    start: int
    end: int
    upos: str
    xpos: str
    head: int
    relation: str


@dataclass(frozen=True)
class Labelled:
    """A text, its noun phrases as characters, and its tree (no words where only the phrases are known)."""

    text: str
    spans: tuple[Span, ...]
    words: tuple[Word, ...] = ()


def read_conllu(path: Path) -> Iterator[Labelled]:
    """The sentences of a CoNLL-U file, each word found in the raw text (written ``don't`` is ``do`` and ``n't``)."""
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        lines = block.split("\n")
        text = next(line for line in lines if line.startswith("# text = "))[len("# text = ") :]
        words: list[Word] = []
        for row in (line.split("\t") for line in lines):
            if row[0].isdigit():
                start = text.index(row[1], words[-1].end if words else 0)
                words.append(Word(start, start + len(row[1]), row[3], row[4], int(row[6]) - 1, row[7]))
        spans = tuple((words[first].start, words[last - 1].end) for first, last in gold_spans(words))
        yield Labelled(text, spans, tuple(words))


def read_captions(path: Path) -> Iterator[Labelled]:
    """Captions with phrases that a person marked: lines {"caption": ..., "spans": [[start, end], ...]}."""
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        yield Labelled(record["caption"], tuple((start, end) for start, end in record["spans"]))


def gold_spans(words: Sequence[Word]) -> list[Span]:
    """The noun phrases of a tree, as word ranges [first, last): the outermost, in reading order.

    A noun or proper noun takes each left dependant of the relations in LEFT or nmod:poss whose whole subtree ends where
    the phrase begins, from near to far until one does not fit; and on its right ``flat`` dependants likewise.
    """
    found: list[Span] = []
    for head in (index for index, word in enumerate(words) if word.upos in HEADS):
        first, last = head, head + 1
        for child in (child for child in range(head - 1, -1, -1) if words[child].head == head):
            inside, relation = _subtree(words, child), words[child].relation
            wanted = relation.split(":")[0] in LEFT or relation == "nmod:poss"
            if not wanted or inside != list(range(inside[0], first)):
                break
            first = inside[0]
        for child in (child for child in range(head + 1, len(words)) if words[child].head == head):
            inside = _subtree(words, child)
            if words[child].relation.split(":")[0] != "flat" or inside != list(range(last, inside[-1] + 1)):
                break
            last = inside[-1] + 1
        found.append((first, last))
    return sorted({a for a in found if not any(a != b and b[0] <= a[0] and a[1] <= b[1] for b in found)})


def _subtree(words: Sequence[Word], top: int) -> list[int]:
    children = (index for index, word in enumerate(words) if word.head == top)
    return sorted([top, *(deep for child in children for deep in _subtree(words, child))])


def f1(found: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> float:
    """F1 of exact spans over all texts."""
    right = sum(len(set(a) & set(b)) for a, b in zip(found, gold, strict=True))
    return 2 * right / (sum(map(len, found)) + sum(map(len, gold)))
