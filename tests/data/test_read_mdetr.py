"""MDETR's grounding json: spans become phrases, whatever names nothing is counted."""

import json

import pytest

from glip.data.grounding import read_mdetr

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


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(1), "box without a phrase"),
        (box(1, (30, 34)), "span outside the caption"),
        (box(1, (0, 5), bbox=(1, 2, 0, 4)), "box without area"),
        (box(3, (0, 5)), "unknown image"),
        ("box", "malformed annotation"),
    ],
)
def test_boxes_that_teach_nothing_are_counted(bad, reason, tmp_path):
    found = read(tmp_path, [image(1)], [bad, box(1, (0, 5)), bad])
    assert found.skipped.counts == {reason: 2}
    assert found.samples[0].prompt.texts == ("a cat",) and len(found.samples[0].boxes) == 1


@pytest.mark.parametrize(
    ("bad", "counts"),
    [
        (image(2, ""), {"image without a caption": 1}),
        (image(2, "a cat \ud800 and more"), {"caption that is not UTF-8": 1}),
        (image(2, "a"), {"span outside the caption": 1, "caption whose boxes are all left out": 1}),
        (image(2, file_name="../../etc/passwd"), {"image name outside its folder": 1}),
        (image([2]), {"image without an id": 1, "unknown image": 1}),
    ],
)
def test_captions_that_teach_nothing_are_counted(bad, counts, tmp_path):
    found = read(tmp_path, [image(1), bad], [box(1, (0, 5)), box(2, (0, 5))])
    assert found.skipped.counts == counts
    assert [sample.image_id for sample in found.samples] == [1]


def test_a_caption_without_a_box(tmp_path):
    found = read(tmp_path, [image(1), image(2)], [box(1, (0, 5))])
    assert found.skipped.places == {"caption without a box": ["image 2"]}
