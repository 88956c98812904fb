"""False positives on absent classes: how often a name that is not in the image is detected anyway.

AP hides such false alarms where most names are present; somebody who looks for an absent thing sees them at once.
Hence AP at an operating point: detections below the threshold at which only a small share of the (image, absent name)
pairs has a false positive are dropped, then AP is computed.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from glip.evaluate.columns import UNKNOWN, GroundTruth, Results
from glip.shapes import Float, Int

_TINY = 1e-6  # added to each denominator, as SA-Co's evaluator does
RATES = (0.05, 0.01)  # at which AP is reported
AT = 0.5  # the threshold of the image-level figures, as in SA-Co


@dataclass(frozen=True)
class FalsePositives:
    """For every (image, absent name) pair the score of its best detection, -inf where there is none.

    ``images[i]`` and ``names[i]`` are those of pair ``i``; ``lowest`` is the lowest score of any detection. ``found``
    has the best score of every (image, present name) pair, of the names ``found_names``.
    """

    best: Float[np.ndarray, " pair"]
    images: Int[np.ndarray, " pair"]
    names: Int[np.ndarray, " pair"]
    found: Float[np.ndarray, " there"]
    found_names: Int[np.ndarray, " there"]
    lowest: float = 0.0

    def rate(self, threshold: float) -> float:
        """Share of the (image, absent name) pairs with a detection scoring at least ``threshold``."""
        return float((self.best >= threshold).mean())

    def image_rate(self, threshold: float) -> float:
        """Share of the images with such a detection, among those with an absent name."""
        return len(np.unique(self.images[self.best >= threshold])) / len(np.unique(self.images))

    def image_level(self, threshold: float, name: int | None = None) -> dict[str, float]:
        """SA-Co's image-level figures at a threshold, over all names or of one; -1 for those over no pair.

        They ask whether a name has any detection in an image, wherever it is: ``IL_recall`` where it is present,
        ``IL_FPR`` where it is absent, ``IL_F1`` and ``IL_MCC`` over both.
        """
        sides = ((self.found, self.found_names), (self.best, self.names))
        there, absent = (best if name is None else best[names == name] for best, names in sides)
        tp, fp = (float((best >= threshold).sum()) for best in (there, absent))
        level = image_level(tp, fp, len(there) - tp, len(absent) - fp)
        count = {
            "IL_recall": len(there),
            "IL_FPR": len(absent),
            "IL_F1": len(there),
            "IL_MCC": len(there) * len(absent),
        }
        return {figure: level[figure] if pairs else -1.0 for figure, pairs in count.items()}

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
    present = truth.present
    absent = ~present if truth.negatives is None else truth.negatives & ~present
    if not absent.any():
        return None
    known = results.select(results.categories != UNKNOWN)
    best = np.full(absent.shape, -np.inf)
    np.maximum.at(best, (known.images, known.categories), known.scores)
    lowest = float(known.scores.min()) if len(known) else 0.0
    images, names = np.nonzero(absent)
    return FalsePositives(best[absent], images, names, best[present], np.nonzero(present)[1], lowest)


def image_level(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """SA-Co's figures from counts of (image, name) pairs; by its names ``IL_MCC``, ``IL_F1``, ``IL_FPR``, ...

    Positive: something was detected, wherever it is; true: as the name is present or absent.
    """
    precision, recall = tp / (tp + fp + _TINY), tp / (tp + fn + _TINY)
    spread = sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "IL_precision": precision,
        "IL_recall": recall,
        "IL_F1": 2 * precision * recall / (precision + recall + _TINY),
        "IL_FPR": fp / (fp + tn + _TINY),
        "IL_MCC": (tp * tn - fp * fn) / (spread + _TINY),
    }
