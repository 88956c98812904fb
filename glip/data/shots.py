"""Few-shot samples of a dataset: k images, or k boxes, of each class, as ODinW draws them."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from glip.errors import DataError
from glip.structures import Sample

Per = Literal["image", "box"]
PER: tuple[Per, ...] = get_args(Per)


def draw_shots(samples: Sequence[Sample], names: Sequence[str], shots: int, *, seed: int, per: Per) -> list[int]:
    """The indices of samples that give every class its shots, ``per`` image that shows it or per box.

    The release's rule (``DATASETS.FEW_SHOT``): images come in an order drawn from the seed; one is taken if it shows
    a class that still lacks some, and then counts for all classes it shows. So common classes may have more.

    Raises:
        DataError: a class with fewer shots.
    """
    shown = [count_classes(sample, per) for sample in samples]
    total = sum(shown, Counter[int]())
    short = [f"{name!r} {total[number]}" for number, name in enumerate(names) if total[number] < shots]
    if shots < 1 or short:
        listed = ", ".join(short[:5]) + (", ..." if len(short) > 5 else "")
        unit = "images" if per == "image" else "boxes"
        raise DataError(
            f"{shots} {unit} of each class cannot be drawn ({listed}): give 1 or more, at most that, or 'all'"
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
