"""What all readers share: checked fields, packed samples, counts of what is skipped, images inside their folders."""

import json
import pickle
import weakref

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import same_samples

from glip.data.records import by_image, outline_box, parse_file, read_box, read_size, read_spans
from glip.data.sets import Folders, InvalidRecord, PackedSamples, SkipCounter
from glip.structures import Prompt, Sample, TarMember

NUMBERS = st.one_of(st.integers(-(10**8), 10**8), st.floats(-1e8, 1e8), st.sampled_from([0, 1e-9, 1e-3, 16777216.0]))


@given(st.lists(NUMBERS, min_size=4, max_size=4))
def test_a_box_has_an_area_in_float32(values):
    x, y, width, height = values
    left, top, right, bottom = torch.tensor([x, y, x + width, y + height], dtype=torch.float32).tolist()
    if right > left and bottom > top:
        assert read_box(values) == (left, top, right, bottom)
    else:
        with pytest.raises(InvalidRecord, match="box without area"):
            read_box(values)


def test_size():
    for width in (640, "640", 640.0):
        assert read_size({"width": width, "height": "480"}) == (640, 480)
    for width in (640.5, 0, "6e2", True, float("nan"), float("inf"), 10**400, "9" * 5000, None):
        assert read_size({"width": width, "height": 480}) is None


def test_spans_come_in_reading_order_and_once():
    assert read_spans([[6, 9], [0, 1], [6, 9]], "a red cat") == ((0, 1), (6, 9))


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


def letters(mask):
    return pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_box_of_a_mask_is_that_of_pycocotools(height, width, random):
    mask = np.array([[random.random() < 0.2 for _ in range(width)] for _ in range(height)])
    packed = letters(mask)
    column, runs = mask.ravel(order="F").tolist(), [0]
    for value in column:
        if value != (len(runs) % 2 == 0):
            runs.append(0)
        runs[-1] += 1
    expected = pycocotools.mask.toBbox(packed).tolist() if mask.any() else []
    assert outline_box({"size": packed["size"], "counts": packed["counts"].decode()}) == expected
    assert outline_box({"size": [height, width], "counts": runs}) == expected


def test_the_box_of_a_large_mask():
    mask = np.zeros((500, 700))
    mask[100:400, 50:60] = mask[200:450, 300:650] = 1
    packed = letters(mask)
    assert outline_box({"size": packed["size"], "counts": packed["counts"].decode()}) == [50, 100, 600, 350]


def test_the_box_of_polygons_ends_at_their_points():
    """As COCO's own files state it; pycocotools would draw them first, and differs by less than a pixel."""
    polygons = [[10.5, 5, 30, 5.25, 30, 25], [40, 20, 52.5, 20, 45, 31]]
    assert outline_box(polygons) == [10.5, 5, 42, 26]
    drawn = pycocotools.mask.toBbox(pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, 60, 60)))
    assert np.abs(drawn - outline_box(polygons)).max() <= 1


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


def test_what_is_packed_comes_back(tmp_path):
    samples = some(tmp_path)
    packed = PackedSamples(iter(samples))
    assert len(packed) == 3
    same_samples([*packed, packed[-1]], [*samples, samples[2]])
    packed[0].boxes.zero_()
    assert packed[0].boxes.any(), "a caller may change what it got"


def test_another_process_reads_the_same_file(tmp_path):
    packed = PackedSamples(some(tmp_path))
    copy = pickle.loads(pickle.dumps(packed))
    assert len(pickle.dumps(packed)) < 2000, "the samples themselves do not travel"
    same_samples(copy, packed)
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


NAMES_ON_DISK = [
    ("patch8/x.jpg", "patch8/x.jpg"),
    ("images/v1/patch8/x.jpg", "patch8/x.jpg"),
    ("C:\\data\\patch8\\x.jpg", "patch8/x.jpg"),
    ("..\\..\\upload\\x.jpg", "x.jpg"),
    ("patch8/../x.jpg", "x.jpg"),
    ("./x.jpg", "x.jpg"),
    ("https://host/patch8/x.jpg?size=large#top", "patch8/x.jpg"),
    ("file:///home/me/patch8/x.jpg", "patch8/x.jpg"),
    ("s3://bucket/a%20b.jpg", "a b.jpg"),
    ("a%20b.jpg", "a b.jpg"),
    ("100%.jpg", "100%.jpg"),
    ("PATCH8/X.JPG", "patch8/x.jpg"),
    ("train/cafe\u0301.JPG", "caf\xe9.jpg"),
    ("{folder}/patch8/x.jpg", "patch8/x.jpg"),
    ("/elsewhere/x.jpg", "x.jpg"),
    ("deep.jpg", "train/2020/deep.jpg"),
    ("2020/deep.jpg", "train/2020/deep.jpg"),
    ("both/twin.jpg", "val/both/twin.jpg"),
    ("old/train/both/a.jpg", "train/both/a.jpg"),
    ("Mixed.JPG", "Mixed.JPG"),
    ("other/mixed.jpg", "mixed.jpg"),
    ("link/y.jpg", "link/y.jpg"),
    ("old/link/y.jpg", "link/y.jpg"),
]


def test_names_of_another_machine(tmp_path):
    folder = tmp_path / "images"
    disk = ["x.jpg", "a b.jpg", "100%.jpg", "caf\xe9.jpg", "Mixed.JPG", "mixed.jpg", "patch8/x.jpg", "b/a.jpg"]
    disk += [f"train/{one}" for one in ("2020/deep.jpg", "twin.jpg", "both/a.jpg")]
    for one in (*disk, "val/both/twin.jpg", "../linked/y.jpg"):
        (folder / one).parent.mkdir(parents=True, exist_ok=True)
        (folder / one).touch()
    (folder / "link").symlink_to(tmp_path / "linked")
    (folder / "loop").symlink_to(folder)
    folders = Folders([folder])
    for name, file in NAMES_ON_DISK:
        assert folders.locate(name.format(folder=folder)) == folder / file, name


def test_what_could_be_another_image_is_not_guessed(tmp_path):
    for name in ("train/0.jpg", "val/0.jpg", "train/images/1.jpg", "b/A.jpg", "b/a.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("0.jpg", "/b/a.jpg"):
        with pytest.raises(InvalidRecord, match="fits several files"):
            Folders([tmp_path]).locate(name)
    missing = Folders([tmp_path]).locate("val/images/1.jpg")
    assert missing == tmp_path / "val/images/1.jpg" and not missing.exists(), "that of train is another one"
    both = Folders([tmp_path / "train", tmp_path / "val"])
    assert both.locate("/data/val/0.jpg").parent.name == "val" and both.locate("0.jpg").parent.name == "train"
    assert both.locate("none.jpg").parent.name == "train" and both.locate("none.jpg", "0.jpg").is_file()
    with pytest.raises(InvalidRecord, match="fits several files"):
        both.locate("/data/test/0.jpg")


def test_folders_that_are_not_there():
    with pytest.raises(FileNotFoundError, match=r"\(none is given\)' is not there"):
        Folders(())
    with pytest.raises(FileNotFoundError, match="Image folder .*data.root"):
        Folders(["no/such/folder"])


@pytest.mark.parametrize(
    "name", ["../x.jpg", "{}/x.jpg", "/etc/passwd", "a/../../x.jpg", "a\\..\\..\\x.jpg", "%2e%2e/x.jpg"]
)
def test_no_name_leads_out(name, tmp_path):
    (tmp_path / "x.jpg").touch()
    (tmp_path / "images").mkdir()
    found = Folders([tmp_path / "images"]).locate(name.format(tmp_path))
    assert tmp_path / "images" in found.parents and ".." not in found.parts and not found.exists()


@pytest.mark.parametrize("name", ["x" * 5000, "é" * 200, "a/" * 3000 + "b.jpg", "", None, 5, "a\0b"])
def test_names_that_no_file_has(name, tmp_path):
    with pytest.raises(ValueError, match="too long|without a file name"):
        Folders([tmp_path]).locate(name)


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "\ud800.jpg"])
def test_names_that_are_not_utf8_are_files_too(name, tmp_path):
    assert Folders([tmp_path]).locate(name).name == name
