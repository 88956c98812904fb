"""SIGINT and SIGTERM as a request to stop between two steps, so that a run can write its checkpoint first."""

import os
import signal
import threading
from types import FrameType
from typing import Any

AGAIN = "run the same command again to resume"
_UNSAVED = f"without saving; {AGAIN} from the last checkpoint"


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by a signal; ``code`` is the exit code of the process (130 or 143)."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.code = 128 + number


class GracefulStop:
    """Notes SIGINT and SIGTERM while it is open; a second SIGINT (Ctrl-C) stops at once.

    Outside the main thread, the only one that may handle signals, it does nothing.

    Args:
        at_once: raise ``Interrupted`` with this message at the first signal, for work that needs no last step, only its
            clean-up.
        lost: what a second Ctrl-C loses.
    """

    def __init__(self, *, at_once: str = "", lost: str = _UNSAVED) -> None:
        self.number = 0  # of the signal that came
        self._at_once, self._lost = at_once, lost
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
            raise Interrupted(number, self._at_once or f"stopped at once, {self._lost}")
        self.number = number
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")  # print may be interrupted
