"""Recall of phrases: by hand, any box of several, phrases without boxes, ranks."""

from dataclasses import replace

import pytest
import torch
from scored import captioned, detections, sample

from glip.evaluate.phrases import first_hit, phrase_recall

A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)


def test_by_hand():
    """ "a cat" is found second, "two dogs" by one of its boxes at once, "the sky" has no box and does not count."""
    one = captioned("a cat and two dogs under the sky", ["a cat", "two dogs", "the sky"], [(A, 0), (A, 1), (B, 1)])
    found = detections(one, [(FAR, 0.9, 0), (A, 0.8, 0), (B, 0.7, 1), (A, 0.99, 2)])
    recall = phrase_recall([(one, found)])
    assert recall.phrases == 2
    assert recall.at == {1: 0.5, 5: 1.0, 10: 1.0} and recall.upper_bound == 1.0


def test_a_box_counts_for_its_own_phrase_only():
    one = captioned("a cat and a dog", ["a cat", "a dog"], [(A, 0), (B, 1)])
    recall = phrase_recall([(one, detections(one, [(A, 0.9, 1), (B, 0.8, 0)]))])
    assert recall.at[10] == 0.0 and recall.upper_bound == 0.0


def test_half_of_the_union_is_a_hit():
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert first_hit(torch.tensor([[0.0, 0.0, 10.0, 5.0]]), truth) == 0
    assert first_hit(torch.tensor([[0.0, 0.0, 10.0, 4.99]]), truth) is None
    assert first_hit(torch.empty(0, 4), truth) is None


def test_nothing_to_score_is_an_error():
    listed = sample(["cat"], [(A, 0)])
    with pytest.raises(ValueError, match="has no caption"):
        phrase_recall([(listed, detections(listed, []))])
    bare = captioned("a cat", ["a cat"], [])
    with pytest.raises(ValueError, match="no phrase has a box"):
        phrase_recall([(bare, detections(bare, []))])
    group = replace(captioned("cats", ["cats"], [(A, 0)]), crowd=(0,))
    with pytest.raises(ValueError, match="no phrase has a box"):
        phrase_recall([(group, detections(group, []))])
