"""Several captions of one image in one prompt, so that the head, which runs once per prompt, runs less often.

Training packs captions of other images beside the right one in the same way (GLIP's appendix on pre-training).
"""

from collections.abc import Iterator, Sequence

from glip.processor import Processor
from glip.structures import Detections
from glip.text.prompt import Prompt, join_prompts


def make_packs(prompts: Sequence[Prompt], processor: Processor, together: int) -> Iterator[list[Prompt]]:
    """Prompts in packs of at most ``together``, in order; a pack ends where the next caption does not fit."""
    pack: list[Prompt] = []
    for prompt in prompts:
        full = len(pack) == together
        if pack and (full or processor.count_tokens(join_prompts([*pack, prompt]).caption) > processor.max_tokens):
            yield pack
            pack = []
        pack.append(prompt)
    if pack:
        yield pack


def split_detections(found: Detections, pack: Sequence[Prompt], limit: int) -> list[Detections]:
    """The detections of each prompt of a pack, best first, at most ``limit`` each."""
    parts, first = [], 0
    for prompt in pack:
        end = first + len(prompt.phrases)
        own = found.select(((found.labels >= first) & (found.labels < end)).nonzero().flatten()[:limit])
        parts.append(Detections(own.boxes, own.scores, own.labels - first, prompt, found.size))
        first = end
    return parts
