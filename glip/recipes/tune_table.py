"""Tune every task of a table in several ways: one row in a ledger for each, then a table and a figure.

Several processes may fill one table; rows that exist are not tuned again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from glip.config import TaskConfig, TuneConfig
from glip.data.catalog import data_root, missing_part
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import ConfigError, DataError, GlipError
from glip.evaluate.odinw import ODINW, read_task, tasks
from glip.evaluate.odinw import Task as OdinwTask
from glip.experiment import read_yaml
from glip.files import LockedError, append_jsonl, atomic_write, exclusive, read_jsonl
from glip.recipes.tune import TaskData, preprocessing_of, read_task_data, run_name, task_data, tune_task
from glip.recipes.tune_report import TableRow, draw_figure, table_lines
from glip.schema import parse
from glip.train.checkpoint import LAST

LEDGER, TABLE, FIGURE = "ledger.jsonl", "table.md", "shots.png"
_FREE = ("mode", "shots", "seed", "image_list", "cache_gb", "micro_batch", "checkpointing", "compile")
Reader = Callable[[], TaskData]


def tune_table(detector: Detector, table: str, configs: Sequence[TuneConfig], out: Path, root: str | None) -> None:
    """Tune every task in every way that has no row yet; then write and print the table.

    A task that cannot be tuned, such as one with fewer images than shots, is reported and the others go on.

    Raises:
        GlipError: an unreadable table, rows made with other settings, or at the end the tasks that failed.
    """
    readers, ledger, failed = read_tasks(table, root), out / LEDGER, list[str]()

    @lru_cache(maxsize=1)
    def read(name: str) -> tuple[TaskData, FeatureCache]:
        return readers[name](), FeatureCache(configs[0].cache_gb)

    for config in configs:
        _check_settings(ledger, detector, config)
    cells = [(name, config) for name in readers for config in configs]
    try:
        for number, (name, config) in enumerate(cells, start=1):
            title = run_name(name, config)
            try:
                _fill_cell(ledger, detector, config, f"[{number} of {len(cells)}] {title}", partial(read, name), name)
            except (GlipError, FileNotFoundError) as error:
                print(f"failed: {error}")
                failed.append(f"{title}: {error}")
    finally:
        _show(ledger)
    if failed:
        raise DataError(f"{len(failed)} of {len(cells)} tunings failed; the first: {failed[0]}")


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


def read_tasks(table: str, root: str | None) -> dict[str, Reader]:
    """A function that reads the datasets of each task, by its name.

    Args:
        table: a YAML file of tasks, odinw13 or odinw35.
        root: the data root.
    """
    if table in ODINW:
        present = [task for task in tasks(ODINW[table]) if not missing_part(task.files("train"), root)]
        if not present:
            raise DataError(f"No task of {table} is in {str(data_root(root))!r}. Set --root or GLIP_DATA.")
        return {task.name: partial(_read_odinw, task, root) for task in present}
    if not Path(table).is_file():
        raise ConfigError(f"--tasks {table!r} is not a file: give a YAML of tasks, odinw13 or odinw35")
    entries = parse(dict[str, TaskConfig], read_yaml(Path(table)), at=table)
    lacking = next((name for name, task in entries.items() if not (task.train and task.test)), None)
    if lacking is not None:
        raise ConfigError(f"{table}: {lacking}: train or test is empty: give a dataset for each")
    return {name: partial(read_task_data, task, root, name) for name, task in entries.items()}


def _read_odinw(task: OdinwTask, root: str | None) -> TaskData:
    train, validate, test = (read_task(task, root, split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    return task_data(task.name, {"train": train, "validate": validate, "test": test}, task.prompts)


def _fill_cell(
    ledger: Path,
    detector: Detector,
    config: TuneConfig,
    title: str,
    read: Callable[[], tuple[TaskData, FeatureCache]],
    name: str,
) -> None:
    """Tune a task in one way and append its row, unless there is one."""
    weights, shots = detector.fingerprint[:16], str(config.shots or "all")
    key = (weights, name, config.mode, shots, str(config.seed))
    folder = ledger.parent / f"{detector.config.name}-{weights[:6]}" / run_name(name, config)

    def is_done() -> bool:
        return any(row.key == key for row in read_ledger(ledger))

    try:
        task, features = read()
    except (GlipError, FileNotFoundError):
        if is_done():  # a task whose files are gone keeps its rows
            return
        raise
    data = task.fingerprint()
    if any(row.task == name and row.data != data for row in read_ledger(ledger)):
        raise DataError(f"{ledger} has rows of {name} with other images, boxes or prompts: give another --out")
    try:
        with exclusive(folder):
            if not is_done():
                print(title)
                _append(ledger, _tuned_row(detector, config, task, features, folder))
            (folder / LAST).unlink(missing_ok=True)  # after full tuning four times the size of the model
    except LockedError:
        print(f"{title}: another process is tuning it")


def _tuned_row(
    detector: Detector, config: TuneConfig, task: TaskData, features: FeatureCache, folder: Path
) -> TableRow:
    began, found = time.monotonic(), tune_task(detector, task, config, folder, cache=features)
    return TableRow(
        model=detector.config.name,
        weights=detector.fingerprint[:16],
        task=task.name,
        mode=config.mode,
        shots=str(config.shots or "all"),
        seed=config.seed,
        images=int(found.about["images"]),
        settings=_settings(detector, config),
        data=task.fingerprint(),
        figures={title: round(value, 4) for title, value in found.figures.items()},
        minutes=round((time.monotonic() - began) / 60, 2),
    )


def _append(ledger: Path, row: TableRow) -> None:
    with exclusive(ledger.parent, wait=True):
        append_jsonl(ledger, asdict(row))  # type: ignore[call-overload]


def _settings(detector: Detector, config: TuneConfig) -> dict[str, Any]:
    """What else decides a figure: all rows of one line of the table must share it."""
    own = {name: value for name, value in vars(config).items() if name not in _FREE}
    return {**own, "preprocessing": preprocessing_of(detector)}


def _check_settings(ledger: Path, detector: Detector, config: TuneConfig) -> None:
    now, line = _settings(detector, config), (detector.fingerprint[:16], config.mode, str(config.shots or "all"))
    for row in read_ledger(ledger):
        if (row.weights, row.mode, row.shots) == line and row.settings != now:
            changed = sorted(key for key in {**now, **row.settings} if now.get(key) != row.settings.get(key))
            raise ConfigError(
                f"{ledger} has rows of {row.mode}, shots {row.shots} with another {', '.join(changed)}: give another "
                "--out, so that a table compares like with like"
            )


def _show(ledger: Path) -> None:
    """Write and print the table, also with rows from other processes, and draw the figure."""
    rows, out = read_ledger(ledger), ledger.parent
    if not rows:
        return
    text = "\n".join(table_lines(rows))
    with atomic_write(out / TABLE) as page:
        page.write(text + "\n")
    drawn = draw_figure(rows, out / FIGURE)
    figure = f"figure in {out / FIGURE}" if drawn else "no figure yet: no task has a row in every line"
    print(f"{text}\ntable in {out / TABLE}, {figure}, rows in {ledger}")
