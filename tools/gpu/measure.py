"""What the parts of the GPU check share: the setup, a measurement, precisions, and how time and memory are taken."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark import COCO_NAMES, noise
from PIL import Image

import glip
from glip.config import ModelConfig
from glip.model.glip import GLIP, build
from glip.model.weights import ASSETS
from glip.processor import Processor
from glip.structures import Batch
from glip.text.tokens import Tokenizer

Row = dict[str, Any]
VOCABULARY = ASSETS / "glip-nano"  # BERT's
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
_LONGEST_MS = 3000.0  # of one measurement, warm-up aside
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Missing(Exception):
    """Something that a measurement needs is not on this machine; this does not fail the check."""


@dataclass(frozen=True)
class Setup:
    """What a check runs on.

    Args:
        device: "cuda", "cuda:1" or "cpu".
        tiny: small models, images and batches, to try the check itself.
        repeats: timed runs of each measurement.
        data: a folder of datasets, for the average precision of glip-nano.
        root: the checkout.
    """

    device: str
    tiny: bool
    repeats: int
    data: Path | None
    root: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that the device has: TF32 is NVIDIA's, and float16 on a CPU is of no use."""
        return PRECISIONS if self.cuda else ("float32", "bfloat16")

    @property
    def models(self) -> tuple[str, ...]:
        """The configs that are timed."""
        return ("tiny",) if self.tiny else ("glip_t_c", "glip_l")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images at once."""
        return (1, 2) if self.tiny else (1, 4, 8)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the resized image in pixels; 800 x 1066 is padded to 800 x 1088."""
        return (96, 128) if self.tiny else (800, 1066)


@dataclass(frozen=True)
class Measurement:
    """One thing to measure.

    Args:
        name: what is measured, for lists of what failed or did not fit.
        table: the heading of the table that its rows belong to.
        run: measures; gives rows as they are ready. A row whose "passed" is False fails the check.
    """

    name: str
    table: str
    run: Callable[[], Iterable[Row]]


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Compute in a precision: "float32" is exact, without TF32.

    Half precision is autocast, with TF32 for what it leaves in float32. "default" is float32 as torch sets it up, with
    TF32 in convolutions.
    """
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name in ("tf32", *HALF)
    torch.backends.cudnn.allow_tf32 = name in ("tf32", "default", *HALF)
    try:
        with ExitStack() as stack:
            if name in HALF:
                stack.enter_context(torch.autocast(torch.device(device).type, dtype=HALF[name]))
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def milliseconds(run: Callable[[], Any], setup: Setup, *, warmup: int = 3) -> float:
    """The median time of ``setup.repeats`` runs, of at least five but fewer where they take long."""
    for _ in range(warmup):
        run()
    spent: list[float] = []
    while len(spent) < setup.repeats and (len(spent) < 5 or sum(spent) < _LONGEST_MS):
        spent.append(elapsed(run, setup))
    return statistics.median(spent)


def elapsed(run: Callable[[], Any], setup: Setup) -> float:
    """Milliseconds of one run, on a GPU between two events."""
    if not setup.cuda:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


@contextmanager
def peak_memory(setup: Setup) -> Iterator[dict[str, float | None]]:
    """The largest GPU memory that tensors took within, in GB under "peak GB"; None on a CPU."""
    found: dict[str, float | None] = {"peak GB": None}
    if setup.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if setup.cuda:
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9


def release_memory(setup: Setup) -> None:
    """Give freed GPU memory back; raises where an earlier error has left the device unusable."""
    gc.collect()
    if setup.cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def random_model(name: str, setup: Setup) -> tuple[GLIP, ModelConfig]:
    """A model of a config's sizes with random weights, made on the device."""
    config = glip.load_config(name).model
    torch.manual_seed(0)
    with torch.device(setup.device):
        return build(config).eval(), config


def noise_image(setup: Setup) -> Image.Image:
    """An image of noise that needs no resizing, always the same."""
    return noise(setup.image_size)


def detection_batch(config: ModelConfig, setup: Setup, *, names: int, size: int) -> Batch:
    """``size`` noise images, each with the first names of COCO as its prompt, on the device."""
    processor = Processor(config, Tokenizer(VOCABULARY))
    processor.min_size, processor.max_size = min(setup.image_size), max(setup.image_size)
    prompt = glip.Prompt.from_names(COCO_NAMES[:names])
    return processor([noise_image(setup)] * size, [prompt] * size).to(setup.device)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
