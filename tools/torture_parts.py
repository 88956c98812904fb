"""For ``torture.py``: what a struck process does to itself before its command, and a digest of what it leaves."""

import builtins
import hashlib
import io
import json
import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from glip.files import read_jsonl

TIMES = {
    "seconds",
    "wall",
    "images/s",
    "minutes",
    "made",
    "images_per_second",
    "memory_mb",
    "fingerprint",
}  # differ always
TIMED = ("report.png", "run.json", ".lock", ".tfevents")  # files with times in them, which must only be there
NOBODY, HOUR = 65_534, 3600  # a user, and seconds


# ---- blows from inside: patches that a child makes before the command


def die() -> None:
    """As by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


class CutFile:
    """A file that kills the process when half of what it is first given is written."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "CutFile":
        return self

    def __exit__(self, *_: object) -> None:
        die()

    def write(self, data: Any) -> None:
        """The first half, and death."""
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        if len(data) > 1:
            die()

    def writelines(self, lines: Any) -> None:
        """The same for the first line that has two halves."""
        for line in lines:
            self.write(line)


def count_events(act: Callable[[str, int], None], cut: int = 0) -> None:
    """Have ``act`` called around each rename, with its number from 1; the ``cut``-th file that is opened kills."""
    replace, opened, numbers = os.replace, io.open, Counter[str]()

    def renaming(source: Any, target: Any, **named: Any) -> None:
        numbers["rename"] += 1
        act("before", numbers["rename"])
        replace(source, target, **named)
        act("after", numbers["rename"])

    def opening(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        found = opened(file, mode, *given, **named)
        if set(mode) & set("wax") and not isinstance(file, int) and "/proc" not in str(file):
            numbers["open"] += 1
            act("open", numbers["open"])
            return CutFile(found) if numbers["open"] == cut else found
        return found

    os.replace, io.open, builtins.open = renaming, opening, opening  # type: ignore[assignment]


def note_events(path: Path, what: str, number: int) -> None:
    """Write how many events there have been into files whose length is the number."""
    with suppress(FileNotFoundError):
        os.close(os.open(path / what, os.O_CREAT | os.O_WRONLY))
        os.truncate(path / what, number)


def die_at(wanted: tuple[str, int], what: str, number: int) -> None:
    """Kill at one event."""
    if (what, number) == wanted:
        die()


def wait_for(path: Path, what: str, number: int) -> None:
    """Wait before the first rename until a file is there, so that another run surely comes in between."""
    began = time.monotonic()
    while (what, number) == ("before", 1) and not path.exists() and time.monotonic() - began < HOUR / 20:
        time.sleep(0.05)


def limit(kind: int, value: int, ending: Any = signal.SIG_IGN) -> None:
    """Let the process have no more of something; ``ending`` is for a file that grows beyond it."""
    signal.signal(signal.SIGXFSZ, ending)
    resource.setrlimit(kind, (value, resource.RLIM_INFINITY))


def limit_memory(extra: int) -> None:
    """Let the process take only so many bytes more than it has."""
    used = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + extra, used + extra))


def set_clock_back() -> None:
    """Let the wall clock be a day slow."""
    now = time.time
    time.time = lambda: now() - 24 * HOUR


def become_nobody() -> None:
    """A user who may not write; root may everywhere."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


# ---- what a run has left


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file without the times in it; the predictions of an evaluation, in any parts, as one.

    Raises:
        Exception: a file that is not whole.
    """
    found, parts = dict[str, str](), dict[str, dict[int, str]]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".partial", ".lock") or path.name == ".lock":
            continue
        if path.suffix == ".npz":
            own = parts.setdefault(f"{path.parent.relative_to(folder)}/*.npz", {})
            for sample, digest in _predictions(path):
                assert sample not in own, f"sample {sample} is predicted twice"
                own[sample] = digest
        else:
            found[re.sub(r"(?<=tfevents).*", "", name)] = "" if any(end in name for end in TIMED) else _digest(path)
    return found | {name: _hash(sorted(own.items())) for name, own in parts.items()}


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        return _hash(_without_times(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return _hash([_without_times(row) for row in read_jsonl(path)])
    if path.suffix == ".pt":
        return _hash(_plain(torch.load(path, weights_only=True)))
    if path.suffix == ".safetensors":  # which writes its metadata in any order
        with safe_open(path, "pt") as file:
            return _hash(_plain([file.metadata(), {name: file.get_tensor(name) for name in file.keys()}]))  # noqa: SIM118
    if path.suffix == ".md":
        return _hash([line for line in path.read_text().splitlines() if not line.startswith("Made on")])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _predictions(path: Path) -> Iterator[tuple[int, str]]:
    with np.load(path) as part:
        part = dict(part)
    for row, sample in enumerate(part["samples"].tolist()):
        own = slice(part["ends"][row], part["ends"][row + 1])
        columns = [part[name][own].tobytes() for name in ("labels", "scores", "boxes")]
        yield sample, _hash([str(part["reasons"][row]), str(part["sizes"][row]), *columns])


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A tree of tensors as one of plain values."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return sorted((str(key), _plain(inner)) for key, inner in value.items() if key not in TIMES)
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
