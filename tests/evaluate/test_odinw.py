"""The table of ODinW's tasks, the reading of one, and the mean over the parts of a benchmark that are there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from glip.evaluate.odinw import Task, read_task, tasks
from glip.evaluate.report import Report, parts_page

LIST = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lists" / "odinw35_tasks.json"
BOX = [2, 2, 6, 6]


def test_golden_names_and_prompts_of_the_release():
    if not LIST.is_file():
        pytest.skip("no list of ODinW tasks beside the project")
    assert len(tasks(13)) == 13 and set(task.name for task in tasks(13)) < set(task.name for task in tasks(35))
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


@pytest.mark.parametrize(
    ("task", "split", "folder", "file"),
    [
        ("EgoHands_generic", "val", "odinw/EgoHands/generic/mini_val", ""),  # a part that the release takes
        ("EgoHands_generic", "test", "odinw/EgoHands/generic/test", ""),
        ("pistols_export", "test", "odinw/pistols/export", "test_"),  # all splits lie flat
        ("pothole", "val", "odinw/pothole/valid", ""),
    ],
)
def test_where_splits_lie(task, split, folder, file):
    [files] = [one.files(split) for one in tasks(35) if one.name == task]
    assert files.images == (folder,) and files.format == "coco"
    assert files.annotations == f"{folder}/{file}annotations_without_background.json"


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


def report(task: Task, ap: float, ap50: float, trained_on: str = "no") -> Report:
    return Report("tiny", task.name, "coco", 10, trained_on, {"AP": ap, "AP50": ap50})


def page_of(name: str, reports: list[Report]) -> dict[str, list[str]]:
    """The cells of each line of a page, by the first one."""
    page = parts_page(name, reports, [task.name for task in tasks(13)])
    return {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in page.splitlines())}


def test_mean_and_median_of_what_was_scored():
    """0.1, 0.2, 0.9 of three tasks; ten are missing, named as such and not counted as zero."""
    first, second, *_, last = tasks(13)
    lines = page_of("odinw13", [report(first, 0.1, 0.2), report(second, 0.2, 0.4), report(last, 0.9, 1.0)])
    assert next(iter(lines)).startswith(
        "# odinw13, 3 of 13 parts; missing, and not in the mean: CottontailRabbits, Ego"
    )
    assert lines["AerialMaritimeDrone_large"] == ["0.100", "0.200", "10", "no"]
    assert lines["mean of 3 of 13"][:2] == ["0.400", "0.533"] and lines["median of 3 of 13"][:2] == ["0.200", "0.400"]


def test_tasks_that_the_model_was_trained_on_are_marked():
    reports = [
        report(task, 0.1 * number, 0.2, "yes" if "rabbits" in task.same_as else "no")
        for number, task in enumerate(tasks(13), start=1)
    ]
    rows = page_of("odinw13", reports)
    assert next(iter(rows)) == "# odinw13, 13 of 13 parts"
    assert [name for name, cells in rows.items() if cells[-1:] == ["yes"]] == ["CottontailRabbits"]
    assert rows["mean of 13"][0] == "0.700"
    assert rows["mean of 12 not trained on"][:2] == [f"{(9.1 - 0.3) / 12:.3f}", "0.200"]


def test_a_figure_that_a_part_lacks_has_no_mean():
    """Such as AP at a false positive rate, where every name is in every image of a part."""
    first, second, *_ = tasks(13)
    reports = [report(first, 0.1, 0.2), report(second, 0.3, 0.4)]
    reports[0].figures["IL_MCC"] = 0.5
    assert page_of("odinw13", reports)["mean of 2 of 13"] == ["0.200", "0.300"]
