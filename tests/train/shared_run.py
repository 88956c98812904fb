"""Run as a program by each of two processes, with torchrun's environment: a few small runs of both together.

Its arguments: the output folder, then what to run, by the names of ``CASES``, or ``fail`` or ``stop``.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/train", "tools")]

import torch  # noqa: E402
from runs import STILL, batches_of, poisoned, quiet, settings, step_of, stream  # noqa: E402
from small import seeded  # noqa: E402

from glip.data.loader import Step  # noqa: E402
from glip.train.distributed import Group, process_group  # noqa: E402
from glip.train.loop import train  # noqa: E402

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
        train(experiment, model, stream(made, STEPS, stop=3), group=group, report=quiet)
    except KeyboardInterrupt:
        shipped = train(experiment, seeded(STILL), stream(made, STEPS), group=group, report=quiet)
    if group.main:
        torch.save(dict(shipped.state_dict()), output / f"{name}.pt")


def run_disturbed(output: Path, name: str, group: Group) -> None:
    """In process 1, at the third step, the loader fails or a signal comes."""
    good = step_of(batches_of(4)[0])

    def since(start: int) -> Iterator[Step]:
        for step in range(start, STEPS):
            if step == 2 and group.rank == 1 and name == "fail":
                raise ValueError("image 'x.jpg' cannot be read")
            if step == 2 and group.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield good

    train(settings(output / name, batch_size=2, steps=STEPS), seeded(STILL), since, group=group, report=quiet)


def main() -> None:
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    with process_group("cpu", minutes=1) as group:
        summed = group.sum(torch.tensor([1.0 + group.rank])).item()
        print(json.dumps({"rank": group.rank, "size": group.size, "sum": summed}))
        for name in sys.argv[2:]:
            if name in CASES:
                run_case(output, name, group)
            else:
                run_disturbed(output, name, group)


if __name__ == "__main__":
    main()
