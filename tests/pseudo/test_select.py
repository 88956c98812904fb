"""Selection: thresholds and clean-up over stored scores, each counted; the result is an ordinary set."""

import json
from collections import Counter
from pathlib import Path

import pytest

from glip.data.labels import read_labels
from glip.geometry.boxes import pair_iou
from glip.pseudo.select import Selection, SelectRules, select, selected
from glip.pseudo.store import Store


def row(*boxes: tuple[list[float], int, float], size: tuple[int, int] = (100, 100)) -> dict[str, object]:
    return {
        "image": "a.jpg",
        "id": "a",
        "width": size[0],
        "height": size[1],
        "caption": "a dog and a cat",
        "phrases": [{"text": "dog", "spans": [[2, 5]]}, {"text": "cat", "spans": [[12, 15]]}],
        "boxes": [{"box": box, "phrases": [phrase], "score": score} for box, phrase, score in boxes],
    }


def kept(one: dict[str, object], **rules: float) -> tuple[list[float], Counter[str]]:
    counts = Selection()
    rows = list(selected([one], SelectRules(**{"box": 0.0, "image": 0.0, "min_side": 0.0, **rules}), counts))
    return [box["score"] for found in rows for box in found["boxes"]], +counts.dropped


A, NEAR, FAR = [10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0], [60.0, 60.0, 80.0, 80.0]


def test_low_scores_go():
    assert kept(row((A, 0, 0.5), (FAR, 1, 0.49)), box=0.5) == ([0.5], {"score below box": 1})


def test_a_pair_needs_one_sure_box():
    one = row((A, 0, 0.4), (FAR, 1, 0.35))
    assert kept(one, box=0.3, image=0.4)[0] == [0.4, 0.35]
    assert kept(one, box=0.3, image=0.41) == ([], {"of a pair that goes": 2})


def test_tiny_and_whole_images_go():
    one = row(([0.0, 0.0, 100.0, 97.0], 0, 0.9), ([1.0, 1.0, 3.0, 60.0], 0, 0.8), (A, 1, 0.7))
    assert kept(one, min_side=3, max_area=0.95) == ([0.7], {"too small": 1, "almost the whole image": 1})


def test_overlap_within_a_phrase_and_across():
    one = row((A, 0, 0.9), (NEAR, 0, 0.8), (NEAR, 1, 0.7), (FAR, 1, 0.6))
    assert kept(one, nms=0.5) == ([0.9, 0.7, 0.6], {"over another of its phrase": 1})
    assert kept(one, nms_across=0.5) == ([0.9, 0.6], {"over one of another phrase": 2})
    assert pair_iou(A, NEAR) == pytest.approx(380 / 420)


def test_only_the_best_of_a_phrase():
    one = row((A, 0, 0.5), (NEAR, 0, 0.9), (FAR, 1, 0.6))
    assert kept(one, per_phrase=1) == ([0.9, 0.6], {"beyond the best of its phrase": 1})


@pytest.mark.parametrize("rules", [{"box": 1.5}, {"nms": -0.1}, {"min_side": -1}, {"per_phrase": -1}])
def test_senseless_rules_are_refused(rules):
    with pytest.raises(ValueError, match=f"{next(iter(rules))}: got"):
        SelectRules(**rules)


def test_the_result_is_an_ordinary_set(tmp_path):
    Store(tmp_path).write("one", [row((A, 0, 0.9), (FAR, 1, 0.2)), row((A, 1, 0.1))], {})
    found = select(tmp_path, tmp_path / "selected.jsonl", SelectRules())
    [sample] = read_labels(tmp_path / "selected.jsonl", [tmp_path]).samples
    assert sample.boxes.tolist() == [A] and sample.box_phrases == ((0,),) and sample.scores == (0.9,)
    assert found.as_dict()["pairs dropped"] == {"no box kept": 1} and found.as_dict()["kept boxes"] == 1


def test_nothing_kept_is_an_error(tmp_path):
    Store(tmp_path).write("one", [row((A, 0, 0.3))], {})
    with pytest.raises(ValueError, match="none of 1 boxes of 1 pairs is kept.*lower --box"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectRules())
    assert not (tmp_path / "selected.jsonl").exists()


def test_half_written_labels_are_named(tmp_path: Path):
    Store(tmp_path).write("one", [row((A, 0, 0.9))], {})
    (tmp_path / "one.jsonl").write_text(json.dumps(row()) + "\n{half")
    with pytest.raises(ValueError, match="one.jsonl, line 2: not json"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectRules(image=0, box=0))
