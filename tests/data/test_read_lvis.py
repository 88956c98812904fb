"""LVIS json: what an image's annotators looked for, and what nobody looked for, are told apart."""

import json
from pathlib import Path

import pytest

from glip.data.coco import read_lvis

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
CATEGORIES = [
    {"id": 1, "name": "bow_(weapon)"},
    {"id": 4, "name": "alarm_clock"},
    {"id": 9, "name": "bow_(decorative_ribbons)"},
]


def image(number, **more):
    named = {"coco_url": f"http://images.cocodataset.org/val2017/{number}.jpg", "width": 64, "height": 48}
    return {"id": number, **named, "neg_category_ids": [], "not_exhaustive_category_ids": [], **more}


def box(image, number):
    return {"id": 5, "image_id": image, "category_id": number, "bbox": [1, 2, 3, 4], "area": 12.0}


def read(tmp_path, images, annotations=(), folders=None):
    tree = {"images": images, "annotations": list(annotations), "categories": CATEGORIES}
    (tmp_path / "lvis.json").write_text(json.dumps(tree))
    return read_lvis(tmp_path / "lvis.json", folders or [tmp_path])


def test_federated_labels(tmp_path):
    images = [image(1, neg_category_ids=[9, 4], not_exhaustive_category_ids=[1]), image(2)]
    found = read(tmp_path, images, [box(1, 1)])
    assert found.vocabulary == ("bow", "alarm clock", "bow") and found.ids == (1, 4, 9), "twins stay apart"
    first, second = found.samples
    assert first.absent == (1, 2) and first.incomplete == (0,) and first.box_phrases == ((0,),)
    assert first.boxes.tolist() == [[1, 2, 4, 6]] and first.size == (64, 48)
    assert second.absent == () and second.incomplete == (), "nothing is known to be absent, not everything"
    assert not found.skipped


def test_unknown_ids_and_missing_lists_are_counted(tmp_path):
    images = [
        image(1, neg_category_ids=[9, 77, [1]], not_exhaustive_category_ids=[78]),
        image(2, neg_category_ids=None, not_exhaustive_category_ids="all"),
        image(3, neg_category_ids=[1, 4]),
    ]
    found = read(tmp_path, images, [box(3, 1), box(3, 5)])
    assert found.skipped.counts == {
        "unknown category in neg_category_ids": 2,
        "unknown category in not_exhaustive_category_ids": 1,
        "image without neg_category_ids": 1,
        "image without not_exhaustive_category_ids": 1,
        "name in neg_category_ids that has a box": 1,
        "unknown category": 1,
    }
    assert [sample.absent for sample in found.samples] == [(2,), (), (1,)]


def test_images_are_found_by_name_or_by_the_end_of_their_url(tmp_path):
    coco = tmp_path / "coco"
    for name in ("val2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"):
        (coco / name).parent.mkdir(parents=True, exist_ok=True)
        (coco / name).touch()
    images = [
        image(1),
        image(2, coco_url="http://images.cocodataset.org/train2017/2.jpg"),
        image(3, file_name="COCO_val2014_3.jpg"),
    ]
    expected = [coco / name for name in ("val2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg")]
    minival = [image(4, file_name="val2017/1.jpg", coco_url="")]
    for folders in ([coco], [coco / "train2017", coco / "val2017"]):
        assert [sample.image for sample in read(tmp_path, images, folders=folders).samples] == expected
        assert [sample.image for sample in read(tmp_path, minival, folders=folders).samples] == expected[:1]


def test_real_lists(tmp_path):
    old = SHARED / "data" / "lists" / "lvis_v0.5_val_100_boxes.json"
    new = SHARED / "golden" / "eval" / "lvis" / "synth_v1_chunked" / "annotations.json"
    if not (old.is_file() and new.is_file()):
        pytest.skip(f"no shared data: {old}")
    for file, boxes, names in ((old, 977, 1230), (new, 648, 130)):
        tree = json.loads(file.read_text())
        found = read_lvis(file, [tmp_path])
        assert sum(len(sample.boxes) for sample in found.samples) == boxes and len(found.vocabulary) == names
        assert not found.skipped
        for sample, record in zip(found.samples, tree["images"], strict=True):
            assert sample.image_id == record["id"] and sample.size == (record["width"], record["height"])
            assert {found.ids[label] for label in sample.absent} == set(record["neg_category_ids"])
            assert {found.ids[label] for label in sample.incomplete} == set(record["not_exhaustive_category_ids"])
    assert read_lvis(old, [tmp_path]).samples[0].image == tmp_path / "val2017" / "000000266409.jpg"
