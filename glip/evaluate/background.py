"""Background honesty: how often a name that is not in the picture is drawn to something anyway.

AP hides this where the names asked for are mostly there; a person who asks for a thing that is absent sees it at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glip.structures import Detections, Sample


@dataclass(frozen=True)
class Background:
    """Of every (picture, absent name) the score of its best detection, 0 where there is none.

    ``pictures[i]`` tells which picture row ``i`` belongs to.
    """

    best: np.ndarray
    pictures: np.ndarray

    def rate(self, threshold: float) -> float:
        """Share of the (picture, absent name) pairs with a detection scoring at least ``threshold``."""
        return float((self.best >= threshold).mean())

    def picture_rate(self, threshold: float) -> float:
        """Share of the pictures with such a detection, among those that were asked for an absent name."""
        return len(np.unique(self.pictures[self.best >= threshold])) / len(np.unique(self.pictures))


def background(pairs: Iterable[tuple[Sample, Detections]]) -> Background | None:
    """The best score of every absent name in every picture, as ``detect_all`` gives them.

    None where no picture was asked for an absent name, as in a set with one name that is everywhere.
    """
    best: list[float] = []
    pictures: list[int] = []
    for index, (sample, found) in enumerate(pairs):
        absent = absent_names(sample)
        top = np.zeros(len(found.prompt.phrases))
        np.maximum.at(top, found.labels.numpy(), found.scores.numpy().astype(np.float64))
        best += top[absent].tolist()
        pictures += [index] * len(absent)
    return Background(np.array(best), np.array(pictures)) if best else None


def absent_names(sample: Sample) -> list[int]:
    """The names of a sample that are surely not in the picture; phrases of a caption count as there."""
    if sample.prompt is not None:
        return []
    there = {number for numbers in sample.box_phrases for number in numbers}
    listed = range(len(sample.vocabulary)) if sample.absent is None else sample.absent
    return [number for number in listed if number not in there and number not in sample.incomplete]
