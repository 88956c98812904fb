"""What the benchmarks and the GPU check share: random models and inputs; time, memory and operations; tables."""

import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import glip
from glip.config import InferenceConfig, ModelConfig
from glip.model.glip import GLIP, build
from glip.model.weights import ASSETS
from glip.postprocess import postprocess
from glip.processor import Processor
from glip.structures import Batch, Sample
from glip.text.tokens import Tokenizer

Row = dict[str, Any]
Parts = Mapping[str, Sequence[nn.Module]]
_CATEGORIES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_NAMES: tuple[str, ...] = tuple(name for name in _CATEGORIES if name not in ("__background__", "N/A"))
DINO_TOKENS = {80: 195, 3: 12}  # of the caption of Grounding DINO, by number of names
VOCABULARY = ASSETS / "glip-nano"  # BERT's
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WARMUP = 3  # runs before those that are timed
_LONGEST_MS = 3000.0  # of one measurement, warm-up aside
_held: dict[str, Any] = {}


# ---- measurements of a GPU check


class Missing(Exception):
    """Something that a measurement needs is not on this machine; this does not fail the check."""


@dataclass
class Setup:
    """What a check runs on: a device, timed runs of each measurement, a folder of datasets, small models and images."""

    device: str  # "cuda", "cuda:1" or "cpu"
    repeats: int = 20
    data: Path | None = None
    tiny: bool = False  # to try the check itself

    def __post_init__(self) -> None:
        self.cuda = self.device.startswith("cuda")
        # TF32 is NVIDIA's, and float16 on a CPU is of no use.
        cuda_precisions = ("float32", "tf32", "bfloat16", "float16")
        self.precisions: tuple[str, ...] = cuda_precisions if self.cuda else ("float32", "bfloat16")
        self.models: tuple[str, ...] = ("tiny",) if self.tiny else ("glip_t_c", "glip_l")  # that are timed
        self.batch_sizes: tuple[int, ...] = (1, 2) if self.tiny else (1, 4, 8)
        self.size = (96, 128) if self.tiny else (800, 1066)  # height, width; 800 x 1066 is padded to 800 x 1088


@dataclass(frozen=True)
class Measurement:
    """One thing to measure, named for lists of what failed or did not fit, and the heading of the table of its rows.

    ``run`` gives rows as they are ready. A row whose "passed" is False fails the check.
    """

    name: str
    table: str
    run: Callable[[], Iterable[Row]]


def each(
    name: str, table: str, run: Callable[..., Iterable[Row]], setup: Setup, **axes: Sequence[Any]
) -> Iterator[Measurement]:
    """A measurement for each combination of the axes, which fill ``name`` and are arguments of ``run``."""
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        yield Measurement(name.format(**chosen), table.format(**chosen), partial(run, setup, **chosen))


# ---- models and inputs


def held(key: str, make: Callable[[], Any], setup: Setup) -> Any:
    """A model that is made once and kept until another is wanted, so that peaks of memory are of one."""
    if key not in _held:
        _held.clear()
        gc.collect()
        if setup.cuda:
            torch.cuda.empty_cache()
        _held[key] = make()
    return _held[key]


def noise(size: Sequence[int]) -> Image.Image:
    """An image of (height, width) pixels of noise, always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def random_boxes(size: Sequence[int]) -> tuple[torch.Tensor, tuple[tuple[int, ...], ...]]:
    """Ten boxes within (height, width), and the label of each."""
    corners = torch.rand(10, 2, 2).sort(1).values * torch.tensor([size[1], size[0]])
    return corners.flatten(1), tuple((7 * number,) for number in range(10))


def write_photos(folder: Path, count: int, *, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """JPEGs of (width, height) pixels: soft shapes under fine grain, which compress about as photos do."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04d}.jpg" for number in range(count)]
    for file in files:
        layers = []
        for grain in ((16, 12), (640, 480)):
            channels = [Image.effect_noise(grain, 90).resize(size, Image.Resampling.BICUBIC) for _ in "RGB"]
            layers.append(Image.merge("RGB", channels))
        Image.blend(layers[0], layers[1], 0.15).save(file, quality=90)
    return files


def random_model(name: str, device: str = "cpu") -> tuple[GLIP, ModelConfig]:
    """A model with a config's sizes and random weights, always the same."""
    config = glip.load_config(name).model
    torch.manual_seed(0)
    with torch.device(device):
        return build(config).eval(), config


def random_detector(name: str, size: Sequence[int], device: str = "cpu") -> glip.Detector:
    """A detector with random weights that does not resize images of ``size``."""
    model, config = random_model(name, device)
    detector = glip.Detector(model, config, Tokenizer(VOCABULARY), device)
    detector.processor.min_size, detector.processor.max_size = min(size), max(size)
    return detector


def detection_batch(config: ModelConfig, size: Sequence[int], device: str, *, names: int, count: int = 1) -> Batch:
    """Noise images, each with the first names of COCO as its prompt."""
    processor = Processor(config, Tokenizer(VOCABULARY))
    processor.min_size, processor.max_size = min(size), max(size)
    prompt = glip.Prompt.from_names(COCO_NAMES[:names])
    return processor([noise(size)] * count, [prompt] * count).to(device)


def training_batch(config: ModelConfig, size: Sequence[int], *, names: int = 80, count: int = 1) -> Batch:
    """The same for training, with ten boxes in each image."""
    boxes, labels = random_boxes(size)
    labels = tuple((label % names,) for (label,) in labels)
    sample = Sample(noise(size), boxes, labels, prompt=glip.Prompt.from_names(COCO_NAMES[:names]))
    return Processor(config, Tokenizer(VOCABULARY)).training([sample] * count)


def grounding_dino(
    names: int, size: Sequence[int], device: str, *, count: int = 1, layers: int = 6
) -> Callable[[], Any]:
    """A pass of Grounding DINO-T of transformers with random weights on ``count`` images and one-token names."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    with torch.device(device):
        queries = min(900, size[0] * size[1] // 64)  # a small image has fewer places
        config = GroundingDinoConfig(num_queries=queries, encoder_layers=layers, decoder_layers=layers)
        model = GroundingDinoForObjectDetection(config).eval()
        ids = torch.full((count, DINO_TOKENS[names]), 1012)  # "."
        ids[:, 1::2] = torch.arange(2000, 2000 + len(ids[0, 1::2]))
        ids[:, 0], ids[:, -1] = 101, 102  # [CLS], [SEP]
        pixels, mask = torch.randn(count, 3, *size), torch.ones(count, *size, dtype=torch.long)
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return lambda: model(pixel_values=pixels, pixel_mask=mask, **text)


# ---- time and memory


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
        with torch.autocast(torch.device(device).type, dtype=HALF[name]) if name in HALF else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def now(device: str) -> Any:
    """A point in time: a CUDA event, or seconds on a CPU."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, last: Any) -> float:
    """Milliseconds between two points in time; waits for a GPU."""
    if isinstance(first, float):
        return float(last - first) * 1e3
    last.synchronize()
    return float(first.elapsed_time(last))


def elapsed(run: Callable[[], Any], device: str = "cpu") -> float:
    """Milliseconds of one run."""
    first = now(device)
    run()
    return between(first, now(device))


def milliseconds(run: Callable[[], Any], device: str, repeats: int, *, warmup: int = WARMUP) -> float:
    """The median time of ``repeats`` runs, of at least five but fewer where they take long."""
    for _ in range(warmup):
        run()
    spent: list[float] = []
    while len(spent) < repeats and (len(spent) < 5 or sum(spent) < _LONGEST_MS):
        spent.append(elapsed(run, device))
    return statistics.median(spent)


def peak_gb(device: str = "cpu") -> float:
    """The most memory that this process has used, in GB: of the GPU by tensors, else of the machine."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@contextmanager
def fresh_process() -> Iterator[Callable[..., Any]]:
    """A process whose peak memory is its own: gives a function that calls others there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda work, *inputs: pool.submit(work, *inputs).result()


# ---- the stages of the network


def stages_of(model: GLIP) -> dict[str, list[nn.Module]]:
    """The modules of each stage; indented stages are part of the one above."""
    tower: list[Any] = list(model.tower)
    blocks = [stage.image for stage in tower]
    return {
        "backbone": [model.vision],
        "pyramid": [model.pyramid],
        "text": [model.language],
        "fusion": [stage.fusion for stage in tower],
        "text layers": [stage.text for stage in tower],
        "dynamic blocks": blocks,
        "  offset convolution": [block.offset for block in blocks],
        "  deformable + norm": [branch for block in blocks for branch in (block.same, block.finer, block.coarser)],
        "heads": [model.boxes, model.tokens],
    }


def meter(run: Callable[[], Any], parts: Parts, read: Callable[[], Any]) -> dict[str, list[tuple[Any, Any]]]:
    """What ``read`` gives before and after each module of each part during one run."""
    begun: dict[str, list[Any]] = {part: [] for part in parts}
    ended: dict[str, list[Any]] = {part: [] for part in parts}
    hooks = []
    for part, modules in parts.items():
        for module in modules:
            hooks.append(module.register_forward_pre_hook(lambda *_, own=begun[part]: own.append(read())))
            hooks.append(module.register_forward_hook(lambda *_, own=ended[part]: own.append(read())))
    run()
    for hook in hooks:
        hook.remove()
    return {part: list(zip(begun[part], ended[part], strict=True)) for part in parts}


def growth(run: Callable[[], Any], parts: Parts, read: Callable[[], float]) -> dict[str, float]:
    """How much a figure grows within each part during one run."""
    return {part: sum(last - first for first, last in own) for part, own in meter(run, parts, read).items()}


def stage_rows(model: GLIP, batch: Batch, kind: str, device: str, repeats: int) -> list[Row]:
    """Time of each stage and its floor: operations at the measured rate of products, bytes at that of copies."""
    parts, spent, run = stages_of(model), [], partial(model, batch)
    with torch.no_grad():
        for _ in range(WARMUP + repeats):  # autocast is entered for each pass
            with precision(kind, device):
                spent.append(meter(run, parts, partial(now, device)))
        with precision(kind, device):
            with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
                flops = growth(run, parts, counter.get_total_flops)
            moved = stage_bytes(run, parts, kind)
            rate, bandwidth = device_rates(kind, device, repeats)
            outputs, sizes = model(batch), (batch.images.resized, batch.images.original)
            config = InferenceConfig(candidate_threshold=0.0)
            last = milliseconds(lambda: postprocess(outputs, batch.text, *sizes, config), device, repeats)
    rows: list[Row] = []
    for part in parts:
        floor = max(flops[part] / rate, moved[part] / bandwidth) * 1e3
        ms = statistics.median(sum(between(*pair) for pair in one[part]) for one in spent[WARMUP:])
        row: Row = {"precision": kind, "stage": part, "ms": ms, "GFLOP": flops[part] / 1e9, "MB": moved[part] / 1e6}
        rows.append({**row, "floor ms": floor, "times the floor": ms / max(floor, 1e-9)})
    rows.append({"precision": kind, "stage": "postprocess", "ms": last})
    rates = f"device: {rate / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s"
    return [*rows, {"precision": kind, "stage": rates}]


def _deform_flops(image: Sequence[int], weight: Sequence[int], offset: Sequence[int], *_: Any, **__: Any) -> int:
    """torch does not count this convolution; sampling is left out."""
    return 2 * image[0] * offset[2] * offset[3] * weight[0] * weight[1] * weight[2] * weight[3]


_UNCOUNTED = {torch.ops.torchvision.deform_conv2d: _deform_flops}


def stage_bytes(run: Callable[[], Any], parts: Parts, kind: str) -> dict[str, float]:
    """The least that each stage must move: its inputs, its outputs and its weights, each once.

    Embedding tables are left out, of which a few rows are read; weights have the width of the precision.
    """
    width = 2 if kind in HALF else 4
    moved = dict.fromkeys(parts, 0.0)
    hooks = []
    for part, modules in parts.items():

        def count(module: nn.Module, inputs: Any, output: Any, part: str = part) -> None:
            tables = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
            weights = sum(value.numel() for value in module.parameters() if id(value) not in tables)
            moved[part] += weights * width + sum(t.numel() * t.element_size() for t in tensors_in((inputs, output)))

        hooks += [module.register_forward_hook(count) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return moved


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dataclasses."""
    if isinstance(tree, torch.Tensor):
        yield tree
        return
    fields = vars(tree).values() if hasattr(tree, "__dataclass_fields__") else ()
    for item in tree if isinstance(tree, list | tuple) else fields:
        yield from tensors_in(item)


def device_rates(kind: str, device: str, repeats: int) -> tuple[float, float]:
    """FLOP/s of a large matrix product in a precision, and bytes read and written per second by a large copy."""
    side, count = (512, 2**22) if device == "cpu" else (8192, 2**29)
    a, b = (torch.randn(side, side, device=device).to(HALF.get(kind, torch.float32)) for _ in range(2))
    source = torch.empty(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    product_ms = milliseconds(lambda: a @ b, device, repeats)
    copy_ms = milliseconds(lambda: target.copy_(source), device, repeats)
    return 2 * side**3 / product_ms * 1e3, 2 * count * 4 / copy_ms * 1e3


# ---- tables


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as a Markdown table; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in columns if any(row.get(key) is not None for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows]


def cell(value: Any) -> str:
    """A cell: three or four digits of a number."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        if value == 0 or 0.01 <= abs(value) < 1000:
            return f"{value:.3g}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
    return "" if value is None else str(value)
