"""The figures of docs/model_card.md: AP, intervals, false positives and recall of a model on small sets and drawings.

    python tools/measure_sets.py --model glip-nano --data DATA [--sets bccd world_novel ...] [--split test]

A set is a name of configs/datasets.yaml, SET_SPLIT for those in splits. Sets of captions have a table of their own.
tools/draw_world.py writes the drawn ones (docs/data.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import Row, table

import glip
from glip.data.caption import foreign_names
from glip.data.catalog import find_set, known_sets, read_set
from glip.data.sets import SkipCounter
from glip.evaluate.benchmark import seen_in
from glip.evaluate.coco import average_precision
from glip.evaluate.columns import to_arrays
from glip.evaluate.false_positives import FalsePositives, false_positives
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.evaluate.validate import evenly_spaced
from glip.structures import Sample

SMALL = ("bccd", "chess_pieces", "playing_cards", "raccoon", "rabbits", "pothole")
DRAWN = ("world_seen", "world_novel", "world_seen_captions", "world_novel_captions")


def main() -> None:
    """Print a row for each set, then the captions'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="glip-nano")
    parser.add_argument("--data", type=Path, default=None, help="the data root (default: GLIP_DATA)")
    parser.add_argument("--sets", nargs="+", default=(*SMALL, "coco_mini", *DRAWN), metavar="SET")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=10**9, help="of each set at most (default: all)")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
    args = parser.parse_args()
    detector = glip.Detector.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    others = [name for small in SMALL for name in read_set(find_set(f"{small}_{args.split}"), args.data).vocabulary]
    threshold, tally = detector.config.inference.threshold, SkipCounter()
    boxes, captions = list[Row](), list[Row]()
    for name in args.sets:
        full = name if name in known_sets(args.data) else f"{name}_{args.split}"
        samples = evenly_spaced(read_set(find_set(full), args.data).samples, args.images)
        pairs = list(detect_all(detector, samples, tally=tally))
        seen = {"seen in training": seen_as(full, detector)}
        if any(sample.prompt is not None for sample, _ in pairs):
            recall = phrase_recall(pairs)
            at = {f"recall@{rank}": f"{value:.3f}" for rank, value in recall.at.items()}
            captions.append({"captions": full, "phrases": recall.phrases, **at, **seen})
            continue
        score = average_precision(pairs)
        ends = score.interval()
        strange = detect_all(detector, with_foreign_names(samples, others), tally=tally)
        row: Row = {"set": full, "images": score.images, "AP50": f"{score.ap50:.3f}"}
        row |= {"95 % interval": f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–", "AP": f"{score.ap:.3f}"}
        row["own absent names"] = rates(false_positives(*to_arrays(pairs)), threshold)
        boxes.append({**row, "names of other sets": rates(false_positives(*to_arrays(strange)), threshold), **seen})
    print(f"False positives: images (class names) with a detection of at least {threshold:g} for an absent class.\n")
    print("\n\n".join("\n".join(table(rows)) for rows in (boxes, captions) if rows))
    print(f"\nLeft out: {tally or 'nothing'}")


def with_foreign_names(samples: Sequence[Sample], others: Sequence[str]) -> list[Sample]:
    """The same images with the names of other sets, none of which is there: they share no word with its own."""
    own = sorted({name for sample in samples for name in sample.vocabulary})
    strange = foreign_names(own, others)
    empty = torch.empty(0, 4)
    found = [Sample(sample.image, empty, (), vocabulary=strange, image_id=sample.image_id) for sample in samples]
    return found if strange else []


def rates(found: FalsePositives | None, threshold: float) -> str:
    """Share of the images, and of the (image, absent name) pairs, with a false positive."""
    return f"{found.image_rate(threshold):.2f} ({found.rate(threshold):.3f})" if found else "-"


def seen_as(name: str, detector: glip.Detector) -> str:
    """What the model's config says of the set's other images."""
    if not seen_in(detector.config.trained_on, name):
        return "no"
    if name.startswith("world"):
        return "yes, other combinations" if "novel" in name else "yes, other drawings"
    return "yes, its train split"


if __name__ == "__main__":
    main()
