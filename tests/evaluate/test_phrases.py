"""Recall of phrases: by hand, both protocols, kinds, ranks, phrases without boxes, boxes without area."""

from dataclasses import replace

import pytest
import torch
from scored import captioned, detections, sample

from glip.evaluate.phrases import caption_id, phrase_hits, phrase_recall, ranked_boxes

A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)
AROUND, NOTHING = (10.0, 10.0, 90.0, 90.0), (0.0, 0.0, 0.0, 0.0)


def hits(ranked, *boxes, protocol="any-box"):
    return phrase_hits(torch.tensor(boxes), torch.tensor(ranked), protocol=protocol)


def test_by_hand():
    """ "a cat" is found second, "two dogs" by one of its boxes at once, "the sky" has no box and does not count."""
    one = captioned("a cat and two dogs under the sky", ["a cat", "two dogs", "the sky"], [(A, 0), (A, 1), (B, 1)])
    found = detections(one, [(FAR, 0.9, 0), (A, 0.8, 0), (B, 0.7, 1), (A, 0.99, 2)])
    recall = phrase_recall([(one, found)])
    assert recall.phrases == 2
    assert recall.at == {1: 0.5, 5: 1.0, 10: 1.0} and recall.upper_bound == 1.0
    assert recall.kinds == {}


def test_merged_boxes_ask_for_the_box_around_all():
    one = captioned("a cat and two dogs", ["a cat", "two dogs"], [(A, 0), (A, 1), (B, 1)])
    found = detections(one, [(A, 0.9, 0), (B, 0.8, 1), (AROUND, 0.7, 1)])
    assert phrase_recall([(one, found)]).at[1] == 1.0
    assert phrase_recall([(one, found)], protocol="merged-boxes").at == {1: 0.5, 5: 1.0, 10: 1.0}


def test_a_phrase_counts_in_each_of_its_kinds():
    one = captioned("a cat and a dog in a car", ["a cat", "a dog", "a car"], [(A, 0), (B, 1), (FAR, 2)])
    one = replace(one, kinds=(("animals",), ("animals", "other"), ("vehicles", "vehicles")))
    recall = phrase_recall([(one, detections(one, [(A, 0.9, 0), (FAR, 0.8, 2)]))])
    assert (recall.phrases, recall.upper_bound) == (3, 2 / 3), "a phrase counts once over all"
    assert {kind: (part.phrases, part.at[1]) for kind, part in recall.kinds.items()} == {
        "animals": (2, 0.5),
        "other": (1, 0.0),
        "vehicles": (2, 1.0),
    }


def test_a_box_counts_for_its_own_phrase_only():
    one = captioned("a cat and a dog", ["a cat", "a dog"], [(A, 0), (B, 1)])
    recall = phrase_recall([(one, detections(one, [(A, 0.9, 1), (B, 0.8, 0)]))])
    assert recall.at[10] == 0.0 and recall.upper_bound == 0.0


def test_half_of_the_union_is_a_hit():
    assert all(hits([(0.0, 0.0, 10.0, 5.0)], (0.0, 0.0, 10.0, 10.0)))
    assert not any(hits([(0.0, 0.0, 10.0, 4.99)], (0.0, 0.0, 10.0, 10.0)))


@pytest.mark.parametrize(("rank", "expected"), [(1, "1111"), (2, "0111"), (5, "0111"), (6, "0011"), (11, "0001")])
def test_ranks(rank, expected):
    ranked = [FAR] * (rank - 1) + [A, NOTHING]
    assert "".join(str(int(hit)) for hit in hits(ranked, A, B)) == expected


def test_two_boxes_without_area_spoil_a_phrase_from_that_rank_on():
    flat = (20.0, 20.0, 20.0, 80.0)
    assert hits([A, NOTHING], A, flat) == (True, False, False, False)
    assert hits([A, *[FAR] * 4, NOTHING], A, flat) == (True, True, False, False)
    assert hits([A, FAR], A, flat) == (True, True, True, True)
    assert hits([A, NOTHING], A, flat, protocol="merged-boxes") == (True, True, True, True), "the flat box lies inside"


def test_ranked_boxes_are_sorted_dealt_and_closed():
    one = captioned("a cat, a dog and fog", ["a cat", "a dog", "fog"], [(A, 0), (B, 1)])
    found = detections(one, [(FAR, 0.5, 0), (B, 0.9, 0), (A, 0.7, 2)])
    backwards = found.select(torch.tensor([2, 1, 0]))
    for boxes in (ranked_boxes(one, found), ranked_boxes(one, backwards)):
        assert [ranked.tolist() for ranked in boxes] == [[list(B), list(FAR), list(NOTHING)], [list(NOTHING)]]


def test_detections_of_other_phrases_are_an_error():
    one, other = (captioned(f"a {name}", [f"a {name}"], [(A, 0)]) for name in ("cat", "dog"))
    with pytest.raises(ValueError, match=r"detections are of \('a dog',\)..., which are not the phrases"):
        phrase_recall([(one, detections(other, []))])


def test_ids():
    one = captioned("a cat", ["a cat"], [(A, 0)])
    for image_id, expected in {
        "36979:3": (36979, 3),
        36979: (36979, 0),
        "a:b.jpg": ("a:b.jpg", 0),
        "007:1": ("007", 1),
        ":1": (":1", 0),
        "9" * 5000 + ":1": ("9" * 5000, 1),
    }.items():
        assert caption_id(replace(one, image_id=image_id)) == expected


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
