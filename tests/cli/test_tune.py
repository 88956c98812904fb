"""glip tune: one task in several ways; files that glip detect and evaluate use; errors in one line."""

import json
from functools import partial

import pytest
import torch
from small import NAMES, write_coco

from glip.files import exclusive
from glip.model.adapt import load_adaptation
from glip.model.weights import load_pretrained

pytestmark = pytest.mark.usefixtures("peft_for_lora")

QUICK = ("--epochs", "1", "--max-val-images", "2")


@pytest.fixture
def tune(command_line):
    return partial(command_line, "tune")


def edit(path, change):
    """Change a json in place."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.slow
def test_tune_detect_and_evaluate(tune, command_line, model, shapes, tmp_path):
    code, out, err = tune(model, shapes, "--shots", 1, "--test", shapes, *QUICK, "--out", "o")
    assert code == 0, err
    folder = tmp_path / "o" / "instances-prompt-1-0"
    assert {file.name for file in folder.iterdir()} == {
        *("task.safetensors", "images.json", "report.json", "curve.png", "last.pt", "run.json", ".lock")
    }
    assert "4 classes; training on" in out and "before: " in out and "epoch 1  loss" in out
    task = load_adaptation(folder / "task.safetensors")
    assert task.names == NAMES and len(task.thresholds) == 4 and task.about["shots"] == "1"
    assert {"validation", "test AP50", "test before AP50"} <= set(task.figures)
    tuned, listed = json.loads((folder / "report.json").read_text()), json.loads((folder / "images.json").read_text())
    assert tuned["mode"] == "prompt" and len(tuned["epochs"]) == 2 and len(listed["ids"]) == int(task.about["images"])

    file = folder / "task.safetensors"
    image = shapes.parent / "images" / "0.png"
    code, out, err = command_line("detect", image, "--model", model, "--task", file, "--out", "-")
    assert code == 0, err
    assert json.loads(out)["phrases"] == list(NAMES)
    code, out, err = command_line("evaluate", model, shapes, "--task", file, "--out", "e")
    assert code == 0, err
    (report,) = (tmp_path / "e").glob("*-task-*/shapes_instances/report.json")
    found = json.loads(report.read_text())
    assert found["figures"]["AP50"] == pytest.approx(task.figures["test AP50"], abs=2e-4)
    assert found["trained_on"] == "yes" and "with task instances (prompt, shots 1, seed 0) on shapes_instances" in out
    code, out, err = command_line("evaluate", model, shapes, "--task", "none", "--task", file, "--out", "both")
    assert code == 0 and f"| shapes_instances | {file} | AP50 |" in out and "| none | AP50 |" in out, err
    assert "# Compared with" in (tmp_path / "both" / "comparison.md").read_text()
    code, _, err = command_line("detect", image, "--model", "glip-nano", "--task", file)
    assert code == 2 and "other weights" in err and err.count("\n") == 1


def test_lora_is_tuned_and_merged(tune, command_line, model, shapes, tmp_path):
    flags = ("--mode", "lora", "--rank", 2, "--targets", "fusion.key", *QUICK, "--no-thresholds")
    code, _, err = tune(model, shapes, *flags, "--lr", 0.05, "--out", "o")
    assert code == 0, err
    file = "o/instances-lora-all-0/task.safetensors"
    assert {value.shape for value in load_adaptation(file).weights.values()} == {(2, 64), (2048, 2)}
    for out, flag in (("merged", "--task"), ("adapter", "--peft")):
        code, _, err = command_line("convert", model, out, flag, file)
        assert code == 0, err
    image, found = shapes.parent / "images" / "0.png", []
    for given in (("--task", file), ("--task", "adapter/adapter_model.safetensors"), (*NAMES, "--model", "merged")):
        code, out, err = command_line("detect", image, *("--model", model) * ("--task" in given), *given, "--out", "-")
        assert code == 0, err
        found.append([(one["label"], one["score"]) for one in json.loads(out)["detections"]])
    assert found[0] and all(sorted(other) == sorted(found[0]) for other in found[1:])


def test_listed_images_are_those_trained_on(tune, model, shapes, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"ids": ["2", "0"]}))
    code, out, err = tune(model, shapes, "--image-list", "some.json", *QUICK, "--out", "o")
    assert code == 0, err
    found = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "images.json").read_text())
    assert found["ids"] == ["0", "2"] and "validating on 2 images" in out
    (tmp_path / "strange.json").write_text(json.dumps({"ids": ["77"]}))
    code, _, err = tune(model, shapes, "--image-list", "strange.json", *QUICK)
    assert code == 2 and "has no image '77'" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "encoded"), [("prompt", 3 + 4), ("linear", 3 + 4), ("lora", 3 + 4), ("full", 64 + 1 + 4)]
)
def test_a_frozen_encoder_sees_each_image_once(mode, encoded, tune, model, shapes, seen):
    """Of 4 images 3 are tuned on (64 an epoch), 1 validates (before, after, thresholds), all test (before, after).

    The one epoch of full tuning is worse than none: another encoder sees the image of validation once, after it.
    """
    given = (model, shapes, "--test", shapes, "--mode", mode, *QUICK)
    assert tune(*given, "--out", "cached")[0] == 0
    assert sum(seen) == encoded
    seen.clear()
    assert tune(*given, "--out", "uncached", "--cache-gb", 1e-9)[0] == 0
    assert sum(seen) == 64 + 3 + 2 * 4 + (mode != "full")  # one is tried for its size
    one, other = (load_adaptation(f"{out}/instances-{mode}-all-0/task.safetensors") for out in ("cached", "uncached"))
    assert one.figures == pytest.approx(other.figures, abs=1e-5)


@pytest.mark.slow
def test_training_images_are_cached_first(tune, model, shapes):
    """Used in every step, they replace validation and test images in the cache, also where these came first."""
    one = sum(level.numel() * 4 for level in load_pretrained(model).model.encode_image(torch.zeros(1, 3, 96, 128)))
    given = (model, shapes, "--test", shapes, "--shots", "1", "all", *QUICK, "--cache-gb", str(4.5 * one / 1e9))
    code, out, err = tune(*given, "--out", "o")
    assert code == 0, err
    assert out.count("training on 3 images with 7 boxes, 3 of them cached") == 2


def test_without_a_validation_set_a_fifth_is_held_out(tune, model, shapes, tmp_path):
    """Of those with boxes, and of those without."""

    def add_empty_images(tree):
        tree["images"] += [{**tree["images"][0], "id": 100 + number} for number in range(6)]

    edit(shapes, add_empty_images)
    (tmp_path / "words.yaml").write_text("red circle: 'a round [red circle]'\n")
    flags = ("--mode", "linear", "--no-thresholds", "--prompts", "words.yaml")
    code, out, err = tune(model, shapes, *QUICK, *flags, "--out", "o")
    assert code == 0, err
    assert "training on 7 images" in out and "validating on 2 images, 1 of them without a box\n" in out
    assert "2 images are few to choose the best epoch and thresholds by: validate on more" in out
    task = load_adaptation("o/instances-linear-all-0/task.safetensors")
    assert task.thresholds == () and task.names == NAMES
    assert task.prompt.caption.startswith("a round red circle. blue star"), "the written prompt is tuned"


def test_a_folder_belongs_to_one_run_on_the_same_data(tune, model, shapes, tmp_path):
    given = (model, shapes, *QUICK, "--out", "o")
    with exclusive(tmp_path / "o" / "instances-prompt-all-0"):
        code, _, err = tune(*given)
    assert code == 2 and "another run writes to" in err and err.count("\n") == 1
    assert tune(*given)[0] == 0

    def move(tree):
        for row in tree["annotations"]:
            row["bbox"][0] += 1

    edit(shapes, move)
    code, _, err = tune(*given)
    assert code == 2 and "o/instances-prompt-all-0" in err and err.count("\n") == 1


def test_missing_images_are_reported_before_the_work(tune, model, shapes, tmp_path):
    test = write_coco(tmp_path / "test")
    for number in range(3):
        (test.parent / "images" / f"{number}.png").unlink()
    code, out, err = tune(model, shapes, "--test", test, *QUICK, "--out", "o")
    assert code == 0, err
    assert out.index("test: 3 of 4 images do not exist, such as") < out.index("before: ")
    report = json.loads((tmp_path / "o" / "instances-prompt-all-0" / "report.json").read_text())
    assert report["skipped"] == {"unreadable test image": 3}
    (test.parent / "images" / "3.png").unlink()
    code, out, err = tune(model, shapes, "--test", test, *QUICK, "--out", "p")
    assert code == 2 and "test: none of its 4 images exists" in err and "before: " not in out


@pytest.mark.slow
def test_a_task_does_not_change_other_classes_and_needs_the_same_order(tune, command_line, model, shapes):
    assert tune(model, shapes, *QUICK, "--out", "o")[0] == 0
    tree = json.loads(shapes.read_text())
    names = [row["name"] for row in tree["categories"]]
    for file, others in (("others", [name.split()[1] for name in names]), ("turned", names[::-1])):
        categories = [{**row, "name": name} for row, name in zip(tree["categories"], others, strict=True)]
        shapes.with_name(f"{file}.json").write_text(json.dumps({**tree, "categories": categories}))
    flags = ("--task", "o/instances-prompt-all-0/task.safetensors", "--out", "e")
    code, out, err = command_line("evaluate", model, shapes.with_name("others.json"), *flags)
    assert code == 0 and "other names than the task" in out, err
    code, plain, err = command_line("evaluate", model, shapes.with_name("others.json"), "--out", "f")
    figures = [line for line in plain.splitlines() if line.startswith("| AP")]
    assert code == 0 and figures and set(figures) <= set(out.splitlines())
    code, _, err = command_line("evaluate", model, shapes.with_name("turned.json"), *flags)
    assert code == 2 and "order" in err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), "give a dataset to tune on, or --tasks TABLE"),
        (("SET", "--tasks", "t.yaml"), "set besides --tasks: write it in the table"),
        (("SET", "--shots", "0"), "--shots: got 0: give a whole number, 1 or more"),
        (("SET", "--shots", "few"), "--shots"),
        (("SET", "--shots", "5"), "5 images of each class cannot be drawn ('red circle' 3"),
        (("SET", "--mode", "lora", "--rank", "65"), "rank: got 65: give at most 64"),
        (("SET", "--mode", "lora", "--targets", "nothing"), "targets: 'nothing' matches no layer"),
        (("SET", "--image-list", "p.json", "--shots", "1"), "--shots: not allowed with argument --image-list"),
        (("--tasks", "none.yaml", "--test", "a"), "test besides --tasks"),
        (("--tasks", "untested.yaml"), "first.test: got '': give text that is not empty"),
        (("captions.jsonl", "--images", "."), "'captions.jsonl' has no class names"),
        (("no_such_set",), "'no_such_set'"),
        (("--tasks", "none.yaml"), "No such file or directory: 'none.yaml'"),
        (("--tasks", "odinw13"), "No task of odinw13"),
        (("SET", "--prompts", "strange.yaml"), "'blue cup'"),
        (("BARE",), "is left to train on"),
        (("SET", "--test", "OTHER"), "with the same classes"),
    ],
)
def test_errors_in_one_line(given, named, tune, model, shapes, tmp_path):
    if "lora" in given:
        pytest.importorskip("peft")
    (tmp_path / "strange.yaml").write_text("blue cup: '[blue cup]'\n")
    (tmp_path / "untested.yaml").write_text("first: {train: a, test: ''}\n")
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "caption": "a dog"}\n')
    tree = json.loads(shapes.read_text())
    files = {"SET": shapes, "BARE": shapes.with_name("bare.json"), "OTHER": shapes.with_name("other.json")}
    files["BARE"].write_text(json.dumps({**tree, "annotations": []}))
    others = [{**row, "name": row["name"] + "s"} for row in tree["categories"]]
    files["OTHER"].write_text(json.dumps({**tree, "categories": others}))
    code, _, err = tune(model, *(files.get(word, word) for word in given))
    assert code == 2 and named in err and err.count("\n") == 1


def test_a_class_without_a_box_is_named(tune, model, shapes):
    edit(shapes, lambda tree: tree.update(annotations=[r for r in tree["annotations"] if r["category_id"] != 40]))
    code, out, err = tune(model, shapes, *QUICK, "--out", "o")
    assert code == 0, err
    assert "classes without a box to train on: 1 (yellow heart)" in out
    code, _, err = tune(model, shapes, "--shots", "1", *QUICK)
    assert code == 2 and "'yellow heart' 0" in err


@pytest.mark.parametrize("content", ["[1]", "{}", '{"ids": 5}'])
def test_a_list_of_images_is_that_of_a_tuning(content, tune, model, shapes, tmp_path):
    (tmp_path / "odd.json").write_text(content)
    code, _, err = tune(model, shapes, "--image-list", "odd.json")
    assert code == 2 and err.startswith("glip tune: odd.json") and err.count("\n") == 1
