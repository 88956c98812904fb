"""The detector over samples: each with its own words, the vocabulary encoded once, what cannot be used counted."""

from dataclasses import replace

import pytest
import torch
from alike import assert_alike
from PIL import Image
from scored import captioned, sample

from glip.data.sets import SkipCounter
from glip.encoded import FeatureCache
from glip.evaluate.run import QueryOptions, detect_all
from glip.structures import Prompt


def test_each_image_has_its_own_words(tiny_detector, image):
    listed = replace(sample(["red thing", "blue thing"]), image=image)
    other = replace(sample(["green thing"]), image=image)
    said = replace(captioned("a red thing above a blue one", ["red thing", "blue one"], []), image=image)
    pairs = list(detect_all(tiny_detector, [listed, said, other, listed]))
    assert [found.prompt.texts for _, found in pairs] == [
        ("red thing", "blue thing"),
        ("red thing", "blue one"),
        ("green thing",),
        ("red thing", "blue thing"),
    ]
    for given, found in pairs:
        prompt = given.prompt or Prompt.from_names(given.vocabulary)
        alone = tiny_detector(image, prompt, threshold=0.0)
        assert_alike(found, alone)


def test_a_vocabulary_is_encoded_once(tiny_detector, image, monkeypatch):
    calls = []
    encode = tiny_detector.encode_text
    monkeypatch.setattr(tiny_detector, "encode_text", lambda *args, **more: calls.append(args) or encode(*args, **more))
    one = replace(sample(["red thing", "blue thing"]), image=image)
    assert len(list(detect_all(tiny_detector, [one] * 4))) == 4
    assert len(calls) == 1


def test_kept_images_are_encoded_once_and_found_the_same(tiny_detector, image, monkeypatch):
    file, wide = replace(sample(["red thing"]), image=image), image.resize((90, 60))
    samples = [file, replace(file, image=wide), replace(file, image=wide.copy())]
    plain = list(detect_all(tiny_detector, samples))
    calls = []
    encode = tiny_detector.encode_image
    monkeypatch.setattr(tiny_detector, "encode_image", lambda images: calls.append(len(images)) or encode(images))
    size = sum(level.numel() * 4 for level in encode(wide).levels)
    for room, wanted in ((1.0, 3), (2.5 * size / 1e9, 4), (0.0, 6)):
        kept = FeatureCache(room)
        calls.clear()
        again = [pair for _ in range(2) for pair in detect_all(tiny_detector, samples, kept=kept)]
        assert len(calls) == wanted
        for (_, one), (_, other) in zip(plain * 2, again, strict=True):
            assert_alike(one, other)


def test_what_cannot_be_looked_at_is_counted(tiny_detector, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = replace(sample(["thing"]), image=image)
    endless = " ".join(["thing"] * 400)
    samples = [
        replace(good, image=broken),
        replace(good, image=tmp_path / "missing.png"),
        replace(good, vocabulary=()),
        replace(captioned(endless, ["thing"], []), image=image),
        good,
    ]
    tally = SkipCounter()
    pairs = list(detect_all(tiny_detector, samples, tally=tally))
    assert [given for given, _ in pairs] == [good]
    assert tally.counts == {
        "unreadable image": 2,
        "image without words to look for": 1,
        "caption that the model cannot read": 1,
    }
    assert "broken.png" in tally.places["unreadable image"][0]


def test_a_vocabulary_the_model_cannot_read_is_an_error(tiny_detector, image):
    with pytest.raises(ValueError, match="tokens"):
        list(detect_all(tiny_detector, [replace(sample([" ".join(["thing"] * 400)]), image=image)]))


def test_a_image_is_encoded_once_for_all_its_captions(tiny_detector, image, tmp_path, monkeypatch):
    """Five sentences of one image, as in Flickr30K, and a vocabulary in three chunks: one backbone pass each."""
    passes = []
    encode = tiny_detector.model.encode_image
    monkeypatch.setattr(
        tiny_detector.model, "encode_image", lambda pixels: passes.append(len(pixels)) or encode(pixels)
    )
    file = tmp_path / "one.png"
    image.save(file)
    said = [replace(captioned(f"a {word} thing", [f"{word} thing"], []), image=file) for word in ("red", "blue", "old")]
    pairs = list(detect_all(tiny_detector, said))
    assert passes == [1]
    for given, found in pairs:
        alone = tiny_detector(file, given.prompt, threshold=0.0)
        assert_alike(found, alone)
    passes.clear()
    names = replace(sample([f"thing {number}" for number in range(9)]), image=file)
    [(_, found)] = detect_all(
        tiny_detector, [names], options=QueryOptions(max_names=3, chunk_detections=2, max_detections=0)
    )
    assert passes == [1]
    parts = torch.bincount(found.labels // 3, minlength=3)
    assert (parts >= 2).all() and parts.sum() < 12, "each chunk keeps its best two, and what ties with them"


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_change_nothing(tiny_detector, batch_size, tmp_path):
    """Images of many sizes and words of both kinds, in batches, give what they give alone, in the same order."""
    samples = []
    for number, size in enumerate([(96, 64), (64, 96), (90, 60), (96, 64), (64, 64), (96, 64), (33, 90), (64, 96)]):
        file = tmp_path / f"{number}.png"
        Image.effect_noise(size, 90).convert("RGB").save(file)
        one = sample(["red thing", "blue thing"]) if number % 3 else captioned("a red thing", ["red thing"], [])
        samples += [replace(one, image=file, image_id=number)] * (1 + number % 2)
    alone = list(detect_all(tiny_detector, samples))
    together = list(detect_all(tiny_detector, samples, options=QueryOptions(batch_size=batch_size)))
    assert [given.image_id for given, _ in together] == [given.image_id for given in samples]
    for (_, one), (_, other) in zip(alone, together, strict=True):
        assert_alike(one, other)


def test_shared_chunks_find_what_separate_passes_find(tiny_detector, image):
    """An image encoded once for all chunks, against the release's way: image and text anew for every chunk."""
    names = [f"{colour} thing {number}" for number in range(4) for colour in ("red", "blue")]
    one = replace(sample(names), image=image)
    options = QueryOptions(batch_size=2, max_names=3, max_detections=0, chunk_detections=5)
    [(_, found)] = detect_all(tiny_detector, [one], options=options)
    for first in range(0, len(names), 3):
        alone = tiny_detector(image, names[first : first + 3], threshold=0.0, max_detections=5)
        own = found.select((found.labels >= first) & (found.labels < first + 3))
        assert_alike(replace(own, labels=own.labels - first), alone)
