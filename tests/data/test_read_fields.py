"""The checks that all readers share, against the rule that training uses."""

import json
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip.data.records import by_image, parse_json, read_box, read_size, read_spans
from glip.data.sets import InvalidRecord, SkipCounter
from glip.geometry.boxes import is_degenerate

NUMBERS = st.one_of(st.integers(-(10**8), 10**8), st.floats(-1e8, 1e8), st.sampled_from([0, 1e-9, 1e-3, 16777216.0]))


@given(st.lists(NUMBERS, min_size=4, max_size=4))
def test_box_without_area_is_what_geometry_calls_degenerate(values):
    x, y, width, height = values
    expected = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
    if is_degenerate(expected)[0]:
        with pytest.raises(InvalidRecord, match="box without area"):
            read_box(values)
    else:
        assert list(read_box(values)) == expected[0].tolist()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (640, 480, (640, 480)),
        ("640", "480", (640, 480)),
        (640.0, 480, (640, 480)),
        (640.5, 480, None),
        (0, 480, None),
        ("6e2", 480, None),
        (True, 480, None),
        (float("nan"), 480, None),
        (10**400, 480, None),
        ("9" * 5000, 480, None),
    ],
)
def test_size(width, height, size):
    assert read_size({"width": width, "height": height}) == size


def test_spans_come_in_reading_order_and_once():
    assert read_spans([[6, 9], [0, 1], [6, 9]], "a red cat") == ((0, 1), (6, 9))


@pytest.mark.parametrize(
    "content", [b"", b'{"images": [', b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000 + b"9", b"{'a': 1}"]
)
def test_no_json(content, tmp_path):
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.json: not valid JSON"):
        parse_json(tmp_path / "set.json")


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "set.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"name": "Käse"}).encode())
    assert parse_json(tmp_path / "set.json") == {"name": "Käse"}


@pytest.mark.parametrize("unseen", ["\u200b", "\u00ad", "\ufeff", "\x07", "\u200b \u2060"])
def test_a_phrase_that_cannot_be_seen_has_no_words(unseen):
    with pytest.raises(InvalidRecord, match="phrase without words"):
        read_spans([[2, 2 + len(unseen)]], f"a {unseen} cat")
    assert read_spans([[2, 4 + len(unseen)]], f"a {unseen} \u2605 cat") == ((2, 4 + len(unseen)),), "a star is seen"


def test_outlines_are_not_kept(tmp_path):
    row = {"image_id": 1, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 1]], "caption": "x", "iscrowd": 0}
    image = {"id": 1, "file_name": "a.jpg", "coco_url": "u", "url": "v"}
    tree = {"images": [image | {"license": 3}], "annotations": [row | {"segmentation": [[1, 2]], "isfake": 0}]}
    (tmp_path / "set.json").write_text(json.dumps(tree))
    assert parse_json(tmp_path / "set.json") == {"images": [image], "annotations": [row]}


def test_what_was_given_is_released():
    class Row(dict):
        """A record that can be watched."""

    tree = {"images": [Row(id=1), Row(id=2)], "annotations": [Row(image_id=1), Row(image_id=2)]}
    watched = [weakref.ref(tree["images"][0]), weakref.ref(tree["annotations"][0])]
    pairs = by_image(tree, SkipCounter())
    assert next(pairs) == (1, ({"id": 1}, [{"image_id": 1}])) and next(pairs)[0] == 2
    assert [watch() for watch in watched] == [None, None]
