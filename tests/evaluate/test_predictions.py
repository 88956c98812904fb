"""The detector over samples: each with its own words, what cannot be used counted; predictions on disk after a kill."""

from dataclasses import replace

import pytest
import torch
from alike import assert_alike
from PIL import Image
from scored import captioned, detections, sample

from glip.data.sets import SkipCounter
from glip.encoded import FeatureCache
from glip.errors import DataError
from glip.evaluate import run
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions, detect_all
from glip.structures import Prompt


@pytest.fixture
def passes(tiny_detector, monkeypatch):
    """How many rows each pass of the image encoder, "image", and of the texts, "text", has taken."""
    counted = {"image": [], "text": []}
    text = tiny_detector.encode_text
    hook = tiny_detector.model.vision.register_forward_pre_hook(lambda _, given: counted["image"].append(len(given[0])))
    monkeypatch.setattr(tiny_detector, "encode_text", lambda *a, **more: counted["text"].append(1) or text(*a, **more))
    yield counted
    hook.remove()


def test_each_image_has_its_own_words(tiny_detector, image, passes):
    """And one vocabulary is encoded once."""
    listed = replace(sample(["red thing", "blue thing"]), image=image)
    other = replace(sample(["green thing"]), image=image)
    said = replace(captioned("a red thing above a blue one", ["red thing", "blue one"], []), image=image)
    pairs = list(detect_all(tiny_detector, [listed, said, other, listed, listed]))
    assert len(passes["text"]) == 3
    texts = [
        ("red thing", "blue thing"),
        ("red thing", "blue one"),
        ("green thing",),
        *[("red thing", "blue thing")] * 2,
    ]
    assert [found.prompt.texts for _, found in pairs] == texts
    for given, found in pairs:
        assert_alike(found, tiny_detector(image, given.prompt or Prompt.from_names(given.vocabulary), threshold=0.0))


def test_kept_images_are_encoded_once_and_found_the_same(tiny_detector, image, passes):
    file, wide = replace(sample(["red thing"]), image=image), image.resize((90, 60))
    samples = [file, replace(file, image=wide), replace(file, image=wide.copy())]
    plain = list(detect_all(tiny_detector, samples))
    size = sum(level.numel() * 4 for level in tiny_detector.encode_image(wide).levels)
    for room, wanted in ((1.0, 3), (2.5 * size / 1e9, 4), (0.0, 6)):
        kept = FeatureCache(room)
        passes["image"].clear()
        again = [pair for _ in range(2) for pair in detect_all(tiny_detector, samples, kept=kept)]
        assert len(passes["image"]) == wanted
        for (_, one), (_, other) in zip(plain * 2, again, strict=True):
            assert_alike(one, other)


def test_what_cannot_be_looked_at_is_counted(tiny_detector, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, endless = replace(sample(["thing"]), image=image), " ".join(["thing"] * 400)
    samples = [replace(good, image=tmp_path / name) for name in ("broken.png", "missing.png")]
    samples += [replace(good, vocabulary=()), replace(captioned(endless, ["thing"], []), image=image), good]
    tally = SkipCounter()
    assert [given for given, _ in detect_all(tiny_detector, samples, tally=tally)] == [good]
    reasons = {"unreadable image": 2, "image without words to look for": 1, "caption that the model cannot read": 1}
    assert tally.counts == reasons and "broken.png" in tally.places["unreadable image"][0]
    with pytest.raises(ValueError, match="tokens"):
        list(detect_all(tiny_detector, [replace(sample([endless]), image=image)]))


def test_an_image_is_encoded_once_for_all_its_captions(tiny_detector, image, tmp_path, passes):
    """Sentences of one image, as in Flickr30K, and a vocabulary in three chunks: one backbone pass each."""
    file = tmp_path / "one.png"
    image.save(file)
    said = [replace(captioned(f"a {word} thing", [f"{word} thing"], []), image=file) for word in ("red", "blue", "old")]
    pairs = list(detect_all(tiny_detector, said))
    assert passes["image"] == [1]
    for given, found in pairs:
        assert_alike(found, tiny_detector(file, given.prompt, threshold=0.0))
    passes["image"].clear()
    names = [f"{colour} thing {number}" for number in range(5) for colour in ("red", "blue")][:9]
    options = QueryOptions(batch_size=2, max_names=3, max_detections=0, chunk_detections=2)
    [(_, found)] = detect_all(tiny_detector, [replace(sample(names), image=file)], options=options)
    assert passes["image"] == [1]
    parts = torch.bincount(found.labels // 3, minlength=3)
    assert (parts >= 2).all() and parts.sum() < 12, "each chunk keeps its best two, and what ties with them"
    for first in range(0, len(names), 3):  # the release's way: image and text anew for every chunk
        alone = tiny_detector(file, names[first : first + 3], threshold=0.0, max_detections=2)
        own = found.select((found.labels >= first) & (found.labels < first + 3))
        assert_alike(replace(own, labels=own.labels - first), alone)


@pytest.mark.parametrize("batch_size", [2, 16])
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


# ---- on disk


SETTINGS = {"model": "tiny", "set": "one"}
SAMPLES = [replace(sample(["cat", "dog"]), image_id=number) for number in range(6)]
FOUND = detections(SAMPLES[0], [((1.5, 2.25, 30.1, 40.7), 0.7123456, 1), ((0, 0, 5, 5), 0.5, 0)])


def written(folder, *indices, process=0, flush=True):
    store = PredictionStore(folder, SETTINGS, process=process)
    for index in indices:
        store.add(Prediction(index, FOUND))
    if flush:
        store.flush()
    return store


def test_predictions_come_back_bit_for_bit_in_the_order_of_the_samples(tmp_path):
    store, skipped = written(tmp_path, 5, 2), Prediction(3, None, "unreadable image", "a.jpg, line 7")
    store.add(skipped)
    store.flush()
    again = PredictionStore(tmp_path, SETTINGS).read(SAMPLES, QueryOptions())
    first, second, third = (one for _, one in again)
    assert (first.index, second, third.index) == (2, skipped, 5)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(first.found, name), getattr(FOUND, name))
    assert (first.found.size, first.found.prompt) == (FOUND.size, FOUND.prompt)


def test_after_a_kill_the_rest_is_predicted_again(tmp_path, monkeypatch):
    written(tmp_path, 0, 1)
    written(tmp_path, 2, flush=False)
    (tmp_path / ".part-0-000001.npz.partial").write_bytes(b"PK cut off")
    assert PredictionStore(tmp_path, SETTINGS).done == {0, 1}
    monkeypatch.setattr(run, "_DETECTIONS", 2)
    assert written(tmp_path, 2, flush=False).done == {0, 1, 2}, "a full part is written at once"
    with pytest.raises(ValueError, match='made with model "tiny", not "large"'):
        PredictionStore(tmp_path, SETTINGS | {"model": "large"})


def test_processes_read_one_another(tmp_path):
    main = written(tmp_path, 0, 1)
    written(tmp_path, 2, 3, process=1)
    for process in range(3):
        assert PredictionStore(tmp_path, SETTINGS, process=process).done == {0, 1, 2, 3}
    main.reload()
    assert [one.index for _, one in main.read(SAMPLES, QueryOptions())] == [0, 1, 2, 3]


def test_a_deleted_part_is_predicted_again_and_replaces_no_other(tmp_path):
    for number in range(3):
        written(tmp_path, number)
    (tmp_path / "part-0-000001.npz").unlink()  # as the error of a damaged part says
    assert written(tmp_path, 1).done == PredictionStore(tmp_path, SETTINGS).done == {0, 1, 2}


@pytest.mark.parametrize("first", range(3))
def test_a_changed_byte_is_found(tmp_path, first):
    """Also in the heads of the columns, whose shapes decide what is read, and which the file's checksums leave out."""
    store = written(tmp_path, 0, 1)
    wanted = list(store.read(SAMPLES, QueryOptions()))
    [path] = tmp_path.glob("part-*.npz")
    good, refused = path.read_bytes(), 0
    for place in range(first, len(good), 31):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        try:
            found = list(PredictionStore(tmp_path, SETTINGS).read(SAMPLES, QueryOptions()))
        except DataError as error:
            assert "part-0-000000.npz' are damaged" in str(error) and "delete the file" in str(error)
            refused += 1
            continue
        assert [one.index for _, one in found] == [one.index for _, one in wanted]
        for (_, one), (_, other) in zip(found, wanted, strict=True):
            assert torch.equal(one.found.boxes, other.found.boxes) and torch.equal(one.found.scores, other.found.scores)
    assert refused > 20
