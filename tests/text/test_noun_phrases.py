"""Noun phrases: the rule, the bundled finder against the truth, cleaning, parsed pipelines, and odd captions."""

import json
from pathlib import Path

import pytest
import spacy
import train_phrases
from hypothesis import given
from hypothesis import strategies as st
from small import ROOT
from spacy.language import Language
from spacy.tokens import Doc

from glip.text import phrases
from glip.text.phrases import BUNDLED, PhraseFinder, noun_phrases

UD = ROOT / ".." / "shared" / "data" / "text" / "ud_english_ewt"
BY_HAND = Path(__file__).with_name("captions_by_hand.jsonl")


@pytest.fixture(scope="module")
def finder() -> PhraseFinder:
    return PhraseFinder()


@pytest.fixture(scope="module")
def referring() -> PhraseFinder:
    return PhraseFinder(referring=True)


def texts(caption: str, find: PhraseFinder) -> list[str]:
    return [caption[start:end] for start, end in find(caption)]


# The rule


def gold(tree: str) -> list[str]:
    """The phrases of a tree written "word/UPOS/head/relation ...", heads counted from 1."""
    rows = [word.split("/") for word in tree.split()]
    words, start = [], 0
    for text, upos, head, relation in rows:
        words.append(train_phrases.Word(start, start + len(text), upos, "", int(head) - 1, relation))
        start += len(text) + 1
    return [" ".join(row[0] for row in rows[a:b]) for a, b in train_phrases.gold_spans(words)]


@pytest.mark.parametrize(
    ("tree", "phrases"),
    [
        (
            "two/NUM/5/nummod very/ADV/3/advmod big/ADJ/5/amod city/NOUN/5/compound buses/NOUN/0/root",
            ["two very big city buses"],
        ),
        ("all/DET/3/det:predet the/DET/3/det dogs/NOUN/0/root", ["all the dogs"]),
        ("the/DET/2/det man/NOUN/4/nmod:poss 's/PART/2/case hat/NOUN/0/root", ["the man 's hat"]),
        ("his/PRON/2/nmod:poss hat/NOUN/0/root", ["his hat"]),
        ("Queen/PROPN/0/root Mary/PROPN/1/flat sails/VERB/1/acl", ["Queen Mary"]),
        (
            "a/DET/2/det man/NOUN/0/root and/CCONJ/4/cc woman/NOUN/2/conj on/ADP/7/case the/DET/7/det sea/NOUN/2/nmod",
            ["a man", "woman", "the sea"],
        ),
        ("a/DET/5/det black/ADJ/5/amod and/CCONJ/4/cc white/ADJ/2/conj dog/NOUN/0/root", ["a black and white dog"]),
        ("a/DET/4/det red/ADJ/4/amod ,/PUNCT/4/punct bus/NOUN/0/root", ["bus"]),
        ("Fred/PROPN/2/nmod:desc Smith/PROPN/0/root", ["Fred", "Smith"]),
        ("he/PRON/2/nsubj sees/VERB/0/root two/NUM/2/obj", []),
    ],
)
def test_the_rule(tree, phrases):
    assert gold(tree) == phrases


# The bundled finder against the truth


def test_captions_by_hand(finder):
    records = [json.loads(line) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    truth = [[tuple(span) for span in record["spans"]] for record in records]
    assert len(records) == 200
    assert train_phrases.f1(finder.chunks(record["caption"] for record in records), truth) >= 0.92


@pytest.mark.skipif(not UD.exists(), reason="the UD English treebank is not beside the project (../shared/data)")
def test_treebank(finder):
    sentences = list(train_phrases.read_conllu(UD / "en_ewt-ud-test.conllu"))
    assert len(sentences) == 2077
    assert train_phrases.f1(finder.chunks(s.text for s in sentences), [s.spans for s in sentences]) >= 0.85


def test_training_and_test_captions_differ():
    own = {json.loads(line)["caption"] for line in (ROOT / "tools" / "train_phrases.jsonl").open(encoding="utf-8")}
    assert not own & {json.loads(line)["caption"] for line in BY_HAND.open(encoding="utf-8")}


def test_asset_is_small_and_plain():
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert not [
        path for path in files if path.read_bytes()[:2] == b"\x80\x04" or path.suffix in (".pkl", ".pickle", ".pt")
    ]
    assert "CC BY-SA 4.0" in (BUNDLED / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in (ROOT / "NOTICE").read_text(encoding="utf-8")


# Cleaning


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("A man in a red shirt rides a brown horse.", ["man", "red shirt", "brown horse"]),
        ("He puts on his hat.", ["hat"]),
        ("A group of people on the beach.", ["people", "beach"]),
        ("A photo of a dog in front of a white house.", ["dog", "white house"]),
        ("A view of the top of a mountain.", ["mountain"]),
        ("The woman wears a red top.", ["woman", "red top"]),
        ("A black and white dog with a ball.", ["black and white dog", "ball"]),
        ("She sees it.", []),
        ("", []),
        ("   ", []),
    ],
)
def test_things(finder, caption, things):
    assert texts(caption, finder) == things


def test_chunks_keep_determiners(finder):
    caption = "A man in a red shirt rides his brown horse."
    assert [caption[a:b] for a, b in finder.chunks([caption])[0]] == ["A man", "a red shirt", "his brown horse"]


def test_what_is_absent_is_not_asked_for(finder):
    assert texts("A street with no cars.", finder) == ["street"]


def test_a_phrase_said_twice_is_found_twice(finder):
    caption = "A dog chases a dog."
    assert finder(caption) == ((2, 5), (15, 18))


def test_many_is_each(finder):
    captions = ["A red bus on a street.", "", "Two cats.", "x" * 3000, "A dog with a ball. " * 200]
    assert finder.many(captions) == [finder(caption) for caption in captions]
    assert finder.many([]) == []
    assert noun_phrases(captions[0]) == finder(captions[0])


def test_the_list_can_be_replaced():
    caption = "A photo of a group of dogs."
    assert texts(caption, PhraseFinder(drop=[])) == ["photo", "group", "dogs"]
    assert texts(caption, PhraseFinder(drop=["Dogs", "=photo"])) == ["group"]
    assert texts(caption, PhraseFinder(drop=["group of"])) == ["photo", "dogs"]


@pytest.mark.parametrize(
    ("caption", "expressions"),
    [
        ("A man in a red shirt rides a brown horse.", ["man in a red shirt", "brown horse"]),
        ("A cat next to a bowl of milk and a dog.", ["cat next to a bowl of milk", "dog"]),
        ("A group of people on a beach.", ["people on a beach"]),
        ("A dog.", ["dog"]),
    ],
)
def test_referring_expressions(referring, caption, expressions):
    assert texts(caption, referring) == expressions


def test_referring_expressions_are_short(referring):
    caption = "A cup" + " on a table near a wall" * 6 + "."
    found = texts(caption, referring)
    assert found[0].startswith("cup on")
    assert all(len(text.split()) <= phrases.EXPRESSION for text in found)


# Parsed pipelines

ANNOTATED = {  # word -> part of speech, head as an offset, relation
    "She": ("PRON", 1, "nsubj"),
    "sees": ("VERB", 0, "ROOT"),
    "a": ("DET", 2, "det"),
    "red": ("ADJ", 1, "amod"),
    "bus": ("NOUN", -3, "dobj"),
    "with": ("ADP", -1, "prep"),
    "wheels": ("NOUN", -1, "pobj"),
    "and": ("CCONJ", -3, "cc"),
    "dogs": ("NOUN", -4, "conj"),
}


@Language.component("annotated_by_hand")
def annotated(doc: Doc) -> Doc:
    rows = [ANNOTATED.get(word.text, ("NOUN", 0, "ROOT")) for word in doc]
    heads = [i + row[1] if i + row[1] < len(doc) else i for i, row in enumerate(rows)]
    words, spaces = [word.text for word in doc], [bool(word.whitespace_) for word in doc]
    return Doc(doc.vocab, words, spaces, pos=[row[0] for row in rows], heads=heads, deps=[row[2] for row in rows])


@pytest.fixture(scope="module")
def parsed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parsed") / "pipeline"
    nlp = spacy.blank("en")
    nlp.add_pipe("annotated_by_hand")
    nlp.to_disk(folder)
    return folder


def test_parsed_pipeline(parsed):
    caption = "She sees  a red bus with wheels and dogs"
    find = PhraseFinder(parsed)
    assert [caption[a:b] for a, b in find.chunks([caption])[0]] == ["a red bus", "wheels", "dogs"]
    assert texts(caption, find) == ["red bus", "wheels", "dogs"]
    assert texts(caption, PhraseFinder(parsed, referring=True)) == ["red bus with wheels", "dogs"]
    assert find("") == ()


def test_pipelines_that_cannot_be_used(tmp_path):
    for language in ("en", "xx"):
        spacy.blank(language).to_disk(tmp_path / language)
    for pipeline in ("en_not_there", tmp_path, tmp_path / "en", tmp_path / "xx"):
        with pytest.raises(ValueError, match=rf"{pipeline}' finds no noun phrases \(.*\): give an installed one"):
            PhraseFinder(pipeline)


def test_a_string_is_one_text(finder):
    assert finder.many("A dog.") == [finder("A dog.")]
    assert PhraseFinder(drop="dog").drop == {"dog"}


# Odd captions


def test_long_captions(finder):
    caption = "A man rides a horse near two dogs. " * 1250
    assert len(caption.split()) == 10_000
    found = finder(caption)
    assert len(found) == 3750
    assert {caption[a:b] for a, b in found} == {"man", "horse", "two dogs"}
    assert len(finder("word" * 25_000)) <= 100
    assert len(finder("a red bus " * 3000)) > 1000


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(phrases, "NEW_WORDS", 100)
    find = PhraseFinder()
    captions = [f"A dog and a zorp{number}." for number in range(400)]
    before = find.many(captions)
    assert len(find._vocabulary) - find._known <= 100 + phrases.BATCH * 2
    assert before == PhraseFinder().many(captions)


WEB = (
    "http://t.co/x",
    "www.x.org/a?b",
    "shop.com",
    "jane.d@home.org",
    "#redkey",
    "@someone",
    "IMG_2034.JPG",
    "DSC_0021",
)


@pytest.mark.parametrize("word", WEB)
def test_addresses_tags_and_file_names_are_no_phrases(finder, word):
    assert texts(f"a red key {word} and a blue bell, see {word} {word}", finder) == ["red key", "blue bell"]
    assert texts(f"{word} {word}", finder) == []


def test_words_that_only_look_like_addresses_stay(finder):
    found = texts("a C# book, a 7.5 cm ruler, a man.The cat, a dog @ the U.S. flag", finder)
    assert found == ["C# book", "7.5 cm ruler", "man", "cat", "dog", "U.S. flag"]


def test_markup_is_not_read(finder):
    assert texts("<p>A <b>red</b> bus<br/>&amp; a&nbsp;dog</p>", finder) == ["red</b> bus", "dog"]
    assert texts("A\tred \r\n bus\x00 on  a\u2028street\ufeff.", finder) == ["red \r\n bus", "street"]


@pytest.mark.parametrize(
    "caption",
    ["\ud800", "a dog \udfff on a mat", "😀🐶 a dog 👩‍👩‍👧", "一只狗在街上", "קלב ברחוב", "&#0;<a", "\x00" * 50],
)
def test_strange_letters(finder, caption):
    for start, end in finder(caption):
        assert 0 <= start < end <= len(caption)
        assert caption[start:end].strip() == caption[start:end]


@given(st.text(st.one_of(st.sampled_from("a dog's <b>&. \n\u200d\ud800😀犬"), st.characters()), max_size=80))
def test_spans_lie_within_any_caption(finder, caption):
    for spans in (finder(caption), finder.chunks([caption])[0]):
        assert all(0 <= a < b <= len(caption) for a, b in spans)
        assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False))
