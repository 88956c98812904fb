"""Scoring names missing predictions instead of scoring the others."""

from dataclasses import replace
from pathlib import Path

import pytest
from scored import detections, sample

from glip.config import ModelConfig, SetConfig
from glip.data.sets import SampleSet
from glip.evaluate.benchmark import load_benchmark
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions
from glip.evaluate.scoring import score

BOX = (10.0, 10.0, 50.0, 50.0)
CATS = [replace(sample(["cat", "dog"], [(BOX, 0)]), image_id=number) for number in range(3)]


def scored(folder: Path, *numbers: int):
    store = PredictionStore(folder / "predictions", {"of": "this"})
    for number in numbers:
        store.add(Prediction(number, detections(CATS[number], [(BOX, 0.9, 0), (BOX, 0.4, 1)])))
    store.flush()
    cats = load_benchmark("cats", SetConfig(format="odvg"), SampleSet(CATS, ("cat", "dog")), None)
    return score(cats, store, ModelConfig(), QueryOptions(), folder)


def test_samples_of_the_set_itself(tmp_path):
    report = scored(tmp_path, 0, 1, 2)
    assert report.figures["AP50"] == pytest.approx(1.0) and report.samples == 3 and not report.noted
    assert report.figures["AP at false positive rate 0.05"] == pytest.approx(1.0), "dogs are detected at 0.4 only"
    assert report.tables["False positives on absent names"][0]["threshold"] > 0.4


def test_missing_predictions_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 of 3 samples of 'cats' have no prediction .* run the same command again"):
        scored(tmp_path, 0, 2)
