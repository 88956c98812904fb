"""Characters <-> tokens: the only home of the question "which tokens name this phrase?".

A span is mapped as the 2022 release maps it (``create_positive_map``): from the token of its first character (or of
the next two) to the token of its last character (or of the two before), everything between included. Unlike there,
the search stays within the span, so a span of dropped characters never stands for its neighbours.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import Encoding
from tokenizers.implementations import BertWordPieceTokenizer  # type: ignore[attr-defined]
from torch.nn.utils.rnn import pad_sequence

from glip.errors import CheckpointError, GlipError
from glip.shapes import Bool, Float, Tensor
from glip.structures import TextBatch
from glip.text.phrases import Span
from glip.text.prompt import Prompt

UNKNOWN = "[UNK]"
_REACH = 3  # how many characters are tried at either end of a span


class Tokenizer:
    """BERT's uncased word pieces, from a folder with ``vocab.txt`` or ``tokenizer.json``.

    Raises:
        CheckpointError: the folder holds no tokenizer, or a broken one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        whole, vocabulary = self.folder / "tokenizer.json", self.folder / "vocab.txt"
        self.files = [file for file in (whole, vocabulary) if file.is_file()]
        if not self.files:
            raise CheckpointError(f"{self.folder}: no vocab.txt or tokenizer.json there: give a model folder with one")
        try:
            self._bert: tokenizers.Tokenizer | BertWordPieceTokenizer = (
                tokenizers.Tokenizer.from_file(str(whole))
                if whole.is_file()
                else BertWordPieceTokenizer.from_file(str(vocabulary))
            )
            missing = [word for word in (UNKNOWN, "[CLS]", "[SEP]") if self._bert.token_to_id(word) is None]
            problem = f"no {missing[0]} in it" if missing else ""
            self.size = 1 + max(self._bert.get_vocab().values(), default=0)  # the largest id and one
        except Exception as error:  # the library raises Exception itself
            problem = str(error)
        if problem:
            raise CheckpointError(f"{self.folder}: its tokenizer cannot be read ({problem[:200]}): copy it again")

    def __call__(self, caption: str) -> Encoding:
        """Tokenize one caption, never truncated: ``ids`` and ``offsets``, [CLS] and [SEP] included."""
        return self._bert.encode(caption)

    def words(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The word pieces of token ids, to be read by people."""
        return tuple(self._bert.id_to_token(number) or "" for number in ids)

    def unknown_places(self, text: str) -> list[Span]:
        """The characters [start, end) of each word, or part of one, that the tokenizer cannot read ([UNK])."""
        read = self(text)
        return [place for token, place in zip(read.tokens, read.offsets, strict=True) if token == UNKNOWN]

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that the tokenizer cannot read, such as emoji: any of them is [UNK] to the model."""
        return tuple(word for word in text.split() if UNKNOWN in self(word).tokens)


def alike(tokenizer: Tokenizer, written: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of names whose texts have the same tokens, such as Cat and cat: no model can tell them apart."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, text in written.items():
        groups.setdefault(tuple(tokenizer(text).ids), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def span_tokens(tokens: Encoding, span: Span) -> range:
    """The tokens that name a character range; empty when no character of its ends belongs to a token."""
    start, end = span
    firsts = (tokens.char_to_token(place) for place in range(start, min(start + _REACH, end)))
    lasts = (tokens.char_to_token(place) for place in range(end - 1, max(end - 1 - _REACH, start - 1), -1))
    first = next((token for token in firsts if token is not None), None)
    last = next((token for token in lasts if token is not None), None)
    return range(0) if first is None or last is None else range(first, last + 1)


def phrase_tokens(tokens: Encoding, prompt: Prompt) -> list[list[int]]:
    """For each phrase the indices of its tokens; spans that overlap repeat a token, as in the 2022 release.

    Raises:
        GlipError: a phrase that yields no token.
    """
    found = [[token for span in phrase.spans for token in span_tokens(tokens, span)] for phrase in prompt.phrases]
    for phrase, indices in zip(prompt.phrases, found, strict=True):
        if not indices:
            raise GlipError(
                f"phrase {phrase.text!r} yields no token: an end of it is white space or characters that the "
                "tokenizer drops; use words"
            )
    return found


def encode_prompts(tokenize: Callable[[str], Encoding], prompts: Sequence[Prompt], *, max_tokens: int) -> TextBatch:
    """Tokenize captions and pad them to the longest.

    The release pads to 256 always; padded positions never influence valid ones, so the results are the same.

    Raises:
        GlipError: a caption over ``max_tokens``, or a phrase without tokens.
    """
    encoded = [tokenize(prompt.caption) for prompt in prompts]
    input_ids = pad_sequence([torch.tensor(tokens.ids) for tokens in encoded], batch_first=True)
    lengths = torch.tensor([len(tokens.ids) for tokens in encoded])
    weights = []
    for tokens, prompt in zip(encoded, prompts, strict=True):
        if len(tokens.ids) > max_tokens:
            raise GlipError(
                f"caption needs {len(tokens.ids)} tokens, the model reads {max_tokens}: shorten it, or pass its "
                f"things as a list of names (it begins {prompt.caption[:40]!r})"
            )
        rows = torch.zeros(len(prompt.phrases), input_ids.shape[1])
        for row, own in zip(rows, phrase_tokens(tokens, prompt), strict=True):
            row.index_add_(0, torch.tensor(own), torch.full((len(own),), 1.0 / len(own)))
        weights.append(rows)
    attention_mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return TextBatch(input_ids, attention_mask, tuple(weights), tuple(prompts))


def warn_of_unknown_words(unknown_words: Callable[[str], tuple[str, ...]], prompts: Sequence[Prompt]) -> None:
    """Warn of words in which a tokenizer finds unknown ones, such as emoji.

    Raises:
        GlipError: a prompt has no other words.
    """
    for prompt in prompts:
        words = " ".join(prompt.texts)
        if unknown := tuple(dict.fromkeys(unknown_words(words))):
            listed = ", ".join(repr(word[:40]) for word in unknown[:5]) + (
                f" and {len(unknown) - 5} more" if unknown[5:] else ""
            )
            if len(unknown) == len(set(words.split())):
                raise GlipError(f"prompt: the model cannot read {listed}: write it in English words")
            warnings.warn(f"the model cannot read {listed}: to it such words are all alike", stacklevel=4)


def positive_map(weights: Float[Tensor, "phrase tok"], box_phrases: Sequence[Sequence[int]]) -> Bool[Tensor, "box tok"]:
    """Which tokens name each box: the union of the tokens of the phrases it answers to."""
    rows = torch.zeros(len(box_phrases), weights.shape[1], dtype=torch.bool)
    for row, phrases in enumerate(box_phrases):
        rows[row] = (weights[list(phrases)] > 0).any(0)
    return rows
