"""Selection: each filter is counted; the result is an ordinary dataset."""

import json
from collections import Counter

import pytest

from glip.config import SelectConfig
from glip.data.labels import read_labels
from glip.errors import DataError
from glip.pseudo.select import Selection, select, select_boxes
from glip.pseudo.store import write_shard

A, NEAR, FAR = [10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0], [60.0, 60.0, 80.0, 80.0]


def row(*boxes: tuple[list[float], int, float]) -> dict[str, object]:
    return {
        "image": "a.jpg",
        "id": "a",
        "width": 100,
        "height": 100,
        "caption": "a dog and a cat",
        "phrases": [{"text": "dog", "spans": [[2, 5]]}, {"text": "cat", "spans": [[12, 15]]}],
        "boxes": [{"box": box, "phrases": [phrase], "score": score} for box, phrase, score in boxes],
    }


def kept(one: dict[str, object], **options: float) -> tuple[list[float], Counter[str]]:
    counts, everything = Selection(), {"min_score": 0.0, "min_best_score": 0.0, "min_box_side": 0.0}
    boxes = select_boxes(one, SelectConfig(**{**everything, **options}), counts)
    return [box["score"] for box in boxes], counts.dropped_boxes


def test_scores():
    one = row((A, 0, 0.4), (FAR, 1, 0.35))
    assert kept(one, min_score=0.4) == ([0.4], {"score below min_score": 1})
    assert kept(one, min_score=0.3, min_best_score=0.4)[0] == [0.4, 0.35]
    assert kept(one, min_score=0.3, min_best_score=0.41) == ([], {"in a dropped pair": 2})


def test_tiny_boxes_and_boxes_of_the_whole_image():
    one = row(([0.0, 0.0, 100.0, 97.0], 0, 0.9), ([1.0, 1.0, 3.0, 60.0], 0, 0.8), (A, 1, 0.7))
    dropped = {"side below min_box_side": 1, "area above max_box_area": 1}
    assert kept(one, min_box_side=3, max_box_area=0.95) == ([0.7], dropped)


def test_overlap_within_a_phrase_and_across():
    one = row((A, 0, 0.9), (NEAR, 0, 0.8), (NEAR, 1, 0.7), (FAR, 1, 0.6))  # the IoU of A and NEAR is 380 / 420
    assert kept(one, nms=0.5) == ([0.9, 0.7, 0.6], {"overlaps a better box of its phrase": 1})
    assert kept(one, nms=0.904)[0] == [0.9, 0.7, 0.6] and kept(one, nms=0.905)[0] == [0.9, 0.8, 0.7, 0.6]
    assert kept(one, nms_across=0.5) == ([0.9, 0.6], {"overlaps a better box of another phrase": 2})


def test_only_the_best_boxes_of_a_phrase():
    one = row((A, 0, 0.5), (NEAR, 0, 0.9), (FAR, 1, 0.6))
    assert kept(one, max_per_phrase=1) == ([0.9, 0.6], {"beyond max_per_phrase": 1})


def test_the_result_is_an_ordinary_dataset(tmp_path):
    write_shard(tmp_path, "one", "jsonl", [row((A, 0, 0.9), (FAR, 1, 0.2)), row((A, 1, 0.1))], {})
    found = select(tmp_path, tmp_path / "selected.jsonl", SelectConfig())
    [sample] = read_labels(tmp_path / "selected.jsonl", [tmp_path]).samples
    assert sample.boxes.tolist() == [A] and sample.box_phrases == ((0,),) and sample.scores == (0.9,)
    assert found.dropped_pairs == {"no box kept": 1} and found.kept_boxes == 1


def test_nothing_kept_is_an_error(tmp_path):
    write_shard(tmp_path, "one", "jsonl", [row((A, 0, 0.3))], {})
    with pytest.raises(DataError, match="--min-score"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectConfig())
    assert not (tmp_path / "selected.jsonl").exists()


def test_half_written_labels_are_named(tmp_path):
    write_shard(tmp_path, "one", "jsonl", [row((A, 0, 0.9))], {})
    (tmp_path / "one.jsonl").write_text(json.dumps(row()) + "\n{half\n")
    with pytest.raises(DataError, match=r"one.jsonl, line 2"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectConfig(min_score=0.0, min_best_score=0.0))
