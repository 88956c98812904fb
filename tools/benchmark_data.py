"""What labelling, noun phrases and scoring cost: benchmarks of ``benchmark.py``."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import measuring
import numpy as np
from measuring import peak_gb

from glip.config import LabelConfig, SelectConfig

CAPTIONS = {  # and their noun phrases
    "a man in a red shirt rides a brown horse": ("a man", "a red shirt", "a brown horse"),
    "two dogs play on the green grass near a fence": ("two dogs", "the green grass", "a fence"),
    "a woman sits on a bench with a blue umbrella": ("a woman", "a bench", "a blue umbrella"),
    "a cat sleeps on a small table next to a lamp": ("a cat", "a small table", "a lamp"),
    "several people stand in front of a large white bus": ("several people", "a large white bus"),
}


def labelling(args: argparse.Namespace) -> None:
    """Images per second of `glip label` by stage, five captions of an image against one; a million boxes selected."""
    with tempfile.TemporaryDirectory() as folder:
        config = LabelConfig(threads=args.threads, together=args.together, max_repeats=0)
        best = label_times(Path(folder), args.model, config, args.images, args.rounds)
        for count, spent in best.items():
            wall = spent["wall"]
            stages = ", ".join(f"{stage} {seconds / wall:.1%}" for stage, seconds in spent.items() if stage != "wall")
            print(f"{count} captions: {args.images / wall:.2f} images/s with {args.threads} threads; {stages}")
        print("bar: detect 85.0% at least")
        print(f"five captions cost {best[5]['wall'] / best[1]['wall']:.2f} times one (bar 2.5)")
        select_boxes(Path(folder) / "stored", args.boxes)


def label_times(
    folder: Path, model: str, config: LabelConfig, images: int, rounds: int, device: str | None = None
) -> dict[int, dict[str, float]]:
    """Seconds of each stage and in all ("wall") of the fastest round, by captions per image: one and five."""
    from glip.pseudo.label import Labeller, find_captions, find_shards

    names = [file.name for file in measuring.write_photos(folder / "images", images)]
    labeller = Labeller(model, config, folder / "out", device)
    best: dict[int, dict[str, float]] = {}
    for number in range(rounds):
        for count in (1, 5):
            file = folder / f"{count}-{number}.jsonl"
            file.write_text("".join(json.dumps({"image": n, "captions": list(CAPTIONS)[:count]}) + "\n" for n in names))
            [shard] = find_shards(find_captions(str(file), [str(folder / "images")], None), 10**6)
            report = labeller(shard)
            assert report["kept"] == count * images, report
            if count not in best or report["wall"] < best[count]["wall"]:
                best[count] = {"wall": report["wall"], **report["seconds"]}
    return best


def select_boxes(folder: Path, boxes: int) -> None:
    """Select from a million boxes with every rule on."""
    from glip.pseudo.select import select
    from glip.pseudo.store import write_shard

    rng, per_row, per_shard = np.random.default_rng(0), 20, 10_000
    folder.mkdir()
    for shard in range(max(1, boxes // (per_row * per_shard))):
        rows = [stored_row(rng, per_row) for _ in range(per_shard)]
        write_shard(folder, f"{shard:05d}", "jsonl", rows, {})
    config = SelectConfig(
        min_score=0.3, min_best_score=0.5, min_box_side=4, max_box_area=0.95, nms=0.6, nms_across=0.9, max_per_phrase=5
    )
    began = time.perf_counter()
    found = select(folder, folder / "selected.jsonl", config)
    seconds = time.perf_counter() - began
    print(f"selection: {found.boxes:,} boxes in {seconds:.1f} s, {found.kept_boxes:,} kept (bar 20 s)")


def stored_row(rng: np.random.Generator, count: int) -> dict[str, object]:
    """A labelled caption with boxes here and there, most of low score as a teacher's are."""
    corners, sides = rng.uniform(0, 400, (count, 2)), rng.uniform(2, 200, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).round(2).tolist()
    scores, phrases = (0.1 + 0.85 * rng.beta(0.7, 2.0, count)).round(4).tolist(), rng.integers(0, 3, count).tolist()
    image = {"image": f"{int(rng.integers(10**8)):09d}.jpg", "id": 0, "width": 640, "height": 480}
    texts = [{"text": text, "spans": [[0, 1]]} for text in ("man", "red shirt", "brown horse")]
    stored = [{"box": b, "phrases": [p], "score": s} for b, p, s in zip(boxes, phrases, scores, strict=True)]
    return {**image, "caption": next(iter(CAPTIONS)), "phrases": texts, "boxes": stored}


def phrases(args: argparse.Namespace) -> None:
    """Captions per second in which one core finds the noun phrases."""
    from glip.text.phrases import PhraseFinder

    captions = args.captions.read_text(encoding="utf-8").splitlines()
    start = time.perf_counter()
    find = PhraseFinder(args.pipeline)
    print(f"loaded in {time.perf_counter() - start:.2f} s, spaCy's import included")
    find.many(captions[:500])
    for _ in range(args.rounds):
        start, busy = time.perf_counter(), time.process_time()
        count = sum(map(len, find.many(captions)))
        wall, busy = time.perf_counter() - start, time.process_time() - busy
        rates = f"{len(captions) / wall:.0f} captions/s, {len(captions) / busy:.0f} per second of a core"
        print(f"{len(captions)} captions, {count} phrases: {rates}")


def scoring(args: argparse.Namespace) -> None:
    """Standard AP and Fixed AP of random results on as many images and categories as LVIS val has."""
    from random_lvis import random_lvis

    from glip.evaluate.lvis import fixed_ap, standard_ap

    truth, results = random_lvis(np.random.default_rng(args.seed), args.images, args.detections)
    sizes = f"{len(truth.images)} images, {len(truth.categories)} categories, {len(truth.boxes.areas)} boxes"
    print(f"{sizes}, {len(results)} results: {peak_gb():.2f} GB")
    for name, score in (("standard AP", standard_ap), ("Fixed AP", fixed_ap)):
        start, busy = time.perf_counter(), time.process_time()
        figures = score(truth, results)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        counted = sum(row["detections"] for row in figures.categories)
        cost = f"{seconds:7.1f} s ({busy:.1f} s of a core), peak {peak_gb():.2f} GB"
        print(f"{name:<12} {cost}, AP {figures.ap:.4f}, {counted} results count")


def pairs(args: argparse.Namespace) -> None:
    """SA-Co's figures of random pairs of image and phrase, as three annotators see them; bar: 10,000 in 60 s."""
    from random_lvis import draw_boxes

    from glip.evaluate.columns import Boxes, Results
    from glip.evaluate.saco import PairTruth, score_pairs

    rng, count = np.random.default_rng(args.seed), args.images
    there = np.repeat(np.arange(count), rng.integers(0, 12, count) * (rng.random(count) < 0.5))
    seen = np.repeat(np.arange(count), args.detections)
    drawn = draw_boxes(rng, len(there)) / 2000
    nothing, none = np.zeros(len(there), dtype=int), np.zeros(len(there), dtype=bool)
    views = [drawn * rng.uniform(0.95, 1.05, drawn.shape) for _ in range(3)]
    annotators = tuple(Boxes(there, nothing, one, one[:, 2] * one[:, 3], none) for one in views)
    owners = tuple(range(count))
    truth = PairTruth(
        owners, (1,), ("object",), annotators[0], annotators=annotators, counted=np.ones(count, dtype=bool)
    )
    found = Results(seen, np.zeros_like(seen), draw_boxes(rng, len(seen)) / 2000, rng.uniform(0.3, 1.0, len(seen)))
    start, busy = time.perf_counter(), time.process_time()
    figures, _ = score_pairs(truth, found)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    sizes = f"{count} pairs, {len(there)} boxes, {len(seen)} detections"
    print(f"{sizes}: {seconds:.1f} s ({busy:.1f} s of a core; bar: 60), IL_MCC {figures['IL_MCC']:.3f}")
