"""Run as a program: train in a forked process, kill it there again and again, and go on until it ends by itself.

The imports, which take most of the time, are done once; what is killed is a real process. Its arguments: the output
folder, then where to kill, such as ``fsync:2`` (before the second call of it) or ``0.2`` (seconds after the start).
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/train", "tools")]

import torch  # noqa: E402
from runs import SWIN, batches_of, quiet, settings, step_of, stream  # noqa: E402
from small import seeded  # noqa: E402

from glip.train.loop import TrainRun  # noqa: E402

STEPS = 6


def start_run(output: Path) -> None:
    """Train to the end, from the start or from the last checkpoint."""
    steps = [step_of(batch) for batch in batches_of(2)]
    experiment = settings(output, save_every=1, log_every=1, keep_every=4, steps=STEPS, ema=0.9)
    TrainRun(experiment, seeded(SWIN), stream(steps, STEPS), report=quiet)()


def kill_before(owner: Any, name: str, count: int) -> None:
    """Have the ``count``-th call of a function kill the process; of torch.save, when half of the file is written."""
    real, calls = getattr(owner, name), iter(range(1, count + 1))

    def call(*given: Any, **named: Any) -> Any:
        if next(calls, 0) != count:
            return real(*given, **named)
        if name == "save":
            real(*given, **named)
            given[1].flush()
            given[1].truncate(given[1].tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, call)


def attempt(output: Path, where: str) -> int:
    """Run in a forked process and kill it; gives its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        name, _, count = where.partition(":")
        if count:
            kill_before(torch if name == "save" else os, name, int(count))
        start_run(output)
        os._exit(0)
    if where and ":" not in where:
        time.sleep(float(where))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    output, kills = Path(sys.argv[1]), sys.argv[2:]
    print([attempt(output, where) for where in [*kills, ""]])


if __name__ == "__main__":
    main()
