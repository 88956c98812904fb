"""For each name the threshold that maximises F1: where finding more costs as much as it gains."""

from collections.abc import Sequence

import numpy as np

from glip.evaluate.coco import Ranking


def best_thresholds(rankings: Sequence[Ranking], usual: float) -> tuple[float, ...]:
    """The threshold of each category at IoU 0.5, half way to the next score below so that it is not of one image.

    Args:
        rankings: a set's detections by category, as ``score_results`` gives them.
        usual: the threshold of a category without a box or without a right detection, about which nothing is known.
    """
    return tuple(_best(ranking, usual) for ranking in rankings)


def f1_curve(ranking: Ranking) -> np.ndarray:
    """F1 of one category when the first 1, 2, ... detections are shown: 2 right / (shown + boxes)."""
    right = np.cumsum(ranking.right)
    curve: np.ndarray = 2 * right / (np.arange(1, len(right) + 1) + len(ranking.boxes))
    return curve


def _best(ranking: Ranking, usual: float) -> float:
    if not len(ranking.boxes) or not ranking.right.any():
        return usual
    scores = ranking.scores
    last = np.append(scores[1:] < scores[:-1], True)  # of detections of one score all are shown, or none
    shown = int(np.argmax(np.where(last, f1_curve(ranking), -1.0))) + 1
    below = float(scores[shown]) if shown < len(scores) else 0.0
    return (float(scores[shown - 1]) + below) / 2
