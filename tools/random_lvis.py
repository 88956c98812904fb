"""Ground truth and results at random, distributed as in LVIS v1, to measure what scoring costs.

1,203 categories, 12 boxes of 3.5 categories in an image, and 7 that are surely absent. Three results are near each box,
half of the others have categories that count in the image.
"""

import numpy as np

from glip.evaluate.ground_truth import Boxes, LvisTruth
from glip.evaluate.results import Results, concatenate

CATEGORIES = {"r": 337, "c": 461, "f": 405}  # LVIS v1
SHARES = {"r": 0.005, "c": 0.055, "f": 0.94}  # of its boxes
BOXES, PRESENT, ABSENT, INCOMPLETE = 12, 3.5, 7, 0.5  # per image
NEAR = 3  # results near each box
WIDTH, HEIGHT = 640, 480


def draw_truth(rng: np.random.Generator, images: int) -> LvisTruth:
    """Boxes of a few categories in each image, the frequent ones most often."""
    frequencies = tuple(rng.permutation(np.repeat(list(CATEGORIES), list(CATEGORIES.values()))).tolist())
    weights = rng.gamma(0.7, size=len(frequencies))
    for kind, share in SHARES.items():
        own = np.array(frequencies) == kind
        weights[own] *= share / weights[own].sum()
    categories = np.arange(len(frequencies))
    rows: list[tuple[int, int]] = []
    absent, incomplete = np.zeros((2, images, len(categories)), dtype=bool)
    for image in range(images):
        chosen = rng.choice(categories, size=1 + rng.poisson(PRESENT - 1 + ABSENT), replace=False, p=weights)
        there = chosen[: 1 + rng.binomial(len(chosen) - 1, (PRESENT - 1) / (PRESENT - 1 + ABSENT))]
        absent[image, chosen[len(there) :]] = True
        incomplete[image, there[: rng.poisson(INCOMPLETE)]] = True
        shares = rng.dirichlet(np.full(len(there), 0.7))
        extra = rng.choice(there, size=rng.geometric(1 / (1 + BOXES - PRESENT)) - 1, p=shares)
        rows += [(image, category) for category in [*there.tolist(), *extra.tolist()]]
    places = np.array(rows)
    boxes = draw_boxes(rng, len(places))
    areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1.0, len(boxes))
    return LvisTruth(
        tuple(range(1, images + 1)),
        tuple(range(1, len(categories) + 1)),
        tuple(f"name {number}" for number in categories),
        Boxes(places[:, 0], places[:, 1], boxes, areas, np.zeros(len(boxes), dtype=bool)),
        absent,
        frequencies=frequencies,
        incomplete=incomplete,
    )


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes x, y, width, height of every size, more of them small."""
    sides = np.exp(rng.normal(3.8, 0.9, (number, 1)) + rng.normal(0, 0.4, (number, 2)))
    sides = np.clip(sides, 4, (WIDTH - 1, HEIGHT - 1))
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * ((WIDTH, HEIGHT) - sides), sides], axis=1)


def draw_results(rng: np.random.Generator, truth: LvisTruth, number: int) -> Results:
    """Results for each image: near its boxes, of other categories that count there, and of any category."""
    counts = np.array(truth.negatives)
    counts[truth.boxes.images, truth.boxes.categories] = True
    edges = np.searchsorted(truth.boxes.images, np.arange(len(truth.images) + 1))
    parts = []
    for image in range(len(truth.images)):
        own = np.repeat(np.arange(edges[image], edges[image + 1]), NEAR)[:number]
        rest = number - len(own)
        near = truth.boxes.boxes[own] + truth.boxes.boxes[own][:, [2, 3, 2, 3]] * rng.normal(0, 0.12, (len(own), 4))
        counted = rng.choice(np.flatnonzero(counts[image]), rest // 2)
        any_category = rng.integers(len(truth.categories), size=rest - rest // 2)
        boxes = np.concatenate([near, draw_boxes(rng, rest)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        scores = np.concatenate([rng.beta(3, 2, len(own)), rng.beta(1, 5, rest)]).round(3)
        categories = np.concatenate([truth.boxes.categories[own], counted, any_category])
        parts.append(Results(np.full(number, image), categories, boxes, scores))
    return concatenate(parts)
