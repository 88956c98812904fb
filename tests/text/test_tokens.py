"""Which tokens name a phrase: never none, never another's, whatever the characters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip.errors import CheckpointError
from glip.structures import Prompt
from glip.text.tokens import Tokenizer, encode_prompts, phrase_tokens, positive_map

WORDS = [
    "cat",
    "cart",
    "car",
    "café",
    "北京烤鸭",
    "🐈",
    "electroencephalographically",
    "7.5 cm",
    "(bat)",
    "zebra's",
    "a-b",
]
TEXTS = st.text(st.sampled_from("abcé北-'.,! x"), min_size=1, max_size=15) | st.text(min_size=1, max_size=20)
NAMES = st.lists(st.sampled_from(WORDS) | TEXTS.filter(str.strip), min_size=1)


def pieces(tokenizer: Tokenizer, prompt: Prompt) -> list[tuple[str, ...]]:
    tokens = tokenizer(prompt.caption)
    return [tokenizer.words([tokens.ids[i] for i in row]) for row in phrase_tokens(tokens, prompt)]


def test_car_and_cart_are_not_confused(tokenizer):
    prompt = Prompt.from_names(["cart", "car", "cartoon", "car"])
    assert pieces(tokenizer, prompt) == [("cart",), ("car",), ("cartoon",), ("car",)]
    rows = phrase_tokens(tokenizer(prompt.caption), prompt)
    assert len({tuple(row) for row in rows}) == 4


def test_names_of_many_pieces_and_odd_characters(tokenizer):
    found = pieces(
        tokenizer, Prompt.from_names(["electroencephalographically", "café", "北京", "🐈", "zebra's", "!bat?"])
    )
    assert len(found[0]) > 4 and "".join(found[0]).replace("##", "") == "electroencephalographically"
    assert found[1:] == [("cafe",), ("北", "京"), ("[UNK]",), ("zebra", "'", "s"), ("!", "bat", "?")]


def test_overlapping_spans_repeat_a_token(tokenizer):
    prompt = Prompt.from_caption("blue cars", [[(0, 9), (5, 9)]])
    assert phrase_tokens(tokenizer(prompt.caption), prompt) == [[1, 2, 2]]
    weights = encode_prompts(tokenizer, [prompt], max_tokens=256).phrase_tokens[0]
    assert weights[0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])


@given(NAMES)
def test_any_names_have_their_own_tokens_or_are_an_error(tokenizer, names):
    prompt = Prompt.from_names(names)
    try:
        [weights] = encode_prompts(tokenizer, [prompt], max_tokens=10_000).phrase_tokens
    except ValueError as error:
        assert "yields no token" in str(error)
        return
    assert torch.allclose(weights.sum(1), torch.ones(len(names)))
    assert ((weights > 0).sum(0) <= 1).all(), "no token names two of them"
    offsets = tokenizer(prompt.caption).offsets
    for row, phrase in zip(weights, prompt.phrases, strict=True):
        ((start, end),) = phrase.spans
        own = [offsets[index] for index in row.nonzero().flatten().tolist()]
        assert own and all(first < end and last > start for first, last in own)


@pytest.mark.parametrize("name", ["\u200b", "\u200b\u200b", "\x07", "\ufe0f"])
def test_a_phrase_without_tokens_is_an_error(tokenizer, name):
    prompt = Prompt.from_names(["cat", name, "dog"])
    with pytest.raises(ValueError, match=r"phrase '.*' yields no token: .*; use words"):
        encode_prompts(tokenizer, [prompt], max_tokens=256)


@pytest.mark.parametrize(
    "text, unknown",
    [
        ("a red key", ()),
        ("a 🔑 and 红色的钥匙", ("🔑", "红色的钥匙")),
        ("Москва café", ()),
        ("key❤️shoes", ("key❤️shoes",)),
    ],
)
def test_words_that_the_tokenizer_cannot_read_are_named(tokenizer, text, unknown):
    assert tokenizer.unknown_words(text) == unknown


def test_a_caption_too_long_is_an_error_and_nothing_is_cut(tokenizer):
    caption = "cat " * 255
    with pytest.raises(ValueError) as caught:
        encode_prompts(tokenizer, [Prompt.from_caption(caption, ["cat"])], max_tokens=256)
    assert str(caught.value).startswith("caption needs 257 tokens, the model reads 256: shorten it, or pass its things")
    exact = encode_prompts(tokenizer, [Prompt.from_caption(caption[4:], ["cat"])], max_tokens=256)
    assert exact.input_ids.shape == (1, 256)


def test_captions_are_padded_to_the_longest(tokenizer):
    batch = encode_prompts(tokenizer, [Prompt.parse("a cat"), Prompt.parse("a red bus. a dog")], max_tokens=256)
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 8)
    assert batch.attention_mask.sum(1).tolist() == [4, 8]
    assert batch.input_ids[0, 4:].tolist() == [0] * 4
    assert [tuple(rows.shape) for rows in batch.phrase_tokens] == [(1, 8), (2, 8)]


def test_positive_map_is_the_union_of_phrases(tokenizer):
    weights = encode_prompts(tokenizer, [Prompt.parse("red bus. dog. cat")], max_tokens=256).phrase_tokens[0]
    rows = positive_map(weights, [(0,), (1, 2), (2,)])
    assert [row.nonzero().flatten().tolist() for row in rows] == [[1, 2], [4, 6], [6]]


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no vocab.txt or tokenizer.json there: give a model folder"):
        Tokenizer(tmp_path)
