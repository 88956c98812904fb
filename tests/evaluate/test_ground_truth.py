"""What samples say is there and is not, as columns."""

from dataclasses import replace

import pytest
from scored import captioned, detections, sample

from glip.evaluate.columns import UNKNOWN, labels_of, to_arrays, truth_of

A, B = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 80.0)


def test_one_vocabulary_keeps_its_order_and_its_twins():
    names = ["cow", "cat", "cow"]
    truth = truth_of([sample(names, [(A, 2), (B, 0)]), replace(sample(names, [(A, 1)]), crowd=(0,))])
    assert truth.names == tuple(names) and labels_of(names, names) == (0, 1, 2)
    assert truth.boxes.images.tolist() == [0, 0, 1] and truth.boxes.categories.tolist() == [2, 0, 1]
    assert truth.boxes.boxes.tolist() == [[10, 10, 40, 40], [60, 60, 30, 20], [10, 10, 40, 40]]
    assert truth.boxes.areas.tolist() == [1600, 600, 1600] and truth.boxes.crowd.tolist() == [False, False, True]
    assert truth.present.tolist() == [[True, False, True], [False, True, False]]
    assert truth.negatives is not None and truth.negatives.tolist() == [[False, True, False], [True, False, True]]
    chosen = truth.boxes.select(truth.boxes.crowd)
    assert (chosen.images.tolist(), chosen.categories.tolist(), chosen.areas.tolist()) == ([1], [1], [1600.0])


def test_names_of_several_vocabularies_are_one_where_they_are_equal():
    truth = truth_of([sample(["dog", "cat"], [(A, 0)]), sample(["cow", "dog"], [(A, 1)])])
    assert truth.names == ("cat", "cow", "dog") and labels_of(truth.names, ("cow", "dog")) == (1, 2)
    assert truth.boxes.categories.tolist() == [2, 2]
    assert truth.negatives is not None and truth.negatives.tolist() == [[True, False, False], [False, True, False]]


def test_samples_with_a_caption_keep_their_place_and_say_nothing():
    truth = truth_of([captioned("a cat", ["cat"], [(A, 0)]), sample(["dog"], [(B, 0)])])
    assert truth.names == ("dog",) and truth.images == (0, 1) and truth.boxes.images.tolist() == [1]
    with pytest.raises(ValueError, match="has no list of names: AP is for detection sets"):
        one = captioned("a cat", ["cat"], [(A, 0)])
        to_arrays([(one, detections(one, []))])


def test_what_is_asked_beside_the_names_of_the_set_is_of_no_category():
    one, more = sample(["cat"], [(A, 0)]), sample(["cat", "dog"])
    _, results = to_arrays([(one, detections(more, [(B, 0.75, 1), (A, 0.5, 0)]))])
    assert results.categories.tolist() == [UNKNOWN, 0] and results.boxes.tolist()[1] == [10, 10, 40, 40]
