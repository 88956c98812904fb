"""The threshold of best F1, against trying all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip.evaluate.coco import Ranking, best_thresholds


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
    (found,) = best_thresholds([one], 0.5)
    assert 0 <= found <= 1
    if sum(right):
        assert f1(one, found) == pytest.approx(max(f1(one, t) for t in np.linspace(0, 1, 101)))


def test_half_way_to_the_next_score():
    assert best_thresholds([ranking([1, 1, 0], [0.9, 0.8, 0.2], 2)], 0.5) == (0.5,)
    assert best_thresholds([ranking([1], [0.8], 1)], 0.5) == (0.4,)


def test_what_is_unknown_keeps_the_usual_one():
    nothing, wrong = ranking([], [], 0), ranking([0, 0], [0.9, 0.1], 3)
    assert best_thresholds([nothing, wrong], 0.57) == (0.57, 0.57)
