"""Prompts know their characters by construction, whatever the names are made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip.structures import NEGATIVE, Phrase, Prompt
from glip.text.prompt import clean_name, split_prompt

NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip), min_size=1)
ODD = [
    "7.5 cm",
    "St. Bernard",
    "café",
    "北京烤鸭",
    "🐈",
    "(bat)",
    "!?",
    "electroencephalographically",
    "car",
    "cart",
    "car",
]


def spans_say_phrases(prompt: Prompt) -> bool:
    return all(
        " ".join(prompt.caption[start:end] for start, end in phrase.spans) == phrase.text for phrase in prompt.phrases
    )


@given(NAMES)
def test_names_keep_their_characters(names):
    prompt = Prompt.from_names(names)
    assert spans_say_phrases(prompt)
    assert prompt.texts == tuple(names)
    assert prompt.classes == tuple(range(len(names)))
    assert prompt.is_list


@given(st.text(st.sampled_from("ab .7,é北\n"), max_size=30))
def test_parsed_text_keeps_its_characters(text):
    try:
        prompt = Prompt.parse(text)
    except ValueError as error:
        assert "names nothing" in str(error)
        return
    assert spans_say_phrases(prompt)
    letters = "".join(prompt.texts).replace(".", "")
    assert "".join(letters.split()) == "".join(text.replace(".", "").split()), "nothing is lost"


@given(st.text(st.sampled_from("ab ,é北"), min_size=2, max_size=30), st.data())
def test_captions_keep_their_characters(caption, data):
    start = data.draw(st.integers(0, len(caption) - 1))
    end = data.draw(st.integers(start + 1, len(caption)))
    prompt = Prompt.from_caption(caption, [(start, end), [(start, end), (0, 1)]])
    assert spans_say_phrases(prompt)
    assert prompt.caption == caption and not prompt.is_list


def test_odd_names():
    prompt = Prompt.from_names(ODD)
    assert spans_say_phrases(prompt)
    assert prompt.caption == ". ".join(ODD)
    assert len({phrase.spans for phrase in prompt.phrases}) == len(ODD), "duplicates stay apart"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a red bus. a cyclist", ("a red bus", "a cyclist")),
        ("a . b .", ("a", "b")),
        ("a cat.", ("a cat",)),
        ("a cat...", ("a cat",)),
        ("a cat... a dog", ("a cat", "a dog")),
        (". a .. b", ("a", "b")),
        ("7.5 cm. 12.5 cm rod", ("7.5 cm", "12.5 cm rod")),
        ("v1.2.3", ("v1.2.3",)),
        ("St. Bernard", ("St", "Bernard")),
        ("  cat .\n dog\t. ", ("cat", "dog")),
        ("cat. cat", ("cat", "cat")),
        ("café. 北京. 🐈", ("café", "北京", "🐈")),
        ("dog, black", ("dog, black",)),
    ],
)
def test_parse(text, names):
    assert Prompt.parse(text).texts == names


@pytest.mark.parametrize("text", ["", "  ", ".", " . . ", "...", "\n"])
def test_parse_nothing(text):
    with pytest.raises(ValueError, match=r"names nothing: write what to look for, such as 'a red bus\. a cyclist'"):
        Prompt.parse(text)


def test_parse_is_quick_on_long_white_space():
    assert Prompt.parse("a" + " " * 200_000 + "b").texts[0].startswith("a ")


@pytest.mark.parametrize(("names", "index"), [(["cat", ""], 1), (["  "], 0), (["a", "b", "\t"], 2)])
def test_empty_names_are_errors(names, index):
    with pytest.raises(ValueError, match=f"name {index} of the prompt is empty"):
        Prompt.from_names(names)


def test_no_names_and_a_string_are_errors():
    with pytest.raises(ValueError, match="prompt has no phrase: give at least one name"):
        Prompt.from_names([])
    with pytest.raises(ValueError, match="got the string 'cat': pass a list of names, or use Prompt.parse"):
        Prompt.from_names("cat")
    with pytest.raises(ValueError, match="got the string 'cat': pass a list of the things"):
        Prompt.from_caption("a cat", "cat")


def test_characters_that_are_no_text_are_errors():
    with pytest.raises(ValueError, match="not UTF-8"):
        Prompt.from_names(["cat \udcff"])


def test_classes_and_negatives():
    prompt = Prompt.from_names(["cat", "kitten", "dog"], classes=[0, 0, 1], negatives=["fox", "wolf"])
    assert prompt.classes == (0, 0, 1, NEGATIVE, NEGATIVE)
    assert prompt.texts == ("cat", "kitten", "dog", "fox", "wolf")
    assert spans_say_phrases(prompt)


def test_wrong_classes_are_errors():
    with pytest.raises(ValueError, match="classes: got 1 for 2 names: give one class per name"):
        Prompt.from_names(["a", "b"], classes=[0])
    with pytest.raises(ValueError, match="got -1; classes count from 0, use negatives="):
        Prompt.from_names(["a", "b"], classes=[0, -1])
    with pytest.raises(ValueError, match="classes: got 2 for 1 phrases"):
        Prompt("a", (Phrase("a", ((0, 1),)),), (0, 1))


def box_loss(caption: str, *phrases: str) -> list[tuple[int, int]]:
    return [phrase.spans[0] for phrase in Prompt.from_caption(caption, phrases).phrases]


def test_a_word_is_not_found_inside_another():
    caption = "a cart beside a car, a cartoon of a car"
    assert box_loss(caption, "car") == [(16, 19)]
    assert box_loss(caption, "cart", "car", "cartoon", "car") == [(2, 6), (16, 19), (23, 30), (36, 39)]
    with pytest.raises(ValueError, match="phrase 'ar' does not occur in the caption .*: give words of it, or a span"):
        Prompt.from_caption(caption, ["ar"])


def test_repeated_words_are_found_in_reading_order():
    caption = "a man and a dog and a man"
    assert box_loss(caption, "a man", "a dog", "a man") == [(0, 5), (10, 15), (20, 25)]
    assert box_loss(caption, "a dog", "a man") == [(10, 15), (20, 25)]
    assert box_loss(caption, "a man", "a man", "a man") == [(0, 5), (20, 25), (0, 5)], "else its first one"


def test_case_and_accents_and_punctuation():
    caption = "The Café's (big) sign: 100% off!"
    assert box_loss(caption, "the café", "(big)", "100%", "off!") == [(0, 8), (11, 16), (23, 27), (28, 32)]
    assert Prompt.from_caption(caption, ["the café"]).texts == ("The Café",)


def test_scripts_without_spaces():
    assert box_loss("街上有一辆红色的汽车", "红色的汽车", "汽车") == [(5, 10), (8, 10)]
    assert box_loss("赤いバスと猫", "バス", "猫") == [(2, 4), (5, 6)]


def test_several_spans_are_one_phrase():
    prompt = Prompt.from_caption("red and blue cars", [[(0, 3), (13, 17)], (8, 17), [[0, 3]]])
    assert prompt.texts == ("red cars", "blue cars", "red")
    assert prompt.phrases[0].spans == ((0, 3), (13, 17))


def test_a_caption_alone_is_asked_for_its_noun_phrases(monkeypatch):
    caption = "a man in a red shirt rides a brown horse"
    spans = ((2, 5), (11, 20), (29, 40))
    monkeypatch.setattr("glip.text.phrases.noun_phrases", {caption: spans}.__getitem__)
    prompt = Prompt.from_caption(caption)
    assert prompt == Prompt.from_caption(caption, spans)
    assert prompt.texts == ("man", "red shirt", "brown horse") and spans_say_phrases(prompt) and not prompt.is_list


def test_the_bundled_finder_finds_them():
    texts = Prompt.from_caption("A man in a red shirt rides a brown horse beside a man.").texts
    assert [text.lower().removeprefix("a ") for text in texts] == ["man", "red shirt", "brown horse", "man"]


def test_given_phrases_are_never_looked_for(monkeypatch):
    monkeypatch.delattr("glip.text.phrases.noun_phrases")
    assert Prompt.from_caption("a cat on a mat", ["mat"]).texts == ("mat",)


@pytest.mark.parametrize("caption", ["", "   ", "quickly and often " * 20])
def test_captions_that_name_nothing_are_errors(monkeypatch, caption):
    monkeypatch.setattr("glip.text.phrases.noun_phrases", lambda _: ())
    with pytest.raises(ValueError, match=r"caption '.{0,60}' names nothing: say which things, or use a list of names"):
        Prompt.from_caption(caption)


@pytest.mark.parametrize("span", [(-1, 2), (0, 6), (3, 3), (4, 2), (9, 12)])
def test_spans_outside_are_errors(span):
    with pytest.raises(ValueError, match=r"span \[.*\) lies outside the caption of 5 characters: .* end <= 5"):
        Prompt.from_caption("a cat", [span])


@pytest.mark.unchecked
@pytest.mark.parametrize("phrase", [(), [], (0, 3, 5), [(0, 3, 5)]])
def test_phrases_that_are_nothing_are_errors(phrase):
    with pytest.raises(ValueError, match="is no text and no span: give words"):
        Prompt.from_caption("a cat", [phrase])


def test_empty_phrases_are_errors():
    with pytest.raises(ValueError, match="a phrase of the caption is empty"):
        Prompt.from_caption("a cat", [" "])
    with pytest.raises(ValueError, match="has no phrase"):
        Prompt.from_caption("a cat", [])
    with pytest.raises(ValueError, match="phrase 'cat' has no span"):
        Prompt("a cat", (Phrase("cat", ()),))


@pytest.mark.parametrize(
    ("name", "words"),
    [("bat_(animal)", "bat "), ("stop sign", "stop sign"), ("a_(b)_c_(d)", "a "), ("traffic__light", "traffic light")],
)
def test_clean_name(name, words):
    assert clean_name(name) == words


@given(NAMES, st.integers(12, 40), st.integers(1, 6) | st.none())
def test_chunks_are_the_whole_in_order(tokenizer, names, limit, max_names):
    def count(caption: str) -> int:
        return len(tokenizer(caption).ids)

    prompt = Prompt.from_names(names, classes=[index // 2 for index in range(len(names))])
    try:
        chunks = split_prompt(prompt, count, max_tokens=limit, max_names=max_names)
    except ValueError as error:
        assert "tokens, the model reads" in str(error)
        assert any(count(name) > limit for name in names)
        return
    assert [text for chunk in chunks for text in chunk.prompt.texts] == names
    assert [number for chunk in chunks for number in chunk.prompt.classes] == list(prompt.classes)
    assert [chunk.first for chunk in chunks] == [
        sum(len(c.prompt.phrases) for c in chunks[:i]) for i in range(len(chunks))
    ]
    for chunk in chunks:
        assert count(chunk.prompt.caption) <= limit
        assert len(chunk.prompt.phrases) <= (max_names or len(names))
        assert spans_say_phrases(chunk.prompt) and chunk.prompt.is_list


def test_chunks_are_full(tokenizer):
    """A name goes into the next chunk only when it does not fit any more."""
    names = [f"{word} thing" for word in ("red", "blue", "green", "big", "small") * 8]
    chunks = split_prompt(Prompt.from_names(names), lambda text: len(tokenizer(text).ids), max_tokens=32)
    for chunk, following in zip(chunks, chunks[1:], strict=False):
        more = Prompt.from_names([*chunk.prompt.texts, following.prompt.texts[0]])
        assert len(tokenizer(more.caption).ids) > 32


def test_what_fits_and_captions_stay_whole():
    names, caption = Prompt.from_names(["a", "b"]), Prompt.from_caption("a long caption", ["caption"])
    assert split_prompt(names, len, max_tokens=100)[0].prompt is names
    assert split_prompt(caption, len, max_tokens=3)[0].prompt is caption


def test_a_name_too_long_is_an_error():
    with pytest.raises(ValueError, match="name 'long' needs 42 tokens, the model reads 10: shorten it"):
        split_prompt(Prompt.from_names(["a", "long"]), lambda text: 42 if "l" in text else 3, max_tokens=10)


def test_max_names_below_one_is_an_error():
    with pytest.raises(ValueError, match="max_names 0 is less than 1"):
        split_prompt(Prompt.from_names(["a"]), len, max_tokens=10, max_names=0)
