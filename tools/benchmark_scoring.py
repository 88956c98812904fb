"""How long scoring takes on a set of the size of LVIS val, and how much memory: standard AP and Fixed AP.

    python tools/benchmark_scoring.py [--images 20000] [--detections 300] [--seed 0]

Boxes and results are drawn at random, after LVIS v1: 1,203 categories, 12 boxes of 3.5 categories in an image, 7 that
are surely absent. Three results of each box lie near it, half of the others are of categories that count in the
image. Not a timed test.
"""

import argparse
import resource
import time

import numpy as np

from glip.evaluate.ground_truth import Boxes, LvisTruth
from glip.evaluate.lvis import fixed_ap, standard_ap
from glip.evaluate.results import Results, concatenate

CATEGORIES = {"r": 337, "c": 461, "f": 405}  # LVIS v1
SHARES = {"r": 0.005, "c": 0.055, "f": 0.94}  # of its boxes
BOXES, PRESENT, ABSENT, INCOMPLETE = 12, 3.5, 7, 0.5  # of an image
NEAR = 3  # results near each box
WIDTH, HEIGHT = 640, 480


def main() -> None:
    """Draw, score twice, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--detections", type=int, default=300, help="results of an image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    truth = draw_truth(rng, args.images)
    results = draw_results(rng, truth, args.detections)
    print(
        f"{len(truth.images)} images, {len(truth.categories)} categories, {len(truth.boxes.areas)} boxes, "
        f"{len(results)} results: {peak():.2f} GB"
    )
    for name, score in (("standard AP", standard_ap), ("Fixed AP", fixed_ap)):
        start, busy = time.perf_counter(), time.process_time()
        figures = score(truth, results)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        counted = sum(row["detections"] for row in figures.categories)
        print(
            f"{name:<12} {seconds:7.1f} s ({busy:.1f} s of a core), peak {peak():.2f} GB, AP {figures.ap:.4f}, "
            f"{counted} results count"
        )


def peak() -> float:
    """The most memory that was in use so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def draw_truth(rng: np.random.Generator, images: int) -> LvisTruth:
    """Boxes of a few categories in each image, the frequent ones most often."""
    frequencies = tuple(rng.permutation(np.repeat(list(CATEGORIES), list(CATEGORIES.values()))).tolist())
    weights = rng.gamma(0.7, size=len(frequencies))
    for kind, share in SHARES.items():
        own = np.array(frequencies) == kind
        weights[own] *= share / weights[own].sum()
    every = np.arange(len(frequencies))
    rows: list[tuple[int, int]] = []
    absent, incomplete = np.zeros((2, images, len(every)), dtype=bool)
    for image in range(images):
        chosen = rng.choice(every, size=1 + rng.poisson(PRESENT - 1 + ABSENT), replace=False, p=weights)
        there = chosen[: 1 + rng.binomial(len(chosen) - 1, (PRESENT - 1) / (PRESENT - 1 + ABSENT))]
        absent[image, chosen[len(there) :]] = True
        incomplete[image, there[: rng.poisson(INCOMPLETE)]] = True
        shares = rng.dirichlet(np.full(len(there), 0.7))
        extra = rng.choice(there, size=rng.geometric(1 / (1 + BOXES - PRESENT)) - 1, p=shares)
        rows += [(image, category) for category in [*there.tolist(), *extra.tolist()]]
    places = np.array(rows)
    boxes = draw_boxes(rng, len(places))
    return LvisTruth(
        tuple(range(1, images + 1)),
        tuple(range(1, len(every) + 1)),
        tuple(f"name {number}" for number in every),
        Boxes(
            places[:, 0],
            places[:, 1],
            boxes,
            boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1.0, len(boxes)),
            np.zeros(len(boxes), dtype=bool),
        ),
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
    """For each image results near its boxes, others of categories that count there, and of any category."""
    counts = np.array(truth.negatives)
    counts[truth.boxes.images, truth.boxes.categories] = True
    edges = np.searchsorted(truth.boxes.images, np.arange(len(truth.images) + 1))
    parts = []
    for image in range(len(truth.images)):
        own = np.repeat(np.arange(edges[image], edges[image + 1]), NEAR)[:number]
        rest = number - len(own)
        near = truth.boxes.boxes[own] + truth.boxes.boxes[own][:, [2, 3, 2, 3]] * rng.normal(0, 0.12, (len(own), 4))
        asked = rng.choice(np.flatnonzero(counts[image]), rest // 2)
        anything = rng.integers(len(truth.categories), size=rest - rest // 2)
        boxes = np.concatenate([near, draw_boxes(rng, rest)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        scores = np.concatenate([rng.beta(3, 2, len(own)), rng.beta(1, 5, rest)]).round(3)
        categories = np.concatenate([truth.boxes.categories[own], asked, anything])
        parts.append(Results(np.full(number, image), categories, boxes, scores))
    return concatenate(parts)


if __name__ == "__main__":
    main()
