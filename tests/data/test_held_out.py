"""Names held out of training: gone as names and as boxes, present or absent, and what stays is renumbered."""

from pathlib import Path

import pytest
import torch
from glip.data.held_out import hold_out, says_one_of
from glip.data.world import Drawings, World
from small import NAMES, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data.mixture import build_sources
from glip.errors import DataError
from glip.structures import Prompt, Sample


def test_names_go_with_their_boxes():
    names = ("red star", "starfish", "Purple car", "blue car")
    boxes = torch.arange(16.0).reshape(4, 4)
    sample = Sample(Path("a.jpg"), boxes, ((0,), (1,), (2, 3), (2,)), vocabulary=names, crowd=(1,), absent=(0, 3))
    left = hold_out(sample, ["star", "purple"])
    assert left.vocabulary == ("starfish", "blue car"), "a part of a word is no word"
    assert left.box_phrases == ((0,), (1,)) and left.boxes.tolist() == boxes[1:3].tolist()
    assert left.crowd == (0,) and left.absent == (1,)


def test_captions_cannot_be_cut():
    with pytest.raises(DataError, match="has a caption"):
        hold_out(Sample(Path("a.jpg"), torch.empty(0, 4), (), prompt=Prompt.parse("a star")), ["star"])


def test_a_set_without_some_names(tmp_path):
    write_coco(tmp_path)
    entry = DatasetConfig(name="instances.json", held_out=("star",))
    [source] = build_sources(DataConfig(root=str(tmp_path), train=(entry,)))
    left = tuple(name for name in NAMES if name != "blue star")
    assert all(sample.vocabulary == left for sample in source.samples)
    assert sum(len(sample.boxes) for sample in source.samples) == 7, "two of nine are blue stars"
    with pytest.raises(DataError, match="no box of a known class in 4 images"):
        everything = DatasetConfig(name="instances.json", held_out=tuple(NAMES))
        build_sources(DataConfig(root=str(tmp_path), train=(everything,)))


def test_drawn_images_without_some_names():
    words = ("purple", "violet", "star", "striped", "stripy")
    entry = DatasetConfig(name="d", format="world", captioned=0.0, sides=(112, 140), held_out=words)
    [source] = build_sources(DataConfig(train=(entry,)))
    said = [name for index in range(40) for name in source.samples[index].vocabulary]
    assert said and not any(says_one_of(name, words) for name in said)
    plain = Drawings(World("train", 0.0, (112, 140)))
    assert any(says_one_of(name, words) for index in range(40) for name in plain[index].vocabulary)
