"""Captions of one image in one prompt: characters stay themselves, and what is found goes back to its caption."""

import pytest
import torch

from glip.pseudo.packs import pack_of, packed
from glip.structures import Detections, Prompt

CAPTIONS = ("a dog and a cat.", "the cat sleeps ", "two birds over a house")
PROMPTS = [
    Prompt.from_caption(CAPTIONS[0], ["dog", "cat"]),
    Prompt.from_caption(CAPTIONS[1], ["cat"]),
    Prompt.from_caption(CAPTIONS[2], ["two birds", "house"]),
]


class Counter:
    """A processor that counts words."""

    def __init__(self, room: int) -> None:
        self.max_tokens = room

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_spans_name_the_same_words():
    pack = pack_of(PROMPTS)
    assert pack.prompt.caption == "a dog and a cat. the cat sleeps. two birds over a house"
    said = [pack.prompt.caption[start:end] for phrase in pack.prompt.phrases for start, end in phrase.spans]
    assert said == ["dog", "cat", "cat", "two birds", "house"] == [phrase.text for phrase in pack.prompt.phrases]


def test_a_single_caption_is_asked_as_it_is():
    assert pack_of(PROMPTS[:1]).prompt is PROMPTS[0]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("together", "room", "sizes"), [(1, 99, [1, 1, 1]), (2, 99, [2, 1]), (9, 99, [3]), (9, 8, [2, 1])]
)
def test_packs_end_where_nothing_fits(together, room, sizes):
    packs = list(packed(PROMPTS, Counter(room), together))
    assert [len(pack.prompts) for pack in packs] == sizes
    assert [prompt for pack in packs for prompt in pack.prompts] == PROMPTS


def test_what_is_found_goes_back_to_its_caption():
    pack = pack_of(PROMPTS)
    found = Detections(
        torch.rand(6, 4), torch.linspace(0.9, 0.4, 6), torch.tensor([2, 0, 4, 1, 3, 0]), pack.prompt, (9, 9)
    )
    first, second, third = pack.taken_apart(found, 2)
    assert first.labels.tolist() == [0, 1] and first.prompt is PROMPTS[0]  # the third of it is one too many
    assert second.labels.tolist() == [0] and third.labels.tolist() == [1, 0]
    assert torch.equal(third.scores, found.scores[[2, 4]]) and torch.equal(third.boxes, found.boxes[[2, 4]])
