"""COCO's figures: golden files, cases worked by hand, names asked for in some images only, intervals, thresholds."""

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scored import detections, sample, shared_case

from glip.data.coco import parse_coco
from glip.data.sets import SkipCounter
from glip.evaluate.coco import (
    Ranking,
    Score,
    average_precision,
    confusion,
    pooled,
    score_results,
    thresholds_by_name,
)
from glip.evaluate.columns import (
    UNKNOWN,
    GroundTruth,
    concatenate,
    read_results,
    read_truth,
    results_of,
    to_arrays,
)
from glip.geometry.boxes import scale
from glip.structures import Detections, Prompt

BOX = [10.0, 10.0, 40.0, 40.0]
A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)


# ---- files


def truth_in(file: Path, tally: SkipCounter | None = None) -> GroundTruth:
    return read_truth(parse_coco(file), SkipCounter() if tally is None else tally)


def score_files(annotations: Path, predictions: Path, tally: SkipCounter | None = None) -> Score:
    truth, tally = truth_in(annotations, tally), SkipCounter() if tally is None else tally
    return score_results(truth, read_results(predictions, truth.images, truth.categories, tally))


@pytest.mark.parametrize("case", ["real80_plain", "real80_stress", "synth_stress"])
def test_golden_figures(case):
    """All twelve figures and every category, as pycocotools gives them."""
    folder = shared_case(f"coco/{case}")
    truth = truth_in(folder / "annotations.json")
    score = score_files(folder / "annotations.json", folder / "predictions.json")
    expected = json.loads((folder / "expected.json").read_text())
    assert [*score.figures.values()] == pytest.approx([*expected["stats"].values()], abs=1e-9)
    with (folder / "per_category.csv").open() as file:
        table = {int(row["category_id"]): row for row in csv.DictReader(file)}
    assert {number for number, row in table.items() if row["AP"] != "-1"} <= set(truth.categories)
    for number, row in zip(truth.categories, score.categories, strict=True):
        expected_row = table.get(number, {"AP": "-1", "AP50": "-1", "num_gt_noncrowd": "0"})
        assert row["AP"] == pytest.approx(float(expected_row["AP"]), abs=1e-9), row
        assert row["AP50"] == pytest.approx(float(expected_row["AP50"]), abs=1e-9), row
        assert row["boxes"] == int(expected_row["num_gt_noncrowd"])


def test_golden_network_boxes_with_inclusive_widths():
    """The release's way from boxes in resized pixels to COCO's rows: +1 on widths, labels outside are dropped."""
    folder = shared_case("coco/real80_from_network_boxes")
    truth = truth_in(folder / "annotations.json")
    images = json.loads((folder / "annotations.json").read_text())["images"]
    sizes = {row["id"]: (row["height"], row["width"]) for row in images}
    found, expected = np.load(folder / "network_detections.npz"), np.load(folder / "expected_results.npz")
    offsets, labels = found["det_offset"], found["labels"]
    prompt = Prompt.from_names([f"label {number}" for number in range(1, labels.max() + 1)])
    places = [*range(len(truth.categories)), *[UNKNOWN] * (len(prompt.phrases) - len(truth.categories))]
    parts = []
    for index, number in enumerate(found["image_id"].tolist()):
        rows = slice(offsets[index], offsets[index + 1])
        width, height = found["net_size_wh"][index].tolist()
        boxes = scale(torch.from_numpy(found["boxes_xyxy"][rows]), (height, width), sizes[number])
        scores, names = torch.from_numpy(found["scores"][rows]), torch.from_numpy(labels[rows] - 1)
        one = Detections(boxes, scores, names, prompt, sizes[number])
        parts.append(results_of(one, truth.images.index(number), places, inclusive=True))
    results = concatenate(parts)
    known = results.select(results.categories != UNKNOWN)
    assert np.array(truth.images)[known.images].tolist() == expected["image_id"].tolist()
    assert np.array(truth.categories)[known.categories].tolist() == expected["category_id"].tolist()
    assert known.boxes == pytest.approx(expected["bbox"], abs=1e-4)
    assert known.scores == pytest.approx(expected["score"], abs=1e-7)
    figures = json.loads((folder / "expected.json").read_text())["stats"]
    assert [*score_results(truth, results).figures.values()] == pytest.approx([*figures.values()], abs=1e-9)


def write(folder: Path, **changes: object) -> Path:
    outline = {"area": 5.0, "iscrowd": 0, "segmentation": [[1, 2]]}
    tree = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "found"}, {"id": 3, "name": "missed"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 7, "bbox": BOX},
            {"id": 0, "image_id": 2, "category_id": 3, "bbox": BOX, **outline},
        ],
    }
    file = folder / "annotations.json"
    file.write_text(json.dumps(tree | changes), encoding="utf-8")
    return file


def write_rows(folder: Path, *rows: object) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def right(**changes: object) -> dict[str, object]:
    return {"image_id": 1, "category_id": 7, "bbox": BOX, "score": 0.5} | changes


def test_a_file_of_ones_own(tmp_path):
    """The table in the order of the ids, ids from 0 that are given twice, areas as stated or else the box's."""
    truth = truth_in(write(tmp_path))
    assert (truth.categories, truth.names, truth.images) == ((3, 7), ("missed", "found"), (1, 2))
    assert truth.boxes.areas.tolist() == [1600.0, 5.0] and not truth.boxes.crowd.any() and truth.negatives is None
    score = score_files(tmp_path / "annotations.json", write_rows(tmp_path, right()))
    assert [(row["name"], row["AP50"]) for row in score.categories] == [("missed", 0.0), ("found", pytest.approx(1.0))]
    assert (score.figures["APs"], score.figures["APm"]) == (0.0, pytest.approx(1.0)), "by the stated areas"


def test_boxes_whose_stated_area_is_none_of_coco_s_have_no_figures(tmp_path):
    rows = [{"image_id": 1, "category_id": 7, "bbox": BOX, "area": -1.0}]
    score = score_files(write(tmp_path, annotations=rows), write_rows(tmp_path, right()))
    assert score.ap == -1.0 and score.interval() is None


def test_ids_may_be_texts(tmp_path):
    rows = [{"image_id": "b/1.png", "category_id": "cat", "bbox": BOX}]
    file = write(tmp_path, images=[{"id": "b/1.png"}, {"id": 4}], categories=[{"id": "cat"}], annotations=rows)
    truth = truth_in(file)
    assert truth.images == (4, "b/1.png") and truth.names == ("cat",)
    results = write_rows(tmp_path, right(image_id="b/1.png", category_id="cat"))
    assert score_files(file, results).ap == pytest.approx(1.0)


def test_what_cannot_be_scored_with_is_counted(tmp_path):
    good = {"image_id": 1, "category_id": 7, "bbox": BOX}
    wrong = [{"image_id": 5}, {"category_id": 5}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, -3, 4]}, {"category_id": [7]}]
    rows, tally = [good, *({**good, **change} for change in wrong), "no record"], SkipCounter()
    images = [{"id": 1}, {"id": 1}, {"file_name": "x"}]
    categories = [{"id": 7}, {"name": "cat"}, {"name": "dog"}]
    truth = truth_in(write(tmp_path, annotations=rows, images=images, categories=categories), tally)
    assert len(truth.boxes.areas) == 1 and truth.images == (1,) and truth.categories == (7,)
    assert tally.counts == {
        "image id seen before": 1,
        "image without an id": 1,
        "category without an id": 2,
        "annotation of an unknown image": 2,
        "annotation of an unknown category": 2,
        "annotation with a malformed box": 2,
        "annotation without an area (that of its box is taken)": 1,
    }
    assert tally.places["annotation with a malformed box"] == ["annotations[3]", "annotations[4]"]


CROWD = {"image_id": 1, "category_id": 7, "bbox": BOX, "iscrowd": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "the 2 images have no box of any of the 2 names ('missed', 'found'): there is nothing"),
        ({"annotations": [CROWD]}, "the 2 images have no box of any of the 2 names"),
        ({"annotations": None}, "not COCO json: no list 'annotations' (it needs images, annotations, categories)"),
        ({"categories": [{"id": 7}, {"id": 7}]}, "category id 7 is listed twice: give each category its own id"),
    ],
)
def test_files_without_a_truth(tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        score_files(write(tmp_path, **changes), write_rows(tmp_path, right()))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_federated_files_score_what_was_looked_for(tmp_path):
    """LVIS: the first image was looked through for "missed" too, the second only for what it has."""
    images = [{"id": 1, "neg_category_ids": [3, [5], 99]}, {"id": 2, "neg_category_ids": []}]
    file = write(tmp_path, images=images)
    assert np.array(truth_in(file).negatives).tolist() == [[True, False], [False, False]]
    unasked = [right(image_id=2, category_id=7, score=0.9), right()]
    asked = [right(category_id=3, score=0.9), right(image_id=2, category_id=3)]
    score = score_files(file, write_rows(tmp_path, *unasked, *asked))
    assert [row["AP50"] for row in score.categories] == [pytest.approx(0.5), pytest.approx(1.0)]


# ---- samples


def test_by_hand():
    """One name, two boxes; right, wrong, right: precision 1 up to recall 0.5 (51 of 101 points), then 2/3."""
    one = sample(["cat"], [(A, 0), (B, 0)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)]))])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert score.ap50 == pytest.approx(expected, abs=1e-9) and score.ap == pytest.approx(expected, abs=1e-9)
    assert score.figures["AR@1"] == pytest.approx(0.5)
    [row] = score.categories
    assert (row["name"], row["boxes"], row["AP50"]) == ("cat", 2, pytest.approx(expected))


def test_names_count_where_they_were_asked():
    """The second image was not asked for a cat: what it holds there says nothing about cats."""
    first, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(B, 0)])
    found = detections(first, [(A, 0.5, 0)])
    alone = average_precision([(first, found), (other, detections(other, [(B, 0.9, 0), (A, 0.8, 0)]))])
    assert {row["name"]: row["AP50"] for row in alone.categories}["cat"] == pytest.approx(1.0)
    asked = sample(["dog", "cat"], [(B, 0)])
    mistaken = detections(asked, [(B, 0.9, 0), (A, 0.8, 1)])  # a cat is said to be where none is, and louder
    both = average_precision([(first, found), (asked, mistaken)])
    assert {row["name"]: row["AP50"] for row in both.categories} == pytest.approx({"cat": 0.5, "dog": 1.0})


def test_many_names_give_the_figures_of_one_evaluation():
    """More categories than are evaluated at once, and each keeps its own line; one without a box is left out."""
    pairs = []
    for number in range(130):
        one = sample([f"name {number}", "wrong"], [(A, 0)])
        pairs.append((one, detections(one, [(A if number % 2 else FAR, 0.9, 0)])))
    score = average_precision(pairs)
    assert score.ap50 == pytest.approx(0.5)
    right = {f"name {number}": float(number % 2) for number in range(130)}
    assert {row["name"]: row["AP50"] for row in score.categories} == pytest.approx({**right, "wrong": -1.0})


def test_what_each_detection_was():
    one = sample(["cat", "dog"], [(A, 0), (B, 0), (FAR, 1)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (A, 0.8, 0), (FAR, 0.25, 1)]))])
    cat, dog = score.rankings
    assert cat.right.tolist() == [True, False] and cat.scores.tolist() == pytest.approx([0.9, 0.8])
    assert dog.scores.tolist() == [0.25] and dog.boxes.tolist() == [0]


def test_groups_names_nobody_knows_of_and_incomplete_ones():
    rows = wrong, _ = [(A, 0.9, 0), (B, 0.5, 0)]
    plain, group = sample(["cat"], [(B, 0)]), replace(sample(["cat"], [(B, 0), (A, 0)]), crowd=(1,))
    incomplete, only_in_group = replace(plain, incomplete=(0,)), detections(group, [wrong])
    for one, expected in ((plain, 0.5), (group, 1.0), (incomplete, 1.0)):
        score = average_precision([(one, detections(one, rows))])
        assert score.ap50 == pytest.approx(expected) and score.categories[0]["boxes"] == 1
    score = average_precision([(group, only_in_group)])
    assert score.ap50 == 0.0 and score.interval(rounds=10) == (0.0, 0.0)
    unknown, known = replace(sample(["cat", "dog"], [(B, 1)]), absent=()), sample(["cat", "dog"], [(B, 0)])
    pairs = [(unknown, detections(unknown, [wrong, (B, 0.5, 1)])), (known, detections(known, [(B, 0.4, 0)]))]
    assert average_precision(pairs).ap50 == pytest.approx(1.0)


def test_nothing_to_score_is_an_error_never_zero():
    empty, only_group = sample(["cat", "dog", "cow", "hen"]), replace(sample(["cat"], [(A, 0)]), crowd=(0,))
    with pytest.raises(ValueError, match=r"1 images have no box of any of the 4 names \('cat', 'dog', 'cow', \.\.\."):
        average_precision([(empty, detections(empty, [(A, 0.9, 0)]))])
    for pairs in ([(only_group, detections(only_group, []))], []):
        with pytest.raises(ValueError, match="nothing to score"):
            average_precision(pairs)
    one, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(A, 0)])
    with pytest.raises(ValueError, match=r"detections are of \('dog',\), the words to score are \('cat',\)"):
        average_precision([(one, detections(other, [(A, 0.9, 0)]))])


# ---- intervals


def test_interval():
    """Resampling with the images once each is the figure itself; the interval holds it and is not a point."""
    pairs = []
    for number in range(12):
        one = sample(["cat", "dog"], [(A, 0), (B, 1)])
        pairs.append((one, detections(one, [(A if number % 3 else FAR, 0.9 - 0.01 * number, 0), (B, 0.6, 1)])))
    score = average_precision(pairs)
    low, high = score.interval(rounds=200)
    assert low < score.ap50 < high and score.interval(rounds=200) == (low, high)
    sure = average_precision([(pairs[1][0], pairs[1][1])] * 3)
    assert sure.interval(rounds=50) == (pytest.approx(1.0), pytest.approx(1.0))


def test_names_in_few_images_have_no_interval():
    """Each of 60 names is in two images, found in one: in a resample either may be gone, and the mean rises."""
    pairs = []
    names = [f"thing {number}" for number in range(60)]
    for number in range(120):
        one, label = sample(names, [(A, number // 2)]), number // 2
        false = [(FAR, 0.9, other) for other in range(60) if other % 4 == number % 4]
        pairs.append((one, detections(one, [*false, *([(A, 0.5, label)] if number % 2 else [])])))
    assert average_precision(pairs).interval(rounds=100) is None


def test_the_interval_weighs_images_as_repeating_them_does():
    pairs = []
    for _ in range(6):
        one, scores = sample(["cat"], [(A, 0), (B, 0)]), torch.rand(4).tolist()
        rows = zip([A, FAR, B, (30.0, 0.0, 60.0, 20.0)], scores, [0] * 4, strict=True)
        pairs.append((one, detections(one, list(rows))))
    weights = np.array([2, 0, 1, 3, 0, 1])
    repeated = [pair for pair, times in zip(pairs, weights.tolist(), strict=True) for _ in range(times)]
    [ranking] = average_precision(pairs).rankings
    assert ranking.ap50(weights) == pytest.approx(average_precision(repeated).ap50, abs=1e-9)


# ---- the threshold of best F1, against trying all of them


def ranking(right, scores, boxes):
    return Ranking(np.zeros(len(right), int), np.array(right, bool), np.array(scores, float), np.zeros(boxes, int))


def f1(one, threshold):
    shown = one.scores >= threshold
    return 2 * one.right[shown].sum() / (shown.sum() + len(one.boxes)) if shown.sum() + len(one.boxes) else 0.0


ROWS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.4, 0.5, 0.8, 0.9])), min_size=1, max_size=20)


@given(ROWS, st.integers(0, 5))
def test_no_other_threshold_is_better(rows, missed):
    rows = sorted(rows, key=lambda row: -row[1])
    right = [row[0] for row in rows]
    one = ranking(right, [row[1] for row in rows], sum(right) + missed)
    assert bool(one.best) == any(right)
    if one.best:
        assert 0 <= (found := one.best["threshold"]) <= 1
        assert f1(one, found) == pytest.approx(max(f1(one, t) for t in np.linspace(0, 1, 101)))


def test_what_is_told_of_a_threshold():
    one, other = ranking([1, 0, 1], [0.9, 0.5, 0.5], 3), ranking([1], [0.8], 1)
    assert (other.best["threshold"], ranking([1, 1, 0], [0.9, 0.8, 0.2], 2).best["threshold"]) == (0.4, 0.5), "half-way"
    assert one.best == pytest.approx({"threshold": 0.25, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3})
    both = pooled([one, other])
    assert both.scores.tolist() == [0.9, 0.8, 0.5, 0.5] and both.right.tolist() == [True, True, False, True]
    assert both.best["recall"] == 0.75 and ranking([0], [0.9], 2).best == {} == ranking([], [], 0).best
    assert one.above(0.6).shares == pytest.approx({"precision": 1.0, "recall": 1 / 3, "F1": 0.5})
    assert both.above(0.5).shares["precision"] == 0.75 and one.above(0.95).shares["precision"] == -1.0
    found = thresholds_by_name([("cat", one), ("dog", other), ("owl", ranking([], [], 1)), ("cat", other)])
    assert found == pytest.approx({"cat": 0.25, "dog": 0.4})


# ---- comparing, confusing


def test_two_models_are_compared_image_by_image():
    """The second one looks for more boxes of the same images: its gain is surer than both figures alone."""
    rng, first, second = random.Random(2), [], []
    for _ in range(30):
        one = sample(["cat"], [(A, 0), (B, 0)])
        rows = [(A if rng.random() < 0.6 else FAR, rng.random(), 0)]
        first.append((one, detections(one, rows)))
        second.append((one, detections(one, [*rows, (B if rng.random() < 0.5 else FAR, rng.random(), 0)])))
    before, after = average_precision(first), average_precision(second)
    ones = np.ones(after.images, int)
    for score in (after, before):
        assert np.mean([one.ap(ones) for one in score.rankings]) == pytest.approx(score.ap, abs=1e-9)
    low, high = after.interval("AP", less=before)
    assert low <= after.ap - before.ap <= high and low < high
    low, high = after.interval(less=before)
    assert 0 < low < after.ap50 - before.ap50 < high
    assert high - low < after.interval()[1] - after.interval()[0] and before.interval()[1] > after.interval()[0]
    assert (-high, -low) == pytest.approx(before.interval(less=after))
    assert after.interval(less=after, rounds=50) == (0.0, 0.0)


def test_what_is_taken_for_what():
    """Own names first: the dog's box goes to the weaker dog. A cat in a group of cats counts nowhere."""
    near = (12.0, 10.0, 52.0, 50.0)
    one = sample(["cat", "dog"], [(A, 0), (near, 1), (B, 1)])
    rows = [(near, 0.9, 0), (A, 0.8, 0), (A, 0.7, 1), (B, 0.6, 0), (FAR, 0.5, 1), (FAR, 0.2, 1)]
    group = replace(sample(["cat", "dog"], [(A, 0), (B, 1)]), crowd=(0,))
    pairs = [(one, detections(one, rows)), (group, detections(group, [(A, 0.9, 0)])), (sample(["cat", "dog"]), None)]
    pairs[2] = (pairs[2][0], detections(pairs[2][0], []))
    truth, results = to_arrays(pairs)
    assert confusion(truth, results, 0.5).tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 0]]
    assert confusion(truth, results, 1.0).tolist() == [[0, 0, 0], [0, 0, 0], [1, 3, 0]]
