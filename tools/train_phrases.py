"""Train the bundled phrase finder (glip/assets/phrases) on the UD English treebank, in about five minutes of one core.

    OMP_NUM_THREADS=1 python tools/train_phrases.py ../shared/data/text/ud_english_ewt --out glip/assets/phrases

A word's tag is its place in a noun phrase (B, I, E, S or O) and its part of speech, as in "B-DET I-ADJ E-NOUN"; the
phrases are read off the trees by the rule in ``gold_spans``. One small convolutional network learns the tags and, only
while it is trained, the treebank's fine tags and relations. With it go captions whose phrases a person marked
(train_phrases.jsonl, from lines 1001 to 1400 of COCO captions): of these only the places are learned. The folder is in
spaCy's own form: settings as text, weights as msgpack. All was chosen on dev; ``--test`` scores a finished folder.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Adam, Model, NumpyOps, Softmax_v2, set_current_ops, set_dropout_rate, warmup_linear

from glip.files import read_jsonl
from glip.structures import Span
from glip.text.phrases import PLACES, TAGGER, PhraseFinder, plain

CAPTIONS = Path(__file__).with_suffix(".jsonl")
REPEATS = 3  # of the captions in each round
WIDTH, DEPTH, PIECES = 96, 4, 2
ROWS = {"NORM": 3500, "PREFIX": 500, "SUFFIX": 1500, "SHAPE": 500}
LOWER, NO_DOT, UNKNOWN = 0.2, 0.3, 0.1  # how often a text is lower-cased, loses its dot; a rare word becomes unknown
RARE = 20  # times in the treebank
WORDS, DROPOUT, RATE = 1000, 0.15, 0.002  # of a step
SHARES = (1.0, 0.5, 0.5)  # of tags, fine tags and relations in the loss
HEADS = {"NOUN", "PROPN"}  # pronouns and bare numbers name no thing
LEFT = {"det", "amod", "compound", "nummod"}  # with their subtypes; and nmod:poss
META = {"name": "phrases", "version": "1.0.0", "license": "CC BY-SA 4.0", "spacy_version": ">=3.8,<4.0"}


def main() -> None:
    """Train and score on dev after each round; or score on test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("treebank", type=Path, help="the folder of en_ewt-ud-{train,dev,test}.conllu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--test", action="store_true", help="only score the folder on test")
    args = parser.parse_args()
    if args.test:
        print(f"test F1 {score(args.out, args.treebank / 'en_ewt-ud-test.conllu'):.4f}")
        return
    random.seed(0)
    np.random.seed(0)
    set_current_ops(NumpyOps(use_blis=False))
    nlp = spacy.blank("en", meta=META)
    trees = [prepare(item) for item in read_conllu(args.treebank / "en_ewt-ud-train.conllu")]
    marked = (Labelled(row["caption"], tuple(map(tuple, row["spans"]))) for row in read_jsonl(CAPTIONS))
    captions = [prepare(item) for item in marked] * REPEATS
    known = [example(nlp, item) for item in trees]
    names = [sorted({name for one in known for name in one.labels[task]} - {"", *PLACES}) for task in range(3)]
    network = Network(nlp, names, args.rounds * sum(len(one.doc) for one in known) // WORDS)
    counts = Counter(word.norm_ for one in known for word in one.doc)
    for number in range(args.rounds):
        items = random.sample([*trees, *captions], len(trees) + len(captions))
        loss = [network.step(batch) for batch in batches(nlp, items, counts)]
        with network.tagger.use_params(network.optimizer.averages):
            nlp.to_disk(args.out, exclude=["vocab"])  # it holds the treebank's words, which nothing needs
        dev = score(args.out, args.treebank / "en_ewt-ud-dev.conllu")
        print(f"round {number + 1}: loss {np.mean(loss):.4f}, dev F1 {dev:.4f}", flush=True)


# ---- the ground truth: noun phrases read off the trees of a treebank by a rule, or marked by a person in captions


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


def gold_spans(words: Sequence[Word]) -> list[Span]:
    """The noun phrases of a tree, as word ranges [first, last): the outermost, in reading order.

    A noun or proper noun takes each left dependant of the relations in LEFT or nmod:poss whose whole subtree ends where
    the phrase begins, from near to far until one does not fit; and on its right ``flat`` dependants likewise.
    """
    found: list[Span] = []
    for head in (index for index, word in enumerate(words) if word.upos in HEADS):
        first, last = head, head + 1
        own = [index for index, word in enumerate(words) if word.head == head]
        for child in reversed([index for index in own if index < head]):
            inside, relation = _subtree(words, child), words[child].relation
            wanted = relation.split(":")[0] in LEFT or relation == "nmod:poss"
            if not wanted or inside != list(range(inside[0], first)):
                break
            first = inside[0]
        for child in (index for index in own if index > head):
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


# ---- training


@dataclass(frozen=True)
class Example:
    """The words of a text with their tags, fine tags and relations: the whole, the place alone, or "" for unknown."""

    doc: Doc
    labels: tuple[list[str], list[str], list[str]]


def score(folder: Path, path: Path) -> float:
    """F1 of exact spans in the raw sentences of a CoNLL-U file."""
    items = list(read_conllu(path))
    return f1(PhraseFinder(folder).chunks(item.text for item in items), [item.spans for item in items])


def prepare(item: Labelled) -> Labelled:
    """The item as the finder reads it: single spaces, no markup. An empty one where markup hides a word of it."""
    read = plain(item.text)
    new = {place: index for index, place in enumerate(read.places)}
    with suppress(KeyError):
        words = [replace(word, start=new[word.start], end=new[word.end - 1] + 1) for word in item.words]
        return Labelled(read.text, tuple((new[start], new[end - 1] + 1) for start, end in item.spans), tuple(words))
    return Labelled("", ())


def example(nlp: Language, item: Labelled) -> Example:
    """What is to be learned of an item, or of a shorter variant of it."""
    doc = nlp.make_doc(item.text)
    owner = [word.i for word in doc for _ in word.text_with_ws]
    places = ["O"] * len(doc)
    for start, end in (span for span in item.spans if span[0] < len(item.text)):
        first, last = owner[start], owner[min(end, len(item.text)) - 1]
        places[first : last + 1] = ["S"] if first == last else ["B", *"I" * (last - first - 1), "E"]
    tags, fine, relations = places, [""] * len(doc), [""] * len(doc)
    for index, word in enumerate(item.words):
        if word.end <= len(item.text):
            own = owner[word.end - 1]
            tags[own] = f"{tags[own][0]}-{word.upos}"
            fine[own] = word.xpos
            relations[own] = word.relation + ("<" if 0 <= word.head < index else ">")  # and on which side the head is
    return Example(doc, (tags, fine, relations))


def batches(nlp: Language, items: Sequence[Labelled], counts: Counter[str]) -> Iterator[list[Example]]:
    """Steps of about WORDS words, of texts as they are, in lower case or without their dot."""
    batch: list[Example] = []
    for item in items:
        text = item.text.lower() if random.random() < LOWER and len(item.text.lower()) == len(item.text) else item.text
        text = text.removesuffix(".").rstrip() if random.random() < NO_DOT else text
        if text:
            batch.append(example(nlp, replace(item, text=text)))
            for word in batch[-1].doc:
                if counts[word.norm_] <= RARE and random.random() < UNKNOWN:
                    word.norm_ = f"unknown{random.randrange(5000)}"
        if sum(len(one.doc) for one in batch) >= WORDS:
            yield batch
            batch = []
    if batch:
        yield batch


class Network:
    """The pipeline's tagger, and two more outputs on its network that end with the training."""

    def __init__(self, nlp: Language, names: list[list[str]], steps: int) -> None:
        embed = {"width": WIDTH, "attrs": list(ROWS), "rows": list(ROWS.values()), "include_static_vectors": False}
        encode = {"width": WIDTH, "window_size": 1, "maxout_pieces": PIECES, "depth": DEPTH}
        body = {
            "@architectures": "spacy.Tok2Vec.v2",
            "embed": {"@architectures": "spacy.MultiHashEmbed.v2", **embed},
            "encode": {"@architectures": "spacy.MaxoutWindowEncoder.v2", **encode},
        }
        model = {"@architectures": "spacy.Tagger.v2", "tok2vec": body}
        pipe = nlp.add_pipe("tagger", TAGGER, config={"model": model})
        for name in names[0]:
            pipe.add_label(name)  # type: ignore[attr-defined]
        nlp.initialize()
        self.tagger: Model = pipe.model  # type: ignore[attr-defined]
        self.body = self.tagger.get_ref("tok2vec")
        set_dropout_rate(self.body, DROPOUT)
        side = [Softmax_v2(len(group), WIDTH).initialize() for group in names[1:]]
        self.tops = [self.tagger.get_ref("softmax"), *side]
        rate = warmup_linear(RATE, 100, steps + 50)
        self.optimizer = Adam(rate, L2=0.01, grad_clip=1.0, use_averages=True)  # type: ignore[arg-type]
        # What a label allows: itself; a place alone every tag of that place; "" everything.
        labels = {"", *PLACES, *(name for group in names for name in group)}
        self.allowed = [
            {label: np.array([label in ("", name, name[0]) for name in group]) for label in labels} for group in names
        ]

    def _allowed(self, task: int, label: str) -> np.ndarray:
        rows = self.allowed[task]
        return rows[label] if label in rows else rows[label[0]]  # a tag that only the variant of a text has

    def step(self, batch: list[Example]) -> float:
        """Learn from a batch; the loss of its tags per word."""
        outputs, backward = self.body.begin_update([one.doc for one in batch])
        hidden = np.concatenate(outputs)
        slope = np.zeros_like(hidden)
        losses: list[float] = []
        for task, (top, share) in enumerate(zip(self.tops, SHARES, strict=True)):
            chances, back = top.begin_update(hidden)
            wanted = chances * np.stack([self._allowed(task, label) for one in batch for label in one.labels[task]])
            total = wanted.sum(1, keepdims=True) + 1e-9
            slope += back((chances - wanted / total) * np.float32(share / len(hidden)))
            losses.append(-float(np.log(total).mean()))
        backward(np.split(slope, np.cumsum([len(output) for output in outputs])[:-1]))
        self.tagger.finish_update(self.optimizer)
        for top in self.tops[1:]:
            top.finish_update(self.optimizer)
        self.optimizer.step_schedules()
        return losses[0]


if __name__ == "__main__":
    main()
