"""SIGINT and SIGTERM as a request to stop between two steps, so that a run can write its checkpoint first."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by a signal; ``code`` is the exit code of the process (130 or 143)."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.code = 128 + number


class GracefulStop:
    """Notes SIGINT and SIGTERM while it is open; a second SIGINT (Ctrl-C) stops at once.

    Outside the main thread, the only one that may handle signals, it does nothing.

    Args:
        at_once: raise ``Interrupted`` at the first signal, for work that needs no last step, only its clean-up.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.number = 0  # of the signal that came
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_if(self, stopping: bool, message: str) -> None:
        """Raise ``Interrupted`` where this process, or another one that works with it, was asked to stop."""
        if stopping:
            raise Interrupted(self.number or signal.SIGTERM, message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # a second SIGTERM is only torchrun and the scheduler both sending one
        if self._at_once or number == signal.SIGINT == self.number:
            raise Interrupted(number, "stopped at once; the last steps may not be saved")
        self.number = number
