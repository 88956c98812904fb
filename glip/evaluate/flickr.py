"""Flickr30K Entities in the files of others: the released annotations, MDETR's json, and predictions for both.

Predictions are a json list of {image_id, sentence_id, boxes}; ``boxes[phrase][rank]`` is a box x1, y1, x2, y2, best
first, for each phrase of the sentence that has a box.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glip.data.flickr30k import read_flickr30k
from glip.data.records import parse_json
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate.phrases import CaptionTruth, caption_truth
from glip.shapes import Float, Tensor

Row = dict[str, Any]
Boxes = tuple[Float[Tensor, "_rank 4"], ...]  # of each phrase, best first
_FORM = "give a json list of {image_id, sentence_id, boxes}, boxes[phrase][rank] = [x1, y1, x2, y2]"


def read_released(folder: str | Path, names: str | Path, tally: SkipCounter) -> list[CaptionTruth]:
    """What the official evaluator asks for in a split, also phrases whose only boxes have no area; opens no image.

    Args:
        folder: holds ``Annotations`` and ``Sentences``.
        names: the split's list, such as test.txt; "" for all images.
        tally: counts what the reader leaves out, such as phrases without a box.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: nothing in it can be scored.
    """
    found = read_flickr30k(folder, [folder], names, flat_boxes=True)
    tally.merge(found.skipped)
    return [caption_truth(sample) for sample in found.samples]


def prediction_row(truth: CaptionTruth, boxes: Sequence[Float[Tensor, "_rank 4"]]) -> Row:
    """What was found for a caption (``ranked_boxes``) as a row of a file of predictions."""
    listed = [ranked.tolist() for ranked in boxes]
    return {"image_id": truth.image, "sentence_id": truth.sentence, "boxes": listed}


def read_predictions(path: str | Path, truths: Sequence[CaptionTruth], tally: SkipCounter) -> list[Boxes]:
    """The boxes of each caption's phrases, in the order of the captions.

    As in the official evaluator the first prediction for a sentence counts, and those for sentences that are not asked
    for are ignored; both are counted here. Anything that is missing is an error: a recall without it is not the
    published one.

    Args:
        path: the json.
        truths: what is asked for.
        tally: where rows that are ignored, and boxes of negative size (which find nothing), are counted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a list; a sentence without prediction; one for another number of phrases; a phrase without
            boxes; a box that is no box; two captions of one id.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"predictions {str(file)!r} are not there: give the json that an evaluation wrote")
    rows = parse_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: not a file of predictions, it is no list: {_FORM}")
    asked = {_key(truth.image, truth.sentence): truth for truth in truths}
    if len(asked) < len(truths):
        raise DataError(f"{len(truths)} captions have {len(asked)} ids between them: give each sentence its own id")
    found: dict[str, Boxes] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "sentence_id", "boxes"} <= row.keys():
            raise DataError(f"{file}: row {number} is no prediction: {_FORM}")
        key = _key(row["image_id"], row["sentence_id"])
        if key in found:
            tally.add("second prediction for a sentence", key)
        elif key not in asked:
            tally.add("prediction for an unknown sentence", key)
        else:
            found[key] = _boxes(row["boxes"], len(asked[key].phrases), f"{file}: {key}", tally)
    missing = [key for key in asked if key not in found]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(asked)} sentences have no prediction, such as {missing[0]}: give one for "
            "every sentence that has a phrase with a box"
        )
    return [found[key] for key in asked]


def _key(image: Any, sentence: Any) -> str:
    """The official evaluator compares ids as text, so that "3" is 3."""
    return f"sentence {str(sentence)[:40]} of image {str(image)[:40]}"


def _boxes(value: Any, phrases: int, place: str, tally: SkipCounter) -> Boxes:
    if not isinstance(value, list) or len(value) != phrases:
        count = len(value) if isinstance(value, list) else "no"
        raise DataError(
            f"{place}: lists of boxes for {count} phrases, but {phrases} of its phrases have a box: give one list for "
            "each of these, in the order of the text"
        )
    return tuple(_ranked(ranked, f"{place}, phrase {number}", tally) for number, ranked in enumerate(value))


def _ranked(value: Any, place: str, tally: SkipCounter) -> Float[Tensor, "rank 4"]:
    if value == []:
        raise DataError(f"{place}: no box; where nothing was found, give the box [0, 0, 0, 0]")
    try:
        boxes = np.array(value)
    except ValueError:  # lists of different lengths
        boxes = np.empty(0)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "if" or not np.isfinite(boxes).all():
        raise DataError(f"{place}: {str(value)[:60]} is no list of boxes: give four finite numbers x1, y1, x2, y2 each")
    negative = int((boxes[:, 2:] < boxes[:, :2]).any(1).sum())
    if negative:
        tally.add("box of negative size", place, negative)
    return torch.from_numpy(boxes.astype(np.float64))
