"""COCO, LVIS, MDETR, silver, ODVG and our own labels: what is in a good file comes out. For bad ones, see
test_bad_records.py."""

import json
from pathlib import Path

import pytest
import torch

from glip.data.check import check
from glip.data.coco import read_coco, read_lvis
from glip.data.grounding import read_mdetr, read_odvg, read_silver
from glip.data.labels import read_labels
from glip.structures import Phrase, TarMember

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")


def read_tree(reader, folder, folders=None, **lists):
    (folder / "set.json").write_text(json.dumps({"info": {}, **lists}))
    return reader(folder / "set.json", folders or [folder])


def write_lines(folder, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "set.jsonl").write_bytes(b"\n".join(lines))
    return folder / "set.jsonl"


# ---- COCO and LVIS


def coco_box(image=7, number=3, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image, "category_id": number, "bbox": list(bbox), **more}


def test_coco_ids_are_arbitrary_and_boxes_become_corners(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}, {"id": "x", "file_name": "sub/b.jpg"}]
    images.append({"id": 9, "file_name": "c.jpg"})
    categories = [{"id": 90, "name": "tooth_brush"}, {"id": 3, "name": "bat_(animal)"}, {"id": 40, "name": "cat"}]
    flat = {"bbox": (1, 1, 0, 0)}
    rows = [coco_box(**flat), coco_box(**flat, iscrowd=1), coco_box(), coco_box(iscrowd=1)]
    rows += [coco_box("x", 90, (0.5, 0, 10, 20)), coco_box("x", 40, (5, 5, 1, 1))]
    found = read_tree(read_coco, tmp_path, images=images, annotations=rows, categories=categories)
    assert found.vocabulary == ("bat", "cat", "tooth brush"), "by ascending id, cleaned"
    assert found.ids == (3, 40, 90) and found.skipped.counts == {"box without area": 2}
    first, second, third = found.samples
    assert (first.image_id, second.image_id) == (7, "x")
    assert first.image == tmp_path / "a.jpg" and second.image == tmp_path / "sub" / "b.jpg"
    assert first.size == (640, 480) and second.size is None
    assert first.boxes.tolist() == [[1, 2, 4, 6]] * 2 and first.box_phrases == ((0,), (0,)) and first.crowd == (1,)
    assert second.boxes.tolist() == [[0.5, 0, 10.5, 20], [5, 5, 6, 6]] and second.box_phrases == ((2,), (1,))
    assert third.boxes.shape == (0, 4) and third.box_phrases == (), "an image without boxes is a negative"
    assert all(sample.vocabulary == found.vocabulary and sample.prompt is None for sample in found.samples)
    assert all(sample.absent is None for sample in found.samples)


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_whole_floats_are_ids(tmp_path, kind):
    """As pandas, R and JavaScript write them, and as pycocotools takes them."""
    tree = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [coco_box()]}
    tree["categories"] = [{"id": 3, "name": 5}]
    tree[kind] = [
        {key: float(value) if type(value) is int else value for key, value in row.items()} for row in tree[kind]
    ]
    found = read_tree(read_coco, tmp_path, **tree)
    assert found.ids == (3,) and found.vocabulary == ("5",) and not found.skipped, "a name may be a number"
    assert [type(one) for one in (*found.ids, found.samples[0].image_id)] == [int, int]
    assert found.samples[0].image_id == 7 and found.samples[0].box_phrases == ((0,),)


@pytest.mark.parametrize("outline", [[[1, 2, 4, 2, 4, 6, 1, 6]], {"size": [9, 9], "counts": [11, 4, 5, 4, 5, 4, 48]}])
def test_a_box_that_is_not_stated_is_that_of_the_outline(tmp_path, outline):
    row = {**coco_box(), "segmentation": outline}
    del row["bbox"]
    images, categories = [{"id": 7, "file_name": "a.jpg"}], [{"id": 3, "name": "cat"}]
    found = read_tree(read_coco, tmp_path, images=images, annotations=[row], categories=categories)
    assert found.samples[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert found.skipped.counts == {"annotation without a box (that of its segmentation is taken)": 1}
    report = check(found)
    assert report.remarks.counts.keys() >= found.skipped.counts.keys(), "no fault"


LVIS_NAMES = ("bow_(weapon)", "alarm_clock", "bow_(decorative_ribbons)")
LVIS_CATEGORIES = [{"id": number, "name": name} for number, name in zip((1, 4, 9), LVIS_NAMES, strict=True)]


def lvis_image(number, **more):
    named = {"coco_url": f"http://images.cocodataset.org/val2017/{number}.jpg", "width": 64, "height": 48}
    return {"id": number, **named, "neg_category_ids": [], "not_exhaustive_category_ids": [], **more}


def test_lvis_tells_absent_from_unknown(tmp_path):
    images = [
        lvis_image(1, neg_category_ids=[9, 4], not_exhaustive_category_ids=[1]),
        lvis_image(2),
        lvis_image(3, neg_category_ids=[9, 77, [1]], not_exhaustive_category_ids=[78]),
        lvis_image(4, neg_category_ids=None, not_exhaustive_category_ids="all"),
        lvis_image(5, neg_category_ids=[1, 4]),
    ]
    rows = [coco_box(1, 1), coco_box(5, 1)]
    found = read_tree(read_lvis, tmp_path, images=images, annotations=rows, categories=LVIS_CATEGORIES)
    assert found.vocabulary == ("bow", "alarm clock", "bow") and found.ids == (1, 4, 9), "twins stay apart"
    assert [sample.absent for sample in found.samples] == [(1, 2), (), (2,), (), (1,)], "not everything is absent"
    assert [sample.incomplete for sample in found.samples] == [(0,), (), (), (), ()]
    assert found.samples[0].boxes.tolist() == [[1, 2, 4, 6]] and found.samples[0].box_phrases == ((0,),)
    assert found.skipped.counts == {
        "unknown category in neg_category_ids": 2,
        "unknown category in not_exhaustive_category_ids": 1,
        "image without neg_category_ids": 1,
        "image without not_exhaustive_category_ids": 1,
        "name in neg_category_ids that has a box": 1,
    }


def test_lvis_images_are_found_by_name_or_by_the_end_of_their_url(tmp_path):
    coco = tmp_path / "coco"
    expected = [coco / name for name in ("val2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg")]
    for file in expected:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    images = [lvis_image(1), lvis_image(2, coco_url="http://x.org/train2017/2.jpg")]
    images.append(lvis_image(3, file_name="COCO_val2014_3.jpg"))
    minival = [lvis_image(4, file_name="val2017/1.jpg", coco_url="")]
    for folders in ([coco], [coco / "train2017", coco / "val2017"]):
        for listed in (images, minival):
            found = read_tree(read_lvis, tmp_path, folders, images=listed, annotations=[], categories=LVIS_CATEGORIES)
            assert [sample.image for sample in found.samples] == expected[: len(listed)]


@real
def test_real_lvis_lists(tmp_path):
    old = SHARED / "data" / "lists" / "lvis_v0.5_val_100_boxes.json"
    new = SHARED / "golden" / "eval" / "lvis" / "synth_v1_chunked" / "annotations.json"
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


# ---- MDETR's json and grounding_silver_*.json

CAPTION = "a cat and a dog chase another dog"  # spans: a cat 0-5, a dog 10-15, another dog 22-33
A_CAT, A_DOG, ANOTHER = (0, 5), (10, 15), (22, 33)


def mdetr_image(number, **more):
    return {"id": number, "file_name": f"{number}.jpg", "width": "64", "height": "48", "caption": CAPTION, **more}


def mdetr_box(image, *spans, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image, "bbox": list(bbox), "tokens_positive": [list(span) for span in spans], **more}


def test_mdetr_equal_spans_are_one_phrase(tmp_path):
    crowd = mdetr_box(1, A_DOG, bbox=(5, 5, 2, 2), iscrowd=1)
    rows = [mdetr_box(1, A_DOG), mdetr_box(1, A_CAT), mdetr_box(2, A_CAT), crowd]
    rows += [mdetr_box(1, ANOTHER, A_DOG), mdetr_box(1, A_DOG, ANOTHER)]
    found = read_tree(read_mdetr, tmp_path, images=[mdetr_image(1), mdetr_image(2)], annotations=rows)
    first, second = found.samples
    assert first.prompt.caption == CAPTION and first.prompt.texts == ("a cat", "a dog", "a dog another dog")
    assert first.prompt.phrases[2].spans == (A_DOG, ANOTHER)
    assert first.box_phrases == ((1,), (0,), (1,), (2,), (2,)) and first.crowd == (2,)
    assert first.boxes.tolist()[:3] == [[1, 2, 4, 6], [1, 2, 4, 6], [5, 5, 7, 7]]
    assert first.size == (64, 48) and first.image_id == 1 and first.vocabulary == ()
    assert second.prompt.texts == ("a cat",) and second.box_phrases == ((0,),)
    assert found.vocabulary == () and not found.skipped


def test_mdetr_listed_phrases_share_a_box(tmp_path):
    listed = [[A_CAT], [A_DOG], [ANOTHER]]
    images = [mdetr_image(1, tokens_positive_eval=listed)]
    images.append(mdetr_image(2, tokens_positive_eval=[*listed[:2], "?", [[90, 91]]]))
    rows = [mdetr_box(number, *spans) for number in (1, 2) for spans in ((ANOTHER, A_DOG), (A_CAT,))]
    first, second = read_tree(read_mdetr, tmp_path, images=images, annotations=rows).samples
    assert first.prompt.texts == ("a cat", "a dog", "another dog") and first.box_phrases == ((1, 2), (0,))
    assert second.prompt.texts == ("a cat", "a dog another dog"), "one of the spans is of no listed phrase"


def test_silver_phrases_and_boxes(tmp_path):
    cat, dogs = ({"tokens_positive": [span], "boxes": boxes} for span, boxes in ((A_CAT, [[1, 2, 3, 4]]), (A_DOG, [])))
    dogs["boxes"] = [[0, 0, 2, 2], [1, 1, 5, 5]]
    entry = {"id": 57, "image_id": 9, "file_name": "9.jpg", "width": 64, "height": 48, "caption": CAPTION}
    entries = [entry | {"phrases": [dogs, cat]}, entry | {"phrases": [cat], "id": None}]
    found = read_tree(read_silver, tmp_path, data=entries)
    first, second = found.samples
    assert first.prompt.caption == CAPTION and first.prompt.texts == ("a cat", "a dog")
    assert first.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 6, 6], [1, 2, 4, 6]]
    assert first.box_phrases == ((1,), (1,), (0,)) and first.image == tmp_path / "9.jpg" and first.size == (64, 48)
    assert (first.image_id, second.image_id) == ("9:57", "9:1") and not found.skipped


@real
def test_real_silver_sets():
    folder = SHARED / "data" / "coco_mini"
    for split, captions, boxes in (("train", 431, 932), ("val", 137, 296), ("test", 233, 438)):
        found = read_silver(folder / "annotations" / f"grounding_silver_{split}.json", [folder / "images"])
        assert not found.skipped
        assert len(found.samples) == captions == len({sample.image_id for sample in found.samples})
        assert sum(len(sample.boxes) for sample in found.samples) == boxes
        assert all(sample.image.is_file() for sample in found.samples)
    entries = json.loads((folder / "annotations" / "grounding_silver_test.json").read_text())["data"]
    for sample, stated in zip(found.samples, entries, strict=True):
        assert sorted(sample.prompt.texts) == sorted(item["phrase"] for item in stated["phrases"])


# ---- ODVG

SAID = "a cart, a car and another car"  # a cart 0-6, a car 8-13, another car 18-29


def instance(label=0, category="person", bbox=(1, 2, 3, 4)):
    return {"bbox": list(bbox), "label": label, "category": category}


def detection(*instances):
    return {"filename": "d.jpg", "height": 48, "width": 64, "detection": {"instances": list(instances)}}


def region(phrase="a car", bbox=(1, 2, 3, 4), **more):
    return {"bbox": list(bbox), "phrase": phrase, **more}


def grounding(*regions):
    return {"filename": "g.jpg", "height": 48, "width": 64, "grounding": {"caption": SAID, "regions": list(regions)}}


def odvg(folder, *rows, names=True):
    (folder / "names.json").write_text(json.dumps({"0": "person", "7": "tooth_brush", "3": "bat_(animal)"}))
    return read_odvg(write_lines(folder, *rows), [folder], folder / "names.json" if names else "")


def test_odvg_detection_with_a_label_map(tmp_path):
    two = detection(instance(0, None), instance(7, "Tooth_brush", (0.5, 0, 9, 9)))
    found = odvg(tmp_path, two, b"", detection(), grounding(region()))
    assert found.vocabulary == ("person", "bat", "tooth brush") and found.ids == (0, 3, 7)
    first, second, third = found.samples
    assert first.boxes.tolist() == [[1, 2, 3, 4], [0.5, 0, 9, 9]] and first.box_phrases == ((0,), (2,))
    assert first.image == tmp_path / "d.jpg" and first.size == (64, 48) and first.image_id == 1
    assert first.vocabulary == found.vocabulary and first.prompt is None
    assert second.boxes.shape == (0, 4) and second.image_id == 3, "an image without boxes is a negative"
    assert third.prompt is not None and third.vocabulary == () and not found.skipped


def test_odvg_vocabulary_is_gathered_from_the_categories(tmp_path):
    rows = [detection(instance(4, "zebra_(animal)"), instance(0)), detection(), detection(instance(9, "zebra"))]
    found = odvg(tmp_path, *rows, names=False)
    assert found.vocabulary == ("zebra", "person") and found.ids == ()
    assert [sample.box_phrases for sample in found.samples] == [((0,), (1,)), (), ((0,),)]
    assert all(sample.vocabulary == found.vocabulary for sample in found.samples)


def test_odvg_grounding_with_spans(tmp_path):
    twice = region("Another car.", [[1, 2, 3, 4], [5, 5, 6, 6]], tokens_positive=[[18, 29]])
    parts = region(["a", "car"], tokens_positive=[[10, 13], [8, 9]])
    alone = region(None, (7, 7, 8, 8), tokens_positive=[[18, 29]])
    found = odvg(tmp_path, grounding(twice, parts, alone), names=False)
    (sample,) = found.samples
    assert sample.prompt.caption == SAID and sample.prompt.texts == ("a car", "another car")
    assert sample.prompt.phrases[0].spans == ((8, 9), (10, 13))
    assert sample.boxes.tolist() == [[1, 2, 3, 4], [5, 5, 6, 6], [1, 2, 3, 4], [7, 7, 8, 8]]
    assert sample.box_phrases == ((1,), (1,), (0,), (1,)) and sample.vocabulary == ()
    assert found.vocabulary == () and not found.skipped


def test_odvg_phrases_without_spans_are_whole_words(tmp_path):
    words = [region("car"), region("a boat", (9, 9, 11, 11)), region("Car", (5, 5, 6, 6)), region("a cart")]
    pieces = [region(["a cart", "another"]), region("car")]
    found = odvg(tmp_path, grounding(*words), grounding(*pieces), names=False)
    assert found.skipped.places == {"phrase that is not in the caption": ["line 1, region 1"]}
    first, second = found.samples
    assert first.boxes.tolist()[:2] == [[1, 2, 3, 4], [5, 5, 6, 6]]
    assert [phrase.spans for phrase in first.prompt.phrases] == [((0, 6),), ((10, 13),), ((26, 29),)]
    assert first.box_phrases == ((1,), (2,), (0,)), "a repeated word is found in turn, and not inside 'cart'"
    assert [phrase.spans for phrase in second.prompt.phrases] == [((0, 6), (18, 25)), ((26, 29),)]


# ---- our own labels

PHRASES = [{"text": "a dog", "spans": [[0, 5]]}, {"spans": [[10, 15]]}]
BOXES = [{"box": [1, 2, 30.5, 40], "phrases": [1, 0], "score": 0.9}, {"box": [0, 0, 9, 9], "phrases": [0]}]
GOOD = {"image": "a.jpg", "width": 640, "height": 480, "caption": "a dog and a cat", "phrases": PHRASES, "boxes": BOXES}


def labels(folder, *rows):
    return read_labels(write_lines(folder, *rows), [folder])


def test_labels_of_a_caption(tmp_path):
    listed, other = GOOD | {"list": True, "classes": [3, -1]}, GOOD | {"classes": [3]}
    found = labels(tmp_path, GOOD, b"", GOOD | {"id": 17, "boxes": [], "phrases": [], "width": None}, listed, other)
    first, second, third, fourth = found.samples
    assert first.image == tmp_path / "a.jpg" and first.image_id == "a.jpg" and first.size == (640, 480)
    assert first.prompt.caption == "a dog and a cat" and first.caption == "" and not first.prompt.is_list
    assert first.prompt.phrases == (Phrase("a dog", ((0, 5),)), Phrase("a cat", ((10, 15),)))
    assert torch.equal(first.boxes, torch.tensor([[1, 2, 30.5, 40], [0, 0, 9, 9]]))
    assert first.box_phrases == ((1, 0), (0,)) and first.scores == (0.9, 1.0), "without a score: drawn by people"
    assert (second.image_id, second.caption, second.prompt, second.size) == (17, "a dog and a cat", None, None)
    assert second.scores == () and found.skipped.counts == {}
    assert third.prompt.is_list and third.prompt.classes == (3, -1) and fourth.prompt.classes == (0, 1)


def test_label_names_hold_until_others_are_given(tmp_path):
    box = {"box": [1, 2, 3, 4], "phrases": [1], "crowd": True}
    first = {"image": "a.jpg", "names": ["dog", "cat"], "boxes": [box], "absent": [0, 7], "incomplete": [1]}
    last = {"image": "c.jpg", "boxes": [box | {"phrases": [0]}]}
    found = labels(tmp_path, first, {"image": "b.jpg", "boxes": []}, GOOD, last)
    first, second, third, fourth = found.samples
    assert first.vocabulary == second.vocabulary == fourth.vocabulary == ("dog", "cat") and third.vocabulary == ()
    assert (first.crowd, first.absent, first.incomplete) == ((0,), (0,), (1,)) and second.absent is None
    assert first.box_phrases == ((1,),) and fourth.box_phrases == ((0,),) and first.prompt is None
    assert found.vocabulary == (), "not one list of names for all"
    assert labels(tmp_path, {"image": "a.jpg", "names": ["dog"], "boxes": []}).vocabulary == ("dog",)


@pytest.mark.parametrize("bad", [{"image": "b.jpg", "names": ["owl", 5], "boxes": []}, b'{"names": ["owl"', b"7"])
def test_label_names_do_not_hold_beyond_a_line_that_may_have_had_others(tmp_path, bad):
    row = {"image": "c.jpg", "boxes": [{"box": [1, 2, 3, 4], "phrases": [0]}]}
    found = labels(tmp_path, row | {"names": ["dog"]}, bad, row, row | {"names": ["cat"], "image": ".."}, row)
    assert [sample.vocabulary for sample in found.samples] == [("dog",), ("cat",)], "a bad image takes no names along"
    assert found.skipped.counts["line with neither a caption nor names"] == 1


def test_labels_of_images_in_archives(tmp_path):
    found = labels(tmp_path, {"image": "0.tar", "member": "7.jpg", "start": 512, "length": 99, "caption": "a dog"})
    assert found.samples[0].image == TarMember(tmp_path / "0.tar", "7.jpg", 512, 99)


@pytest.mark.parametrize("spans", [[[0, 99]], None])
def test_a_bad_phrase_takes_only_its_own_boxes_along(tmp_path, spans):
    found = labels(tmp_path, GOOD | {"phrases": [{"text": "x", "spans": spans}, PHRASES[1]]})
    (sample,) = found.samples
    assert sample.prompt.texts == ("a cat",) and sample.box_phrases == ((0,),)
    assert found.skipped.counts["box of an unknown phrase"] == 1 and sum(found.skipped.counts.values()) == 2
