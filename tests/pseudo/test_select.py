"""Selection: each filter is counted, the result is an ordinary dataset; precision and recall, worked out by hand."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from glip.config import SelectConfig
from glip.data.labels import read_labels
from glip.errors import DataError
from glip.pseudo.select import (
    HELD_OUT,
    SEEN,
    Selection,
    draw_quality,
    quality_table,
    score_labels,
    select,
    select_boxes,
)
from glip.pseudo.store import image_folders, write_report, write_shard
from glip.structures import Prompt, Sample

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


def test_nothing_kept_or_half_written_labels(tmp_path):
    write_shard(tmp_path, "one", "jsonl", [row((A, 0, 0.3))], {})
    with pytest.raises(DataError, match="--min-score"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectConfig())
    (tmp_path / "one.jsonl").write_text(json.dumps(row()) + "\n{half\n")
    with pytest.raises(DataError, match=r"one.jsonl, line 2"):
        select(tmp_path, tmp_path / "selected.jsonl", SelectConfig(min_score=0.0, min_best_score=0.0))
    assert not (tmp_path / "selected.jsonl").exists()


@pytest.mark.parametrize("out", ["selected.jsonl", "again.jsonl"])
def test_what_was_selected_is_no_shard_and_a_shard_is_not_replaced(tmp_path, out):
    write_shard(tmp_path, "one", "jsonl", [row((A, 0, 0.9))], {})
    for _ in range(2):
        assert select(tmp_path, tmp_path / out, SelectConfig()).pairs == 1
    with pytest.raises(DataError, match="one.jsonl' holds the labels of a shard"):
        select(tmp_path, tmp_path / "one.jsonl", SelectConfig(min_score=0.95))


# ---- against ground truth


CAPTION = "a purple car and two red cups"
TRUE = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]
PROMPT = Prompt.from_caption(CAPTION, ["a purple car", "two red cups"])
SAMPLE = Sample(Path("x/a.jpg"), torch.tensor(TRUE), ((0,), (1,), (1,)), prompt=PROMPT)


def labels(*boxes: tuple[list[float], int, float]) -> dict[str, object]:
    phrases = [{"text": "purple car", "spans": [[2, 12]]}, {"text": "two red cups", "spans": [[17, 29]]}]
    found = [{"box": box, "phrases": [phrase], "score": score} for box, phrase, score in boxes]
    return {"image": "a.jpg", "caption": CAPTION, "phrases": phrases, "boxes": found}


def test_each_true_box_counts_once_and_kinds_are_separate():
    rows = [labels((TRUE[0], 0, 0.9), (TRUE[0], 0, 0.8), (TRUE[1], 1, 0.7), (TRUE[0], 1, 0.3))]
    quality = score_labels(rows, [SAMPLE], ["purple"])
    held_out, seen = quality[HELD_OUT], quality[SEEN]
    assert (held_out.boxes, seen.boxes, held_out.missed + seen.missed) == (1, 2, 0)
    assert held_out.at(0.85) == (1.0, 1.0) and held_out.at(0.5) == (0.5, 1.0)  # the second box is a duplicate
    assert seen.at(0.5) == (1.0, 0.5) and seen.at(0.1) == (0.5, 0.5) and seen.at(0.95) == (1.0, 0.0)


def test_phrases_without_ground_truth_are_not_judged():
    half = Sample(Path("a.jpg"), torch.tensor(TRUE[:1]), ((0,),), prompt=PROMPT)
    quality = score_labels([labels(([70.0, 70.0, 90.0, 90.0], 1, 0.9), (TRUE[0], 0, 0.6))], [half], [])
    assert quality.keys() == {SEEN} and quality[SEEN].boxes == 1 and quality[SEEN].at(0.1) == (1.0, 1.0)


def test_a_phrase_that_the_finder_missed_counts_against_recall():
    row = labels((TRUE[1], 1, 0.9))
    row["phrases"] = [{"text": "it", "spans": [[13, 16]]}, row["phrases"][1]]
    held_out = score_labels([row], [SAMPLE], ["purple"])[HELD_OUT]
    assert held_out.missed == 1 and held_out.at(0.1) == (1.0, 0.0)


def test_table_and_plot(tmp_path):
    quality = score_labels([labels((TRUE[0], 0, 0.9), (TRUE[1], 1, 0.7))], [SAMPLE], ["purple"])
    assert "| 0.60 | 1.000 | 1.000 | 1.000 | 0.500 |" in quality_table(quality)
    draw_quality(quality, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="No label has an image and caption of the 1 with ground truth"):
        score_labels([{**labels(), "caption": "other"}], [SAMPLE], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("boxes"), r"a\.jsonl, line 2: missing key 'boxes'"),
        (lambda one: one["boxes"][0].pop("score"), r"line 2.boxes\[0\]: missing key 'score'"),
        (lambda one: one["boxes"][0].update(score="high"), r"boxes\[0\].score: got 'high': give a number, 0 or more"),
        (lambda one: one["boxes"][0].update(score=float("nan")), r"score: got nan: give a number"),
        (lambda one: one["boxes"][0].update(box=[1.0, 2.0]), r"boxes\[0\].box: got \[1.0, 2.0\]: give a list"),
        (lambda one: one["boxes"][0].update(phrases=[-1]), r"phrases\[0\]: got -1: give a whole number, 0 or more"),
        (lambda one: one["phrases"][0].update(spans=[[1]]), r"phrases\[0\].spans\[0\]"),
        (lambda one: one.update(width=0), "width: got 0: give a whole number, 1 or more"),
        (lambda one: one.update(caption=["a"]), r"caption: got \['a'\]"),
        (lambda one: one.clear(), "missing key 'image'"),
    ],
)
def test_edited_labels_are_refused_with_their_row(change, message, tmp_path):
    rows = [row((A, 0, 0.9)), row((A, 0, 0.9))]
    change(rows[1])
    write_shard(tmp_path, "a", "jsonl", rows, {})
    with pytest.raises(DataError, match=message):
        select(tmp_path, tmp_path / "out.jsonl", SelectConfig())


def test_broken_columns_and_reports_name_their_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 broken PAR1")
    (tmp_path / "a.report.json").write_text('{"pairs": "three"}')
    with pytest.raises(DataError, match=r"a\.parquet: not parquet that can be read"):
        select(tmp_path, tmp_path / "out.jsonl", SelectConfig())
    with pytest.raises(DataError, match=r"a\.report\.json: pairs: got 'three': give a number, 0 or more"):
        write_report(tmp_path, 1, {})
    (tmp_path / "manifest.json").write_text('{"images": 3}')
    with pytest.raises(DataError, match=r"manifest\.json: images: got 3: give a list"):
        image_folders(tmp_path)
