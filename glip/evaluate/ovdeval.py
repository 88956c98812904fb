"""OVDEval's NMS-AP: of the boxes near a true one only the best counts, of any name; then COCO's AP.

So a model that gives one thing every name, wrong ones too, does not profit from the right one among them.
"""

import numpy as np

from glip.evaluate.coco import overlaps, score_results
from glip.evaluate.columns import Boxes, GroundTruth, Results, split_by

_OVERLAP = 0.5


def nms_figures(truth: GroundTruth, results: Results) -> dict[str, float]:
    """COCO's figures of what ``suppress_near_truth`` leaves, each as "NMS-..."."""
    scored = score_results(truth, results.select(suppress_near_truth(truth.boxes, results)), as_filed=True)
    return {f"NMS-{name}": value for name, value in scored.figures.items()}


def suppress_near_truth(boxes: Boxes, results: Results) -> np.ndarray:
    """The rows of the results that stay, image by image in the order in which these first appear.

    For each true box, a group or not, the detections of its image that overlap it by more than a half are taken, of
    any category: the best stays (the last of several), the others go, unless they are the best for another box.
    """
    count = int(max(boxes.images.max(initial=-1), results.images.max(initial=-1))) + 1
    true, found = split_by(boxes.images, count), split_by(results.images, count)
    _, first = np.unique(results.images, return_index=True)
    stays = np.ones(len(results), dtype=bool)
    order = results.images[np.sort(first)].tolist()
    for image in order:
        rows = found[image]
        ranked = rows[np.argsort(results.scores[rows], kind="stable")[::-1]]
        near = overlaps(results.boxes[ranked], boxes.boxes[true[image]]) > _OVERLAP
        best = near & (near.cumsum(axis=0) == 1)
        stays[ranked] = best.any(axis=1) | ~near.any(axis=1)
    return np.concatenate([np.zeros(0, np.int64), *(found[image][stays[found[image]]] for image in order)])
