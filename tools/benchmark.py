"""Measure time and memory of detection, training, tuning, labelling, noun phrases, scoring and long vocabularies.

    python tools/benchmark.py [detect | stream | training | tuning | vocabulary | labelling] -h
    python tools/benchmark.py [phrases | scoring | pairs] -h

These are no tests: they print figures beside their targets ("bar"). Weights are random and nothing is downloaded. What
is compared runs in turns, and medians count. A peak is that of a process of its own. For training and tuning set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000, so that freed memory is used again without the system clearing
it first. tools/check_gpu.py measures a GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from benchmark_data import labelling, pairs, phrases, scoring
from benchmark_train import training, tuning
from measuring import elapsed, fresh_process, random_detector, random_model
from PIL import Image

import glip
from glip.device import DTYPES, bfloat16_time
from glip.text.prompt import clean_name

SIZE = (800, 1066)  # height, width; padded to 800 x 1088
ROOT = Path(__file__).resolve().parent.parent
OURS, DINO = "GLIP-T (C)", "Grounding DINO-T"
KEPT_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
HALF_BARS = {80: 0.45, 3: 0.42}  # bfloat16 / float32, by number of names
OLD_BAR, COMMAND_BAR = 0.85, 0.70  # of the time of the commit before, b079f33
DETECT_BARS = {80: 0.60, 3: 0.46}  # ours / Grounding DINO-T, at most, by number of names
PEAK_BAR = 3.0  # GB of detection
PASSES = 31  # of 1,203 names, 40 at once
CHUNK_BARS = {40: 0.36, None: 0.24}  # time / (PASSES full passes), by names in a chunk; None: as many as fit
CHUNK_DETECTIONS = 300
STREAM_BAR = 1.5  # GB
STREAM = """
import sys, time, resource, glip
count, photos = int(sys.argv[1]), sys.argv[2:]
paths = (photos * count)[:count]
detector = glip.Detector.from_pretrained("glip-nano", device="cpu")
loaded, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
stream = getattr(detector, "stream", detector)
found = sum(1 for _ in stream(paths, "a tree. a car", batch_size=4))
assert found == count
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count / seconds, (peak - loaded) * 1024 / 1e9)
"""


# ---- detection


def detect(args: argparse.Namespace) -> None:
    """GLIP-T (C) against Grounding DINO-T of transformers, another dtype and another commit; then its stages."""
    keep_pages(args.keep_pages)
    with ExitStack() as stack:
        trees = {OURS: ROOT}
        if args.against:
            trees[f"{OURS} {args.against}"] = stack.enter_context(checkout(args.against))
        for names in args.prompt_names:
            with ExitStack() as running:
                contenders = {title: Contender(tree, "glip", names, "float32", args) for title, tree in trees.items()}
                contenders[DINO] = Contender(ROOT, "grounding-dino", names, "float32", args)
                if args.dtype != "float32":
                    for title, model in ((OURS, "glip"), (DINO, "grounding-dino")):
                        contenders[f"{title} {args.dtype}"] = Contender(ROOT, model, names, args.dtype, args)
                for contender in contenders.values():
                    running.enter_context(contender.process)
                print_passes(names, run_in_turns(contenders, args.rounds), args)
        if args.against:
            print_command(trees, args.rounds)
    for names in args.prompt_names:
        with fresh_process() as call:
            rows = call(detection_stages, names, tuple(args.size), args.device, args.threads, args.dtype)
        print("\n".join(measuring.table(rows)))


def keep_pages(choice: str | None) -> None:
    """Let malloc of the processes to come keep freed memory, or not; without a choice as the environment says."""
    if choice:
        for name, value in KEPT_PAGES.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if choice == "on" else {})


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the project as it was at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", tree, commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


class Contender:
    """A process of ``benchmark_worker.py`` with the package of a folder."""

    def __init__(self, tree: Path, model: str, names: int, dtype: str, args: argparse.Namespace) -> None:
        words = [model, str(names), *map(str, args.size), str(args.threads), dtype, args.device]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "benchmark_worker.py"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )

    def __call__(self) -> list[float]:
        """One pass: seconds of the wall clock, of the processor, peak in GB."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [float(value) for value in self.process.stdout.readline().split()]

    def wait(self) -> None:
        """Wait until it is loaded."""
        assert self.process.stdout and self.process.stdout.readline() == "ready\n", "the worker has stopped"


def run_in_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[list[float]]]:
    """The passes of each contender but for the first, a warm-up."""
    for contender in contenders.values():
        contender.wait()
    turns = [{title: contender() for title, contender in contenders.items()} for _ in range(1 + rounds)]
    return {title: [turn[title] for turn in turns[1:]] for title in contenders}


def print_passes(names: int, passes: Mapping[str, list[list[float]]], args: argparse.Namespace) -> None:
    """Medians and the ratios that have bars."""
    medians = {}
    for title, rows in passes.items():
        wall, busy, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        medians[title] = (wall, busy)
        walls = " ".join(f"{row[0]:.2f}" for row in rows)
        print(f"{names:3d} names  {title:<26} {wall:6.2f} s ({walls})  processor {busy:6.2f} s, {peak:.2f} GB")
    pairs = [(OURS, DINO, f"bar {DETECT_BARS[names]}; our peak: bar {PEAK_BAR} GB")]
    if args.against:
        pairs.append((OURS, f"{OURS} {args.against}", f"bar {OLD_BAR} with pages kept"))
    if args.dtype != "float32":
        fast = bfloat16_time(torch.device(args.device)) < 1
        bar = f"bar {HALF_BARS[names]}" if fast else f"no bar: this processor has no products in {args.dtype}"
        pairs += [(f"{OURS} {args.dtype}", OURS, bar), (f"{OURS} {args.dtype}", f"{DINO} {args.dtype}", "no bar")]
    for first, second, bar in pairs:
        wall, busy = (one / other for one, other in zip(medians[first], medians[second], strict=True))
        print(f"{names:3d} names  {first} / {second}: {wall:.3f} ({bar}); of processor time {busy:.3f}")


def print_command(trees: Mapping[str, Path], rounds: int) -> None:
    """Processor time of the whole command ``glip detect`` with glip-nano on one thread."""
    image, spent = ROOT / "docs" / "images" / "street.png", {title: list[float]() for title in trees}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "glip", "detect", str(image), "a red bus. a cyclist", "--out", folder]
        for _ in range(1 + rounds):
            for title, tree in trees.items():
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
                subprocess.run(
                    [*command, "--device", "cpu"], check=True, capture_output=True, env=environment, cwd=folder
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent[title].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    now, old = (statistics.median(times[1:]) for times in spent.values())
    ratio = f"{now / old:.2f} (bar {COMMAND_BAR})"
    print(f"glip detect, whole command: {now:.2f} s of processor time, before {old:.2f} s: {ratio}")


def detection_stages(names: int, size: tuple[int, int], device: str, threads: int, dtype: str) -> list[measuring.Row]:
    """The stages of a pass of GLIP-T (C)."""
    torch.set_num_threads(threads)
    model, config = random_model("glip_t_c", device)
    if dtype != "float32":
        model.cast(DTYPES[dtype])
    batch = measuring.detection_batch(config, size, device, names=names)
    return measuring.stage_rows(model, batch, "float32", device, 1)


def stream(args: argparse.Namespace) -> None:
    """Photos of 12 MP through glip-nano, four at once: images per second and memory above the model."""
    trees = {"now": ROOT}
    with ExitStack() as stack:
        if args.against:
            trees[args.against] = stack.enter_context(checkout(args.against))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = measuring.write_photos(folder, 8, size=(4000, 3000))
        for title, tree in trees.items():
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(args.threads)}
            command = [sys.executable, "-c", STREAM, str(args.images), *map(str, photos)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rate, above = map(float, done.stdout.split())
            print(f"{title:<10} {rate:.2f} images/s, {above:.2f} GB above the model (bar {STREAM_BAR} GB)")


# ---- long vocabularies


def vocabulary(args: argparse.Namespace) -> None:
    """A long vocabulary on one image of GLIP-T (C), encoded once, against as many passes of Grounding DINO-T."""
    tree = json.loads(args.categories.read_text())
    records = tree["categories"] if isinstance(tree, dict) else tree
    names = [clean_name(record["name"]) for record in sorted(records, key=lambda record: record["id"])]
    detector, image = random_detector("glip_t_c", args.size, args.device), measuring.noise(args.size)
    ground = partial(ground_chunks, detector, image, names, batch_size=args.batch_size)
    if args.dtype != "float32":
        half = random_detector("glip_t_c", args.size, args.device).to(dtype=args.dtype)
        calls = [
            partial(ground_chunks, one, image, names, None, batch_size=args.batch_size) for one in (detector, half)
        ]
        turns = [[elapsed(call, args.device) / 1e3 for call in calls] for _ in range(args.rounds)]
        exact, fast = map(statistics.median, zip(*turns, strict=True))
        ratio = f"{fast / exact:.3f} (bar {HALF_BARS[80]})"
        print(f"{len(names)} names packed: {args.dtype} {fast:.1f} s, float32 {exact:.1f} s: {ratio}")
        return
    with torch.no_grad():
        full_pass = measuring.grounding_dino(80, args.size, args.device)
        elapsed(full_pass, args.device)  # warm-up
        passes, times = [], {chunk: list[float]() for chunk in CHUNK_BARS}
        for _ in range(args.rounds):
            passes.append(elapsed(full_pass, args.device) / 1e3)
            for chunk, own in times.items():
                own.append(elapsed(partial(ground, chunk), args.device) / 1e3)
    one = statistics.median(passes)
    print(f"{len(names)} names, {args.size}, {args.threads} threads: a full pass of Grounding DINO-T {one:.2f} s")
    for chunk, own in times.items():
        seconds, rows = statistics.median(own), len(detector.encode_text(names, max_names=chunk).chunks[0])
        ratio = f"ratio to {PASSES} passes {seconds / PASSES / one:.3f} (bar {CHUNK_BARS[chunk]})"
        print(f"{rows} chunks of {chunk or 'as many names as fit'}: {seconds:.1f} s, {ratio}")
    if args.check:
        compare_chunks(detector, image, names, ground(40))


def ground_chunks(
    detector: glip.Detector, image: Image.Image, names: list[str], chunk: int | None, *, batch_size: int
) -> glip.Detections:
    """The image once, the text once, then the chunks."""
    text, encoded = detector.encode_text(names, max_names=chunk), detector.encode_image(image)
    limits: dict[str, Any] = {"threshold": 0.0, "max_detections": 0, "chunk_detections": CHUNK_DETECTIONS}
    return detector.ground(encoded, text, batch_size=batch_size, **limits)[0]


def compare_chunks(detector: glip.Detector, image: Image.Image, names: list[str], found: glip.Detections) -> None:
    """Compare with the release's way, every chunk from the image on: the largest difference of scores and boxes."""
    worst, count = 0.0, 0
    for first in range(0, len(names), 40):
        single = detector(image, names[first : first + 40], threshold=0.0, max_detections=CHUNK_DETECTIONS)
        own = found.select((found.labels >= first) & (found.labels < first + 40))
        if not torch.equal(own.labels - first, single.labels):
            sys.exit(f"chunk {first // 40}: other detections")
        count += len(single)
        gaps = torch.cat([(own.boxes - single.boxes).flatten(), own.scores - single.scores]).abs()
        worst = max([worst, *gaps.tolist()])
    print(f"chunks from the image on find the same {count} detections; largest difference {worst:.2g}")


# ---- the command line

FLAGS: dict[str, Any] = {
    "threads": {"type": int, "default": 2},
    "rounds": {"type": int, "default": 3},
    "device": {"default": "cpu"},
    "size": {"type": int, "nargs": 2, "default": list(SIZE), "metavar": ("HEIGHT", "WIDTH")},
    "prompt-names": {"type": int, "nargs": "+", "default": [80, 3], "choices": sorted(DETECT_BARS)},
    "folder": {"type": Path, "help": "JPEGs for the loader (default: photo-like ones are made)"},
    "model": {"help": "name of a config or model"},
    "categories": {"type": Path, "required": True, "help": "JSON: LVIS annotations or a list of categories"},
    "batch-size": {"type": int, "default": 1, "help": "chunks computed at once"},
    "check": {"action": "store_true", "help": "compare with every chunk from the image on"},
    "together": {"type": int, "default": 1, "help": "captions of an image in one prompt"},
    "images": {"type": int},
    "boxes": {"type": int, "default": 1_000_000, "help": "stored boxes to select from"},
    "captions": {"type": Path, "required": True, "help": "a text file with one caption per line"},
    "pipeline": {"help": "spaCy pipeline (default: the bundled one)"},
    "detections": {"type": int, "default": 300, "help": "results per image"},
    "seed": {"type": int, "default": 0},
    "dtype": {"default": "float32", "choices": sorted(DTYPES), "help": "measure this beside float32"},
    "against": {"metavar": "COMMIT", "help": "measure the package as it was at a commit too"},
    "keep-pages": {"choices": ["on", "off"], "help": "malloc keeps freed memory, or not (default: the environment's)"},
}
BENCHMARKS: dict[Callable[[argparse.Namespace], None], tuple[str, dict[str, Any]]] = {  # flags, defaults of their own
    detect: ("threads rounds device size prompt-names dtype against keep-pages", {"rounds": 7}),
    stream: ("threads images against", {"images": 200}),
    training: ("threads rounds folder dtype", {}),
    tuning: ("threads rounds model", {"rounds": 2, "model": "glip_t_c"}),
    vocabulary: ("threads rounds device size categories batch-size check dtype", {"rounds": 2}),
    labelling: ("threads rounds model together images boxes", {"model": "glip-nano", "images": 64}),
    phrases: ("rounds captions pipeline", {}),
    scoring: ("images detections seed", {"images": 20_000}),
    pairs: ("images detections seed", {"images": 10_000, "detections": 20}),
}


def main() -> None:
    """Run one benchmark; detection where none is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for run, (flags, defaults) in BENCHMARKS.items():
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        for flag in flags.split():
            command.add_argument(f"--{flag}", **FLAGS[flag])
        command.set_defaults(run=run, **defaults)
    words = sys.argv[1:]
    if not words or (words[0] not in commands.choices and words[0] not in ("-h", "--help")):
        words = ["detect", *words]
    args = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = {name: value for name, value in vars(args).items() if name != "run"}
    print(f"not a timed test; torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {options}")
    torch.set_num_threads(getattr(args, "threads", 1))
    args.run(args)


if __name__ == "__main__":
    main()
