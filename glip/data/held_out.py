"""Names that are held out of training: how a base and a novel part are made of one set (OVR-CNN, ViLD and others).

Nothing that has one of the words is asked for, neither as present nor as absent, and its boxes are not learned.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from glip.errors import DataError
from glip.structures import LETTER, Sample


def says_one_of(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of the words (or runs of words) as whole words, in capitals or not."""
    return bool(_pattern(words).search(text))


def hold_out(sample: Sample, words: Sequence[str]) -> Sample:
    """A sample of a detection set without the names that have one of the words, and without their boxes.

    Its vocabulary is empty where every name has one.

    Raises:
        ValueError: a sample with a caption, whose words cannot be taken out.
    """
    if not sample.vocabulary:
        raise DataError(
            f"image {sample.image_id!r} has a caption: names are withheld from lists of names only; leave captioned "
            "sets out"
        )
    pattern = _pattern(words)
    kept = [index for index, name in enumerate(sample.vocabulary) if not pattern.search(name)]
    place = {old: new for new, old in enumerate(kept)}
    named = [tuple(place[index] for index in own if index in place) for own in sample.box_phrases]
    boxed = sample.keep([number for number, own in enumerate(named) if own])
    return replace(
        boxed,
        box_phrases=tuple(own for own in named if own),
        vocabulary=tuple(sample.vocabulary[index] for index in kept),
        absent=None if sample.absent is None else tuple(place[i] for i in sample.absent if i in place),
        incomplete=tuple(place[i] for i in sample.incomplete if i in place),
    )


class HeldOut(Sequence[Sample]):
    """A set whose samples are made when asked for, without the names that have one of the words.

    A sample that has no other names is replaced by the next one that has.

    Raises:
        ValueError: no sample has other names.
    """

    def __init__(self, samples: Sequence[Sample], words: Sequence[str]) -> None:
        self._samples, self._words = samples, tuple(words)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        for step in range(len(self)):
            sample = hold_out(self._samples[(index + step) % len(self)], self._words)
            if sample.vocabulary:
                return sample
        raise DataError(
            f"all names of the set have one of the withheld words ({', '.join(self._words)}): withhold fewer"
        )


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    either = "|".join(re.escape(word) for word in words)
    return re.compile(rf"(?<!{LETTER})(?:{either})(?!{LETTER})", re.IGNORECASE)
