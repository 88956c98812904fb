"""The detector over samples: each with its own words, the vocabulary encoded once, what cannot be used counted."""

from dataclasses import replace

import pytest
import torch
from scored import captioned, sample

from glip.data.sets import Tally
from glip.evaluate.run import detect_all
from glip.structures import Prompt


def test_each_picture_has_its_own_words(tiny_detector, picture):
    listed = replace(sample(["red thing", "blue thing"]), picture=picture)
    other = replace(sample(["green thing"]), picture=picture)
    said = replace(captioned("a red thing above a blue one", ["red thing", "blue one"], []), picture=picture)
    pairs = list(detect_all(tiny_detector, [listed, said, other, listed]))
    assert [found.prompt.texts for _, found in pairs] == [
        ("red thing", "blue thing"),
        ("red thing", "blue one"),
        ("green thing",),
        ("red thing", "blue thing"),
    ]
    for given, found in pairs:
        prompt = given.prompt or Prompt.from_names(given.vocabulary)
        alone = tiny_detector(picture, prompt, threshold=0.0)
        assert len(found) and torch.equal(found.boxes, alone.boxes) and torch.equal(found.scores, alone.scores)


def test_a_vocabulary_is_encoded_once(tiny_detector, picture, monkeypatch):
    calls = []
    encode = tiny_detector.encode_text
    monkeypatch.setattr(tiny_detector, "encode_text", lambda prompt: calls.append(prompt) or encode(prompt))
    one = replace(sample(["red thing", "blue thing"]), picture=picture)
    assert len(list(detect_all(tiny_detector, [one] * 4))) == 4
    assert len(calls) == 1


def test_what_cannot_be_looked_at_is_counted(tiny_detector, picture, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = replace(sample(["thing"]), picture=picture)
    endless = " ".join(["thing"] * 400)
    samples = [
        replace(good, picture=broken),
        replace(good, picture=tmp_path / "missing.png"),
        replace(good, vocabulary=()),
        replace(captioned(endless, ["thing"], []), picture=picture),
        good,
    ]
    tally = Tally()
    pairs = list(detect_all(tiny_detector, samples, tally=tally))
    assert [given for given, _ in pairs] == [good]
    assert tally.counts == {
        "unreadable picture": 2,
        "picture without words to look for": 1,
        "caption that the model cannot read": 1,
    }
    assert "broken.png" in tally.places["unreadable picture"][0]


def test_a_vocabulary_the_model_cannot_read_is_an_error(tiny_detector, picture):
    with pytest.raises(ValueError, match="tokens"):
        list(detect_all(tiny_detector, [replace(sample([" ".join(["thing"] * 400)]), picture=picture)]))
