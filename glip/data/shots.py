"""A few images of a set to tune on: k images, or k boxes, of each class, as ODinW draws them."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from glip.errors import DataError
from glip.structures import Sample

Per = Literal["image", "box"]
PER: tuple[Per, ...] = get_args(Per)


def draw_shots(samples: Sequence[Sample], names: Sequence[str], shots: int, *, seed: int, per: Per) -> list[int]:
    """Which samples to tune on, so that every class has its shots.

    The release's rule (``DATASETS.FEW_SHOT``): images come in an order drawn from the seed; one is taken if it shows
    a class that still lacks some, and then counts for all classes it shows. So common classes may have more.

    Args:
        samples: of a set whose images share one list of names.
        names: that list.
        shots: k.
        seed: of the order.
        per: whether k counts images that show a class, or its boxes.

    Raises:
        ValueError: k below 1, or a class with fewer than k.
    """
    if shots < 1:
        raise DataError(f"shots: got {shots}: give 1 or more, or 'all'")
    shown = [count_classes(sample, per) for sample in samples]
    there = sum(shown, Counter[int]())
    short = [f"{name!r} {there[number]}" for number, name in enumerate(names) if there[number] < shots]
    if short:
        unit = "images" if per == "image" else "boxes"
        raise DataError(
            f"{shots} {unit} of each class cannot be drawn: there are of {', '.join(short[:5])}"
            f"{', ...' if len(short) > 5 else ''}; take fewer shots, or 'all'"
        )
    lacking = Counter({number: shots for number in range(len(names))})
    chosen = []
    for index in np.random.default_rng(seed).permutation(len(samples)).tolist():
        if any(lacking[number] > 0 for number in shown[index]):
            chosen.append(index)
            lacking.subtract(shown[index])
    return sorted(chosen)


def count_classes(sample: Sample, per: Per) -> Counter[int]:
    """How often each class is shown: once in an image, or as many times as it has boxes; groups do not count."""
    labels = [label for box, labels in enumerate(sample.box_phrases) if box not in sample.crowd for label in labels]
    return Counter(set(labels) if per == "image" else labels)
