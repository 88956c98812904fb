"""What a step of prompt tuning costs against one of full tuning, and what switching to a second task costs.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python tools/benchmark_tuning.py [--threads 2]
        [--rounds 2] [--model glip_t_c]

GLIP-T (C) with random weights on one image of 800 x 1066 asked for the 80 COCO names. Each mode in a process of its
own, so that a peak is that process's; seconds are of all threads together, which other work does not lengthen much.
Not a timed test.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmark import COCO_NAMES
from benchmark_training import SIDES, alone, random_boxes
from PIL import Image

import glip
from glip.config import Mode, TuneConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.model.adapt import Adaptation, save_adaptation
from glip.model.glip import build
from glip.model.weights import ASSETS
from glip.structures import Sample
from glip.text.tokens import Tokenizer
from glip.train.tune import TuneRun
from glip.train.tuner import Images, Tuner

MODES: tuple[Mode, ...] = ("prompt", "linear", "full")
TIME_BAR, MEMORY_BAR, SWITCH_BAR = 3.0, 2.0, 50.0  # full / prompt, full / prompt, ms


def main() -> None:
    """Print a line for each mode, the ratios, and the switch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="glip_t_c", help="name of a config")
    args = parser.parse_args()
    print(f"not a timed test; torch {torch.__version__}, {args.threads} threads, float32, batch 1, {SIDES}")
    found = {mode: alone(measure, mode, args.threads, args.rounds, args.model) for mode in MODES}
    for mode, (seconds, peak) in found.items():
        print(f"{mode:<7} {seconds:7.2f} s of a core for a step, peak {peak:5.2f} GB")
    time_ratio, memory_ratio = (full / prompt for full, prompt in zip(found["full"], found["prompt"], strict=True))
    print(f"full / prompt: time {time_ratio:.2f} (bar {TIME_BAR}), peak {memory_ratio:.2f} (bar {MEMORY_BAR})")
    first, second, size = alone(switch, args.model)
    print(
        f"a task of {size / 1e3:.0f} kB: the first on a model {first:.0f} ms, a second {second:.1f} ms ({SWITCH_BAR})"
    )


def detector_of(name: str) -> Detector:
    """A model of random weights."""
    config = glip.load_config(name).model
    torch.manual_seed(0)
    return Detector(build(config), config, Tokenizer(ASSETS / "glip-nano"), "cpu")


def measure(mode: Mode, threads: int, rounds: int, name: str) -> tuple[float, float]:
    """Median seconds of a step, and the peak in GB from the loading of the model on."""
    torch.set_num_threads(threads)
    image = Image.effect_noise((SIDES[1], SIDES[0]), 64).convert("RGB")
    tuner = Tuner(detector_of(name), COCO_NAMES, glip.Prompt.from_names(COCO_NAMES), mode=mode, frozen_stages=1)
    sample = Sample(image, *random_boxes(SIDES), vocabulary=tuple(COCO_NAMES))
    images = Images([sample], tuner, augment=False, cache=FeatureCache(4.0), skipped=SkipCounter())
    settings = TuneConfig(mode=mode, epochs=1, batch_size=1)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        run = TuneRun(tuner, images, settings, validate=lambda _: 0.0, folder=Path(folder))
        for number in range(rounds + 1):
            start = time.process_time()
            run.step([images.get(0, np.random.default_rng(number))])
            times.append(time.process_time() - start)
    return statistics.median(times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def switch(name: str) -> tuple[float, float, int]:
    """Milliseconds until a detector with a first and a second task from files is there; bytes of a file."""
    detector = detector_of(name)
    prompt = glip.Prompt.from_names(COCO_NAMES)
    hidden = detector.encode_text(prompt).hidden[0]
    known = Adaptation("prompt", name, detector.fingerprint, tuple(COCO_NAMES), prompt, torch.randn_like(hidden))
    vars(detector).pop("fingerprint")  # a first task asks for it anew
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "task.safetensors")
        save_adaptation(file, known)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            detector.adapted(file)
            times.append(1000 * (time.perf_counter() - start))
        return times[0], times[1], file.stat().st_size


if __name__ == "__main__":
    main()
