"""The Detector's promises, on a tiny model with random weights: every road to a result gives the same result."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from alike import assert_alike, identical
from drawn_world.scenes import Thing, draw_scene
from PIL import Image
from torch.overrides import TorchFunctionMode

from glip.config import InferenceConfig
from glip.detector import Detector
from glip.device import choose_device
from glip.errors import GlipError, ImageError
from glip.geometry.boxes import iou
from glip.model.weights import ASSETS
from glip.postprocess import find_candidates
from glip.results import Detection
from glip.structures import Detections, Prompt

PROMPT = "a red bus. a cyclist. dog"
NAMES = ["a red bus", "cyclist", "dog", "traffic light", "car", "cart", "zebra"]


@pytest.fixture(scope="module")
def images(image) -> list[Image.Image]:
    """Four of different shapes, so that they fall into different batches."""
    return [image, image.resize((60, 200)), image.resize((97, 64)), image.rotate(90).resize((300, 40))]


def union(parts: dict[int, Detections], prompt: Prompt) -> Detections:
    """The detections of several lists of names as one, best first; keys are the labels of their first names."""
    boxes = torch.cat([part.boxes for part in parts.values()])
    scores = torch.cat([part.scores for part in parts.values()])
    labels = torch.cat([part.labels + first for first, part in parts.items()])
    size = next(iter(parts.values())).size
    return Detections(boxes, scores, labels, prompt, size).select(scores.argsort(descending=True, stable=True))


def test_kinds_of_input_give_the_same(tiny_detector, image, tmp_path):
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = tiny_detector(image, PROMPT)
    data = (tmp_path / "a.png").read_bytes()
    files = (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data))
    for kind in (*files, array, tensor, tensor.float() / 255):
        assert_alike(tiny_detector(kind, PROMPT), expected)
    for several in ([array], iter([array]), array[None], tensor[None]):
        (listed,) = tiny_detector(several, PROMPT)
        assert_alike(listed, expected)
    with pytest.raises(ImageError, match="image in memory is not an image that Pillow can read"):
        tiny_detector(b"hello", PROMPT)


def test_prompts_of_every_form_give_the_same(tiny_detector, image):
    expected = tiny_detector(image, PROMPT)
    names = ["a red bus", "a cyclist", "dog"]
    spans = [(0, 9), (11, 20), (22, 25)]
    caption = "a red bus. a cyclist. dog"
    for prompt in (names, tuple(names), Prompt.from_names(names), Prompt.from_caption(caption, names)):
        assert_alike(tiny_detector(image, prompt), expected)
    assert_alike(tiny_detector(image, Prompt.from_caption(caption, spans)), expected)


def test_boxes_lie_in_the_image_and_labels_in_the_prompt(tiny_detector, images):
    for image, found in zip(images, tiny_detector(images, PROMPT), strict=True):
        assert len(found) > 3 and found.size == (image.height, image.width)
        assert torch.isfinite(found.boxes).all() and (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= image.width).all() and (found.boxes[:, 3] <= image.height).all()
        assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    wide = next(found for found in tiny_detector(images, PROMPT) if found.size == (40, 300))
    assert wide.boxes[:, 2].max() > 160, "boxes are in original pixels, not in those of the resized image"


def test_detections_are_indexed_and_compared_like_a_list(tiny_detector, image):
    found = tiny_detector(image, PROMPT)[:3]
    listed = list(found)
    for index, (box, score, label, phrase) in enumerate(found):
        assert phrase == ("a red bus", "a cyclist", "dog")[label] == found.phrases[index].text
        assert (len(box), score) == (4, found.scores[index].item())
    for key in (0, -1, np.int64(1), torch.tensor(2)):
        assert found[key] == listed[key] and isinstance(found[key], Detection)
    for key, places in (
        *[(slice(2), [0, 1]), (slice(None, None, -1), [2, 1, 0]), ([2, 0], [2, 0]), ([], [])],
        *[(np.array([1]), [1]), (found.scores >= found.scores[1], [0, 1]), (np.array([True, False, True]), [0, 2])],
    ):
        assert list(found[key]) == [listed[place] for place in places] and isinstance(found[key], Detections)
    for key in (3, "boxes"):
        with pytest.raises(IndexError):
            _ = found[key]
    assert (found == found[:]) is True and (found == found[::-1]) is False and found != listed
    assert found != replace(found, token_scores=torch.zeros(3, 5)) and found != replace(found, size=(1, 1))


def test_a_stream_gives_the_same_in_order_and_opens_few_images(tiny_detector, images):
    """One odd image among many of one size is not kept waiting, and nothing is opened long before its turn."""
    listed, opened = [images[1], *[images[0]] * 30, images[2]], []
    found = tiny_detector.stream((opened.append(image) or image for image in listed), PROMPT, batch_size=2)
    for number, (image, one) in enumerate(zip(listed, found, strict=True)):
        assert len(opened) <= number + 2 * 4 + 2
        assert one.size == (image.height, image.width)
        if number in (0, 1, 31):
            assert_alike(one, tiny_detector(image, PROMPT), scores=1e-4, boxes=1e-2)
    with pytest.raises(GlipError, match="nms"):
        tiny_detector.stream(listed, PROMPT, nms=2.0)  # checked when it is made


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_batch_equals_one_by_one(tiny_detector, images, batch_size):
    doubled = [*images, *images[::-1]]
    together = tiny_detector(doubled, PROMPT, batch_size=batch_size)
    alone = {id(image): tiny_detector(image, PROMPT) for image in images}
    for image, found in zip(doubled, together, strict=True):
        assert_alike(found, alone[id(image)], scores=1e-4, boxes=1e-2)


def test_a_prompt_for_each_image(tiny_detector, images):
    prompts = [Prompt.parse("dog"), Prompt.parse(PROMPT), Prompt.from_caption("a car, a cart", ["cart"]), ["zebra"]]
    together = tiny_detector(images, prompts)
    for image, prompt, found in zip(images, prompts, together, strict=True):
        assert_alike(found, tiny_detector(image, prompt), scores=1e-4, boxes=1e-2)
        assert found.prompt.texts == (prompt.texts if isinstance(prompt, Prompt) else tuple(prompt))


def test_an_encoded_image_serves_many_prompts(tiny_detector, image):
    """And an encoded prompt many images."""
    both = [image, image.rotate(180)]
    encoded = tiny_detector.encode_image(both)
    for prompt in (PROMPT, NAMES, "cart"):
        for found, one in zip(tiny_detector.ground(encoded, tiny_detector.encode_text(prompt)), both, strict=True):
            assert_alike(found, tiny_detector(one, prompt), scores=1e-4, boxes=1e-2)


def test_a_chunked_vocabulary_is_the_union_of_its_chunks(tiny_detector, image):
    parts = {first: tiny_detector(image, NAMES[first : first + 3], max_detections=0) for first in (0, 3, 6)}
    everything = tiny_detector(image, NAMES, max_names=3, max_detections=0)
    assert_alike(everything, union(parts, Prompt.from_names(NAMES)), scores=1e-4, boxes=1e-2)
    assert len(everything) > 100
    assert_alike(tiny_detector(image, NAMES, max_names=3, max_detections=12), everything.select(torch.arange(12)))
    first = tiny_detector(image, NAMES, max_names=3, batch_size=1)
    assert_alike(first, everything.select(torch.arange(100)), scores=1e-4, boxes=1e-2)


def test_chunks_follow_the_token_limit(tiny_detector, image, monkeypatch):
    config = replace(tiny_detector.config, max_tokens=9)
    short = Detector(tiny_detector.model, config, tiny_detector.processor.tokenizer)
    seen, encode = [], short.processor.text
    note = lambda prompts: seen.extend(p.texts for p in prompts) or encode(prompts)  # noqa: E731
    monkeypatch.setattr(short.processor, "text", note)
    found = short(image, NAMES, max_detections=0)
    assert seen == [("a red bus", "cyclist", "dog"), ("traffic light", "car", "cart"), ("zebra",)]
    assert_alike(found, tiny_detector(image, NAMES, max_names=3, max_detections=0), scores=1e-4, boxes=1e-2)
    with pytest.raises(ValueError, match="caption needs 13 tokens, the model reads 9: shorten it, or pass its things"):
        short(image, Prompt.from_caption("one two three four five six seven eight nine ten eleven", ["two"]))
    with pytest.raises(ValueError, match="needs 13 tokens, the model reads 9: shorten it"):
        short(image, ["cat", "one two three four five six seven eight nine ten eleven"])


def test_one_cap_for_short_and_chunked_prompts_of_a_batch(tiny_detector, image):
    short, long = Prompt.from_names(NAMES[:2]), Prompt.from_names(NAMES)
    together = tiny_detector([image, image], [short, long], max_names=3, max_detections=7)
    for found, prompt in zip(together, (short, long), strict=True):
        assert_alike(found, tiny_detector(image, prompt, max_names=3, max_detections=7), scores=1e-4, boxes=1e-2)
        assert len(found) == 7


@pytest.mark.unchecked  # of NumPy and torch too
def test_thresholds(tiny_detector, image):
    everything = tiny_detector(image, PROMPT)
    middle = float(everything.scores.median())
    assert_alike(tiny_detector(image, PROMPT, threshold=middle), everything.above(middle))
    limits = torch.tensor([middle, 1.0, 0.0])
    found = tiny_detector(image, PROMPT, threshold=limits.tolist())
    assert_alike(found, everything.select(everything.scores >= limits[everything.labels]))
    assert not (found.labels == 1).any() and (found.labels == 2).any()
    for given in (limits, limits.numpy(), {"a red bus": np.float32(middle), "a cyclist": 1, "dog": torch.tensor(0.0)}):
        assert_alike(tiny_detector(image, PROMPT, threshold=given), found)
    usual = torch.tensor([1.0, *[tiny_detector.config.inference.threshold] * 2])
    some = tiny_detector(image, PROMPT, threshold={"a red bus": 1.0})
    assert_alike(some, everything.select(everything.scores >= usual[everything.labels]))
    assert_alike(tiny_detector(image, PROMPT, threshold=np.float32(middle)), everything.above(middle))
    stored = copy.copy(tiny_detector)
    stored.config = replace(tiny_detector.config, thresholds={"a Red bus": 1.0, "owl": 1.0})
    assert_alike(stored(image, PROMPT), some)
    assert_alike(stored(image, PROMPT, threshold=middle), everything.above(middle))
    assert_alike(stored(image, PROMPT, threshold={"a red bus": 0.0}), everything)
    nothing = tiny_detector(image, PROMPT, threshold=1)
    assert len(nothing) == 0 and list(nothing) == [] and nothing.boxes.shape == (0, 4)


class Waits(TorchFunctionMode):
    """Counts the operations for whose result a GPU would be waited for: sizes and values that Python must know."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        index = args[1] if func is torch.Tensor.__getitem__ else ()
        masks = [one for one in (index if isinstance(index, tuple) else (index,)) if isinstance(one, torch.Tensor)]
        known = {"nonzero", "tolist", "item", "__bool__", "__int__", "__float__", "masked_select", "unique"}
        self.count += func.__name__ in known or any(mask.dtype == torch.bool for mask in masks)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("limit", "waits"), [(10**6, 1), (3, 2)])  # a full level: their ends are read too
def test_candidates_are_waited_for_once(tiny_detector, image, limit, waits):
    batch = tiny_detector.processor([image], [Prompt.from_names(NAMES)])
    with torch.no_grad():
        outputs = tiny_detector.model(batch)
    config = InferenceConfig(candidate_threshold=0.0, candidates_per_level=limit)
    with Waits() as counted:
        found, places = find_candidates(outputs, 0, batch.text, batch.images.resized[0], config)
    assert counted.count == waits
    ends = torch.tensor([height * width for height, width in outputs.level_sizes]).cumsum(0)
    most = torch.bucketize(places, ends, right=True).bincount().max()
    assert len(found) == sum(min(limit, len(NAMES) * h * w) for h, w in outputs.level_sizes)
    assert most <= limit


def test_negatives_take_part_and_are_not_returned(tiny_detector, image):
    plain = tiny_detector(image, ["dog", "car", "cart"], max_detections=0)
    found = tiny_detector(image, Prompt.from_names(["dog"], negatives=["car", "cart"]), max_detections=0)
    assert_alike(found, plain.select(plain.labels == 0))
    assert set(found.labels.tolist()) == {0}
    twice = tiny_detector(image, ["dog", "dog"])
    assert set(twice.labels.tolist()) == {0, 1}, "a name that is there twice has two labels"
    assert {detection.phrase for detection in twice} == {"dog"}


def test_names_of_one_class_suppress_each_other(tiny_detector, image):
    prompt = Prompt.from_names(NAMES[:4], classes=[0, 0, 5, 5])
    for max_names in (None, 1):
        found = tiny_detector(image, prompt, nms=0.4, max_detections=0, max_names=max_names)
        assert set(found.classes.tolist()) == {0, 5} and len(set(found.labels.tolist())) > 2
        for number in (0, 5):
            boxes = found.boxes[found.classes == number]
            overlap = iou(boxes, boxes, inclusive=False) - torch.eye(len(boxes))
            assert overlap.max() < 0.45
    apart = tiny_detector(image, NAMES[:4], nms=0.4, max_detections=0)
    assert len(apart) > len(tiny_detector(image, prompt, nms=0.4, max_detections=0))


def test_max_detections(tiny_detector, image):
    everything = tiny_detector(image, NAMES, max_detections=0)
    assert len(everything) < 100 == len(tiny_detector(image, NAMES, nms=1))
    assert_alike(tiny_detector(image, NAMES), everything)
    assert_alike(tiny_detector(image, NAMES, max_detections=9), everything.select(torch.arange(9)))
    levels = tiny_detector.encode_image(image).levels
    candidates = sum(min(level.shape[2] * level.shape[3] * 3, 200) for level in levels)
    kept, fewer = (tiny_detector(image, PROMPT, nms=nms, max_detections=0) for nms in (1, None))
    assert len(fewer) < candidates == len(kept) and set(fewer) <= set(kept), "nms 1 keeps all"


def test_token_scores(tiny_detector, image):
    prompts = [Prompt.parse("a red bus. dog"), Prompt.parse("dog")]
    together = tiny_detector([image, image], prompts, token_scores=True)
    assert together[0].tokens == ("[CLS]", "a", "red", "bus", ".", "dog", "[SEP]")
    assert together[1].tokens == ("[CLS]", "dog", "[SEP]")
    for found in together:
        assert found.token_scores.shape == (len(found), len(found.tokens))
        own = {"a red bus": [1, 2, 3], "dog": [len(found.tokens) - 2]}
        for detection, scores in zip(found, found.token_scores, strict=True):
            mean = scores[own[detection.phrase]].mean()
            assert detection.score <= mean.sqrt() + 1e-5, "the score is the root of its tokens' mean times centerness"
        assert found.select(torch.tensor([0])).token_scores.shape[0] == 1
    assert tiny_detector(image, "dog").token_scores is None
    with pytest.raises(ValueError, match="token_scores need a prompt in one piece"):
        tiny_detector(image, NAMES, max_names=2, token_scores=True)


def test_saved_model_gives_the_same_bits(tiny_detector, tiny_folder, image):
    again = Detector.from_pretrained(tiny_folder, device="cpu")
    assert again.config == tiny_detector.config
    assert identical(tiny_detector(image, PROMPT), again(image, PROMPT))
    files = {"model.safetensors", "config.json", "vocab.txt", "run.json"}
    assert {path.name for path in tiny_folder.iterdir()} == files


def test_calls_repeat_and_leave_no_trace(tiny_detector, image):
    before = image.copy()
    first = tiny_detector(image, PROMPT)
    torch.rand(3)
    assert identical(tiny_detector(image, PROMPT), first)
    assert image == before and not tiny_detector.model.training
    assert not first.scores.requires_grad


def test_any_size(tiny_detector):
    for size in ((1, 1), (1, 300), (700, 2)):
        found = tiny_detector(Image.new("RGB", size, (90, 10, 200)), "dog")
        assert found.size == size[::-1] and torch.isfinite(found.boxes).all()
    assert tiny_detector([], "dog") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold.*: got 1.5"),
        ({"threshold": float("nan")}, "threshold.*: got nan"),
        ({"threshold": [0.5, 0.5]}, "threshold: got 2 for 3 phrases: give one number, or one per phrase"),
        ({"threshold": "0.3"}, "threshold: got '0.3': give a number"),
        ({"threshold": {"a red bu": 0.3}}, r"'a red bu' is no phrase of the prompt \(did you mean 'a red bus'"),
        ({"threshold": {"xyz": 0.3}}, "'xyz' is no phrase of the prompt: it has 'a red bus', 'a cyclist'"),
        ({"nms": 1.1}, "nms: got 1.1"),
        ({"max_detections": 2.5}, "max_detections: got 2.5: give a whole number"),
        ({"batch_size": "4"}, "batch_size: got '4': give a whole number"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
@pytest.mark.unchecked
def test_wrong_options_are_explained(tiny_detector, image, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector(image, PROMPT, **options)


def test_wrong_images_and_prompts_are_explained(tiny_detector, image):
    with pytest.raises(ImageError, match="'nowhere.jpg' is not there"):
        tiny_detector("nowhere.jpg", PROMPT)
    with pytest.raises(ValueError, match="names nothing"):
        tiny_detector(image, " ")
    with pytest.raises(GlipError, match="names nothing"):
        tiny_detector(image, [])
    with pytest.raises(ValueError, match="yields no token"):
        tiny_detector(image, ["cat", "\u200b"])
    with pytest.raises(GlipError, match="cannot read '🐈', '红色': write it in English"):
        tiny_detector(image, "🐈. 红色")
    with pytest.warns(UserWarning, match="cannot read '🐈': to it such words are all alike"):
        tiny_detector(image, "a cat. 🐈")
    with pytest.raises(ValueError, match="got 2 prompts for 3 images: give one, or one for each"):
        tiny_detector([image] * 3, [Prompt.parse("a"), Prompt.parse("b")])
    with pytest.raises(GlipError, match="got 2 prompts for more images: give one, or one for each"):
        tiny_detector(iter([image] * 3), [Prompt.parse("a"), Prompt.parse("b")])
    with pytest.raises(ValueError, match="got 2 prompts for 1 images"):
        text = tiny_detector.encode_text([Prompt.parse("a"), Prompt.parse("b")])
        tiny_detector.ground(tiny_detector.encode_image(image), text)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there_is_explained(device):
    with pytest.raises(ValueError, match=f"device '{device}' is not here: give one of cpu"):
        choose_device(device)


@pytest.mark.skipif(
    not (ASSETS / "glip-nano" / "model.safetensors").is_file(), reason="the bundled weights are not in this checkout"
)
def test_the_bundled_model_finds_a_drawn_thing():
    box = (60.0, 50.0, 190.0, 180.0)
    scene = draw_scene([Thing("star", "red", "plain", box)], (320, 260), 4)
    found = Detector.from_pretrained("glip-nano", device="cpu")(scene, ["red star"])
    assert len(found) and iou(found.boxes[:1], torch.tensor([box]), inclusive=False).item() > 0.5
