"""A long vocabulary on one image: GLIP-T (C), its image encoded once, against as many full passes as chunks.

    python tools/benchmark_vocabulary.py lvis_v1_categories.json [--threads 2] [--device cpu] [--rounds 2] [--check]

The json is LVIS's annotations or a list of its categories. One full pass is that of transformers' Grounding DINO-T with
195 tokens; weights are random, nothing is downloaded. Not a timed test. ``--check`` also runs GLIP-T as the release
does, image and text anew for every chunk, and compares what is found.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from benchmark import clock, theirs
from PIL import Image

import glip
from glip.model.glip import build
from glip.model.weights import ASSETS
from glip.text.prompt import clean_name
from glip.text.tokens import Tokenizer

PASSES = 31  # of 1,203 names, 40 at once
BARS = {40: 0.36, None: 0.24}  # ours / (PASSES full passes), by names in a chunk; None: as many as fit
KEPT = 300  # detections of a chunk


def main() -> None:
    """Time both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("categories", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1066], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=1, help="chunks computed at once")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tree = json.loads(args.categories.read_text())
    records = tree["categories"] if isinstance(tree, dict) else tree
    names = [clean_name(record["name"]) for record in sorted(records, key=lambda record: record["id"])]
    detector, image = glip_t(args), Image.effect_noise((args.size[1], args.size[0]), 64).convert("RGB")
    with torch.no_grad():
        full, _ = theirs(80, args)
        clock(args.device, full)  # warm-up
        passes, ours = [], {chunk: list[float]() for chunk in BARS}
        for _ in range(args.rounds):
            passes.append(clock(args.device, full))
            for chunk, times in ours.items():
                times.append(clock(args.device, lambda chunk=chunk: shared(detector, image, names, chunk, args)))  # type: ignore[misc]
    one = statistics.median(passes)
    print(f"{len(names)} names, {args.size}, {args.threads} threads: a full pass of Grounding DINO-T {one:.2f} s")
    for chunk, times in ours.items():
        seconds, rows = statistics.median(times), len(detector.encode_text(names, max_names=chunk).chunks[0])
        how = f"{rows} chunks of {chunk or 'as many names as fit'}"
        print(f"{how}: {seconds:.1f} s, ratio to {PASSES} passes {seconds / PASSES / one:.3f} (bar {BARS[chunk]})")
    if args.check:
        compare(detector, image, names, args)


def glip_t(args: argparse.Namespace) -> "glip.Detector":
    """GLIP-T (C) with random weights whose scores pass the threshold of candidates."""
    config = glip.load_config("glip_t_c").model
    detector = glip.Detector(build(config), config, Tokenizer(ASSETS / "glip-nano"), args.device)
    detector.processor.min_size, detector.processor.max_size = min(args.size), max(args.size)
    return detector


def shared(detector: "glip.Detector", image: Image.Image, names: list[str], chunk: int | None, args: Any) -> Any:
    """The image once, the text once, then the chunks."""
    text = detector.encode_text(names, max_names=chunk)
    return detector.ground(
        detector.encode_image(image),
        text,
        threshold=0.0,
        max_detections=0,
        chunk_detections=KEPT,
        batch_size=args.batch_size,
    )[0]


def compare(detector: "glip.Detector", image: Image.Image, names: list[str], args: Any) -> None:
    """As the release does it, every chunk from the image on; the largest difference of scores and boxes."""
    found = shared(detector, image, names, 40, args)
    worst, count = 0.0, 0
    for first in range(0, len(names), 40):
        alone = detector(image, names[first : first + 40], threshold=0.0, max_detections=KEPT)
        own = found.select((found.labels >= first) & (found.labels < first + 40))
        if not torch.equal(own.labels - first, alone.labels):
            raise SystemExit(f"chunk {first // 40}: other detections")
        count += len(alone)
        worst = max([worst, *(own.boxes - alone.boxes).abs().flatten().tolist()])
        worst = max([worst, *(own.scores - alone.scores).abs().tolist()])
    print(f"the unshared path finds the same {count} detections; largest difference {worst:.2g}")


if __name__ == "__main__":
    main()
