"""Where labels lie: a folder with a manifest, and for each shard a file of labels and a report that says it is done.

``NAME.jsonl`` is an ordinary label file (``glip/data/readers/labels.py``) whose boxes have raw scores down to a low
threshold; ``NAME.parquet`` has the same in columns. ``NAME.report.json`` is written after it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from glip.errors import ConfigError, DataError
from glip.files import atomic_write, exclusive

Row = dict[str, Any]
Form = Literal["jsonl", "parquet"]

MANIFEST = "manifest.json"
_DONE = ".report.json"
_PLAIN = ("image", "member", "start", "length", "width", "height", "caption")


class Store:
    """The folder of one labelling.

    Args:
        folder: made if missing.
        form: of the files of labels.
    """

    def __init__(self, folder: str | Path, form: Form = "jsonl") -> None:
        self.folder, self.form = Path(folder), form

    def path(self, shard: str) -> Path:
        """The file of a shard's labels."""
        return self.folder / f"{shard}.{self.form}"

    def is_done(self, shard: str) -> bool:
        """Whether a shard has been labelled to its end."""
        return self._mark(shard).is_file() and self.path(shard).is_file()

    def write(self, shard: str, rows: Sequence[Row], report: Mapping[str, Any]) -> None:
        """Write a shard's labels, then its report, each whole or not at all.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        if self.form == "parquet":
            _write_parquet(self.path(shard), rows)
        else:
            with atomic_write(self.path(shard)) as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        with atomic_write(self._mark(shard)) as file:
            json.dump(report, file, indent=1)

    def reports(self) -> list[dict[str, Any]]:
        """The reports of all shards that are done, by name."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob(f"*{_DONE}"))]

    def _mark(self, shard: str) -> Path:
        return self.folder / f"{shard}{_DONE}"

    # ---- what the labels are of

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note what the labels are made of and with; a folder that holds labels made otherwise is refused.

        Raises:
            ValueError: naming what differs.
            ImportError: parquet without pyarrow.
        """
        if self.form == "parquet" and find_spec("pyarrow") is None:
            raise ConfigError("form parquet: pyarrow is not installed: pip install 'glip[parquet]', or take jsonl")
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(settings))
        if (self.folder / MANIFEST).is_file():
            there = read_manifest(self.folder)
            differing = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]
            if differing:
                key = differing[0]
                raise DataError(
                    f"{str(self.folder)!r} holds labels made with {key} {json.dumps(there.get(key))[:120]}, not "
                    f"{json.dumps(wanted.get(key))[:120]}: give another --out, or remove it to label anew"
                )
            return
        with atomic_write(self.folder / MANIFEST) as file:
            json.dump(wanted, file, indent=1)

    @contextmanager
    def locked(self, *, enabled: bool = True) -> Iterator[None]:
        """Keep other runs from writing here; the lock ends with the process. Of processes of one run one takes it.

        Raises:
            ValueError: another run writes here.
        """
        with exclusive(self.folder) if enabled else nullcontext():
            yield


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What the labels of a folder are made of and with.

    Raises:
        FileNotFoundError: it holds no labels.
        ValueError: a manifest that cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no labels (no {MANIFEST}): give what glip label has written")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not json of a manifest: label anew into another folder")
    return tree


def read_rows(folder: str | Path) -> Iterator[Row]:
    """The rows of all finished shards of a folder, shard by shard by name."""
    for mark in sorted(Path(folder).glob(f"*{_DONE}")):
        name = mark.name.removesuffix(_DONE)
        lines, columns = (Path(folder) / f"{name}.{form}" for form in ("jsonl", "parquet"))
        yield from _read_parquet(columns) if columns.is_file() else _read_jsonl(lines)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(f"{path}, line {number}: not json: remove its .report.json and label anew") from None


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    numbers, text = pa.list_(pa.float64()), pa.string()
    phrase = pa.struct([("text", text), ("spans", pa.list_(pa.list_(pa.int64())))])
    box = pa.struct([("box", numbers), ("phrases", pa.list_(pa.int64())), ("score", pa.float64())])
    kinds = {"image": text, "member": text, "caption": text}
    plain = [(key, kinds.get(key, pa.int64())) for key in _PLAIN]
    schema = pa.schema([*plain, ("id", text), ("phrases", pa.list_(phrase)), ("boxes", pa.list_(box))])
    table = pa.Table.from_pylist([{**row, "id": json.dumps(row["id"])} for row in rows], schema=schema)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pyarrow.parquet.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield {**{key: value for key, value in row.items() if value is not None}, "id": json.loads(row["id"])}
