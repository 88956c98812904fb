"""What training costs on a GPU, whether a killed run resumes there, and DDP and FSDP with one process."""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import runs
import torch
import torch.distributed as dist
from benchmark_training import training_batch
from small import seeded

import glip
from glip.config import TrainConfig
from glip.data.loader import Step
from glip.data.sets import SkipCounter
from glip.train.distributed import Group
from glip.train.loop import build_stepper, train
from glip.train.step import Stepper
from gpu.measure import Measurement, Row, Setup, milliseconds, peak_memory, precision, random_model

_TABLE = "Training steps of {}, {} names, 10 boxes an image"
_RESUME = "A killed run, resumed on the device"
_PARALLEL = "One process with DDP and FSDP"
_STEPS = 4  # of a new model, before steps are timed
_LOSS_APART = 0.02  # of the first loss from that in float32; between DDP, FSDP and none a tenth of it
_float32_losses: dict[int, float] = {}  # by batch size
_RATE = 1e-6  # so low that a random model does not run away: losses in all precisions stay comparable
_KINDS = ("float32", "bfloat16", "float16")


def measurements(setup: Setup) -> Iterator[Measurement]:
    """Resuming, the parallel wrappers, then steps of all sizes."""
    model = setup.models[0]
    yield Measurement("resume", _RESUME, partial(resume_rows, setup))
    yield Measurement("DDP and FSDP", _PARALLEL, partial(parallel_rows, model, setup))
    for size in setup.batch_sizes:
        for checkpointing in (False, True):
            for kind in (kind for kind in _KINDS if kind in setup.precisions):
                title = f"training, batch {size}, {kind}" + (", checkpointing" if checkpointing else "")
                run = partial(step_rows, model, size, kind, checkpointing, setup)
                yield Measurement(title, _TABLE.format(model, names_of(setup)), run)


def make_stepper(name: str, kind: str, setup: Setup, *, checkpointing: bool = False, parallel: str = "") -> Stepper:
    """A model with its optimizer, as ``glip train`` sets them up; with ``parallel`` inside a process group."""
    gc.collect()
    model, _ = random_model(name, setup)
    group = Group(device=torch.device(setup.device))
    settings = TrainConfig(
        lr=_RATE,
        bert_lr=_RATE,
        text_lr=_RATE,
        precision=kind,  # type: ignore[arg-type]
        checkpointing=checkpointing,
        parallel=parallel or "ddp",  # type: ignore[arg-type]
    )
    return build_stepper(model, settings, group)


def names_of(setup: Setup) -> int:
    """How many names the prompt has."""
    return 10 if setup.tiny else 80


def make_step(name: str, size: int, setup: Setup) -> Step:
    """One batch on the device."""
    torch.manual_seed(0)
    batch = training_batch(glip.load_config(name).model, setup.image_size, count=size, names=names_of(setup))
    return Step((batch.to(setup.device),), SkipCounter(), (), size)


def losses_of(stepper: Stepper, step: Step) -> tuple[list[float], int]:
    """The loss of a few steps on one batch, from the same random numbers each time, and how many were skipped."""
    torch.manual_seed(0)
    outcomes = [stepper(step.batches) for _ in range(_STEPS)]
    return [outcome.losses["loss"] for outcome in outcomes], sum(not outcome.stepped for outcome in outcomes)


def step_rows(name: str, size: int, kind: str, checkpointing: bool, setup: Setup) -> list[Row]:
    """Time and memory of a step, and its first loss compared with float32."""
    step = make_step(name, size, setup)
    with precision("float32", setup.device), peak_memory(setup) as memory:
        stepper = make_stepper(name, kind, setup, checkpointing=checkpointing)
        losses, skipped = losses_of(stepper, step)
        spent = milliseconds(lambda: stepper(step.batches), setup, warmup=1)
    row: Row = {"batch": size, "precision": kind, "checkpointing": "yes" if checkpointing else "no"}
    row |= {"ms": spent, "images/s": size * 1e3 / spent, **memory, "loss": losses[0]}
    exact = _float32_losses.setdefault(size, losses[0]) if kind == "float32" else _float32_losses.get(size)
    gap = abs(losses[0] / exact - 1) if exact else None
    row |= {"loss compared with float32, relative": gap, f"steps skipped of {_STEPS}": skipped}
    return [{**row, "passed": stepper(step.batches).stepped and (gap is None or gap <= _LOSS_APART)}]


def resume_rows(setup: Setup) -> list[Row]:
    """Six steps at once, and killed after four and resumed; GPUs add in no fixed order, so two runs differ as well."""
    device = torch.device(setup.device)
    made = [runs.step_of(batch) for batch in runs.batches_of(1, side=128)]

    begun = {key: value.clone() for key, value in seeded(runs.SWIN).state_dict().items()}
    said: list[str] = []

    def run(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        trained = train(
            runs.settings(folder),
            seeded(runs.SWIN),
            runs.stream(made, 6, stop),
            group=Group(device=device),
            report=said.append,
        )
        return {key: value.cpu() for key, value in trained.state_dict().items()}

    with tempfile.TemporaryDirectory() as scratch, precision("float32", setup.device):
        whole, again = run(Path(scratch, "whole")), run(Path(scratch, "again"))
        with suppress(KeyboardInterrupt):
            run(Path(scratch, "killed"), stop=5)
        resumed = run(Path(scratch, "killed"))
    went_on = any(line.startswith("resumed") and line.endswith("at step 4") for line in said)
    unstopped, apart, moved = (largest_gap(whole, other) for other in (again, resumed, begun))
    row: Row = {"two unstopped runs, largest difference of a weight": unstopped, "resumed against unstopped": apart}
    return [{**row, "passed": went_on and apart <= max(10 * unstopped, 1e-4) < moved}]


def largest_gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of two states."""
    return max(float((value.double() - second[key].double()).abs().max()) for key, value in first.items())


def parallel_rows(name: str, setup: Setup) -> Iterator[Row]:
    """The losses of a plain model and of a wrapped one on the same batch."""
    size = setup.batch_sizes[min(1, len(setup.batch_sizes) - 1)]
    step = make_step(name, size, setup)
    plain: list[float] = []
    for parallel in ("none", "ddp", "fsdp"):
        exact = precision("float32", setup.device)
        with exact, process_group(setup, wanted=parallel != "none"), peak_memory(setup) as memory:
            stepper = make_stepper(name, "bfloat16", setup, parallel=parallel.replace("none", ""))
            losses, _ = losses_of(stepper, step)
            plain = plain or losses
            spent = milliseconds(partial(stepper, step.batches), setup, warmup=1)
            del stepper
        gap = max(abs(one / other - 1) for one, other in zip(losses, plain, strict=True))
        row: Row = {"parallel": parallel, "batch": size, "ms": spent, "images/s": size * 1e3 / spent, **memory}
        yield {**row, "loss compared with none, relative": gap, "passed": gap <= _LOSS_APART / 10}


@contextmanager
def process_group(setup: Setup, *, wanted: bool) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, gloo on a CPU."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if setup.cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
