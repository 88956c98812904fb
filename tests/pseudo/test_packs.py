"""Captions of one image in one prompt: phrases keep their characters, and detections go back to their caption."""

import pytest
import torch

from glip.pseudo.label import make_packs, split_detections
from glip.structures import Detections
from glip.text.prompt import Prompt, join_prompts

PROMPTS = [
    Prompt.from_caption("a dog and a cat.", ["dog", "cat"]),
    Prompt.from_caption("the cat sleeps ", ["cat"]),
    Prompt.from_caption("two birds over a house", ["two birds", "house"]),
]


class WordCounter:
    """A processor that counts words."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_spans_name_the_same_words():
    prompt = join_prompts(PROMPTS)
    assert prompt.caption == "a dog and a cat. the cat sleeps. two birds over a house"
    named = [prompt.caption[start:end] for phrase in prompt.phrases for start, end in phrase.spans]
    assert named == ["dog", "cat", "cat", "two birds", "house"] == list(prompt.texts)
    assert join_prompts(PROMPTS[:1]) is PROMPTS[0]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("together", "max_tokens", "sizes"), [(1, 99, [1, 1, 1]), (2, 99, [2, 1]), (9, 99, [3]), (9, 8, [2, 1])]
)
def test_packs_end_where_nothing_fits(together, max_tokens, sizes):
    packs = list(make_packs(PROMPTS, WordCounter(max_tokens), together))
    assert [len(pack) for pack in packs] == sizes
    assert [prompt for pack in packs for prompt in pack] == PROMPTS


def test_detections_go_back_to_their_caption():
    labels = torch.tensor([2, 0, 4, 1, 3, 0])
    found = Detections(torch.rand(6, 4), torch.linspace(0.9, 0.4, 6), labels, join_prompts(PROMPTS), (9, 9))
    first, second, third = split_detections(found, PROMPTS, 2)
    assert first.labels.tolist() == [0, 1] and first.prompt is PROMPTS[0]  # its third detection is over the limit
    assert second.labels.tolist() == [0] and third.labels.tolist() == [1, 0]
    assert torch.equal(third.scores, found.scores[[2, 4]]) and torch.equal(third.boxes, found.boxes[[2, 4]])
