"""Validation during training: the ordinary evaluation of a model in training, on some images of each set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.errors import DataError
from glip.evaluate.coco import average_precision
from glip.evaluate.figures import found_sample
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.structures import Detections, Sample
from glip.visualize import contact_sheet


@dataclass(frozen=True)
class Validated:
    """The outcome of a validation.

    Args:
        figures: by "SET/FIGURE", such as "bccd_val/AP50".
        best: what the best checkpoint is chosen by: the mean of every set's AP50 and recall@1.
        images: predictions (left) beside targets (right), by "SET/NUMBER".
        skipped: counts skipped images by reason.
    """

    figures: dict[str, float]
    best: float
    images: dict[str, Image.Image]
    skipped: SkipCounter


class Validator:
    """Evaluates a model in training on the same images of each set every time.

    Args:
        sets: samples by the name of their set: detection samples have AP, captioned ones recall.
        images: maximum images per set, evenly spaced over it; 0: all.
        shown: images drawn of each set.

    Raises:
        DataError: no set, or one that could not be scored: without a box or an image file among the chosen images.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Sample]],
        *,
        images: int = 200,
        shown: int = 2,
    ) -> None:
        if not sets:
            raise DataError("data.validate lists no set: name at least one, or set train.validate_every to 0")
        self.shown = shown
        self.sets = {name: Chosen(samples, images or len(samples)) for name, samples in sets.items()}
        for name, samples in self.sets.items():
            if not any(map(_has_target, samples)):
                raise DataError(
                    f"Validation set {name!r}: none of its {len(samples)} chosen images has a named box: check it with "
                    "glip data check, or remove it from data.validate"
                )
            if not any(not isinstance(sample.image, Path) or sample.image.is_file() for sample in samples):
                raise DataError(
                    f"Validation set {name!r}: none of its {len(samples)} chosen images exists, such as "
                    f"{str(samples[0].image)!r}: correct images of the set or data.root, or drop it from data.validate"
                )

    def __call__(self, detector: Detector) -> Validated:
        """Evaluate; no random number is drawn from torch."""
        figures: dict[str, float] = {}
        images: dict[str, Image.Image] = {}
        skipped = SkipCounter()
        for name, samples in self.sets.items():
            own = SkipCounter()
            pairs = list(detect_all(detector, samples, tally=own))
            figures |= {f"{name}/{figure}": value for figure, value in _figures(name, pairs, own).items()}
            images |= {f"{name}/{i}": _beside_targets(*pair) for i, pair in enumerate(pairs[: self.shown])}
            skipped.merge(own)
        deciding = [value for name, value in figures.items() if name.endswith(("/AP50", "/recall@1"))]
        return Validated(figures, sum(deciding) / len(deciding), images, skipped)


class Chosen(Sequence[Sample]):
    """At most ``limit`` samples, evenly spaced over a set."""

    def __init__(self, samples: Sequence[Sample], limit: int) -> None:
        self._samples, self._count = samples, min(limit, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(f"sample {index} of {self._count} chosen ones")
        return self._samples[index * len(self._samples) // self._count]


def _figures(name: str, pairs: Sequence[tuple[Sample, Detections]], skipped: SkipCounter) -> dict[str, float]:
    """AP and AP50 of the samples with a vocabulary, recall@k of those with a caption."""
    listed = [pair for pair in pairs if pair[0].prompt is None]
    captioned = [pair for pair in pairs if pair[0].prompt is not None]
    figures: dict[str, float] = {}
    if any(_has_target(sample) for sample, _ in listed):
        score = average_precision(listed)
        figures |= {"AP": score.ap, "AP50": score.ap50}
    if any(_has_target(sample) for sample, _ in captioned):
        figures |= {f"recall@{rank}": value for rank, value in phrase_recall(captioned).at.items()}
    if not figures:
        first = next((place for places in skipped.places.values() for place in places), "")
        raise DataError(
            f"Validation set {name!r}: nothing to score: none of {len(pairs)} images has a named box; skipped: "
            f"{skipped or 'none'}{f' ({first})' if first else ''}: check the set with glip data check"
        )
    return figures


def _beside_targets(sample: Sample, found: Detections) -> Image.Image:
    """Predictions beside targets: the best detections, as many as the image has boxes, whatever their scores."""
    count = sum(map(len, sample.box_phrases))
    best = found.select(torch.arange(min(len(found), max(count, 1))))
    return contact_sheet([found_sample(sample, best), sample])


def _has_target(sample: Sample) -> bool:
    return any(phrases and box not in sample.crowd for box, phrases in enumerate(sample.box_phrases))
