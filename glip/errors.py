"""Mistakes that a user can fix. Everything else that goes wrong is a bug, and stays a traceback.

Each message is one sentence: the thing, its value, what is allowed, the next step. The command line prints it alone
and exits with code 2.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 900  # characters of a message


class GlipError(ValueError):
    """A value, file or combination of options that cannot be used.

    What a message quotes may come from strangers' files: it is one line of at most 900 characters, and of characters
    that a terminal would obey or hide it has the codes.
    """

    def __init__(self, message: str = "") -> None:
        if not message.isprintable() or len(message) > _LONGEST:
            message = " ".join(message.split())
            message = message if len(message) <= _LONGEST else f"{message[:600]} ... {message[-250:]}"
            message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)[: 2 * _LONGEST]
        super().__init__(message)


class ConfigError(GlipError):
    """An option or a config that cannot be used."""


class ImageError(GlipError):
    """An image that cannot be read."""


class DataError(GlipError):
    """Annotations, captions, labels or a run's folder that cannot be used; in bulk work a record that is skipped."""


class CheckpointError(GlipError):
    """A model or a training state that cannot be loaded."""


class TrainingError(GlipError):
    """A training that cannot go on, such as after losses that stayed non-finite."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages that are installed with an extra: a missing one is a GlipError that names it."""
    try:
        yield
    except ImportError as error:
        raise GlipError(f"{error.name or extra} is not installed: {install_command(extra)}") from None


def install_command(extra: str) -> str:
    """The command that installs an extra: from the folder that glip was installed from or runs in, if there is one."""
    from importlib.metadata import PackageNotFoundError, distribution  # slow, and only errors need it

    root = Path(__file__).parents[1]
    if (root / "setup.cfg").is_file():
        return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    try:
        origin = json.loads(distribution("glip").read_text("direct_url.json") or "{}")  # PEP 610
    except PackageNotFoundError:
        origin = {}
    source = f"glip[{extra}] @ {origin['url']}" if "dir_info" in origin else f"glip[{extra}]"
    return f"pip install {shlex.quote(source)}"
