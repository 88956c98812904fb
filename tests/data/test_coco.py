"""COCO json as it is found in the wild: what can be learned from is read, the rest is counted, never a crash."""

import json
import math

import pytest

from glip.data.readers.coco import CocoSet, read_coco


def category(number, name):
    return {"id": number, "name": name, "supercategory": ""}


IMAGES = [{"id": 7, "file_name": "a.jpg"}, {"id": "x", "file_name": "sub/b.jpg"}, {"id": 9, "file_name": "c.jpg"}]
CATEGORIES = [category(90, "tooth_brush"), category(3, "bat_(animal)"), category(40, "cat")]


def box(image=7, number=3, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image, "category_id": number, "bbox": list(bbox), **more}


def read(tmp_path, annotations, images=IMAGES, categories=CATEGORIES) -> CocoSet:
    tree = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    (tmp_path / "set.json").write_text(json.dumps(tree))
    return read_coco(tmp_path / "set.json", tmp_path)


def test_ids_are_arbitrary_and_boxes_become_corners(tmp_path):
    found = read(tmp_path, [box(), box("x", 90, (0.5, 0, 10, 20)), box("x", 40, (5, 5, 1, 1))])
    assert found.vocabulary == ("bat", "cat", "tooth brush"), "by ascending id, cleaned"
    first, second, third = found.samples
    assert (first.image_id, second.image_id) == (7, "x")
    assert first.picture == tmp_path / "a.jpg" and second.picture == tmp_path / "sub" / "b.jpg"
    assert first.boxes.tolist() == [[1, 2, 4, 6]] and first.box_phrases == ((0,),)
    assert second.boxes.tolist() == [[0.5, 0, 10.5, 20], [5, 5, 6, 6]] and second.box_phrases == ((2,), (1,))
    assert third.boxes.shape == (0, 4) and third.box_phrases == (), "a picture without boxes is a negative"
    assert all(sample.vocabulary == found.vocabulary and sample.prompt is None for sample in found.samples)
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(iscrowd=1), "crowd region"),
        (box(number=4), "unknown category"),
        (box(number=None), "unknown category"),
        (box(number=[3]), "unknown category"),
        (box(image=8), "unknown picture"),
        (box(image={}), "unknown picture"),
        (box(bbox=(1, 2, 0, 4)), "box without area"),
        (box(bbox=(1, 2, 3, -4)), "box without area"),
        (box(bbox=(1, 2, 3)), "malformed box"),
        (box(bbox=(1, 2, 3, 4, 5)), "malformed box"),
        (box(bbox=(1, 2, 3, math.nan)), "malformed box"),
        (box(bbox=(1, math.inf, 3, 4)), "malformed box"),
        (box(bbox=(1, 2, 3, 10**400)), "malformed box"),
        (box(bbox=(1, 2, "3", 4)), "malformed box"),
        (box(bbox=(1, 2, None, True)), "malformed box"),
        ({"image_id": 7, "category_id": 3}, "malformed box"),
        ({"image_id": 7, "category_id": 3, "bbox": 5}, "malformed box"),
        ({"image_id": 7, "bbox": [1, 2, 3, 4]}, "unknown category"),
        ([1, 2, 3, 4], "malformed annotation"),
        (None, "malformed annotation"),
    ],
)
def test_what_cannot_be_learned_is_counted(bad, reason, tmp_path):
    found = read(tmp_path, [box(), bad, box(), bad])
    assert found.skipped == {reason: 2}
    assert len(found.samples) == 3 and len(found.samples[0].boxes) == 2


def test_pictures_without_a_name_are_counted(tmp_path):
    images = [*IMAGES, {"id": 11}, {"file_name": "d.jpg"}, {"id": 12, "file_name": None}, "e.jpg"]
    found = read(tmp_path, [box(), box(image=11)], images=images)
    assert found.skipped == {"picture without id or file_name": 4, "unknown picture": 1}
    assert len(found.samples) == 3


def test_category_that_names_nothing(tmp_path):
    found = read(tmp_path, [box(number=1), box()], categories=[category(1, "_(none)"), *CATEGORIES, category(2, " ")])
    assert found.skipped == {"category without a name": 2, "unknown category": 1}
    assert found.vocabulary == ("bat", "cat", "tooth brush")
    assert found.samples[0].box_phrases == ((0,),)


@pytest.mark.parametrize("wrong", [{"id": 1}, {"name": "cat"}, {"id": 1, "name": 5}, "cat", {"id": [1], "name": "cat"}])
def test_wrong_category(wrong, tmp_path):
    with pytest.raises(ValueError, match="has no id and name"):
        read(tmp_path, [], categories=[wrong])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [', "not valid json"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
    ],
)
def test_wrong_json(text, told, tmp_path):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_coco(tmp_path / "set.json", tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "set.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not valid json"):
        read_coco(tmp_path / "set.json", tmp_path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*set\.json' are not there: set data\.root or GLIP_DATA"):
        read_coco(tmp_path / "set.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder '.*pictures' is not there: set data\.root or GLIP_DATA"):
        read_coco(tmp_path / "set.json", tmp_path / "pictures")
