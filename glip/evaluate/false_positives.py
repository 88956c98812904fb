"""False positives on absent classes: how often a name that is not in the image is detected anyway.

AP hides such false alarms where most names are present; somebody who looks for an absent thing sees them at once.
Hence AP at an operating point: detections below the threshold at which only a small share of the (image, absent name)
pairs has a false positive are dropped, then AP is computed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glip.evaluate.columns import UNKNOWN, GroundTruth, Results, to_arrays
from glip.shapes import Float, Int
from glip.structures import Detections, Sample

RATES = (0.05, 0.01)  # at which AP is reported


@dataclass(frozen=True)
class FalsePositives:
    """For every (image, absent name) pair the score of its best detection, -inf where there is none.

    ``images[i]`` is the image of pair ``i``; ``lowest`` is the lowest score of any detection.
    """

    best: Float[np.ndarray, " pair"]
    images: Int[np.ndarray, " pair"]
    lowest: float = 0.0

    def rate(self, threshold: float) -> float:
        """Share of the (image, absent name) pairs with a detection scoring at least ``threshold``."""
        return float((self.best >= threshold).mean())

    def image_rate(self, threshold: float) -> float:
        """Share of the images with such a detection, among those with an absent name."""
        return len(np.unique(self.images[self.best >= threshold])) / len(np.unique(self.images))

    def threshold_at(self, rate: float) -> float:
        """The lowest threshold whose false positive rate is at most ``rate``, from 0 to below 1.

        The rate falls just above the score of a false positive, so the threshold is the next number above that score,
        and all detections of exactly that score go. Where nothing has to go it is ``lowest``.
        """
        ranked = np.sort(self.best)[::-1]
        allowed = int((np.arange(1, len(ranked) + 1) / len(ranked) <= rate).sum())
        return max(float(np.nextafter(ranked[allowed], np.inf)), self.lowest)


def false_positives(truth: GroundTruth, results: Results) -> FalsePositives | None:
    """The best score of every absent name in every image.

    A category is absent where it has no box, or, where the ground truth has ``negatives``, where those say so. None
    where no category is known to be absent from any image, as in a set with one name that is everywhere.
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
    """The same for samples with a vocabulary, as ``detect_all`` yields them."""
    return false_positives(*to_arrays(pairs))
