"""Measurements of the GPU check that go wrong in every way, for test_check_gpu.py."""

import os
import signal
import time
from collections.abc import Iterator

import torch
from measuring import Missing, Row


def measure(what: str) -> Iterator[Row]:
    """A row, or what goes wrong instead."""
    if what == "broken":
        raise ValueError("two lines\nof text")
    if what == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if what == "lacking":
        raise Missing("a file is not on this machine")
    if what == "without package":
        import no_such_package  # noqa: F401
    if what == "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "endless":
        time.sleep(600)
    yield {"figure": 9.0 if what == "failing" else 1.5, "passed": what != "failing"}
