"""What training and tuning cost on a CPU: benchmarks of ``benchmark.py``."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import measuring
import numpy as np
import torch
from measuring import COCO_NAMES, elapsed, fresh_process, peak_gb, random_boxes, random_detector, random_model
from PIL import Image

import glip
from glip.config import DataConfig, DatasetConfig, Mode, TrainConfig, TuneConfig
from glip.data.loader import MixtureDataset, Source
from glip.data.sets import SkipCounter
from glip.encoded import FeatureCache
from glip.loss import Criterion
from glip.model.adapt import Adaptation, save_adaptation
from glip.processor import Processor
from glip.structures import Sample
from glip.text.tokens import Tokenizer
from glip.train.optim import build_optimizer
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

SIZE = (800, 1066)  # height, width
STEP_BAR = 0.70  # the same of a training step
STEP = ("forward with loss", "backward", "optimizer")
TRAIN_PEAK_BAR, RATIO_BAR, LOADER_BAR = 10.0, 3.5, 20.0  # GB, (forward + backward) / forward, images/s of a core
MODES: tuple[Mode, ...] = ("prompt", "linear", "full")
TUNE_TIME_BAR, TUNE_PEAK_BAR, SWITCH_BAR = 3.0, 2.0, 50.0  # full / prompt, full / prompt, ms


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
