"""Run as a program by each of two processes, with torchrun's environment: a few small runs of both together.

Its arguments: the output folder, then what to run, by the names of ``CASES``, or ``fail``, ``stop`` or a tuning mode.
"""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/train", "tools")]

import torch  # noqa: E402
from small import NAMES, VOCABULARY, seeded  # noqa: E402
from small_runs import STILL, TASK, batches_of, poisoned, quiet, settings, step_of, still, stream, task_samples  # noqa: E402

from glip.config import TuneConfig  # noqa: E402
from glip.data.loader import Step  # noqa: E402
from glip.data.sets import SkipCounter  # noqa: E402
from glip.detector import Detector  # noqa: E402
from glip.encoded import FeatureCache  # noqa: E402
from glip.structures import Prompt  # noqa: E402
from glip.text.tokens import Tokenizer  # noqa: E402
from glip.train.distributed import Group, process_group  # noqa: E402
from glip.train.loop import TrainRun  # noqa: E402
from glip.train.tune import TuneRun  # noqa: E402
from glip.train.tuner import Images, Tuner  # noqa: E402

STEPS = 5
CASES: dict[str, dict[str, object]] = {
    "ddp": {},
    "accumulated": {"micro_batch": 1},
    "fsdp": {"parallel": "fsdp", "micro_batch": 1, "wise_ft": 0.2},
}


def shares(group: Group, micro_batch: int) -> list[Step]:
    """Two different steps of four images, this process's share of each; the fourth step is a bad one."""
    size = micro_batch or 4 // group.size
    batches = batches_of(size)
    count = len(batches) // group.size
    own = batches[group.rank * count : (group.rank + 1) * count]
    good = step_of(*own, skipped="box without area", broken=("image 'x.jpg': cut",))
    bad = poisoned(good) if group.rank == group.size - 1 else good
    return [good, good, good, bad, good]


def run_case(output: Path, name: str, group: Group) -> None:
    """Train; after three steps stop and go on from the checkpoint."""
    changes = {"batch_size": 4, "log_every": 1, "ema": 0.9, "clip": 0.5, "steps": STEPS, "save_every": 3, **CASES[name]}
    made = shares(group, int(str(changes.get("micro_batch", 0))))
    experiment = settings(output / name, **changes)
    model = seeded(STILL)
    try:
        TrainRun(experiment, model, stream(made, STEPS, stop=3), group=group, report=quiet)()
    except KeyboardInterrupt:
        shipped = TrainRun(experiment, seeded(STILL), stream(made, STEPS), group=group, report=quiet)()
    if group.main:
        torch.save(dict(shipped.state_dict()), output / f"{name}.pt")


def run_disturbed(output: Path, name: str, group: Group) -> None:
    """In process 1, at the third step, the loader fails or a signal comes."""
    good = step_of(batches_of(4)[0])

    def fail(start: int) -> Iterator[Step]:
        yield from [good] * 2
        raise ValueError("image 'x.jpg' cannot be read")

    disturbed = fail if name == "fail" else stream([good], STEPS, stop=2, number=signal.SIGTERM)
    steps = disturbed if group.rank == 1 else stream([good], STEPS)
    TrainRun(settings(output / name, batch_size=2, steps=STEPS), seeded(STILL), steps, group=group, report=quiet)()


def run_tuning(output: Path, mode: Any, group: Group) -> None:
    """Tune for two epochs of two steps, in micro-batches; the main process writes what was learned."""
    config = still(TASK)
    options = TuneConfig(mode=mode, epochs=2, images_per_epoch=8, batch_size=4, micro_batch=1)
    detector = Detector(seeded(config), config, Tokenizer(VOCABULARY), "cpu")
    tuner = Tuner(detector, NAMES, Prompt.from_names(NAMES), options)
    images = Images(task_samples(), tuner, augment=False, cache=FeatureCache(1.0), skipped=SkipCounter())
    figures = iter([0.1, 0.2 + group.rank, 0.3])
    run = TuneRun(tuner, images, options, validate=lambda _: next(figures), folder=output / f"tune-{mode}", group=group)
    found = run(quiet)
    if group.main:
        learned = {**found.weights, **({} if found.offsets is None else {"offsets": found.offsets})}
        torch.save({"learned": learned, "history": run.state.history}, output / f"tune-{mode}.pt")


def main() -> None:
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    with process_group("cpu", minutes=1) as group:
        summed = group.sum(torch.tensor([1.0 + group.rank])).item()
        print(json.dumps({"rank": group.rank, "size": group.size, "sum": summed}))
        for name in sys.argv[2:]:
            if name in CASES:
                run_case(output, name, group)
            elif name in ("prompt", "lora", "full"):
                run_tuning(output, name, group)
            else:
                run_disturbed(output, name, group)


if __name__ == "__main__":
    main()
