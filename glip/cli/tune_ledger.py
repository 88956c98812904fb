"""The rows of a table of tasks: one for each cell, in a file that several processes may add to."""

import json
import os
from pathlib import Path
from typing import Any

from glip.errors import ConfigError
from glip.files import exclusive

LEDGER = "ledger.jsonl"
Row = dict[str, Any]
Key = tuple[str, str, str, str, int]
_FIELDS = frozenset(("model", "weights", "task", "mode", "shots", "seed", "settings", "data", "figures"))


def key_of(row: Row) -> Key:
    """What names a cell: the model's weights, task, mode, shots and seed."""
    return (row["weights"], row["task"], row["mode"], row["shots"], row["seed"])


class Ledger:
    """The file of a table's rows.

    Args:
        path: of the file; its folder is made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """The rows by now, as ``read_ledger`` gives them."""
        return read_ledger(self.path)

    def __contains__(self, key: Key) -> bool:
        return any(key_of(row) == key for row in self.rows())

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk afterwards. What a kill has left of another one goes."""
        with exclusive(self.path.parent, wait=True), self.path.open("a+b") as file:
            file.seek(0)
            whole, end = _rows_and_end(file.read())
            file.truncate(whole)
            file.write(end + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_ledger(path: Path) -> list[Row]:
    """The rows of a file, none of a missing one; of a cell that two processes have made the first.

    A last line that a kill cut off is passed over.

    Raises:
        ValueError: a broken line elsewhere, or one that is no row of a table.
    """
    found: dict[Key, Row] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines) or line.endswith("\n"):
                raise ConfigError(f"{path}: line {number} is no JSON: mend or remove it") from None
            continue
        if not (isinstance(row, dict) and row.keys() >= _FIELDS):
            raise ConfigError(f"{path}: line {number} is no row of a table, which has {', '.join(sorted(_FIELDS))}")
        found.setdefault(key_of(row), row)
    return list(found.values())


def _rows_and_end(content: bytes) -> tuple[int, bytes]:
    """How many bytes of a ledger are rows, and the end that the last of them may lack."""
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:
        return start, b""
    return len(content), b"\n"
