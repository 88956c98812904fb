"""The drawn world: the same seed draws the same image, and its words are true of it by construction."""

import numpy as np
import pytest
from PIL import ImageChops

from glip.data.icons import COLOURS, KINDS, TEXTURES
from glip.data.world import Drawings, Thing, World, draw_sample, draw_scene
from glip.data.world_words import (
    COUNTS,
    RELATIONS,
    SIZES,
    SYNONYMS,
    Dialect,
    Seen,
    caption,
    is_novel,
    is_novel_relation,
    names,
)
from glip.structures import Sample

SEEDS = range(40)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample(seed) for seed in SEEDS]


def same(first: Sample, second: Sample) -> bool:
    images = ImageChops.difference(first.image, second.image).getbbox() is None
    words = (first.vocabulary, first.prompt, first.box_phrases) == (
        second.vocabulary,
        second.prompt,
        second.box_phrases,
    )
    return images and words and first.boxes.equal(second.boxes)


def test_seed_determines_the_sample(samples):
    for seed in SEEDS:
        assert same(samples[seed], draw_sample(seed)), seed
    sizes = {sample.image.size for sample in samples}
    assert len(sizes) > 20, "different seeds draw different images"


def test_boxes_lie_inside_the_image(samples):
    for sample in samples:
        width, height = sample.image.size
        assert sample.boxes.shape == (len(sample.box_phrases), 4) and len(sample.boxes)
        x0, y0, x1, y1 = sample.boxes.unbind(1)
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
        assert (x1 - x0 >= 3).all() and (y1 - y0 >= 3).all(), sample.image_id


def test_every_box_has_a_name(samples):
    for sample in samples:
        assert (sample.prompt is None) == bool(sample.vocabulary)
        names = sample.prompt.texts if sample.prompt else sample.vocabulary
        for row in sample.box_phrases:
            assert len(row) == 1 and 0 <= row[0] < len(names)


def test_spans_say_the_phrase(samples):
    for sample in samples:
        for phrase in sample.prompt.phrases if sample.prompt else ():
            ((start, end),) = phrase.spans
            assert sample.prompt.caption[start:end] == phrase.text
            assert phrase.text == phrase.text.strip()


def test_every_mention_has_its_boxes(samples):
    for sample in samples:
        for index, phrase in enumerate(sample.prompt.phrases if sample.prompt else ()):
            boxes = sum(row == (index,) for row in sample.box_phrases)
            numbers = [number for number, word in enumerate(COUNTS) if word in phrase.text.split()]
            assert boxes == numbers[0] if numbers else boxes >= 1


def test_names_are_distinct_and_some_absent(samples):
    for sample in samples:
        assert len(set(sample.vocabulary)) == len(sample.vocabulary)
        if sample.vocabulary:
            assert len({row[0] for row in sample.box_phrases}) < len(sample.vocabulary)


def test_absent_names_are_absent():
    """A vocabulary names each thing of the image by one trait set, so two names that fit one thing cannot both be."""
    things = [Thing("star", "red", "plain", (0, 0, 20, 20)), Thing("star", "blue", "striped", (0, 0, 90, 90))]
    seen = [Seen(things[0], things[0].box, "small"), Seen(things[1], things[1].box, "big")]
    plain = Dialect({}, "", True)
    for seed in range(60):
        vocabulary, labels = names(seen, plain, np.random.default_rng(seed))
        true = {"star", "red star", "blue star", "red thing", "blue thing", "plain star", "striped star", "shape"}
        true |= {"small star", "big star", "small red star", "big blue star", "plain red star", "striped blue star"}
        true |= {"plain thing", "striped thing", "something red", "something blue"}
        assert true & set(vocabulary) == {vocabulary[label] for label in labels}


def invented(rng: np.random.Generator) -> Seen:
    x, y = rng.integers(0, 250, 2).tolist()
    kind, colour = str(rng.choice(["star", "key"])), str(rng.choice(["red", "blue"]))
    thing = Thing(kind, colour, str(rng.choice(["plain", "dotted"])), (x, y, x + 40, y + 30))
    return Seen(thing, thing.box, str(rng.choice(SIZES)))


def test_a_mention_holds_all_it_is_true_of():
    """Read the captions back: without a superlative, the things of a phrase are all that have its traits."""
    plain, checked = Dialect({}, "", True), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        seen = [invented(rng) for _ in range(7)]
        prompt, rows = caption(seen, (300, 300), plain, rng)
        for index, text in enumerate(prompt.texts):
            traits = {word.removesuffix("s") for word in text.split()} - {"a", "the", "thing", *COUNTS}
            known = [{*one.traits().values()} - {"plain", "medium"} for one in seen]
            mine = [i for i, row in rows.items() if row == index]
            if traits <= set().union(*known):
                checked += 1
                assert sorted(mine) == [i for i, one in enumerate(known) if traits <= one], (seed, text)
            else:
                assert len(mine) == 1 and text.startswith("the "), (seed, text)
    assert checked > 60


def test_captions_that_know_sides_say_left_or_right(samples):
    """Flipping an image looks for these two words, so no other word may name a side."""
    words = {word for sample in samples if sample.prompt for word in sample.prompt.caption.split()}
    assert not words & {"leftmost", "rightmost", "west", "east"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_fills_its_box(kind):
    box = (30.0, 40.0, 150.0, 130.0)
    bare = np.asarray(draw_scene([], (200, 180), 3), dtype=int)
    drawn = np.asarray(draw_scene([Thing(kind, "purple", "plain", box, angle=8)], (200, 180), 3), dtype=int)
    changed = np.abs(drawn - bare).max(2) > 24
    columns, rows = np.flatnonzero(changed.any(0)), np.flatnonzero(changed.any(1))
    assert np.allclose((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), box, atol=2)


def test_every_look_can_be_drawn():
    things = [Thing("heart", c, t, (4, 4, 40, 40)) for c in COLOURS for t in TEXTURES]
    assert draw_scene(things, (48, 44), 0).size == (48, 44)


def test_unknown_kind_and_colour_are_explained():
    with pytest.raises(ValueError, match="kind 'dragon'"):
        draw_scene([Thing("dragon", "red", "plain", (0, 0, 9, 9))], (20, 20), 0)
    with pytest.raises(ValueError, match="colour 'mauve'"):
        draw_scene([Thing("star", "mauve", "plain", (0, 0, 9, 9))], (20, 20), 0)


# ---- held-out combinations


NOTIONS = {word: notion for notion, words in SYNONYMS.items() for word in words}


def traits_of(text: str) -> dict[str, str]:
    """The colour, texture and kind that a name says, read back from its words."""
    for word, notion in NOTIONS.items():
        text = f" {text} ".replace(f" {word} ", f" {notion} ").strip()
    words = text.split()
    found = {"colour": COLOURS, "texture": TEXTURES, "kind": KINDS}
    return {notion: word for notion, values in found.items() for word in values if word in words}


@pytest.mark.parametrize("split", ["train", "seen"])
def test_held_out_combinations_are_never_named(split):
    for seed in range(150):
        sample = draw_sample(seed, World(split, captioned=0.3))
        texts = sample.prompt.texts if sample.prompt else sample.vocabulary
        assert not [text for text in texts if is_novel(traits_of(text))], seed


def test_every_thing_of_the_novel_split_is_held_out():
    asked = 0
    for seed in range(150):
        sample = draw_sample(seed, World("novel", captioned=0.0))
        named = [traits_of(sample.vocabulary[row[0]]) for row in sample.box_phrases]
        assert all("kind" in traits and len(traits) > 1 for traits in named), "a kind alone would not be novel"
        asked += sum(is_novel(traits) for traits in named)
    assert asked > 300, "most are named by what is novel of them"


def test_novel_combinations_have_known_parts():
    pairs = {(c, k): is_novel({"colour": c, "kind": k}) for c in COLOURS for k in KINDS}
    assert 0.10 < sum(pairs.values()) / len(pairs) < 0.15
    assert all(not all(pairs[c, k] for k in KINDS) and any(pairs[c, k] for k in KINDS) for c in COLOURS)
    assert all(not all(pairs[c, k] for c in COLOURS) and any(pairs[c, k] for c in COLOURS) for k in KINDS)
    assert not is_novel({"kind": "star"}) and not is_novel({"colour": "red", "texture": "striped"})


def test_held_out_relations_are_said_in_the_novel_split_only():
    said = {split: 0 for split in ("train", "novel")}
    for split in said:
        for seed in range(250):
            prompt = draw_sample(seed, World(split, captioned=1.0)).prompt
            for first, second in zip(prompt.phrases, prompt.phrases[1:], strict=False):
                words = prompt.caption[first.spans[0][1] : second.spans[0][0]].split()
                between = " ".join(words[:-1] if words[-1:] in (["a"], ["an"], ["the"]) else words)
                for relation in (word for words in RELATIONS for word in words if word == between):
                    kinds = {"kind": K} if (K := kind_of(first.text)) else {}
                    other = {"kind": K} if (K := kind_of(second.text)) else {}
                    novel = is_novel_relation(kinds, relation, other)
                    said[split] += novel
                    assert split == "novel" or not novel, prompt.caption
    assert said["novel"] > 5


def kind_of(text: str) -> str:
    """The kind of a mention in the singular, if it says one."""
    return traits_of(text).get("kind", "")


def test_splits_draw_different_images():
    first = [draw_sample(3, World(split)).image for split in ("train", "seen")]
    assert first[0].size != first[1].size or ImageChops.difference(*first).getbbox()


def test_drawings_are_a_set():
    drawings = Drawings(World("seen", sides=(80, 90)), 5)
    assert len(drawings) == 5 and same(drawings[4], draw_sample(4, World("seen", sides=(80, 90))))
    assert [sample.image_id for sample in drawings] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        drawings[5]
    assert drawings[4] is drawings[4] and Drawings(World("seen", sides=(80, 90)))[4] is not drawings[4]
