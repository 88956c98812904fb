"""What all readers share: checked fields, packed samples, counts of what is skipped, images inside their folders."""

import json
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip.data.records import by_image, parse_file, read_box, read_size, read_spans
from glip.data.sets import Folders, InvalidRecord, PackedSamples, SkipCounter
from glip.geometry.boxes import is_degenerate
from glip.structures import Prompt, Sample, TarMember

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
        parse_file(tmp_path / "set.json")


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "set.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"name": "Käse"}).encode())
    assert parse_file(tmp_path / "set.json") == {"name": "Käse"}


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
    assert parse_file(tmp_path / "set.json") == {"images": [image], "annotations": [row]}


def test_what_was_given_is_released():
    class Row(dict):
        """A record that can be watched."""

    tree = {"images": [Row(id=1), Row(id=2)], "annotations": [Row(image_id=1), Row(image_id=2)]}
    watched = [weakref.ref(tree["images"][0]), weakref.ref(tree["annotations"][0])]
    pairs = by_image(tree, SkipCounter())
    assert next(pairs) == (1, ({"id": 1}, [{"image_id": 1}])) and next(pairs)[0] == 2
    assert [watch() for watch in watched] == [None, None]


def some(path) -> list[Sample]:
    names = ("cat", "dog")
    caption = Prompt.from_caption("a cat and a dog", ["cat", "dog"])
    return [
        Sample(path / "a.jpg", torch.tensor([[1.0, 2.0, 3.0, 4.0]]), ((0,),), names, image_id="x", size=(9, 8)),
        Sample(path / "b.jpg", torch.zeros(0, 4), (), names, image_id=7, absent=(1,), incomplete=(0,)),
        Sample(
            TarMember(path / "t.tar", "m.jpg", 512, 99),
            torch.ones(2, 4),
            ((0, 1), (1,)),
            prompt=caption,
            scores=(0.5, 1),
        ),
    ]


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.boxes, b.boxes) and {**a.__dict__, "boxes": 0} == {**b.__dict__, "boxes": 0}


def test_what_is_packed_comes_back(tmp_path):
    samples = some(tmp_path)
    packed = PackedSamples(iter(samples))
    assert len(packed) == 3 and all(same(a, b) for a, b in zip(packed, samples, strict=True))
    assert same(packed[-1], samples[2])
    with pytest.raises(IndexError):
        packed[3]
    packed[0].boxes.zero_()
    assert packed[0].boxes.any(), "a caller may change what it got"


def test_another_process_reads_the_same_file(tmp_path):
    packed = PackedSamples(some(tmp_path))
    copy = pickle.loads(pickle.dumps(packed))
    assert len(pickle.dumps(packed)) < 2000, "the samples themselves do not travel"
    assert same(copy[2], packed[2])
    del copy
    assert packed._path.is_file(), "a reader leaves the file"
    path = packed._path
    del packed
    assert not path.exists(), "its maker takes it along"


def test_tally():
    tally, other = SkipCounter(), SkipCounter()
    assert not tally
    for number in range(7):
        tally.add("box without area", f"annotation {number}")
    other.add("crowd region", times=2)
    tally.merge(other)
    assert str(tally) == "7 x box without area, 2 x crowd region" and tally
    assert tally.places["box without area"] == [f"annotation {number}" for number in range(5)]


def test_keep_renumbers_what_belongs_to_boxes(tmp_path):
    sample = Sample(tmp_path, torch.arange(12.0).view(3, 4), ((0,), (1,), (2,)), crowd=(0, 2), scores=(0.1, 0.2, 0.3))
    kept = sample.keep([2, 1])
    assert kept.boxes.tolist() == sample.boxes[[2, 1]].tolist() and kept.box_phrases == ((2,), (1,))
    assert kept.crowd == (0,) and kept.scores == (0.3, 0.2)


def test_longer_names_than_on_disk(tmp_path):
    (tmp_path / "patch8").mkdir()
    (tmp_path / "patch8" / "x.jpg").touch()
    folders = Folders([tmp_path])
    assert folders.locate("images/v1/patch8/x.jpg") == tmp_path / "patch8" / "x.jpg"
    assert folders.locate("images/v1/patch9/y.jpg") == tmp_path / "patch9" / "y.jpg"


def test_a_missing_first_image_says_nothing_of_the_others(tmp_path):
    (tmp_path / "x.jpg").touch()
    folders = Folders([tmp_path])
    assert folders.locate("train/none.jpg") == tmp_path / "train" / "none.jpg"
    assert folders.locate("train/x.jpg") == tmp_path / "x.jpg"
    with pytest.raises(FileNotFoundError, match=r"\(none is given\)' is not there"):
        Folders(())
    with pytest.raises(FileNotFoundError, match="Image folder .*set data.root"):
        Folders([tmp_path / "none"])


def test_the_first_folder_that_has_it(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
    folders = Folders([tmp_path / "a", tmp_path / "b"])
    assert folders.locate("b.jpg") == tmp_path / "b" / "b.jpg" and folders.locate("a.jpg").parent.name == "a"
    assert folders.locate("none.jpg").parent.name == "a"


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "a\\..\\..\\x.jpg", "a\0b"])
def test_names_that_lead_out_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="outside its folder"):
        Folders([tmp_path]).locate(name)


@pytest.mark.parametrize("name", ["x" * 5000, "é" * 200, "a/" * 3000 + "b.jpg", "", None, 5])
def test_names_that_no_file_has(name, tmp_path):
    with pytest.raises(ValueError, match="too long|without a file name"):
        Folders([tmp_path]).locate(name)


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "\ud800.jpg"])
def test_names_that_are_not_utf8_are_files_too(name, tmp_path):
    assert Folders([tmp_path]).locate(name).name == name
