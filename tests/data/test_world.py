"""The drawn world: a seed draws the same image everywhere, its words are true of it, and what is written reads back."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from draw_world import write_world
from drawn_world import words
from drawn_world.icons import COLOURS, KINDS, TEXTURES
from drawn_world.scenes import Thing, World, draw_sample, draw_scene
from PIL import Image

from glip.data.catalog import find_set, read_set
from glip.structures import Sample

GOLDEN = json.loads(Path(__file__).with_name("drawn_world.json").read_text())
FILES = ("names.jsonl", "grounding.json", "captions.jsonl")
PLAIN = words.Dialect({}, "", True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def pixels_digest(image: Image.Image) -> str:
    pixels = np.asarray(image)
    return digest(repr(pixels.shape).encode() + pixels.tobytes())


def digests(sample: Sample) -> str:
    """Of the pixels, the boxes and the words."""
    said = sample.prompt and [sample.prompt.caption, [[one.text, one.spans] for one in sample.prompt.phrases]]
    words = json.dumps([sample.vocabulary, said, sample.box_phrases]).encode()
    return f"{pixels_digest(sample.image)} {digest(sample.boxes.numpy().tobytes())} {digest(words)}"


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: json.dumps(case["world"]))
def test_seeds_draw_what_they_always_drew(case):
    world = World(**{key: tuple(value) if key == "sides" else value for key, value in case["world"].items()})
    assert [digests(draw_sample(case["first"] + n, world)) for n in range(len(case["digests"]))] == case["digests"]


def test_absent_names_are_absent():
    """A vocabulary names each thing by one set of traits, so it cannot have two names that fit one thing."""
    things = [Thing("star", "red", "plain", (0, 0, 20, 20)), Thing("star", "blue", "striped", (0, 0, 90, 90))]
    seen = [words.Seen(thing, thing.box, size) for thing, size in zip(things, ("small", "big"), strict=True)]
    true = {"star", "shape", "small red star", "big blue star", "plain red star", "striped blue star"}
    true |= {f"{look} {noun}" for look in ("red", "blue", "plain", "striped") for noun in ("star", "thing")}
    true |= {"small star", "big star", "something red", "something blue"}
    for seed in range(60):
        vocabulary, labels = words.names(seen, PLAIN, np.random.default_rng(seed))
        assert true & set(vocabulary) == {vocabulary[label] for label in labels}


def invented(rng: np.random.Generator) -> words.Seen:
    x, y = rng.integers(0, 250, 2).tolist()
    kind, colour = str(rng.choice(["star", "key"])), str(rng.choice(["red", "blue"]))
    thing = Thing(kind, colour, str(rng.choice(["plain", "dotted"])), (x, y, x + 40, y + 30))
    return words.Seen(thing, thing.box, str(rng.choice(words.SIZES)))


def test_a_mention_has_all_the_things_it_describes():
    """Read the captions back: without a superlative, the things of a phrase are all that have its traits."""
    checked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        seen = [invented(rng) for _ in range(7)]
        prompt, rows = words.caption(seen, (300, 300), PLAIN, rng)
        assert not {*prompt.caption.split()} & {"leftmost", "rightmost"}, "flips look for left and right only"
        known = [{*one.traits().values()} - {"plain", "medium"} for one in seen]
        for index, text in enumerate(prompt.texts):
            traits = {word.removesuffix("s") for word in text.split()} - {"a", "the", "thing", *words.COUNTS}
            mine = sorted(i for i, row in rows.items() if row == index)
            described = traits <= set().union(*known)
            checked += described
            assert mine == [i for i, one in enumerate(known) if traits <= one] if described else len(mine) == 1, text
    assert checked > 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_fills_its_box(kind):
    box = (30.0, 40.0, 150.0, 130.0)
    bare = np.asarray(draw_scene([], (200, 180), 3), dtype=int)
    drawn = np.asarray(draw_scene([Thing(kind, "purple", "plain", box, angle=8)], (200, 180), 3), dtype=int)
    changed = np.abs(drawn - bare).max(2) > 24
    columns, rows = np.flatnonzero(changed.any(0)), np.flatnonzero(changed.any(1))
    assert np.allclose((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), box, atol=2)


def traits_of(text: str) -> dict[str, str]:
    """The colour, texture and kind that a name says, read back from its words."""
    for notion, others in words.SYNONYMS.items():
        for word in others:
            text = f" {text} ".replace(f" {word} ", f" {notion} ").strip()
    found = {"colour": COLOURS, "texture": TEXTURES, "kind": KINDS}
    return {notion: word for notion, values in found.items() for word in values if word in text.split()}


@pytest.mark.parametrize("split", ["train", "seen"])
def test_held_out_combinations_are_never_named(split):
    for seed in range(60):
        sample = draw_sample(seed, World(split, captioned=0.3))
        texts = sample.prompt.texts if sample.prompt else sample.vocabulary
        assert not [text for text in texts if words.is_novel(traits_of(text))], seed


def test_every_thing_of_the_novel_split_is_held_out():
    samples = [draw_sample(seed, World("novel", captioned=0.0)) for seed in range(60)]
    named = [traits_of(one.vocabulary[row[0]]) for one in samples for row in one.box_phrases]
    assert all("kind" in traits and len(traits) > 1 for traits in named), "a kind alone would not be novel"
    assert sum(map(words.is_novel, named)) > 100


def relations(split: str) -> Iterator[bool]:
    """Of each relation said between two mentions, whether it is held out."""
    for seed in range(100):
        prompt = draw_sample(seed, World(split, captioned=1.0)).prompt
        for first, second in zip(prompt.phrases, prompt.phrases[1:], strict=False):
            said = prompt.caption[first.spans[0][1] : second.spans[0][0]].strip()
            said = said.removesuffix(" a").removesuffix(" an").removesuffix(" the")
            one, other = ({k: v for k, v in traits_of(own.text).items() if k == "kind"} for own in (first, second))
            yield from (words.is_novel_relation(one, said, other) for same in words.RELATIONS if said in same)


def test_held_out_relations_are_said_in_the_novel_split_only():
    assert not any(relations("train")) and sum(relations("novel")) > 5


def test_a_written_set_reads_back(tmp_path):
    write_world(tmp_path / "one", World("seen", sides=(80, 100), plain=True), 6, first=3, format="png")
    write_world(tmp_path / "two", World("seen", sides=(80, 100), plain=True), 6, first=3, format="png", workers=2)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    named, captioned = (read_set(find_set(str(tmp_path / "two" / file))).samples for file in FILES[:2])
    for seed, one, other in zip(range(3, 9), named, captioned, strict=True):
        drawn = draw_sample(seed, World("seen", 0.0, (80, 100), plain=True))
        said = draw_sample(seed, World("seen", 1.0, (80, 100)))
        with Image.open(one.image) as image:
            assert digests(replace(one, image=image)) == digests(drawn) and one.absent is None
            assert pixels_digest(image) == pixels_digest(said.image) and one.image == other.image
        assert other.boxes.equal(said.boxes) and other.prompt.caption == said.prompt.caption
        own, true = ([one.prompt.phrases[row[0]] for row in one.box_phrases] for one in (other, said))
        assert own == true


def test_a_share_of_the_images_has_a_caption_instead(tmp_path):
    world = World(captioned=0.3, sides=(80, 100))
    write_world(tmp_path, world, 12, both=False)
    drawn = [draw_sample(seed, world) for seed in range(12)]
    named, _, captioned = (read_set(find_set(str(tmp_path / file))).samples for file in FILES)
    assert [one.vocabulary for one in named] == [one.vocabulary for one in drawn if one.vocabulary]
    assert [one.caption for one in captioned] == [one.prompt.caption for one in drawn if one.prompt]
    assert {path.suffix for path in (tmp_path / "images").iterdir()} == {".jpg"} and captioned
