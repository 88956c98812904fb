"""Few shots of each class: the release's rule, seeds, and classes that have too few."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from glip.data.mixture import count_classes, draw_shots
from glip.structures import Sample

NAMES = ("cat", "dog", "owl")


def sample(*labels, crowd=()):
    boxes = torch.tensor([[0.0, 0, 5, 5]]).repeat(len(labels), 1)
    return Sample(Path("image.jpg"), boxes, tuple((label,) for label in labels), vocabulary=NAMES, crowd=crowd)


SET = [sample(0, 0), sample(0, 1), sample(1), sample(2, 2, 2), sample(), sample(0, 2), sample(1, 1), sample(2)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("per", "shots"), [("image", 1), ("image", 2), ("image", 3), ("box", 4)])
def test_every_class_has_its_shots_and_no_image_is_taken_in_vain(per, shots, seed):
    chosen = draw_shots(SET, NAMES, shots, seed=seed, per=per)
    had = sum((count_classes(SET[index], per) for index in chosen), Counter())
    assert all(had[label] >= shots for label in range(3))
    assert chosen == sorted(set(chosen)) and 4 not in chosen
    assert chosen == draw_shots(SET, NAMES, shots, seed=seed, per=per)


def test_the_order_of_the_seed_decides():
    assert len({tuple(draw_shots(SET, NAMES, 1, seed=seed, per="image")) for seed in range(8)}) > 2


def test_groups_do_not_count():
    assert count_classes(sample(0, 0, 1, crowd=(0, 2)), "box") == {0: 1}


@pytest.mark.parametrize(
    ("shots", "per", "message"),
    [
        (0, "image", "give 1 or more"),
        (4, "image", "4 images of each class cannot be drawn .'cat' 3, 'dog' 3, 'owl' 3"),
        (5, "box", "5 boxes of each class cannot be drawn .'cat' 4, 'dog' 4"),
    ],
)
def test_too_few(shots, per, message):
    with pytest.raises(ValueError, match=message):
        draw_shots(SET, NAMES, shots, seed=0, per=per)


def test_a_class_without_a_box():
    with pytest.raises(ValueError, match="'newt' 0"):
        draw_shots(SET, (*NAMES, "newt"), 1, seed=0, per="image")
