"""How often absent names are drawn to something: by hand."""

from dataclasses import replace

import pytest
from scored import captioned, detections, sample

from glip.evaluate.background import absent_names, background

A, B = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_by_hand():
    first = sample(["cat", "dog", "cow"], [(A, 0)])
    second = sample(["cat", "dog", "cow"])
    pairs = [
        (first, detections(first, [(A, 0.9, 0), (A, 0.5, 1), (B, 0.3, 1)])),
        (second, detections(second, [(A, 0.2, 2)])),
    ]
    found = background(pairs)
    assert found is not None
    assert found.best.tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0, 0.2])
    assert found.rate(0.5) == pytest.approx(1 / 5) and found.rate(0.1) == pytest.approx(2 / 5)
    assert found.picture_rate(0.5) == pytest.approx(1 / 2) and found.picture_rate(0.95) == 0.0


def test_which_names_are_absent():
    one = sample(["cat", "dog", "cow"], [(A, 0)])
    assert absent_names(one) == [1, 2]
    assert absent_names(replace(one, incomplete=(2,))) == [1]
    assert absent_names(replace(one, absent=(2,))) == [2]
    assert absent_names(captioned("a cat", ["a cat"], [])) == []


def test_a_set_whose_names_are_everywhere_says_nothing():
    one = sample(["cat"], [(A, 0)])
    assert background([(one, detections(one, [(B, 0.9, 0)]))]) is None
