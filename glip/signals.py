"""SIGTERM and SIGINT as a wish to stop, granted between two steps: the run writes its checkpoint first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and has; ``code`` is what the process then exits with (130 or 143)."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.code = 128 + number


class GracefulStop:
    """Notes the signals that ask to stop while a run is going on; a second SIGINT (Ctrl-C) stops it at once.

    ``number`` is the signal's, 0 while there was none. Outside the main thread, which alone may handle signals, it
    notes nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.number:  # a second SIGTERM is only torchrun and the scheduler both asking
            raise Interrupted(number, "stopped at once, without a checkpoint of the last steps")
        self.number = number


@contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM ends what goes on within as Ctrl-C does, so that it can still tell what it has done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "ended by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
