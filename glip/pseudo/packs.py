"""Several captions of one image in one prompt, so that the head, which runs anew for every prompt, runs less often.

As in training, where captions of other images are packed beside the true one (GLIP's appendix on pre-training).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from glip.processor import Processor
from glip.structures import Detections, Prompt
from glip.text.prompt import join_prompts


@dataclass(frozen=True)
class Pack:
    """The prompts of some captions, and one that holds all their phrases in their order."""

    prompts: tuple[Prompt, ...]
    prompt: Prompt

    def taken_apart(self, found: Detections, limit: int) -> list[Detections]:
        """The detections of each caption, best first, ``limit`` of each at most."""
        parts, first = [], 0
        for prompt in self.prompts:
            after = first + len(prompt.phrases)
            own = torch.nonzero((found.labels >= first) & (found.labels < after)).flatten()[:limit]
            parts.append(Detections(found.boxes[own], found.scores[own], found.labels[own] - first, prompt, found.size))
            first = after
        return parts


def packed(prompts: Sequence[Prompt], processor: Processor, together: int) -> Iterator[Pack]:
    """Prompts in packs of ``together`` at most, in order; a pack ends where the next caption would not fit."""
    waiting: list[Prompt] = []
    for prompt in prompts:
        full = len(waiting) == together
        if waiting and (
            full or processor.count_tokens(join_prompts([*waiting, prompt]).caption) > processor.max_tokens
        ):
            yield pack_of(waiting)
            waiting = []
        waiting.append(prompt)
    if waiting:
        yield pack_of(waiting)


def pack_of(prompts: Sequence[Prompt]) -> Pack:
    """The pack of these prompts; a single one is asked as it is."""
    return Pack(tuple(prompts), join_prompts(prompts))
