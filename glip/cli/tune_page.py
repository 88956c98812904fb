"""What a table of tasks shows: for each model a table over tasks and shots, and their figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from glip.cli.tune_ledger import Row

TABLE, FIGURE = "table.md", "shots.png"
FIGURE_OF, UNTUNED = "test AP50", "test before AP50"  # what is tabled
_NAMED = 4  # tasks that a figure names


def page_of(rows: Sequence[Row]) -> list[str]:
    """A table for each model; with a heading where there are several."""
    titles = _titles(rows)
    tables = {title: table_of([row for row in rows if row["weights"] == key]) for key, title in titles.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    return [line for title, table in tables.items() for line in (f"## {title}", "", *table, "")]


def _titles(rows: Sequence[Row]) -> dict[str, str]:
    """Models by their weights: their names, with the weights where one name has several."""
    names = {row["weights"]: row["model"] for row in rows}
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {weights: f"{name} ({weights[:6]})" if name in shared else name for weights, name in names.items()}


def table_of(rows: Sequence[Row]) -> list[str]:
    """A line for each (mode, shots): mean and standard deviation of a task's seeds, and the mean over tasks."""
    from glip.evaluate.report import markdown_table

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    before = {task: mean(r["figures"][UNTUNED] for r in rows if r["task"] == task) for task in tasks}
    first: Row = {"mode": "untuned", "shots": "0", **{task: _cell([before[task]]) for task in tasks}}
    lines.append({**first, "mean": _cell([mean(before.values())])})
    for mode, shots in dict.fromkeys((row["mode"], row["shots"]) for row in _in_order(rows)):
        own = [row for row in rows if (row["mode"], row["shots"]) == (mode, shots)]
        cells = {}
        means = []
        for task in tasks:
            values = [row["figures"][FIGURE_OF] for row in own if row["task"] == task]
            cells[task] = _cell(values) if values else "missing"
            means += [mean(values)] if values else []
        whole = f"{mean(means):.3f}" if len(means) == len(tasks) else f"{mean(means):.3f} of {len(means)}"
        lines.append({"mode": mode, "shots": shots, **cells, "mean": whole})
    return markdown_table(lines)


def draw_figure(rows: Sequence[Row], path: Path) -> bool:
    """The mean by shots over the tasks that every (model, mode, shots) has; a line for each model and mode.

    Returns:
        Whether there is such a task: else nothing is drawn, for the lines would be means of different things.
    """
    from glip.evaluate.figures import draw_by_shots

    points: dict[tuple[str, str, str], list[Row]] = {}
    titles = _titles(rows)
    for row in _in_order(rows):
        points.setdefault((titles[row["weights"]], row["mode"], row["shots"]), []).append(row)
    common = set.intersection(*({row["task"] for row in own} for own in points.values()))
    if not common:
        return False
    curves: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for (model, mode, shots), own in points.items():
        found = _mean_and_spread([row for row in own if row["task"] in common])
        curves.setdefault((model, mode), {})[shots] = found
    tasks = ", ".join(sorted(common)) if len(common) <= _NAMED else f"{len(common)} tasks"
    axis = sorted({row["shots"] for row in rows}, key=_count)
    draw_by_shots(curves, path, shots=axis, figure=FIGURE_OF, title=f"mean of {tasks}")
    return True


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """By mode and model, as they first came, then by shots: rows come as time allowed."""
    modes, models = (list(dict.fromkeys(row[key] for row in rows)) for key in ("mode", "weights"))

    def place(row: Row) -> tuple[int, int, float]:
        return modes.index(row["mode"]), models.index(row["weights"]), _count(row["shots"])

    return sorted(rows, key=place)


def _count(shots: str) -> float:
    return float("inf" if shots == "all" else shots)


def _mean_and_spread(rows: Sequence[Row]) -> tuple[float, float]:
    """The mean over tasks of the mean over seeds; the deviation of the seeds that have all the tasks, nan of one."""
    by_task: dict[str, dict[int, float]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {})[row["seed"]] = row["figures"][FIGURE_OF]
    whole = set.intersection(*(set(seeds) for seeds in by_task.values()))
    means = [mean(seeds[seed] for seeds in by_task.values()) for seed in whole]
    return mean(mean(seeds.values()) for seeds in by_task.values()), stdev(means) if len(means) > 1 else math.nan


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
