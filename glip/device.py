"""Where to compute, and in which type: devices and dtypes by name."""

import timeit
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch

from glip.errors import GlipError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIDE = 256  # of the products that are timed: 0.3 ms in float32, 0.1 s where bfloat16 is emulated
_FASTER, _SLOWER = 0.8, 2.0  # times of a product in bfloat16 over one in float32: worth taking, worth a warning
_AMPERE = (8, 0)  # the first GPUs with products in bfloat16


def choose_device(name: str | None) -> torch.device:
    """The device of a name, or CUDA where there is one.

    Raises:
        GlipError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise GlipError(f"device {name!r} is not here: give one of {', '.join(available)}") from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of a name; "auto" is bfloat16 where products in it are faster, else float32.

    Warns where bfloat16 is slower than float32: without instructions for it a processor may take a hundred times as
    long.

    Raises:
        GlipError: no such type, or float16 on a CPU.
    """
    if name == "auto":
        return torch.bfloat16 if bfloat16_time(device) <= _FASTER else torch.float32
    if name not in DTYPES:
        raise GlipError(f"dtype {name!r} is unknown: give one of auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise GlipError("dtype float16 is for GPUs, a CPU has no fast products in it: give bfloat16, auto or float32")
    if name == "bfloat16" and bfloat16_time(device) >= _SLOWER:
        times = f"{bfloat16_time(device):.0f} times as long as in float32"
        warnings.warn(f"bfloat16: products take {times} on this device: dtype float32 is faster here", stacklevel=3)
    return DTYPES[name]


@cache
def bfloat16_time(device: torch.device) -> float:
    """The time of a product in bfloat16 over that in float32, measured once; a GPU is known by its generation."""
    if device.type == "cuda":
        return 0.5 if torch.cuda.get_device_capability(device) >= _AMPERE else _SLOWER
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
        times.append(min(timeit.repeat(partial(torch.mm, factor, factor), number=1, repeat=4)))  # the first sets up
    return times[1] / times[0]


@contextmanager
def out_of_memory_explained(lower: str) -> Iterator[None]:
    """torch's error of a GPU without room, with a note that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(f"lower {lower}")
        raise
