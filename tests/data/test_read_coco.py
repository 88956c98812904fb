"""COCO json as it is found in the wild: what can be learned from is read, the rest is counted, never a crash."""

import json
from pathlib import Path

import pytest

from glip.data.coco import read_coco
from glip.data.sets import SampleSet

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def category(number, name):
    return {"id": number, "name": name, "supercategory": ""}


IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 640, "height": 480},
    {"id": "x", "file_name": "sub/b.jpg"},
    {"id": 9, "file_name": "c.jpg"},
]
CATEGORIES = [category(90, "tooth_brush"), category(3, "bat_(animal)"), category(40, "cat")]


def box(image=7, number=3, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image, "category_id": number, "bbox": list(bbox), **more}


def read(tmp_path, annotations, images=IMAGES, categories=CATEGORIES) -> SampleSet:
    tree = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    (tmp_path / "set.json").write_text(json.dumps(tree))
    return read_coco(tmp_path / "set.json", [tmp_path])


def test_ids_are_arbitrary_and_boxes_become_corners(tmp_path):
    found = read(tmp_path, [box(), box("x", 90, (0.5, 0, 10, 20)), box("x", 40, (5, 5, 1, 1))])
    assert found.vocabulary == ("bat", "cat", "tooth brush"), "by ascending id, cleaned"
    assert found.ids == (3, 40, 90)
    first, second, third = found.samples
    assert (first.image_id, second.image_id) == (7, "x")
    assert first.image == tmp_path / "a.jpg" and second.image == tmp_path / "sub" / "b.jpg"
    assert first.size == (640, 480) and second.size is None
    assert first.boxes.tolist() == [[1, 2, 4, 6]] and first.box_phrases == ((0,),)
    assert second.boxes.tolist() == [[0.5, 0, 10.5, 20], [5, 5, 6, 6]] and second.box_phrases == ((2,), (1,))
    assert third.boxes.shape == (0, 4) and third.box_phrases == (), "an image without boxes is a negative"
    assert all(sample.vocabulary == found.vocabulary and sample.prompt is None for sample in found.samples)
    assert all(sample.absent is None and sample.crowd == () for sample in found.samples)
    assert not found.skipped


def test_crowd_indices_skip_what_is_left_out(tmp_path):
    found = read(tmp_path, [box(bbox=(1, 1, 0, 0)), box(iscrowd=1, bbox=(1, 1, 0, 0)), box(), box(iscrowd=1)])
    assert found.samples[0].crowd == (1,) and len(found.samples[0].boxes) == 2


def test_real_set():
    file = SHARED / "data" / "bccd" / "annotations" / "instances_val.json"
    if not file.is_file():
        pytest.skip(f"no shared data: {file}")
    found = read_coco(file, [SHARED / "data" / "bccd" / "images"])
    tree = json.loads(file.read_text())
    assert found.vocabulary == ("red blood cell", "white blood cell", "platelet") and not found.skipped
    assert len(found.samples) == len(tree["images"])
    assert sum(len(sample.boxes) for sample in found.samples) == len(tree["annotations"])
    assert all(sample.image.is_file() and sample.size for sample in found.samples)
