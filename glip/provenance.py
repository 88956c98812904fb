"""What a folder's results are made of and with, and whether its files are still as they were written.

``run.json`` beside the results, and what is like it for one file, says the version, the command, the config, the data
and the machine, and has a checksum of each file and one of itself. It is for people and for ``glip verify``: whether a
run goes on is the manifest's decision (``files.py``), so dates and versions may change.
"""

import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glip import __version__
from glip.errors import DataError
from glip.files import fingerprint, read_json, write_json

RECORD = "run.json"
RECORDS = (RECORD, "*.report.json", "*.summary.json")  # of a folder, of a shard of labels, of selected labels
_PACKAGES = ("torch", "torchvision", "pycocotools")  # that figures depend on
_SECRET = re.compile(r"(^|[-_.])(token(?!s)|password|passwd|secret|api[-_]?key|credential)[\w-]*$", re.IGNORECASE)
_SEAL, _CHUNK = "fingerprint", 12  # digits of a checksum that are shown
Finding = tuple[str, bool]  # a line, and whether it says that something changed


def made() -> dict[str, str]:
    """Date, command, versions and machine of what is written now."""
    import torch  # here, so that a list of checkpoints does not wait for it

    program = "glip" if Path(sys.argv[0]).stem in ("glip", "__main__") else Path(sys.argv[0]).name
    versions = {"glip": __version__, "Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else platform.machine()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _portable(shlex.join([program, *_without_secrets(sys.argv[1:])])),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "commit": _commit(),
        "machine": f"{platform.system()}, {device}, {torch.get_num_threads()} CPU threads",
    }


def record(path: Path, *, files: Iterable[Path] = (), resumed: bool = False, **about: Any) -> None:
    """Write a record of results when they are begun, or note files in it when they are finished.

    Args:
        path: of the record.
        resumed: note the date of this start too, though nothing else differs.
        files: what it vouches for, beside it or in sub-folders; their checksums are computed now.
        about: the config, the data and what else describes the results; the files of before are forgotten.
    """
    before: dict[str, Any] = {}
    with suppress(FileNotFoundError, DataError):
        before = read_record(path)
    starts, now = before.get("made", []), made()
    if resumed or not any({**one, "date": ""} == {**now, "date": ""} for one in starts):
        starts = [*starts, now]  # else by another version, or with other options
    sums = {file.relative_to(path.parent).as_posix(): sha256(file) for file in files}
    about = json.loads(_portable(json.dumps(about, ensure_ascii=False)))
    tree = {**before, **about, "made": starts, "files": {**({} if about else before.get("files", {})), **sums}}
    write_json(path, {**tree, _SEAL: _seal(tree)})


def renew(*files: Path) -> None:
    """Note files that are written again, where there is a record of their folder."""
    if (path := files[0].parent / RECORD).is_file():
        record(path, files=files)


def read_record(path: Path) -> dict[str, Any]:
    """A record as it was written; an edited one is a DataError."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get(_SEAL) != _seal(tree):
        raise DataError(f"{path.name}: edited since it was written, so what it says cannot be used")
    return tree


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and its sub-folders, but for its record, locks and files that a kill left."""
    every = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in every if path.name != RECORD and not path.name.startswith("."))


def compare(file: Path, expected: str, name: str) -> Finding:
    """A file and its checksum when it was written; ``name`` is what it is called in the line."""
    found = sha256(file) if file.is_file() else ""
    if found == expected:
        return f"{name}: as written", False
    if not found:
        return f"{name}: missing", True
    return f"{name}: changed since it was written (sha256 {found[:_CHUNK]}..., not {expected[:_CHUNK]}...)", True


def sha256(path: Path) -> str:
    """The checksum of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(tree: dict[str, Any]) -> str:
    return fingerprint(json.dumps({key: value for key, value in tree.items() if key != _SEAL}, sort_keys=True))


def _portable(text: str) -> str:
    """A text in which paths under the working folder are relative to it."""
    here = str(Path.cwd())
    return text if here == "/" else re.sub(rf"(?<![\w.:/~-]){re.escape(here)}/", "", text)


def _without_secrets(words: Iterable[str]) -> Iterator[str]:
    hidden = False
    for word in words:
        found = _SECRET.search(word.partition("=")[0])
        word = re.sub(r"(?<=://)[^/@\s]+@", "***@", word)
        yield "***" if hidden else f"{word.partition('=')[0]}=***" if found and "=" in word else word
        hidden = bool(found) and "=" not in word


@cache
def _commit() -> str:
    """The commit of the checkout that the code runs from, with "-dirty" after changes; "" for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip()
    return ""
