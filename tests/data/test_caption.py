"""Captions written for samples: what is shown is named, within the limit, in an order that gives nothing away."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, VOCABULARY

from glip.config import DataConfig
from glip.data.caption import CaptionError, caption_from_names, foreign_names, pack_captions, swapped_words
from glip.processor import Processor
from glip.structures import Prompt, Sample
from glip.text.class_prompts import ClassPrompt, read_prompts
from glip.text.tokens import Tokenizer, encode_prompts

tokenizer = cache(lambda: Tokenizer(VOCABULARY))
processor = cache(lambda max_tokens: Processor(replace(TINY, max_tokens=max_tokens), tokenizer()))
DIFFERENT = [
    *("cat", "red bus", "traffic light", "anaesthesiologist"),
    *("St. Bernard", "7.5 cm", "café", "knight-errant", "dog"),
]
WORDS = [*DIFFERENT, "Cat", "cafe"]
FOREIGN = ("zebra", "blue whale", "chess board", "hydroelectricity")
ALL = DataConfig(full_vocabulary=1.0)
SOME = DataConfig(full_vocabulary=0.0)
AROUND = {
    "dog": ClassPrompt(name="dog", prefix="a ", suffix=" on the porch"),
    "red bus": ClassPrompt(name="bus", prefix="there is a "),
}
NOT_ASKED = "box of a class not exhaustively annotated"
NO_ROOM = "box whose name did not fit the caption"


def count_tokens(caption: str) -> int:
    return len(tokenizer()(caption).ids)


def sample_of(vocabulary, shown, **more) -> Sample:
    boxes = torch.tensor([[index, 0, index + 5, 9] for index in range(len(shown))], dtype=torch.float32).reshape(-1, 4)
    return Sample(Path("none.png"), boxes, tuple((index,) for index in shown), vocabulary=tuple(vocabulary), **more)


def built(sample, data=ALL, seed=0, max_tokens=256, prompts=None, foreign=()):
    return caption_from_names(sample, data, processor(max_tokens), np.random.default_rng(seed), prompts or {}, foreign)


def captioned(*args, **more) -> Sample:
    return built(*args, **more)[0]


def texts(*args, **more) -> tuple[str, ...]:
    return captioned(*args, **more).prompt.texts


def same_words(name: str) -> str:
    return name.lower().replace("é", "e")


@st.composite
def cases(draw):
    vocabulary = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=11, unique=True))
    numbers = st.integers(0, len(vocabulary) - 1)
    data = DataConfig(
        max_negatives=draw(st.integers(0, 10)),
        full_vocabulary=draw(st.sampled_from([0.0, 0.5, 1.0])),
        borrow=draw(st.sampled_from([0.0, 1.0])),
    )
    sample = sample_of(
        vocabulary,
        draw(st.lists(numbers, max_size=6)),
        absent=draw(st.none() | st.lists(numbers, max_size=4).map(tuple)),
        incomplete=draw(st.lists(numbers, max_size=2).map(tuple)),
    )
    more = {
        "max_tokens": draw(st.integers(14, 60)),
        "foreign": draw(st.sampled_from([(), FOREIGN])),
        "prompts": draw(st.sampled_from([{}, AROUND])),
        "seed": draw(st.integers(0, 999)),
    }
    return sample, data, more


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_every_caption_holds(case):
    sample, data, more = case
    prompts, max_tokens = more["prompts"], more["max_tokens"]
    written = [same_words(prompts[name].text if name in prompts else name) for name in sample.vocabulary]
    shown = {written[number] for (number,) in sample.box_phrases}
    never = {written[number] for number in sample.incomplete}
    absent = set(written) if sample.absent is None else {written[number] for number in sample.absent}
    possible = (shown | absent) - never
    if not possible and not (sample.absent is None and data.borrow and more["foreign"] and data.max_negatives):
        with pytest.raises(CaptionError, match="no caption can be written"):
            built(sample, data, **more)
        return
    made, lost = built(sample, data, **more)
    prompt = made.prompt
    assert all(prompt.caption[start:end] == p.text for p in prompt.phrases for start, end in p.spans)
    assert count_tokens(prompt.caption) <= max_tokens
    parts = [same_words(part) for part in parts_of(prompt)]
    assert len(set(parts)) == len(parts), "no name twice"
    assert set(parts) <= possible | set(FOREIGN if sample.absent is None else ())
    assert len(set(parts) - shown) <= max(data.max_negatives, 0 if shown - never else 1)
    if sum(count_tokens(text) - 1 for text in shown - never) <= max_tokens - 1:
        assert shown - never <= set(parts), "what is shown comes first in line"
    kept = [index for index, (number,) in enumerate(sample.box_phrases) if written[number] in parts]
    assert torch.equal(made.boxes, sample.boxes[kept])
    assert [parts[number] for (number,) in made.box_phrases] == [written[sample.box_phrases[i][0]] for i in kept]
    gone = [written[number] in never for i, (number,) in enumerate(sample.box_phrases) if i not in kept]
    counts = {NOT_ASKED: gone.count(True), NO_ROOM: gone.count(False)}
    assert lost.counts == {reason: count for reason, count in counts.items() if count}
    encode_prompts(tokenizer(), [prompt], max_tokens=max_tokens)  # each phrase has tokens
    again = captioned(sample, data, **more)
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


def test_order_and_number_of_absent_names_give_nothing_away():
    sample, empty, few = sample_of(DIFFERENT, [0]), sample_of(DIFFERENT, []), replace(SOME, max_negatives=3)
    assert {texts(sample, seed=seed).index("cat") for seed in range(60)} == set(range(len(DIFFERENT)))
    assert {len(texts(sample, SOME, seed)) for seed in range(80)} == set(range(1, len(DIFFERENT) + 1))
    assert {len(texts(sample, few, seed)) for seed in range(40)} == {1, 2, 3, 4}
    assert {len(texts(sample, replace(few, full_vocabulary=1.0), seed)) for seed in range(9)} == {4}
    assert {len(texts(empty, SOME, seed)) for seed in range(80)} == set(range(1, len(DIFFERENT) + 1))
    assert len(texts(empty, replace(SOME, max_negatives=0))) == 1, "an image without boxes is asked for one at least"


def test_names_that_cannot_be_written():
    made = captioned(sample_of(["cat", "\u200b", "\ufffd"], [0, 1]))
    assert made.prompt.texts == ("cat",) and len(made.boxes) == 1
    unread = {"dog": ClassPrompt(name="\u200b", prefix="the ", suffix=" of a man")}
    assert texts(sample_of(["cat", "dog"], [0, 1]), prompts=unread) == ("cat",)
    with pytest.raises(CaptionError, match="'anaesthesiologist' do not fit into 4 tokens"):
        captioned(sample_of(["anaesthesiologist"], [0]), max_tokens=4)


def test_boxes_point_at_the_names_that_are_written():
    made = captioned(sample_of(["cat", "dog", "Cat "], [0, 2, 1]))
    assert sorted(same_words(text).strip() for text in made.prompt.texts) == ["cat", "dog"]
    assert made.box_phrases[0] == made.box_phrases[1] != made.box_phrases[2], "the same words are one phrase"
    sample = replace(sample_of(["cat", "animal", "dog"], [0], incomplete=(1,)), box_phrases=((0, 1),))
    made, lost = built(sample)
    assert [made.prompt.texts[n] for n in made.box_phrases[0]] == ["cat"] and not lost, "one of its two names"


def test_borrowed_names_share_no_word():
    own, others = ["red Bus", "traffic-light"], ["bus stop", "Light", "red", "cat", "Cat tree", "Cat", "cat"]
    assert foreign_names(own, others) == ("cat", "Cat tree")
    sample, data = sample_of(DIFFERENT, [0]), replace(ALL, borrow=1.0)
    assert {len({*texts(sample, data, seed, foreign=FOREIGN)} & {*FOREIGN}) for seed in range(30)} == {1, 2, 3, 4}
    full = replace(data, max_negatives=len(DIFFERENT) - 1)
    assert not {*texts(sample, full, foreign=FOREIGN)} & {*FOREIGN}


def test_class_prompts_are_written_around_the_name():
    prompts = read_prompts(
        {"pothole": "there are some [holes] on the road", "car": {"suffix": " with wheels"}}, ["pothole", "car"]
    )
    sample = sample_of(["pothole", "car"], [0, 1])
    made = [captioned(sample, seed=seed, prompts=prompts) for seed in range(30)]
    parts = ("there are some holes on the road", "car with wheels")
    assert {one.prompt.caption for one in made} == {". ".join(parts), ". ".join(parts[::-1])}
    assert all([one.prompt.texts[n] for (n,) in one.box_phrases] == ["holes", "car"] for one in made)
    same = read_prompts({"red": "a red [car]", "blue": "a blue [car]"}, ["red", "blue"])
    two = captioned(sample_of(["red", "blue"], [0, 1]), prompts=same)
    assert two.prompt.texts == ("car", "car") and two.box_phrases[0] != two.box_phrases[1]


PHRASES = ("A cat", "a dog", "the cat")
OWN = Prompt.from_caption("A cat and a dog watch the cat", list(PHRASES))
CAPTIONS = ["a man on a horse", "Two dogs play.", "the cat, asleep", "Is it a bus?", "a dog ", "an old tree!"]
OTHERS = [Prompt.from_caption(text, [text.strip()]) for text in CAPTIONS]


def packed(own=OWN, others=(), seed=0, max_tokens=256) -> Prompt:
    return pack_captions(own, others, processor(max_tokens), np.random.default_rng(seed))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([OWN.caption, "A cat. Then a dog, then the cat. ", "A cat! a dog; the cat?"]),
    st.lists(st.sampled_from(OTHERS), max_size=8),
    st.integers(16, 60),
    st.integers(0, 999),
)
def test_what_packed_captions_hold(caption, others, max_tokens, seed):
    own = Prompt.from_caption(caption, list(PHRASES))
    made = packed(own, others, seed, max_tokens)
    assert made.texts == own.texts and not made.is_list
    shifts = set()
    for before, after in zip(own.phrases, made.phrases, strict=True):
        assert [made.caption[s:e] for s, e in after.spans] == [caption[s:e] for s, e in before.spans]
        shifts |= {new[0] - old[0] for old, new in zip(before.spans, after.spans, strict=True)}
    (shift,) = shifts
    assert made.caption[shift : shift + len(caption)] == caption, "the own caption is in it, unchanged"
    assert count_tokens(made.caption) <= max_tokens
    assert all(made.caption.count(text.strip()) <= 1 for text in CAPTIONS if text != "a dog ")
    assert packed(own, others, seed, max_tokens) == made


def test_captions_are_packed_as_often_as_in_the_paper():
    texts = [packed(others=OTHERS[:4], seed=seed).caption for seed in range(400)]
    shares = np.bincount([sum(caption in text for caption in CAPTIONS[:4]) for text in texts], minlength=5) / 400
    # all four 0.3 + 0.3 / 4, one to three 0.3 / 4 each, none 0.4; four binomial deviations of 400 draws are 0.1
    assert np.allclose(shares, [0.4, 0.075, 0.075, 0.075, 0.375], atol=0.1)
    assert packed() == OWN, "off"


def test_packed_captions_are_joined_as_sentences():
    made = {packed(others=OTHERS[:2], seed=seed).caption for seed in range(200)}
    own = OWN.caption
    assert f"{own}. Two dogs play. a man on a horse" in made and f"a man on a horse. {own}" in made
    assert f"Two dogs play. {own}" in made and own in made


def test_captions_that_the_model_cannot_read():
    with pytest.raises(CaptionError, match="needs 10 tokens, the model reads 9"):
        packed(max_tokens=9)
    with pytest.raises(CaptionError, match="reads no word"):
        packed(Prompt.from_caption("a star \u200b", [(2, 6), (7, 8)]))


def test_hard_negatives_are_names_that_share_a_word():
    vocabulary = ["red car", "blue car", "red house", "dog", "cat", "bus", "cow", "owl"]
    sample, data = sample_of(vocabulary, [0]), DataConfig(full_vocabulary=1.0, max_negatives=3, hard_negatives=0.6)
    for seed in range(20):
        assert {"blue car", "red house"} < set(texts(sample, data, seed))
    plain = replace(data, hard_negatives=0.0)
    assert any("blue car" not in texts(sample, plain, seed) for seed in range(20))


@pytest.mark.parametrize(
    ("caption", "phrases", "swapped"),
    [
        ("a red car near a blue house.", ["a red car", "a blue house"], "a red house near a blue car."),
        ("red car, blue house", ["red car", "blue house"], "red house, blue car"),
        ("a car and the house", ["a car", "the house"], ""),  # the same things
        ("a red car and a red house", ["a red car", "a red house"], ""),
        ("a car and a blue house", ["car", "a blue house"], ""),  # "car" has no other word
    ],
)
def test_nouns_of_two_phrases_are_exchanged(caption, phrases, swapped):
    own = Prompt.from_caption(caption, phrases)
    assert swapped_words(own, np.random.default_rng(0)) == swapped


def test_a_swapped_copy_is_a_negative():
    own = Prompt.from_caption("a red car and a blue house", ["a red car", "a blue house"])
    made = [pack_captions(own, [], processor(256), np.random.default_rng(n), swap_words=1.0) for n in range(9)]
    both = {
        "a red car and a blue house. a red house and a blue car",
        "a red house and a blue car. a red car and a blue house",
    }
    assert {one.caption for one in made} == both
    assert all([one.caption[slice(*p.spans[0])] for p in one.phrases] == ["a red car", "a blue house"] for one in made)
    assert pack_captions(own, [], processor(256), np.random.default_rng(0)) is own
