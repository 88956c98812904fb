"""What large inputs and long runs cost: time, memory over the run, file handles, and whether the result is right.

    python tools/load.py [--only label select catalogue lvis train] [--share 1.0] [--work FOLDER]

Inputs are drawn at random: 100,000 captions in 200 shards, labels with 10 M boxes, a COCO file of 2 M annotations,
results of the size of LVIS val, 2,000 steps of training whose loader workers are killed. ``--share`` makes all of them
smaller. Each part runs in a process of its own and prints a row of a Markdown table. The figures are in
docs/reliability.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARDS, CAPTIONS, IMAGES = 200, 100_000, 2_000
BOXES, PER_PAIR = 10_000_000, 50
ANNOTATIONS, PER_IMAGE, CATEGORIES = 2_000_000, 20, 365
LVIS_IMAGES, LVIS_DETECTIONS = 19_809, 300
STEPS, KILL_EVERY = 2_000, 20.0  # seconds between two kills of a loader worker
KINDS = ("circle", "star", "square", "heart", "car", "cup", "house", "tree", "key", "dog", "cat", "boat")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "pink", "brown")
PLACES = ("beside", "under", "on", "behind", "near", "in front of")


def main() -> None:
    """Run the parts, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="size of the inputs, as a share of the full ones")
    parser.add_argument("--work", type=Path, help="folder of inputs and outputs, kept (default: a temporary one)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in the process of one part
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args.work, args.share)))
        return
    work = args.work or Path(tempfile.mkdtemp())
    print("| part | measured | bounds |\n|---|---|---|")
    failed = False
    for part in args.only:
        command = [sys.executable, __file__, "--part", part, "--work", work / part, "--share", args.share]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"broken": [f"exit {done.returncode}"]}
        broken = found.pop("broken")
        failed |= bool(broken)
        print(f"| {part} | {'; '.join(f'{key} {value}' for key, value in found.items())} | "
              f"{', '.join(broken) or 'kept'} |", flush=True)
    if not args.work:
        shutil.rmtree(work)
    sys.exit(failed)


class Watch:
    """The memory (MB, resident) and the open files of this process, noted every ``seconds``."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.rows: list[tuple[float, float, int]] = []
        self.began, self.seconds, self.ended = time.monotonic(), seconds, threading.Event()

    def __enter__(self) -> "Watch":
        self.thread = threading.Thread(target=self._note, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.wall = time.monotonic() - self.began

    def _note(self) -> None:
        while not self.ended.wait(self.seconds):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            self.rows.append((time.monotonic() - self.began, memory, len(os.listdir("/proc/self/fd"))))

    def late(self, column: int) -> list[float]:
        """A column without the first quarter, in which caches fill."""
        return [row[column] for row in self.rows[len(self.rows) // 4 :]]

    @property
    def peak(self) -> float:
        """The most memory, in GB."""
        return round(max(row[1] for row in self.rows) / 1000, 2)

    @property
    def growth(self) -> float:
        """MB per hour by a line through the last three quarters of the run."""
        return round(linear_regression(self.late(0), self.late(1)).slope * 3600, 1)

    def drift(self) -> float:
        """How much higher the memory of the last quarter is than that of the one before the middle, as a share."""
        quarter = len(self.rows) // 4
        memory = [row[1] for row in self.rows]
        return round(mean(memory[-quarter:]) / mean(memory[quarter : 2 * quarter]) - 1, 3)


# ---- the parts


def label(work: Path, share: float) -> dict[str, Any]:
    """Label generated captions in shards with a teacher that sees 32 pixels."""
    from PIL import Image

    from glip.config import LabelConfig
    from glip.pseudo.label import find_captions
    from glip.pseudo.run import run_labelling

    captions, images, draw = work / "captions", work / "images", random.Random(0)
    shutil.rmtree(work, ignore_errors=True)
    captions.mkdir(parents=True), images.mkdir()
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((32, 32), Image.Resampling.NEAREST).save(images / f"{number}.png")
    per_shard = max(1, int(CAPTIONS * share) // SHARDS)
    for shard in range(SHARDS):
        rows = [
            {"image": f"{number}.png", "caption": _caption(draw, shard * per_shard + place)}
            for place, number in enumerate(draw.sample(range(IMAGES), per_shard))
        ]
        (captions / f"{shard:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = find_captions(str(captions), [str(images)], None)
    config = LabelConfig(threshold=0.3, max_detections=10, batch_size=16, min_bytes=0, min_side=0, same_image=-1)
    with Watch() as watch:
        report = run_labelling(entry, _teacher(work / "teacher"), config, work / "labels", device="cpu", say=_quiet)
    walls = [json.loads((work / "labels" / f"{n:05d}.report.json").read_text())["wall"] for n in range(SHARDS)]
    halves = [mean(walls[SHARDS // 4 : SHARDS // 2]), mean(walls[-SHARDS // 4 :])]
    rate, pairs, lines = per_shard / mean(walls), per_shard * SHARDS, _lines(work / "labels")
    broken = [f"{lines} labels of {pairs} pairs"] * (not lines == report["kept"] == report["pairs"] == pairs)
    broken += [f"{rate:.0f} captions/s"] * (rate < 200) + ["memory grows"] * (watch.drift() > 0.05)
    broken += ["shards become slower"] * (halves[1] > 1.25 * halves[0])
    return {
        "captions": pairs, "shards": SHARDS, "captions/s": round(rate), "peak GB": watch.peak,
        "memory, last quarter against second": f"{watch.drift():+.1%}",
        "time per pair, last quarter against second": f"{halves[1] / halves[0] - 1:+.1%}",
        "boxes": report["boxes"], "seconds by stage": report["seconds"], "broken": broken,
    }  # fmt: skip


def _caption(draw: random.Random, number: int) -> str:
    things = [f"{draw.choice(COLOURS)} {draw.choice(KINDS)}" for _ in range(draw.randint(2, 4))]
    return f" {draw.choice(PLACES)} ".join(f"a {thing}" for thing in things) + f" number {number}"


def _teacher(folder: Path) -> Path:
    import torch

    from glip.model.glip import build
    from glip.model.weights import ASSETS, BUNDLED, save_pretrained
    from glip.train.start import load_config

    config = load_config("tiny").model
    config = replace(
        config,
        vision=replace(config.vision, widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2)),
        language=replace(config.language, hidden=64, layers=1, heads=1, intermediate=64),
        head=replace(config.head, channels=16, blocks=1, fusion_width=32, fusion_heads=2),
        image=replace(config.image, min_size=32, max_size=32),
    )
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        model.tokens.bias.fill_(0.0)
    save_pretrained(folder, model, config, ASSETS / BUNDLED)
    return folder


def _lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("?????.jsonl"))


def _quiet(_: str) -> None:
    """Print nothing: the table is printed at the end."""


PARTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {"label": label}

if __name__ == "__main__":
    main()
