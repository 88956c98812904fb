"""For ``torture.py``: runs, what a struck process does to itself before its command, a digest of what it leaves."""

import builtins
import hashlib
import io
import json
import os
import re
import resource
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from glip.cli.main import main as glip
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
OUT = "out"  # the output folder of every verb, in the folder where it runs
PATIENCE = 300  # seconds


# ---- runs, which are processes forked from this one


@dataclass(frozen=True)
class Verb:
    """A command whose output folder is ``out``."""

    arguments: Callable[[Path], Sequence[object]]  # from the folder of inputs
    processes: int = 1
    package: str = ""  # without which it is skipped
    blows: tuple[str, ...] = ()  # the only ones, else all


@dataclass
class Run:
    """The processes of a command in a folder."""

    verb: Verb
    folder: Path
    arguments: Sequence[str]
    number: int = 0  # of the run in its folder, for its log
    pids: list[int] = field(default_factory=list)

    def start(self, strike: Callable[[], None] = lambda: None) -> "Run":
        """Fork; ``strike`` runs in each child first."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        sys.stdout.flush()
        for rank in range(self.verb.processes):
            pid = os.fork()
            if pid == 0:
                if self.verb.processes > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.verb.processes)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                self._become(rank, strike)
            self.pids.append(pid)
        return self

    def _become(self, rank: int, strike: Callable[[], None]) -> None:
        """What a child does instead of this program: the command, its words into a file."""
        code = 70
        try:
            os.setsid()  # so that what it leaves behind can be ended with it
            os.chdir(self.folder)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            log = os.open(self.folder / f"run{self.number}-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            strike()
            glip(self.arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except KeyboardInterrupt:  # before the command was ready for it
            code = 130
        except BaseException:
            traceback.print_exc()
        with suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

    def wait(self) -> list[int]:
        """The exit codes, minus the signal of a killed process. Where one fails, torchrun would end the others too."""
        codes, began, failed = dict[int, int](), time.monotonic(), 0.0
        while len(codes) < len(self.pids):
            for pid in set(self.pids) - codes.keys():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    failed = failed or (time.monotonic() if codes[pid] else 0.0)
                elif failed and time.monotonic() - failed > 8 or time.monotonic() - began > PATIENCE:
                    os.kill(pid, signal.SIGKILL)
                elif failed and time.monotonic() - failed > 2:
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.005)
        for pid in self.pids:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # Ray's workers
        assert time.monotonic() - began < PATIENCE, f"it hangs: {self.words()[-300:]}"
        return [codes[pid] for pid in self.pids]

    def words(self) -> str:
        """What its processes printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"run{self.number}-*.log")))


@dataclass
class Count:
    """What came of the blows of one kind."""

    tried: int = 0
    resumed: int = 0  # ended by themselves afterwards, by the same command
    lost: int = 0  # files that are missing at the end
    wrong: int = 0  # files with other contents or too many, ends without a clear sentence, mixed results
    left: int = 0  # partial files at the end
    problems: list[str] = field(default_factory=list)


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
