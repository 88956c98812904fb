"""AP from samples: cases worked by hand, names asked for in some images only, the interval."""

from dataclasses import replace

import pytest
import torch
from scored import detections, sample

from glip.evaluate.coco import average_precision

A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)


def test_by_hand():
    """One name, two boxes; right, wrong, right: precision 1 up to recall 0.5 (51 of 101 points), then 2/3."""
    one = sample(["cat"], [(A, 0), (B, 0)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)]))])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert score.ap50 == pytest.approx(expected, abs=1e-9) and score.ap == pytest.approx(expected, abs=1e-9)
    assert score.figures["AR@1"] == pytest.approx(0.5)
    [row] = score.categories
    assert (row["name"], row["boxes"], row["AP50"]) == ("cat", 2, pytest.approx(expected))


def test_a_category_without_box_is_left_out():
    one = sample(["cat", "dog"], [(A, 0)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (B, 0.95, 1)]))])
    assert score.ap50 == pytest.approx(1.0)
    assert [row["AP50"] for row in score.categories] == [pytest.approx(1.0), -1.0]


def test_names_count_where_they_were_asked():
    """The second image was not asked for a cat: what it holds there says nothing about cats."""
    first, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(B, 0)])
    found = detections(first, [(A, 0.5, 0)])
    alone = average_precision([(first, found), (other, detections(other, [(B, 0.9, 0), (A, 0.8, 0)]))])
    assert {row["name"]: row["AP50"] for row in alone.categories}["cat"] == pytest.approx(1.0)
    asked = sample(["dog", "cat"], [(B, 0)])
    mistaken = detections(asked, [(B, 0.9, 0), (A, 0.8, 1)])  # a cat is said to be where none is, and louder
    both = average_precision([(first, found), (asked, mistaken)])
    assert {row["name"]: row["AP50"] for row in both.categories} == {
        "cat": pytest.approx(0.5),
        "dog": pytest.approx(1.0),
    }


def test_many_names_give_the_figures_of_one_evaluation():
    """More categories than are evaluated at once, and each keeps its own line."""
    pairs = []
    for number in range(130):
        one = sample([f"name {number}", "wrong"], [(A, 0)])
        pairs.append((one, detections(one, [(A if number % 2 else FAR, 0.9, 0)])))
    score = average_precision(pairs)
    assert score.ap50 == pytest.approx(0.5)
    right = {f"name {number}": float(number % 2) for number in range(130)}
    assert {row["name"]: row["AP50"] for row in score.categories} == pytest.approx({**right, "wrong": -1.0})


def test_words_asked_beside_the_names_of_the_set_are_not_scored():
    one, more = sample(["cat"], [(A, 0)]), sample(["cat", "dog"])
    score = average_precision([(one, detections(more, [(B, 0.9, 1), (A, 0.8, 0)]))])
    assert score.ap50 == pytest.approx(1.0) and [row["name"] for row in score.categories] == ["cat"]


def test_what_each_detection_was():
    one = sample(["cat", "dog"], [(A, 0), (B, 0), (FAR, 1)])
    score = average_precision([(one, detections(one, [(A, 0.9, 0), (A, 0.8, 0), (FAR, 0.25, 1)]))])
    cat, dog = score.rankings
    assert cat.right.tolist() == [True, False] and cat.scores.tolist() == pytest.approx([0.9, 0.8])
    assert dog.scores.tolist() == [0.25] and dog.boxes.tolist() == [0]


def test_groups_names_nobody_knows_of_and_incomplete_ones():
    wrong = (A, 0.9, 0)
    plain = sample(["cat"], [(B, 0)])
    rows = [wrong, (B, 0.5, 0)]
    assert average_precision([(plain, detections(plain, rows))]).ap50 == pytest.approx(0.5)
    group = replace(sample(["cat"], [(B, 0), (A, 0)]), crowd=(1,))
    score = average_precision([(group, detections(group, rows))])
    assert score.ap50 == pytest.approx(1.0) and score.categories[0]["boxes"] == 1
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
    with pytest.raises(ValueError, match=r"1 images have no box of any of the 4 names \('cat', 'dog', 'cow', \.\.\."):
        average_precision([(empty, detections(empty, [(A, 0.9, 0)]))])
    only_group = replace(sample(["cat"], [(A, 0)]), crowd=(0,))
    with pytest.raises(ValueError, match="nothing to score"):
        average_precision([(only_group, detections(only_group, []))])
    with pytest.raises(ValueError, match="no image to score"):
        average_precision([])
    one, other = sample(["cat"], [(A, 0)]), sample(["dog"], [(A, 0)])
    with pytest.raises(ValueError, match=r"detections are of \('dog',\).*no class matches"):
        average_precision([(one, detections(other, [(A, 0.9, 0)]))])


def test_interval():
    """Resampling with the images once each is the figure itself; the interval holds it and is not a point."""
    pairs = []
    for number in range(12):
        one = sample(["cat", "dog"], [(A, 0), (B, 1)])
        pairs.append((one, detections(one, [(A if number % 3 else FAR, 0.9 - 0.01 * number, 0), (B, 0.6, 1)])))
    score = average_precision(pairs)
    low, high = score.interval(rounds=200)
    assert low < score.ap50 < high
    assert score.interval(rounds=200) == (low, high)
    twice = average_precision([*pairs, *pairs])  # the same images again: the weights 2, 2, ... of the resampling
    assert twice.ap50 == pytest.approx(score.ap50, abs=0.02)
    sure = average_precision([(pairs[1][0], pairs[1][1])] * 3)
    assert sure.interval(rounds=50) == (pytest.approx(1.0), pytest.approx(1.0))


def test_names_in_few_images_have_no_interval():
    """Each of 60 names is in two images, found in one: in a resample either may be gone, and the mean rises."""
    pairs = []
    names = [f"thing {number}" for number in range(60)]
    for number in range(120):
        one, label = sample(names, [(A, number // 2)]), number // 2
        false = [(FAR, 0.9, other) for other in range(60) if other % 4 == number % 4]
        right = [(A, 0.5, label)] if number % 2 else []
        pairs.append((one, detections(one, [*false, *right])))
    score = average_precision(pairs)
    assert score.interval(rounds=100) is None


def test_the_interval_weighs_images_as_repeating_them_does():
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
    assert ranking.ap50(weights) == pytest.approx(average_precision(repeated).ap50, abs=1e-9)
