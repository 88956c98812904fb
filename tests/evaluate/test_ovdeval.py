"""OVDEval's NMS-AP: the official figures and rows, and small cases by hand."""

import json
import zipfile

import numpy as np
import pytest
from scored import GOLDEN

from glip.data.coco import read_ovdeval
from glip.data.sets import SkipCounter
from glip.evaluate.coco import score_results
from glip.evaluate.columns import Boxes, Results, read_results, read_truth
from glip.evaluate.ovdeval import nms_figures, suppress_near_truth


def test_golden_figures(tmp_path):
    """Figures before and after, by category too; which rows stay, in their order."""
    with zipfile.ZipFile(GOLDEN / "ovdeval.zip") as archive:
        archive.extractall(tmp_path)
    expected = json.loads((tmp_path / "expected.json").read_text())
    read, tally = read_ovdeval(tmp_path / "material.json", [tmp_path]), SkipCounter()
    truth = read_truth(read.annotations, tally)
    results = read_results(tmp_path / "results.json", truth.images, truth.categories, tally)
    kept = suppress_near_truth(truth.boxes, results)
    assert kept.tolist() == expected["kept_rows"] and not tally
    figures = {name.removeprefix("NMS-"): value for name, value in nms_figures(truth, results).items()}
    assert figures == pytest.approx(expected["nms_ap"], abs=1e-9)
    plain = score_results(truth, results, as_filed=True)
    assert dict(plain.figures) == pytest.approx(expected["plain_ap_before_nms"], abs=1e-9)
    for score, name in ((plain, "_before_nms"), (score_results(truth, results.select(kept), as_filed=True), "")):
        own = {str(number): row["AP"] for number, row in zip(truth.categories, score.categories, strict=True)}
        assert own == pytest.approx(expected[f"per_category_ap{name}"], abs=1e-9)


def suppressed(true: list[list[float]], *found: tuple[int, list[float], float]) -> list[int]:
    """The rows that stay of detections (image, box, score); the true boxes are in image 0."""
    count = len(true)
    boxes = Boxes(np.zeros(count, int), np.zeros(count, int), np.array(true), np.ones(count), np.zeros(count, bool))
    images, where, scores = (np.array(column) for column in zip(*found, strict=True))
    return suppress_near_truth(boxes, Results(images, np.arange(len(found)), where, scores)).tolist()


A, B = [0.0, 0, 10, 10], [0.0, 0, 10, 12]
HALF, FLAT = [0.0, 0, 10, 5], [3.0, 3, 0, 0]


@pytest.mark.parametrize(
    ("true", "found", "stays"),
    [
        ([A], [(0, A, 0.5), (0, A, 0.6)], [1]),
        ([A], [(0, A, 0.5), (0, A, 0.5)], [1]),  # the last of equal scores
        ([A], [(0, A, 0.5), (0, HALF, 0.6)], [0, 1]),  # half of the union is not near
        ([A, B], [(0, A, 0.5), (0, B, 0.6)], [1]),
        ([A, [0.0, 0, 10, 21]], [(0, A, 0.5), (0, [0.0, 0, 10, 11], 0.6)], [1]),
        ([FLAT], [(0, FLAT, 0.5), (0, FLAT, 0.4)], [0, 1]),
        ([A], [(2, A, 0.5), (0, A, 0.5), (2, A, 0.1), (0, A, 0.1)], [0, 2, 1]),  # images as they first appear
    ],
)
def test_what_stays(true, found, stays):
    assert suppressed(true, *found) == stays


def test_nothing_found_is_nothing_kept():
    empty = Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
    boxes = Boxes(np.zeros(1, int), np.zeros(1, int), np.array([A]), np.ones(1), np.zeros(1, bool))
    assert len(suppress_near_truth(boxes, empty)) == 0
