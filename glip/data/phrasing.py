"""A detection sample is given a caption: its names and names that are absent, shuffled, within a token budget.

As in the release (paper section 3.1): with some probability all names of the set, else a random number of absent ones.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glip.structures import Prompt, Sample

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Phrasing:
    """How captions are written.

    Args:
        max_names: names in a caption at most.
        max_tokens: tokens of a caption at most, [CLS] and [SEP] included.
        full_vocabulary: probability that all names of the set are written, where they fit.
        borrow: probability that names of other sets join as absent ones.
        foreign: those names.
    """

    max_names: int
    max_tokens: int
    full_vocabulary: float
    borrow: float = 0.0
    foreign: tuple[str, ...] = ()


def phrase(sample: Sample, phrasing: Phrasing, count_tokens: Callable[[str], int], rng: np.random.Generator) -> Sample:
    """The sample with a prompt; one that has a prompt (a caption set) is returned as it is.

    Present names come first in line for the budget; boxes whose name does not fit are dropped with it.

    Raises:
        ValueError: not one name fits.
    """
    if sample.prompt is not None:
        return sample
    fitting = _fitting(_choose(sample, phrasing, rng), phrasing.max_tokens, count_tokens)
    order = rng.permutation(len(fitting))
    written = [fitting[index] for index in order]
    place = {name: index for index, name in enumerate(written)}
    kept = [
        index
        for index, phrases in enumerate(sample.box_phrases)
        if any(sample.vocabulary[number] in place for number in phrases)
    ]
    box_phrases = tuple(
        tuple(place[sample.vocabulary[n]] for n in sample.box_phrases[index] if sample.vocabulary[n] in place)
        for index in kept
    )
    return replace(
        sample, prompt=Prompt.from_names(written), boxes=sample.boxes[kept], box_phrases=box_phrases, vocabulary=()
    )


def foreign_names(own: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Names of other sets that are surely absent from this one: those that share no word with any of its names."""
    words = {word for name in own for word in _WORD.findall(name.lower())}
    return tuple(name for name in dict.fromkeys(others) if not words & set(_WORD.findall(name.lower())))


def _fitting(names: Sequence[str], max_tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """The names that are written: each that still fits when its turn comes, and that the tokenizer can read at all."""
    room, fitting = max_tokens - 2, []  # without [CLS] and [SEP]
    for name in names:
        cost = count_tokens(name) - 1  # its tokens and a separator
        if 1 < cost <= room:
            room -= cost
            fitting.append(name)
    if not fitting:
        shown = ", ".join(repr(name[:40]) for name in names[:3])
        raise ValueError(f"no name of {shown} fits a caption of {max_tokens} tokens: shorten or remove them")
    return fitting


def _choose(sample: Sample, phrasing: Phrasing, rng: np.random.Generator) -> list[str]:
    """Present names first, then absent ones, in the order in which they may take room."""
    present_numbers = {number for phrases in sample.box_phrases for number in phrases}
    present = list(dict.fromkeys(sample.vocabulary[number] for number in sorted(present_numbers)))
    absent = [name for name in dict.fromkeys(sample.vocabulary) if name not in present]
    absent = [absent[index] for index in rng.permutation(len(absent))]
    if rng.random() >= phrasing.full_vocabulary:
        least = 0 if present else 1
        absent = absent[: int(rng.integers(least, len(absent) + 1)) if len(absent) >= least else 0]
    if phrasing.foreign and rng.random() < phrasing.borrow:
        number = int(rng.integers(1, min(len(phrasing.foreign), phrasing.max_names) + 1))
        absent += [phrasing.foreign[index] for index in rng.permutation(len(phrasing.foreign))[:number]]
    rng.shuffle(present)
    return (present + absent)[: phrasing.max_names] or list(sample.vocabulary[:1])
