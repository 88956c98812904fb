"""Boxes follow the pixels: a filled rectangle is drawn, the image is changed, and the rectangle is looked for."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip.data.transforms import augment, says_side
from glip.processor import resized_size
from glip.structures import Prompt, Sample

SIZES = st.integers(40, 160)


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> Sample:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    boxes = torch.tensor([box], dtype=torch.float32)
    return Sample(Image.fromarray(pixels), boxes, ((0,),), vocabulary=("red box",))


def augmented(sample: Sample, side: int | tuple[int, int], max_size: int = 400, *, seed: int = 0, **how: float):
    """The augmented sample and what it lost; ``side`` is the short side or its range."""
    short_side = (side,) if isinstance(side, int) else side
    return augment(sample, np.random.default_rng(seed), short_side=short_side, max_size=max_size, **how)


def changed(sample: Sample, side: int | tuple[int, int], max_size: int = 400, **how: float) -> Sample:
    return augmented(sample, side, max_size, **how)[0]


def seen(image: Image.Image) -> list[float]:
    """The rectangle in the pixels."""
    values = np.asarray(image, dtype=int)
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
    made = changed(sample, (50, 120), 200, flip=flip, seed=seed)
    assert np.allclose(made.boxes[0].tolist(), seen(made.image), atol=2.5)
    width, height = sample.image.size
    sizes = {resized_size(height, width, short, 200) for short in range(50, 121)}
    assert made.image.size[::-1] in sizes, "as the Processor resizes in evaluation"


@settings(max_examples=60, deadline=None)
@given(rectangles(), st.sampled_from([48, 96, 220]))
def test_boxes_follow_crops(case, side):
    sample, seed = case
    made, lost = augmented(sample, (60, 100), 200, crop=side, flip=0.5, seed=seed)
    assert made.image.size == (side, side)
    assert lost.counts == ({} if len(made.boxes) else {"box cut away by the crop": 1})
    assert len(made.boxes) == len(made.box_phrases) <= 1
    pixels = seen(made.image)
    if len(made.boxes) and len(pixels):
        x1, y1, x2, y2 = made.boxes[0].tolist()
        assert 0 <= x1 < x2 <= side and 0 <= y1 < y2 <= side
        # the ground around a small image has a random colour, which may be red too: look inside only
        assert pixels[0] <= x1 + 2.5 and pixels[1] <= y1 + 2.5 and pixels[2] >= x2 - 2.5 and pixels[3] >= y2 - 2.5


def test_a_crop_holds_the_box_it_was_aimed_at_and_drops_the_rest():
    boxes = torch.tensor([[0.0, 0, 40, 40], [360, 40, 400, 80], [180, 0, 220, 400]])
    sample = Sample(Image.new("RGB", (400, 400)), boxes, ((0,), (1,), (2,)), vocabulary=("a", "b", "c"))
    kept = []
    for seed in range(60):
        made, lost = augmented(sample, 400, crop=100, seed=seed)
        assert lost.counts == {"box cut away by the crop": 3 - len(made.boxes)}
        kept.append({row[0] for row in made.box_phrases})
        assert not {0, 1} <= kept[-1], "two corners never fit one window"
        for phrases, box in zip(made.box_phrases, made.boxes, strict=True):
            share = (box[2:] - box[:2]).prod() / (boxes[phrases[0], 2:] - boxes[phrases[0], :2]).prod()
            assert share >= 0.4
    assert {frozenset({0}), frozenset({1})} <= set(map(frozenset, kept))
    assert all(2 not in row for row in kept), "a window of 100 shows at most a quarter of a box 400 high"


@pytest.mark.parametrize("box", [(0, 0, 640, 360), (3, 5, 637, 90), (500, 10, 640, 350), (300, 170, 330, 200)])
def test_a_crop_that_shows_the_only_box_keeps_it(box):
    """As configs/finetune/own.yaml crops: a box cut away leaves nothing to ask for in a set of one class."""
    empty = 0
    for seed in range(80):
        made, lost = augmented(drawn(640, 360, box), (240, 420), 600, crop=224, seed=seed)
        assert not made.incomplete, f"seed {seed}: the class may not be asked for"
        assert lost.counts == ({} if len(made.boxes) else {"box cut away by the crop": 1})
        empty += not len(made.boxes)
    assert empty < 8, "some windows may lie where no box is"


def test_boxes_end_at_the_edges_of_the_image():
    boxes = torch.tensor([[80.0, 10, 180, 50], [300, 10, 340, 50], [-30, 5, 10, 25]])
    sample = Sample(Image.new("RGB", (100, 60)), boxes, ((0,), (0,), (0,)), vocabulary=("a",))
    made, lost = augmented(sample, 60)
    assert made.boxes.tolist() == [[80, 10, 100, 50], [0, 5, 10, 25]]
    assert lost.counts == {"box outside its image": 1}
    for seed in range(40):
        made = changed(sample, 60, crop=64, flip=0.5, seed=seed)
        assert (made.boxes >= 0).all() and (made.boxes <= 64).all()


SAYS_SIDE = [
    *("the cat left of the dog", "the leftmost cup", "on your Right", "a right-hand glove", "turned rightwards"),
    *("rightward", "left_hand", "lefthand drive", "a right-handed man", "LeftHand", "the top-left window"),
    *("bottomright corner", "arrow_right", "left2"),
]
SAYS_NONE = [
    *("leftover soup", "leftovers", "a bright lamp", "the cat", "copyright sign", "an upright piano", "a cleft lip"),
    "a civil rights march",
]


@pytest.mark.parametrize(("words", "flipped"), [(c, False) for c in SAYS_SIDE] + [(c, True) for c in SAYS_NONE])
def test_what_says_a_side_is_not_mirrored(words, flipped):
    assert says_side(words) != flipped
    sample = drawn(80, 60, (5, 5, 30, 30))
    captioned = replace(sample, vocabulary=(), prompt=Prompt.from_caption(words, [words]))
    for case in (captioned, replace(sample, vocabulary=("dog", words))):
        assert (changed(case, 60, flip=1.0).boxes[0, 0] > 40) == flipped


def test_crowd_regions_go_first_and_their_names_are_not_asked_for():
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 100, 100], [50, 50, 90, 90], [0, 0, 90, 90]])
    sample = Sample(
        Image.new("RGB", (100, 100)), boxes, ((0,), (1,), (2,), (2,)), vocabulary=("a", "b", "c", "d"), crowd=(1, 3)
    )
    made, lost = augmented(sample, 100)
    assert made.boxes.tolist() == boxes[[0, 2]].tolist() and made.box_phrases == ((0,), (2,)) and made.crowd == ()
    assert lost.counts == {"crowd region": 2}
    assert made.incomplete == (1,), "many b are seen and none has a box; of c one box is left"


def test_names_of_which_a_crop_leaves_too_little_are_not_asked_for():
    boxes = torch.tensor([[0.0, 0, 400, 400], [180, 180, 220, 220]])
    sample = Sample(
        Image.new("RGB", (400, 400)), boxes, ((0,), (1,)), vocabulary=("wall", "cat", "dog"), incomplete=(2,)
    )
    for seed in range(60):
        made = changed(sample, 400, crop=100, seed=seed)
        assert made.box_phrases == ((1,),) and made.incomplete == (0, 2), "a part of the wall is always seen"
    only = replace(sample, boxes=boxes[:1], box_phrases=((0,),), vocabulary=("wall",), incomplete=())
    assert changed(only, 400, crop=100).incomplete == (0,), "then nothing is asked, rather than something false taught"


def test_words_of_a_caption_stay_when_their_boxes_are_cut_away():
    boxes = torch.tensor([[0.0, 0, 40, 40], [360, 360, 400, 400]])
    prompt = Prompt.from_caption("a cup and a plate", ["a cup", "a plate"])
    sample = Sample(Image.new("RGB", (400, 400)), boxes, ((0,), (1,)), prompt=prompt)
    made, lost = augmented(sample, 400, crop=100)
    assert made.prompt == prompt and len(made.boxes) == len(made.box_phrases) == 1
    assert lost.counts == {"box cut away by the crop": 1}


@settings(max_examples=25, deadline=None)
@given(rectangles())
def test_the_seed_decides_everything(case):
    sample, seed = case
    first, again, *others = (
        changed(sample, (60, 100), 200, crop=64, flip=0.5, colour=0.3, seed=seed + extra) for extra in (0, 0, 1, 2, 3)
    )
    assert torch.equal(first.boxes, again.boxes) and first.image.tobytes() == again.image.tobytes()
    assert {other.image.tobytes() for other in others} != {first.image.tobytes()}


def test_colour_changes_pixels_but_neither_boxes_nor_hue():
    pixels = np.full((60, 80, 3), (150, 100, 60), dtype=np.uint8)
    sample = replace(drawn(80, 60, (5, 5, 30, 30)), image=Image.fromarray(pixels))
    hue = colorsys.rgb_to_hsv(*(pixels[0, 0] / 255))[0]
    shades = set()
    for seed in range(20):
        made = changed(sample, 60, 90, colour=0.3, seed=seed)
        assert torch.equal(made.boxes, sample.boxes) and made.image.size == sample.image.size
        shade = made.image.getpixel((0, 0))
        shades.add(shade)
        assert colorsys.rgb_to_hsv(*(value / 255 for value in shade))[0] == pytest.approx(hue, abs=0.02)
    assert len(shades) > 15
    reds, _, blues = np.array(sorted(shades)).T
    assert reds.min() < 120 and reds.max() > 180, "brighter and darker"
    assert (reds - blues).min() < 70 < 110 < (reds - blues).max(), "paler and richer"


def test_images_without_boxes_and_of_one_pixel():
    for size in [(100, 80), (1, 1), (300, 1)]:
        sample = Sample(Image.new("RGB", size), torch.zeros(0, 4), (), vocabulary=("a",))
        made, lost = augmented(sample, (40, 60), 90, crop=32, flip=1.0, colour=0.2, seed=1)
        assert made.image.size == (32, 32) and made.boxes.shape == (0, 4) and not lost
