"""A table of tasks, tuned in several ways: a row of a ledger each, then the mean over the tasks and its figure."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glip.cli.tune_ledger import LEDGER, Key, Ledger, Row
from glip.cli.tune_page import FIGURE, TABLE, draw_figure, page_of
from glip.errors import ConfigError
from glip.schema import checked

if TYPE_CHECKING:
    from glip.cli.tune_task import TaskSets, TuneConfig
    from glip.detector import Detector
    from glip.encoded import FeatureCache


@checked
class TaskEntry:
    """A task of a table: names of sets or annotation files, and a YAML of prompts."""

    train: str
    test: str
    validate: str = ""
    images: tuple[str, ...] = ()
    prompts: str = ""


@dataclass(frozen=True)
class _Cell:
    """A task tuned in one way; ``kept`` holds the task's encoded images for all its ways."""

    task: str
    read: "Callable[[], TaskSets]"
    how: "TuneConfig"
    kept: "FeatureCache"

    def __str__(self) -> str:
        return f"{self.task}, {self.how.mode}, shots {self.how.shots_text}, seed {self.how.seed}"

    def key(self, weights: str) -> Key:
        return (weights, self.task, self.how.mode, self.how.shots_text, self.how.seed)


def tune_table(args: argparse.Namespace, ways: "Sequence[TuneConfig]") -> int:
    """Tune every task in every way that the ledger does not have yet; then write the table and the figure.

    Several processes may fill one table. A cell that cannot be tuned, such as more shots than a class has, is told and
    the others are tuned.

    Raises:
        ValueError: a table that cannot be read, rows of other settings, or, at the end, cells that could not be tuned.
    """
    from glip.cli.tune_task import OUT
    from glip.detector import Detector

    tasks = list(read_tasks(args))
    detector = Detector.from_pretrained(args.model, device=args.device)
    ledger = Ledger(Path(args.out or f"{OUT}/{Path(args.tasks).stem}") / LEDGER)
    for how in ways:
        _check_settings(ledger, detector, how)
    count = len(tasks) * len(ways)
    failed: list[str] = []
    try:
        for number, cell in enumerate(_cells(tasks, ways, args.keep_gb), start=1):
            failed += _fill(cell, f"[{number} of {count}] {cell}", detector, ledger)
    finally:
        _show(ledger)
    if failed:
        raise ConfigError(f"{len(failed)} of {count} cells could not be tuned; the first: {failed[0]}")
    return 0


def _cells(
    tasks: "Sequence[tuple[str, Callable[[], TaskSets]]]", ways: "Sequence[TuneConfig]", keep_gb: float
) -> Iterator[_Cell]:
    """Each task in all its ways before the next: its images, encoded once, serve them all, and then make room."""
    from glip.encoded import FeatureCache

    for name, read in tasks:
        read_once, kept = cache(read), FeatureCache(keep_gb)
        for how in ways:
            yield _Cell(name, read_once, how, kept)


def _fill(cell: _Cell, title: str, detector: "Detector", ledger: Ledger) -> tuple[str, ...]:
    """Tune a cell that has no row and write its row; gives why where it cannot be."""
    from glip.cli.tune_task import folder_of
    from glip.files import LockedError, exclusive
    from glip.train.tune import remove_state

    weights = detector.fingerprint[:16]
    own = ledger.path.parent / f"{detector.config.name}-{weights[:6]}"  # two trainings of one config: their weights
    folder = folder_of(str(own), cell.task, cell.how)
    _check_data(ledger, cell)
    if cell.key(weights) in ledger:
        remove_state(folder)  # a kill may have left it
        return ()
    print(title)
    try:
        with exclusive(folder):
            if cell.key(weights) not in ledger:  # by now
                ledger.add({**_tuned(cell, detector, folder), "weights": weights})
            remove_state(folder)  # of full tuning four times the model, and no row is tuned again
    except LockedError:
        print("another run is at it")
    except (ValueError, FileNotFoundError) as error:
        print(f"not tuned: {error}")
        return (f"{cell}: {error}",)
    return ()


def _show(ledger: Ledger) -> None:
    """Write and print the table of each model of the ledger, which others may have written to, and the figure."""
    from glip.data.writers import whole_file

    rows, out = ledger.rows(), ledger.path.parent
    if not rows:
        return
    lines = page_of(rows)
    with whole_file(out / TABLE) as page:
        page.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    drawn = draw_figure(rows, out / FIGURE)
    figure = f"figure in {out / FIGURE}" if drawn else "no figure yet: no task has a row of every line"
    print(f"table in {out / TABLE}, {figure}, rows in {ledger.path}")


def _tuned(cell: _Cell, detector: "Detector", folder: Path) -> Row:
    import time

    from glip.cli.tune_task import tune_task

    sets, how = cell.read(), cell.how
    began = time.monotonic()
    found = tune_task(detector, sets, how, folder, kept=cell.kept)
    return {
        "model": detector.config.name,
        "task": sets.name,
        "mode": how.mode,
        "shots": how.shots_text,
        "seed": how.seed,
        "images": int(found.about["images"]),
        "settings": _settings(detector, how),
        "data": sets.mark,
        "figures": {name: round(value, 4) for name, value in found.figures.items()},
        "minutes": round((time.monotonic() - began) / 60, 2),
    }


def _settings(detector: "Detector", how: "TuneConfig") -> dict[str, Any]:
    """What else decides a figure: rows of one line must share it."""
    from glip.cli.tune_task import reading_of

    asked = {
        "per": how.per,
        "vary": how.vary,
        "max_val_images": how.max_val_images,
        "images_per_epoch": 0,
        **how.settings,
    }
    return {**asked, "reading": reading_of(detector.config)}


def _check_settings(ledger: Ledger, detector: "Detector", how: "TuneConfig") -> None:
    """Refuse a table whose line for this way has rows of other settings, of whatever task and seed."""
    now, line = _settings(detector, how), (detector.fingerprint[:16], how.mode, how.shots_text)
    for row in ledger.rows():
        if (row["weights"], row["mode"], row["shots"]) == line and row["settings"] != now:
            raise _unlike(ledger, row, row["settings"], now)


def _check_data(ledger: Ledger, cell: _Cell) -> None:
    """Refuse a table that has the task with other images or words; one that is there no more keeps its rows."""
    try:
        now = cell.read().mark
    except (ValueError, FileNotFoundError):
        return
    for row in ledger.rows():
        if row["task"] == cell.task and row["data"] != now:
            raise _unlike(ledger, row, row["data"], now)


def _unlike(ledger: Ledger, row: Row, then: object, now: object) -> ValueError:
    return ValueError(
        f"{ledger.path} has {row['task']} ({row['mode']}, shots {row['shots']}, seed {row['seed']}) tuned with {then}, "
        f"now asked for with {now}: give another --out: a table compares like with like"
    )


def read_tasks(args: argparse.Namespace) -> "Iterator[tuple[str, Any]]":
    """Each task's name and what reads its sets."""
    from functools import partial

    from glip.evaluate.odinw import ODINW
    from glip.experiment import read_yaml
    from glip.schema import parse

    if args.tasks in ODINW:
        yield from _odinw(ODINW[args.tasks], args.root)
        return
    path = Path(args.tasks)
    if not path.is_file():
        raise ConfigError(f"--tasks {args.tasks!r} is no file: give a YAML of tasks, odinw13 or odinw35")
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path}: expected a map of tasks, such as birds: {{train: birds_train, test: birds_test}}")
    for name, entry in tree.items():
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: {name}: expected a map with train and test, got {entry!r}")
        read = parse(TaskEntry, entry, at=f"{path}: {name}")
        if not (read.train and read.test):
            raise ConfigError(f"{path}: {name}: train or test is empty: name a set or an annotation file for each")
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
        raise ConfigError(f"odinw{which}: no task under {str(data_root(root))!r}: give --root or GLIP_DATA")
    for task in there:
        yield task.name, partial(_read_odinw, task, root)


def _read_odinw(task: Any, root: str | None) -> "TaskSets":
    from glip.cli.tune_task import TaskSets
    from glip.data.sets import SkipCounter
    from glip.evaluate.odinw import read_task

    skipped = SkipCounter()
    parts = [read_task(task, root, split) for split in ("train", "val", "test")]
    for part in parts:
        skipped.merge(part.skipped)
    train, val, test = (part.samples for part in parts)
    return TaskSets(task.name, parts[0].vocabulary, train, val, test, task.prompts, skipped)
