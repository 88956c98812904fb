"""The Hugging Face adapter: through its Auto classes, its own pipeline and its push to the hub, as the Detector."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from glip.detector import Detector
from glip.errors import GlipError
from glip.model.glip import build
from glip.structures import Prompt

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
glip_hf = pytest.importorskip("glip.integrations.transformers")
NAMES = ["a cat", "St. Bernard", "T-shirt", "Ärger"]


@pytest.fixture(scope="module", params=["swin", "resnet"])
def detector(request, tiny_detector, tokenizer) -> Detector:
    """A Swin has a buffer that is not in the file."""
    if request.param == tiny_detector.config.vision.kind:
        return tiny_detector
    kind = replace(tiny_detector.config.vision, kind=request.param)
    config = replace(tiny_detector.config, vision=kind, trained_on=("drawings",), license="Apache-2.0")
    return Detector(build(config), config, tokenizer, "cpu")


@pytest.fixture(scope="module")
def pair(detector, tmp_path_factory):
    """Saved by us, loaded as ours, saved by the library, loaded by its Auto classes."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    detector.save_pretrained(ours)
    for part in glip_hf.from_glip(ours):
        part.save_pretrained(theirs)
    assert json.loads((theirs / "config.json").read_text())["model_type"] == "glip"
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(theirs)
    return model, transformers.AutoProcessor.from_pretrained(theirs)


def found_by(pair, images, text, **options):
    model, processor = pair
    inputs = processor(images=images, text=text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_grounded_object_detection(outputs, inputs.input_ids, **options)


@pytest.mark.parametrize("rank", [None, 30])
def test_the_same_detections_as_the_detector(pair, detector, image, rank):
    wide = image.resize((260, 120))
    prompts = [NAMES, Prompt.from_caption("a dog beside a red cat", ["a dog", "a red cat"])]
    for one, words in zip((image, wide), prompts, strict=True):
        size, every = [one.size[::-1]], detector(one, words)
        threshold = rank and float(every.scores[rank])
        (given,) = found_by(pair, one, [words], threshold=threshold, target_sizes=size, text_labels=[words])
        wanted = detector(one, words, threshold=threshold)
        assert len(wanted) == (31 if rank else len(every)) > 30 and torch.equal(given["boxes"], wanted.boxes)
        assert torch.equal(given["scores"], wanted.scores) and torch.equal(given["labels"], wanted.labels)
        assert given["text_labels"] == [phrase.text for phrase in wanted.phrases]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (["a cat", "a dog"], [["a cat", "a dog"]] * 2),
        ("A cat. a dog.", [["a cat", "a dog"]] * 2),
        (["a cat. a dog.", "t-shirt."], [["a cat", "a dog"], ["t - shirt"]]),
        ([["a cat"], ["a dog", "a car"]], [["a cat"], ["a dog", "a car"]]),
    ],
)
def test_text_of_a_batch_and_names_read_back(pair, detector, image, text, labels):
    both = found_by(pair, [image, image.rotate(180)], text, target_sizes=torch.tensor([[110, 150]] * 2))
    for one, names, shown in zip(both, labels, (image, image.rotate(180)), strict=True):
        wanted = detector(shown, [name.replace(" - ", "-") for name in names])
        assert set(one["text_labels"]) <= set(names) and torch.equal(one["labels"], wanted.labels)
        assert torch.allclose(one["boxes"], wanted.boxes, atol=1e-3)
    assert {name for one in both for name in one["text_labels"]} == {name for names in labels for name in names}


def test_bfloat16_is_that_of_the_detector(detector, image, tmp_path):
    for part in glip_hf.from_glip(detector.save_pretrained(tmp_path / "ours") or tmp_path / "ours"):
        part.save_pretrained(tmp_path)
    load = transformers.AutoModelForZeroShotObjectDetection.from_pretrained
    half = load(tmp_path, dtype=torch.bfloat16), transformers.AutoProcessor.from_pretrained(tmp_path)
    (given,) = found_by(half, image, [NAMES], target_sizes=[image.size[::-1]], text_labels=[NAMES])
    wanted = Detector.from_pretrained(tmp_path / "ours", device="cpu", dtype="bfloat16")(image, NAMES)
    assert torch.equal(given["boxes"], wanted.boxes) and not torch.equal(wanted.scores, detector(image, NAMES).scores)


def rounded(one):
    return one["label"], round(one["score"], 4), *one["box"].values()


def test_wrong_use_is_one_sentence(pair, image):
    with pytest.raises(GlipError, match="text_labels are not the text of input_ids"):
        found_by(pair, image, "a cat", text_labels=["a dog"])
    with pytest.raises(GlipError, match=r"target_sizes: got 2 for 1 images: give \(height, width\) of each"):
        found_by(pair, image, "a cat", target_sizes=[(1, 1)] * 2)


def test_a_pipeline_that_asks_all_labels_at_once(pair, detector, image, monkeypatch):
    model, processor = pair
    calls = list[int]()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    one_pass = glip_hf.GlipPipeline(model=model, processor=processor)
    wanted = detector(image, NAMES, threshold=0.05).to_dicts()
    assert one_pass(image, candidate_labels=NAMES, threshold=0.05) == wanted and len(calls) == 1
    assert one_pass([image] * 2, candidate_labels=NAMES, threshold=0.05, top_k=2) == [wanted[:2]] * 2
    # The library's own works too: one pass for each label.
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    theirs = transformers.pipeline("zero-shot-object-detection", model=model, **parts)
    calls.clear()
    found = theirs(image, candidate_labels=["St. Bernard", "a cat"], threshold=0.05)
    alone = [detector(image, [name], threshold=0.05).to_dicts() for name in ("St. Bernard", "a cat")]
    assert len(calls) == 2 and sorted(map(rounded, found)) == sorted(map(rounded, sum(alone, [])))


@pytest.mark.parametrize("card", ["", "---\npipeline_tag: mine\n---\n# Mine\n"])
def test_push_to_hub_sends_a_card(pair, monkeypatch, card):
    """To a stubbed client; a card that the repository has is kept."""
    sent = {"README.md": card.encode()} if card else {}
    load = huggingface_hub.ModelCard.load

    def load_sent(place, **_):
        if Path(place).is_file():
            return load(place)
        if "README.md" not in sent:
            raise huggingface_hub.errors.EntryNotFoundError("none")
        return huggingface_hub.ModelCard(sent["README.md"].decode())

    def commit(_, *, operations, **__):
        sent.update({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations})

    url = huggingface_hub.RepoUrl("https://huggingface.co/me/tiny")
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load_sent)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: url)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", commit)
    for part in pair:
        part.push_to_hub("me/tiny")
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= sent.keys()
    written = ["pipeline_tag: zero-shot-object-detection", "library_name: transformers", "# tiny"]
    if pair[0].config.model["license"]:
        written += ["license: apache-2.0", "Trained on: drawings."]
    assert all(words in sent["README.md"].decode() for words in (["# Mine"] if card else written))


def test_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "glip.integrations.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(GlipError, match=r"transformers is not installed: pip install .*\[transformers\]"):
        import glip.integrations.transformers  # noqa: F401
