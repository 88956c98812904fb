"""What cannot be learned from costs only itself in every format: it is skipped and counted, never a crash."""

import json
import math

import pytest
from small import same_samples

from glip.data.coco import read_coco, read_lvis
from glip.data.grounding import read_mdetr, read_odvg, read_silver
from glip.data.labels import read_labels

CAPTION = "a cat and a dog chase another dog"
LARGE = 10**400
COCO_BOX = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
MDETR_BOX = {"image_id": 1, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 5]]}
MDETR_IMAGE = {"id": 2, "file_name": "2.jpg", "caption": CAPTION}
PHRASE = {"tokens_positive": [[0, 5]], "boxes": [[1, 2, 3, 4]]}
ENTRY = {"id": 57, "image_id": 9, "file_name": "9.jpg", "caption": CAPTION, "phrases": [PHRASE]}
INSTANCE = {"bbox": [1, 2, 3, 4], "label": 0, "category": "person"}
REGION = {"bbox": [1, 2, 3, 4], "phrase": "a cat"}
LINE = {"filename": "d.jpg", "detection": {"instances": [INSTANCE]}}
SAID = {"filename": "d.jpg", "grounding": {"caption": CAPTION, "regions": [REGION]}}
BOX = {"box": [1, 2, 3, 4], "phrases": [0], "score": 0.5}
LABEL = {"image": "a.jpg", "caption": CAPTION, "phrases": [{"text": "a cat", "spans": [[0, 5]]}], "boxes": [BOX]}
LVIS = {"id": 1, "file_name": "1.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []}

TEXT = ": its id is text such as '1', that of the set a number such as 1"
OUTLINES = [  # around nothing
    *([], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "6"]], [1, 2, 3, 4, 5, 6], [[]], "x", {}, {"size": [4, 4], "counts": [16]}),
    *({"size": [4, 4], "counts": counts} for counts in ([1, -2, 3], [1, LARGE], "~", "0P", "P", [15, 2], None)),
    *({"size": size, "counts": [2, 2]} for size in ([4], [0, 4], ["4", 4], None)),
]


def tree(reader, **lists):
    return lambda folder: reader(saved(folder, json.dumps({"info": {}, **lists})), [folder])


def saved(folder, text):
    (folder / "set.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "set.json"


def lines(*rows):
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def odvg(*rows, names=True):
    def read(folder):
        (folder / "names.json").write_text(json.dumps({"0": "person", "3": "bat_(animal)"}))
        return read_odvg(saved(folder, lines(*rows)), [folder], folder / "names.json" if names else "")

    return read


def instances(*rows):
    return {**LINE, "detection": {"instances": rows}}


def regions(*rows):
    return {**SAID, "grounding": {"caption": CAPTION, "regions": rows}}


CATEGORIES = [{"id": 3, "name": "bat_(animal)"}]
IMAGES = [{"id": 7, "file_name": "a.jpg"}]
MADE = {  # a dataset of one good record and those given
    "coco": lambda *bad: tree(read_coco, images=IMAGES, annotations=[COCO_BOX, *bad], categories=CATEGORIES),
    "coco image": lambda *bad: tree(read_coco, images=[*IMAGES, *bad], annotations=[COCO_BOX], categories=CATEGORIES),
    "category": lambda *bad: tree(read_coco, images=IMAGES, annotations=[COCO_BOX], categories=[*CATEGORIES, *bad]),
    "lvis": lambda *bad: tree(read_lvis, images=[LVIS, *bad], annotations=[], categories=CATEGORIES),
    "mdetr": lambda *bad: tree(read_mdetr, images=[{**MDETR_IMAGE, "id": 1}], annotations=[MDETR_BOX, *bad]),
    "caption": lambda *bad: tree(
        read_mdetr,
        images=[{**MDETR_IMAGE, "id": 1}, *bad],
        annotations=[MDETR_BOX, *({**MDETR_BOX, "image_id": 2} for row in bad if row["id"] == 2)],
    ),
    "phrase": lambda *bad: tree(read_silver, data=[{**ENTRY, "phrases": [PHRASE, *bad]}]),
    "entry": lambda *bad: tree(read_silver, data=[ENTRY, *bad]),
    "instance": lambda *bad: odvg(instances(INSTANCE, *bad)),
    "named": lambda *bad: odvg(instances(INSTANCE, *bad), names=False),
    "region": lambda *bad: odvg(regions(REGION, *bad), names=False),
    "odvg": lambda *bad: odvg(LINE, *bad),
    "box": lambda *bad: lambda folder: read_labels(saved(folder, lines({**LABEL, "boxes": [BOX, *bad]})), [folder]),
    "labels": lambda *bad: lambda folder: read_labels(saved(folder, lines(LABEL, *bad)), [folder]),
}
CASES = {
    "annotation of an unknown image": [
        *[("coco", COCO_BOX | {"image_id": 8}), ("coco", [1, 2, 3, 4]), ("mdetr", "box")],
        ("mdetr", MDETR_BOX | {"image_id": 3}),
    ],
    "unknown category": [
        *[("coco", COCO_BOX | {"category_id": value}) for value in (4, [3], "4", None)],
        *[("instance", INSTANCE | {"label": value}) for value in (1, "1")],
        *[("named", INSTANCE | {"category": value}) for value in (None, "_(x)", "\u200b")],
        ("instance", "person"),
    ],
    f"unknown category{TEXT}": [("coco", COCO_BOX | {"category_id": "3"}), ("instance", INSTANCE | {"label": "0"})],
    f"annotation of an unknown image{TEXT}": [("coco", COCO_BOX | {"image_id": "7"})],
    "annotation without a box": [
        *[("coco", {"image_id": 7, "category_id": 3} | more) for more in ({}, {"bbox": None}, {"bbox": []})],
        *[("instance", {"label": 0}), ("box", BOX | {"box": None}), ("mdetr", MDETR_BOX | {"bbox": None})],
        *[("coco", COCO_BOX | {"bbox": None, "segmentation": value}) for value in OUTLINES],
    ],
    "malformed box": [
        *[("coco", COCO_BOX | {"bbox": [1, 2, 3, value]}) for value in (math.nan, LARGE, "4")],
        ("coco", COCO_BOX | {"bbox": [1, 2, 3]}),
        *[("box", BOX | {"box": [1, 2, 3, math.nan]}), ("region", REGION | {"bbox": []})],
    ],
    "box without area": [
        *[("coco", COCO_BOX | {"bbox": [1, 2, 0, 4]}), ("mdetr", MDETR_BOX | {"bbox": [1, 2, 0, 4]})],
        *[("phrase", PHRASE | {"boxes": [[1, 2, 0, 4]]}), ("instance", INSTANCE | {"bbox": [3, 2, 1, 4]})],
        *[("region", REGION | {"bbox": [4, 2, 3, 4]}), ("box", BOX | {"box": [1, 2, 1, 5]})],
    ],
    "image without an id": [("coco image", {"file_name": "d.jpg"}), ("coco image", "e.jpg")],
    "image id seen before": [("coco image", {"id": 7, "file_name": "other.jpg"})],
    "image without a file name": [
        ("coco image", {"id": 12, "file_name": None}),
        ("lvis", LVIS | {"id": 2, "file_name": 7}),
        *[("caption", MDETR_IMAGE | {"file_name": ".."}), ("entry", ENTRY | {"file_name": "9.jpg/.."})],
        *[("odvg", LINE | {"filename": "d\0.jpg"}), ("odvg", SAID | {"filename": "/"})],
        *[("labels", LABEL | {"image": "./"}), ("lvis", LVIS | {"id": 2, "coco_url": "http://x/"})],
    ],
    "image name that is too long": [("lvis", LVIS | {"id": 2, "file_name": "x" * 300})],
    "category without an id": [("category", value) for value in ({"name": "cat"}, {"id": [1], "name": "cat"}, "cat")],
    "category without a name": [
        *[("category", {"id": 1, "name": name}) for name in ("\ud800", "_(none)", " ", "\u200b", None, True)],
        ("category", {"id": 1}),
    ],
    "box without a phrase": [
        *[("mdetr", MDETR_BOX | {"tokens_positive": []}), ("phrase", PHRASE | {"tokens_positive": None})],
        ("region", REGION | {"tokens_positive": []}),
    ],
    "span that is no part of its caption": [
        *[("mdetr", MDETR_BOX | {"tokens_positive": [[30, 34]]}), ("phrase", PHRASE | {"tokens_positive": [[10, 99]]})],
        ("region", REGION | {"tokens_positive": [[20, 99]]}),
    ],
    "phrase without a box": [("phrase", PHRASE | {"boxes": []}), ("phrase", "two cats")],
    "phrase without words": [("region", REGION | {"phrase": value}) for value in (" ", ["a cat", ""], None)],
    "phrase that is not in the caption": [
        ("region", REGION | {"phrase": value}) for value in ("a boat", ["a cat", "ca"])
    ],
    "caption that is empty or no text": [
        *[("caption", MDETR_IMAGE | {"caption": value}) for value in ("", "a cat \ud800", None)],
        *[("entry", ENTRY | {"caption": " "}), ("labels", LABEL | {"caption": " "}), ("odvg", {"filename": "d.jpg"})],
        ("odvg", {"filename": "d.jpg", "grounding": "a car"}),
    ],
    "caption without a box that can be used": [
        *[("caption", MDETR_IMAGE | {"id": 3}), ("entry", ENTRY | {"phrases": []}), ("odvg", regions())],
    ],
    "entry without an image_id": [("entry", []), ("entry", ENTRY | {"image_id": None})],
    "label and category that disagree": [("instance", INSTANCE | {"label": 3})],
    "detection without a list of instances": [("odvg", LINE | {"detection": []})],
    "line that is no json record": [
        ("odvg", b'{"filename": "d.jpg", "det'),
        ("odvg", [1]),
        ("labels", b"{"),
        ("labels", [1]),
    ],
    "line with neither a caption nor names": [("labels", {"image": "a.jpg"})],
    "names that are no list of words": [("labels", {"image": "a.jpg", "names": ["dog", ""]})],
    "box of an unknown phrase": [("box", BOX | {"phrases": value}) for value in ([], [2], [True])],
    "score that is no number": [("box", BOX | {"score": "high"})],
    "member of an archive without start and length": [
        ("labels", {"image": "0.tar", "member": "7.jpg", "start": 0, "length": 9, "caption": "a dog"} | wrong)
        for wrong in ({"start": -1}, {"length": 1 << 40}, {"member": 5})
    ],
}


@pytest.mark.parametrize(("made", "bad", "reason"), [(*case, reason) for reason in CASES for case in CASES[reason]])
def test_a_bad_record_costs_only_itself(made, bad, reason, tmp_path):
    good, found = MADE[made]()(tmp_path), MADE[made](bad)(tmp_path)
    assert found.skipped.counts == {reason: 1} and len(found.skipped.places[reason]) == 1
    assert not good.skipped and found.vocabulary == good.vocabulary
    same_samples(good.samples, found.samples)


@pytest.mark.parametrize(
    ("again", "told"), [({"id": 3, "name": "fox"}, "category id 3 "), ({"id": 5, "name": "bat"}, "category name 'bat'")]
)
def test_categories_that_cannot_be_told_apart(again, told, tmp_path):
    with pytest.raises(ValueError, match=f"{told}.*is listed twice"):
        MADE["category"](again)(tmp_path)
    assert MADE["category"]({"id": 5, "name": "Bat"})(tmp_path).vocabulary == ("bat", "Bat"), "letters of a game"


@pytest.mark.parametrize("names", [["person"], {"person": 0}, {"0": None}, {"-1": "cat"}])
def test_a_wrong_label_map_knows_no_label(names, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(names))
    found = read_odvg(saved(tmp_path, lines(LINE)), [tmp_path], tmp_path / "names.json")
    assert found.skipped.counts["unknown category"] == 1 and len(found.samples[0].boxes) == 0
