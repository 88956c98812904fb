"""AP from samples: cases worked by hand, COCO's own figures, names asked for in some pictures only, the interval."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scored import detections, sample

from glip.evaluate.coco import STATS, Truth, average_precision, score_rows

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "eval" / "coco"
A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)


def test_by_hand():
    """One name, two boxes; right, wrong, right: precision 1 up to recall 0.5 (51 of 101 points), then 2/3."""
    one = sample(["cat"], [(A, 0), (B, 0)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)]))])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert score.ap50 == pytest.approx(expected, abs=1e-9) and score.ap == pytest.approx(expected, abs=1e-9)
    assert dict(zip(STATS, score.stats, strict=True))["AR@1"] == pytest.approx(0.5)
    [row] = score.categories
    assert (row.name, row.boxes, row.ap50) == ("cat", 2, pytest.approx(expected))


def test_a_category_without_box_is_left_out():
    one = sample(["cat", "dog"], [(A, 0)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (B, 0.95, 1)]))])
    assert score.ap50 == pytest.approx(1.0)
    assert [row.ap50 for row in score.categories] == [pytest.approx(1.0), -1.0]


@pytest.mark.parametrize("case", ["real80_plain", "real80_stress", "synth_stress"])
def test_golden(case):
    """All twelve figures and every category, as the reference gives them."""
    folder = GOLDEN / case
    if not folder.is_dir():
        pytest.skip("../shared/golden/eval is not there")
    tree = json.loads((folder / "annotations.json").read_text())
    names = {row["id"]: row["name"] for row in tree["categories"]}
    numbers = sorted(names)
    truth = Truth(tuple(row["id"] for row in tree["images"]), {n: names[n] for n in numbers}, tree["annotations"])
    score = score_rows(truth, json.loads((folder / "predictions.json").read_text()))
    expected = json.loads((folder / "expected.json").read_text())
    assert score.stats == pytest.approx(tuple(expected["stats"].values()), abs=1e-9)
    with (folder / "per_category.csv").open() as file:
        table = {int(row["category_id"]): row for row in csv.DictReader(file)}
    for number, row in zip(numbers, score.categories, strict=True):
        expected_row = table.get(number, {"AP": "-1", "AP50": "-1", "num_gt_noncrowd": "0"})
        assert row.ap == pytest.approx(float(expected_row["AP"]), abs=1e-9), row.name
        assert row.ap50 == pytest.approx(float(expected_row["AP50"]), abs=1e-9), row.name
        assert row.boxes == int(expected_row["num_gt_noncrowd"])


def test_the_table_is_right_in_any_order_of_the_categories():
    boxes = {7: [10.0, 10.0, 40.0, 40.0], 3: [60.0, 60.0, 30.0, 30.0]}
    rows = [
        {"id": i, "image_id": 1, "category_id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (number, box) in enumerate(boxes.items(), start=1)
    ]
    results = [{"image_id": 1, "category_id": 7, "bbox": boxes[7], "score": 0.9}]
    score = score_rows(Truth((1,), {7: "found", 3: "missed"}, rows), results)
    assert [(row.name, row.ap50) for row in score.categories] == [("missed", 0.0), ("found", pytest.approx(1.0))]


def test_names_count_where_they_were_asked():
    """The second picture was not asked for a cat: what it holds there says nothing about cats."""
    first, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(B, 0)])
    found = detections(first, [(A, 0.5, 0)])
    alone = average_precision([(first, found), (other, detections(other, [(B, 0.9, 0), (A, 0.8, 0)]))])
    assert {row.name: row.ap50 for row in alone.categories}["cat"] == pytest.approx(1.0)
    asked = sample(["dog", "cat"], [(B, 0)])
    mistaken = detections(asked, [(B, 0.9, 0), (A, 0.8, 1)])  # a cat is said to be where none is, and louder
    both = average_precision([(first, found), (asked, mistaken)])
    assert {row.name: row.ap50 for row in both.categories} == {"cat": pytest.approx(0.5), "dog": pytest.approx(1.0)}


def test_many_names_give_the_figures_of_one_evaluation():
    """More categories than are evaluated at once."""
    pairs = []
    for number in range(130):
        one = sample([f"name {number}", "wrong"], [(A, 0)])
        pairs.append((one, detections(one, [(A if number % 2 else FAR, 0.9, 0)])))
    assert average_precision(pairs).ap50 == pytest.approx(0.5)


def test_groups_names_nobody_knows_of_and_incomplete_ones():
    wrong = (A, 0.9, 0)
    plain = sample(["cat"], [(B, 0)])
    rows = [wrong, (B, 0.5, 0)]
    assert average_precision([(plain, detections(plain, rows))]).ap50 == pytest.approx(0.5)
    group = replace(sample(["cat"], [(B, 0), (A, 0)]), crowd=(1,))
    score = average_precision([(group, detections(group, rows))])
    assert score.ap50 == pytest.approx(1.0) and score.categories[0].boxes == 1
    only_in_group = average_precision([(group, detections(group, [wrong]))])
    assert only_in_group.ap50 == 0.0 and only_in_group.interval(rounds=10) == (0.0, 0.0)
    incomplete = replace(plain, incomplete=(0,))
    assert average_precision([(incomplete, detections(incomplete, rows))]).ap50 == pytest.approx(1.0)
    unknown = replace(sample(["cat", "dog"], [(B, 1)]), absent=())
    pairs = [(unknown, detections(unknown, [wrong, (B, 0.5, 1)])), (replace(plain, vocabulary=("cat", "dog")), None)]
    pairs[1] = (pairs[1][0], detections(pairs[1][0], [(B, 0.4, 0)]))
    assert average_precision(pairs).ap50 == pytest.approx(1.0)


def test_nothing_to_score_is_an_error_never_zero():
    empty = sample(["cat", "dog", "cow", "hen"])
    with pytest.raises(ValueError, match=r"1 pictures have no box of any of the 4 names \('cat', 'dog', 'cow', \.\.\."):
        average_precision([(empty, detections(empty, [(A, 0.9, 0)]))])
    only_group = replace(sample(["cat"], [(A, 0)]), crowd=(0,))
    with pytest.raises(ValueError, match="nothing to score"):
        average_precision([(only_group, detections(only_group, []))])
    with pytest.raises(ValueError, match="no picture to score"):
        average_precision([])
    one, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(A, 0)])
    with pytest.raises(ValueError, match=r"detections are of \('dog',\).*no class matches"):
        average_precision([(one, detections(other, [(A, 0.9, 0)]))])


def test_no_detection_at_all_is_zero():
    one = sample(["cat"], [(A, 0)])
    score = average_precision([(one, detections(one, []))])
    assert score.ap50 == 0.0 and score.interval(rounds=20) == (0.0, 0.0)


def test_interval():
    """Resampling with the pictures once each is the figure itself; the interval holds it and is not a point."""
    pairs = []
    for number in range(12):
        one = sample(["cat", "dog"], [(A, 0), (B, 1)])
        pairs.append((one, detections(one, [(A if number % 3 else FAR, 0.9 - 0.01 * number, 0), (B, 0.6, 1)])))
    score = average_precision(pairs)
    low, high = score.interval(rounds=200)
    assert low < score.ap50 < high
    assert score.interval(rounds=200) == (low, high)
    twice = average_precision([*pairs, *pairs])  # the same pictures again: the weights 2, 2, ... of the resampling
    assert twice.ap50 == pytest.approx(score.ap50, abs=0.02)
    sure = average_precision([(pairs[1][0], pairs[1][1])] * 3)
    assert sure.interval(rounds=50) == (pytest.approx(1.0), pytest.approx(1.0))


def test_the_interval_weighs_pictures_as_repeating_them_does():
    from glip.evaluate.coco import _weighted_ap

    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(6):
        one = sample(["cat"], [(A, 0), (B, 0)])
        scores = torch.rand(4, generator=generator).tolist()
        places = [A, FAR, B, (30.0, 0.0, 60.0, 20.0)]
        pairs.append((one, detections(one, list(zip(places, scores, [0] * 4, strict=True)))))
    weights = torch.tensor([2, 0, 1, 3, 0, 1]).numpy()
    repeated = [pair for pair, times in zip(pairs, weights.tolist(), strict=True) for _ in range(times)]
    [ranking] = average_precision(pairs).rankings
    assert _weighted_ap(ranking, weights) == pytest.approx(average_precision(repeated).ap50, abs=1e-9)
