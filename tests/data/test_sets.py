"""Packed samples are the samples; tallies count; image names stay inside their folder."""

import pickle

import pytest
import torch

from glip.data.sets import Folders, PackedSamples, SkipCounter
from glip.structures import Prompt, Sample, TarMember


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
