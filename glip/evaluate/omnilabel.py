"""OmniLabel's figures: AP over all (image, description) cells of a group at once, category names against descriptions.

COCO's AP with cells in place of images and the groups in place of categories is what its evaluator computes, so
pycocotools computes it here too.
"""

from dataclasses import dataclass, replace

import numpy as np

from glip.data.records import as_map, records_by_id
from glip.data.sets import SampleSet, SkipCounter
from glip.evaluate.coco import score_results
from glip.evaluate.columns import Boxes, GroundTruth, Results, read_truth
from glip.evaluate.report import NOTHING, Row
from glip.shapes import Bool, Int

_FREE = "object_description"
_SHOWN = ("AP", "AP50", "AP75", "AR@100")
_TINY = 1e-5


@dataclass(frozen=True, kw_only=True)
class SpaceTruth(GroundTruth):
    """Descriptions as categories, and where they are asked for.

    Args:
        cells: (image, description) pairs of all label spaces: images by their index, in them the order of the file.
        free: which descriptions are free text, not names of categories.
        words: how many each has, between white space.
    """

    cells: Int[np.ndarray, "cell 2"]
    free: Bool[np.ndarray, " category"]
    words: Int[np.ndarray, " category"]


def read_spaces(read: SampleSet, skipped: SkipCounter) -> SpaceTruth:
    """The ground truth of OmniLabel's json; areas are those of the boxes."""
    assert read.annotations
    truth, file = read_truth(read.annotations, skipped), read.annotations
    label = {number: index for index, number in enumerate(truth.categories)}
    cells = [(place, label[own]) for place, image in enumerate(truth.images) for own in read.asked.get(image, ())]
    records = records_by_id(file.categories, "category", SkipCounter())
    kinds = [as_map(records[number].get("anno_info")).get("type") for number in truth.categories]
    return SpaceTruth(
        truth.images,
        truth.categories,
        truth.names,
        replace(truth.boxes, areas=truth.boxes.boxes[:, 2] * truth.boxes.boxes[:, 3]),
        cells=np.array(cells, dtype=np.int64).reshape(-1, 2),
        free=np.array([kind == _FREE for kind in kinds]),
        words=np.array([len(name.split()) for name in truth.names]),
    )


def score_spaces(truth: SpaceTruth, results: Results) -> tuple[dict[str, float], dict[str, list[Row]]]:
    """The 13 figures that the evaluator prints, in its order, and a table of the groups."""
    boxes, found = truth.boxes, results
    places = [_cells_of(truth, one.images, one.categories) for one in (boxes, found)]
    boxes = replace(boxes, images=places[0], categories=np.zeros_like(places[0])).select(places[0] >= 0)
    found = replace(found, images=places[1], categories=np.zeros_like(places[1])).select(places[1] >= 0)
    free, words = truth.free[truth.cells[:, 1]], truth.words[truth.cells[:, 1]]
    named = np.isin(np.arange(len(truth.cells)), boxes.images)
    groups = {
        "categ": ~free,
        "descr": free,
        "descr-pos": free & named,
        "descr-s": free & (words <= 3),
        "descr-m": free & (words >= 4) & (words <= 8),
        "descr-l": free & (words >= 9),
    }
    scored = {
        name: {"cells": int(own.sum())} | _score_group(boxes.select(own[boxes.images]), found.select(own[found.images]))
        for name, own in groups.items()
    }
    first, second = scored["categ"]["AP"], scored["descr"]["AP"]
    final = NOTHING if NOTHING in (first, second) else 2 * first * second / (first + second + _TINY)
    figures = {"AP": final} | {f"AP {name}": one["AP"] for name, one in scored.items()}
    figures |= {f"{key} {name}": scored[name][key] for name in ("descr", "categ") for key in ("AP50", "AP75")}
    figures |= {f"AR {name}": scored[name]["AR@100"] for name in ("descr", "categ")}
    return figures, {"Groups": [{"group": name, **one} for name, one in scored.items()]}


def _cells_of(truth: SpaceTruth, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """The index of each cell, -1 for one in no label space; an unknown description is in the column after the last."""
    width = len(truth.categories) + 1
    codes = truth.cells @ np.array([width, 1])
    order, wanted = np.argsort(codes), images * width + categories
    near = order[np.searchsorted(codes, wanted, sorter=order).clip(max=len(codes) - 1)]
    return np.where(codes[near] == wanted, near, -1)


def _score_group(boxes: Boxes, found: Results) -> dict[str, float]:
    """Figures of one group: its cells are images, and it is the only category."""
    counted = {"boxes": int((~boxes.crowd).sum())}
    if not counted["boxes"]:
        return counted | dict.fromkeys(_SHOWN, NOTHING)
    cells = int(max(boxes.images.max(initial=0), found.images.max(initial=0))) + 1
    score = score_results(GroundTruth(tuple(range(cells)), (0,), ("",), boxes), found, as_filed=True)
    return counted | {key: score.figures[key] for key in _SHOWN}
