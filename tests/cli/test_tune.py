"""glip tune: one task and tables of them, shots, artefacts that glip detect and evaluate use, errors in one line."""

import json
from functools import partial

import pytest
import torch
from small import NAMES, write_coco

from glip.files import exclusive
from glip.model.adapt import load_adaptation
from glip.model.weights import load_pretrained

QUICK = ("--epochs", "1", "--max-val-images", "2")


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "tune")


def test_tune_detect_and_evaluate(glip_, command_line, model, shapes, tmp_path):
    code, out, err = glip_(model, shapes, "--shots", 1, "--test", shapes, *QUICK, "--out", "o")
    assert code == 0, err
    folder = tmp_path / "o" / "instances-prompt-1-0"
    assert {file.name for file in folder.iterdir()} == {
        *("task.safetensors", "images.json", "report.json", "curve.png", "last.pt", ".lock")
    }
    assert "4 names; tuned on" in out and "before: " in out and "epoch 1  loss" in out
    task = load_adaptation(folder / "task.safetensors")
    assert task.names == NAMES and len(task.thresholds) == 4 and task.about["shots"] == "1"
    assert {"validation", "test AP50", "test before AP50"} <= set(task.figures)
    tuned, listed = json.loads((folder / "report.json").read_text()), json.loads((folder / "images.json").read_text())
    assert tuned["mode"] == "prompt" and len(tuned["epochs"]) == 2 and len(listed["ids"]) == int(task.about["images"])

    file = folder / "task.safetensors"
    image = shapes.parent / "images" / "0.png"
    code, out, err = command_line("detect", image, "--model", model, "--task", file, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["phrases"] == list(NAMES)
    code, out, err = command_line("evaluate", model, shapes, "--task", file, "--out", "e")
    assert code == 0, err
    (report,) = (tmp_path / "e").glob("*-task-*/instances/report.json")
    assert json.loads(report.read_text())["figures"]["AP50"] == pytest.approx(task.figures["test AP50"], abs=2e-4)
    code, _, err = command_line("detect", image, "--model", "glip-nano", "--task", file)
    assert code == 2 and "was tuned on other weights" in err and err.count("\n") == 1


def test_given_images_are_those_tuned_on(glip_, model, shapes, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"ids": ["2", "0"]}))
    code, out, err = glip_(model, shapes, "--image-list", "some.json", *QUICK, "--out", "o")
    assert code == 0, err
    found = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "images.json").read_text())
    assert found["ids"] == ["0", "2"] and "validated on 2 images" in out
    (tmp_path / "strange.json").write_text(json.dumps({"ids": ["77"]}))
    code, _, err = glip_(model, shapes, "--image-list", "strange.json", *QUICK)
    assert code == 2 and "has no image '77'" in err


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "encoded"), [("prompt", 3 + 4), ("linear", 3 + 4), ("full", 64 + 1 + 4)])
def test_a_frozen_encoder_sees_each_image_once(mode, encoded, glip_, model, shapes, seen):
    """Of 4 images 3 are tuned on (64 an epoch), 1 validates (before, after, thresholds), all test (before, after).

    The one epoch of full tuning is worse than none: another encoder sees the image of validation once, after it.
    """
    given = (model, shapes, "--test", shapes, "--mode", mode, *QUICK)
    assert glip_(*given, "--out", "kept")[0] == 0
    assert sum(seen) == encoded
    seen.clear()
    assert glip_(*given, "--out", "anew", "--keep-gb", 1e-9)[0] == 0
    assert sum(seen) == 64 + 3 + 2 * 4 + (mode != "full")  # one is tried for its size
    one, other = (load_adaptation(f"{out}/instances-{mode}-all-0/task.safetensors") for out in ("kept", "anew"))
    assert one.figures == pytest.approx(other.figures, abs=1e-5)


@pytest.mark.slow
def test_several_ways_share_what_is_encoded(glip_, model, shapes, seen):
    code, _, err = glip_(model, shapes, "--test", shapes, "--mode", "prompt", "linear", "--seed", 0, 1, *QUICK)
    assert code == 0, err
    assert sum(seen) == 3 + 4


@pytest.mark.slow
def test_images_of_training_have_the_first_place(glip_, model, shapes):
    """Seen in every step, they take the room of those that are validated and tested on, also where these came first."""
    one = sum(level.numel() * 4 for level in load_pretrained(model).model.encode_image(torch.zeros(1, 3, 96, 128)))
    given = (model, shapes, "--test", shapes, "--shots", "1", "all", *QUICK, "--keep-gb", str(4.5 * one / 1e9))
    code, out, err = glip_(*given, "--out", "o")
    assert code == 0, err
    assert out.count("tuned on 3 images with 7 boxes, 3 encoded once") == 2


def test_all_images_hold_a_fifth_back(glip_, model, shapes):
    code, out, err = glip_(model, shapes, *QUICK, "--mode", "linear", "--no-thresholds", "--out", "o")
    assert code == 0, err
    assert "tuned on 3 images" in out and "validated on 1 images" in out
    assert load_adaptation("o/instances-linear-all-0/task.safetensors").thresholds == ()


def test_prompts_are_written_and_tuned(glip_, model, shapes, tmp_path):
    (tmp_path / "words.yaml").write_text("red circle: 'a epoch [red circle]'\n")
    code, _, err = glip_(model, shapes, "--prompts", "words.yaml", *QUICK, "--out", "o")
    assert code == 0, err
    task = load_adaptation("o/instances-prompt-all-0/task.safetensors")
    assert task.prompt.caption.startswith("a epoch red circle. blue star") and task.names == NAMES


def test_a_folder_is_tuned_into_by_one(glip_, model, shapes, tmp_path):
    with exclusive(tmp_path / "o" / "instances-prompt-all-0"):
        code, _, err = glip_(model, shapes, *QUICK, "--out", "o")
    assert code == 2 and "another run writes to" in err and err.count("\n") == 1


def test_corrected_annotations_are_not_answered_with_the_old_tuning(glip_, model, shapes):
    given = (model, shapes, *QUICK, "--out", "o")
    assert glip_(*given)[0] == 0
    tree = json.loads(shapes.read_text())
    for row in tree["annotations"]:
        row["bbox"][0] += 1
    shapes.write_text(json.dumps(tree))
    code, _, err = glip_(*given)
    assert code == 2 and "holds another tuning (other images, settings, words or weights)" in err


def test_images_that_are_not_there_are_told_before_the_work(glip_, model, shapes, tmp_path):
    test = write_coco(tmp_path / "test")
    for number in range(3):
        (test.parent / "images" / f"{number}.png").unlink()
    code, out, err = glip_(model, shapes, "--test", test, *QUICK, "--out", "o")
    assert code == 0, err
    assert out.index("test: 3 of 4 images are not there, such as") < out.index("before: ")
    report = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "report.json").read_text())
    assert report["left out"] == {"image of the test that cannot be read": 3}
    (test.parent / "images" / "3.png").unlink()
    code, out, err = glip_(model, shapes, "--test", test, *QUICK, "--out", "p")
    assert code == 2 and "test: none of its 4 images is there" in err and "before: " not in out


def test_prompts_are_compared(command_line, model, shapes, tmp_path):
    (tmp_path / "words.yaml").write_text("red circle: 'a epoch [red circle]'\n")
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
        (("SET", "--shots", "5"), "5 images of each class cannot be drawn: there are of 'red circle' 3"),
        (("SET", "--epochs", "0"), "--epochs 0: give a number above 0"),
        (("SET", "--seed", "-1"), "--seed -1: give a number from 0 on"),
        (("SET", "--image-list", "p.json", "--shots", "1"), "--image-list with --shots"),
        (("--tasks", "none.yaml", "--test", "a"), "--test with --tasks: each task of a table has its own"),
        (("--tasks", "untested.yaml"), "first: train or test is empty"),
        (("world_novel", "--root", "DRAWN"), "has no list of names that all its images share"),
        (("no_such_set",), "neither in datasets.yaml nor a file"),
        (("--tasks", "none.yaml"), "is no file: give a YAML of tasks"),
        (("--tasks", "odinw13"), "none of its tasks is under"),
        (("SET", "--prompts", "strange.yaml"), "no class 'blue cup' in the set"),
    ],
)
def test_errors_in_one_line(given, message, glip_, model, shapes, drawn_root, tmp_path):
    (tmp_path / "strange.yaml").write_text("blue cup: '[blue cup]'\n")
    (tmp_path / "untested.yaml").write_text("first: {train: a, test: ''}\n")
    code, _, err = glip_(model, *({"SET": str(shapes), "DRAWN": str(drawn_root)}.get(word, word) for word in given))
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_set_without_boxes_or_with_other_classes(glip_, model, shapes, tmp_path):
    tree = json.loads(shapes.read_text())
    bare = shapes.with_name("bare.json")
    bare.write_text(json.dumps({**tree, "annotations": []}))
    code, _, err = glip_(model, bare)
    assert code == 2 and ("no box" in err or "no image to tune on has a named box" in err or "nothing" in err)
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
