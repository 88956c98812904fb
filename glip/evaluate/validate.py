"""Validation during training: the ordinary evaluation, on some images of each set, of a model still in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from glip.data.image import open_any
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.errors import DataError
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.structures import Detections, Prompt, Sample
from glip.visualize import draw

_GAP = 8  # pixels between predictions and targets


@dataclass(frozen=True)
class Validated:
    """What a validation found.

    Args:
        figures: by "SET/FIGURE", such as "bccd_val/AP50".
        best: what the best checkpoint is chosen by: the mean of every set's AP50 and recall@1.
        images: predictions (left) beside targets (right), by "SET/NUMBER".
        skipped: images that were passed over, by reason.
    """

    figures: dict[str, float]
    best: float
    images: dict[str, Image.Image]
    skipped: SkipCounter


class Validator:
    """Evaluates a model in training on the same images of each set every time.

    Args:
        sets: samples by the name of their set: detection samples have AP, captioned ones recall.
        images: of each set at most so many, evenly spaced over it; 0 for all.
        shown: images drawn of each set.

    Raises:
        ValueError: no set, or one without a box or without an image file among the chosen images: it could only
            ever score nothing.
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
        for name, chosen in self.sets.items():
            if not any(_has_target(chosen[index]) for index in range(len(chosen))):
                raise DataError(
                    f"validation set {name!r}: none of its {len(chosen)} images that would be looked at has a named "
                    "box: look at it with glip data check, or take it from data.validate"
                )
            _refuse_missing(name, chosen)

    def __call__(self, detector: Detector) -> Validated:
        """Evaluate; no random number is drawn from torch."""
        figures: dict[str, float] = {}
        deciding: list[float] = []
        images: dict[str, Image.Image] = {}
        tally = SkipCounter()
        for name, samples in self.sets.items():
            passed = SkipCounter()
            pairs = list(detect_all(detector, samples, tally=passed))
            scored, decides = set_figures(name, pairs, passed)
            tally.merge(passed)
            figures |= {f"{name}/{figure}": value for figure, value in scored.items()}
            deciding += [scored[figure] for figure in decides]
            images |= {f"{name}/{i}": side_by_side(*pair) for i, pair in enumerate(pairs[: self.shown])}
        return Validated(figures, sum(deciding) / len(deciding), images, tally)


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


def set_figures(
    name: str, pairs: Sequence[tuple[Sample, Detections]], passed: SkipCounter
) -> tuple[dict[str, float], list[str]]:
    """AP and AP50 of the samples with a vocabulary, recall@k of those with a caption; and which figures decide.

    Args:
        name: of the set, for errors.
        pairs: samples and what was found in them.
        passed: the samples passed over, for errors.

    Raises:
        ValueError: neither has a box to score with.
    """
    listed = [pair for pair in pairs if pair[0].prompt is None]
    captioned = [pair for pair in pairs if pair[0].prompt is not None]
    figures: dict[str, float] = {}
    if any(_has_target(sample) for sample, _ in listed):
        score = average_precision(listed)
        figures |= {"AP": score.ap, "AP50": score.ap50}
    if any(_has_target(sample) for sample, _ in captioned):
        figures |= {f"recall@{rank}": value for rank, value in phrase_recall(captioned).at.items()}
    if not figures:
        raise DataError(
            f"validation set {name!r}: nothing to score: of {len(pairs)} images looked at none has a named box, and "
            f"passed over were {_told(passed) or 'none'}: look at the set with glip data check"
        )
    return figures, [name for name in ("AP50", "recall@1") if name in figures]


def side_by_side(sample: Sample, found: Detections) -> Image.Image:
    """Predictions beside targets: the best detections, as many as the image has boxes, whatever they score."""
    image = open_any(sample.image)
    prompt = sample.prompt or Prompt.from_names(sample.vocabulary)
    pairs = [(box, phrase) for box, phrases in enumerate(sample.box_phrases) for phrase in phrases]
    target = Detections(
        sample.boxes[[box for box, _ in pairs]].reshape(-1, 4),
        torch.ones(len(pairs)),
        torch.tensor([phrase for _, phrase in pairs], dtype=torch.long),
        prompt,
        (image.height, image.width),
    )
    best = found.select(torch.arange(min(len(found), max(len(pairs), 1))))
    left, right = draw(image, best), draw(image, target, scores=False)
    sheet = Image.new("RGB", (left.width + _GAP + right.width, max(left.height, right.height)), (255, 255, 255))
    sheet.paste(left)
    sheet.paste(right, (left.width + _GAP, 0))
    return sheet


def _told(passed: SkipCounter) -> str:
    """Each reason with its count and, where one is known, the first place."""
    told = []
    for reason, count in passed.counts.items():
        places = passed.places[reason]
        told.append(f"{count} x {reason}{f' ({places[0]})' if places else ''}")
    return ", ".join(told)


def _refuse_missing(name: str, samples: Sequence[Sample]) -> None:
    """Raise ValueError if every image is a file and none is there; some may be missing, they are counted later."""
    first = samples[0].image
    for index in range(len(samples)):
        image = samples[index].image
        if not isinstance(image, Path) or image.is_file():
            return
    raise DataError(
        f"validation set {name!r}: none of its {len(samples)} images that would be looked at is there, such as "
        f"{str(first)!r}: correct images of the set or data.root, or take it from data.validate"
    )


def _has_target(sample: Sample) -> bool:
    return any(phrases and box not in sample.crowd for box, phrases in enumerate(sample.box_phrases))
