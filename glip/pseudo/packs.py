"""Several captions of one image in one prompt, so that the head, which runs once per prompt, runs less often.

Training packs captions of other images beside the right one in the same way (GLIP's appendix on pre-training).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glip.processor import Processor
from glip.structures import SEPARATOR, Detections, Phrase, Prompt


@dataclass(frozen=True)
class Pack:
    """The prompts of some captions, and one prompt with all their phrases in order."""

    prompts: tuple[Prompt, ...]
    prompt: Prompt

    def split(self, found: Detections, limit: int) -> list[Detections]:
        """The detections of each caption, best first, at most ``limit`` each."""
        parts, first = [], 0
        for prompt in self.prompts:
            end = first + len(prompt.phrases)
            own = found.select(((found.labels >= first) & (found.labels < end)).nonzero().flatten()[:limit])
            parts.append(Detections(own.boxes, own.scores, own.labels - first, prompt, found.size))
            first = end
        return parts


def make_packs(prompts: Sequence[Prompt], processor: Processor, together: int) -> Iterator[Pack]:
    """Prompts in packs of at most ``together``, in order; a pack ends where the next caption does not fit."""
    waiting: list[Prompt] = []
    for prompt in prompts:
        full = len(waiting) == together
        if waiting and (full or processor.count_tokens(_join([*waiting, prompt])) > processor.max_tokens):
            yield make_pack(waiting)
            waiting = []
        waiting.append(prompt)
    if waiting:
        yield make_pack(waiting)


def make_pack(prompts: Sequence[Prompt]) -> Pack:
    """The pack of these prompts; a single one stays as it is."""
    if len(prompts) == 1:
        return Pack((prompts[0],), prompts[0])
    phrases: list[Phrase] = []
    start = 0
    for prompt in prompts:
        for phrase in prompt.phrases:
            phrases.append(Phrase(phrase.text, tuple((begin + start, end + start) for begin, end in phrase.spans)))
        start += len(_join([prompt])) + len(SEPARATOR)
    return Pack(tuple(prompts), Prompt(_join(prompts), tuple(phrases)))


def _join(prompts: Sequence[Prompt]) -> str:
    """The captions as one; the separator brings the final dot, and spans never include it."""
    return SEPARATOR.join(prompt.caption.rstrip().removesuffix(".") for prompt in prompts)
