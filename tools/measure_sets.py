"""The figures of docs/model_card.md: AP, intervals, false alarms and recall of a model on the small sets and drawings.

    python tools/measure_sets.py --model glip-nano --data DATA [--sets bccd world_novel ...] [--split test]

A set is a name of configs/datasets.yaml, SET_SPLIT for those in splits. Sets of captions have a table of their own.
tools/draw_world.py writes the drawn ones (docs/data.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import glip
from glip.data.caption import foreign_names
from glip.data.catalog import find_set, known_sets, read_set
from glip.data.sets import SkipCounter
from glip.evaluate.benchmark import seen_in
from glip.evaluate.coco import average_precision
from glip.evaluate.false_positives import FalsePositives, false_positives_of
from glip.evaluate.phrases import PhraseRecall, phrase_recall
from glip.evaluate.run import detect_all
from glip.evaluate.validate import evenly_spaced
from glip.structures import Detections, Sample

SMALL = ("bccd", "chess_pieces", "playing_cards", "raccoon", "rabbits", "pothole")
DRAWN = ("world_seen", "world_novel")
CAPTIONS = ("world_seen_captions", "world_novel_captions")
SETS = (*SMALL, "coco_mini", *DRAWN, *CAPTIONS)


def main() -> None:
    """Print a row for each set, then the captions'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="glip-nano")
    parser.add_argument("--data", type=Path, default=None, help="the data root (default: GLIP_DATA)")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="SET")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=10**9, help="of each set at most (default: all)")
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    detector = glip.Detector.from_pretrained(args.model, device=args.device)
    others = [name for small in SMALL for name in read_set(find_set(f"{small}_{args.split}"), args.data).vocabulary]
    threshold, tally = detector.config.inference.threshold, SkipCounter()
    print(f"False alarms: images (names) with a detection of at least {threshold:g} for a name that is not there.\n")
    print("| set | images | AP50 | 95 % interval | AP | own absent names | names of other sets | seen in training |")
    print("|---|---|---|---|---|---|---|---|")
    recalls: dict[str, PhraseRecall] = {}
    for name in args.sets:
        full = name if name in known_sets(args.data) else f"{name}_{args.split}"
        samples = evenly_spaced(read_set(find_set(full), args.data).samples, args.images)
        pairs = found(detector, samples, full, tally)
        if any(sample.prompt is not None for sample, _ in pairs):
            recalls[full] = phrase_recall(pairs)
            continue
        score = average_precision(pairs)
        ends = score.interval()
        interval = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"
        own = alarms(false_positives_of(pairs), threshold)
        strange = alarms(
            false_positives_of(found(detector, asked(samples, others), f"{full}, strange names", tally)), threshold
        )
        figures = f"{score.ap50:.3f} | {interval} | {score.ap:.3f} | {own} | {strange}"
        print(f"| {full} | {score.images} | {figures} | {seen(full, detector)} |")
    print("\n| captions | phrases | recall@1 | recall@5 | recall@10 | seen in training |\n|---|---|---|---|---|---|")
    for full, recall in recalls.items():
        figures = " | ".join(f"{value:.3f}" for value in recall.at.values())
        print(f"| {full} | {recall.phrases} | {figures} | {seen(full, detector)} |")
    print(f"\nLeft out: {tally or 'nothing'}")


def found(
    detector: "glip.Detector", samples: Sequence[Sample], title: str, tally: SkipCounter
) -> list[tuple[Sample, Detections]]:
    """What the model finds in every image of a set."""
    return list(tqdm(detect_all(detector, samples, tally=tally), desc=title, total=len(samples), leave=False))


def asked(samples: Sequence[Sample], others: Sequence[str]) -> list[Sample]:
    """The same images asked for names of other sets, none of which is there: they share no word with its own."""
    own = sorted({name for sample in samples for name in sample.vocabulary})
    strange = foreign_names(own, others)
    bare = torch.empty(0, 4)
    if not strange:
        return []
    return [Sample(sample.image, bare, (), vocabulary=strange, image_id=sample.image_id) for sample in samples]


def alarms(found: FalsePositives | None, threshold: float) -> str:
    """Share of the images, and of the (image, absent name) pairs, with a false alarm."""
    if found is None:
        return "-"
    return f"{found.image_rate(threshold):.2f} ({found.rate(threshold):.3f})"


def seen(name: str, detector: "glip.Detector") -> str:
    """What the model's config says of the set's other images."""
    if not seen_in(detector.config.trained_on, name):
        return "no"
    if name.startswith("world"):
        return "yes, other combinations" if "novel" in name else "yes, other drawings"
    return "yes, its train split"


if __name__ == "__main__":
    main()
