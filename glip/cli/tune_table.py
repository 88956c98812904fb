"""A table of tasks, tuned in several ways: a row of a ledger each, then the mean over the tasks and its figure."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, pstdev
from typing import TYPE_CHECKING, Any, Literal

from glip.cli.evaluate import ODINW

if TYPE_CHECKING:
    from glip.cli.tune_task import HowToTune, TaskSets
    from glip.detector import Detector
    from glip.encoded import KeptImages

LEDGER, TABLE, FIGURE = "ledger.jsonl", "table.md", "shots.png"
FIGURE_OF, UNTUNED = "test AP50", "test before AP50"  # what is tabled
_NAMED = 4  # tasks that a figure names
Row = dict[str, Any]


@dataclass(frozen=True)
class TaskEntry:
    """A task of a table: names of sets or annotation files, and a YAML of prompts."""

    train: str
    test: str
    validate: str = ""
    images: tuple[str, ...] = ()
    prompts: str = ""


def tune_table(args: argparse.Namespace, ways: "Sequence[HowToTune]") -> int:
    """Tune every task in every way that the ledger does not have yet; then write the table and the figure.

    A cell that cannot be tuned, such as more shots than a class has, is told and the others are tuned.

    Raises:
        ValueError: a table that cannot be read, rows of other settings, or, at the end, cells that could not be tuned.
    """
    from glip.cli.tune_task import OUT
    from glip.detector import Detector

    tasks = list(read_tasks(args))
    detector = Detector.from_pretrained(args.model, device=args.device)
    out = Path(args.out or f"{OUT}/{Path(args.tasks).stem}")
    out.mkdir(parents=True, exist_ok=True)
    done = {_key(row): row for row in read_ledger(out / LEDGER)}
    count = len(tasks) * len(ways)
    failed: list[str] = []
    try:
        for number, (name, read, how, kept) in enumerate(_cells(tasks, ways, args.keep_gb), start=1):
            cell = f"{name}, {how.mode}, shots {how.shots or 'all'}, seed {how.seed}"
            known = done.get((detector.fingerprint[:16], name, how.mode, str(how.shots or "all"), how.seed))
            if known is None:
                print(f"[{number} of {count}] {cell}")
                failed += _fill(cell, detector, read, how, kept, out)
            else:
                _check_settings(known, how, read, out / LEDGER)
    finally:
        _show(out)
    if failed:
        raise ValueError(f"{len(failed)} of {count} cells could not be tuned; the first: {failed[0]}")
    return 0


def _cells(
    tasks: "Sequence[tuple[str, Callable[[], TaskSets]]]", ways: "Sequence[HowToTune]", keep_gb: float
) -> "Iterator[tuple[str, Callable[[], TaskSets], HowToTune, KeptImages]]":
    """Each task in all its ways before the next: its pictures, encoded once, serve them all, and then make room."""
    from glip.encoded import KeptImages

    for name, read in tasks:
        read_once, kept = cache(read), KeptImages(keep_gb)
        for how in ways:
            yield name, read_once, how, kept


def _fill(
    cell: str,
    detector: "Detector",
    read: "Callable[[], TaskSets]",
    how: "HowToTune",
    kept: "KeptImages",
    out: Path,
) -> tuple[str, ...]:
    """Tune a cell and write its row; gives why where it cannot be."""
    from glip.cli.tune_task import folder_of
    from glip.train.tune import STATE

    weights = detector.fingerprint[:16]
    own = out / f"{detector.config.name}-{weights[:6]}"  # two trainings of one config are told apart by their weights
    try:
        sets = read()
        folder = folder_of(str(own), sets.name, how)
        row = _tuned(detector, sets, how, kept, folder)
    except (ValueError, FileNotFoundError) as error:
        print(f"not tuned: {error}")
        return (f"{cell}: {error}",)
    with (out / LEDGER).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "weights": weights}) + "\n")
    (folder / STATE).unlink(missing_ok=True)  # of full tuning four times the model, and no row is tuned again
    return ()


def _show(out: Path) -> None:
    """Write and print the table of each model of the ledger, which others may have written to, and the figure."""
    from glip.data.writers import whole_file

    rows = read_ledger(out / LEDGER)
    if not rows:
        return
    lines = page_of(rows)
    with whole_file(out / TABLE) as page:
        page.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    drawn = draw_figure(rows, out / FIGURE)
    figure = f"figure in {out / FIGURE}" if drawn else "no figure yet: no task has a row of every line"
    print(f"table in {out / TABLE}, {figure}, rows in {out / LEDGER}")


def _tuned(detector: "Detector", sets: "TaskSets", how: "HowToTune", kept: "KeptImages", folder: Path) -> Row:
    import time

    from glip.cli.tune_task import tune_task

    began = time.monotonic()
    found = tune_task(detector, sets, how, folder, kept=kept)
    return {
        "model": detector.config.name,
        "task": sets.name,
        "mode": how.mode,
        "shots": str(how.shots or "all"),
        "seed": how.seed,
        "pictures": int(found.about["pictures"]),
        "settings": _settings(how, sets),
        "figures": {name: round(value, 4) for name, value in found.figures.items()},
        "minutes": round((time.monotonic() - began) / 60, 2),
    }


def _settings(how: "HowToTune", sets: "TaskSets | None" = None) -> dict[str, Any]:
    """What else decides a figure: rows of one table must share it."""
    asked = {"per": how.per, "vary": how.vary, "validated": how.most_validated, "views": 0, **how.settings}
    return {**asked, "data": sets.mark} if sets else asked


def _check_settings(row: Row, how: "HowToTune", read: "Callable[[], TaskSets]", ledger: Path) -> None:
    """Refuse a row of other settings or data; of a task that is there no more only the settings are compared."""
    try:
        now = _settings(how, read())
    except (ValueError, FileNotFoundError):
        now = {**_settings(how), "data": row["settings"].get("data")}
    if row["settings"] != now:
        raise ValueError(
            f"{ledger} has {row['task']} ({row['mode']}, shots {row['shots']}, seed {row['seed']}) tuned with "
            f"{row['settings']}, now asked for with {now}: give another --out: a table compares like with like"
        )


def read_ledger(path: Path) -> list[Row]:
    """The rows so far; a last line that a kill cut off is dropped, and one that only lacks its end gets it.

    Raises:
        ValueError: a broken line elsewhere.
    """
    from glip.data.writers import whole_file

    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines) or line.endswith("\n"):
                raise ValueError(f"{path}: line {number} is no JSON: mend or remove it") from None
    if lines and not lines[-1].endswith("\n"):
        with whole_file(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def read_tasks(args: argparse.Namespace) -> "Iterator[tuple[str, Any]]":
    """Each task's name and what reads its sets."""
    from functools import partial

    from glip.config import from_dict, read_yaml

    if args.tasks in ODINW:
        yield from _odinw(ODINW[args.tasks], args.root)
        return
    path = Path(args.tasks)
    if not path.is_file():
        raise ValueError(f"--tasks {args.tasks!r} is no file: give a YAML of tasks, odinw13 or odinw35")
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path}: expected a map of tasks, such as birds: {{train: birds_train, test: birds_test}}")
    for name, entry in tree.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {name}: expected a map with train and test, got {entry!r}")
        read = from_dict(TaskEntry, entry, f"{path}: {name}")
        if not (read.train and read.test):
            raise ValueError(f"{path}: {name}: train or test is empty: name a set or an annotation file for each")
        yield str(name), partial(_read, str(name), read, args.root)


def _read(name: str, entry: TaskEntry, root: str | None) -> "TaskSets":
    from glip.cli.tune_task import read_sets

    prompts = entry.prompts or None
    return read_sets(
        entry.train,
        validate=entry.validate,
        test=entry.test,
        images=entry.images,
        prompts=prompts,
        root=root,
        name=name,
    )


def _odinw(which: Literal[13, 35], root: str | None) -> "Iterator[tuple[str, Any]]":
    from functools import partial

    from glip.data.catalog import data_root, missing_part
    from glip.evaluate.odinw import tasks

    there = [task for task in tasks(which) if not missing_part(task.files("train"), root)]
    if not there:
        raise ValueError(f"odinw{which}: none of its tasks is under {str(data_root(root))!r}: give --root or GLIP_DATA")
    for task in there:
        yield task.name, partial(_read_odinw, task, root)


def _read_odinw(task: Any, root: str | None) -> "TaskSets":
    from glip.cli.tune_task import TaskSets
    from glip.data.sets import Tally
    from glip.evaluate.odinw import read_task

    left_out = Tally()
    parts = [read_task(task, root, split) for split in ("train", "val", "test")]
    for part in parts:
        left_out.add(part.left_out)
    train, val, test = (part.samples for part in parts)
    return TaskSets(task.name, parts[0].vocabulary, train, val, test, task.prompts, left_out)


def _key(row: Row) -> tuple[str, str, str, str, int]:
    return (row["weights"], row["task"], row["mode"], row["shots"], row["seed"])


# ---- what is shown


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
    """A line for each (mode, shots): mean and spread over seeds for each task, and the mean over tasks."""
    from glip.evaluate.report import markdown_table

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    before = {task: mean(r["figures"][UNTUNED] for r in rows if r["task"] == task) for task in tasks}
    first: Row = {"mode": "untuned", "shots": "0", **{task: _cell(before[task], 0.0) for task in tasks}}
    lines.append({**first, "mean": _cell(mean(before.values()), 0.0)})
    for mode, shots in dict.fromkeys((row["mode"], row["shots"]) for row in _in_order(rows)):
        own = [row for row in rows if (row["mode"], row["shots"]) == (mode, shots)]
        cells = {}
        means = []
        for task in tasks:
            values = [row["figures"][FIGURE_OF] for row in own if row["task"] == task]
            cells[task] = _cell(mean(values), pstdev(values)) if values else "missing"
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
    """The mean over tasks of the mean over seeds; the deviation of the seeds that have all the tasks."""
    by_task: dict[str, dict[int, float]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {})[row["seed"]] = row["figures"][FIGURE_OF]
    whole = set.intersection(*(set(seeds) for seeds in by_task.values()))
    means = [mean(seeds[seed] for seeds in by_task.values()) for seed in whole]
    return mean(mean(seeds.values()) for seeds in by_task.values()), pstdev(means) if means else 0.0


def _cell(value: float, spread: float) -> str:
    return f"{value:.3f} ± {spread:.3f}" if spread else f"{value:.3f}"
