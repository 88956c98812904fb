"""Tune every task of a table in several ways: one row in a ledger for each, then a table and a figure.

Several processes may fill one table; rows that exist are not tuned again.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from glip.config import TuneConfig
from glip.data.catalog import data_root, missing_part
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import ConfigError, DataError, GlipError
from glip.evaluate.odinw import ODINW, read_task, tasks
from glip.evaluate.odinw import Task as OdinwTask
from glip.experiment import read_yaml
from glip.files import LockedError, append_jsonl, atomic_write, exclusive, read_jsonl
from glip.recipes.tune import TaskData, preprocessing_of, read_task_data, run_name, tune_task
from glip.recipes.tune_report import TableRow, draw_figure, table_lines
from glip.schema import checked, parse
from glip.train.checkpoint import LAST

LEDGER, TABLE, FIGURE = "ledger.jsonl", "table.md", "shots.png"
Reader = Callable[[], TaskData]


@checked
class TableTask:
    """A task of a table: dataset names or annotation files, and a YAML of prompts."""

    train: str
    test: str
    validate: str = ""
    images: tuple[str, ...] = ()
    prompts: str = ""


def tune_table(detector: Detector, table: str, configs: Sequence[TuneConfig], out: Path, root: str | None) -> None:
    """Tune every task in every way that has no row yet; then write and print the table.

    A task that cannot be tuned, such as one with fewer images than shots, is reported and the others go on.

    Raises:
        GlipError: an unreadable table, rows made with other settings, or at the end the tasks that failed.
    """
    readers = dict(read_tasks(table, root))
    path = out / LEDGER
    for config in configs:
        _check_settings(path, detector, config)
    failed: list[str] = []
    try:
        for number, (name, read) in enumerate(readers.items()):
            read_once, features = cache(read), FeatureCache(configs[0].cache_gb)
            for place, config in enumerate(configs, start=number * len(configs) + 1):
                title = f"[{place} of {len(readers) * len(configs)}] {run_name(name, config)}"
                try:
                    _fill_row(path, detector, name, read_once, config, features, title)
                except (GlipError, FileNotFoundError) as error:
                    print(f"failed: {error}")
                    failed.append(f"{run_name(name, config)}: {error}")
    finally:
        _show(path)
    if failed:
        raise DataError(f"{len(failed)} of {len(readers) * len(configs)} tunings failed; the first: {failed[0]}")


def _fill_row(
    path: Path,
    detector: Detector,
    name: str,
    read: Reader,
    config: TuneConfig,
    features: FeatureCache,
    title: str,
) -> None:
    """Tune a task in one way and append its row, unless there is one."""
    weights = detector.fingerprint[:16]
    key = (weights, name, config.mode, str(config.shots or "all"), str(config.seed))
    folder = path.parent / f"{detector.config.name}-{weights[:6]}" / run_name(name, config)
    _check_data(path, name, read)
    if any(row.key == key for row in read_ledger(path)):
        (folder / LAST).unlink(missing_ok=True)
        return
    print(title)
    try:
        with exclusive(folder):
            if not any(row.key == key for row in read_ledger(path)):  # another process may have finished it by now
                began, task = time.monotonic(), read()
                found = tune_task(detector, task, config, folder, cache=features)
                row = TableRow(
                    model=detector.config.name,
                    weights=weights,
                    task=name,
                    mode=config.mode,
                    shots=str(config.shots or "all"),
                    seed=config.seed,
                    images=int(found.about["images"]),
                    settings=_settings(detector, config),
                    data=task.fingerprint(),
                    figures={title: round(value, 4) for title, value in found.figures.items()},
                    minutes=round((time.monotonic() - began) / 60, 2),
                )
                with exclusive(path.parent, wait=True):
                    append_jsonl(path, dataclasses.asdict(row))
            (folder / LAST).unlink(missing_ok=True)  # after full tuning four times the size of the model
    except LockedError:
        print("another process is tuning it")


def read_ledger(path: Path) -> list[TableRow]:
    """The rows of a ledger, none of a missing one; of two rows with one key the first.

    Raises:
        DataError: a line that is not a row.
    """
    rows: dict[tuple[str, ...], TableRow] = {}
    for number, tree in enumerate(read_jsonl(path) if path.is_file() else (), start=1):
        row = parse(TableRow, tree, at=f"{path}, line {number}", error=DataError)
        rows.setdefault(row.key, row)
    return list(rows.values())


def _settings(detector: Detector, config: TuneConfig) -> dict[str, Any]:
    """What else decides a figure: all rows of one line of the table must share it."""
    free = ("mode", "shots", "seed", "image_list", "cache_gb", "micro_batch", "checkpointing", "compile")
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
    return {**own, "preprocessing": preprocessing_of(detector)}


def _check_settings(path: Path, detector: Detector, config: TuneConfig) -> None:
    now, line = _settings(detector, config), (detector.fingerprint[:16], config.mode, str(config.shots or "all"))
    for row in read_ledger(path):
        if (row.weights, row.mode, row.shots) == line and row.settings != now:
            changed = sorted(key for key in {**now, **row.settings} if now.get(key) != row.settings.get(key))
            raise ConfigError(
                f"{path} has rows of {row.mode}, shots {row.shots} with another {', '.join(changed)}: give another "
                "--out, so that a table compares like with like"
            )


def _check_data(path: Path, name: str, read: Reader) -> None:
    """Refuse a ledger whose task had other images or prompts; a task whose files are gone keeps its rows."""
    rows = [row for row in read_ledger(path) if row.task == name]
    try:
        now = read().fingerprint()
    except (GlipError, FileNotFoundError):
        return
    if any(row.data != now for row in rows):
        raise DataError(f"{path} has rows of {name} with other images, boxes or prompts: give another --out")


def _show(path: Path) -> None:
    """Write and print the table, also with rows from other processes, and draw the figure."""
    rows, out = read_ledger(path), path.parent
    if not rows:
        return
    lines = table_lines(rows)
    with atomic_write(out / TABLE) as page:
        page.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    drawn = draw_figure(rows, out / FIGURE)
    figure = f"figure in {out / FIGURE}" if drawn else "no figure yet: no task has a row in every line"
    print(f"table in {out / TABLE}, {figure}, rows in {path}")


def read_tasks(table: str, root: str | None) -> Iterator[tuple[str, Reader]]:
    """The name of each task and a function that reads its datasets.

    Args:
        table: a YAML file of tasks, odinw13 or odinw35.
        root: the data root.
    """
    if table in ODINW:
        present = [task for task in tasks(ODINW[table]) if not missing_part(task.files("train"), root)]
        if not present:
            raise DataError(f"{table}: no task under {str(data_root(root))!r}: give --root or GLIP_DATA")
        yield from ((task.name, partial(_read_odinw, task, root)) for task in present)
        return
    path = Path(table)
    if not path.is_file():
        raise ConfigError(f"--tasks {table!r} is not a file: give a YAML of tasks, odinw13 or odinw35")
    for name, entry in parse(dict[str, TableTask], read_yaml(path), at=table).items():
        if not (entry.train and entry.test):
            raise ConfigError(f"{table}: {name}: train or test is empty: give a dataset for each")
        files = dataclasses.asdict(entry)
        yield name, partial(read_task_data, **files, root=root, name=name)


def _read_odinw(task: OdinwTask, root: str | None) -> TaskData:
    skipped = SkipCounter()
    parts = [read_task(task, root, split) for split in ("train", "val", "test")]
    for part in parts:
        skipped.merge(part.skipped)
    train, val, test = (part.samples for part in parts)
    return TaskData(task.name, parts[0].vocabulary, train, val, test, task.prompts, skipped)
