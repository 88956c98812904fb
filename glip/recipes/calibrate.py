"""Calibrate a model's scores on a dataset: of the detections that score 0.8, about 80 % should be right."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glip.config import EvaluateConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.errors import ConfigError, DataError
from glip.evaluate.benchmark import load_benchmarks
from glip.evaluate.coco import average_precision, pooled
from glip.evaluate.evaluation import query_options
from glip.evaluate.run import detect_all
from glip.model.weights import store_config
from glip.options import with_options
from glip.postprocess import tempered
from glip.shapes import Bool, Float

_BINS = 15  # of equal width, in which scores are compared with the share of right detections
_TINY = 1e-9


@dataclass(frozen=True)
class Calibration:
    """The temperature stored, and the expected calibration error before and after, over so many detections."""

    temperature: float
    before: float
    after: float
    detections: int
    tally: SkipCounter


def calibrate(model: str, name: str, config: EvaluateConfig, *, device: str | None = None) -> Calibration:
    """Find the temperature of a model on a dataset with boxes, and store it in the model's folder.

    Stored thresholds are changed with the scores, so the model's detections stay the same.

    Args:
        model: a model folder.
        name: dataset or annotation file, best one that the model was not trained on.
        config: how the model is evaluated, and where the images are.
        device: cpu, cuda, cuda:1; default: cuda if available.

    Raises:
        ConfigError: no model folder, or not one dataset with class names.
        DataError: the dataset has no boxes, or all detections are right or all wrong.
    """
    if not Path(model).is_dir():
        raise ConfigError(f"{model!r} is no model folder: make one, glip convert {model} FOLDER")
    benchmarks = [one for own in load_benchmarks([name], config).values() for one in own]
    if [one.protocol for one in benchmarks] != ["coco"]:
        listed = ", ".join(f"{one.name} ({one.protocol})" for one in benchmarks[:3])
        raise ConfigError(f"calibration takes one dataset with class names, scored as COCO's: got {listed}")
    detector, tally = Detector.from_pretrained(model, device=device, dtype=config.dtype), SkipCounter()
    options = query_options(benchmarks[0], config)
    pairs = detect_all(detector, benchmarks[0].read.samples, options=options, tally=tally)
    every = pooled(average_precision(pairs).rankings)
    if every.right.all() or not every.right.any():
        kind = "right" if every.right.any() else "wrong"
        raise DataError(f"{name!r}: all {len(every.right)} detections are {kind}: calibrate on images with both kinds")
    factor = find_temperature(every.scores, every.right)
    known = detector.config
    thresholds = {text: tempered(value, factor) for text, value in known.thresholds.items()}
    changed = {"temperature": known.inference.temperature * factor}
    changed["threshold"] = tempered(known.inference.threshold, factor)
    store_config(model, replace(known, inference=with_options(known.inference, **changed), thresholds=thresholds))
    before, after = (calibration_error(own, every.right) for own in (every.scores, tempered(every.scores, factor)))
    return Calibration(changed["temperature"], before, after, len(every.right), tally)


def find_temperature(scores: Float[np.ndarray, " det"], right: Bool[np.ndarray, " det"]) -> float:
    """The temperature, from 0.05 to 20, under which what was right and wrong is most likely."""
    logits = np.log(scores.clip(_TINY)) - np.log((1 - scores).clip(_TINY))
    low, high = 0.05, 20.0
    for _ in range(60):  # halvings; the likelihood is concave in 1 / temperature
        middle = (low * high) ** 0.5
        slope = float(((tempered(scores, middle) - right) * logits).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return middle


def calibration_error(scores: Float[np.ndarray, " det"], right: Bool[np.ndarray, " det"]) -> float:
    """Expected calibration error: |mean score - share of right detections|, averaged over 15 bins of scores."""
    place = (scores * _BINS).astype(int).clip(0, _BINS - 1)
    gaps = np.bincount(place, scores - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(scores))
