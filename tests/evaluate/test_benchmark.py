"""What is counted on which set, and whether a model was trained on it."""

from dataclasses import replace

import pytest
from PIL import Image
from scored import captioned, sample

from glip.config import SetConfig
from glip.data.sets import SampleSet
from glip.evaluate.benchmark import Benchmark, asking_for, load_benchmark
from glip.evaluate.run import QueryOptions

BOX = (1.0, 1.0, 9.0, 9.0)
CAT = sample(["cat"], [(BOX, 0)])
LISTED = SampleSet([CAT], ("cat",))
SAID = SampleSet([captioned("a cat", ["cat"], [(BOX, 0)])])


@pytest.mark.parametrize(
    ("format", "read", "protocol"),
    [("coco", LISTED, "coco"), ("lvis", LISTED, "lvis"), ("odvg", LISTED, "coco"), ("flickr30k", SAID, "any-box")],
)
def test_the_usual_protocol(format, read, protocol):
    config = SetConfig(format=format, annotations="a.json")
    exam = load_benchmark("mine", config, read, None)
    assert exam.protocol == protocol and (exam.annotations is None) == (format not in ("coco", "lvis"))


@pytest.mark.parametrize(
    ("format", "read", "protocol", "message"),
    [
        ("coco", LISTED, "merged-boxes", "has lists of names: take coco"),
        ("flickr30k", SAID, "coco", "has captions: take any-box or merged-boxes"),
        ("coco", LISTED, "lvis", "no neg_category_ids; take coco"),
        ("captions", SAID, None, "captions without boxes: there is nothing to score"),
    ],
)
def test_a_protocol_that_does_not_fit(format, read, protocol, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark("mine", SetConfig(format=format), read, protocol)


@pytest.mark.parametrize(
    ("name", "format", "trained_on", "seen"),
    [
        ("bccd_test", "coco", ("drawn world", "bccd"), True),
        ("bccd_val", "coco", ("bccd_train",), True),
        ("coco_val2017", "coco", ("coco_train2017",), True),
        ("bccd_test", "coco", ("chess_pieces",), False),
        ("world_novel", "labels", ("drawn world",), True),
        ("world_novel_captions", "mdetr", ("drawn world",), True),
        ("world_novel", "labels", ("bccd",), False),
        ("CottontailRabbits", "coco", ("rabbits",), True),
        ("flickr30k_test", "flickr30k", ("objects365", "goldg"), True),
        ("lvis_minival", "lvis", ("lvis_train",), True),
    ],
)
def test_whether_a_model_was_trained_on_it(name, format, trained_on, seen):
    same_as = ("rabbits",) if name == "CottontailRabbits" else ()
    exam = Benchmark(name, SetConfig(format=format), LISTED, (), "coco", same_as=same_as)
    assert exam.seen_in(trained_on) is seen


def test_how_lvis_asks():
    options = asking_for("lvis", QueryOptions())
    assert (options.max_names, options.max_detections, options.chunk_detections) == (40, 0, 300)
    packed = asking_for("lvis", QueryOptions(max_names=0, max_detections=100))
    assert (packed.max_names, packed.chunk_detections) == (None, 100), "0: as many names as fit"
    assert asking_for("coco", QueryOptions(max_names=7)) == QueryOptions(max_names=7)


def test_missing_images_are_named(tmp_path):
    there = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(there)
    good, config = replace(CAT, image=there), SetConfig(format="coco")
    load_benchmark("mine", config, SampleSet([good, CAT], ("cat",)), None)
    with pytest.raises(FileNotFoundError, match=r"'mine': 1 of its 2 images are not there .*b\.png"):
        load_benchmark("mine", config, SampleSet([good, replace(good, image=tmp_path / "b.png")], ("cat",)), None)


@pytest.mark.parametrize("crowd", [(), (0,)])
def test_nothing_to_score_is_told_before_the_model_runs(crowd):
    bare = replace(CAT, crowd=crowd) if crowd else sample(["cat"])
    with pytest.raises(ValueError, match="none of its 1 samples has a named box"):
        load_benchmark("mine", SetConfig(format="coco"), SampleSet([bare], ("cat",)), None)


def test_a_set_with_both_kinds_takes_either_protocol():
    both = SampleSet([CAT, SAID.samples[0]], ("cat",))
    config = SetConfig(format="odvg")
    assert [load_benchmark("mine", config, both, chosen).protocol for chosen in (None, "coco", "any-box")] == [
        "coco",
        "coco",
        "any-box",
    ]


def test_other_words_or_images_are_another_set():
    config = SetConfig(format="coco")
    first = load_benchmark("mine", config, LISTED, None)
    for other in (replace(CAT, vocabulary=("dog",)), replace(CAT, image_id=9)):
        assert load_benchmark("mine", config, SampleSet([other], other.vocabulary), None).digest != first.digest
    assert load_benchmark("mine", config, SampleSet([CAT], ("cat",)), None).digest == first.digest
