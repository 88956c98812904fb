"""Ground truth and results at random, distributed about as in LVIS v1, to measure what scoring costs."""

import numpy as np

from glip.evaluate.columns import Boxes, LvisTruth, Results

CATEGORIES = {"r": 337, "c": 461, "f": 405}  # LVIS v1
SHARES = {"r": 0.005, "c": 0.055, "f": 0.94}  # of its boxes
BOXES, PRESENT, ABSENT = 12, 4, 7  # per image: boxes, their categories, categories that are surely absent
NEAR = 3  # results near each box
WIDTH, HEIGHT = 640, 480


def random_lvis(rng: np.random.Generator, images: int, detections: int) -> tuple[LvisTruth, Results]:
    """Boxes of a few categories in each image, the frequent ones most often, and results for them.

    Three results are near each box; half of the others have categories that count in the image, half have any.
    """
    frequencies = tuple(rng.permutation(np.repeat(list(CATEGORIES), list(CATEGORIES.values()))).tolist())
    weights = rng.gamma(0.7, size=len(frequencies))
    for kind, share in SHARES.items():
        own = np.array(frequencies) == kind
        weights[own] *= share / weights[own].sum()
    count, rows = len(frequencies), np.arange(images)[:, None]
    chosen = rng.choice(count, (images, PRESENT + ABSENT), p=weights)
    labels = np.take_along_axis(chosen, rng.integers(PRESENT, size=(images, BOXES)), 1)
    absent, incomplete = np.zeros((2, images, count), dtype=bool)
    absent[rows, chosen] = True
    absent[rows, labels] = False
    incomplete[rows[:, 0], labels[:, 0]] = rng.random(images) < 0.5
    boxes = draw_boxes(rng, images * BOXES)
    areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1.0, len(boxes))
    truth = LvisTruth(
        tuple(range(1, images + 1)),
        tuple(range(1, count + 1)),
        tuple(f"name {number}" for number in range(count)),
        Boxes(np.repeat(rows, BOXES), labels.ravel(), boxes, areas, np.zeros(len(boxes), dtype=bool)),
        absent,
        frequencies=frequencies,
        incomplete=incomplete,
    )
    near = np.repeat(boxes.reshape(images, BOXES, 4), NEAR, axis=1)[:, :detections]
    near = near + near[..., [2, 3, 2, 3]] * rng.normal(0, 0.12, near.shape)
    rest = detections - near.shape[1]
    others = draw_boxes(rng, images * rest).reshape(images, rest, 4)
    counted = np.take_along_axis(chosen, rng.integers(PRESENT + ABSENT, size=(images, rest // 2)), 1)
    any_category = rng.integers(count, size=(images, rest - rest // 2))
    same = np.repeat(labels, NEAR, axis=1)[:, :detections]
    found = np.concatenate([near, others], 1).reshape(-1, 4)
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    scores = np.concatenate([rng.beta(3, 2, same.shape), rng.beta(1, 5, (images, rest))], 1).round(3)
    categories = np.concatenate([same, counted, any_category], 1)
    return truth, Results(np.repeat(rows, detections), categories.ravel(), found, scores.ravel())


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes x, y, width, height of every size, more of them small."""
    sides = np.exp(rng.normal(3.8, 0.9, (number, 1)) + rng.normal(0, 0.4, (number, 2)))
    sides = np.clip(sides, 4, (WIDTH - 1, HEIGHT - 1))
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * ((WIDTH, HEIGHT) - sides), sides], axis=1)
