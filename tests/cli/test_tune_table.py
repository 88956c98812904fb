"""glip tune --tasks: rows of a ledger, several processes and models, what is refused, the table and its figure."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from small import VOCABULARY, seeded, write_coco

from glip.cli.tune_ledger import Ledger, read_ledger
from glip.cli.tune_page import draw_figure, page_of, table_of
from glip.cli.tune_table import _read_odinw
from glip.evaluate.odinw import tasks
from glip.files import exclusive
from glip.model.weights import load_pretrained, save_pretrained

QUICK = ("--epochs", "1", "--max-val-images", "2")


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "tune")


@pytest.fixture
def table(shapes, tmp_path):
    other = write_coco(tmp_path / "other")
    path = tmp_path / "tasks.yaml"
    path.write_text(
        f"first: {{train: {shapes}, validate: {shapes}, test: {shapes}}}\nsecond: {{train: {other}, test: {other}}}\n"
    )
    return path


def test_a_figure_compares_lines_over_the_same_tasks(tmp_path, monkeypatch):
    drawn = {}
    draw = "glip.evaluate.figures.draw_by_shots"
    monkeypatch.setattr(draw, lambda curves, path, shots, figure, title: drawn.update(curves, title=title, axis=shots))

    def row(task, mode, shots, seed, value):
        key = {"model": "m", "weights": "aaaaaaaa", "task": task, "mode": mode, "shots": shots, "seed": seed}
        return {**key, "figures": {"test AP50": value}}

    hard = [("prompt", "all", 0, 0.3), ("prompt", "1", 0, 0.1), ("prompt", "1", 1, 0.3), ("linear", "1", 0, 0.2)]
    easy = [("prompt", "1", 0, 0.9), ("prompt", "all", 0, 0.9)]
    rows = [row("hard", *cell) for cell in hard] + [row("easy", *cell) for cell in easy]
    assert draw_figure(rows, tmp_path / "f.png")
    assert drawn.pop("title") == "mean of hard" and drawn.pop("axis") == ["1", "all"]
    assert {line: list(points) for line, points in drawn.items()} == {
        ("m", "prompt"): ["1", "all"],
        ("m", "linear"): ["1"],
    }
    assert drawn["m", "prompt"]["1"] == (pytest.approx(0.2), pytest.approx(math.sqrt(0.02)))
    for line, shots, value in ((("m", "prompt"), "all", 0.3), (("m", "linear"), "1", 0.2)):
        assert drawn[line][shots] == (value, pytest.approx(math.nan, nan_ok=True)), "one seed has no spread"
    assert not draw_figure([*rows, row("easy", "full", "1", 0, 0.5)], tmp_path / "f.png")
    drawn.clear()
    twins = [
        {**row("hard", "prompt", "1", 0, value), "weights": weights * 8} for weights, value in (("a", 0.1), ("b", 0.9))
    ]
    assert draw_figure(twins, tmp_path / "f.png")
    assert drawn["m (aaaaaa)", "prompt"]["1"][0] == 0.1 and drawn["m (bbbbbb)", "prompt"]["1"][0] == 0.9


def test_lines_of_a_table_follow_the_shots():
    cells = [("prompt", "5"), ("linear", "5"), ("prompt", "all"), ("prompt", "1"), ("prompt", "10")]
    figures = {"test AP50": 0.5, "test before AP50": 0.1}
    same = {"weights": "a", "task": "t", "figures": figures}
    page = table_of([{**same, "mode": mode, "shots": shots} for mode, shots in cells])
    named = [tuple(part.strip() for part in line.split("|")[1:3]) for line in page[3:]]
    assert named == [("prompt", "1"), ("prompt", "5"), ("prompt", "10"), ("prompt", "all"), ("linear", "5")]


@pytest.mark.slow
def test_a_table_row_by_row(glip_, model, table, tmp_path, seen):
    ways = ("--tasks", table, "--mode", "prompt", "linear", "--shots", "1", *QUICK, "--out", "o")
    code, out, err = glip_(model, *ways)
    assert code == 0, err
    ledger = tmp_path / "o" / "ledger.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(row["task"], row["mode"]) for row in rows] == [
        *(("first", "prompt"), ("first", "linear")),
        *(("second", "prompt"), ("second", "linear")),
    ]
    assert len(list(tmp_path.glob("o/*/*/task.safetensors"))) == 4 and not list(tmp_path.glob("o/*/*/last.pt"))
    drawn = {row["task"]: row["images"] for row in rows}
    assert sum(seen) == sum(drawn.values()) + 2 * 4, "a task's images are encoded once for all ways"
    page = (tmp_path / "o" / "table.md").read_text()
    assert page.splitlines()[0] == "| mode | shots | first | second | mean |" and "| untuned | 0 |" in page
    assert (tmp_path / "o" / "shots.png").stat().st_size > 5000
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + '{"cut')
    code, out, err = glip_(model, *ways)
    assert code == 0, err
    assert "[4 of 4] second, linear" in out and "[3 of 4]" not in out
    code, _, err = glip_(model, *ways, "--lr", "0.01")
    assert code == 2 and "give another --out" in err and err.count("\n") == 1
    again = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [{**row, "minutes": 0} for row in again] == [{**row, "minutes": 0} for row in rows]


def a_row(**more):
    key = {"model": "m", "weights": "w", "task": "t", "mode": "prompt", "shots": "1", "seed": 0}
    return {**key, "settings": {}, "data": "", "figures": {}, **more}


def test_a_ledger_whose_last_line_has_no_end_loses_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    first, second, third = (a_row(seed=seed) for seed in range(3))
    ledger.add(first)
    whole = ledger.path.read_text()
    for end in (json.dumps(second), json.dumps(second) + "\n" + '{"weights": "w", "ta', json.dumps(second) + "\n"):
        ledger.path.write_text(whole + end)
        assert ledger.rows() == [first, second]
        ledger.add(third)
        assert ledger.rows() == [first, second, third] and ledger.path.read_text().endswith("}\n")
    ledger.path.write_text(whole + '{"weights"\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        ledger.rows()
    for strange in ("5", '{"model": "m"}'):
        ledger.path.write_text(whole + strange + "\n")
        with pytest.raises(ValueError, match="line 2 is no row of a table, which has data, figures"):
            ledger.rows()


def test_a_cell_made_twice_counts_once(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for figure in (0.5, 0.7):
        ledger.add(a_row(figures={"test AP50": figure}))
    assert ledger.rows() == [a_row(figures={"test AP50": 0.5})]


@pytest.mark.slow
def test_one_cell_at_a_time_and_once(glip_, model, table, tmp_path):
    """What another process is at is left to it; what a kill left of a state goes; a way asked for twice is one."""
    given = (model, "--tasks", table, "--shots", "1", *QUICK, "--out", "o")
    assert glip_(*given)[0] == 0
    rows = (tmp_path / "o" / "ledger.jsonl").read_text()
    (tmp_path / "o" / "ledger.jsonl").write_text(rows.splitlines(keepends=True)[0])
    first, second = sorted(file.parent for file in tmp_path.glob("o/*/*/task.safetensors"))
    for name in ("last.pt", ".last.pt.partial"):
        (first / name).write_bytes(b"left over")
    with exclusive(second):
        code, out, err = glip_(*given)
        assert code == 0 and "[2 of 2] second, prompt, shots 1, seed 0\nanother run is at it" in out, err
    assert not (first / "last.pt").exists() and not (first / ".last.pt.partial").exists()
    code, out, err = glip_(*given, "--seed", "0", "0")
    assert code == 0, err
    assert len((tmp_path / "o" / "ledger.jsonl").read_text().splitlines()) == 2 and "[3 of 4] second" in out


@pytest.mark.slow
def test_a_line_has_one_recipe(glip_, model, table, tmp_path):
    """Seeds of other settings, or models that read otherwise, are refused before anything is tuned."""
    given = ("--tasks", table, "--shots", "1", *QUICK, "--out", "o")
    assert glip_(model, *given)[0] == 0
    code, out, err = glip_(model, *given, "--seed", "1", "--per", "box")
    assert code == 2 and "tuned with" in err and "like with like" in err and "[" not in out
    network = load_pretrained(model)
    config = replace(network.config, image=replace(network.config.image, min_size=64))
    save_pretrained(tmp_path / "smaller", seeded(config), config, VOCABULARY)
    code, out, err = glip_(tmp_path / "smaller", *given)
    assert code == 2 and "like with like" in err and "[" not in out
    assert glip_(model, *given, "--mode", "linear", "--lr", "0.01")[0] == 0, "another line may have another rate"


def test_a_cell_that_cannot_be_tuned_does_not_end_the_table(glip_, model, table, tmp_path):
    code, out, err = glip_(model, "--tasks", table, "--shots", "9", "1", *QUICK, "--out", "o")
    assert code == 2 and "2 of 4 cells could not be tuned; the first: first, prompt, shots 9, seed 0: " in err
    assert (
        err.count("\n") == 1 and "not tuned: " in out and "| prompt | 1 |" in (tmp_path / "o" / "table.md").read_text()
    )


@pytest.mark.slow
def test_rows_of_other_data_are_not_taken_for_these(glip_, model, table, shapes):
    given = (model, "--tasks", table, "--shots", "1", *QUICK, "--out", "o")
    assert glip_(*given)[0] == 0
    tree = json.loads(shapes.read_text())
    tree["annotations"][0]["bbox"][0] += 1
    shapes.write_text(json.dumps(tree))
    code, _, err = glip_(*given)
    assert code == 2 and "has first (prompt, shots 1, seed 0) tuned with" in err and "like with like" in err
    shapes.unlink()  # a task that is there no more keeps its rows, and the other goes on
    code, out, err = glip_(*given, "--seed", "0", "1")
    assert code == 2 and "1 of 4 cells could not be tuned; the first: first, prompt, shots 1, seed 1" in err
    assert "[4 of 4] second, prompt, shots 1, seed 1" in out


def test_odinw_names_are_those_of_the_images(tmp_path):
    """ODinW writes small_fish, which the model is asked for as small fish; a task of other names is refused."""
    task = next(task for task in tasks(35) if task.name.startswith("brackish"))
    for split in ("train", "val", "test"):
        files = task.files(split)
        (tmp_path / files.images[0]).mkdir(parents=True, exist_ok=True)
        tree = json.loads(write_coco(tmp_path / "made").read_text())
        for image in (tmp_path / "made" / "images").iterdir():
            shutil.copy(image, tmp_path / files.images[0])
        tree["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(task.names)]
        for row in tree["annotations"]:
            row["category_id"] = 5
        (tmp_path / files.annotations).write_text(json.dumps(tree))
    sets = _read_odinw(task, str(tmp_path))
    assert "small_fish" in task.names and sets.names[4] == "small fish" == sets.test[0].vocabulary[4]
    with pytest.raises(ValueError, match="labels would be mixed up"):
        replace(sets, names=task.names)


@pytest.mark.slow
def test_two_models_share_a_table(glip_, model, table, tmp_path):
    """One ledger and figure for both, a table and a folder for each."""
    one = load_pretrained(model).config
    config = replace(one, name="other")
    save_pretrained(tmp_path / "other_model", seeded(config, 1), config, VOCABULARY)
    for given in (model, tmp_path / "other_model"):
        code, out, err = glip_(given, "--tasks", table, "--shots", "1", *QUICK)
        assert code == 0, err
    folder = tmp_path / "runs" / "tune" / "tasks"
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [(row["model"], row["task"]) for row in rows] == [
        (name, task) for name in (one.name, "other") for task in ("first", "second")
    ]
    for row in rows:
        own = f"{row['model']}-{row['weights'][:6]}"
        assert (folder / own / f"{row['task']}-prompt-1-0" / "task.safetensors").is_file()
    page = (folder / "table.md").read_text()
    assert page in out and page.count("| untuned | 0 |") == 2
    assert [line for line in page.splitlines() if line.startswith("##")] == [f"## {one.name}", "## other"]


@pytest.mark.parametrize("name", ["adaptation", "adaptation_again"])
def test_the_tables_of_the_docs_are_those_of_their_ledger(name):
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "adaptation.md").read_text(encoding="utf-8")
    _, *models = "\n".join(page_of(read_ledger(docs / f"{name}.jsonl"))).split("## ")
    assert len(models) == 2
    for model in models:
        title, table = model.split("\n\n", 1)
        assert table.strip() in page, title
