"""Columns: results read row by row, what cannot be scored counted, written again; what samples say is there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scored import captioned, detections, sample

from glip.data.sets import SkipCounter
from glip.evaluate.columns import (
    UNKNOWN,
    Results,
    concatenate,
    labels_of,
    read_results,
    results_of,
    to_arrays,
    truth_of,
    write_results,
)

IMAGES, CATEGORIES = (7, "b.png"), (3, "cat")
TEXT = ": its id is text such as '1', that of the set a number such as 1"
GOOD = {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.5}
A, B = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 80.0)


def read(folder: Path, rows: object, tally: SkipCounter | None = None) -> Results:
    file = folder / "results.json"
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return read_results(file, IMAGES, CATEGORIES, SkipCounter() if tally is None else tally)


def written(folder: Path, results: Results) -> list[dict[str, object]]:
    write_results(folder / "again.json", results, IMAGES, CATEGORIES)
    return json.loads((folder / "again.json").read_text())


def test_rows_become_columns_and_rows_again(tmp_path):
    first = {"image_id": "b.png", "category_id": "cat", "bbox": [0.25, 0, 0, 5], "score": 0.5}
    rows, tally = [first, GOOD, {**GOOD, "bbox": [-1.0, 2.0, 3.5, 4.0], "score": -3.0}], SkipCounter()
    results = read(tmp_path, rows, tally)
    assert not tally and results.images.tolist() == [1, 0, 0] and results.categories.tolist() == [1, 0, 0]
    assert written(tmp_path, results) == rows
    assert written(tmp_path, results.select(results.scores > 0)) == rows[:2]
    assert written(tmp_path, results.select(np.array([2, 0]))) == [rows[2], rows[0]]


@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [
        ("image_id", (8, "8", True, [7], 7.5), "result of an unknown image"),
        ("image_id", ("7",), f"result of an unknown image{TEXT}"),
        ("bbox", ([1, 2, 3], [1, 2, 3, None], [1, 2, 3, float("inf")], None), "result with a malformed box"),
        ("bbox", ([1, 2, -3, 4], [1, 2, 3, -0.5]), "result with a malformed box"),
        ("score", (float("nan"), float("-inf"), 10**400, "0.5"), "result with a score that is no number"),
    ],
)
def test_what_cannot_be_scored_is_left_out_and_counted(tmp_path, key, values, reason):
    for value in values:
        tally = SkipCounter()
        results = read(tmp_path, [GOOD, {**GOOD, key: value}, GOOD], tally)
        assert len(results) == 2 and tally.counts == {reason: 1} and tally.places[reason] == ["row 1"]


def test_whole_floats_are_ids_and_masks_have_boxes_as_for_pycocotools(tmp_path):
    tally, mask = SkipCounter(), {"size": [9, 9], "counts": [10, 2, 7, 2, 60]}
    rows = [{**GOOD, "image_id": 7.0, "category_id": 3.0}, {**GOOD, "bbox": None, "segmentation": mask}]
    results = read(tmp_path, rows, tally)
    assert written(tmp_path, results) == [GOOD, {**GOOD, "bbox": [1, 1, 2, 2]}]
    assert tally.counts == {"result without a bbox (that of its segmentation is taken)": 1}


def test_unknown_categories_are_counted_and_stay(tmp_path):
    """In LVIS they take up places of an image's 300."""
    tally = SkipCounter()
    results = read(tmp_path, [{**GOOD, "category_id": 99}, {**GOOD, "category_id": [3]}, GOOD], tally)
    assert results.categories.tolist() == [UNKNOWN, UNKNOWN, 0] and len(written(tmp_path, results)) == 1
    assert tally.counts == {"result of an unknown category": 2}


def test_more_than_a_row_needs_is_passed_over(tmp_path):
    tally = SkipCounter()
    results = read(tmp_path, [{**GOOD, "segmentation": {"size": [3, 4], "counts": "x"}}, 5, {"a": 1}, []], tally)
    assert len(results) == 1 and tally.counts == {"result that is no record": 3}


def test_no_results_at_all_are_noted(tmp_path):
    tally = SkipCounter()
    assert len(read(tmp_path, [], tally)) == 0
    assert tally.counts == {"results file without a result: every figure is 0": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{", "not valid JSON"),
        ({"annotations": []}, "not one result in it can be scored (it lists none): give a JSON list of {image_id, "),
        ([{**GOOD, "image_id": 8}] * 2, "(2 x result of an unknown image)"),
        ([{**GOOD, "image_id": "7"}] * 2, f"(2 x result of an unknown image{TEXT})"),
        ([{**GOOD, "category_id": 8}], "image ids are such as 7, 'b.png', its category ids such as 3, 'cat'"),
    ],
)
def test_no_results_of_this_set(tmp_path, rows, message):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, rows)
    assert message in str(caught.value) and "results.json: " in str(caught.value) and "\n" not in str(caught.value)


def test_results_of_detections():
    """The release counts the last pixel in COCO's results, and nowhere else."""
    one = sample(["cat", "dog", "cow"])
    found = detections(one, [((10.0, 20.0, 30.0, 60.0), 0.25, 0), ((1.0, 2.0, 1.0, 2.0), 0.75, 2)])
    results = results_of(found, 4, (8, 9, UNKNOWN))
    assert results.images.tolist() == [4, 4] and results.categories.tolist() == [UNKNOWN, 8]
    assert results.boxes.tolist() == [[1, 2, 0, 0], [10, 20, 20, 40]] and results.scores.tolist() == [0.75, 0.25]
    assert results_of(found, 4, (8, 9, 9), inclusive=True).boxes.tolist() == [[1, 2, 1, 1], [10, 20, 21, 41]]
    both = concatenate([results_of(detections(one, []), 0, (0, 1, 2)), results, results])
    assert both.categories.tolist() == [UNKNOWN, 8, UNKNOWN, 8] and concatenate([]).boxes.shape == (0, 4)


# ---- samples


def test_one_vocabulary_keeps_its_order_and_its_twins():
    names = ["cow", "cat", "cow"]
    truth = truth_of([sample(names, [(A, 2), (B, 0)]), replace(sample(names, [(A, 1)]), crowd=(0,))])
    assert truth.names == tuple(names) and labels_of(truth.names, names) == (0, 1, 2)
    assert truth.boxes.images.tolist() == [0, 0, 1] and truth.boxes.categories.tolist() == [2, 0, 1]
    assert truth.boxes.boxes.tolist() == [[10, 10, 40, 40], [60, 60, 30, 20], [10, 10, 40, 40]]
    assert truth.boxes.areas.tolist() == [1600, 600, 1600] and truth.boxes.crowd.tolist() == [False, False, True]
    assert truth.present.tolist() == [[True, False, True], [False, True, False]]
    assert truth.negatives is not None and truth.negatives.tolist() == (~truth.present).tolist()


def test_names_of_several_vocabularies_are_one_where_they_are_equal():
    truth = truth_of([sample(["dog", "cat"], [(A, 0)]), sample(["cow", "dog"], [(A, 1)])])
    assert truth.names == ("cat", "cow", "dog") and labels_of(truth.names, ("cow", "dog")) == (1, 2)
    assert truth.boxes.categories.tolist() == [2, 2]
    assert truth.negatives is not None and truth.negatives.tolist() == [[True, False, False], [False, True, False]]


def test_samples_with_a_caption_keep_their_place_and_say_nothing():
    said = captioned("a cat", ["cat"], [(A, 0)])
    truth = truth_of([said, sample(["dog"], [(B, 0)])])
    assert truth.names == ("dog",) and truth.images == (0, 1) and truth.boxes.images.tolist() == [1]
    with pytest.raises(ValueError, match=r"the words to score are \(\): detect with the sample's own names"):
        to_arrays([(said, detections(said, []))])


def test_which_names_are_absent():
    one, said = sample(["cat", "dog", "cow"], [(A, 0)]), captioned("a cat", ["a cat"], [])
    truth = truth_of([one, replace(one, incomplete=(2,)), replace(one, absent=(2,)), replace(one, absent=(0,)), said])
    assert truth.negatives is not None
    assert [np.flatnonzero(row).tolist() for row in truth.negatives] == [[1, 2], [1], [2], [], []]


def test_what_is_asked_beside_the_names_of_the_set_is_of_no_category():
    one, more = sample(["cat"], [(A, 0)]), sample(["cat", "dog"])
    _, results = to_arrays([(one, detections(more, [(B, 0.75, 1), (A, 0.5, 0)]))])
    assert results.categories.tolist() == [UNKNOWN, 0] and results.boxes.tolist()[1] == [10, 10, 40, 40]
