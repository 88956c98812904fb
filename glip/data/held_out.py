"""Class names held out of training, to evaluate on unseen words (base and novel classes, as in OVR-CNN and ViLD)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from glip.errors import DataError
from glip.structures import LETTER, Sample


def says_one_of(text: str, words: Sequence[str]) -> bool:
    """Whether a text contains one of the words (or sequences of words) as whole words; case does not matter."""
    return bool(_pattern(tuple(words)).search(text))


def hold_out(sample: Sample, words: Sequence[str]) -> Sample:
    """A detection sample without the class names that contain one of the words, and without their boxes.

    Raises:
        DataError: a sample with a caption, which would no longer be the same without some of its words.
    """
    if sample.prompt is not None:
        raise DataError(f"image {sample.image_id} has a caption: held_out works on class names only, remove it here")
    kept = [index for index, name in enumerate(sample.vocabulary) if not says_one_of(name, words)]
    place = {old: new for new, old in enumerate(kept)}
    named = [tuple(place[index] for index in own if index in place) for own in sample.box_phrases]
    boxed = sample.keep([box for box, own in enumerate(named) if own])
    return replace(
        boxed,
        box_phrases=tuple(own for own in named if own),
        vocabulary=tuple(sample.vocabulary[index] for index in kept),
        absent=None if sample.absent is None else tuple(place[index] for index in sample.absent if index in place),
        incomplete=tuple(place[index] for index in sample.incomplete if index in place),
    )


@lru_cache(maxsize=16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(re.escape(word) for word in words)
    return re.compile(rf"(?<!{LETTER})(?:{either})(?!{LETTER})", re.IGNORECASE)
