"""Captions written for samples: what is shown is named, within the budget, in an order that says nothing."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import VOCABULARY

from glip.data.phrasing import (
    CaptionTooLong,
    ClassPrompt,
    Phrasing,
    PhrasingError,
    build_caption,
    caption_of,
    foreign_names,
    read_prompts,
)
from glip.structures import Prompt, Sample
from glip.text.tokens import Tokenizer, encode_prompts

tokenizer = cache(lambda: Tokenizer(VOCABULARY))
TASKS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lists" / "odinw35_tasks.json"
WORDS = [
    "cat",
    "red bus",
    "traffic light",
    "anaesthesiologist",
    "St. Bernard",
    "7.5 cm",
    "café",
    "knight-errant",
    "dog",
    "Cat",
    "cafe",
]
DIFFERENT = WORDS[:9]
FOREIGN = ("zebra", "blue whale", "chess board", "hydroelectricity")
ALL = Phrasing(max_negatives=85, max_tokens=256, full_vocabulary=1.0)
AROUND = {"dog": ClassPrompt("a ", "dog", " on the porch"), "red bus": ClassPrompt("there is a ", "bus", "")}
NOT_ASKED = "box of a class not exhaustively annotated"
NO_ROOM = "box whose name did not fit the caption"


def count_tokens(caption: str) -> int:
    return len(tokenizer()(caption).ids)


def sample_of(vocabulary, shown, **more) -> Sample:
    boxes = torch.tensor([[index, 0, index + 5, 9] for index in range(len(shown))], dtype=torch.float32).reshape(-1, 4)
    return Sample(Path("none.png"), boxes, tuple((index,) for index in shown), vocabulary=tuple(vocabulary), **more)


def phrased(sample, how=ALL, seed=0, others=()) -> Sample:
    return build_caption(sample, how, count_tokens, np.random.default_rng(seed), others)[0]


def same_words(name: str) -> str:
    return name.lower().replace("é", "e")


@st.composite
def cases(draw):
    vocabulary = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=11, unique=True))
    numbers = st.integers(0, len(vocabulary) - 1)
    how = Phrasing(
        max_negatives=draw(st.integers(0, 10)),
        max_tokens=draw(st.integers(14, 60)),
        full_vocabulary=draw(st.sampled_from([0.0, 0.5, 1.0])),
        borrow=draw(st.sampled_from([0.0, 1.0])),
        foreign=draw(st.sampled_from([(), FOREIGN])),
        prompts=draw(st.sampled_from([{}, AROUND])),
    )
    sample = sample_of(
        vocabulary,
        draw(st.lists(numbers, max_size=6)),
        absent=draw(st.none() | st.lists(numbers, max_size=4).map(tuple)),
        incomplete=draw(st.lists(numbers, max_size=2).map(tuple)),
    )
    return sample, how, draw(st.integers(0, 999))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_captions_keep_their_promises(case):
    sample, how, seed = case
    names, said = sample.vocabulary, lambda number: how.prompts.get(sample.vocabulary[number])
    written = [same_words(prompt.text if (prompt := said(n)) else names[n]) for n in range(len(names))]
    shown = {written[number] for (number,) in sample.box_phrases}
    never = {written[number] for number in sample.incomplete}
    possible = never | shown if sample.absent is None else shown | {written[number] for number in sample.absent}
    possible = (set(written) if sample.absent is None else possible) - never
    borrowing = sample.absent is None and how.borrow and how.foreign and how.max_negatives
    if not possible and not borrowing:
        with pytest.raises(PhrasingError, match="no class that may be asked for"):
            phrased(sample, how, seed)
        return
    made, lost = build_caption(sample, how, count_tokens, np.random.default_rng(seed))
    prompt = made.prompt
    assert all(prompt.caption[start:end] == p.text for p in prompt.phrases for start, end in p.spans)
    assert count_tokens(prompt.caption) <= how.max_tokens
    parts = [same_words(part) for part in parts_of(prompt)]
    assert len(set(parts)) == len(parts), "no name twice"
    assert set(parts) <= possible | set(FOREIGN if sample.absent is None else ())
    absent = set(parts) - shown
    assert len(absent) <= max(how.max_negatives, 0 if shown - never else 1)
    asked = shown - never
    if sum(count_tokens(text) - 1 for text in asked) <= how.max_tokens - 1:
        assert asked <= set(parts), "what is shown comes first in line"
    kept = [index for index, (number,) in enumerate(sample.box_phrases) if written[number] in parts]
    assert torch.equal(made.boxes, sample.boxes[kept])
    assert [parts[number] for (number,) in made.box_phrases] == [written[sample.box_phrases[i][0]] for i in kept]
    gone = [written[number] in never for i, (number,) in enumerate(sample.box_phrases) if i not in kept]
    counts = {NOT_ASKED: gone.count(True), NO_ROOM: gone.count(False)}
    assert lost.counts == {reason: count for reason, count in counts.items() if count}
    encode_prompts(tokenizer(), [prompt], max_tokens=how.max_tokens)  # each phrase has tokens
    again = phrased(sample, how, seed)
    assert again.prompt == prompt and again.box_phrases == made.box_phrases and torch.equal(again.boxes, made.boxes)


def parts_of(prompt: Prompt) -> list[str]:
    """What is written for each phrase, words around a name included."""
    starts = [p.spans[0][0] for p in prompt.phrases]
    for around in AROUND.values():
        starts = [
            start - len(around.prefix)
            if prompt.caption[:start].endswith(around.prefix) and name == around.name
            else start
            for start, name in zip(starts, prompt.texts, strict=True)
        ]
    ends = [start - len(". ") for start in starts[1:]] + [len(prompt.caption)]
    return [prompt.caption[start:end] for start, end in zip(starts, ends, strict=True)]


def test_order_gives_nothing_away():
    sample = sample_of(DIFFERENT, [0])
    places = [phrased(sample, seed=seed).prompt.texts.index("cat") for seed in range(60)]
    assert set(places) == set(range(len(DIFFERENT)))


def test_absent_names_come_in_random_number():
    sample, some = sample_of(DIFFERENT, [0]), replace(ALL, full_vocabulary=0.0)
    lengths = {len(phrased(sample, some, seed).prompt.phrases) for seed in range(80)}
    assert lengths == set(range(1, len(DIFFERENT) + 1))
    few = replace(some, max_negatives=3)
    assert {len(phrased(sample, few, seed).prompt.phrases) for seed in range(40)} == {1, 2, 3, 4}
    assert {len(phrased(sample, replace(few, full_vocabulary=1.0), s).prompt.phrases) for s in range(9)} == {4}


def test_images_without_boxes_are_asked_for_absent_names():
    empty, some = sample_of(DIFFERENT, []), replace(ALL, full_vocabulary=0.0)
    assert {len(phrased(empty, some, seed).prompt.phrases) for seed in range(80)} == set(range(1, 10))
    assert len(phrased(empty, replace(some, max_negatives=0)).prompt.phrases) == 1
    assert phrased(empty).boxes.shape == (0, 4)


def test_a_name_that_does_not_fit_makes_way_for_those_that_do():
    long = "a name of far too many words to be of any use to anyone who reads it"
    sample = replace(sample_of(["cat", long, "dog"], [0, 1, 2, 1]), image_id=7)
    for seed in range(12):
        made, lost = build_caption(sample, replace(ALL, max_tokens=10), count_tokens, np.random.default_rng(seed))
        assert set(made.prompt.texts) == {"cat", "dog"}
        assert made.boxes[:, 0].tolist() == [0, 2]
        assert lost.counts == {NO_ROOM: 2} and lost.places[NO_ROOM] == [f"{long!r} in image 7"] * 2


def test_the_budget_is_used_to_the_last_token():
    exact = count_tokens("cat. red bus. dog")
    sample = sample_of(["cat", "red bus", "dog"], [0, 1, 2])
    assert len(phrased(sample, replace(ALL, max_tokens=exact)).prompt.phrases) == 3
    assert len(phrased(sample, replace(ALL, max_tokens=exact - 1)).prompt.phrases) == 2


def test_names_the_tokenizer_cannot_read_are_left_out():
    made = phrased(sample_of(["cat", "\u200b", "\ufffd"], [0, 1]))
    assert made.prompt.texts == ("cat",) and len(made.boxes) == 1
    how = replace(ALL, prompts={"dog": ClassPrompt("the ", "\u200b", " of a man")})
    assert phrased(sample_of(["cat", "dog"], [0, 1]), how).prompt.texts == ("cat",)


def test_no_name_fits():
    with pytest.raises(PhrasingError, match="no name of 'anaesthesiologist' fits a caption of 4 tokens"):
        phrased(sample_of(["anaesthesiologist"], [0]), replace(ALL, max_tokens=4))


def test_categories_of_the_same_words_are_one_phrase():
    made = phrased(sample_of(["cat", "dog", "Cat "], [0, 2, 1]))
    assert sorted(same_words(text).strip() for text in made.prompt.texts) == ["cat", "dog"]
    assert made.box_phrases[0] == made.box_phrases[1] != made.box_phrases[2]


def test_a_box_of_two_names_answers_to_those_that_are_written():
    sample = replace(sample_of(["cat", "animal", "dog"], [0], incomplete=(1,)), box_phrases=((0, 1),))
    made, lost = build_caption(sample, ALL, count_tokens, np.random.default_rng(0))
    assert [made.prompt.texts[n] for n in made.box_phrases[0]] == ["cat"] and not lost


def test_borrowed_names_share_no_word():
    own, others = ["red Bus", "traffic-light"], ["bus stop", "Light", "red", "cat", "Cat tree", "Cat", "cat"]
    assert foreign_names(own, others) == ("cat", "Cat tree")
    how = replace(ALL, borrow=1.0, foreign=FOREIGN)
    made = [phrased(sample_of(DIFFERENT, [0]), how, seed) for seed in range(30)]
    assert {len(set(sample.prompt.texts) & set(FOREIGN)) for sample in made} == {1, 2, 3, 4}
    full = replace(how, max_negatives=len(DIFFERENT) - 1)
    assert not set(phrased(sample_of(DIFFERENT, [0]), full).prompt.texts) & set(FOREIGN)


def test_federated_sets_ask_only_for_what_was_verified():
    how = replace(ALL, borrow=1.0, foreign=FOREIGN)
    sample = sample_of(DIFFERENT, [0, 1, 2, 1], absent=(3, 8, 0, 2), incomplete=(2, 8))
    made, lost = build_caption(sample, how, count_tokens, np.random.default_rng(0))
    assert set(made.prompt.texts) == {"cat", "red bus", "anaesthesiologist"}
    assert lost.counts == {NOT_ASKED: 1} and made.boxes[:, 0].tolist() == [0, 1, 3]
    assert made.absent is None and made.incomplete == () and made.vocabulary == ()
    with pytest.raises(PhrasingError, match="image 0 has no class that may be asked for"):
        phrased(sample_of(DIFFERENT, [0], absent=(), incomplete=(0,)), how)


def test_class_prompts_are_written_around_the_name():
    prompts = read_prompts({"pothole": "there are some [holes] on the road", "car": {"suffix": " with wheels"}})
    assert prompts == {
        "pothole": ClassPrompt("there are some ", "holes", " on the road"),
        "car": ClassPrompt("", "car", " with wheels"),
    }
    texts = {
        phrased(sample_of(["pothole", "car"], [0, 1]), replace(ALL, prompts=prompts), s).prompt.caption
        for s in range(30)
    }
    assert texts == {
        "there are some holes on the road. car with wheels",
        "car with wheels. there are some holes on the road",
    }
    made = phrased(sample_of(["pothole", "car"], [0, 1]), replace(ALL, prompts=prompts))
    assert [made.prompt.texts[n] for (n,) in made.box_phrases] == ["holes", "car"]
    assert not made.prompt.is_list and caption_of([ClassPrompt("", "a", "")]).is_list


def test_one_name_in_two_surroundings_is_two_phrases():
    prompts = read_prompts({"red": "a red [car]", "blue": "a blue [car]"})
    made = phrased(sample_of(["red", "blue"], [0, 1]), replace(ALL, prompts=prompts))
    assert made.prompt.texts == ("car", "car") and made.box_phrases[0] != made.box_phrases[1]


def test_the_prompts_of_odinw():
    if not TASKS.is_file():
        pytest.skip("no list of ODinW tasks beside the project")
    tasks = {task["task"]: task for task in json.loads(TASKS.read_text())["tasks"] if task["caption_prompt"]}
    assert len(tasks) == 4
    for task in tasks.values():
        names = [category["name"] for category in task["categories"]]
        prompts = read_prompts(dict(zip(names, task["caption_prompt"], strict=True)), names)
        prompt = caption_of([prompts[name] for name in names])
        expected = ". ".join("".join(part.values()) for part in task["caption_prompt"])
        assert prompt.caption == expected
        assert prompt.texts == tuple(part["name"] for part in task["caption_prompt"])
        assert all(prompt.caption[start:end] == p.text for p in prompt.phrases for start, end in p.spans)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (["cat"], r"got \['cat'\]: give a map"),
        ({3: "a [three]"}, "class 3 is no text: write it in quotes"),
        ({"cat": "a cat"}, r"'a cat' needs one pair of \[brackets\]"),
        ({"cat": "[a] [cat]"}, r"needs one pair of \[brackets\]"),
        ({"cat": "a [ ]"}, "class prompt of 'cat': the words that name the thing are empty"),
        ({"cat": {"praefix": "a"}}, "'praefix': 'a' is not expected: give texts for prefix, name and suffix"),
        ({"cat": {"prefix": 7}}, "'prefix': 7 is not expected"),
        ({"cat": 5}, r"class prompt of 'cat': got 5: give a text with \[brackets\]"),
        ({"dog": "a [dog]"}, "no class 'dog' in the set: its names are 'cat', 'red bus'"),
    ],
)
def test_class_prompts_that_cannot_be_read(tree, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(tree, ["cat", "red bus"])


CAPTIONS = ["a man on a horse", "Two dogs play.", "the cat, asleep", "Is it a bus?", "a dog ", "an old tree!"]
NEGATIVES = [Prompt.from_caption(text, [text.strip()]) for text in CAPTIONS]


def captioned(caption="A cat and a dog watch the cat", phrases=("A cat", "a dog", "the cat")) -> Sample:
    prompt = Prompt.from_caption(caption, list(phrases))
    return replace(sample_of([], [0, 1, 2]), prompt=prompt)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["A cat and a dog watch the cat", "A cat. Then a dog, then the cat. ", "A cat! a dog; the cat?"]),
    st.lists(st.sampled_from(NEGATIVES), max_size=8),
    st.integers(16, 60),
    st.integers(0, 999),
)
def test_packed_captions_keep_their_promises(caption, others, max_tokens, seed):
    sample, how = captioned(caption), replace(ALL, pack_captions=5, max_tokens=max_tokens)
    made = phrased(sample, how, seed, others)
    assert made.prompt.texts == sample.prompt.texts and made.box_phrases == sample.box_phrases
    assert torch.equal(made.boxes, sample.boxes)
    shifts = set()
    for before, after in zip(sample.prompt.phrases, made.prompt.phrases, strict=True):
        assert [made.prompt.caption[s:e] for s, e in after.spans] == [caption[s:e] for s, e in before.spans]
        shifts |= {new[0] - old[0] for old, new in zip(before.spans, after.spans, strict=True)}
    (shift,) = shifts
    assert made.prompt.caption[shift : shift + len(caption)] == caption, "the true caption stands there whole"
    assert count_tokens(made.prompt.caption) <= max_tokens and not made.prompt.is_list
    assert all(made.prompt.caption.count(text.strip()) <= 1 for text in CAPTIONS if text != "a dog ")
    assert phrased(sample, how, seed, others).prompt == made.prompt


def test_captions_are_packed_as_often_as_in_the_paper():
    how = replace(ALL, pack_captions=4)
    packed = []
    for seed in range(400):
        text = phrased(captioned(), how, seed, NEGATIVES).prompt.caption
        packed.append(sum(caption.strip() in text for caption in CAPTIONS if caption != "a dog "))
        assert CAPTIONS[5] not in text, "more than pack_captions"
    shares = np.bincount(packed, minlength=5) / len(packed)
    # all four 0.3 + 0.3 / 4, one to three 0.3 / 4 each, none 0.4; four binomial deviations of 400 draws are 0.1
    assert np.allclose(shares, [0.4, 0.075, 0.075, 0.075, 0.375], atol=0.1)
    assert phrased(captioned(), ALL, 0, NEGATIVES).prompt == captioned().prompt, "off"


def test_packed_captions_are_joined_as_sentences():
    how = replace(ALL, pack_captions=2)
    texts = {phrased(captioned(), how, seed, NEGATIVES[:2]).prompt.caption for seed in range(200)}
    own = "A cat and a dog watch the cat"
    assert f"{own}. Two dogs play. a man on a horse" in texts and f"a man on a horse. {own}" in texts
    assert f"Two dogs play. {own}" in texts and own in texts


def test_the_same_caption_is_no_negative():
    same = Prompt.from_caption("a cat AND a dog watch the cat", ["a dog"])
    assert {phrased(captioned(), replace(ALL, pack_captions=1), s, [same]).prompt.caption for s in range(20)} == {
        captioned().prompt.caption
    }


def test_a_caption_over_the_budget_is_an_error_with_its_sizes():
    with pytest.raises(CaptionTooLong, match="caption needs 10 tokens, the model reads 9: shorten it or leave it out"):
        phrased(captioned(), replace(ALL, max_tokens=9))
    assert issubclass(CaptionTooLong, PhrasingError) and issubclass(PhrasingError, ValueError)


def test_a_caption_without_phrases_is_an_error_that_says_what_to_do():
    bare = replace(sample_of([], []), caption="a cat sleeps", image_id="img7")
    with pytest.raises(ValueError, match=r"image img7 \(caption 'a cat sleeps'\) has no phrases .*: find the noun"):
        phrased(bare)
