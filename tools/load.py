"""What large inputs and long runs cost: time, memory over the run, file handles, and whether the result is right.

    python tools/load.py [--only label select catalogue lvis train] [--share 1.0] [--work FOLDER]

Inputs are drawn at random: 100,000 captions in 200 shards, labels with 10 M boxes, a COCO file of 2 M annotations,
results of the size of LVIS val, 2,000 steps of training whose loader workers are killed. ``--share`` makes all of them
smaller. Each part runs in a process of its own and prints a row of a Markdown table. The figures are in
docs/reliability.md.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
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
STEPS, KILL_EVERY = 2_000, 80  # steps between two kills of a loader worker
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
        found = (
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {"broken": [f"exit {done.returncode}"]}
        )
        broken = found.pop("broken")
        failed |= bool(broken)
        print(
            f"| {part} | {'; '.join(f'{key} {value}' for key, value in found.items())} | "
            f"{', '.join(broken) or 'kept'} |",
            flush=True,
        )
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
    captions.mkdir(parents=True)
    images.mkdir()
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
    teacher, ends = _teacher(work / "teacher"), list[float]()  # seconds of the processor at the end of each shard
    note = lambda line: ends.append(time.process_time())  # noqa: E731
    with Watch() as watch:
        report = run_labelling(entry, teacher, config, work / "labels", device="cpu", say=note)
    spent = np.diff(ends).tolist()
    second, last = mean(spent[SHARDS // 4 : SHARDS // 2]), mean(spent[-SHARDS // 4 :])
    rate, pairs, lines = per_shard / mean(spent), per_shard * SHARDS, _lines(work / "labels")
    broken = [f"{lines} labels of {pairs} pairs"] * (not lines == report["kept"] == report["pairs"] == pairs)
    broken += [f"{rate:.0f} captions/s"] * (rate < 200) + ["memory grows"] * (watch.drift() > 0.05)
    broken += ["shards become slower"] * (last > 1.2 * second)
    return {
        "captions": pairs, "shards": SHARDS, "captions per CPU second": round(rate),
        "captions/s": round(pairs / watch.wall), "peak GB": watch.peak,
        "memory, last quarter against second": f"{watch.drift():+.1%}",
        "CPU time per pair, last quarter against second": f"{last / second - 1:+.1%}",
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


def select(work: Path, share: float) -> dict[str, Any]:
    """Select from labels of 10 M boxes."""
    from glip.config import SelectConfig
    from glip.pseudo.select import select as select_labels
    from glip.pseudo.store import write_shard

    draw, shards = np.random.default_rng(0), 100
    pairs = int(BOXES * share) // PER_PAIR // shards
    for shard in range(shards):
        rows = []
        for number in range(pairs):
            corners = np.sort(draw.uniform(0, 400, (PER_PAIR, 2, 2)), axis=1).reshape(PER_PAIR, 4).round(2).tolist()
            scores = draw.random(PER_PAIR).round(4).tolist()
            boxes = [
                {"box": box, "phrases": [place % 2], "score": score}
                for place, (box, score) in enumerate(zip(corners, scores, strict=True))
            ]
            phrases = [{"text": "dog", "spans": [[2, 5]]}, {"text": "cat", "spans": [[12, 15]]}]
            row = {"image": f"{shard}/{number}.jpg", "id": f"{shard}-{number}", "width": 400, "height": 400}
            rows.append({**row, "caption": "a dog and a cat", "phrases": phrases, "boxes": boxes})
        write_shard(work, f"{shard:05d}", "jsonl", rows, {})
    del rows
    with Watch() as watch:
        found = select_labels(work, work / "selected.jsonl", SelectConfig(min_score=0.5, nms=0.5))
    right = found.boxes == pairs * shards * PER_PAIR == found.kept_boxes + found.dropped_boxes.total()
    shutil.rmtree(work)
    broken = ["memory above 2 GB"] * (watch.peak > 2) + ["boxes are missing"] * (not right)
    rate = round(found.boxes / watch.wall)
    return {"boxes": found.boxes, "kept": found.kept_boxes, "seconds": round(watch.wall), "boxes/s": rate,
            "peak GB": watch.peak, "broken": broken}  # fmt: skip


def catalogue(work: Path, share: float) -> dict[str, Any]:
    """Read, check and sample a COCO file of 2 M annotations, the size of Objects365."""
    from glip.data.catalog import find_set, read_set
    from glip.data.check import check
    from glip.model.weights import ASSETS, BUNDLED

    work.mkdir(parents=True, exist_ok=True)
    draw, count = np.random.default_rng(0), int(ANNOTATIONS * share)
    images = count // PER_IMAGE
    sides = draw.uniform(5, 200, (count, 4)).round(2).tolist()
    labels = draw.integers(1, CATEGORIES + 1, count).tolist()
    file = work / "large.json"
    with file.open("w") as out:
        tree = {"categories": [{"id": label + 1, "name": f"thing {label}"} for label in range(CATEGORIES)]}
        tree["images"] = [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(images)]
        out.write(json.dumps(tree)[:-1] + ', "annotations": [')
        for number, (box, label) in enumerate(zip(sides, labels, strict=True)):
            row = {"id": number, "image_id": number // PER_IMAGE, "category_id": label, "bbox": box, "iscrowd": 0}
            out.write("," * (number > 0) + json.dumps(row))
        out.write("]}")
    del sides, labels, tree
    seconds = dict[str, float]()
    with Watch() as watch:
        began = time.monotonic()
        found = read_set(find_set(str(file)))
        seconds["read"] = time.monotonic() - began
        began = time.monotonic()
        boxes = sum(len(found.samples[index].boxes) for index in random.Random(0).sample(range(images), images))
        seconds["every sample, shuffled"] = time.monotonic() - began
        began = time.monotonic()
        check(found, tokenizer=ASSETS / BUNDLED, decode=False)
        seconds["check"] = time.monotonic() - began
    size = round(file.stat().st_size / 1e6)
    shutil.rmtree(work)
    return {"annotations": count, "images": images, "file MB": size,
            **{f"{name}, s": round(spent) for name, spent in seconds.items()}, "peak GB": watch.peak,
            "broken": ["boxes are missing"] * (boxes != count)}  # fmt: skip


def lvis(_: Path, share: float) -> dict[str, Any]:
    """Score results of the size of LVIS val."""
    from random_lvis import random_lvis

    from glip.evaluate.lvis import fixed_ap, standard_ap

    truth, results = random_lvis(np.random.default_rng(0), int(LVIS_IMAGES * share), LVIS_DETECTIONS)
    found, seconds = dict[str, Any](), dict[str, int]()
    with Watch() as watch:
        for score in (standard_ap, fixed_ap):
            began = time.monotonic()
            found[score.__name__] = score(truth, results)
            seconds[score.__name__] = round(time.monotonic() - began)
    return {"images": len(truth.images), "detections": len(results), "seconds": seconds,
            "peak GB": watch.peak, "broken": []}  # fmt: skip


def train(work: Path, share: float) -> dict[str, Any]:
    """Train with validation, EMA and TensorBoard while loader workers are killed, and without kills to compare."""
    import small_inputs

    shutil.rmtree(work, ignore_errors=True)
    small_inputs.make(work)
    (killed, measured), (whole, _) = (_train(work, name, int(STEPS * share)) for name in ("killed", "whole"))
    same = len(killed) == len(whole) and all(
        one.get(key) == other.get(key)
        for one, other in zip(killed, whole, strict=True)
        for key in ("step", "loss", "gradient_norm", "validation")
    )
    second, last = measured.pop("open files, second and last quarter")
    broken = ["losses differ"] * (not same) + ["memory grows"] * (measured.pop("drift") > 0.03)
    broken += ["file handles are left open"] * (last > second)
    return {**measured, "open files": f"{second:.1f}, then {last:.1f}", "the same losses": same, "broken": broken}


def _train(work: Path, name: str, steps: int) -> tuple[list[Any], dict[str, Any]]:
    """The rows of metrics.jsonl, and what was measured; of the run named "killed" workers are killed."""
    from glip.data.catalog import read_set
    from glip.data.mixture import resolve
    from glip.evaluate.validate import Validator
    from glip.train.run import run
    from glip.train.start import load_config

    output, every = work / name, max(1, steps // 10)
    settings = ["train.ema=0.99", "train.loggers=[tensorboard]", f"train.output={output}", f"train.steps={steps}"]
    settings += [f"train.save_every={every}", f"train.validate_every={every}", f"data.workers={name == 'killed':d}"]
    experiment = load_config(work / "train.yaml", settings)
    row = experiment.data.train[0]
    validator = Validator(
        {"drawn": read_set(resolve(row, experiment.data, "val"), experiment.data.root).samples}, images=0
    )
    lines, kills = list[str](), list[int]()

    def report(line: str) -> None:
        lines.append(line)
        if name == "killed" and len(lines) % KILL_EVERY == 0:
            threading.Timer(random.uniform(0, 2), _kill_workers, [kills]).start()

    with Watch() as watch:
        run(experiment, validator=validator, report=report)
    quarter = len(watch.rows) // 4
    handles = [mean(r[2] for r in rows) for rows in (watch.rows[quarter : 2 * quarter], watch.rows[-quarter:])]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    drift = watch.drift()
    return rows, {
        "steps": steps, "minutes": round(watch.wall / 60, 1), "workers killed": len(kills), "peak GB": watch.peak,
        "drift": drift, "memory, last quarter against second": f"{drift:+.1%}", "MB per hour": watch.growth,
        "open files, second and last quarter": handles,
    }  # fmt: skip


def _kill_workers(kills: list[int]) -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
        kills.append(process.pid or 0)


PARTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "label": label, "select": select, "catalogue": catalogue, "lvis": lvis, "train": train
}  # fmt: skip

if __name__ == "__main__":
    main()
