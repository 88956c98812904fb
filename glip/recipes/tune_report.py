"""The table and the figure of many tunings: tasks across, mode and number of shots down."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from glip.config import Mode
from glip.evaluate.figures import draw_by_shots
from glip.evaluate.report import markdown_table
from glip.schema import checked

FIGURE_OF, UNTUNED = "test AP50", "test before AP50"
Line = dict[str, dict[int, float]]  # the figures of one model, mode and number of shots, by task and seed


@checked
class TableRow:
    """One finished tuning; ``settings`` and ``data`` must agree within a line of the table."""

    model: str
    weights: str
    task: str
    mode: Mode
    shots: str
    seed: int
    images: int = 0
    settings: dict[str, Any]
    data: str
    figures: dict[str, float]
    minutes: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies the row."""
        return self.weights, self.task, self.mode, self.shots, str(self.seed)


def table_lines(rows: Sequence[TableRow]) -> list[str]:
    """A table for each model, with a heading if there are several."""
    titles = _titles(rows)
    tables = {title: _table([row for row in rows if row.weights == weights]) for weights, title in titles.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    return [line for title, table in tables.items() for line in (f"## {title}", "", *table, "")]


def draw_figure(rows: Sequence[TableRow], path: Path) -> bool:
    """Draw the mean by number of shots, a line for each model and mode, over the tasks that every point has.

    Returns:
        False where no task is in every point: the lines would be means over different tasks.
    """
    titles, lines = _titles(rows), _lines(rows)
    common = set.intersection(*(set(line) for line in lines.values()))
    if not common:
        return False
    curves: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for (weights, mode, shots), line in lines.items():
        curves[titles[weights], mode][shots] = _mean_and_deviation([line[task] for task in common])
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
    lines: dict[tuple[str, str, str], Line] = {}
    for row in sorted(rows, key=lambda row: (modes.index(row.mode), models.index(row.weights), _count(row.shots))):
        line = lines.setdefault((row.weights, row.mode, row.shots), {})
        line.setdefault(row.task, {})[row.seed] = row.figures[FIGURE_OF]
    return lines


def _table(rows: Sequence[TableRow]) -> list[str]:
    """A line for each mode and number of shots: mean and deviation over a task's seeds, and the mean over tasks."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    before = {task: mean(row.figures[UNTUNED] for row in rows if row.task == task) for task in tasks}
    untuned = {task: _cell([value]) for task, value in before.items()}
    table: list[dict[str, str]] = [{"mode": "untuned", "shots": "0", **untuned, "mean": _cell([mean(before.values())])}]
    for (_, mode, shots), line in _lines(rows).items():
        cells = {task: _cell(line[task].values()) if task in line else "missing" for task in tasks}
        count = "" if len(line) == len(tasks) else f" of {len(line)}"
        average = mean(mean(seeds.values()) for seeds in line.values())
        table.append({"mode": mode, "shots": shots, **cells, "mean": f"{average:.3f}{count}"})
    return markdown_table(table)


def _count(shots: str) -> float:
    return math.inf if shots == "all" else float(shots)


def _mean_and_deviation(tasks: Sequence[dict[int, float]]) -> tuple[float, float]:
    """The mean over tasks of the mean over seeds; the deviation over the seeds that have all tasks, nan for one."""
    means = [mean(seeds[seed] for seeds in tasks) for seed in set.intersection(*map(set, tasks))]
    return mean(mean(seeds.values()) for seeds in tasks), stdev(means) if len(means) > 1 else math.nan


def _cell(values: Collection[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
