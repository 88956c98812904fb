"""What the commands print: counts in words, and progress as a bar on a terminal or as lines in a log file."""

import io
import re
import sys
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper

_SECONDS = 60.0  # between two lines
_ACTED_ON = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # controls, line ends, reading direction


def printable(text: str, kept: str = "") -> str:
    """A name as one piece of a line: what a terminal acts on is escaped as in JSON, which so stays exact."""
    return _ACTED_ON.sub(lambda found: found[0] if found[0] in kept else f"\\u{ord(found[0]):04x}", text)


class Screen(ObjectWrapper):  # type: ignore[misc]
    """Standard output or error of a command: names in what it gets come from files, so it is made ``printable``."""

    def write(self, text: str) -> int:
        """Called by print, warnings, logging and tracebacks; gives the number of characters."""
        self._wrapped.write(printable(text, kept="\n\t"))
        return len(text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images", "2 boxes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{number} {noun}{ending}"


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """tqdm on a terminal; elsewhere a line a minute, and none about what takes less."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._is_log = not sys.stderr.isatty()
        options |= {"file": getattr(sys.stderr, "_wrapped", sys.stderr)}  # a bar moves the cursor
        options |= {"desc": printable(options.get("desc") or "")}
        if self._is_log:
            options |= {"delay": _SECONDS, "mininterval": _SECONDS, "maxinterval": _SECONDS, "miniters": 1}
            options |= {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
            options |= {"file": io.StringIO(), "leave": False}  # for the rest that tqdm would write
        super().__init__(*arguments, **{"leave": False, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Called by tqdm whenever it is time, and to clear the bar with an empty message; gives whether it did."""
        if not self._is_log:
            return super().display(msg, pos)  # type: ignore[func-returns-value]
        if msg is None:
            print(str(self), file=sys.stderr, flush=True)
        return False
