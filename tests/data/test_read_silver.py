"""Captions with phrases and boxes of coco_mini."""

import json
from pathlib import Path

import pytest

from glip.data.grounding import read_silver

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
CAPTION = "two cats near a dog"


def phrase(start=0, end=8, boxes=((1, 2, 3, 4),), **more):
    return {"phrase": "two cats", "tokens_positive": [[start, end]], "boxes": [list(b) for b in boxes], **more}


def entry(*phrases, **more):
    named = {"id": 57, "image_id": 9, "file_name": "9.jpg", "width": 64, "height": 48, "caption": CAPTION}
    return {**named, "phrases": list(phrases), **more}


def read(tmp_path, *entries):
    (tmp_path / "silver.json").write_text(json.dumps({"info": {}, "data": list(entries)}))
    return read_silver(tmp_path / "silver.json", [tmp_path])


def test_phrases_and_boxes(tmp_path):
    found = read(tmp_path, entry(phrase(14, 19), phrase(boxes=[(0, 0, 2, 2), (1, 1, 5, 5)])), entry(phrase(), id=None))
    first, second = found.samples
    assert first.prompt.caption == CAPTION and first.prompt.texts == ("two cats", "a dog")
    assert first.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 2, 2], [1, 1, 6, 6]] and first.box_phrases == (
        (1,),
        (0,),
        (0,),
    )
    assert first.image == tmp_path / "9.jpg" and first.size == (64, 48)
    assert (first.image_id, second.image_id) == ("9:57", "9:1")
    assert not found.skipped


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (phrase(boxes=()), "phrase without a box"),
        ("two cats", "phrase without a box"),
        (phrase(10, 99), "span outside the caption"),
        (phrase(tokens_positive=None), "box without a phrase"),
        (phrase(boxes=[(1, 2, 0, 3)]), "box without area"),
    ],
)
def test_phrases_that_teach_nothing_are_counted(bad, reason, tmp_path):
    found = read(tmp_path, entry(phrase(), bad))
    assert found.skipped.counts == {reason: 1}
    assert found.skipped.places == {reason: ["data[0].phrases[1]"]}
    assert found.samples[0].prompt.texts == ("two cats",) and len(found.samples[0].boxes) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "entry without an image_id"),
        (entry(phrase(), image_id=None), "entry without an image_id"),
        (entry(phrase(), caption=" "), "image without a caption"),
        (entry(phrase(), file_name="../9.jpg"), "image name outside its folder"),
        (entry(), "caption without a box"),
    ],
)
def test_entries_that_teach_nothing_are_counted(bad, reason, tmp_path):
    found = read(tmp_path, entry(phrase()), bad)
    assert found.skipped.counts == {reason: 1} and found.skipped.places == {reason: ["data[1]"]}
    assert len(found.samples) == 1


def test_real_sets():
    folder = SHARED / "data" / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder}")
    for split, captions, boxes in (("train", 431, 932), ("val", 137, 296), ("test", 233, 438)):
        found = read_silver(folder / "annotations" / f"grounding_silver_{split}.json", [folder / "images"])
        assert not found.skipped
        assert len(found.samples) == captions == len({sample.image_id for sample in found.samples})
        assert sum(len(sample.boxes) for sample in found.samples) == boxes
        assert all(sample.image.is_file() for sample in found.samples)
    entries = json.loads((folder / "annotations" / "grounding_silver_test.json").read_text())["data"]
    for sample, stated in zip(found.samples, entries, strict=True):
        assert sorted(sample.prompt.texts) == sorted(item["phrase"] for item in stated["phrases"])
