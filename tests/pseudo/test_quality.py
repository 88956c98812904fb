"""Precision and recall of pseudo-labels against true boxes, worked out by hand."""

from pathlib import Path

import pytest
import torch

from glip.pseudo.quality import SEEN, UNSEEN, draw_quality, quality_table, score_labels
from glip.structures import Prompt, Sample

CAPTION = "a purple car and two red cups"
TRUE = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]


def truth() -> Sample:
    prompt = Prompt.from_caption(CAPTION, ["a purple car", "two red cups"])
    return Sample(Path("x/a.jpg"), torch.tensor(TRUE), ((0,), (1,), (1,)), prompt=prompt)


def labels(*boxes: tuple[list[float], int, float]) -> dict[str, object]:
    phrases = [{"text": "purple car", "spans": [[2, 12]]}, {"text": "two red cups", "spans": [[17, 29]]}]
    found = [{"box": box, "phrases": [phrase], "score": score} for box, phrase, score in boxes]
    return {"image": "a.jpg", "caption": CAPTION, "phrases": phrases, "boxes": found}


def test_each_true_box_counts_once_and_kinds_are_apart():
    rows = [labels((TRUE[0], 0, 0.9), (TRUE[0], 0, 0.8), (TRUE[1], 1, 0.7), (TRUE[0], 1, 0.3))]
    quality = score_labels(rows, [truth()], ["purple"])
    assert quality.boxes == {UNSEEN: 1, SEEN: 2} and quality.unasked == 0
    assert quality.at(UNSEEN, 0.85) == (1.0, 1.0) and quality.at(UNSEEN, 0.5) == (0.5, 1.0)  # the second is a double
    assert quality.at(SEEN, 0.5) == (1.0, 0.5) and quality.at(SEEN, 0.1) == (0.5, 0.5)
    assert quality.at(SEEN, 0.95) == (1.0, 0.0)


def test_phrases_without_true_boxes_are_not_judged():
    prompt = Prompt.from_caption(CAPTION, ["a purple car", "two red cups"])
    half = Sample(Path("a.jpg"), torch.tensor(TRUE[:1]), ((0,),), prompt=prompt)
    quality = score_labels([labels(([70.0, 70.0, 90.0, 90.0], 1, 0.9), (TRUE[0], 0, 0.6))], [half], [])
    assert quality.boxes == {SEEN: 1} and quality.at(SEEN, 0.1) == (1.0, 1.0)


def test_a_phrase_the_finder_missed_counts_against_recall():
    row = labels((TRUE[1], 1, 0.9))
    row["phrases"] = [{"text": "it", "spans": [[13, 16]]}, row["phrases"][1]]
    quality = score_labels([row], [truth()], ["purple"])
    assert quality.unasked == 1 and quality.at(UNSEEN, 0.1) == (1.0, 0.0)


def test_another_set_is_refused():
    with pytest.raises(ValueError, match="none of the labels has an image and caption"):
        score_labels([{**labels(), "caption": "other"}], [truth()], [])


def test_table_and_image(tmp_path):
    quality = score_labels([labels((TRUE[0], 0, 0.9), (TRUE[1], 1, 0.7))], [truth()], ["purple"])
    assert "| 0.60 | 1.000 | 0.500 | 1.000 | 1.000 |" in quality_table(quality)
    draw_quality(quality, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000
