"""Sets to evaluate on: their protocol, whether a model was trained on them, and the score of stored predictions."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scored import captioned, detections, sample
from small import write_coco

from glip.config import VALIDATED, EvaluateConfig, ModelConfig, SetConfig
from glip.data.mixture import images_fingerprint
from glip.data.sets import SampleSet
from glip.evaluate.benchmark import Benchmark, load_benchmark, load_benchmarks, seen_in
from glip.evaluate.evaluation import prompt_folders, query_options
from glip.evaluate.report import Report, comparison
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions
from glip.evaluate.scoring import score

BOX = (10.0, 10.0, 50.0, 50.0)
CAT, FILES = sample(["cat"], [(BOX, 0)]), SetConfig(annotations="a.json")
LISTED = SampleSet([CAT], ("cat",))
SAID = SampleSet([captioned("a cat", ["cat"], [(BOX, 0)])])
BOTH = SampleSet([CAT, SAID.samples[0]], ("cat",))


@pytest.mark.parametrize(
    ("format", "read", "given", "protocol"),
    [
        ("coco", LISTED, None, "coco"),
        ("lvis", LISTED, None, "lvis"),
        ("flickr30k", SAID, None, "any-box"),
        ("odvg", BOTH, None, "coco"),
        ("odvg", BOTH, "any-box", "any-box"),
        ("coco", LISTED, "merged-boxes", "lists of names in coco: take coco"),
        ("coco", LISTED, "lvis", "lists of names in coco: take coco"),
        ("flickr30k", SAID, "coco", "captions in flickr30k: take any-box or merged-boxes"),
    ],
)
def test_the_protocol(format, read, given, protocol):
    """A set with both kinds takes either."""
    made = replace(read, format=format)
    if "take" not in protocol:
        assert load_benchmark("mine", FILES, made, given).protocol == protocol
        return
    with pytest.raises(ValueError, match=protocol):
        load_benchmark("mine", FILES, made, given)


@pytest.mark.parametrize(
    ("name", "trained_on", "seen"),
    [
        ("bccd_test", ("drawn world", "bccd"), "same dataset by name"),
        ("bccd_val", ("bccd_train",), "same dataset by name"),
        ("bccd_train", ("bccd_train",), "yes"),
        ("coco_val2017", ("coco_train2017",), "same dataset by name"),
        ("bccd_test", ("chess_pieces",), "no"),
        ("bccd_test", ("unknown", "chess_pieces"), "unknown"),
        ("world_novel_captions", ("drawn world",), "same dataset by name"),
        ("world_novel", ("bccd",), "no"),
        ("CottontailRabbits", ("rabbits",), "same dataset by name"),
        ("flickr30k_test", ("objects365", "goldg"), "same dataset by name"),
        ("lvis_minival", ("lvis_train",), "same dataset by name"),
    ],
)
def test_whether_a_model_was_trained_on_it_by_name(name, trained_on, seen):
    same_as = ("rabbits",) if name == "CottontailRabbits" else ()
    made = Benchmark(name, FILES, LISTED, "coco", same_as=same_as)
    assert made.trained_on(ModelConfig(trained_on=trained_on)) == seen
    assert seen_in(trained_on, name, *same_as) is (seen in ("yes", "same dataset by name"))
    assert made.trained_on(ModelConfig()) == "unknown"


def test_whether_a_model_was_trained_on_a_file(tmp_path):
    """Fingerprints of the data tell; they do not depend on the folder. The release's weights have none."""
    files = [write_coco(tmp_path / folder) for folder in ("here", "there")]
    first, moved = (load_benchmarks([str(file)], EvaluateConfig())[str(file)][0] for file in files)
    assert first.name == "here_instances" and moved.fingerprint == first.fingerprint
    for stored, expected in (
        ((first.fingerprint,), "yes"),
        ((images_fingerprint(first.read.samples),), "yes"),  # with other boxes
        ((VALIDATED + first.fingerprint,), "validated on"),
        (("another",), "no"),
        (("unknown", "another"), "unknown"),  # the start of the model has none
        ((), "unknown"),
    ):
        assert moved.trained_on(ModelConfig(trained_on=("instances", "objects365"), trained_on_data=stored)) == expected
    assert moved.trained_on(ModelConfig(trained_on=("there_train",), trained_on_data=("another",))) == "no"
    assert moved.trained_on(ModelConfig(trained_on=("there_instances",))) == "same dataset by name"


def test_how_the_model_is_called():
    listed, lvis = (load_benchmark("mine", FILES, replace(LISTED, format=format), None) for format in ("coco", "lvis"))
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
        (["words-2.yaml", "words.yaml", "a/words.yaml"], ["prompts-words-2-1", "prompts-words-2", "prompts-words-3"]),
    ],
)
def test_folders_of_prompts(files, folders):
    assert list(prompt_folders(files).values()) == folders


def test_what_could_not_be_scored_is_told_before_the_model_runs(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    good, group = replace(CAT, image=tmp_path / "a.png"), replace(CAT, crowd=(0,))
    load_benchmark("mine", FILES, SampleSet([good, CAT], ("cat",)), None)
    with pytest.raises(ValueError, match=r"'mine': 1 of 2 images are not there, such as '.*b\.png'"):
        load_benchmark("mine", FILES, SampleSet([good, replace(good, image=tmp_path / "b.png")], ("cat",)), None)
    for bare in (group, sample(["cat"]), replace(sample(()), caption="a cat")):
        with pytest.raises(ValueError, match="no box of a known class in 1 images|it has captions only"):
            load_benchmark("mine", FILES, SampleSet([bare], ("cat",)), None)


def test_figures_over_nothing_are_not_compared():
    first, second = (Report("a", "grefcoco_val", "grefcoco", 9, "no", {"F1=1": f1, "N_acc": -1.0}) for f1 in (0.5, 0.6))
    rows = comparison({("a", "", ""): [first], ("b", "", ""): [second]})
    assert [(row["figure"], row["difference"]) for row in rows] == [("F1=1", ""), ("F1=1", "+0.100")]


# ---- the score of stored predictions


CATS = [replace(sample(["cat", "dog"], [(BOX, 0)]), image_id=number) for number in range(3)]


def scored(folder: Path, *numbers: int):
    store = PredictionStore(folder / "predictions", {"of": "this"})
    for number in numbers:
        store.add(Prediction(number, detections(CATS[number], [(BOX, 0.9, 0), (BOX, 0.4, 1)])))
    store.flush()
    cats = load_benchmark("cats", FILES, SampleSet(CATS, ("cat", "dog"), format="odvg"), None)
    return score(cats, store, ModelConfig(), QueryOptions(), folder)


def test_samples_of_the_set_itself(tmp_path):
    report = scored(tmp_path, 0, 1, 2)
    assert report.figures["AP50"] == pytest.approx(1.0) and report.samples == 3 and not report.noted
    assert report.figures["AP at false positive rate 0.05"] == pytest.approx(1.0), "dogs are detected at 0.4 only"
    assert report.tables["False positives on absent names"][0]["threshold"] > 0.4


def test_missing_predictions_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 of 3 samples of 'cats' have no prediction .* run the same command again"):
        scored(tmp_path, 0, 2)
