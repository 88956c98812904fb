"""Results of a set: read row by row, what cannot be scored is counted, written again, made of detections."""

import json
from pathlib import Path

import numpy as np
import pytest
from scored import detections, sample

from glip.data.sets import SkipCounter
from glip.evaluate.columns import UNKNOWN, Results, concatenate, read_results, results_of, write_results

IMAGES, CATEGORIES = (7, "b.png"), (3, "cat")
GOOD = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3.5, 4], "score": 0.5}


def read(folder: Path, rows: object, tally: SkipCounter | None = None) -> Results:
    file = folder / "results.json"
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return read_results(file, IMAGES, CATEGORIES, SkipCounter() if tally is None else tally)


def test_rows_become_columns_and_rows_again(tmp_path):
    rows = [
        {"image_id": "b.png", "category_id": "cat", "bbox": [0.25, 0, 0, 5], "score": 0.5},
        {**GOOD, "bbox": [1.0, 2.0, 3.5, 4.0]},
        {**GOOD, "bbox": [-1.0, 2.0, 3.5, 4.0], "score": -3.0},
    ]
    tally = SkipCounter()
    results = read(tmp_path, rows, tally)
    assert not tally and len(results) == 3
    assert results.images.tolist() == [1, 0, 0] and results.categories.tolist() == [1, 0, 0]
    assert written(tmp_path, results) == rows
    assert written(tmp_path, results.select(results.scores > 0)) == rows[:2]
    assert written(tmp_path, results.select(np.array([2, 0]))) == [rows[2], rows[0]]


def written(folder: Path, results: Results) -> list[dict[str, object]]:
    write_results(folder / "again.json", results, IMAGES, CATEGORIES)
    return json.loads((folder / "again.json").read_text())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 8}, "result of an unknown image"),
        ({"image_id": "7"}, "result of an unknown image"),
        ({"image_id": True}, "result of an unknown image"),
        ({"image_id": [7]}, "result of an unknown image"),
        ({"bbox": [1, 2, 3]}, "result with a malformed box"),
        ({"bbox": [1, 2, 3, None]}, "result with a malformed box"),
        ({"bbox": [1, 2, 3, float("inf")]}, "result with a malformed box"),
        ({"bbox": None}, "result with a malformed box"),
        ({"bbox": [1, 2, -3, 4]}, "result with a box of negative size"),
        ({"bbox": [1, 2, 3, -0.5]}, "result with a box of negative size"),
        ({"score": float("nan")}, "result with a score that is no number"),
        ({"score": float("-inf")}, "result with a score that is no number"),
        ({"score": 10**400}, "result with a score that is no number"),
        ({"score": "0.5"}, "result with a score that is no number"),
    ],
)
def test_what_cannot_be_scored_is_left_out_and_counted(tmp_path, change, reason):
    tally = SkipCounter()
    results = read(tmp_path, [GOOD, {**GOOD, **change}, GOOD], tally)
    assert len(results) == 2 and tally.counts == {reason: 1} and tally.places[reason] == ["row 1"]


def test_unknown_categories_are_counted_and_stay(tmp_path):
    """In LVIS they take up places of an image's 300."""
    tally = SkipCounter()
    results = read(tmp_path, [{**GOOD, "category_id": 99}, {**GOOD, "category_id": [3]}, GOOD], tally)
    assert results.categories.tolist() == [UNKNOWN, UNKNOWN, 0]
    assert tally.counts == {"result of an unknown category": 2}
    assert len(written(tmp_path, results)) == 1


def test_more_than_a_row_needs_is_passed_over(tmp_path):
    tally = SkipCounter()
    results = read(tmp_path, [{**GOOD, "segmentation": {"size": [3, 4], "counts": "x"}}, 5, {"a": 1}, []], tally)
    assert len(results) == 1 and tally.counts == {"result that is no record": 3}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"annotations": []}, "not a results file, it is no list: give a JSON list of"),
        ([], "not one of its results can be scored (it is empty)"),
        ([{**GOOD, "image_id": 8}] * 2, "not one of its results can be scored (2 x result of an unknown image)"),
        (
            [{**GOOD, "category_id": 8}],
            "(1 x result of an unknown category): the set's image ids are such as 7, 'b.png'",
        ),
    ],
)
def test_no_results_of_this_set(tmp_path, rows, message):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, rows)
    assert message in str(caught.value) and "results.json: " in str(caught.value) and "\n" not in str(caught.value)


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_results(tmp_path / "none.json", IMAGES, CATEGORIES, SkipCounter())


def test_results_of_detections():
    """The release counts the last pixel in COCO's results, and nowhere else."""
    one = sample(["cat", "dog", "cow"])
    found = detections(one, [((10.0, 20.0, 30.0, 60.0), 0.25, 0), ((1.0, 2.0, 1.0, 2.0), 0.75, 2)])
    results = results_of(found, 4, (8, 9, UNKNOWN))
    assert results.images.tolist() == [4, 4] and results.categories.tolist() == [UNKNOWN, 8]
    assert results.boxes.tolist() == [[1, 2, 0, 0], [10, 20, 20, 40]] and results.scores.tolist() == [0.75, 0.25]
    assert results_of(found, 4, (8, 9, 9), inclusive=True).boxes.tolist() == [[1, 2, 1, 1], [10, 20, 21, 41]]
    nothing = results_of(detections(one, []), 0, (0, 1, 2))
    both = concatenate([nothing, results, nothing, results])
    assert len(nothing) == 0 and both.categories.tolist() == [UNKNOWN, 8, UNKNOWN, 8] and both.boxes.shape == (4, 4)
    assert len(concatenate([])) == 0 and concatenate([]).boxes.shape == (0, 4)
