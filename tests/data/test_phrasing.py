"""Captions written for detection sets: what is shown is named, within the budget, in an order that says nothing."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import VOCABULARY

from glip.data.phrasing import Phrasing, foreign_names, phrase
from glip.structures import Prompt, Sample
from glip.text.tokens import Tokenizer

tokenizer = cache(lambda: Tokenizer(VOCABULARY))
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
]
FOREIGN = ("zebra", "blue whale", "chess board", "hydroelectricity")
ALL = Phrasing(max_names=85, max_tokens=256, full_vocabulary=1.0)


def count_tokens(caption: str) -> int:
    return len(tokenizer()(caption).ids)


def sample_of(vocabulary, shown) -> Sample:
    boxes = torch.tensor([[index, 0, index + 5, 9] for index in range(len(shown))], dtype=torch.float32).reshape(-1, 4)
    return Sample(Path("none.png"), boxes, tuple((index,) for index in shown), vocabulary=tuple(vocabulary))


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def cases(draw):
    vocabulary = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9, unique=True))
    shown = draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=6))
    how = Phrasing(
        max_names=draw(st.integers(1, 10)),
        max_tokens=draw(st.integers(14, 60)),
        full_vocabulary=draw(st.sampled_from([0.0, 0.5, 1.0])),
        borrow=draw(st.sampled_from([0.0, 1.0])),
        foreign=draw(st.sampled_from([(), FOREIGN])),
    )
    return sample_of(vocabulary, shown), how, draw(st.integers(0, 999))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_captions_keep_their_promises(case):
    sample, how, seed = case
    made = phrase(sample, how, count_tokens, rng(seed))
    prompt = made.prompt
    assert all(prompt.caption[start:end] == p.text for p in prompt.phrases for start, end in p.spans)
    assert count_tokens(prompt.caption) <= how.max_tokens and len(prompt.phrases) <= how.max_names
    assert len(set(prompt.texts)) == len(prompt.texts)
    assert set(prompt.texts) <= {*sample.vocabulary, *how.foreign}
    present = {sample.vocabulary[number] for (number,) in sample.box_phrases}
    if len(present) <= how.max_names and sum(count_tokens(name) - 1 for name in present) <= how.max_tokens - 2:
        assert present <= set(prompt.texts)
        assert torch.equal(made.boxes, sample.boxes)
    kept = [index for index, (number,) in enumerate(sample.box_phrases) if sample.vocabulary[number] in prompt.texts]
    assert torch.equal(made.boxes, sample.boxes[kept])
    named = [prompt.texts[number] for (number,) in made.box_phrases]
    assert named == [sample.vocabulary[sample.box_phrases[index][0]] for index in kept]
    again = phrase(sample, how, count_tokens, rng(seed))
    assert again.prompt == prompt and again.box_phrases == made.box_phrases


def test_order_gives_nothing_away():
    sample = sample_of(WORDS, [0])
    places = [phrase(sample, ALL, count_tokens, rng(seed)).prompt.texts.index("cat") for seed in range(60)]
    assert set(places) == set(range(len(WORDS)))


def test_absent_names_come_in_random_number():
    sample, some = sample_of(WORDS, [0]), replace(ALL, full_vocabulary=0.0)
    lengths = {len(phrase(sample, some, count_tokens, rng(seed)).prompt.phrases) for seed in range(80)}
    assert lengths == set(range(1, len(WORDS) + 1))
    empty = sample_of(WORDS, [])
    assert {len(phrase(empty, some, count_tokens, rng(seed)).prompt.phrases) for seed in range(80)} >= {1, 9}


def test_a_name_that_does_not_fit_makes_way_for_those_that_do():
    long = "a name of far too many words to be of any use to anyone who reads it"
    sample = sample_of(["cat", long, "dog"], [0, 1, 2, 1])
    for seed in range(12):
        made = phrase(sample, replace(ALL, max_tokens=10), count_tokens, rng(seed))
        assert set(made.prompt.texts) == {"cat", "dog"}
        assert made.boxes[:, 0].tolist() == [0, 2]


def test_names_the_tokenizer_cannot_read_are_left_out():
    made = phrase(sample_of(["cat", "\u200b", "\ufffd"], [0, 1]), ALL, count_tokens, rng())
    assert made.prompt.texts == ("cat",) and len(made.boxes) == 1


def test_no_name_fits():
    with pytest.raises(ValueError, match="no name of 'anaesthesiologist' fits a caption of 4 tokens"):
        phrase(sample_of(["anaesthesiologist"], [0]), replace(ALL, max_tokens=4), count_tokens, rng())


def test_two_categories_of_one_name_are_one_phrase():
    made = phrase(sample_of(["cat", "dog", "cat"], [0, 2, 1]), ALL, count_tokens, rng())
    assert sorted(made.prompt.texts) == ["cat", "dog"]
    assert made.box_phrases[0] == made.box_phrases[1] != made.box_phrases[2]


def test_borrowed_names_are_surely_absent():
    own, others = ["red Bus", "traffic-light"], ["bus stop", "Light", "red", "cat", "Cat tree", "cat"]
    assert foreign_names(own, others) == ("cat", "Cat tree")
    how = replace(ALL, borrow=1.0, foreign=FOREIGN)
    made = [phrase(sample_of(WORDS, [0]), how, count_tokens, rng(seed)) for seed in range(30)]
    assert all(set(sample.prompt.texts) & set(FOREIGN) for sample in made)
    assert {len(set(sample.prompt.texts) & set(FOREIGN)) for sample in made} == {1, 2, 3, 4}


def test_a_caption_set_is_left_alone():
    sample = replace(sample_of(["x"], [0]), prompt=Prompt.from_names(["cat"]))
    assert phrase(sample, ALL, count_tokens, rng()) is sample
