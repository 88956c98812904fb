"""Captions -> tokens against the 2022 release: which tokens name a phrase or a class, and what they score.

Where we differ on purpose the test says so: an input of which the release silently makes nothing, or something else
than was asked for, is an error here.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from glip.postprocess import phrase_scores
from glip.text.class_prompts import ClassPrompt, prompt_from_classes
from glip.text.prompt import NEGATIVE, SEPARATOR, Phrase, Prompt, clean_name, split_prompt
from glip.text.tokens import encode_prompts, phrase_tokens

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "eval" / "positive_map"
MAX_TOKENS = 256  # also the columns of the release's positive map, which cuts off what lies beyond
OUTSIDE, SILENT = "give at least one [start, end) within", "yields no token"
REFUSED = {  # (caption, entry): what the release maps to nothing, or to a place nobody named, is an error here
    ("span_past_the_end", 0): OUTSIDE,  # the release looks up to three characters back: "dog" of [0, 4)
    ("span_past_the_end", 1): OUTSIDE,
    ("span_past_the_end", 2): OUTSIDE,
    ("blanks_at_the_edges", 1): SILENT,
    ("blanks_at_the_edges", 3): SILENT,
    ("control_characters", 3): SILENT,
    ("empty_entry", 0): OUTSIDE,
    ("empty_caption", 0): OUTSIDE,
    ("degenerate_spans", 0): OUTSIDE,  # the release: the word that an empty span lies in
    ("degenerate_spans", 1): OUTSIDE,
}
TOO_LONG = {"over_256_tokens"}  # the release reads the first 256 tokens and finds nothing of the rest


@cache
def records(file):
    path = GOLDEN / file
    if not path.is_file():
        pytest.skip(f"no shared data: {path}")
    return {record["name"]: record for record in json.loads(path.read_text(encoding="utf-8"))}


# ---- captions.json


def entries():
    return [(record, number) for record in records("captions.json").values() for number in range(count(record))]


def count(record):
    return len(record["tokens_positive"])


def prompt_of(record, number):
    spans = tuple((start, end) for start, end in record["tokens_positive"][number])
    return Prompt(record["caption"], (Phrase("phrase", spans),))


def test_golden_tokens(tokenizer):
    for record in records("captions.json").values():
        tokens = tokenizer(record["caption"])
        assert list(tokens.ids) == record["input_ids"], record["name"]
        assert list(tokenizer.words(tokens.ids)) == record["tokens"], record["name"]
        assert [list(offset) for offset in tokens.offsets] == record["offsets"], record["name"]
        assert len(tokens.ids) == record["num_tokens"], record["name"]


def test_golden_positive_map(tokenizer):
    """Every entry of every caption through Prompt and batch: the release's tokens, or an error where it has none."""
    refused, compared = {}, 0
    for record, number in entries():
        expected = record["untruncated"]["positive_map_nonzero"][number]
        try:
            batch = encode_prompts(tokenizer, [prompt_of(record, number)], max_tokens=record["num_tokens"])
        except ValueError as error:
            refused[record["name"], number] = str(error)
            continue
        (row,) = batch.phrase_tokens[0][:, :MAX_TOKENS]
        tokens = row.nonzero().flatten().tolist()
        assert tokens == expected, (record["name"], number)
        if record["name"] not in TOO_LONG:
            # the release divides by the number of tokens + 1e-6; it never uses more than whether a value is zero
            value = record["untruncated"]["positive_map_value"][number]
            assert row[tokens].tolist() == pytest.approx([value] * len(tokens), rel=2e-6)
        compared += 1
    assert refused.keys() == REFUSED.keys()
    assert all(part in refused[place] for place, part in REFUSED.items())
    assert compared == len(entries()) - len(REFUSED) > 70


def test_golden_tokens_of_labels(tokenizer):
    """The maps by label; an entry's tokens in the order of its spans, and those over 256 too."""
    for record in records("captions.json").values():
        good = [number for number in range(count(record)) if (record["name"], number) not in REFUSED]
        rows = [phrase_tokens(tokenizer(record["caption"]), prompt_of(record, number))[0] for number in good]
        expected = record["untruncated"]
        assert rows == [expected["create_positive_dict_label_to_token"][str(number + 1)] for number in good]
        in_map = [sorted({token for token in row if token < MAX_TOKENS}) for row in rows]
        assert in_map == [expected["label_to_token_from_positive_map_plus1"][str(number + 1)] for number in good]


def test_golden_captions_are_never_cut(tokenizer):
    """Training targets of the release lose the phrases that its limit cuts off; we refuse such a caption."""
    for name, record in records("captions.json").items():
        cut, whole = record["truncated_256"], record["untruncated"]
        assert (cut != whole) == (name in TOO_LONG)
        if name in TOO_LONG:
            with pytest.raises(ValueError, match="caption needs 361 tokens, the model reads 256"):
                encode_prompts(tokenizer, [prompt_of(record, 0)], max_tokens=MAX_TOKENS)


# ---- queries.json


def names_of(record):
    return [clean_name(name) for _, name in sorted(record["categories"])]


def labels_of(record):
    return [number for number, _ in sorted(record["categories"])]


def our_prompt(record):
    if record["caption_prompt"]:
        prompts = {str(number): ClassPrompt(**part) for number, part in enumerate(record["caption_prompt"])}
        return prompt_from_classes(list(prompts), prompts)
    return Prompt.from_names(names_of(record), negatives=record["suppress_query"] or ())


def maps_of(chunks, record, tokenizer):
    """Of each prompt the caption, how many tokens it has, and the tokens of the classes that are returned, by label."""
    labels, maps = labels_of(record), []
    for first, prompt in chunks:
        tokens = tokenizer(prompt.caption)
        rows = phrase_tokens(tokens, prompt)
        wanted = {
            str(labels[first + index]): rows[index] for index, number in enumerate(prompt.classes) if number != NEGATIVE
        }
        maps.append({"caption": prompt.caption, "num_tokens": len(tokens.ids), "label_to_token": wanted})
    return maps


OTHER_ROADS = ("coco80_space", "names_to_clean", "empty_name", "over_256_tokens")
SAME_ROAD = (
    "coco80_dot",
    "coco80_chunk_40",
    "coco80_chunk_7",
    "lvis_real_names_chunk_40",
    "duplicate_names",
    "duplicate_labels_after_cleaning",
    "unicode_names",
    "suppress_query",
    "caption_prompt",
    "one_class",
    "separators_only",
)


def test_golden_every_query_has_a_test():
    assert sorted(records("queries.json")) == sorted(OTHER_ROADS + SAME_ROAD)


@pytest.mark.parametrize("name", SAME_ROAD)
def test_golden_queries(name, tokenizer):
    """Names, sorted by id and cleaned, become the release's captions, chunk by chunk, with the same tokens each."""
    record = records("queries.json")[name]
    most = record["chunk"] if record["chunk"] > 0 else None
    chunks = split_prompt(
        our_prompt(record), lambda text: len(tokenizer(text).ids), max_tokens=MAX_TOKENS, max_names=most
    )
    assert maps_of(chunks, record, tokenizer) == record["queries"]
    encode_prompts(tokenizer, [part for _, part in chunks], max_tokens=MAX_TOKENS)


@pytest.mark.parametrize("name", ["coco80_space", "names_to_clean", "empty_name"])
def test_golden_queries_as_captions(name, tokenizer):
    """What a list of names never is here: joined by blanks (no released config does so), or with an empty name.

    Of an empty name the release makes two separators, and finds nothing for it; we refuse it. Written as a caption
    with spans the same words have the same tokens.
    """
    record = records("queries.json")[name]
    (expected,) = record["queries"]
    start, spans = 0, []
    for text in names_of(record):
        spans.append((start, start + len(text)))
        start += len(text) + len(record["separation_tokens"])
    kept = {str(label): span for label, span in zip(labels_of(record), spans, strict=True) if span[0] < span[1]}
    prompt = Prompt.from_caption(expected["caption"], list(kept.values()))
    tokens = tokenizer(prompt.caption)
    assert dict(zip(kept, phrase_tokens(tokens, prompt), strict=True)) == expected["label_to_token"]
    assert len(tokens.ids) == expected["num_tokens"]
    if len(kept) < len(spans):
        with pytest.raises(ValueError, match="has a phrase '' with the spans .*: write what to look for"):
            our_prompt(record)
    else:
        assert record["separation_tokens"] != SEPARATOR


def test_golden_queries_over_256_tokens(tokenizer):
    """The release reads the first 256 of 631 tokens and finds nothing of the other names; we ask in three parts."""
    record = records("queries.json")["over_256_tokens"]
    prompt = our_prompt(record)
    whole = split_prompt(prompt, lambda text: len(tokenizer(text).ids), max_tokens=10_000)
    assert maps_of(whole, record, tokenizer) == record["queries"]
    with pytest.raises(ValueError, match="caption needs 631 tokens, the model reads 256"):
        encode_prompts(tokenizer, [prompt], max_tokens=MAX_TOKENS)
    chunks = split_prompt(prompt, lambda text: len(tokenizer(text).ids), max_tokens=MAX_TOKENS)
    maps = maps_of(chunks, record, tokenizer)
    assert len(maps) == 3 and all(part["num_tokens"] <= MAX_TOKENS for part in maps)
    assert [label for part in maps for label in part["label_to_token"]] == [str(label) for label in labels_of(record)]


# ---- token_scores


def scores_of(name, label_to_token, aggregate):
    """Our scores of phrases for the release's token probabilities, and theirs, (image, anchor, phrase)."""
    with np.load(GOLDEN / "token_scores.npz") as file:
        given = torch.from_numpy(file[f"{name}_in"])
        kinds = [f"{name}_{version}_{aggregate}" for version in ("v2", "v1")]
        theirs = [file[kind] for kind in kinds if kind in file]
    rows = torch.zeros(len(label_to_token), given.shape[-1])
    for label, tokens in label_to_token.items():
        rows[int(label) - 1, tokens] = 1 / len(tokens)
    logits = given.double().logit().float()
    ours = [phrase_scores(image, rows, aggregate.lower()).numpy() for image in logits]
    return np.stack(ours), theirs


def score_cases():
    path = GOLDEN / "token_scores.json"
    listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [(case["name"], case["agg"], case["label_to_token"]) for case in listed]


@pytest.mark.parametrize(("name", "aggregate", "label_to_token"), score_cases())
def test_golden_token_scores(name, aggregate, label_to_token):
    """The score of a phrase by mean, by max and by power (the geometric mean), from logits, so to float32.

    The release's table has unused columns of zeros, and of NaN for a phrase without a token; ours has a column for
    each phrase, and no phrase is without a token (``test_golden_positive_map``).
    """
    named = {label: tokens for label, tokens in label_to_token.items() if tokens}
    columns = [int(label) - 1 for label in named]
    numbered = {str(place + 1): tokens for place, tokens in enumerate(named.values())}
    ours, theirs = scores_of(name, numbered, aggregate)
    assert len(theirs) == (1 if aggregate == "POWER" else 2), "both of the release's functions, but for power"
    for table in theirs:
        np.testing.assert_allclose(ours, table[..., columns], rtol=0, atol=3e-7)
        unnamed = [int(label) - 1 for label, tokens in label_to_token.items() if not tokens]
        assert np.isnan(table[..., unnamed]).all() and not table[..., len(label_to_token) :].any()
