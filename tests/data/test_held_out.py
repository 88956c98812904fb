"""Names held out of training: gone as names and as boxes, present or absent, and what stays is renumbered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glip.config import DataConfig, DatasetConfig
from glip.data.catalog import find_set, read_set
from glip.data.held_out import HeldOut, hold_out, says_one_of
from glip.data.mixture import build_sources
from glip.structures import Prompt, Sample

NAMES = ("red star", "starfish", "Purple car", "blue car")


def sample() -> Sample:
    boxes = torch.arange(16.0).reshape(4, 4)
    return Sample(Path("a.jpg"), boxes, ((0,), (1,), (2, 3), (2,)), vocabulary=NAMES, crowd=(1,), absent=(0, 3))


def test_names_go_with_their_boxes():
    left = hold_out(sample(), ["star", "purple"])
    assert left.vocabulary == ("starfish", "blue car")  # a part of a word is no word
    assert left.box_phrases == ((0,), (1,)) and left.boxes.tolist() == sample().boxes[1:3].tolist()
    assert left.crowd == (0,) and left.absent == (1,)


def test_whole_words_only():
    assert says_one_of("a STAR", ["star"]) and not says_one_of("start", ["star"])


def test_captions_cannot_be_cut():
    with pytest.raises(ValueError, match="has a caption: names are withheld from lists"):
        hold_out(Sample(Path("a.jpg"), torch.empty(0, 4), (), prompt=Prompt.parse("a star")), ["star"])


def test_a_sample_of_nothing_else_gives_its_place_to_the_next():
    only = replace(
        sample(), vocabulary=("red star",) * 1, boxes=torch.empty(0, 4), box_phrases=(), crowd=(), absent=None
    )
    assert HeldOut([only, sample()], ["star"])[0].vocabulary == ("starfish", "Purple car", "blue car")
    with pytest.raises(ValueError, match="all names of the set have one of the withheld words"):
        HeldOut([only], ["star"])[0]


def test_a_mixture_withholds(drawn_root):
    words = ("red", "star", "striped", "car", "house")
    entry = DatasetConfig(name="world_train", held_out=words)
    [source] = build_sources(DataConfig(root=str(drawn_root), train=(entry,)), max_tokens=256, max_size=256)
    all_samples = read_set(find_set("world_train", root=drawn_root), drawn_root).samples
    said = [name for sample in source.samples for name in sample.vocabulary]
    assert said and not any(says_one_of(name, words) for name in said)
    assert any(says_one_of(name, words) for sample in all_samples for name in sample.vocabulary)
