"""Measurements of the GPU check that go wrong in every way, for test_check_gpu.py."""

import os
import signal
import time

import torch
from measuring import Missing, Row


def working() -> list[Row]:
    return [{"figure": 1.5, "passed": True}]


def working_again() -> list[Row]:
    return [{"figure": 2.5}]


def broken() -> list[Row]:
    raise ValueError("two lines\nof text")


def out_of_memory() -> list[Row]:
    raise torch.OutOfMemoryError("CUDA out of memory")


def lacking() -> list[Row]:
    raise Missing("a file is not on this machine")


def without_package() -> list[Row]:
    import no_such_package  # noqa: F401

    return []


def dying() -> list[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def failing() -> list[Row]:
    return [{"figure": 9.0, "passed": False}]


def endless() -> list[Row]:
    time.sleep(600)
    return []
