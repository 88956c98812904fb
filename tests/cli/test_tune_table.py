"""glip tune --tasks: rows of a ledger, several processes and models, what is refused, the table and its figure."""

import json
import math
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from small import VOCABULARY, seeded, write_coco

from glip.errors import DataError
from glip.evaluate.odinw import tasks
from glip.files import append_jsonl, exclusive
from glip.model.weights import load_pretrained, save_pretrained
from glip.recipes.tune_table import TableRow, draw_figure, read_ledger, read_tasks, table_lines

QUICK = ("--epochs", "1", "--max-val-images", "2")


@pytest.fixture
def tune(command_line):
    return partial(command_line, "tune")


@pytest.fixture
def table(shapes, tmp_path):
    other = write_coco(tmp_path / "other")
    path = tmp_path / "tasks.yaml"
    path.write_text(
        f"first: {{train: {shapes}, validate: {shapes}, test: {shapes}}}\nsecond: {{train: {other}, test: {other}}}\n"
    )
    return path


def row(task="t", mode="prompt", shots="1", seed=0, value=0.5, weights="w"):
    figures = {"test AP50": value, "test before AP50": 0.1}
    key = {"model": "m", "weights": weights, "task": task, "mode": mode, "shots": shots, "seed": seed}
    return TableRow(**key, settings={}, data="", figures=figures)


def stored(folder: Path) -> list[dict[str, object]]:
    """The rows of a ledger without what differs between two runs."""
    return [{**asdict(one), "minutes": 0} for one in read_ledger(folder / "ledger.jsonl")]


def test_a_figure_compares_lines_over_the_same_tasks(tmp_path, monkeypatch):
    drawn = {}
    draw = "glip.recipes.tune_table.draw_by_shots"
    monkeypatch.setattr(draw, lambda curves, path, shots, figure, title: drawn.update(curves, title=title, axis=shots))
    hard = [("prompt", "all", 0, 0.3), ("prompt", "1", 0, 0.1), ("prompt", "1", 1, 0.3), ("linear", "1", 0, 0.2)]
    easy = [("prompt", "1", 0, 0.9), ("prompt", "all", 0, 0.9)]
    rows = [row("hard", *cell) for cell in hard] + [row("easy", *cell) for cell in easy]
    assert draw_figure(rows, tmp_path / "f.png")
    assert drawn.pop("title") == "mean of hard" and drawn.pop("axis") == ["1", "all"]
    points = {line: list(points) for line, points in drawn.items()}
    assert points == {("m", "prompt"): ["1", "all"], ("m", "linear"): ["1"]}
    assert drawn["m", "prompt"]["1"] == (pytest.approx(0.2), pytest.approx(math.sqrt(0.02)))
    for line, shots, value in ((("m", "prompt"), "all", 0.3), (("m", "linear"), "1", 0.2)):
        assert drawn[line][shots] == (value, pytest.approx(math.nan, nan_ok=True)), "one seed has no deviation"
    assert not draw_figure([*rows, row("easy", "full")], tmp_path / "f.png")
    drawn.clear()
    assert draw_figure([row(weights=key * 8, value=value) for key, value in (("a", 0.1), ("b", 0.9))], tmp_path / "f")
    assert drawn["m (aaaaaa)", "prompt"]["1"][0] == 0.1 and drawn["m (bbbbbb)", "prompt"]["1"][0] == 0.9


def test_lines_of_a_table_follow_the_shots():
    cells = [("prompt", "5"), ("linear", "5"), ("prompt", "all"), ("prompt", "1"), ("prompt", "10")]
    lines = table_lines([row(mode=mode, shots=shots) for mode, shots in cells])
    named = [tuple(part.strip() for part in line.split("|")[1:3]) for line in lines[3:]]
    assert named == [("prompt", "1"), ("prompt", "5"), ("prompt", "10"), ("prompt", "all"), ("linear", "5")]


@pytest.mark.slow
def test_a_table_row_by_row(tune, model, table, tmp_path, seen):
    ways = ("--tasks", table, "--mode", "prompt", "lora", "--shots", "1", *QUICK, "--out", "o")
    code, out, err = tune(model, *ways)
    assert code == 0, err
    folder, rows = tmp_path / "o", stored(tmp_path / "o")
    cells = [("first", "prompt"), ("first", "lora"), ("second", "prompt"), ("second", "lora")]
    assert [(row["task"], row["mode"]) for row in rows] == cells
    assert len(list(folder.glob("*/*/task.safetensors"))) == 4 and not list(folder.glob("*/*/last.pt"))
    drawn = {row["task"]: row["images"] for row in rows}
    assert sum(seen) == sum(drawn.values()) + 2 * 4, "a task's images are encoded once for all ways"
    page = (folder / "table.md").read_text()
    assert page.splitlines()[0] == "| mode | shots | first | second | mean |" and "| untuned | 0 |" in page
    assert (folder / "shots.png").stat().st_size > 5000
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:3]) + '{"cut')
    code, out, err = tune(model, *ways)
    assert code == 0, err
    assert "[4 of 4] second-lora-1-0" in out and "[3 of 4]" not in out and stored(folder) == rows
    code, _, err = tune(model, *ways, "--lr", "0.01")
    assert code == 2 and "made with lr null, not 0.01: give another folder" in err and err.count("\n") == 1


def test_a_ledger_gives_the_first_of_two_rows_of_a_cell_and_no_strange_ones(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first, second = row(seed=0), row(seed=1)
    for one in (first, second, row(value=0.7)):
        append_jsonl(path, asdict(one))
    with path.open("a") as file:
        file.write('{"weights": "w", "ta')  # a kill
    assert read_ledger(path) == [first, second]
    for strange in ('{"weights"', "5", '{"model": "m"}'):
        path.write_text(json.dumps(asdict(first)) + "\n" + strange + "\n")
        with pytest.raises(DataError, match=r"ledger.jsonl, line 2"):
            read_ledger(path)


@pytest.mark.slow
def test_one_cell_at_a_time_and_once(tune, model, table, tmp_path):
    """Cells of other processes are left to them; a state that a kill left is removed; a repeated seed is one cell."""
    given = (model, "--tasks", table, "--shots", "1", *QUICK, "--out", "o")
    assert tune(*given)[0] == 0
    ledger = tmp_path / "o" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    first, second = sorted(file.parent for file in tmp_path.glob("o/*/*/task.safetensors"))
    (first / "last.pt").write_bytes(b"left over")
    with exclusive(second):
        code, out, err = tune(*given)
        assert code == 0 and "[2 of 2] second-prompt-1-0: another process is tuning it" in out, err
    assert not (first / "last.pt").exists()
    code, out, err = tune(*given, "--seed", "0", "0")
    assert code == 0, err
    assert len(stored(tmp_path / "o")) == 2 and "[3 of 4] second" in out


@pytest.mark.slow
def test_all_rows_of_a_line_have_the_same_settings_and_of_a_task_the_same_data(tune, model, table, tmp_path, shapes):
    """Seeds with other settings, or models with other preprocessing, are refused before anything is tuned."""
    given = ("--tasks", table, "--shots", "1", *QUICK, "--out", "o")
    assert tune(model, *given)[0] == 0
    code, out, err = tune(model, *given, "--seed", "1", "--per", "box")
    assert code == 2 and 'made with per "image", not "box"' in err and "[" not in out
    network = load_pretrained(model)
    config = replace(network.config, image=replace(network.config.image, min_size=64))
    save_pretrained(tmp_path / "smaller", seeded(config), config, VOCABULARY)
    code, out, err = tune(tmp_path / "smaller", *given)
    assert code == 2 and "made with preprocessing" in err and "[" not in out
    assert tune(model, *given, "--mode", "linear", "--lr", "0.01")[0] == 0, "another line may have another rate"
    tree = json.loads(shapes.read_text())
    tree["annotations"][0]["bbox"][0] += 1
    shapes.write_text(json.dumps(tree))
    code, _, err = tune(model, *given)
    assert code == 2 and "made with images, boxes and prompts of first" in err
    shapes.unlink()  # a task whose files are gone keeps its rows, and the other goes on
    code, out, err = tune(model, *given, "--seed", "0", "1")
    assert code == 2 and "1 of 4 tunings failed; the first: first-prompt-1-1" in err
    assert "[4 of 4] second-prompt-1-1" in out


def test_odinw_names_are_those_of_the_images(tmp_path):
    """ODinW writes small_fish, which the prompt says as "small fish"."""
    task = next(task for task in tasks(35) if task.name.startswith("brackish"))
    tree = json.loads(write_coco(tmp_path / "made").read_text())
    tree["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(task.names)]
    tree["annotations"] = [{**one, "category_id": 5} for one in tree["annotations"]]
    for split in ("train", "val", "test"):
        files = task.files(split)
        shutil.copytree(tmp_path / "made" / "images", tmp_path / files.images[0], dirs_exist_ok=True)
        (tmp_path / files.annotations).write_text(json.dumps(tree))
    data = read_tasks("odinw35", str(tmp_path))[task.name]()
    assert "small_fish" in task.names and data.names[4] == "small fish" == data.test[0].vocabulary[4]


@pytest.mark.slow
def test_two_models_share_a_table(tune, model, table, tmp_path):
    """One ledger and figure for both, a table and a folder for each."""
    one = load_pretrained(model).config
    config = replace(one, name="other")
    save_pretrained(tmp_path / "other_model", seeded(config, 1), config, VOCABULARY)
    for given in (model, tmp_path / "other_model"):
        code, out, err = tune(given, "--tasks", table, "--shots", "1", *QUICK)
        assert code == 0, err
    folder = tmp_path / "runs" / "tune" / "tasks"
    rows = stored(folder)
    cells = [(name, task) for name in (one.name, "other") for task in ("first", "second")]
    assert [(row["model"], row["task"]) for row in rows] == cells
    for row in rows:
        own = f"{row['model']}-{row['weights'][:6]}"
        assert (folder / own / f"{row['task']}-prompt-1-0" / "task.safetensors").is_file()
    page = (folder / "table.md").read_text()
    assert page in out and page.count("| untuned | 0 |") == 2
    assert [line for line in page.splitlines() if line.startswith("##")] == [f"## {one.name}", "## other"]


@pytest.mark.parametrize(("name", "models"), [("adaptation", 2), ("adaptation_again", 2), ("adaptation_lora", 1)])
def test_the_tables_of_the_docs_are_those_of_their_ledger(name, models):
    docs = Path(__file__).resolve().parents[2] / "docs"
    page, lines = (docs / "adaptation.md").read_text(encoding="utf-8"), table_lines(read_ledger(docs / f"{name}.jsonl"))
    tables = [part.split("\n\n", 1)[-1].strip() for part in "\n".join(lines).split("## ") if part]
    assert len(tables) == models and all(table in page for table in tables)
