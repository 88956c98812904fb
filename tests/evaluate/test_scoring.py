"""Scoring says what is missing instead of scoring what is there."""

from dataclasses import replace
from pathlib import Path

import pytest
from scored import detections, sample

from glip.config import ModelConfig, SetConfig
from glip.data.sets import SampleSet
from glip.evaluate.benchmark import load_benchmark
from glip.evaluate.journal import Journal
from glip.evaluate.run import Answer, QueryOptions
from glip.evaluate.scoring import score

BOX = (10.0, 10.0, 50.0, 50.0)
CATS = [replace(sample(["cat", "dog"], [(BOX, 0)]), image_id=number) for number in range(3)]


def answers(folder: Path, *numbers: int) -> Journal:
    journal = Journal(folder, {"of": "this"})
    for number in numbers:
        journal.add(Answer(number, CATS[number], detections(CATS[number], [(BOX, 0.9, 0), (BOX, 0.4, 1)])))
    return journal


@pytest.fixture
def exam():
    return load_benchmark("cats", SetConfig(format="odvg"), SampleSet(CATS, ("cat", "dog")), None)


def test_samples_of_the_set_itself(exam, tmp_path):
    report = score(exam, answers(tmp_path / "answers", 0, 1, 2), ModelConfig(), QueryOptions(), tmp_path)
    assert report.figures["AP50"] == pytest.approx(1.0) and report.samples == 3 and not report.noted
    assert report.figures["AP at false positive rate 0.05"] == pytest.approx(1.0), "dogs are drawn at 0.4 only"
    assert report.tables[1].rows[0]["threshold"] > 0.4


def test_missing_answers_are_an_error(exam, tmp_path):
    with pytest.raises(ValueError, match="1 of 3 samples of 'cats' have no answer .* run the same command again"):
        score(exam, answers(tmp_path / "answers", 0, 2), ModelConfig(), QueryOptions(), tmp_path)
