"""Readers of RefCOCO, gRefCOCO and OVDEval: what is asked for, what is skipped, and files of other benchmarks."""

import json

import pytest
import torch

from glip.config import SetConfig
from glip.data.catalog import read_set, recognize
from glip.data.coco import read_ovdeval
from glip.data.expressions import read_grefcoco, read_refcoco

LONG = "the red cup left of the plate"


def row(image=1, **more):
    return {"image_id": image, "bbox": [1, 2, 3.5, 4], "category_id": 44, "tokens_positive": [[4, 11]], **more}


def image(number=1, name="refcoco", **more):
    stated = {"id": number, "file_name": "a.jpg", "caption": LONG, "dataset_name": name, "width": 9, "height": 8}
    return stated | more


EMPTY = {"bbox": [0, 0, 0, 0], "category_id": -1, "area": -1, "iscrowd": -1, "empty": True}


def write(folder, images, annotations, **more):
    (folder / "set.json").write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return folder / "set.json"


def test_the_whole_expression_is_the_phrase(tmp_path):
    """Not the words that tokens_positive marks; a box without area counts."""
    flat = row(2, bbox=[3, 3, 0, 5])
    read = read_refcoco(write(tmp_path, [image(), image(2, "refcoco+")], [row(), flat]), [tmp_path])
    first, second = read.samples
    assert first.prompt.texts == (LONG,) and first.image_id == 1 and first.size == (9, 8)
    assert first.boxes.tolist() == [[1, 2, 4.5, 6]] and first.kinds == (("refcoco",),)
    assert second.boxes.tolist() == [[3, 3, 3, 8]] and second.kinds == (("refcoco+",),)
    assert not read.skipped


def test_an_expression_has_several_targets_or_none(tmp_path):
    images = [image(number, "grefcoco") for number in (1, 2, 3)]
    read = read_grefcoco(
        write(tmp_path, images, [row(), row(iscrowd=1), row(2, **EMPTY), row(3), row(3, **EMPTY)]), [tmp_path]
    )
    assert [len(sample.boxes) for sample in read.samples] == [2, 0, 0]
    assert all(sample.prompt.texts == (LONG,) and not sample.crowd for sample in read.samples)


@pytest.mark.parametrize(
    ("images", "annotations", "reason"),
    [
        ([image()], [row(), row()], "expression with several annotations (as those of gRefCOCO)"),
        ([image()], [], "expression without an annotation"),
        ([image(caption=" ")], [row()], "caption that is empty or no text"),
        ([image()], [row(bbox=[1, 2, -3, 4])], "malformed box"),
        ([image()], [row(bbox=[1, 2, 3])], "malformed box"),
        ([image(name="grefcoco")], [row()], "expression of another data set (grefcoco)"),
    ],
)
def test_what_cannot_be_scored_is_counted(images, annotations, reason, tmp_path):
    good = image(9), row(9)
    read = read_refcoco(write(tmp_path, [good[0], *images], [good[1], *annotations]), [tmp_path])
    assert len(read.samples) == 1 and read.skipped.counts == {reason: 1}


@pytest.mark.parametrize(
    ("read", "images", "message"),
    [
        (read_refcoco, [image(name="grefcoco")], "not expressions of refcoco or .* .the first one is of 'grefcoco'"),
        (read_grefcoco, [image()], "not expressions of grefcoco .the first one is of 'refcoco'.: take"),
        (read_grefcoco, [{"id": 1, "file_name": "a.jpg"}], "the first one is of 'None'"),
        (read_refcoco, [], "the first one is of 'None'"),
        (read_ovdeval, [image()], "image 1 has no lists of names text and neg_text: take the file"),
    ],
)
def test_files_of_another_benchmark(read, images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, images, [row()], categories=[{"id": 44, "name": "cup"}]), [tmp_path])


@pytest.mark.parametrize(
    ("images", "format"),
    [
        ([image()], "refcoco"),
        ([image(name="refcocog")], "refcoco"),
        ([image(name="grefcoco")], "grefcoco"),
        ([image(name="flickr")], "mdetr"),
        ([{"id": 1, "file_name": "a.jpg", "text": [], "neg_text": []}], "ovdeval"),
    ],
)
def test_formats_are_recognized(images, format, tmp_path):
    file = write(tmp_path, images, [row()] if format != "ovdeval" else [], categories=[])
    assert recognize(file)[0] == format
    assert format == "ovdeval" or read_set(SetConfig(annotations=str(file), images=(str(tmp_path),))).format == format


NAMES = [
    {"id": number, "name": name, "supercategory": "object"} for number, name in enumerate(("red cup", "blue_cup (big)"))
]


def aspect(folder, *images, name="color"):
    found = [{"id": number, "file_name": "a.jpg", **one} for number, one in enumerate(images)]
    boxes = [row(0, id=0, category_id=1), row(0, id=1, category_id=0)]
    return write(folder, found, boxes, categories=NAMES).rename(folder / f"{name}.json")


def test_ovdeval_asks_each_image_for_its_own_names(tmp_path):
    """What an image is asked for is named by the file's categories; boxes of other names are not in the sample."""
    lists = {"text": ["blue_cup (big)"], "neg_text": ["red cup", "red cup"]}
    more = {"text": ["red cup"], "neg_text": ["no category"]}
    read = read_ovdeval(aspect(tmp_path, lists, {**more, "neg_text": []}, more), [tmp_path])
    one, two, three = read.samples
    assert one.vocabulary == ("blue cup", "red cup") and two.vocabulary == three.vocabulary == ("red cup",)
    assert one.box_phrases == ((0,), (1,)) and not len(two.boxes)
    assert read.vocabulary == ("red cup", "blue cup") and read.ids == (0, 1)
    assert read.skipped.counts == {"text that is no category: it is not asked for": 1}
    assert read.annotations.images[0]["neg_category_ids"] == [0, 0]
    assert torch.equal(torch.tensor(read.annotations.zero), torch.tensor([True, False]))


def test_aspects_of_proper_names_ask_for_all(tmp_path):
    read = read_ovdeval(aspect(tmp_path, {"text": ["red cup"], "neg_text": []}, name="logo"), [tmp_path])
    assert read.samples[0].vocabulary == ("red cup", "blue cup")
