"""ODinW: 13 or 35 detection tasks in the wild, from one table (``configs/odinw.yaml``) to the mean over the tasks.

A task is a COCO-format set whose category names are replaced by those that the 2022 release asks for, with a caption
prompt for some; the data are laid out as ODinW distributes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, get_args

from glip.config import SetConfig
from glip.data.catalog import data_root
from glip.data.readers.coco import LISTS, detection_samples, read_categories
from glip.data.readers.fields import read_json, sample_set
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import ConfigError, DataError
from glip.evaluate.report import Row, Table
from glip.experiment import config_folder, read_yaml
from glip.schema import checked, parse
from glip.text.class_prompts import ClassPrompt, read_prompts

TABLE = "odinw.yaml"
Split = Literal["train", "val", "test"]
Which = Literal[13, 35]
_FILE = "annotations_without_background.json"


@checked
class Task:
    """One task: an entry of ``configs/odinw.yaml`` by its name.

    Args:
        name: as the release's configs are called.
        folder: under the data root.
        names: what is asked for, of the categories 1, 2, ...; one without letters is in the annotations, but nothing
            can be asked for it.
        thirteen: whether it is one of the 13 of the paper.
        flat: all splits lie in the folder itself, the file's name tells the split.
        train: folder of the training split.
        val: folder of the validation split; the release takes a part of the large ones.
        test: folder of the test split.
        same_as: sets under which a model may have been trained on it.
        prompts: by name, the caption prompt that the release writes instead.
    """

    name: str
    folder: str
    names: tuple[str, ...]
    thirteen: bool = False
    flat: bool = False
    train: str = "train"
    val: str = "valid"
    test: str = "test"
    same_as: tuple[str, ...] = ()
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)

    def files(self, split: Split = "val") -> SetConfig:
        """Where a split lies under the data root; val is what the release's configs evaluate zero-shot."""
        if self.flat:
            return SetConfig(format="coco", annotations=f"{self.folder}/{split}_{_FILE}", images=(self.folder,))
        folder = f"{self.folder}/{dict(train=self.train, val=self.val, test=self.test)[split]}"
        return SetConfig(format="coco", annotations=f"{folder}/{_FILE}", images=(folder,))


@dataclass(frozen=True)
class TaskScore:
    """The figures of one task; ``trained_on``: it is no zero-shot figure."""

    task: Task
    images: int
    ap: float
    ap50: float
    trained_on: bool = False


@dataclass(frozen=True)
class Summary:
    """Mean and median over the tasks that were scored, by name, and the table of all tasks with those missing."""

    figures: dict[str, float]
    table: Table


def tasks(which: Which = 13) -> tuple[Task, ...]:
    """The 13 tasks of the paper, or all 35, in the order of the table.

    Raises:
        ConfigError: another number, or a table that cannot be read.
    """
    if which not in get_args(Which):
        raise ConfigError(f"odinw{which}: ODinW has 13 or 35 tasks: take odinw13 or odinw35")
    return tuple(task for task in _all_tasks() if task.thirteen or which == 35)


def read_task(task: Task, root: str | Path | None = None, split: Split = "val") -> SampleSet:
    """The samples of a task with the names that are asked for, two of which may be equal.

    Args:
        task: which.
        root: the data root.
        split: train, val or test.

    Raises:
        FileNotFoundError: its annotations or images are not under the root.
        ValueError: not COCO json, or not the categories of the task.
    """
    config, skipped = task.files(split), SkipCounter()
    path, folders = data_root(root) / config.annotations, [data_root(root) / folder for folder in config.images]
    tree = read_json(path, LISTS, "COCO detection")
    given = read_categories(tree["categories"], path, SkipCounter(), twins=True).ids
    expected = range(1, len(task.names) + 1)
    if not set(given) <= set(expected):
        strange = [number for number in given if number not in expected]
        raise DataError(
            f"{path}: category {strange[0]!r} is none of the {len(task.names)} of ODinW's {task.name} (1 to "
            f"{len(task.names)}): take the annotations that ODinW distributes, without the background class"
        )
    asked = [{"id": number, "name": name} for number, name in zip(expected, task.names, strict=True)]
    categories = read_categories(asked, path, skipped, twins=True)
    samples = detection_samples(tree, Folders(folders), categories, skipped)
    return sample_set(path, samples, skipped, vocabulary=categories.names, ids=categories.ids)


def summarize(scores: Sequence[TaskScore], which: Which = 13) -> Summary:
    """Mean and median AP, and the table; tasks without a score are rows too, and named beside the mean.

    Raises:
        ValueError: no task was scored, one twice, or one that is not among the tasks.
    """
    found = {score.task.name: score for score in scores}
    listed = tasks(which)
    strange = [name for name in found if name not in {task.name for task in listed}]
    if not found or strange or len(found) < len(scores):
        told = f"{strange[0]!r} is none of them" if strange else "one is there twice" if found else "none was scored"
        raise DataError(f"odinw{which}: {told}: give one score for each of its tasks that is under the data root")
    rows = [_row(task.name, found.get(task.name)) for task in listed]
    over = f"{len(found)} of {which}" if len(found) < which else f"{which}"
    figures: dict[str, float] = {}
    for name, average in (("mean", mean), ("median", median)):
        ap, ap50 = average(score.ap for score in scores), average(score.ap50 for score in scores)
        figures |= {f"{name} AP": ap, f"{name} AP50": ap50}
        rows.append({"task": f"{name} of {over}", "AP": ap, "AP50": ap50, "images": "", "trained on": ""})
    unseen = [score for score in scores if not score.trained_on]
    if 0 < len(unseen) < len(scores):
        figures["mean AP of tasks not trained on"] = mean(score.ap for score in unseen)
        own = {"AP": figures["mean AP of tasks not trained on"], "AP50": mean(score.ap50 for score in unseen)}
        rows.append({"task": f"mean of {len(unseen)} not trained on", **own, "images": "", "trained on": "no"})
    missing = [task.name for task in listed if task.name not in found]
    note = f"; missing, and not in the mean: {', '.join(missing)}" if missing else ""
    return Summary(figures, Table(f"ODinW, {len(found)} of {which} tasks{note}", tuple(rows)))


@cache
def _all_tasks() -> tuple[Task, ...]:
    path = config_folder() / TABLE
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a map of tasks, got {type(tree).__name__}")
    return tuple(_task(str(name), entry, f"{TABLE}: {name}") for name, entry in tree.items())


def _task(name: str, entry: Any, at: str) -> Task:
    if not isinstance(entry, dict):
        raise ConfigError(f"{at}: expected a map of keys, got {entry!r}")
    plain = {key: value for key, value in entry.items() if key != "prompts"}
    task = parse(Task, {"name": name, **plain}, at=at)
    return replace(task, prompts=read_prompts(entry.get("prompts", {}), task.names))


def _row(name: str, score: TaskScore | None) -> Row:
    if score is None:
        return {"task": name, "AP": "missing", "AP50": "missing", "images": "", "trained on": ""}
    seen = "yes" if score.trained_on else "no"
    return {"task": name, "AP": score.ap, "AP50": score.ap50, "images": score.images, "trained on": seen}
