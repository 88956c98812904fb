"""How often absent names are drawn to something, and AP where that is rare: by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scored import detections, sample

from glip.evaluate.columns import UNKNOWN, Boxes, GroundTruth, Results, concatenate, to_arrays
from glip.evaluate.false_positives import FalsePositives, false_positives

A, B = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
NONE = -np.inf


def alarms(*best: float) -> FalsePositives:
    pairs, nothing = np.arange(len(best)), np.zeros(0, dtype=int)
    return FalsePositives(np.array(best), pairs, np.zeros_like(pairs), nothing.astype(float), nothing)


def results(*rows: tuple[int, int, float]) -> Results:
    """Detections (image, category, score), all where the boxes of ``truth`` are."""
    images, categories, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Results(images, categories, np.tile([10.0, 10, 40, 40], (len(rows), 1)), scores.astype(float))


def truth(*, negatives: np.ndarray | None = None) -> GroundTruth:
    """Four images; the first category is in the first two, of the second there is a group in the first."""
    boxes = np.tile([10.0, 10, 40, 40], (3, 1))
    where = Boxes(np.array([0, 1, 0]), np.array([0, 0, 1]), boxes, np.full(3, 1600.0), np.array([False, False, True]))
    return GroundTruth((1, 2, 3, 4), (1, 2), ("cat", "dog"), where, negatives)


def test_by_hand():
    first = sample(["cat", "dog", "cow"], [(A, 0)])
    second = sample(["cat", "dog", "cow"])
    pairs = [
        (first, detections(first, [(A, 0.9, 0), (A, 0.5, 1), (B, 0.3, 1)])),
        (second, detections(second, [(A, 0.2, 2)])),
    ]
    found = false_positives(*to_arrays(pairs))
    assert found is not None
    assert found.best.tolist() == pytest.approx([0.5, NONE, NONE, NONE, 0.2])
    assert found.images.tolist() == [0, 0, 1, 1, 1]
    assert found.rate(0.5) == pytest.approx(1 / 5) and found.rate(0.1) == found.rate(0.0) == pytest.approx(2 / 5)
    assert found.image_rate(0.5) == pytest.approx(1 / 2) and found.image_rate(0.95) == 0.0


def test_image_level_figures_by_hand():
    """Two present pairs, one found; three absent, two of them with a false positive."""
    first, second = sample(["cat", "dog"], [(A, 0)]), sample(["cat", "dog", "cow"], [(A, 1)])
    pairs = [
        (first, detections(first, [(B, 0.5, 0), (A, 0.7, 1)])),  # wherever the cat is found: it is there
        (second, detections(second, [(A, 0.6, 0), (A, 0.49, 1)])),
    ]
    found = false_positives(*to_arrays(pairs))
    assert found is not None
    # categories are sorted: cat, cow, dog
    assert found.image_level(0.5) == pytest.approx(
        {"IL_recall": 1 / 2, "IL_FPR": 2 / 3, "IL_F1": 2 / 5, "IL_MCC": (1 * 1 - 2 * 1) / 6}, abs=1e-5
    )
    assert found.image_level(0.5, 0) == pytest.approx(
        {"IL_recall": 1.0, "IL_FPR": 1.0, "IL_F1": 2 / 3, "IL_MCC": 0.0}, abs=1e-5
    )
    assert found.image_level(0.5, 1) == {"IL_recall": -1, "IL_FPR": 0.0, "IL_F1": -1, "IL_MCC": -1}, "never there"
    assert found.image_level(0.0)["IL_recall"] == pytest.approx(1.0, abs=1e-5)


def test_a_set_whose_names_are_everywhere_says_nothing():
    one = sample(["cat"], [(A, 0)])
    assert false_positives(*to_arrays([(one, detections(one, [(B, 0.9, 0)]))])) is None


def test_names_of_other_images_are_no_absent_names():
    """Each image was asked for names of its own: only those can be absent from it."""
    first, second = sample(["cat", "dog"], [(A, 0)]), sample(["cow"])
    found = false_positives(
        *to_arrays([(first, detections(first, [(B, 0.5, 1)])), (second, detections(second, [(B, 0.25, 0)]))])
    )
    assert found is not None and found.best.tolist() == [0.5, 0.25] and found.images.tolist() == [0, 1]


def test_absent_in_files():
    """Without a box, or known to be absent; a group of them is there; unknown categories say nothing."""
    rows = results((2, 0, 0.25), (2, 0, 0.75), (0, 1, 0.9), (3, 1, 0.5), (3, UNKNOWN, 0.99))
    found = false_positives(truth(), rows)
    assert found is not None
    assert found.images.tolist() == [1, 2, 2, 3, 3] and found.best.tolist() == [NONE, 0.75, NONE, NONE, 0.5]
    asked = np.array([[False, True], [False, False], [True, False], [False, False]])
    federated = false_positives(truth(negatives=asked), rows)
    assert federated is not None and federated.best.tolist() == [0.75], "a name with a box is not absent"
    assert false_positives(truth(negatives=np.zeros((4, 2), dtype=bool)), rows) is None
    nothing = false_positives(truth(), concatenate([]))
    assert nothing is not None and nothing.best.tolist() == [NONE] * 5 and nothing.rate(0.0) == 0.0


@pytest.mark.parametrize(
    ("best", "rate", "score", "kept"),
    [
        ((0.9, 0.7, 0.5, 0.3), 0.25, 0.7, 1),  # one pair of four may alarm: the second best must not
        ((0.9, 0.7, 0.5, 0.3), 0.49, 0.7, 1),
        ((0.9, 0.7, 0.5, 0.3), 0.5, 0.5, 2),
        ((0.9, 0.7, 0.7, 0.3), 0.5, 0.7, 1),  # of equal scores both go
        ((0.9, 0.7, 0.5, 0.3), 0.0, 0.9, 0),
        ((0.6, 0.6, 0.6, 0.6), 0.75, 0.6, 0),
        ((0.9, 0.7, NONE, NONE), 0.25, 0.7, 1),
    ],
)
def test_threshold(best, rate, score, kept):
    """Next above the score of the first pair that must have no false alarm; order does not matter."""
    found = alarms(*best)
    threshold = found.threshold_at(rate)
    assert threshold == np.nextafter(score, 1) and alarms(*best[::-1]).threshold_at(rate) == threshold
    assert found.rate(threshold) == kept / 4 <= rate < found.rate(score)


def test_threshold_where_alarms_are_rarer_than_allowed():
    """No detection has to go: the threshold is the lowest score there is."""
    found = replace(alarms(0.9, NONE, NONE, NONE), lowest=0.125)
    assert (found.threshold_at(0.25), found.rate(0.125)) == (0.125, 0.25)
    assert alarms(NONE, NONE).threshold_at(0.0) == 0.0


def test_a_share_is_reached_exactly():
    """5 of 100 pairs is 0.05, whatever the last digit of the division."""
    for count in (20, 40, 60, 100, 300, 700):
        found = alarms(*np.linspace(0.1, 0.9, count).tolist())
        assert found.rate(found.threshold_at(0.05)) == count // 20 / count
