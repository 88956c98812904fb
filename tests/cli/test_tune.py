"""glip tune: one task and tables of them, shots, artefacts that glip detect and evaluate use, errors in one line."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from small import NAMES, TINY, VOCABULARY, seeded, write_coco

from glip.adaptation import MODES
from glip.cli import tune
from glip.cli.tune_table import _read_odinw, draw_figure, page_of, read_ledger, table_of
from glip.evaluate.odinw import tasks
from glip.model.adapt import load_adaptation
from glip.model.glip import GLIP
from glip.model.weights import load_pretrained, save_pretrained

QUICK = ("--rounds", "1", "--validated", "2")


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "tune")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random weights in a folder."""
    config = replace(
        TINY,
        image=replace(TINY.image, min_size=96, max_size=128),
        inference=replace(TINY.inference, threshold=0.0, candidate_threshold=0.0, max_detections=30),
    )
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, seeded(config), config, VOCABULARY)
    return folder


@pytest.fixture
def shapes(tmp_path) -> Path:
    return write_coco(tmp_path / "shapes")


def test_tune_detect_and_evaluate(glip_, command_line, model, shapes, tmp_path):
    code, out, err = glip_(model, shapes, "--shots", 1, "--test", shapes, *QUICK, "--out", "o")
    assert code == 0, err
    folder = tmp_path / "o" / "instances-prompt-1-0"
    assert {file.name for file in folder.iterdir()} == {
        *("task.safetensors", "pictures.json", "report.json", "curve.png", "last.pt")
    }
    assert "4 names; tuned on" in out and "before: " in out and "round 1  loss" in out
    task = load_adaptation(folder / "task.safetensors")
    assert task.names == NAMES and len(task.thresholds) == 4 and task.about["shots"] == "1"
    assert {"validation", "test AP50", "test before AP50"} <= set(task.figures)
    tuned, listed = json.loads((folder / "report.json").read_text()), json.loads((folder / "pictures.json").read_text())
    assert tuned["mode"] == "prompt" and len(tuned["rounds"]) == 2 and len(listed["ids"]) == int(task.about["pictures"])

    file = folder / "task.safetensors"
    picture = shapes.parent / "images" / "0.png"
    code, out, err = command_line("detect", picture, "--model", model, "--task", file, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["phrases"] == list(NAMES)
    code, out, err = command_line("evaluate", model, shapes, "--task", file, "--out", "e")
    assert code == 0, err
    (report,) = (tmp_path / "e").glob("*-task-*/instances/report.json")
    assert json.loads(report.read_text())["figures"]["AP50"] == pytest.approx(task.figures["test AP50"], abs=2e-4)
    code, _, err = command_line("detect", picture, "--model", "glip-nano", "--task", file)
    assert code == 2 and "was tuned on other weights" in err and err.count("\n") == 1


def test_given_pictures_are_those_tuned_on(glip_, model, shapes, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"ids": ["2", "0"]}))
    code, out, err = glip_(model, shapes, "--pictures", "some.json", *QUICK, "--out", "o")
    assert code == 0, err
    found = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "pictures.json").read_text())
    assert found["ids"] == ["0", "2"] and "validated on 2 pictures" in out
    (tmp_path / "strange.json").write_text(json.dumps({"ids": ["77"]}))
    code, _, err = glip_(model, shapes, "--pictures", "strange.json", *QUICK)
    assert code == 2 and "has no picture '77'" in err


@pytest.fixture
def seen(monkeypatch):
    """How many pictures each call of an image encoder has had."""
    counts = []
    encode = GLIP.encode_image
    monkeypatch.setattr(GLIP, "encode_image", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels))
    return counts


@pytest.mark.parametrize(("mode", "encoded"), [("prompt", 3 + 4), ("linear", 3 + 4), ("full", 64 + 1 + 4)])
def test_a_frozen_encoder_sees_each_picture_once(mode, encoded, glip_, model, shapes, seen):
    """Of 4 pictures 3 are tuned on (64 views), 1 validates (before, after, thresholds), all test (before, after).

    The one round of full tuning is worse than none: another encoder sees the picture of validation once, after it.
    """
    given = (model, shapes, "--test", shapes, "--mode", mode, *QUICK)
    assert glip_(*given, "--out", "kept")[0] == 0
    assert sum(seen) == encoded
    seen.clear()
    assert glip_(*given, "--out", "anew", "--keep-gb", 1e-9)[0] == 0
    assert sum(seen) == 64 + 3 + 2 * 4 + (mode != "full")  # one is tried for its size
    one, other = (load_adaptation(f"{out}/instances-{mode}-all-0/task.safetensors") for out in ("kept", "anew"))
    assert one.figures == pytest.approx(other.figures, abs=1e-5)


def test_several_ways_share_what_is_encoded(glip_, model, shapes, seen):
    code, _, err = glip_(model, shapes, "--test", shapes, "--mode", "prompt", "linear", "--seed", 0, 1, *QUICK)
    assert code == 0, err
    assert sum(seen) == 3 + 4


def test_all_pictures_hold_a_fifth_back(glip_, model, shapes):
    code, out, err = glip_(model, shapes, *QUICK, "--mode", "linear", "--no-thresholds", "--out", "o")
    assert code == 0, err
    assert "tuned on 3 pictures" in out and "validated on 1 pictures" in out
    assert load_adaptation("o/instances-linear-all-0/task.safetensors").thresholds == ()


def test_prompts_are_written_and_tuned(glip_, model, shapes, tmp_path):
    (tmp_path / "words.yaml").write_text("red circle: 'a round [red circle]'\n")
    code, _, err = glip_(model, shapes, "--prompts", "words.yaml", *QUICK, "--out", "o")
    assert code == 0, err
    task = load_adaptation("o/instances-prompt-all-0/task.safetensors")
    assert task.prompt.caption.startswith("a round red circle. blue star") and task.names == NAMES


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
    draw = "glip.evaluate.figures.draw_shots"
    monkeypatch.setattr(draw, lambda curves, path, figure, title: drawn.update(curves, title=title))

    def row(task, mode, shots, seed, value):
        key = {"model": "m", "weights": "aaaaaaaa", "task": task, "mode": mode, "shots": shots, "seed": seed}
        return {**key, "figures": {"test AP50": value}}

    hard = [("prompt", "all", 0, 0.3), ("prompt", "1", 0, 0.1), ("prompt", "1", 1, 0.3), ("linear", "1", 0, 0.2)]
    easy = [("prompt", "1", 0, 0.9), ("prompt", "all", 0, 0.9)]
    rows = [row("hard", *cell) for cell in hard] + [row("easy", *cell) for cell in easy]
    assert draw_figure(rows, tmp_path / "f.png")
    assert drawn.pop("title") == "mean of hard"
    assert drawn == {
        ("m", "prompt"): {"1": (pytest.approx(0.2), pytest.approx(0.1)), "all": (0.3, 0.0)},
        ("m", "linear"): {"1": (0.2, 0.0)},
    }
    assert list(drawn["m", "prompt"]) == ["1", "all"]
    assert not draw_figure([*rows, row("easy", "full", "1", 0, 0.5)], tmp_path / "f.png")
    drawn.clear()
    twins = [
        {**row("hard", "prompt", "1", 0, value), "weights": weights * 8} for weights, value in (("a", 0.1), ("b", 0.9))
    ]
    assert draw_figure(twins, tmp_path / "f.png")
    assert drawn["m (aaaaaa)", "prompt"] == {"1": (0.1, 0.0)} and drawn["m (bbbbbb)", "prompt"] == {"1": (0.9, 0.0)}


def test_lines_of_a_table_follow_the_shots():
    cells = [("prompt", "5"), ("linear", "5"), ("prompt", "all"), ("prompt", "1"), ("prompt", "10")]
    figures = {"test AP50": 0.5, "test before AP50": 0.1}
    same = {"weights": "a", "task": "t", "figures": figures}
    page = table_of([{**same, "mode": mode, "shots": shots} for mode, shots in cells])
    named = [tuple(part.strip() for part in line.split("|")[1:3]) for line in page[3:]]
    assert named == [("prompt", "1"), ("prompt", "5"), ("prompt", "10"), ("prompt", "all"), ("linear", "5")]


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
    drawn = {row["task"]: row["pictures"] for row in rows}
    assert sum(seen) == sum(drawn.values()) + 2 * 4, "a task's pictures are encoded once for all ways"
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


def test_a_ledger_whose_last_line_has_no_end_loses_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_ledger(path) == [{"a": 1}, {"a": 2}] and path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a": 1}\n{"a"')
    assert read_ledger(path) == [{"a": 1}] and path.read_text() == '{"a": 1}\n'
    path.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_ledger(path)


def test_a_cell_that_cannot_be_tuned_does_not_end_the_table(glip_, model, table, tmp_path):
    code, out, err = glip_(model, "--tasks", table, "--shots", "9", "1", *QUICK, "--out", "o")
    assert code == 2 and "2 of 4 cells could not be tuned; the first: first, prompt, shots 9, seed 0: " in err
    assert (
        err.count("\n") == 1 and "not tuned: " in out and "| prompt | 1 |" in (tmp_path / "o" / "table.md").read_text()
    )


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


def test_corrected_annotations_are_not_answered_with_the_old_tuning(glip_, model, shapes):
    given = (model, shapes, *QUICK, "--out", "o")
    assert glip_(*given)[0] == 0
    tree = json.loads(shapes.read_text())
    for row in tree["annotations"]:
        row["bbox"][0] += 1
    shapes.write_text(json.dumps(tree))
    code, _, err = glip_(*given)
    assert code == 2 and "holds another tuning (other pictures, settings, words or weights)" in err


def test_pictures_that_are_not_there_are_told_before_the_work(glip_, model, shapes, tmp_path):
    test = write_coco(tmp_path / "test")
    for number in range(3):
        (test.parent / "images" / f"{number}.png").unlink()
    code, out, err = glip_(model, shapes, "--test", test, *QUICK, "--out", "o")
    assert code == 0, err
    assert out.index("test: 3 of 4 pictures are not there, such as") < out.index("before: ")
    report = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "report.json").read_text())
    assert report["left out"] == {"picture of the test that cannot be read": 3}
    (test.parent / "images" / "3.png").unlink()
    code, out, err = glip_(model, shapes, "--test", test, *QUICK, "--out", "p")
    assert code == 2 and "test: none of its 4 pictures is there" in err and "before: " not in out


def test_odinw_names_are_those_of_the_pictures(tmp_path):
    """ODinW writes small_fish, which the model is asked for as small fish; a task of other names is refused."""
    task = next(task for task in tasks(35) if task.name.startswith("brackish"))
    for split in ("train", "val", "test"):
        files = task.files(split)
        (tmp_path / files.images[0]).mkdir(parents=True, exist_ok=True)
        tree = json.loads(write_coco(tmp_path / "made").read_text())
        for picture in (tmp_path / "made" / "images").iterdir():
            shutil.copy(picture, tmp_path / files.images[0])
        tree["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(task.names)]
        for row in tree["annotations"]:
            row["category_id"] = 5
        (tmp_path / files.annotations).write_text(json.dumps(tree))
    sets = _read_odinw(task, str(tmp_path))
    assert "small_fish" in task.names and sets.names[4] == "small fish" == sets.test[0].vocabulary[4]
    with pytest.raises(ValueError, match="labels would be mixed up"):
        replace(sets, names=task.names)


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


def test_prompts_are_compared(command_line, model, shapes, tmp_path):
    (tmp_path / "words.yaml").write_text("red circle: 'a round [red circle]'\n")
    code, out, err = command_line(
        "evaluate", model, shapes, "--prompts", "none", "--prompts", "words.yaml", "--out", "e"
    )
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("| instances |")]
    assert any("| words.yaml | AP |" in line and ("+" in line or "-" in line) for line in lines)
    (told,) = (tmp_path / "e").iterdir()
    assert {folder.name for folder in told.iterdir()} == {"prompts-none", "prompts-words"}


def test_other_names_are_asked_plainly_and_another_order_is_refused(glip_, command_line, model, shapes, tmp_path):
    assert glip_(model, shapes, *QUICK, "--out", "o")[0] == 0
    file = "o/instances-prompt-all-0/task.safetensors"
    tree = json.loads(shapes.read_text())
    others = [{**row, "name": row["name"].split()[1]} for row in tree["categories"]]
    (shapes.with_name("others.json")).write_text(json.dumps({**tree, "categories": others}))
    code, out, err = command_line("evaluate", model, shapes.with_name("others.json"), "--task", file, "--out", "e")
    assert code == 0 and "asks for other names than the task's" in out, err
    code, plain, err = command_line("evaluate", model, shapes.with_name("others.json"), "--out", "f")
    figures = [line for line in plain.splitlines() if line.startswith("| AP")]
    assert code == 0 and figures and set(figures) <= set(out.splitlines())
    turned = [
        {**row, "name": other["name"]} for row, other in zip(tree["categories"], tree["categories"][::-1], strict=True)
    ]
    shapes.with_name("turned.json").write_text(json.dumps({**tree, "categories": turned}))
    code, _, err = command_line("evaluate", model, shapes.with_name("turned.json"), "--task", file, "--out", "e")
    assert code == 2 and "list them in the same order" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "give a set to tune on, or --tasks TABLE"),
        (("SET", "--tasks", "t.yaml"), "and not both"),
        (("SET", "--shots", "0"), "--shots '0': give a number from 1 on"),
        (("SET", "--shots", "5"), "5 pictures of each class cannot be drawn: there are of 'red circle' 3"),
        (("SET", "--rounds", "0"), "--rounds 0: give a number above 0"),
        (("SET", "--seed", "-1"), "--seed -1: give a number from 0 on"),
        (("SET", "--pictures", "p.json", "--shots", "1"), "--pictures with --shots"),
        (("--tasks", "none.yaml", "--test", "a"), "--test with --tasks: each task of a table has its own"),
        (("--tasks", "untested.yaml"), "first: train or test is empty"),
        (("world_novel",), "has no list of names that all its pictures share"),
        (("no_such_set",), "neither in datasets.yaml nor a file"),
        (("--tasks", "none.yaml"), "is no file: give a YAML of tasks"),
        (("--tasks", "odinw13"), "none of its tasks is under"),
        (("SET", "--prompts", "strange.yaml"), "no class 'blue cup' in the set"),
    ],
)
def test_errors_in_one_line(given, message, glip_, model, shapes, tmp_path):
    (tmp_path / "strange.yaml").write_text("blue cup: '[blue cup]'\n")
    (tmp_path / "untested.yaml").write_text("first: {train: a, test: ''}\n")
    code, _, err = glip_(model, *(str(shapes) if word == "SET" else word for word in given))
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_set_without_boxes_or_with_other_classes(glip_, model, shapes, tmp_path):
    tree = json.loads(shapes.read_text())
    bare = shapes.with_name("bare.json")
    bare.write_text(json.dumps({**tree, "annotations": []}))
    code, _, err = glip_(model, bare)
    assert code == 2 and ("no box" in err or "no picture to tune on has a named box" in err or "nothing" in err)
    other = shapes.with_name("other.json")
    other.write_text(
        json.dumps({**tree, "categories": [{**row, "name": row["name"] + "s"} for row in tree["categories"]]})
    )
    code, _, err = glip_(model, shapes, "--test", other)
    assert code == 2 and "give a set with the same classes" in err


def test_a_class_without_a_box_is_told(glip_, model, shapes):
    tree = json.loads(shapes.read_text())
    rows = [row for row in tree["annotations"] if row["category_id"] != 40]
    shapes.write_text(json.dumps({**tree, "annotations": rows}))
    code, out, err = glip_(model, shapes, *QUICK, "--out", "o")
    assert code == 0, err
    assert "1 names have no box to tune on: yellow heart" in out
    code, _, err = glip_(model, shapes, "--shots", "1", *QUICK)
    assert code == 2 and "of 'yellow heart' 0;" in err


def test_modes_are_those_of_adaptations():
    assert tune.MODES == MODES


def test_the_tables_of_the_docs_are_those_of_their_ledger():
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "adaptation.md").read_text(encoding="utf-8")
    _, *models = "\n".join(page_of(read_ledger(docs / "adaptation.jsonl"))).split("## ")
    assert len(models) == 2
    for model in models:
        title, table = model.split("\n\n", 1)
        assert table.strip() in page, title
