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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from measuring import COCO_NAMES, elapsed, fresh_process, peak_gb, random_boxes, random_detector, random_model
from PIL import Image

import glip
from glip.config import DataConfig, DatasetConfig, LabelConfig, Mode, SelectConfig, TrainConfig, TuneConfig
from glip.data.loader import MixtureDataset, Source
from glip.data.sets import SkipCounter
from glip.device import DTYPES, bfloat16_time
from glip.encoded import FeatureCache
from glip.loss import Criterion
from glip.model.adapt import Adaptation, save_adaptation
from glip.processor import Processor
from glip.structures import Sample
from glip.text.prompt import clean_name
from glip.text.tokens import Tokenizer
from glip.train.optim import build_optimizer
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

SIZE = (800, 1066)  # height, width; padded to 800 x 1088
ROOT = Path(__file__).resolve().parent.parent
OURS, DINO = "GLIP-T (C)", "Grounding DINO-T"
KEPT_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
HALF_BARS = {80: 0.45, 3: 0.42}  # bfloat16 / float32, by number of names
STEP_BAR = 0.70  # the same of a training step
OLD_BAR, COMMAND_BAR = 0.85, 0.70  # of the time of the commit before, b079f33
DETECT_BARS = {80: 0.60, 3: 0.46}  # ours / Grounding DINO-T, at most, by number of names
PEAK_BAR = 3.0  # GB of detection
STEP = ("forward with loss", "backward", "optimizer")
TRAIN_PEAK_BAR, RATIO_BAR, LOADER_BAR = 10.0, 3.5, 20.0  # GB, (forward + backward) / forward, images/s of a core
MODES: tuple[Mode, ...] = ("prompt", "linear", "full")
TUNE_TIME_BAR, TUNE_PEAK_BAR, SWITCH_BAR = 3.0, 2.0, 50.0  # full / prompt, full / prompt, ms
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
CAPTIONS = {  # and their noun phrases
    "a man in a red shirt rides a brown horse": ("a man", "a red shirt", "a brown horse"),
    "two dogs play on the green grass near a fence": ("two dogs", "the green grass", "a fence"),
    "a woman sits on a bench with a blue umbrella": ("a woman", "a bench", "a blue umbrella"),
    "a cat sleeps on a small table next to a lamp": ("a cat", "a small table", "a lamp"),
    "several people stand in front of a large white bus": ("several people", "a large white bus"),
}


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


# ---- training


def training(args: argparse.Namespace) -> None:
    """A training step of GLIP-T (C) without and with gradient checkpointing, and the speed of the loader."""
    with fresh_process() as call:
        print(f"loader: {call(loader_speed, args.folder):.1f} images/s of a core, 480 px from JPEG (bar {LOADER_BAR})")
    if args.dtype != "float32":
        with fresh_process() as exact, fresh_process() as half:
            steps = []
            for call, kind in ((exact, "float32"), (half, args.dtype)):
                rows, _ = call(training_step, args.threads, args.rounds, False, kind)
                steps.append(sum(rows[stage][0] for stage in STEP))
        ratio = f"{steps[1] / steps[0]:.2f} (bar {STEP_BAR})"
        print(f"a step in {args.dtype} {steps[1]:.2f} s, in float32 {steps[0]:.2f} s: {ratio}")
        return
    for checkpointing in (False, True):
        with fresh_process() as call:
            rows, peak = call(training_step, args.threads, args.rounds, checkpointing, "float32")
        print(f"{'with' if checkpointing else 'without'} checkpointing\n  {'stage':<18} {'s':>6} {'GB kept':>8}")
        for stage, (seconds, kept) in rows.items():
            print(f"  {stage:<18} {seconds:6.2f}" + (f" {kept:8.2f}" if kept else ""))
        ratio = 1 + rows[STEP[1]][0] / rows[STEP[0]][0]
        print(f"  (forward + backward) / forward {ratio:.2f}" + (f" (bar {RATIO_BAR})" if not checkpointing else ""))
        bar = f" (bar {TRAIN_PEAK_BAR})" if checkpointing else ""
        print(f"  peak, AdamW's means included, {peak:.2f} GB{bar}")


def training_step(
    threads: int, rounds: int, checkpointing: bool, dtype: str
) -> tuple[dict[str, tuple[float, float]], float]:
    """(Median seconds, GB kept for the backward pass) of each stage, and the peak in GB."""
    torch.set_num_threads(threads)
    model, config = random_model("glip_t_c")
    model.train().checkpoint_gradients(checkpointing)
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=1e-4, weight_decay=0.05)
    batch = measuring.training_batch(config, SIZE)

    def step() -> list[float]:
        losses = []

        def compute() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != "float32"):
                outputs = model(batch)
            losses.append(Criterion()(outputs, batch.targets, batch.text.attention_mask).total)

        forward = elapsed(compute)
        backward = elapsed(losses[0].backward)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update = elapsed(optimizer.step)
        optimizer.zero_grad(set_to_none=True)
        return [forward, backward, update]

    step()  # warm-up
    medians = [statistics.median(times) / 1e3 for times in zip(*(step() for _ in range(rounds)), strict=True)]
    rows = {stage: (seconds, 0.0) for stage, seconds in zip(STEP, medians, strict=True)}
    parts = {part: modules for part, modules in measuring.stages_of(model).items() if not part.startswith(" ")}
    seconds = measuring.growth(lambda: model(batch), parts, time.perf_counter)
    stored = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        stored.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = measuring.growth(lambda: model(batch), parts, lambda: sum(stored.values()) / 1e9)
    return {part: (seconds[part], kept[part]) for part in parts} | rows, peak_gb()


def loader_speed(folder: Path | None) -> float:
    """Images per second of one core: opened, resized, flipped, captioned and normalized as in a training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        files = sorted(folder.glob("*.jp*g")) if folder else measuring.write_photos(Path(made), 10)
        samples = [Sample(file, *random_boxes((480, 480)), vocabulary=COCO_NAMES) for file in files]
        source = Source(DatasetConfig(name="jpegs", short_side=(480,)), samples)
        processor = Processor(glip.load_config("glip_t_c").model, Tokenizer(measuring.VOCABULARY))
        dataset = MixtureDataset([source], processor, DataConfig(), TrainConfig(steps=51, warmup=0))
        dataset[0]  # warm-up
        return 200 / (elapsed(lambda: [dataset[step] for step in range(1, 51)]) / 1e3)


# ---- tuning


def tuning(args: argparse.Namespace) -> None:
    """A step of prompt, linear and full tuning on one image with the 80 COCO names; switching to another task."""
    found = {}
    for mode in MODES:
        with fresh_process() as call:
            found[mode] = call(tuning_step, mode, args.threads, args.rounds, args.model)
        print("{:<7} {:7.2f} s of a core for a step, peak {:5.2f} GB".format(mode, *found[mode]))
    time_ratio, memory_ratio = (full / prompt for full, prompt in zip(found["full"], found["prompt"], strict=True))
    print(f"full / prompt: time {time_ratio:.2f} (bar {TUNE_TIME_BAR}), peak {memory_ratio:.2f} (bar {TUNE_PEAK_BAR})")
    with fresh_process() as call:
        first, second, size = call(switch_task, args.model)
    times = f"the first on a model {first:.0f} ms, a second {second:.1f} ms (bar {SWITCH_BAR})"
    print(f"a task of {size / 1e3:.0f} kB: {times}")


def tuning_step(mode: Mode, threads: int, rounds: int, name: str) -> tuple[float, float]:
    """Median processor seconds of a step, and the peak in GB."""
    torch.set_num_threads(threads)
    prompt = glip.Prompt.from_names(COCO_NAMES)
    config = TuneConfig(mode=mode, epochs=1, batch_size=1)
    tuner = Tuner(random_detector(name, SIZE), COCO_NAMES, prompt, config, frozen_stages=1)
    image = Image.effect_noise((SIZE[1], SIZE[0]), 64).convert("RGB")
    sample = Sample(image, *random_boxes(SIZE), vocabulary=COCO_NAMES)
    images = Images([sample], tuner, augment=False, cache=FeatureCache(4.0), skipped=SkipCounter())
    times = []
    with tempfile.TemporaryDirectory() as folder:
        run = TuneRun(tuner, images, config, validate=lambda _: 0.0, folder=Path(folder))
        for number in range(rounds + 1):
            start = time.process_time()
            run.step([images.get(0, np.random.default_rng(number))])
            times.append(time.process_time() - start)
    return statistics.median(times[1:]), peak_gb()


def switch_task(name: str) -> tuple[float, float, int]:
    """Milliseconds to load a first and a second task from a file into a detector; bytes of the file."""
    detector = random_detector(name, SIZE)
    prompt = glip.Prompt.from_names(COCO_NAMES)
    hidden = detector.encode_text(prompt).hidden[0]
    task = Adaptation("prompt", name, detector.fingerprint, COCO_NAMES, prompt, torch.randn_like(hidden))
    vars(detector).pop("fingerprint")  # a first task computes it
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "task.safetensors")
        save_adaptation(file, task)
        first, second = (elapsed(lambda: detector.adapted(file)) for _ in range(2))
        return first, second, file.stat().st_size


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


# ---- labelling


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


# ---- noun phrases and scoring


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
