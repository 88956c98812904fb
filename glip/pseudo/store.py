"""A folder of pseudo-labels: for each shard a file of labels, and a report that says the shard is finished.

``NAME.jsonl`` is an ordinary label file (``glip.data.labels.py``) whose boxes have raw scores down to a low
threshold; ``NAME.parquet`` has the same in columns. ``NAME.report.json`` is written after it. A manifest says which
teacher and options made the labels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from glip.files import atomic_write, read_json, read_jsonl, write_json

Row = dict[str, Any]
_REPORT = ".report.json"


def is_done(folder: Path, shard: str) -> bool:
    """Whether a shard is labelled completely."""
    return (folder / f"{shard}{_REPORT}").is_file()


def write_shard(folder: Path, shard: str, form: str, rows: Sequence[Row], report: Mapping[str, Any]) -> None:
    """Write a shard's labels as "jsonl" or "parquet", then its report.

    Raises:
        OSError: a file cannot be written.
    """
    path = folder / f"{shard}.{form}"
    if form == "parquet":
        with atomic_write(path, "wb", durable=True) as file:
            _write_parquet(file, rows)
    else:
        with atomic_write(path, durable=True) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    write_json(folder / f"{shard}{_REPORT}", report)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of all finished shards, by name."""
    return [read_json(path) for path in sorted(folder.glob(f"*{_REPORT}"))]


def read_rows(folder: Path) -> Iterator[Row]:
    """The labels of all finished shards, by name.

    Raises:
        DataError: a line that is not JSON.
    """
    for report in sorted(folder.glob(f"*{_REPORT}")):
        lines, columns = (report.with_name(report.name.removesuffix(_REPORT) + end) for end in (".jsonl", ".parquet"))
        yield from _read_parquet(columns) if columns.is_file() else read_jsonl(lines)


def _write_parquet(file: IO[bytes], rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    integer, number, text = pa.int64(), pa.float64(), pa.string()
    phrase = pa.struct({"text": text, "spans": pa.list_(pa.list_(integer))})
    box = pa.struct({"box": pa.list_(number), "phrases": pa.list_(integer), "score": number})
    columns = {"image": text, "member": text, "start": integer, "length": integer, "width": integer, "height": integer}
    columns |= {"caption": text, "id": text, "phrases": pa.list_(phrase), "boxes": pa.list_(box)}
    # ids are numbers or text, and a column has one type: they are stored as JSON
    table = pa.Table.from_pylist([{**row, "id": json.dumps(row["id"])} for row in rows], schema=pa.schema(columns))
    pyarrow.parquet.write_table(table, file)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield {**{key: value for key, value in row.items() if value is not None}, "id": json.loads(row["id"])}
