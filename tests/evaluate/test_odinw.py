"""The table of ODinW's tasks, the reading of one, and the mean over those that are there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from glip.errors import ConfigError
from glip.evaluate.odinw import Task, TaskScore, read_task, summarize, tasks
from glip.evaluate.report import markdown_table
from glip.text.class_prompts import prompt_from_classes

LIST = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lists" / "odinw35_tasks.json"
BOX = [2, 2, 6, 6]


@pytest.mark.unchecked
def test_the_table_holds_13_and_35_tasks():
    few, every = tasks(13), tasks(35)
    assert (len(few), len(every)) == (13, 35) and set(task.name for task in few) < set(task.name for task in every)
    assert len({task.folder for task in every}) == 35 and len(tasks()) == 13
    assert all(task.names and task.folder.startswith("odinw/") for task in every)
    with pytest.raises(ConfigError, match="odinw14: ODinW has 13 or 35 tasks: take odinw13 or odinw35"):
        tasks(14)


def test_golden_names_and_prompts_of_the_release():
    if not LIST.is_file():
        pytest.skip("no list of ODinW tasks beside the project")
    listed = {row["task"]: row for row in json.loads(LIST.read_text())["tasks"] if row["in_odinw35"]}
    table = {task.name: task for task in tasks(35)}
    assert list(table) == list(listed)
    for name, row in listed.items():
        task = table[name]
        assert task.names == tuple(category["name"] for category in row["categories"])
        assert (task.thirteen, task.folder) == (row["odinw13"], f"odinw/{row['image_set']}")
        assert bool(task.prompts) == bool(row["caption_prompt"])
        for own, given in zip(task.names, row["caption_prompt"] or (), strict=bool(row["caption_prompt"])):
            text = task.prompts[own].text if own in task.prompts else own
            assert text == given["prefix"] + given["name"] + given["suffix"]


def test_a_caption_prompt_is_read():
    pothole = next(task for task in tasks() if task.name == "pothole")
    prompt = prompt_from_classes(pothole.names, pothole.prompts)
    assert prompt.caption == "there are some holes on the road" and prompt.texts == ("holes",)


def test_where_splits_lie():
    """Most have a folder for each split; some lie flat; of the large ones the release takes a part for validation."""
    table = {task.name: task for task in tasks(35)}
    files = table["EgoHands_generic"].files()
    assert files.annotations == "odinw/EgoHands/generic/mini_val/annotations_without_background.json"
    assert files.images == ("odinw/EgoHands/generic/mini_val",) and files.format == "coco"
    assert table["EgoHands_generic"].files("test").images == ("odinw/EgoHands/generic/test",)
    flat = table["pistols_export"].files("test")
    assert flat.annotations == "odinw/pistols/export/test_annotations_without_background.json"
    assert flat.images == ("odinw/pistols/export",)
    assert table["pothole"].files().images == ("odinw/pothole/valid",)
    assert table["PascalVOC"].files("test") == table["PascalVOC"].files("val")


def write_task(task: Task, root: Path, categories: list[dict[str, object]]) -> None:
    """One image with a box of every category."""
    files = task.files()
    folder = root / files.images[0]
    folder.mkdir(parents=True)
    Image.new("RGB", (10, 10)).save(folder / "a.png")
    boxes = [{"id": i, "image_id": 5, "category_id": row["id"], "bbox": BOX} for i, row in enumerate(categories)]
    images = [{"id": 5, "file_name": "a.png", "width": 10, "height": 10}]
    tree = {"images": images, "annotations": boxes, "categories": categories}
    (root / files.annotations).write_text(json.dumps(tree), encoding="utf-8")


def test_a_task_is_asked_for_the_names_of_the_release(tmp_path):
    """Its own categories are called otherwise, two names may be equal, and one without letters is not asked for."""
    task = Task(name="t", folder="odinw/t", names=("o", "o ", "  ", "small_fish"))
    write_task(task, tmp_path, [{"id": number, "name": f"own {number}"} for number in (4, 3, 2, 1)])
    read = read_task(task, tmp_path)
    assert read.vocabulary == ("o", "o", "small fish") and read.ids == (1, 2, 4)
    [sample] = read.samples
    assert sample.vocabulary == read.vocabulary and sample.box_phrases == ((2,), (1,), (0,)) and sample.image_id == 5
    assert read.skipped.counts == {"category without a name": 1, "unknown category": 1}


def test_a_task_with_other_categories_or_without_data(tmp_path):
    task = Task(name="t", folder="odinw/t", names=("fish",))
    with pytest.raises(FileNotFoundError, match=r"odinw/t/valid/annotations_without_background.json' are not there"):
        read_task(task, tmp_path)
    write_task(task, tmp_path, [{"id": 0, "name": "creatures"}, {"id": 1, "name": "fish"}])
    with pytest.raises(ValueError, match=r"category 0 is none of the 1 of ODinW's t \(1 to 1\): .* without the backgr"):
        read_task(task, tmp_path)


def scored(count: int, *, trained_on: tuple[str, ...] = ()) -> list[TaskScore]:
    return [
        TaskScore(task, 10, 0.1 * (number + 1), 0.2 * (number + 1), bool({*task.same_as} & {*trained_on}))
        for number, task in enumerate(tasks(13)[:count])
    ]


def test_mean_and_median_of_what_was_scored():
    """0.1, 0.2, 0.9 of three tasks; ten are missing, said so and not counted as nought."""
    scores = [*scored(2), TaskScore(tasks(13)[12], 10, 0.9, 1.0)]
    summary = summarize(scores, 13)
    assert summary.figures["mean AP"] == pytest.approx(0.4) and summary.figures["median AP"] == pytest.approx(0.2)
    assert summary.figures["mean AP50"] == pytest.approx(1.6 / 3)
    assert "mean AP of tasks not trained on" not in summary.figures
    assert summary.table.title.startswith("ODinW, 3 of 13 tasks; missing, and not in the mean: CottontailRabbits, Ego")
    lines = markdown_table(summary.table.rows)
    assert len(lines) == 2 + 13 + 2
    assert lines[2] == "| AerialMaritimeDrone_large | 0.100 | 0.200 | 10 | no |"
    assert lines[4] == "| CottontailRabbits | missing | missing |  |  |"
    assert lines[-2] == "| mean of 3 of 13 | 0.400 | 0.533 |  |  |"


def test_tasks_that_the_model_was_trained_on_are_marked():
    scores = scored(13, trained_on=("rabbits", "drawn world"))
    summary = summarize(scores)
    assert summary.table.title == "ODinW, 13 of 13 tasks"
    rows = {row["task"]: row for row in summary.table.rows}
    assert [name for name, row in rows.items() if row["trained on"] == "yes"] == ["CottontailRabbits"]
    assert summary.figures["mean AP"] == pytest.approx(0.7) == rows["mean of 13"]["AP"]
    assert summary.figures["mean AP of tasks not trained on"] == pytest.approx((9.1 - 0.3) / 12)
    assert rows["mean of 12 not trained on"]["AP"] == summary.figures["mean AP of tasks not trained on"]


def test_no_mean_over_nothing_or_over_the_wrong_tasks():
    with pytest.raises(ValueError, match="odinw13: none was scored: give one score for each of its tasks"):
        summarize([])
    with pytest.raises(ValueError, match="odinw13: one is there twice"):
        summarize([*scored(1), *scored(1)])
    other = next(task for task in tasks(35) if not task.thirteen)
    with pytest.raises(ValueError, match="odinw13: 'AerialMaritimeDrone_tiled' is none of them"):
        summarize([TaskScore(other, 1, 0.5, 0.5)])
