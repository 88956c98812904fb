"""False positives on absent classes: how often a name that is not in the image is detected anyway.

AP hides such false alarms where the names asked for are mostly there; a person who asks for a thing that is absent
sees them at once. Hence AP at an operating point: detections are dropped below the threshold at which only a small
share of the (image, absent name) pairs has a false alarm, then AP is counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from glip.errors import DataError
from glip.evaluate.ground_truth import GroundTruth, to_arrays
from glip.evaluate.results import UNKNOWN, Results
from glip.shapes import Float, Int
from glip.structures import Detections, Sample

RATES = (0.05, 0.01)  # at which AP is reported


@dataclass(frozen=True)
class Threshold:
    """A threshold, and the false positive rate there."""

    threshold: float
    rate: float


@dataclass(frozen=True)
class FalsePositives:
    """Of every (image, absent name) pair the score of its best detection, -inf where there is none.

    ``images[i]`` tells which image pair ``i`` belongs to; ``lowest`` is the lowest score of any detection.
    """

    best: Float[np.ndarray, " pair"]
    images: Int[np.ndarray, " pair"]
    lowest: float = 0.0

    def rate(self, threshold: float) -> float:
        """Share of the (image, absent name) pairs with a detection scoring at least ``threshold``."""
        return float((self.best >= threshold).mean())

    def image_rate(self, threshold: float) -> float:
        """Share of the images with such a detection, among those that were asked for an absent name."""
        return len(np.unique(self.images[self.best >= threshold])) / len(np.unique(self.images))

    def at_rate(self, rate: float) -> Threshold:
        """The lowest threshold whose false positive rate is not above ``rate``; ``lowest`` where nothing has to go.

        The rate falls just above the score of a false alarm, so the threshold is the number next to that score, and
        detections of exactly that score go: of equal scores all are kept or none.

        Raises:
            ValueError: no share.
        """
        if not 0 <= rate < 1:
            raise DataError(f"false positive rate {rate:g}: give a share of the pairs from 0 up to 1, such as 0.05")
        ranked = np.sort(self.best)[::-1]
        allowed = int((np.arange(1, len(ranked) + 1) / len(ranked) <= rate).sum())
        threshold = max(float(np.nextafter(ranked[allowed], np.inf)), self.lowest)
        return Threshold(threshold, self.rate(threshold))


@dataclass(frozen=True)
class OperatingPoint:
    """What is left of AP where false alarms for absent names are rare.

    Args:
        allowed: the false positive rate that was allowed.
        threshold: the lowest at which it holds.
        rate: the false positive rate there, at most ``allowed``; ties can make it far less.
        kept: detections that score at least the threshold.
        ap: AP of those over IoU 0.50 to 0.95.
        ap50: at IoU 0.5.
    """

    allowed: float
    threshold: float
    rate: float
    kept: int
    ap: float
    ap50: float


def false_positives(truth: GroundTruth, results: Results) -> FalsePositives | None:
    """The best score of every absent name in every image.

    A category is absent where it has no box, or, where the truth has ``negatives``, where those say so. None where no
    category is known to be absent from any image, as in a set with one name that is everywhere.
    """
    absent = ~truth.present if truth.negatives is None else truth.negatives & ~truth.present
    if not absent.any():
        return None
    known = results.select(results.categories != UNKNOWN)
    best = np.full(absent.shape, -np.inf)
    np.maximum.at(best, (known.images, known.categories), known.scores)
    lowest = float(known.scores.min()) if len(known) else 0.0
    return FalsePositives(best[absent], np.nonzero(absent)[0], lowest)


def false_positives_of(pairs: Iterable[tuple[Sample, Detections]]) -> FalsePositives | None:
    """The same of samples that have a vocabulary, as ``detect_all`` gives them; None also where there is none.

    Raises:
        ValueError: a sample without vocabulary, or detections of other names.
    """
    listed = list(pairs)
    return false_positives(*to_arrays(listed)) if listed else None


def operating_points(
    results: Results, found: FalsePositives, ap: Callable[[Results], Sequence[float]], rates: Sequence[float] = RATES
) -> tuple[OperatingPoint, ...]:
    """AP where the false positive rate is not above each of ``rates``.

    Where even the surest detections are false alarms nothing is kept, and AP is 0.

    Args:
        results: of a model, down to low scores.
        found: their ``false_positives``.
        ap: gives AP and AP50 of results by the set's own protocol.
        rates: shares of the (image, absent name) pairs.

    Raises:
        ValueError: a rate that is no share.
    """
    points = []
    known = results.select(results.categories != UNKNOWN)
    for allowed in rates:
        at = found.at_rate(allowed)
        kept = known.select(known.scores >= at.threshold)
        precision, precision50 = ap(kept)
        points.append(OperatingPoint(allowed, at.threshold, at.rate, len(kept), precision, precision50))
    return tuple(points)
