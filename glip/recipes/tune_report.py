"""The table and the figure of many tunings: tasks across, mode and number of shots down."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from glip.config import Mode
from glip.evaluate.figures import draw_by_shots
from glip.evaluate.report import markdown_table
from glip.schema import checked

FIGURE_OF, UNTUNED = "test AP50", "test before AP50"


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
    tables = [(titles[key], _table([row for row in rows if row.weights == key])) for key in titles]
    if len(tables) == 1:
        return tables[0][1]
    return [line for title, table in tables for line in (f"## {title}", "", *table, "")]


def _titles(rows: Sequence[TableRow]) -> dict[str, str]:
    """The models' names by their weights; with a part of the weights' fingerprint where a name occurs twice."""
    names = {row.weights: row.model for row in rows}
    listed = list(names.values())
    return {key: f"{name} ({key[:6]})" if listed.count(name) > 1 else name for key, name in names.items()}


def _table(rows: Sequence[TableRow]) -> list[str]:
    """A line for each mode and number of shots: mean and deviation over a task's seeds, and the mean over tasks."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    before = {task: mean(row.figures[UNTUNED] for row in rows if row.task == task) for task in tasks}
    untuned = {task: _cell([before[task]]) for task in tasks}
    lines: list[dict[str, str]] = [{"mode": "untuned", "shots": "0", **untuned, "mean": _cell([mean(before.values())])}]
    for mode, shots in dict.fromkeys((row.mode, row.shots) for row in _sorted(rows)):
        values: dict[str, list[float]] = {task: [] for task in tasks}
        for row in rows:
            if (row.mode, row.shots) == (mode, shots):
                values[row.task].append(row.figures[FIGURE_OF])
        cells = {task: _cell(found) if found else "missing" for task, found in values.items()}
        means = [mean(found) for found in values.values() if found]
        count = "" if len(means) == len(tasks) else f" of {len(means)}"
        lines.append({"mode": mode, "shots": shots, **cells, "mean": f"{mean(means):.3f}{count}"})
    return markdown_table(lines)


def draw_figure(rows: Sequence[TableRow], path: Path) -> bool:
    """Draw the mean by number of shots, a line for each model and mode, over the tasks that every point has.

    Returns:
        False where no task is in every point: the lines would be means over different tasks.
    """
    titles, points = _titles(rows), defaultdict[tuple[str, str, str], list[TableRow]](list)
    for row in _sorted(rows):
        points[titles[row.weights], row.mode, row.shots].append(row)
    common = set.intersection(*({row.task for row in own} for own in points.values()))
    if not common:
        return False
    curves: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for (model, mode, shots), own in points.items():
        curves[model, mode][shots] = _mean_and_deviation([row for row in own if row.task in common])
    names = ", ".join(sorted(common)) if len(common) <= 4 else f"{len(common)} tasks"
    shots_axis = sorted({row.shots for row in rows}, key=_count)
    draw_by_shots(dict(curves), path, shots=shots_axis, figure=FIGURE_OF, title=f"mean of {names}")
    return True


def _sorted(rows: Sequence[TableRow]) -> list[TableRow]:
    """By mode and model, in the order they first came, then by number of shots."""
    modes, models = list(dict.fromkeys(row.mode for row in rows)), list(dict.fromkeys(row.weights for row in rows))
    return sorted(rows, key=lambda row: (modes.index(row.mode), models.index(row.weights), _count(row.shots)))


def _count(shots: str) -> float:
    return math.inf if shots == "all" else float(shots)


def _mean_and_deviation(rows: Sequence[TableRow]) -> tuple[float, float]:
    """The mean over tasks of the mean over seeds; the deviation over the seeds that have all tasks, nan for one."""
    by_task: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        by_task[row.task][row.seed] = row.figures[FIGURE_OF]
    complete = set.intersection(*(set(seeds) for seeds in by_task.values()))
    means = [mean(seeds[seed] for seeds in by_task.values()) for seed in complete]
    return mean(mean(seeds.values()) for seeds in by_task.values()), stdev(means) if len(means) > 1 else math.nan


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
