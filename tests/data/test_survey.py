"""A training set gone through once: what is told of it, its mark, and names that the model cannot tell apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import NAMES, TINY, VOCABULARY, scenes

from glip.config import DatasetConfig
from glip.data.loader import Source
from glip.data.mixture import data_fingerprint, survey
from glip.data.sets import PackedSamples
from glip.processor import Processor
from glip.structures import Sample
from glip.text.class_prompts import read_prompts
from glip.text.tokens import Tokenizer


@pytest.fixture(scope="module")
def processor():
    return Processor(TINY, Tokenizer(VOCABULARY))


def samples(names=NAMES):
    """The four scenes; name i of NAMES is called names[i]."""
    for number, (image, things) in enumerate(scenes()):
        labels = tuple((NAMES.index(f"{thing.colour} {thing.kind}"),) for thing in things)
        yield Sample(image, torch.tensor([thing.box for thing in things]), labels, vocabulary=names, image_id=number)


def source(made, **changes):
    return Source(DatasetConfig(name="mine"), PackedSamples(made), **changes)


def test_counts_and_what_does_not_fit(processor):
    assert survey(source(samples()), processor).summary == "mine: 4 images, 9 boxes"
    told = survey(source(samples()), Processor(replace(TINY, max_tokens=6), Tokenizer(VOCABULARY))).summary
    assert "skipped: boxes of 4 x image with more names than a caption holds" in told, "each shows two names or more"


def test_the_mark_tells_a_changed_set(processor):
    first = survey(source(samples()), processor).fingerprint
    assert survey(source(samples()), processor).fingerprint == first
    fewer = list(samples())[1:]
    moved = [replace(sample, boxes=sample.boxes + 0.5) for sample in samples()]
    renamed = samples(("red giraffe", *NAMES[1:]))
    other = [replace(sample, image_id=sample.image_id + 10) for sample in samples()]
    shuffled, longer = list(samples())[::-1], samples((*NAMES, "zebra"))
    marks = {survey(source(made), processor).fingerprint for made in (fewer, moved, renamed, other, shuffled, longer)}
    prompts = read_prompts({NAMES[0]: "a [giraffe]"}, NAMES)
    assert len(marks | {first, survey(source(samples(), prompts=prompts), processor).fingerprint}) == 8
    assert len({data_fingerprint(made) for made in (samples(), moved, samples((*NAMES, "zebra")))}) == 3


def test_a_dataset_stored_elsewhere_has_the_same_fingerprint():
    here, there, other = (
        [replace(sample, image=Path(folder) / f"{sample.image_id}{suffix}") for sample in samples()]
        for folder, suffix in (("/here/images", ".jpg"), ("/there", ".jpg"), ("/here/images", ".png"))
    )
    assert data_fingerprint(here) == data_fingerprint(PackedSamples(there)) != data_fingerprint(other)


def test_names_of_one_spelling_are_told(processor):
    told = survey(source(samples(("Cat", "cat", "café", "cafe"))), processor).summary
    assert told.endswith("; taken for one name: 'Cat', 'cat'; 'café', 'cafe'")


def test_names_of_unknown_words_are_refused(processor):
    names = ("แมว", "สุนัข", *NAMES[2:])
    with pytest.raises(ValueError, match="reads 'แมว' and 'สุนัข' alike, as the same tokens"):
        survey(source(samples(names)), processor)
    prompts = read_prompts({"แมว": "a [cat]", "สุนัข": "a [dog]"}, names)
    assert survey(source(samples(names), prompts=prompts), processor).summary == "mine: 4 images, 9 boxes"
    one = read_prompts({"แมว": "a [cat]", "สุนัข": "a [cat]"}, names)
    told = survey(source(samples(names), prompts=one), processor).summary
    assert told.endswith("; taken for one name: 'แมว', 'สุนัข'")
