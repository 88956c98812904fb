"""AP of a model on the test splits of the small sets, with bootstrap intervals: the figures of docs/model_card.md.

    python tools/measure_sets.py --model glip-nano --data DATA [--sets bccd chess_pieces ...] [--split test]

A set is a folder DATA/SET with images/ and annotations/instances_SPLIT.json; its category names are the prompt.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

import glip

SETS = ("bccd", "chess_pieces", "playing_cards", "raccoon", "rabbits", "pothole", "coco_mini")
ROUNDS = 300


def main() -> None:
    """Print a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="glip-nano")
    parser.add_argument("--data", type=Path, required=True, help="the data root")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    detector = glip.Detector.from_pretrained(args.model, device=args.device)
    print(f"{'set':<14} {'split':<6} pictures  AP50  [95 % interval]    AP  seen in training")
    for name in args.sets:
        evaluator = evaluate(detector, args.data / name, args.split)
        precision, precision50 = scores(evaluator)
        low, high = interval(evaluator)
        seen = "yes (train split)" if name in detector.config.trained_on else "no"
        count = len(evaluator.params.imgIds)
        print(
            f"{name:<14} {args.split:<6} {count:8d}  {precision50:.3f} [{low:.3f}, {high:.3f}]  {precision:.3f}  {seen}"
        )


def evaluate(detector: "glip.Detector", folder: Path, split: str) -> COCOeval:
    """Detect on every picture of a split and match with its boxes."""
    path = folder / "annotations" / f"instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
    categories = sorted(json.loads(path.read_text())["categories"], key=lambda category: category["id"])
    prompt = glip.Prompt.from_names([category["name"] for category in categories])
    text = detector.encode_text(prompt)
    results = []
    for image in tqdm(truth.dataset["images"], desc=folder.name, leave=False):
        encoded = detector.encode_image(folder / "images" / image["file_name"])
        [found] = detector.ground(encoded, text, threshold=0.0)
        for box, score, label, _ in found:
            x1, y1, x2, y2 = box
            row = {"image_id": image["id"], "category_id": categories[label]["id"], "score": score}
            results.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def scores(evaluator: COCOeval) -> tuple[float, float]:
    """AP over IoU 0.5..0.95 and AP at 0.5, all areas, 100 boxes; mean over the categories that occur."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return mean_of_valid(precision), mean_of_valid(precision[0])


def mean_of_valid(precision: np.ndarray) -> float:
    """Mean, where -1 marks a category without boxes."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


def interval(evaluator: COCOeval) -> tuple[float, float]:
    """95 % interval of AP50 over resampled pictures."""
    random = np.random.default_rng(0)
    pictures, areas = len(evaluator.params.imgIds), len(evaluator.params.areaRng)
    whole = np.array(evaluator.evalImgs, dtype=object).reshape(-1, areas, pictures)[:, :1]  # all areas only
    evaluator._paramsEval.areaRng = evaluator.params.areaRng = evaluator.params.areaRng[:1]
    found = []
    for _ in tqdm(range(ROUNDS), desc="bootstrap", leave=False):
        evaluator.evalImgs = whole[:, :, random.integers(pictures, size=pictures)].flatten().tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate()
        found.append(scores(evaluator)[1])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
