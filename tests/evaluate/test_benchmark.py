"""Which protocol a set has, what it is called, and whether a model was trained on it."""

from dataclasses import replace

import pytest
from PIL import Image
from scored import captioned, sample
from small import write_coco

from glip.config import EvaluateConfig, ModelConfig, SetConfig
from glip.data.sets import SampleSet
from glip.evaluate.benchmark import Benchmark, load_benchmark, load_benchmarks, seen_in
from glip.evaluate.evaluation import prompt_folders, query_options

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
    assert load_benchmark("mine", config, read, None).protocol == protocol


@pytest.mark.parametrize(
    ("format", "read", "protocol", "message"),
    [
        ("coco", LISTED, "merged-boxes", "lists of names in coco: take coco"),
        ("flickr30k", SAID, "coco", "captions in flickr30k: take any-box or merged-boxes"),
        ("coco", LISTED, "lvis", "lists of names in coco: take coco"),
        ("captions", SAID, None, "captions without boxes"),
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
def test_whether_a_model_was_trained_on_it_by_name(name, format, trained_on, seen):
    same_as = ("rabbits",) if name == "CottontailRabbits" else ()
    made = Benchmark(name, SetConfig(format=format), LISTED, "coco", same_as=same_as)
    assert made.trained_on(ModelConfig(trained_on=trained_on)) == ("yes" if seen else "no")
    assert seen_in(trained_on, name, *same_as) is seen
    assert made.trained_on(ModelConfig()) == "unknown"


def test_whether_a_model_was_trained_on_a_file(tmp_path):
    """Only fingerprints of the data can tell; they do not depend on the folder. The release's weights have none."""
    files = [write_coco(tmp_path / folder) for folder in ("here", "there")]
    first, moved = (load_benchmarks([str(file)], EvaluateConfig())[str(file)][0] for file in files)
    assert first.name == "here_instances" and moved.fingerprint == first.fingerprint
    for trained_on_data, told in (((first.fingerprint,), "yes"), (("another",), "no"), ((), "unknown")):
        model = ModelConfig(trained_on=("instances", "objects365"), trained_on_data=trained_on_data)
        assert moved.trained_on(model) == told


def test_how_the_model_is_called():
    listed = load_benchmark("mine", SetConfig(format="coco"), LISTED, None)
    lvis = load_benchmark("mine", SetConfig(format="lvis", annotations="a.json"), LISTED, None)
    options = query_options(lvis, EvaluateConfig())
    assert (options.max_names, options.max_detections, options.chunk_detections) == (40, 0, 300)
    packed = query_options(lvis, EvaluateConfig(max_names=0, max_detections=100))
    assert (packed.max_names, packed.chunk_detections) == (None, 100), "0: as many names as fit"
    options = query_options(listed, EvaluateConfig(max_names=7, batch_size=2))
    assert (options.max_names, options.max_detections, options.batch_size) == (7, None, 2)


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        ([], [""]),
        (["words.yaml"], [""]),
        (["none", "words.yaml"], ["prompts-none", "prompts-words"]),
        (["a/words.yaml", "b/words.yaml"], ["prompts-words", "prompts-words-2"]),
        (["words-2.yaml", "words.yaml", "a/words.yaml"], ["prompts-words-2", "prompts-words", "prompts-words-3"]),
    ],
)
def test_folders_of_prompts(files, folders):
    assert list(prompt_folders(files).values()) == folders


def test_missing_images_are_named(tmp_path):
    there = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(there)
    good, config = replace(CAT, image=there), SetConfig(format="coco")
    load_benchmark("mine", config, SampleSet([good, CAT], ("cat",)), None)
    with pytest.raises(FileNotFoundError, match=r"'mine': 1 of its 2 images are missing .*b\.png"):
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
