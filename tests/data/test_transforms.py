"""Boxes follow the pixels: a filled rectangle is drawn, the picture is changed, and the rectangle is looked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip.data.transforms import Augmentation, _flip, augment
from glip.structures import Prompt, Sample

SIZES = st.integers(40, 160)


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> Sample:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    boxes = torch.tensor([box], dtype=torch.float32)
    return Sample(Image.fromarray(pixels), boxes, ((0,),), vocabulary=("red box",))


def seen(picture: Image.Image) -> list[float]:
    """The rectangle in the pixels."""
    values = np.asarray(picture, dtype=int)
    red = (values[..., 0] > 128) & (values[..., 1] < 64) & (values[..., 2] < 64)
    columns, rows = np.flatnonzero(red.any(0)), np.flatnonzero(red.any(1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(columns) else []


@st.composite
def rectangles(draw):
    width, height = draw(SIZES), draw(SIZES)
    x, y = draw(st.integers(0, width - 20)), draw(st.integers(0, height - 20))
    box = (x, y, draw(st.integers(x + 15, width)), draw(st.integers(y + 15, height)))
    return drawn(width, height, box), draw(st.integers(0, 9999))


@settings(max_examples=40, deadline=None)
@given(rectangles(), st.sampled_from([0.0, 1.0]))
def test_boxes_follow_resize_and_flip(case, flip):
    sample, seed = case
    made = augment(sample, Augmentation((50, 120), 200, flip=flip), np.random.default_rng(seed))
    assert np.allclose(made.boxes[0].tolist(), seen(made.picture), atol=2.5)
    short, long = min(made.picture.size), max(made.picture.size)
    assert short <= 120 and long <= 200 and (short >= 49 or long == 200)


@settings(max_examples=60, deadline=None)
@given(rectangles(), st.sampled_from([48, 96, 220]))
def test_boxes_follow_crops(case, side):
    sample, seed = case
    how = Augmentation((60, 100), 200, crop=side, flip=0.5)
    made = augment(sample, how, np.random.default_rng(seed))
    assert made.picture.size == (side, side)
    assert len(made.boxes) == len(made.box_phrases) <= 1
    pixels = seen(made.picture)
    if len(made.boxes) and len(pixels):
        x1, y1, x2, y2 = made.boxes[0].tolist()
        assert 0 <= x1 < x2 <= side and 0 <= y1 < y2 <= side
        # the ground around a small picture has a random colour, which may be red too: look inside only
        assert pixels[0] <= x1 + 2.5 and pixels[1] <= y1 + 2.5 and pixels[2] >= x2 - 2.5 and pixels[3] >= y2 - 2.5


def test_a_crop_holds_the_box_it_was_aimed_at_and_drops_the_rest():
    boxes = torch.tensor([[0.0, 0, 40, 40], [360, 360, 400, 400], [180, 0, 220, 400]])
    sample = Sample(Image.new("RGB", (400, 400)), boxes, ((0,), (1,), (2,)), vocabulary=("a", "b", "c"))
    kept = []
    for seed in range(60):
        made = augment(sample, Augmentation((400, 400), 400, crop=100), np.random.default_rng(seed))
        kept.append({row[0] for row in made.box_phrases})
        assert not {0, 1} <= kept[-1], "two corners never fit one window"
        for phrases, box in zip(made.box_phrases, made.boxes, strict=True):
            share = (box[2:] - box[:2]).prod() / (boxes[phrases[0], 2:] - boxes[phrases[0], :2]).prod()
            assert share >= 0.4
    assert {frozenset({0}), frozenset({1})} <= set(map(frozenset, kept))
    assert all(2 not in row for row in kept), "a window of 100 shows at most a quarter of a box 400 high"


def test_boxes_at_the_edge_and_beyond_never_crash():
    boxes = torch.tensor([[90.0, 90, 100, 100], [98, 98, 140, 140], [-30, -30, 1, 1]])
    sample = Sample(Image.new("RGB", (100, 100)), boxes, ((0,), (0,), (0,)), vocabulary=("a",))
    for seed in range(40):
        made = augment(sample, Augmentation((100, 100), 100, crop=64, flip=0.5), np.random.default_rng(seed))
        assert (made.boxes >= 0).all() and (made.boxes <= 64).all()


@given(rectangles())
@settings(max_examples=20, deadline=None)
def test_flipping_twice_changes_nothing(case):
    sample, _ = case
    twice = _flip(_flip(sample))
    assert torch.equal(twice.boxes, sample.boxes) and twice.picture.tobytes() == sample.picture.tobytes()


SAYS_SIDE = ["the cat left of the dog", "the leftmost cup", "on your Right", "a right-hand glove", "turned rightwards"]
SAYS_NONE = ["leftover soup", "a bright lamp", "the cat", "copyright sign", "an upright piano"]


@pytest.mark.parametrize(("caption", "flipped"), [(c, False) for c in SAYS_SIDE] + [(c, True) for c in SAYS_NONE])
def test_captions_that_say_a_side_are_not_flipped(caption, flipped):
    sample = drawn(80, 60, (5, 5, 30, 30))
    captioned = replace(sample, vocabulary=(), prompt=Prompt.from_caption(caption, [caption]))
    listed = replace(sample, vocabulary=("dog", caption))
    for words in (captioned, listed):
        made = augment(words, Augmentation((60, 60), 90, flip=1.0), np.random.default_rng(0))
        assert (made.boxes[0, 0] > 40) == flipped


def test_colour_changes_pixels_only():
    sample = drawn(80, 60, (5, 5, 30, 30))
    made = augment(sample, Augmentation((60, 60), 90, colour=0.4), np.random.default_rng(3))
    assert torch.equal(made.boxes, sample.boxes)
    assert made.picture.size == sample.picture.size and made.picture.tobytes() != sample.picture.tobytes()


def test_pictures_without_boxes_and_of_one_pixel():
    for size in [(100, 80), (1, 1), (300, 1)]:
        sample = Sample(Image.new("RGB", size), torch.zeros(0, 4), (), vocabulary=("a",))
        made = augment(sample, Augmentation((40, 60), 90, crop=32, flip=1.0, colour=0.2), np.random.default_rng(1))
        assert made.picture.size == (32, 32) and made.boxes.shape == (0, 4)
