"""MDETR's json and grounding_silver_*.json: spans become phrases, whatever names nothing is counted."""

import json
from pathlib import Path

import pytest

from glip.data.grounding import read_mdetr, read_silver

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"

CAPTION = "a cat and a dog chase another dog"  # spans: a cat 0-5, a dog 10-15, another dog 22-33


def image(number, caption=CAPTION, **more):
    return {"id": number, "file_name": f"{number}.jpg", "width": "64", "height": "48", "caption": caption, **more}


def box(image, *spans, bbox=(1, 2, 3, 4), **more):
    return {"id": 5, "image_id": image, "bbox": list(bbox), "tokens_positive": [list(span) for span in spans], **more}


def read(tmp_path, images, annotations, folders=None):
    (tmp_path / "mixed.json").write_text(json.dumps({"images": images, "annotations": annotations, "info": []}))
    return read_mdetr(tmp_path / "mixed.json", folders or [tmp_path])


def test_equal_spans_are_one_phrase(tmp_path):
    annotations = [
        box(1, (10, 15)),
        box(1, (0, 5)),
        box(2, (0, 5)),
        box(1, (10, 15), bbox=(5, 5, 2, 2), iscrowd=1),
        box(1, (22, 33), (10, 15)),
        box(1, (10, 15), (22, 33)),
    ]
    found = read(tmp_path, [image(1), image(2)], annotations)
    first, second = found.samples
    assert first.prompt.caption == CAPTION and first.prompt.texts == ("a cat", "a dog", "a dog another dog")
    assert first.prompt.phrases[2].spans == ((10, 15), (22, 33))
    assert first.box_phrases == ((1,), (0,), (1,), (2,), (2,)) and first.crowd == (2,)
    assert first.boxes.tolist()[:3] == [[1, 2, 4, 6], [1, 2, 4, 6], [5, 5, 7, 7]]
    assert first.size == (64, 48) and first.image_id == 1 and first.vocabulary == ()
    assert second.prompt.texts == ("a cat",) and second.box_phrases == ((0,),)
    assert found.vocabulary == () and not found.skipped


def test_listed_phrases_share_a_box(tmp_path):
    listed = [[[0, 5]], [[10, 15]], [[22, 33]]]
    images = [image(1, tokens_positive_eval=listed), image(2, tokens_positive_eval=[*listed[:2], "?", [[90, 91]]])]
    annotations = [box(n, *spans) for n in (1, 2) for spans in (((22, 33), (10, 15)), ((0, 5),))]
    first, second = read(tmp_path, images, annotations).samples
    assert first.prompt.texts == ("a cat", "a dog", "another dog") and first.box_phrases == ((1, 2), (0,))
    assert second.prompt.texts == ("a cat", "a dog another dog"), "one of the spans is of no listed phrase"


# ---- grounding_silver_*.json

TWO_CATS = "two cats near a dog"


def phrase(start=0, end=8, boxes=((1, 2, 3, 4),), **more):
    return {"phrase": "two cats", "tokens_positive": [[start, end]], "boxes": [list(b) for b in boxes], **more}


def entry(*phrases, **more):
    named = {"id": 57, "image_id": 9, "file_name": "9.jpg", "width": 64, "height": 48, "caption": TWO_CATS}
    return {**named, "phrases": list(phrases), **more}


def read_entries(tmp_path, *entries):
    (tmp_path / "silver.json").write_text(json.dumps({"info": {}, "data": list(entries)}))
    return read_silver(tmp_path / "silver.json", [tmp_path])


def test_phrases_and_boxes(tmp_path):
    found = read_entries(
        tmp_path, entry(phrase(14, 19), phrase(boxes=[(0, 0, 2, 2), (1, 1, 5, 5)])), entry(phrase(), id=None)
    )
    first, second = found.samples
    assert first.prompt.caption == TWO_CATS and first.prompt.texts == ("two cats", "a dog")
    assert first.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 2, 2], [1, 1, 6, 6]] and first.box_phrases == (
        (1,),
        (0,),
        (0,),
    )
    assert first.image == tmp_path / "9.jpg" and first.size == (64, 48)
    assert (first.image_id, second.image_id) == ("9:57", "9:1")
    assert not found.skipped


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
