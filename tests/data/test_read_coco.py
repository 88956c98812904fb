"""COCO json as it is found in the wild: what can be learned from is read, the rest is counted, never a crash."""

import json
import math
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


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(number=4), "unknown category"),
        (box(number=[3]), "unknown category"),
        (box(number="3"), "unknown category"),
        (box(image=8), "unknown image"),
        (box(bbox=(1, 2, 0, 4)), "box without area"),
        (box(bbox=(1, 2, 3)), "malformed box"),
        (box(bbox=(1, 2, 3, math.nan)), "malformed box"),
        (box(bbox=(1, 2, 3, 10**400)), "malformed box"),
        (box(bbox=(1, 2, "3", 4)), "malformed box"),
        ({"image_id": 7, "category_id": 3}, "malformed box"),
        ({"image_id": 7, "bbox": [1, 2, 3, 4]}, "unknown category"),
        ([1, 2, 3, 4], "malformed annotation"),
    ],
)
def test_what_cannot_be_learned_is_counted(bad, reason, tmp_path):
    found = read(tmp_path, [box(), bad, box(), bad])
    assert found.skipped.counts == {reason: 2} and "annotations[1]" in found.skipped.places[reason][0]
    assert len(found.samples) == 3 and len(found.samples[0].boxes) == 2


def test_images_without_a_name_are_counted(tmp_path):
    images = [*IMAGES, {"id": 11}, {"file_name": "d.jpg"}, {"id": 12, "file_name": None}, "e.jpg", {"id": 13}]
    found = read(tmp_path, [box(), box(image=11), box(image=14)], images=images)
    assert found.skipped.counts == {
        "image without an id": 2,
        "image without a file name": 3,
        "unknown image": 1,
    }
    assert len(found.samples) == 3


def test_a_image_listed_twice(tmp_path):
    found = read(tmp_path, [box()], images=[*IMAGES, {"id": 7, "file_name": "other.jpg"}])
    assert found.skipped.counts == {"image id seen before": 1}
    assert found.samples[0].image == tmp_path / "a.jpg" and len(found.samples[0].boxes) == 1


def test_category_that_names_nothing(tmp_path):
    nameless = [category(1, "_(none)"), category(2, " "), category(4, "\u200b")]
    found = read(tmp_path, [box(number=1), box()], categories=[*nameless, *CATEGORIES])
    assert found.skipped.counts == {"category without a name": 3, "unknown category": 1}
    assert found.vocabulary == ("bat", "cat", "tooth brush") and found.ids == (3, 40, 90)
    assert found.samples[0].box_phrases == ((0,),)


@pytest.mark.parametrize(
    "wrong",
    [{"id": 1}, {"name": "cat"}, {"id": 1, "name": 5}, "cat", {"id": [1], "name": "cat"}, category(1, "\ud800")],
)
def test_wrong_category(wrong, tmp_path):
    with pytest.raises(ValueError, match="has no id and name"):
        read(tmp_path, [], categories=[wrong])


def test_two_categories_of_one_name(tmp_path):
    with pytest.raises(ValueError, match=r"categories 3 and 5 are both called 'bat'.*rename one"):
        read(tmp_path, [box()], categories=[category(5, "bat"), *CATEGORIES])
    found = read(tmp_path, [box()], categories=[category(5, "Bat"), *CATEGORIES])
    assert found.vocabulary == ("bat", "Bat", "cat", "tooth brush"), "letters of a board game differ in case only"


def test_two_categories_of_one_id(tmp_path):
    with pytest.raises(ValueError, match="category id 3 is listed twice"):
        read(tmp_path, [box()], categories=[category(3, "fox"), *CATEGORIES])


def test_nothing_to_look_for(tmp_path):
    with pytest.raises(ValueError, match="no category with a name"):
        read(tmp_path, [box()], categories=[])
    with pytest.raises(ValueError, match="no sample in it can be used"):
        read(tmp_path, [], images=[])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [', "not valid JSON"),
        ("[]", "not COCO json: no list 'images'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
    ],
)
def test_wrong_json(text, told, tmp_path):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_coco(tmp_path / "set.json", [tmp_path])


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
