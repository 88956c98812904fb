"""One process at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


class LockedError(ValueError):
    """Another process writes there."""


@contextmanager
def exclusive(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder, made if missing; the lock ends with the process.

    Args:
        folder: where only one may write.
        wait: until the other is done, instead of the error.

    Raises:
        LockedError: another process is there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise LockedError(f"another run writes to {str(folder)!r}: wait for it, or give another --out") from None
