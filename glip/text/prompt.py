"""Names -> prompts: cleaning dataset names, and splitting long vocabularies into chunks the model can read."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glip.errors import GlipError
from glip.structures import Prompt


@dataclass(frozen=True)
class Chunk:
    """A part of a long list of names; ``first`` is the label its first name has in the whole list."""

    prompt: Prompt
    first: int


def clean_name(name: str) -> str:
    """A dataset's class name as words, as in the 2022 release: "bat_(animal)" -> "bat ".

    Text in brackets is deleted (greedily), underscores become spaces, then each double space a single one.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def split_prompt(
    prompt: Prompt,
    count_tokens: Callable[[str], int],
    *,
    max_tokens: int,
    max_names: int | None = None,
) -> list[Chunk]:
    """Split a list of names into chunks that fit the model, by real token count; a prompt that fits stays whole.

    Args:
        prompt: names to find; a caption is returned as it is (it cannot be cut without changing its meaning).
        count_tokens: tokens of a caption, [CLS] and [SEP] included.
        max_tokens: what the model reads.
        max_names: at most so many names in a chunk (40 in the paper's LVIS protocol).

    Raises:
        ValueError: a single name that needs more tokens than the model reads.
    """
    if max_names is not None and max_names < 1:
        raise GlipError(f"max_names {max_names} is less than 1: give the names of a chunk at most, such as 40")
    fits = count_tokens(prompt.caption) <= max_tokens and len(prompt.phrases) <= (max_names or len(prompt.phrases))
    if fits or not prompt.is_list:
        return [Chunk(prompt, 0)]
    # Word pieces never cross white space or punctuation, so the cost of a list is the sum of its names' costs, plus
    # one token for each separating dot, plus [CLS] and [SEP].
    costs = [count_tokens(text) - 2 for text in prompt.texts]
    groups: list[list[int]] = [[]]
    used = 2
    for index, cost in enumerate(costs):
        if cost + 2 > max_tokens:
            raise GlipError(
                f"name {prompt.texts[index][:40]!r} needs {cost + 2} tokens, the model reads {max_tokens}: shorten it"
            )
        extra = cost + 1 if groups[-1] else cost
        if groups[-1] and (used + extra > max_tokens or len(groups[-1]) == max_names):
            groups.append([])
            used, extra = 2, cost
        groups[-1].append(index)
        used += extra
    return [Chunk(_part(prompt, group), group[0]) for group in groups]


def _part(prompt: Prompt, indices: Sequence[int]) -> Prompt:
    part = Prompt.from_names([prompt.texts[index] for index in indices])
    classes = tuple(prompt.classes[index] for index in indices)
    return Prompt(part.caption, part.phrases, classes, is_list=True)
