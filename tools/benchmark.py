"""Time and memory of GLIP-T (C) beside transformers' Grounding DINO-T, both with random weights. Not a timed test.

    python tools/benchmark.py [--prompt-names 80 3] [--threads 2] [--device cpu] [--rounds 3] [--size 800 1066]

Each model lives in a process of its own, so that its peak memory is its own; the two run in turns, never at once.
Nothing is downloaded.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import glip

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_NAMES = tuple(_NAMES.split(","))
THEIR_TOKENS = {80: 195, 3: 12}  # of the caption that each number of names is compared with
BARS = {80: 0.60, 3: 0.46}  # ours / theirs, at most
PEAK_BAR = 3.0  # GB


def main() -> None:
    """Print the comparison and the stages for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompt-names", type=int, nargs="+", default=[80, 3], choices=sorted(BARS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1066], metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the models' processes
    print(f"not a timed test; torch {torch.__version__}, {args.device}, {args.threads} threads, batch 1, {args.size}")
    for names in args.prompt_names:
        compare(names, args)


def compare(names: int, args: argparse.Namespace) -> None:
    """Run both models in turns and print medians, ratio, peaks and our stages."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for build in (ours, theirs):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, build, names, args), daemon=True)
        process.start()
        workers.append(here)
    for worker in workers:
        ask(worker, "time")  # warm-up
    rounds = [[ask(worker, "time") for worker in workers] for _ in range(args.rounds)]
    peaks = [ask(worker, "peak") for worker in workers]
    walls, works = [], []
    for title, times, peak in zip(("GLIP-T (C)", "Grounding DINO-T"), zip(*rounds, strict=True), peaks, strict=True):
        walls.append(statistics.median(wall for wall, _ in times))
        works.append(statistics.median(work for _, work in times))
        each = " ".join(f"{wall:.2f}" for wall, _ in times)
        print(f"{names:3d} names  {title:<17} {walls[-1]:7.2f} s ({each})  processor {works[-1]:.2f} s, {peak:.2f} GB")
    print(f"{names:3d} names  ratio {walls[0] / walls[1]:.3f} (bar {BARS[names]}); our peak: bar {PEAK_BAR} GB")
    print(f"           ratio of processor time {works[0] / works[1]:.3f}, for a machine that others use too")
    ask(workers[1], "stop")
    rate, rows = ask(workers[0], "stages")
    print(f"  {'stage':<22} {'ms':>8} {'GFLOP':>8} {'GFLOP/s':>8}   matrix products only; a large one: {rate:.0f}")
    for stage, seconds, flops in rows:
        print(f"  {stage:<22} {seconds * 1e3:8.0f} {flops / 1e9:8.1f} {flops / 1e9 / max(seconds, 1e-9):8.0f}")
    ask(workers[0], "stop")


def ask(worker: Connection, what: str) -> Any:
    """Send one order to a model's process and wait for its answer."""
    worker.send(what)
    return worker.recv()


def serve(orders: Connection, build: Callable[..., Any], names: int, args: argparse.Namespace) -> None:
    """One model's process: answer "time", "peak" and "stages" until "stop"."""
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    run, stages = build(names, args)
    while (what := orders.recv()) != "stop":
        if what == "time":
            before = time.process_time()
            wall = clock(args.device, run)
            orders.send((wall, time.process_time() - before))
        elif what == "peak":
            on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            orders.send(on_cpu if args.device == "cpu" else torch.cuda.max_memory_allocated() / 1e9)
        else:
            orders.send((matrix_rate(args.device), stages()))
    orders.send(None)


def ours(names: int, args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """GLIP-T (C) on what its own processor makes of an image and of the first names of COCO."""
    from glip.model.glip import build
    from glip.model.weights import ASSETS
    from glip.processor import Processor
    from glip.text.tokens import Tokenizer

    config = glip.load_config("glip_t_c").model
    model = build(config).eval().to(args.device)
    processor = Processor(config, Tokenizer(ASSETS / "glip-nano"))  # its vocabulary is BERT's
    processor.min_size, processor.max_size = min(args.size), max(args.size)
    image = noise(args.size)
    batch = processor([image], [glip.Prompt.from_names(COCO_NAMES[:names])]).to(args.device)
    return lambda: model(batch), lambda: stage_table(model, batch, args.device)


def theirs(names: int, args: argparse.Namespace) -> tuple[Callable[[], Any], None]:
    """Grounding DINO-T on an image of the same size and a caption of one-token names."""
    model, inputs = grounding_dino(names, args.size, args.device)
    return lambda: model(**inputs), None


def noise(size: Sequence[int]) -> Image.Image:
    """An image of (height, width) pixels of noise, always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def grounding_dino(
    names: int, size: Sequence[int], device: str, *, batch: int = 1, layers: int = 6
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Grounding DINO-T of transformers with random weights, and a batch for it; ``size`` is (height, width)."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    with torch.device(device):
        queries = min(900, size[0] * size[1] // 64)  # a small image has fewer places
        config = GroundingDinoConfig(num_queries=queries, encoder_layers=layers, decoder_layers=layers)
        model = GroundingDinoForObjectDetection(config).eval()
    ids = torch.full((batch, THEIR_TOKENS[names]), 1012)  # "."
    ids[:, 1::2] = torch.arange(2000, 2000 + len(ids[0, 1::2]))
    ids[:, 0], ids[:, -1] = 101, 102  # [CLS], [SEP]
    inputs = {
        "pixel_values": torch.randn(batch, 3, *size),
        "pixel_mask": torch.ones(batch, *size, dtype=torch.long),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    return model, {key: value.to(device) for key, value in inputs.items()}


def stage_table(model: "glip.GLIP", batch: Any, device: str) -> list[tuple[str, float, float]]:
    """Seconds and floating point operations of each stage; indented stages are part of the one above."""
    from glip.config import InferenceConfig
    from glip.postprocess import postprocess

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    parts = stage_modules(model)
    seconds, flops = meter(model, batch, parts, now), stage_flops(model, batch, parts)
    outputs = model(batch)
    sizes, config = (batch.images.resized, batch.images.original), InferenceConfig(candidate_threshold=0.0)
    last = clock(device, lambda: postprocess(outputs, batch.text, *sizes, config))
    return [(part, seconds[part], flops[part]) for part in parts] + [("postprocess", last, 0.0)]


def stage_modules(model: "glip.GLIP") -> dict[str, list[Any]]:
    """The modules of each stage; indented stages are part of the one above."""
    stages: Any = list(model.tower)
    blocks = [stage.image for stage in stages]
    return {
        "backbone": [model.vision],
        "pyramid": [model.pyramid],
        "text": [model.language],
        "fusion": [stage.fusion for stage in stages],
        "text layers": [stage.text for stage in stages],
        "dynamic blocks": blocks,
        "  offset convolution": [block.offset for block in blocks],
        "  deformable + norm": [branch for block in blocks for branch in (block.same, block.finer, block.coarser)],
        "heads": [model.boxes, model.tokens],
    }


def stage_flops(model: "glip.GLIP", batch: Any, parts: dict[str, list[Any]]) -> dict[str, float]:
    """Floating point operations of the matrix products and convolutions of each stage."""
    counted = {torch.ops.torchvision.deform_conv2d: deform_flops}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        return meter(model, batch, parts, counter.get_total_flops)


def deform_flops(image: Sequence[int], weight: Sequence[int], offset: Sequence[int], *_: Any, **__: Any) -> int:
    """Of torchvision's deformable convolution, which torch does not count; the sampling is left out."""
    places = image[0] * offset[2] * offset[3]
    return 2 * places * weight[0] * weight[1] * weight[2] * weight[3]


def meter(model: Any, batch: Any, parts: dict[str, list[Any]], read: Callable[[], float]) -> dict[str, float]:
    """How far a meter moves within the modules of each part during one run."""
    moved = dict.fromkeys(parts, 0.0)
    hooks = []

    def subtract(part: str) -> Callable[..., None]:
        return lambda *_: moved.update({part: moved[part] - read()})

    def add(part: str) -> Callable[..., None]:
        return lambda *_: moved.update({part: moved[part] + read()})

    for part, modules in parts.items():
        for module in modules:
            hooks += [module.register_forward_pre_hook(subtract(part)), module.register_forward_hook(add(part))]
    model(batch)
    for hook in hooks:
        hook.remove()
    return moved


def clock(device: str, run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: str) -> float:
    """GFLOP/s of a large float32 product, the best of five."""
    a = torch.randn(2048, 2048, device=device)
    return max(2 * 2048**3 / clock(device, lambda: a @ a) for _ in range(5)) / 1e9


if __name__ == "__main__":
    main()
