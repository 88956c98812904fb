"""OVDEval's NMS-AP: of the boxes near a true one only the best counts, of any name; then COCO's AP.

So a model that gives one thing every name, wrong ones too, does not profit from the right one among them.
"""

import numpy as np

from glip.evaluate.coco import score_results
from glip.evaluate.columns import Boxes, GroundTruth, Results, split_by
from glip.shapes import Float

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
        near = _iou(boxes.boxes[true[image]], results.boxes[rows]) > _OVERLAP
        ranked = np.argsort(results.scores[rows], kind="stable")[::-1]
        near = near[:, ranked]
        best = near & (near.cumsum(axis=1) == 1)
        stays[rows[ranked]] = best.any(axis=0) | ~near.any(axis=0)
    return np.concatenate([np.zeros(0, np.int64), *(found[image][stays[found[image]]] for image in order)])


def _iou(true: Float[np.ndarray, "true 4"], found: Float[np.ndarray, "det 4"]) -> Float[np.ndarray, "true det"]:
    """IoU of boxes x, y, width, height; 0 where neither has an area."""
    one, other = true[:, None], found[None]
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    common = (high - low).clip(0).prod(-1)
    union = one[..., 2:].prod(-1) + other[..., 2:].prod(-1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
