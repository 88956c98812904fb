"""What a GPU costs: time and memory of the model, eager and compiled, of training steps, and of labelling."""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import measuring
import torch
import torch.distributed as dist
from benchmark_data import CAPTIONS, label_times
from measuring import Measurement, Missing, Row, Setup, each, held, milliseconds, precision, random_model

import glip
from glip.config import LabelConfig, ModelConfig, TrainConfig
from glip.model.glip import GLIP
from glip.model.weights import save_pretrained
from glip.processor import SIZE_DIVISOR
from glip.structures import Batch
from glip.train.distributed import Group
from glip.train.loop import TrainRun, build_stepper
from glip.train.step import Stepper

NAMES = (80, 3)
LVIS_NAMES = 1203
LOOKS = ("small", "large", "red", "blue", "old", "new", "wooden", "plastic", "round", "broken", "toy", "metal", "glass")
STEPS = 4  # of a new model, before steps are timed
RATE = 1e-6  # so low that a random model does not run away: losses in all precisions stay comparable
LOSS_APART = 0.02  # of the first loss from that in float32; between DDP, FSDP and none a tenth of it
_float32_losses: dict[int, float] = {}  # by batch size


# ---- the measurements of each part


def speed(setup: Setup) -> Iterator[Measurement]:
    """The first model whole, with its stages and a long list of names; then the others."""
    axes = {"names": NAMES, "size": setup.batch_sizes, "kind": setup.precisions}
    for number, model in enumerate(setup.models):
        title, only = f"Forward pass of {model}, eager", (model,)
        name = "{model}, {names} names, batch {size}, {kind}"
        yield from each(name, title, forward_rows, setup, model=only, **axes)
        title = f"Forward pass of {model} with weights and activations in half precision (dtype), eager"
        halves: Any = {**axes, "kind": [kind for kind in setup.precisions if kind in measuring.HALF]}
        yield from each("{model} in {kind}, {names} names, batch {size}", title, half_rows, setup, model=only, **halves)
        if number == 0:
            kinds: Any = {"model": only, "kind": setup.precisions}
            title = f"Stages of {model}, batch 1, 80 names, and the least time that the device could take"
            yield from each("stages of {model}, {kind}", title, measure_stages, setup, **kinds)
            title = "1,203 names, as many as LVIS has, in one image"
            yield from each("1,203 names, {model}, {kind}", title, vocabulary_rows, setup, **kinds)


def training(setup: Setup) -> Iterator[Measurement]:
    """Resuming, the parallel wrappers, then steps of all sizes."""
    yield from each("resume", "A killed run, resumed on the device", resume_rows, setup)
    yield from each("DDP and FSDP", "One process with DDP and FSDP", parallel_rows, setup)
    title = f"Training steps of {setup.models[0]}, {name_count(setup)} names, 10 boxes an image"
    axes: Any = {"size": setup.batch_sizes, "checkpointing": ("", ", checkpointing")}
    kinds = [kind for kind in setup.precisions if kind != "tf32"]
    yield from each("training, batch {size}, {kind}{checkpointing}", title, step_rows, setup, **axes, kind=kinds)


def labelling(setup: Setup) -> Iterator[Measurement]:
    """The bundled model, then a teacher of the size of GLIP-T with random weights."""
    axes: Any = {"model": ("tiny",) if setup.tiny else ("glip-nano", "glip_t_c"), "kind": ("float32", "bfloat16")}
    title = "Labelling images of 640 x 480, JPEG, one process"
    yield from each("labelling with {model}, {kind}", title, label_rows, setup, **axes)


def compiled(setup: Setup) -> Iterator[Measurement]:
    """The first model as a CUDA graph, and compiled in bfloat16."""
    axes: Any = {"model": setup.models[:1], "size": (setup.batch_sizes[0], setup.batch_sizes[-1])}
    title = "Forward pass of {model}, replayed as one CUDA graph, 80 names: without launching kernel by kernel"
    yield from each("{model} as a CUDA graph, batch {size}", title, graph_rows, setup, **axes)
    title = "Forward pass of {model}, torch.compile, bfloat16, 80 names"
    yield from each("{model} compiled, batch {size}", title, compiled_rows, setup, **axes)


def grounding_dino_passes(setup: Setup) -> Iterator[Measurement]:
    """Grounding DINO-T on images and captions of the same sizes."""
    axes: Any = {"names": NAMES, "size": setup.batch_sizes, "kind": setup.precisions}
    title = "Forward pass of Grounding DINO-T (transformers), eager"
    yield from each("Grounding DINO-T, {names} names, batch {size}, {kind}", title, dino_rows, setup, **axes)


# ---- forward passes


def model_and_batch(name: str, names: int, size: int, setup: Setup) -> tuple[GLIP, Batch]:
    """The held model and a batch for it."""
    pair: tuple[GLIP, ModelConfig] = held(name, lambda: random_model(name, setup.device), setup)
    return pair[0], measuring.detection_batch(pair[1], setup.size, setup.device, names=names, count=size)


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


def timed(run: Callable[[], Any], names: int, size: int, kind: str, setup: Setup) -> Row:
    """Time, rate and memory of a forward pass; autocast, where it is on, is entered for each."""

    def once() -> None:
        with precision(kind, setup.device):
            run()

    with torch.no_grad(), peak_memory(setup) as memory:
        spent = milliseconds(once, setup.device, setup.repeats)
    return {"names": names, "batch": size, "precision": kind, "ms": spent, "images/s": size * 1e3 / spent, **memory}


def forward_rows(setup: Setup, model: str, names: int, size: int, kind: str) -> Iterator[Row]:
    """One forward pass of our model."""
    network, batch = model_and_batch(model, names, size, setup)
    yield timed(partial(network, batch), names, size, kind, setup)


def half_rows(setup: Setup, model: str, names: int, size: int, kind: str) -> Iterator[Row]:
    """One forward pass of our model, cast to a type; TF32 for what stays in float32."""

    def make() -> tuple[GLIP, ModelConfig]:
        network, config = random_model(model, setup.device)
        network.cast(measuring.HALF[kind])
        return network, config

    network, config = held(f"{model} in {kind}", make, setup)
    batch = measuring.detection_batch(config, setup.size, setup.device, names=names, count=size)
    yield {**timed(partial(network, batch), names, size, "tf32", setup), "precision": f"dtype {kind}"}


def measure_stages(setup: Setup, model: str, kind: str) -> list[Row]:
    """Time and floor of each stage."""
    return measuring.stage_rows(*model_and_batch(model, 80, 1, setup), kind, setup.device, setup.repeats)


def dino_rows(setup: Setup, names: int, size: int, kind: str) -> Iterator[Row]:
    """One forward pass of Grounding DINO-T."""
    padded = [-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in setup.size]  # as our processor pads images
    layers = 2 if setup.tiny else 6
    make = partial(measuring.grounding_dino, names, padded, setup.device, count=size, layers=layers)
    yield timed(held(f"Grounding DINO {names} {size}", make, setup), names, size, kind, setup)


def graph_rows(setup: Setup, model: str, size: int) -> Iterator[Row]:
    """The eager kernels recorded once and replayed, in each precision; the peak includes the recording."""
    if not setup.cuda:
        raise Missing("CUDA graphs need a GPU")
    network, batch = model_and_batch(model, 80, size, setup)
    stream = torch.cuda.Stream()
    for kind in setup.precisions:
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), precision(kind, setup.device), peak_memory(setup) as memory:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    network(batch)
            torch.cuda.synchronize()
            torch.clear_autocast_cache()  # casts of weights belong to the graph
            with torch.cuda.graph(graph):
                network(batch)
        yield {**timed(graph.replay, 80, size, kind, setup), **memory}
        del graph


def compiled_rows(setup: Setup, model: str, size: int) -> Iterator[Row]:
    """The image encoder and the tower compiled, each stage as one graph."""
    torch.compiler.reset()
    held("nothing", dict, setup)  # drops a model that was compiled before
    network, batch = model_and_batch(model, 80, size, setup)
    with torch.no_grad(), precision("bfloat16", setup.device):
        eager = network(batch)
        for part in (network.vision, network.pyramid, *network.tower):
            part.compile(dynamic=False, backend="aot_eager" if setup.tiny else "inductor")
        start = time.perf_counter()
        outputs = network(batch)
        gap = (outputs.token_logits - eager.token_logits).abs().max().item()  # waits for the device
        seconds = time.perf_counter() - start
        del eager, outputs
    row = timed(partial(network, batch), 80, size, "bfloat16", setup)
    yield {**row, "compiling, s": seconds, "logits compared with eager, largest": gap}


def vocabulary_rows(setup: Setup, model: str, kind: str) -> Iterator[Row]:
    """A list of names that needs many prompts: the image is encoded once, the names once for all images."""
    make = partial(measuring.random_detector, model, setup.size, setup.device)
    detector: glip.Detector = held(f"detector {model}", make, setup)
    words = ("", *LOOKS, "piece of", "image of")  # before COCO's names: as many as in LVIS, and as long
    names = [f"{word} {name}".strip() for word in words for name in measuring.COCO_NAMES]
    prompt = glip.Prompt.from_names(names[: 40 if setup.tiny else LVIS_NAMES])
    image, size = measuring.noise(setup.size), setup.batch_sizes[-1]
    took = partial(milliseconds, device=setup.device, repeats=setup.repeats, warmup=1)
    with precision(kind, setup.device), peak_memory(setup) as memory:
        text, encoded = detector.encode_text(prompt), detector.encode_image([image])
        text_ms = took(lambda: detector.encode_text(prompt))
        image_ms = took(lambda: detector.encode_image([image]))
        ground_ms = took(lambda: detector.ground(encoded, text, batch_size=size))
    row: Row = {"precision": kind, "names": len(prompt.texts), "prompts": len(text.chunks[0])}
    row |= {"prompts at once": size, "names once, ms": text_ms, "image, ms": image_ms, "grounding, ms": ground_ms}
    yield {**row, "images/s": 1e3 / (image_ms + ground_ms), **memory}


# ---- training


def name_count(setup: Setup) -> int:
    """How many names the prompt has."""
    return 10 if setup.tiny else 80


def make_stepper(kind: str, setup: Setup, **options: Any) -> Stepper:
    """The first model with its optimizer, as ``glip train`` sets them up."""
    gc.collect()
    config = TrainConfig(lr=RATE, bert_lr=RATE, text_lr=RATE, precision=kind, **options)  # type: ignore[arg-type]
    model, _ = random_model(setup.models[0], setup.device)
    return build_stepper(model, config, Group(device=torch.device(setup.device)))


def make_batch(size: int, setup: Setup) -> Batch:
    """One batch on the device."""
    torch.manual_seed(0)
    config = glip.load_config(setup.models[0]).model
    return measuring.training_batch(config, setup.size, names=name_count(setup), count=size).to(setup.device)


def losses_of(stepper: Stepper, batch: Batch) -> tuple[list[float], int]:
    """The loss of a few steps on one batch, from the same random numbers each time, and how many were skipped."""
    torch.manual_seed(0)
    outcomes = [stepper([batch]) for _ in range(STEPS)]
    return [outcome.losses["loss"] for outcome in outcomes], sum(not outcome.stepped for outcome in outcomes)


def step_rows(setup: Setup, size: int, checkpointing: str, kind: str) -> Iterator[Row]:
    """Time and memory of a step, and its first loss compared with float32."""
    batch = make_batch(size, setup)
    with precision("float32", setup.device), peak_memory(setup) as memory:
        stepper = make_stepper(kind, setup, checkpointing=bool(checkpointing))
        losses, skipped = losses_of(stepper, batch)
        spent = milliseconds(lambda: stepper([batch]), setup.device, setup.repeats, warmup=1)
    row: Row = {"batch": size, "precision": kind, "checkpointing": "yes" if checkpointing else "no"}
    row |= {"ms": spent, "images/s": size * 1e3 / spent, **memory, "loss": losses[0]}
    exact = _float32_losses.setdefault(size, losses[0]) if kind == "float32" else _float32_losses.get(size)
    gap = abs(losses[0] / exact - 1) if exact else None
    row |= {"loss compared with float32, relative": gap, f"steps skipped of {STEPS}": skipped}
    yield {**row, "passed": stepper([batch]).stepped and (gap is None or gap <= LOSS_APART)}


def resume_rows(setup: Setup) -> Iterator[Row]:
    """Six steps at once, and killed after four and resumed; GPUs add in no fixed order, so two runs differ as well."""
    import small_runs as runs
    from small import seeded

    steps = [runs.step_of(batch) for batch in runs.batches_of(1, side=128)]
    for kind in ("float32", "bfloat16"):
        said: list[str] = []

        def run(folder: str, stop: int | None = None, kind: str = kind) -> dict[str, torch.Tensor]:
            experiment = runs.settings(Path(scratch, folder), ema=0.9, wise_ft=0.2, precision=kind)
            group, stream = Group(device=torch.device(setup.device)), runs.stream(steps, 6, stop)
            training = TrainRun(experiment, seeded(runs.SWIN), stream, group=group, report=said.append)  # noqa: B023
            return {key: value.cpu() for key, value in training().state_dict().items()}

        with tempfile.TemporaryDirectory() as scratch, precision("float32", setup.device):
            whole, again = run("whole"), run("again")
            with suppress(KeyboardInterrupt):
                run("killed", stop=5)
            resumed = run("killed")
        went_on = any(line.startswith("resumed") and line.endswith("at step 4") for line in said)
        unstopped, apart, moved = (
            max(float((value.double() - state[key].double()).abs().max()) for key, value in whole.items())
            for state in (again, resumed, seeded(runs.SWIN).state_dict())
        )
        row: Row = {"precision": kind, "two unstopped runs, largest difference of a weight": unstopped}
        row |= {"resumed against unstopped": apart}
        yield {**row, "passed": went_on and apart <= max(10 * unstopped, 1e-4) < moved}


def parallel_rows(setup: Setup) -> Iterator[Row]:
    """The losses of a plain model and of a wrapped one on the same batch."""
    size, plain = setup.batch_sizes[1], list[float]()
    batch = make_batch(size, setup)
    for parallel in ("none", "ddp", "fsdp"):
        group = process_group(setup) if parallel != "none" else nullcontext()
        with precision("float32", setup.device), group, peak_memory(setup) as memory:
            stepper = make_stepper("bfloat16", setup, parallel=parallel.replace("none", "ddp"))
            losses, _ = losses_of(stepper, batch)
            plain = plain or losses
            spent = milliseconds(partial(stepper, [batch]), setup.device, setup.repeats, warmup=1)
            del stepper
        gap = max(abs(one / other - 1) for one, other in zip(losses, plain, strict=True))
        row: Row = {"parallel": parallel, "batch": size, "ms": spent, "images/s": size * 1e3 / spent, **memory}
        yield {**row, "loss compared with none, relative": gap, "passed": gap <= LOSS_APART / 10}


@contextmanager
def process_group(setup: Setup) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, gloo on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if setup.cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


# ---- labelling


def label_rows(setup: Setup, model: str, kind: str) -> Iterator[Row]:
    """Images per second and the share of each stage, one and five captions an image."""
    images, rounds = (4, 1) if setup.tiny else (64, 2)
    spacy = find_spec("spacy") is not None
    config = LabelConfig(batch_size=setup.batch_sizes[-1], threads=torch.get_num_threads(), max_repeats=0)
    with tempfile.TemporaryDirectory() as folder:
        teacher = model
        if model != "glip-nano":
            teacher = f"{folder}/teacher"
            save_pretrained(Path(teacher), *random_model(model, setup.device), measuring.VOCABULARY, half=True)
        known = nullcontext() if spacy else patch("glip.pseudo.label.PhraseFinder", KnownPhrases)
        with precision(kind, setup.device), known:
            best = label_times(Path(folder), teacher, config, images, rounds, setup.device)
    for count, spent in best.items():
        wall = spent.pop("wall")
        shares = {stage: f"{seconds / wall:.0%}" for stage, seconds in spent.items()}
        shares |= {} if spacy else {"parse": "not measured, package spacy is missing"}
        yield {"teacher": model, "precision": kind, "captions": count, "images/s": images / wall, **shares}


class KnownPhrases:
    """The noun phrases of the benchmark's captions: without spacy detection is timed and parsing is not."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def many(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Character ranges in each caption."""
        return [[(text.index(one), text.index(one) + len(one)) for one in CAPTIONS[text]] for text in texts]
