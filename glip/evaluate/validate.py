"""Validation during training: the ordinary evaluation of a model in training, on some images of each set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from glip.data.sets import SkipCounter, Validation
from glip.detector import Detector
from glip.errors import DataError
from glip.evaluate.benchmark import has_boxes
from glip.evaluate.coco import average_precision
from glip.evaluate.figures import found_sample
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.structures import Detections, Sample
from glip.visualize import contact_sheet


class Validator:
    """Evaluates a model in training on the same images of each set every time.

    Args:
        sets: samples by the name of their set: detection samples have AP, captioned ones recall.
        images: maximum images per set, evenly spaced over it; 0: all.
        shown: images drawn of each set.

    Raises:
        DataError: no set, or one that could not be scored: without a box or an image file among the chosen images.
    """

    def __init__(self, sets: Mapping[str, Sequence[Sample]], *, images: int = 200, shown: int = 2) -> None:
        if not sets:
            raise DataError("data.validate lists no set: name at least one, or set train.validate_every to 0")
        self.shown = shown
        self.sets = {name: evenly_spaced(samples, images or len(samples)) for name, samples in sets.items()}
        for name, samples in self.sets.items():
            lost = all(isinstance(sample.image, Path) and not sample.image.is_file() for sample in samples)
            if lost or not has_boxes(samples):
                what = f"exists, such as {str(samples[0].image)!r}" if lost and samples else "has a named box"
                raise DataError(
                    f"Validation set {name!r}: none of its {len(samples)} chosen images {what}: check it with "
                    "glip data check, correct data.root, or remove it from data.validate"
                )

    def __call__(self, detector: Detector) -> Validation:
        """Evaluate; no random number is drawn from torch."""
        found = Validation()
        for name, samples in self.sets.items():
            own = SkipCounter()
            pairs = list(detect_all(detector, samples, tally=own))
            figures = _figures(pairs)
            if not figures:
                first = next((place for places in own.places.values() for place in places), "")
                raise DataError(
                    f"Validation set {name!r}: nothing to score: none of {len(pairs)} images has a named box; skipped: "
                    f"{own or 'none'}{f' ({first})' if first else ''}: check the set with glip data check"
                )
            found.figures.update({f"{name}/{figure}": value for figure, value in figures.items()})
            found.images.update({f"{name}/{i}": _beside_targets(*pair) for i, pair in enumerate(pairs[: self.shown])})
            found.skipped.merge(own)
        return found


def evenly_spaced(samples: Sequence[Sample], limit: int) -> Sequence[Sample]:
    """At most ``limit`` samples, evenly spaced over a set."""
    if limit >= len(samples):
        return samples
    return [samples[index * len(samples) // limit] for index in range(limit)]


def _figures(pairs: Sequence[tuple[Sample, Detections]]) -> dict[str, float]:
    """AP and AP50 of the samples with a vocabulary, recall@k of those with a caption; nothing without a box."""
    listed = [pair for pair in pairs if pair[0].prompt is None]
    captioned = [pair for pair in pairs if pair[0].prompt is not None]
    figures: dict[str, float] = {}
    if has_boxes(sample for sample, _ in listed):
        score = average_precision(listed)
        figures |= {"AP": score.ap, "AP50": score.ap50}
    if has_boxes(sample for sample, _ in captioned):
        figures |= {f"recall@{rank}": value for rank, value in phrase_recall(captioned).at.items()}
    return figures


def _beside_targets(sample: Sample, found: Detections) -> Image.Image:
    """Predictions beside targets: the best detections, as many as the image has boxes, whatever their scores."""
    count = sum(map(len, sample.box_phrases))
    best = found.select(torch.arange(min(len(found), max(count, 1))))
    return contact_sheet([found_sample(sample, best), sample])
