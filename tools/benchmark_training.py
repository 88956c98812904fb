"""Time and memory of a training step of GLIP-T (C), and speed of the loader. Not a timed test.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python tools/benchmark_training.py [--threads 2]
        [--rounds 3] [--folder JPEGS]

One process after another, so that a peak is that process's. The variables let freed memory be used again without the
system clearing it first. Weights are random; nothing is downloaded. For a GPU there is tools/check_gpu.py.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmark import COCO_NAMES, clock, meter, noise
from PIL import Image

import glip
from glip.config import DataConfig, DatasetConfig, TrainConfig
from glip.data.loader import MixtureDataset, Source
from glip.loss import Criterion
from glip.model.glip import build
from glip.model.weights import ASSETS
from glip.processor import Processor
from glip.structures import Batch, Sample
from glip.text.tokens import Tokenizer
from glip.train.optim import build_optimizer

SIDES = [800, 1066]  # height, width; padded to 800 x 1088
CONFIG = glip.load_config("glip_t_c").model
STEP = ("forward with loss", "backward", "optimizer")
PEAK_BAR, RATIO_BAR, LOADER_BAR = 10.0, 3.5, 20.0  # GB, (forward + backward) / forward, images/s of a core


def main() -> None:
    """Print the loader and the step without and with checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="JPEGs for the loader; else photo-like ones of 640 x 480 are made")
    args = parser.parse_args()
    print(f"not a timed test; torch {torch.__version__}, {args.threads} threads, float32, batch 1, {SIDES}")
    print(f"loader: {alone(loader_speed, args.folder):.1f} images/s of a core, 480 px from JPEG (bar {LOADER_BAR})")
    for checkpointing in (False, True):
        rows, peak = alone(measure, args.threads, args.rounds, checkpointing)
        print(f"{'with' if checkpointing else 'without'} checkpointing\n  {'stage':<18} {'s':>6} {'GB kept':>8}")
        for stage, (seconds, kept) in rows.items():
            print(f"  {stage:<18} {seconds:6.2f}" + (f" {kept:8.2f}" if kept else ""))
        ratio = 1 + rows[STEP[1]][0] / rows[STEP[0]][0]
        print(f"  (forward + backward) / forward {ratio:.2f}" + (f" (bar {RATIO_BAR})" if not checkpointing else ""))
        print(f"  peak, AdamW's means included, {peak:.2f} GB" + (f" (bar {PEAK_BAR})" if checkpointing else ""))


def alone(work: Callable[..., Any], *inputs: Any) -> Any:
    """The result of a function run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *inputs).result()


def measure(threads: int, rounds: int, checkpointing: bool) -> tuple[dict[str, tuple[float, float]], float]:
    """(Median seconds, GB kept for the backward pass) of each stage, and the peak in GB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(CONFIG).train()
    model.checkpoint_gradients(checkpointing)
    optimizer = build_optimizer(model, lr=1e-4, bert_lr=1e-5, text_lr=1e-4, weight_decay=0.05)
    batch = training_batch(CONFIG, SIDES)

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        outputs = model(batch)
        loss = Criterion()(outputs, batch.targets, batch.text.attention_mask).total
        forward = time.perf_counter() - start
        backward = clock("cpu", loss.backward)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update = clock("cpu", optimizer.step)
        optimizer.zero_grad(set_to_none=True)
        return forward, backward, update

    step()  # warm-up
    medians = [statistics.median(times) for times in zip(*(step() for _ in range(rounds)), strict=True)]
    rows = {stage: (seconds, 0.0) for stage, seconds in zip(STEP, medians, strict=True)}
    return forward_stages(model, batch) | rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def training_batch(config: glip.ModelConfig, size: Sequence[int], *, count: int = 1, names: int = 80) -> Batch:
    """Noise images of (height, width) with ten boxes each, asked for the first names of COCO."""
    boxes, labels = random_boxes(size)
    labels = tuple((label % names,) for (label,) in labels)
    sample = Sample(noise(size), boxes, labels, prompt=glip.Prompt.from_names(COCO_NAMES[:names]))
    processor = Processor(config, Tokenizer(ASSETS / "glip-nano"))
    return processor.training([sample] * count)


def forward_stages(model: Any, batch: Any) -> dict[str, tuple[float, float]]:
    """Seconds and GB kept of each part of the network in one forward pass."""
    stages: list[Any] = list(model.tower)
    parts: dict[str, list[Any]] = {
        "image encoder": [model.vision, model.pyramid],
        "text": [model.language],
        "fusion": [stage.fusion for stage in stages],
        "text layers": [stage.text for stage in stages],
        "dynamic blocks": [stage.image for stage in stages],
        "heads": [model.boxes, model.tokens],
    }
    kept = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    seconds = meter(model, batch, parts, time.perf_counter)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        growth = meter(model, batch, parts, lambda: sum(kept.values()) / 1e9)
    return {part: (seconds[part], growth[part]) for part in parts}


def loader_speed(folder: Path | None) -> float:
    """Images per second of one core: opened, resized, flipped, phrased and normalized as in a training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        files = sorted((folder or draw_jpegs(Path(made))).glob("*.jp*g"))
        samples = [Sample(file, *random_boxes([480, 480]), vocabulary=COCO_NAMES) for file in files]
        source = Source(DatasetConfig(name="jpegs", short_side=(480,)), samples)
        processor = Processor(CONFIG, Tokenizer(ASSETS / "glip-nano"))
        dataset = MixtureDataset([source], processor, DataConfig(), TrainConfig(steps=51, warmup=0))
        dataset[0]  # warm-up
        start = time.perf_counter()
        for step in range(1, len(dataset)):
            dataset[step]
        return 200 / (time.perf_counter() - start)


def draw_jpegs(folder: Path) -> Path:
    """Soft shapes under fine grain, which compress about as photos do."""
    for number in range(10):
        layers = []
        for size in ((16, 12), (640, 480)):
            channels = [Image.effect_noise(size, 90).resize((640, 480), Image.Resampling.BICUBIC) for _ in "RGB"]
            layers.append(Image.merge("RGB", channels))
        Image.blend(layers[0], layers[1], 0.15).save(folder / f"{number}.jpg", quality=90)
    return folder


def random_boxes(side: Sequence[int]) -> tuple[torch.Tensor, tuple[tuple[int, ...], ...]]:
    """Ten boxes within (height, width), and the name of each."""
    corners = torch.rand(10, 2, 2).sort(1).values * torch.tensor([side[1], side[0]])
    return corners.flatten(1), tuple((7 * number,) for number in range(10))


if __name__ == "__main__":
    main()
