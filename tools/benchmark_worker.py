"""One contender of tools/benchmark.py in a process of its own; runs with the package of any commit since b079f33.

    python tools/benchmark_worker.py MODEL NAMES HEIGHT WIDTH THREADS DTYPE DEVICE

MODEL is glip or grounding-dino, both with random weights. For each line of input it runs one forward pass and prints
the seconds of the wall clock, the processor's, and the peak in GB.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def glip_pass(names: int, size: tuple[int, int], dtype: torch.dtype, device: str) -> Callable[[], Any]:
    """A forward pass of GLIP-T (C) on an image of noise."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    import glip
    from glip.model.glip import build
    from glip.text.tokens import Tokenizer

    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    listed = [name for name in categories if name not in ("__background__", "N/A")]

    config = glip.load_config("glip_t_c").model
    torch.manual_seed(0)
    model = build(config).eval()
    folder = Path(glip.__file__).parent / "assets" / "glip-nano"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    processor = glip.Detector(model, config, Tokenizer(folder), device).processor
    processor.min_size, processor.max_size = min(size), max(size)
    batch = processor([image], [glip.Prompt.from_names(listed[:names])]).to(device)
    if dtype != torch.float32:
        model.cast(dtype)
    return lambda: model(batch)


def dino_pass(names: int, size: tuple[int, int], dtype: torch.dtype, device: str) -> Callable[[], Any]:
    """A forward pass of Grounding DINO-T of transformers; half precision is autocast."""
    from measuring import grounding_dino

    exact = grounding_dino(names, [side + -side % 32 for side in size], device)

    def run() -> Any:
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=dtype != torch.float32):
            return exact()

    return run


def main() -> None:
    """Load, say so, and run a pass for each line."""
    model, names, height, width, threads, dtype, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    make = {"glip": glip_pass, "grounding-dino": dino_pass}[model]
    run = make(int(names), (int(height), int(width)), getattr(torch, dtype), device)
    print("ready", flush=True)
    for _ in sys.stdin:
        with torch.no_grad():
            wall, busy = time.perf_counter(), time.process_time()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            spent = time.perf_counter() - wall, time.process_time() - busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        peak = peak if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
        print(*spent, peak, flush=True)


if __name__ == "__main__":
    main()
