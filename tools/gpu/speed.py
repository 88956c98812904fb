"""How fast the model runs and what memory it takes, eager and compiled; Grounding DINO in the same run."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from benchmark import COCO_NAMES, grounding_dino, stage_flops, stage_modules
from torch import nn

import glip
from glip.config import InferenceConfig, ModelConfig
from glip.model.glip import GLIP
from glip.postprocess import postprocess
from glip.processor import SIZE_DIVISOR
from glip.text.tokens import Tokenizer
from gpu.measure import (
    HALF,
    VOCABULARY,
    Measurement,
    Missing,
    Row,
    Setup,
    detection_batch,
    milliseconds,
    noise_image,
    peak_memory,
    precision,
    random_model,
    release_memory,
)

_TABLE = "Forward pass of {}, eager"
_STAGES = "Stages of {}, batch 1, 80 names, and the least time that the device could take"
_WARMUP = 3  # passes
_LVIS = "1,203 names, as many as LVIS has, in one image"
_COMPILED = "Forward pass of {}, torch.compile, bfloat16, 80 names"
_GRAPH = "Forward pass of {}, replayed as one CUDA graph, 80 names: what is left without launching kernel by kernel"
_DINO = "Forward pass of Grounding DINO-T (transformers), eager"
_NAMES = (80, 3)
_LVIS_NAMES = 1203


def measurements(setup: Setup) -> Iterator[Measurement]:
    """The first model whole, with its stages and a long list of names; then the others."""
    for number, model in enumerate(setup.models):
        for names in _NAMES:
            for size in setup.batch_sizes:
                for kind in setup.precisions:
                    title = f"{model}, {names} names, batch {size}, {kind}"
                    run = partial(forward_rows, model, names, size, kind, setup)
                    yield Measurement(title, _TABLE.format(model), run)
        if number == 0:
            for kind in setup.precisions:
                run = partial(stage_rows, model, kind, setup)
                yield Measurement(f"stages of {model}, {kind}", _STAGES.format(model), run)
            for kind in setup.precisions:
                run = partial(vocabulary_rows, model, kind, setup)
                yield Measurement(f"1,203 names, {model}, {kind}", _LVIS, run)


def compiled(setup: Setup) -> Iterator[Measurement]:
    """The first model as a CUDA graph, and compiled in bfloat16."""
    model = setup.models[0]
    for size in (setup.batch_sizes[0], setup.batch_sizes[-1]):
        run = partial(graphed_rows, model, size, setup)
        yield Measurement(f"{model} as a CUDA graph, batch {size}", _GRAPH.format(model), run)
    for size in (setup.batch_sizes[0], setup.batch_sizes[-1]):
        run = partial(compiled_rows, model, size, setup)
        yield Measurement(f"{model} compiled, batch {size}", _COMPILED.format(model), run)


def dino(setup: Setup) -> Iterator[Measurement]:
    """Grounding DINO-T on images and captions of the same sizes."""
    for names in _NAMES:
        for size in setup.batch_sizes:
            for kind in setup.precisions:
                run = partial(dino_rows, names, size, kind, setup)
                yield Measurement(f"Grounding DINO-T, {names} names, batch {size}, {kind}", _DINO, run)


_held: dict[str, tuple[GLIP, ModelConfig]] = {}


def _model(name: str, setup: Setup) -> tuple[GLIP, ModelConfig]:
    """One model is held at a time, so that peaks are of one."""
    if name not in _held:
        _held.clear()
        release_memory(setup)
        _held[name] = random_model(name, setup)
    return _held[name]


def timed(run: Callable[[], Any], names: int, size: int, kind: str, setup: Setup) -> Row:
    """Time, rate and memory of a forward pass; autocast, where it is on, is entered for each."""

    def once() -> None:
        with precision(kind, setup.device):
            run()

    with torch.no_grad(), peak_memory(setup) as memory:
        spent = milliseconds(once, setup)
    return {"names": names, "batch": size, "precision": kind, "ms": spent, "images/s": size * 1e3 / spent, **memory}


def forward_rows(name: str, names: int, size: int, kind: str, setup: Setup) -> list[Row]:
    """One forward pass of our model."""
    model, config = _model(name, setup)
    batch = detection_batch(config, setup, names=names, size=size)
    return [timed(lambda: model(batch), names, size, kind, setup)]


def compiled_rows(name: str, size: int, setup: Setup) -> Iterator[Row]:
    """The image encoder and the tower compiled, each stage as one graph."""
    torch.compiler.reset()
    _held.clear()
    release_memory(setup)
    model, config = random_model(name, setup)
    batch = detection_batch(config, setup, names=80, size=size)
    with torch.no_grad(), precision("bfloat16", setup.device):
        eager = model(batch)
        parts: list[nn.Module] = [model.vision, model.pyramid, *model.tower]
        for part in parts:
            part.compile(dynamic=False, backend="aot_eager" if setup.tiny else "inductor")
        start = time.perf_counter()
        outputs = model(batch)
        gap = (outputs.token_logits - eager.token_logits).abs().max().item()  # waits for the device
        seconds = time.perf_counter() - start
        del eager, outputs
    row = timed(lambda: model(batch), 80, size, "bfloat16", setup)
    yield {**row, "compiling, s": seconds, "logits compared with eager, largest": gap}


def graphed_rows(name: str, size: int, setup: Setup) -> Iterator[Row]:
    """The eager kernels recorded once and replayed, in each precision; the peak includes the recording."""
    if not setup.cuda:
        raise Missing("CUDA graphs need a GPU")
    model, config = _model(name, setup)
    batch = detection_batch(config, setup, names=80, size=size)
    stream = torch.cuda.Stream()
    for kind in setup.precisions:
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), precision(kind, setup.device), peak_memory(setup) as memory:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(batch)
            torch.cuda.synchronize()
            torch.clear_autocast_cache()  # casts of weights belong to the graph
            with torch.cuda.graph(graph):
                model(batch)
        yield {**timed(graph.replay, 80, size, kind, setup), **memory}
        del graph


def dino_rows(names: int, size: int, kind: str, setup: Setup) -> list[Row]:
    """One forward pass of Grounding DINO-T."""
    model, inputs = _dino(names, size, setup)
    return [timed(lambda: model(**inputs), names, size, kind, setup)]


@lru_cache(maxsize=1)
def _dino(names: int, size: int, setup: Setup) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    _held.clear()
    release_memory(setup)
    return grounding_dino(names, padded(setup.image_size), setup.device, batch=size, layers=2 if setup.tiny else 6)


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that our processor pads an image to."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    return height, width


def stage_rows(name: str, kind: str, setup: Setup) -> list[Row]:
    """Time of each stage, and its floor: operations at the measured rate of products, bytes at that of copies."""
    model, config = _model(name, setup)
    batch = detection_batch(config, setup, names=80, size=1)
    parts = stage_modules(model)
    with torch.no_grad():
        spent = stage_milliseconds(model, batch, parts, kind, setup)
    with torch.no_grad(), precision(kind, setup.device):
        flops, moved = stage_flops(model, batch, parts), stage_bytes(model, batch, parts, kind)
        rate, bandwidth = product_rate(kind, setup), copy_rate(setup)
        outputs = model(batch)
        sizes, decoding = (batch.images.resized, batch.images.original), InferenceConfig(candidate_threshold=0.0)
        last = milliseconds(lambda: postprocess(outputs, batch.text, *sizes, decoding), setup)
    rows: list[Row] = []
    for part in parts:
        floor = max(flops[part] / rate, moved[part] / bandwidth) * 1e3
        row: Row = {"precision": kind, "stage": part, "ms": spent[part], "GFLOP": flops[part] / 1e9}
        row |= {"MB": moved[part] / 1e6, "floor ms": floor, "times the floor": spent[part] / max(floor, 1e-9)}
        rows.append(row)
    rows.append({"precision": kind, "stage": "postprocess", "ms": last})
    rows.append({"precision": kind, "stage": f"device: {rate / 1e12:.1f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s"})
    return rows


def stage_milliseconds(
    model: GLIP, batch: Any, parts: dict[str, list[nn.Module]], kind: str, setup: Setup
) -> dict[str, float]:
    """The median time of each stage over runs of the whole model; on a GPU between events, gaps included."""
    marks: dict[str, list[tuple[Any, Any]]] = {part: [] for part in parts}
    hooks = []
    for part, modules in parts.items():
        started: list[Any] = []

        def begin(*_: Any, started: list[Any] = started) -> None:
            started.append(_now(setup))

        def end(*_: Any, part: str = part, started: list[Any] = started) -> None:
            marks[part].append((started.pop(), _now(setup)))

        for module in modules:
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    for _ in range(_WARMUP + setup.repeats):
        with precision(kind, setup.device):
            model(batch)
    if setup.cuda:
        torch.cuda.synchronize()
    for hook in hooks:
        hook.remove()
    spans = {
        part: [first.elapsed_time(last) if setup.cuda else (last - first) * 1e3 for first, last in own]
        for part, own in marks.items()
    }
    runs = {part: torch.tensor(own).view(_WARMUP + setup.repeats, -1)[_WARMUP:].sum(1) for part, own in spans.items()}
    return {part: float(own.median()) for part, own in runs.items()}


def _now(setup: Setup) -> Any:
    if not setup.cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def stage_bytes(model: GLIP, batch: Any, parts: dict[str, list[nn.Module]], kind: str) -> dict[str, float]:
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
            moved[part] += weights * width + sum(t.numel() * t.element_size() for t in tensors((inputs, output)))

        hooks += [module.register_forward_hook(count) for module in modules]
    model(batch)
    for hook in hooks:
        hook.remove()
    return moved


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dataclasses."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors(item)
    elif hasattr(tree, "__dataclass_fields__"):
        yield from tensors(list(vars(tree).values()))


def product_rate(kind: str, setup: Setup) -> float:
    """FLOP/s of a large matrix product in a precision."""
    side = 512 if setup.tiny or not setup.cuda else 8192
    dtype = HALF.get(kind, torch.float32)
    a, b = (torch.randn(side, side, device=setup.device).to(dtype) for _ in range(2))
    return 2 * side**3 / (milliseconds(lambda: a @ b, setup) / 1e3)


def copy_rate(setup: Setup) -> float:
    """Bytes read and written in a second by a large copy."""
    source = torch.empty(2**22 if setup.tiny or not setup.cuda else 2**29, dtype=torch.float32, device=setup.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source), setup) / 1e3)


def vocabulary_rows(name: str, kind: str, setup: Setup) -> list[Row]:
    """A list of names that needs many prompts: the image is encoded once, the names once for all images."""
    model, config = _model(name, setup)
    detector = glip.Detector(model, config, Tokenizer(VOCABULARY), setup.device)
    detector.processor.min_size, detector.processor.max_size = min(setup.image_size), max(setup.image_size)
    names, image = long_vocabulary(40 if setup.tiny else _LVIS_NAMES), noise_image(setup)
    with precision(kind, setup.device), peak_memory(setup) as memory:
        text = detector.encode_text(glip.Prompt.from_names(names))
        encoded = detector.encode_image([image])
        text_ms = milliseconds(lambda: detector.encode_text(glip.Prompt.from_names(names)), setup, warmup=1)
        image_ms = milliseconds(lambda: detector.encode_image([image]), setup, warmup=1)
        size = setup.batch_sizes[-1]
        ground_ms = milliseconds(lambda: detector.ground(encoded, text, batch_size=size), setup, warmup=1)
    row: Row = {"precision": kind, "names": len(names), "prompts": len(text.chunks[0]), "prompts at once": size}
    row |= {"names once, ms": text_ms, "image, ms": image_ms, "grounding, ms": ground_ms}
    return [{**row, "images/s": 1e3 / (image_ms + ground_ms), **memory}]


def long_vocabulary(count: int) -> list[str]:
    """Different names of two or three words, about as long as those of LVIS."""
    kinds = [
        "small",
        "large",
        "red",
        "blue",
        "old",
        "new",
        "wooden",
        "plastic",
        "round",
        "broken",
        "toy",
        "metal",
        "glass",
    ]
    names = [*COCO_NAMES, *(f"{kind} {name}" for kind in kinds for name in COCO_NAMES)]
    names += [f"piece of {name}" for name in COCO_NAMES] + [f"image of {name}" for name in COCO_NAMES]
    return names[:count]
