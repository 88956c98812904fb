"""Image-level figures: whether anything was detected where a name is present, and nothing where it is absent."""

from math import sqrt

_TINY = 1e-6  # added to each denominator, as SA-Co's evaluator does


def image_level(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """SA-Co's figures from counts of (image, name) pairs; by its names ``IL_MCC``, ``IL_F1``, ``IL_FPR``, ...

    Args:
        tp: the name is present, and something was detected (wherever it is).
        fp: it is absent, and something was detected.
        fn: it is present, and nothing was detected.
        tn: it is absent, and nothing was detected.
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
