"""Precision and recall of pseudo-labels against ground truth, worked out by hand."""

from pathlib import Path

import pytest
import torch

from glip.errors import DataError
from glip.pseudo.select import HELD_OUT, SEEN, draw_quality, quality_table, score_labels
from glip.structures import Prompt, Sample

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


def test_another_dataset_is_refused():
    with pytest.raises(DataError):
        score_labels([{**labels(), "caption": "other"}], [SAMPLE], [])


def test_table_and_plot(tmp_path):
    quality = score_labels([labels((TRUE[0], 0, 0.9), (TRUE[1], 1, 0.7))], [SAMPLE], ["purple"])
    assert "| 0.60 | 1.000 | 1.000 | 1.000 | 0.500 |" in quality_table(quality)
    draw_quality(quality, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000
