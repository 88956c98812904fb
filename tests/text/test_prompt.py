"""Prompts know their characters by construction, whatever the names are made of."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip.errors import DataError, GlipError
from glip.text.class_prompts import ClassPrompt, prompt_from_classes, read_prompts
from glip.text.prompt import NEGATIVE, Phrase, Prompt, as_prompts, join_names, join_prompts, split_prompt

NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip), min_size=1)


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
    kept, given = (re.sub(r"[.,\s]", "", letters) for letters in ("".join(prompt.texts), text))
    assert kept == given, "only separators are lost"


@given(st.text(st.sampled_from("ab ,é北"), min_size=2, max_size=30), st.data())
def test_captions_keep_their_characters(caption, data):
    start = data.draw(st.integers(0, len(caption) - 1))
    end = data.draw(st.integers(start + 1, len(caption)))
    prompt = Prompt.from_caption(caption, [(start, end), [(start, end), (0, 1)]])
    assert spans_say_phrases(prompt)
    assert prompt.caption == caption and not prompt.is_list


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
        ("a red house.a tree.a car.", ("a red house", "a tree", "a car")),
        ("dog.stick", ("dog", "stick")),
        ("node.js on shop.com", ("node.js on shop.com",)),
        ("a red house, a tree, a car", ("a red house", "a tree", "a car")),
        ("person,bicycle,car,", ("person", "bicycle", "car")),
        ("a man, a dog, and a bird", ("a man", "a dog", "a bird")),
        ("laptop, mouse, cup and bowl", ("laptop", "mouse", "cup", "bowl")),
        ("a big, old, red car", ("a big, old, red car",)),
        ("a dog stands beside a big red house, a tree", ("a dog stands beside a big red house, a tree",)),
        ("dog; cat, black | bird", ("dog", "cat, black", "bird")),
        ("red house\ntree\r\ncar\\nsun", ("red house", "tree", "car", "sun")),
        ("['a dog', 'a cat, black']", ("a dog", "a cat, black")),
        ('["dog", "cat"]', ("dog", "cat")),
        ("[dog, cat]", ("dog", "cat")),
        ('"a dog"', ("a dog",)),
        ("“a dog”, “a cat”", ("a dog", "a cat")),
        ("'a dog', 'a cat'", ("a dog", "a cat")),
        ("rock 'n' roll", ("rock 'n' roll",)),
        ("salt &amp; pepper. a cup", ("salt & pepper", "a cup")),
        ("[0]", ("[0]",)),
        ("{[]: 1}", ("{[]: 1}",)),
    ],
)
def test_parse(text, names):
    assert Prompt.parse(text).texts == Prompt.from_names(text).texts == names


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda text=text: Prompt.parse(text), "names nothing") for text in ("", " . . ", "...", "\n")),
        *((lambda text=text: Prompt.from_caption(text), "names nothing") for text in ("", "  ", "quickly and often")),
        (lambda: Prompt.from_names([]), "names nothing"),
        (lambda: Prompt.from_caption("a cat", []), "'a cat' names nothing"),
        (lambda: Prompt.from_names(["cat", ""]), "has a phrase '' with the spans .*: write what to look for"),
        (lambda: Prompt.from_names(["cat \udcff"]), "not UTF-8"),
        (lambda: Prompt.from_names(["a", "b"], classes=[0]), "2 phrases and 1 classes"),
        (lambda: Prompt.from_names(["a", "b"], classes=["x", "y"]), "classes: got .*: give a whole number"),
        *(
            (lambda words=words: as_prompts(words), rf"prompt: got {got} \(\w+\): give text such as")
            for words, got in (
                (3, "3"),
                ([1, 2], "1"),
                (["a", None], "None"),
                (b"a", "b'a'"),
                ({"a"}, "{'a'}"),
            )
        ),
        (lambda: Prompt.parse(None), "prompt: got None"),
        (lambda: Prompt.from_synonyms({"dog": [3]}), "prompt: got 3"),
        (lambda: Prompt.from_synonyms({"dog": None}), "prompt: got None"),
        (lambda: Prompt.from_caption(None), "prompt: got None"),
        (lambda: Prompt.from_caption("a dog", [(0.0, 3.7)]), r"phrase \(0.0, 3.7\) does not occur"),
        (lambda: Prompt("a", (Phrase("a", ((0, 1),)),), (0, 1)), "1 phrases and 2 classes"),
        (lambda: Prompt("a cat", (Phrase("cat", ()),)), "phrase 'cat' with the spans"),
        *(
            (lambda span=span: Prompt.from_caption("a cat", [span]), "within the 5 characters of the caption")
            for span in ((-1, 2), (0, 6), (3, 3), (4, 2), (9, 12))
        ),
        *(
            (
                lambda phrase=phrase: Prompt.from_caption("a cat", [phrase]),
                "does not occur in the caption .*: give words of it",
            )
            for phrase in ((), (0, 3, 5), [(0, 3, 5)], 3)
        ),
        (lambda: Prompt.from_caption("a cart", ["car"]), "phrase 'car' does not occur in the caption"),
        (lambda: Prompt.from_caption("a cat", [" "]), "phrase '' with the spans"),
    ],
)
def test_what_is_no_prompt_is_explained(make, message):
    with pytest.raises(GlipError, match=message):
        make()


@pytest.mark.unchecked
def test_prompts_may_come_one_by_one():
    assert [prompt.texts for prompt in as_prompts(words for words in (["a", "b"], "c"))] == [("a", "b"), ("c",)]
    assert [prompt.texts for prompt in as_prompts(name for name in ("a", "b"))] == [("a", "b")]


def test_classes_and_negatives():
    prompt = Prompt.from_names(["cat", "kitten", "dog"], classes=[0, 0, 1], negatives=["fox", "wolf"])
    assert prompt.classes == (0, 0, 1, NEGATIVE, NEGATIVE)
    assert prompt.texts == ("cat", "kitten", "dog", "fox", "wolf")
    assert spans_say_phrases(prompt)
    assert Prompt.from_names(["a"], negatives="bus").texts == ("a", "bus")
    assert Prompt.from_synonyms({"dog": "puppy"}).texts == ("dog", "puppy"), "one synonym, not five letters"


def located(caption: str, *phrases: str) -> list[tuple[int, int]]:
    return [phrase.spans[0] for phrase in Prompt.from_caption(caption, phrases).phrases]


def test_a_word_is_not_found_inside_another():
    caption = "a cart beside a car, a cartoon of a car"
    assert located(caption, "car") == [(16, 19)]
    assert located(caption, "cart", "car", "cartoon", "car") == [(2, 6), (16, 19), (23, 30), (36, 39)]


def test_repeated_words_are_found_in_reading_order():
    caption = "a man and a dog and a man"
    assert located(caption, "a man", "a dog", "a man") == [(0, 5), (10, 15), (20, 25)]
    assert located(caption, "a dog", "a man") == [(10, 15), (20, 25)]
    assert located(caption, "a man", "a man", "a man") == [(0, 5), (20, 25), (0, 5)], "else its first one"


def test_case_and_accents_and_punctuation():
    caption = "The Café's (big) sign: 100% off!"
    assert located(caption, "the café", "(big)", "100%", "off!") == [(0, 8), (11, 16), (23, 27), (28, 32)]
    assert Prompt.from_caption(caption, ["the café"]).texts == ("The Café",)


def test_scripts_without_spaces():
    assert located("街上有一辆红色的汽车", "红色的汽车", "汽车") == [(5, 10), (8, 10)]
    assert located("赤いバスと猫", "バス", "猫") == [(2, 4), (5, 6)]


def test_several_spans_are_one_phrase():
    prompt = Prompt.from_caption("red and blue cars", [[(0, 3), (13, 17)], (8, 17), [[0, 3]]])
    assert prompt.texts == ("red cars", "blue cars", "red")
    assert prompt.phrases[0].spans == ((0, 3), (13, 17))


def test_a_caption_alone_is_asked_for_its_noun_phrases():
    prompt = Prompt.from_caption("A man in a red shirt rides a brown horse beside a man.")
    assert [text.lower().removeprefix("a ") for text in prompt.texts] == ["man", "red shirt", "brown horse", "man"]
    assert spans_say_phrases(prompt) and not prompt.is_list


def test_joined_prompts_keep_their_phrases():
    prompts = [Prompt.from_caption("A dog runs.", ["dog"]), Prompt.from_caption("two cats", ["cats", "two cats"])]
    joined = join_prompts(prompts)
    assert joined.caption == "A dog runs. two cats" and joined.texts == ("dog", "cats", "two cats")
    assert spans_say_phrases(joined) and not joined.is_list
    assert join_prompts(prompts[:1]) is prompts[0]


def test_names_are_joined_with_the_words_around_them():
    prompt = join_names([("there are some ", "holes", " on the road"), ("", "cars", "")])
    assert prompt.caption == "there are some holes on the road. cars" and prompt.texts == ("holes", "cars")
    assert spans_say_phrases(prompt)


@given(NAMES, st.integers(12, 40), st.integers(0, 6) | st.none())
def test_chunks_are_the_whole_in_order(tokenizer, names, limit, max_names):
    def count(caption: str) -> int:
        return len(tokenizer(caption).ids)

    prompt = Prompt.from_names(names, classes=[index // 2 for index in range(len(names))])
    chunks = split_prompt(prompt, count, max_tokens=limit, max_names=max_names)
    assert [text for _, part in chunks for text in part.texts] == names
    assert [number for _, part in chunks for number in part.classes] == list(prompt.classes)
    lengths = [len(part.phrases) for _, part in chunks]
    assert [first for first, _ in chunks] == [sum(lengths[:index]) for index in range(len(chunks))]
    for _, part in chunks:
        assert count(part.caption) <= limit or len(part.phrases) == 1, "one name with too many tokens is left alone"
        assert len(part.phrases) <= (max_names or len(names))
        assert spans_say_phrases(part) and part.is_list


def test_chunks_are_full(tokenizer):
    """A name goes into the next chunk only when it does not fit any more."""
    names = [f"{word} thing" for word in ("red", "blue", "green", "big", "small") * 8]
    chunks = split_prompt(Prompt.from_names(names), lambda text: len(tokenizer(text).ids), max_tokens=32)
    for (_, part), (_, following) in zip(chunks, chunks[1:], strict=False):
        more = Prompt.from_names([*part.texts, following.texts[0]])
        assert len(tokenizer(more.caption).ids) > 32


def test_what_fits_and_captions_stay_whole():
    names, caption = Prompt.from_names(["a", "b"]), Prompt.from_caption("a long caption", ["caption"])
    assert split_prompt(names, len, max_tokens=100) == [(0, names)]
    assert split_prompt(caption, len, max_tokens=3) == [(0, caption)]


# ---- what is written for classes: brackets or parts in a file, the name as the phrase, the rest as context


def test_brackets_and_parts():
    tree = {"pothole": "there are some [holes] on the road", "car": {"suffix": " with wheels"}, 3: "[three]"}
    assert read_prompts(tree, ["pothole", "car", "3"]) == {
        "pothole": ClassPrompt(name="holes", prefix="there are some ", suffix=" on the road"),
        "car": ClassPrompt(name="car", suffix=" with wheels"),
        "3": ClassPrompt(name="three"),
    }


def test_names_without_context_are_a_list_that_may_be_split():
    names = ["cat", "dog"]
    assert prompt_from_classes(names, {}) == Prompt.from_names(names)
    assert prompt_from_classes(names, {"dog": ClassPrompt(name="hound")}) == Prompt.from_names(["cat", "hound"])
    assert not prompt_from_classes(names, {"dog": ClassPrompt(name="dog", prefix="a ")}).is_list


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (["cat"], r"class prompts: got \['cat'\]"),
        ({"cat": "a cat"}, r"'cat': 'a cat' needs one pair of \[brackets\]"),
        ({"cat": "[a] [cat]"}, r"needs one pair of \[brackets\]"),
        ({"cat": {"praefix": "a"}}, "'cat'.praefix: no such key .did you mean 'prefix'"),
        ({"cat": {"prefix": 7}}, "'cat'.prefix: got 7"),
        ({"cat": 5}, "class prompt of 'cat': got 5"),
        ({"rat": "a [rat]"}, "no class 'rat' in the dataset .did you mean 'cat'.*it has 'cat', 'red bus'"),
    ],
)
def test_what_cannot_be_read(tree, message):
    with pytest.raises(DataError, match=message):
        read_prompts(tree, ["cat", "red bus"])
