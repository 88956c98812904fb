"""Remedies against false positives on absent names: names that compete, and scores that are calibrated."""

import numpy as np
import pytest
import torch

from glip.errors import GlipError
from glip.postprocess import compete, tempered
from glip.recipes.calibrate import calibration_error, find_temperature
from glip.text.prompt import NEGATIVE, Prompt

SCORES = torch.tensor([[0.8, 0.5, 0.1], [0.2, 0.0, 0.4]])


@pytest.mark.parametrize(
    ("classes", "rivals"),
    [
        ((0, 1, 2), [[0.5, 0.8, 0.8], [0.4, 0.4, 0.2]]),
        ((0, 1, NEGATIVE), [[0.5, 0.8, 0.8], [0.4, 0.4, 0.2]]),  # a negative competes
        ((0, 0, 2), [[0.1, 0.1, 0.8], [0.4, 0.4, 0.2]]),  # two words of one class do not
        ((7, 7, 7), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_a_name_loses_where_another_class_scores(classes, rivals):
    assert torch.allclose(compete(SCORES, classes, 1.0), SCORES * (1 - torch.tensor(rivals)))
    assert torch.allclose(compete(SCORES, classes, 2.0), SCORES * (1 - torch.tensor(rivals)) ** 2)


def test_the_detector_lets_names_compete_only_when_asked(tiny_detector, image):
    prompt = ["a cat", "a dog", "a bird"]
    usual, rival = tiny_detector(image, prompt), tiny_detector.with_inference(compete=1)(image, prompt)
    assert tiny_detector.with_inference(compete=0.0, temperature=1)(image, prompt) == usual, "bit by bit"
    assert rival.scores.max() < usual.scores.max() and rival != usual
    assert tiny_detector.with_inference(compete=1)(image, ["a cat"]) == tiny_detector(image, ["a cat"]), "no other"
    negative = Prompt.from_names(["a cat"], negatives=["a dog"])
    against = tiny_detector.with_inference(compete=1)(image, negative)
    assert against.scores.max() < tiny_detector(image, negative).scores.max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compete": -1}, "compete: got -1"),
        ({"temperature": 0.0}, "temperature: got 0"),
        ({"rival": 1}, "rival"),
    ],
)
@pytest.mark.unchecked
def test_wrong_options_are_refused(tiny_detector, changes, message):
    with pytest.raises(GlipError, match=message):
        tiny_detector.with_inference(**changes)


def test_a_temperature_is_found_that_keeps_the_order_and_lowers_the_error():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    right = rng.random(20_000) < tempered(scores, 0.4)  # too timid by a known factor
    temperature = find_temperature(scores, right)
    assert temperature == pytest.approx(0.4, rel=0.05)
    again = tempered(scores, temperature)
    assert calibration_error(again, right) < 0.02 < calibration_error(scores, right)
    assert (np.diff(again[np.argsort(scores)]) >= 0).all()
    assert tempered(np.array([0.0, 0.5, 1.0]), 0.05).tolist() == [0.0, 0.5, 1.0]
    certain = np.array([0.0, 1.0, 1.0])
    assert np.isfinite(find_temperature(certain, np.array([False, True, False])))


def test_calibration_error_by_hand():
    scores, right = np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])
    assert calibration_error(scores, right) == pytest.approx((0.4 + 0.1) / 2)
