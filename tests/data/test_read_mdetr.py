"""MDETR's grounding json: spans become phrases, whatever names nothing is counted."""

import json
import math

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
        ({"image_id": 1, "bbox": [1, 2, 3, 4]}, "box without a phrase"),
        (box(1, (30, 34)), "span outside the caption"),
        (box(1, (0, 5), (5, 5)), "span outside the caption"),
        (box(1, (5, 6)), "empty phrase"),
        (box(1, ("0", 5)), "malformed span"),
        (box(1, (0, 5, 6)), "malformed span"),
        (box(1, (0, 5), bbox=(1, 2, 0, 4)), "box without area"),
        (box(1, (0, 5), bbox=(1, 2, math.nan, 4)), "malformed box"),
        (box(1, (0, 5), bbox=(1, 2, 1e300, 4)), "malformed box"),
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
        (image(2, "  \n"), {"image without a caption": 1}),
        (image(2, None), {"image without a caption": 1}),
        (image(2, ["a cat"]), {"image without a caption": 1}),
        (image(2, "a cat \ud800 and more"), {"caption that is not UTF-8": 1}),
        (image(2, "a"), {"span outside the caption": 1, "caption whose boxes are all left out": 1}),
        (image(2, file_name="../../etc/passwd"), {"image name outside its folder": 1}),
        (image(2, file_name=5), {"image without a file name": 1}),
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


def test_images_lie_in_several_folders(tmp_path):
    for folder, name in (("coco", "1.jpg"), ("vg", "2.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    images, rows = [image(1), image(2)], [box(1, (0, 5)), box(2, (0, 5))]
    found = read(tmp_path, images, rows, [tmp_path / "coco", tmp_path / "vg"])
    assert [sample.image for sample in found.samples] == [tmp_path / "coco" / "1.jpg", tmp_path / "vg" / "2.jpg"]


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="are not there"):
        read_mdetr(tmp_path / "none.json", [tmp_path])
    with pytest.raises(ValueError, match=r"no sample in it can be used \(skipped: 1 x image without a caption\)"):
        read(tmp_path, [{"id": 1, "file_name": "1.jpg"}], [box(1, (0, 5))])
    with pytest.raises(FileNotFoundError, match="is not there"):
        read_mdetr(tmp_path / "mixed.json", [tmp_path / "none"])
    for text, told in (('{"images": [], "anno', "not valid json"), ('{"images": []}', "no list 'annotations'")):
        (tmp_path / "mixed.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            read_mdetr(tmp_path / "mixed.json", [tmp_path])
