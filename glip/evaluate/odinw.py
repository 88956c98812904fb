"""ODinW: 13 or 35 detection tasks in the wild, from one table (``configs/odinw.yaml``).

A task is a COCO-format set whose category names are replaced by those of the 2022 release, with a caption prompt for
some; the files lie as ODinW distributes them.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from glip.config import SetConfig
from glip.data.catalog import data_root
from glip.data.coco import coco_set, parse_coco, read_categories
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError
from glip.experiment import config_folder, read_yaml
from glip.schema import checked, parse
from glip.text.class_prompts import ClassPrompt, read_prompts

TABLE = "odinw.yaml"
Split = Literal["train", "val", "test"]
Which = Literal[13, 35]
ODINW: dict[str, Which] = {"odinw13": 13, "odinw35": 35}
_FILE = "annotations_without_background.json"


@checked
class Task:
    """One task: an entry of ``configs/odinw.yaml`` by its name in the release's configs.

    Args:
        names: what to detect for the categories 1, 2, ...; one without letters is in the annotations, but cannot be
            detected.
        thirteen: whether it is one of the 13 of the paper.
        flat: all splits are in the folder itself; the file's name tells the split.
        val: folder of the validation split, as ``train`` and ``test``; the release takes a part of the large ones.
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
        """Where a split is under the data root; val is what the release's configs evaluate zero-shot."""
        if self.flat:
            return SetConfig(format="coco", annotations=f"{self.folder}/{split}_{_FILE}", images=(self.folder,))
        folder = f"{self.folder}/{dict(train=self.train, val=self.val, test=self.test)[split]}"
        return SetConfig(format="coco", annotations=f"{folder}/{_FILE}", images=(folder,))


@cache
def tasks(which: Which = 13) -> tuple[Task, ...]:
    """The 13 tasks of the paper, or all 35, in the order of the table."""
    found = []
    for name, entry in read_yaml(config_folder() / TABLE).items():
        plain = {key: value for key, value in entry.items() if key != "prompts"}
        task = parse(Task, {"name": name, **plain}, at=f"{TABLE}: {name}")
        found.append(replace(task, prompts=read_prompts(entry.get("prompts", {}), task.names)))
    return tuple(task for task in found if task.thirteen or which == 35)


def read_task(task: Task, root: str | Path | None = None, split: Split = "val") -> SampleSet:
    """The samples of a task with the names of the release, two of which may be equal.

    Raises:
        FileNotFoundError: its annotations or images are not under the root.
        DataError: not COCO JSON, or not the categories of the task.
    """
    config, skipped = task.files(split), SkipCounter()
    path, folders = data_root(root) / config.annotations, [data_root(root) / folder for folder in config.images]
    file, expected = parse_coco(path), range(1, len(task.names) + 1)
    given = read_categories(file.categories, path, SkipCounter(), twins=True).ids
    if strange := [number for number in given if number not in expected]:
        raise DataError(
            f"{path}: category {strange[0]!r} is none of the {len(task.names)} of ODinW's {task.name} (1 to "
            f"{len(task.names)}): take the annotations that ODinW distributes, without the background class"
        )
    named = [{"id": number, "name": name} for number, name in zip(expected, task.names, strict=True)]
    categories = read_categories(named, path, skipped, twins=True)
    return coco_set(file, categories, Folders(folders), skipped)
