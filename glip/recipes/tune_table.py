"""Tune every task of a table in several ways: one row in a ledger for each, then a table and a figure.

Several processes may fill one table; rows that exist are not tuned again. In the table tasks are across, mode and
number of shots down.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, field, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from glip.config import Mode, TableTask, TuneConfig
from glip.data.catalog import data_root, missing_part
from glip.detector import Detector
from glip.encoded import FeatureCache
from glip.errors import DataError, GlipError
from glip.evaluate.figures import draw_by_shots
from glip.evaluate.odinw import ODINW, read_task, tasks
from glip.evaluate.odinw import Task as OdinwTask
from glip.evaluate.report import for_terminal, markdown_table, markdown_text
from glip.experiment import read_yaml, to_dict
from glip.files import LockedError, append_jsonl, atomic_write, exclusive, file_name, read_jsonl, refuse_other_run
from glip.recipes.tune import TaskData, preprocessing_of, read_task_data, run_name, task_data, tune_task
from glip.schema import checked, parse
from glip.train.checkpoint import LAST
from glip.train.tune import LORA_ONLY

LEDGER, TABLE, FIGURE = "ledger.jsonl", "table.md", "shots.png"
FIGURE_OF, UNTUNED = "test AP50", "test before AP50"
_FREE = ("mode", "shots", "seed", "image_list", "cache_gb", "micro_batch", "checkpointing", "compile")
Reader = Callable[[], TaskData]
Line = dict[str, dict[int, float]]  # the figures of one model, mode and number of shots, by task and seed


@checked
class TableRow:
    """One tuning; ``settings`` and ``data`` must agree within a line of the table."""

    model: str
    weights: str
    task: str
    mode: Mode
    shots: str
    seed: int
    images: int = 0
    settings: dict[str, Any]
    data: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    minutes: float = 0.0

    @property
    def line(self) -> tuple[str, str, str]:
        """What identifies the line of the table."""
        return self.weights, self.mode, self.shots

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies the row."""
        return *self.line, self.task, str(self.seed)


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

    cells = [(_untuned_row(detector, name, config), config) for name in readers for config in configs]
    for known in read_ledger(ledger):
        for row, _ in cells:
            if known.line == row.line:
                may_change = () if row.mode == "lora" else LORA_ONLY
                refuse_other_run(ledger, known.settings, row.settings, may_change=may_change)
    try:
        for number, (row, config) in enumerate(cells, start=1):
            name = run_name(row.task, config)
            title = f"[{number} of {len(cells)}] {name}"
            try:
                _fill_cell(ledger, detector, row, config, partial(read, row.task), title)
            except (GlipError, FileNotFoundError) as error:
                print(f"failed: {error}")
                failed.append(f"{name}: {error}")
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
        if not {FIGURE_OF, UNTUNED} <= row.figures.keys() or not (row.shots == "all" or row.shots.isdecimal()):
            raise DataError(f"{path}, line {number}: no {FIGURE_OF!r} or a wrong number of shots: delete the line")
        rows.setdefault(row.key, row)
    return list(rows.values())


def read_tasks(table: str, root: str | None) -> dict[str, Reader]:
    """A function that reads the datasets of each task, by its name.

    Args:
        table: a YAML file of tasks, odinw13 or odinw35.
        root: the data root.
    """
    if table not in ODINW:
        entries = parse(dict[str, TableTask], read_yaml(Path(table)), at=table)
        return {name: partial(read_task_data, task, root, name) for name, task in entries.items()}
    present = [task for task in tasks(ODINW[table]) if not missing_part(task.files("train"), root)]
    if not present:
        raise DataError(f"No task of {table} is in {str(data_root(root))!r}. Set --root or GLIP_DATA.")
    return {task.name: partial(_read_odinw, task, root) for task in present}


def _read_odinw(task: OdinwTask, root: str | None) -> TaskData:
    train, validate, test = (read_task(task, root, split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    return task_data(task.name, {"train": train, "validate": validate, "test": test}, task.prompts)


def _untuned_row(detector: Detector, task: str, config: TuneConfig) -> TableRow:
    """What is known of a row before the tuning; its settings are what all rows of a line must share."""
    own = {name: value for name, value in to_dict(config).items() if name not in _FREE}
    return TableRow(
        model=detector.config.name,
        weights=detector.fingerprint[:16],
        task=task,
        mode=config.mode,
        shots=str(config.shots or "all"),
        seed=config.seed,
        settings={**own, "preprocessing": preprocessing_of(detector)},
    )


def _fill_cell(
    ledger: Path,
    detector: Detector,
    row: TableRow,
    config: TuneConfig,
    read: Callable[[], tuple[TaskData, FeatureCache]],
    title: str,
) -> None:
    """Tune a task in one way and append its row, unless there is one."""
    folder = ledger.parent / f"{file_name(row.model)}-{row.weights[:6]}" / run_name(row.task, config)

    def is_done() -> bool:
        return any(known.key == row.key for known in read_ledger(ledger))

    try:
        task, features = read()
    except (GlipError, FileNotFoundError):
        if is_done():  # a task whose files are gone keeps its rows
            return
        raise
    data = task.fingerprint()
    for known in read_ledger(ledger):
        if known.task == row.task:
            what = f"images, boxes and prompts of {row.task}"
            refuse_other_run(ledger, {what: known.data[:40]}, {what: data[:40]})
    try:
        with exclusive(folder):
            if not is_done():
                print(title)
                began, found = time.monotonic(), tune_task(detector, task, config, folder, cache=features)
                figures = {name: round(value, 4) for name, value in found.figures.items()}
                minutes, images = round((time.monotonic() - began) / 60, 2), int(found.about["images"])
                _append(ledger, replace(row, images=images, data=data, figures=figures, minutes=minutes))
            (folder / LAST).unlink(missing_ok=True)  # after full tuning four times the size of the model
    except LockedError:
        print(f"{title}: another process is tuning it")


def _append(ledger: Path, row: TableRow) -> None:
    with exclusive(ledger.parent, wait=True):
        append_jsonl(ledger, asdict(row))  # type: ignore[call-overload]


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
    print(f"{for_terminal(text)}\ntable in {out / TABLE}, {figure}, rows in {ledger}")


def table_lines(rows: Sequence[TableRow]) -> list[str]:
    """A table for each model, with a heading if there are several."""
    titles = _titles(rows)
    tables = {title: _table([row for row in rows if row.weights == weights]) for weights, title in titles.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    return [line for title, table in tables.items() for line in (f"## {markdown_text(title)}", "", *table, "")]


def draw_figure(rows: Sequence[TableRow], path: Path) -> bool:
    """Draw the mean by number of shots, a line for each model and mode, over the tasks that every point has.

    The spread is the deviation over the seeds that have all these tasks; nan for one seed.

    Returns:
        False where no task is in every point: the lines would be means over different tasks.
    """
    titles, lines = _titles(rows), _lines(rows)
    common = set.intersection(*(set(line) for line in lines.values()))
    if not common:
        return False
    curves: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for (weights, mode, shots), line in lines.items():
        own = [line[task] for task in common]
        by_seed = [mean(seeds[seed] for seeds in own) for seed in set.intersection(*map(set, own))]
        spread = stdev(by_seed) if len(by_seed) > 1 else math.nan
        curves[titles[weights], mode][shots] = mean(mean(seeds.values()) for seeds in own), spread
    names = ", ".join(sorted(common)) if len(common) <= 4 else f"{len(common)} tasks"
    axis = sorted({row.shots for row in rows}, key=_count)
    draw_by_shots(curves, path, shots=axis, figure=FIGURE_OF, title=f"mean of {names}")
    return True


def _titles(rows: Sequence[TableRow]) -> dict[str, str]:
    """The models' names by their weights; with a part of the weights' fingerprint where a name occurs twice."""
    names = {row.weights: row.model for row in rows}
    listed = list(names.values())
    return {key: f"{name} ({key[:6]})" if listed.count(name) > 1 else name for key, name in names.items()}


def _lines(rows: Sequence[TableRow]) -> dict[tuple[str, str, str], Line]:
    """The figures by (weights, mode, shots): modes and models in the order they first came, then by shots."""
    modes, models = list(dict.fromkeys(row.mode for row in rows)), list(dict.fromkeys(row.weights for row in rows))
    lines: dict[tuple[str, str, str], Line] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(rows, key=lambda row: (modes.index(row.mode), models.index(row.weights), _count(row.shots))):
        lines[row.line][row.task][row.seed] = row.figures[FIGURE_OF]
    return lines


def _table(rows: Sequence[TableRow]) -> list[str]:
    """A line for each mode and number of shots: mean and deviation over a task's seeds, and the mean over tasks."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    before = {task: mean(row.figures[UNTUNED] for row in rows if row.task == task) for task in tasks}
    untuned = {task: _figure_cell([value]) for task, value in before.items()}
    table: list[dict[str, str]] = [
        {"mode": "untuned", "shots": "0", **untuned, "mean": _figure_cell([mean(before.values())])}
    ]
    for (_, mode, shots), line in _lines(rows).items():
        cells = {task: _figure_cell(line[task].values()) if task in line else "missing" for task in tasks}
        count = "" if len(line) == len(tasks) else f" of {len(line)}"
        average = mean(mean(seeds.values()) for seeds in line.values())
        table.append({"mode": mode, "shots": shots, **cells, "mean": f"{average:.3f}{count}"})
    return markdown_table(table)


def _count(shots: str) -> float:
    return math.inf if shots == "all" else float(shots)


def _figure_cell(values: Collection[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
