"""glip data: what it prints, writes and exits with, for sets of the table and for paths."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "data")


@pytest.fixture
def birds(tmp_path):
    """A COCO set of three images in a data root of its own, with its own table."""
    root = tmp_path / "data"
    (root / "birds" / "images").mkdir(parents=True)
    images, rows = [], []
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(np.full((60, 90, 3), 60 * number, np.uint8)).save(root / "birds" / "images" / name)
        images.append({"id": number, "file_name": name, "width": 90, "height": 60})
        rows.append({"id": number, "image_id": number, "category_id": 5, "bbox": [10, 10, 40 + number, 40.5]})
    tree = {"images": images, "annotations": rows, "categories": [{"id": 5, "name": "owl"}, {"id": 9, "name": "tit"}]}
    (root / "birds" / "train.json").write_text(json.dumps(tree))
    entry = "birds: {format: coco, annotations: birds/train.json, images: [birds/images]}\n"
    (root / "datasets.yaml").write_text(
        entry + "gone: {format: coco, annotations: gone.json, images: [birds/images]}\n"
    )
    return root


def edit(birds: Path, change) -> None:
    file = birds / "birds" / "train.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def test_list(glip_, birds):
    code, out, _ = glip_("list", "--root", birds)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and str(birds) in out
    assert lines["birds"].endswith("ready") and lines["gone"].endswith("missing gone.json")


@pytest.mark.parametrize("decode", [[], ["--decode"]])
def test_a_clean_set(glip_, birds, decode):
    code, out, err = glip_("check", "birds", "--root", birds, *decode)
    assert code == 0 and err == ""
    for line in (
        *("birds: 3 samples", "images    3 (0 of 3 samples without boxes)"),
        *("boxes     3: 0 small, 3 medium, 0 large", "classes   2: 0 to 3 boxes each", "rarest    tit 0, owl 3"),
        "name without a box",
    ):
        assert line in out
    assert out.endswith("no problems\n")
    for arguments in ([birds / "birds/train.json"], ["data/birds/train.json", "--images", "data/birds/images"]):
        code, out, _ = glip_("check", *arguments, "--number", 2, *decode)
        assert code == 0 and "images    2" in out


def test_problems_are_named_and_make_the_exit_code(glip_, birds):
    (birds / "birds/images/b.png").unlink()
    edit(birds, lambda tree: tree["annotations"].append({"image_id": 0, "category_id": 77, "bbox": [1, 1, 5, 5]}))
    edit(birds, lambda tree: tree["annotations"].append({"image_id": 0, "category_id": 9, "bbox": [70, 1, 50, 5]}))
    code, out, _ = glip_("check", "birds", "--root", birds)
    assert code == 1 and "no problems" not in out
    for line in ("1 x unknown category", "1 x image that is not there", "1 x box partly outside its image"):
        assert line in out
    assert "b.png" in out and "of 90 x 60: 70, 1, 120, 6" in out
    (birds / "empty").mkdir()
    code, out, _ = glip_("check", birds / "birds/train.json", "--images", birds / "empty")
    assert code == 1 and "give their folder with --images" in out
    out = glip_("convert", "birds", "b.jsonl", "--to", "labels", "--root", birds)[1]
    assert "skipped while reading:\n       1 x unknown category" in out


def test_show(glip_, birds):
    def shown(out: str, *more: object) -> np.ndarray:
        code, printed, _ = glip_("show", "birds", "--root", birds, "--out", out, *more)
        assert code == 0 and printed.startswith(f"{out}: {2 if more else 3} of 3 samples")
        with Image.open(out) as sheet:
            return np.asarray(sheet)

    first, again, other = (shown(f"sheets/{seed}.png", "--number", 2, "--seed", seed) for seed in (0, 0, 1))
    assert np.array_equal(again, first) and not np.array_equal(other, first)
    shown("all.png")


@pytest.mark.parametrize("format", ["coco", "odvg", "labels", "label-studio"])
def test_convert_and_read_again(glip_, birds, format):
    out = f"made/birds.{'json' if format in ('coco', 'label-studio') else 'jsonl'}"
    code, printed, err = glip_("convert", "birds", out, "--to", format, "--root", birds)
    assert code == 0, err
    assert f"{out}: 3 samples as {format}; image names are relative to {birds / 'birds/images'}" in printed
    interface = f"made/birds_interface.xml: its labelling interface; serve {birds / 'birds'} as the local root"
    assert (interface in printed) == (format == "label-studio") == Path("made/birds_interface.xml").is_file()
    assert ("not expressible in odvg" in printed) == (format == "odvg")
    code, printed, err = glip_("check", out, "--images", birds / "birds/images")
    assert code == 0 and "images    3" in printed and "boxes     3" in printed, printed + err


def test_captions_are_checked_and_converted(glip_, drawn_root):
    given = ("world_seen_captions", "--root", drawn_root, "--number", 4)
    code, said, _ = glip_("check", *given)
    assert code == 0 and "captions  4:" in said and "classes" not in said
    code, said, err = glip_("convert", *given, "w.json", "--to", "mdetr")
    assert code == 0 and "w.json: 4 samples as mdetr" in said, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "the following arguments are required: SET"),
        (["check", "brids"], "'brids' is neither in datasets.yaml nor a file"),
        (["check", "gone"], "gone.json' are not there"),
        (["check", "birds", "--images", "nowhere"], "nowhere' is not there"),
        (["check", "birds", "--format", "mdetr"], "caption that is empty or no text"),
        (["check", "birds", "--number", "-1"], "--number: got -1: give a whole number, 0 or more"),
        (["show", "birds", "--number", "0"], "--number: got 0: give a whole number, 1 or more"),
        (["show", "birds", "--out", "sheet.txt"], "unknown ending '.txt'"),
        (["convert", "birds", "out.json", "--to", "mdetr"], "a list of names, which MDETR json cannot say"),
        (["convert", "birds", ".", "--to", "coco"], "is a folder: give the file to write"),
    ],
)
def test_errors_are_one_line(glip_, birds, monkeypatch, arguments, message):
    monkeypatch.setenv("GLIP_DATA", str(birds))
    code, _, err = glip_(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not Path("out.json").exists()


def change_boxes(shapes: Path, change) -> None:
    tree = json.loads(shapes.read_text())
    for row in tree["annotations"]:
        row["bbox"] = [change(number, place) for place, number in enumerate(row["bbox"])]
    shapes.write_text(json.dumps(tree))


def test_boxes_that_cannot_be_right_stop_every_verb(command_line, model, shapes):
    change_boxes(shapes, lambda number, place: number / (128, 120)[place % 2])
    verdict = "most boxes (9 of 9) lie within two pixels of the corner"
    code, out, _ = command_line("data", "check", shapes)
    assert code == 1 and verdict in out
    start, quick = f"train.start={model}", ("train.steps=2", "train.warmup=0", "data.workers=0")
    for verb in (
        ("train", "finetune/own", "--data", shapes, start, *quick),
        ("tune", model, shapes),
        ("evaluate", model, shapes),
        ("evaluate", shapes, "--predictions", "none.json"),
    ):
        code, _, err = command_line(*verb)
        assert code == 2 and verdict in err and len(err.splitlines()) == 1 and "0.png of 128 x 120: 0.0625" in err, verb


def test_doubtful_boxes_are_noted_and_scored(command_line, shapes, tmp_path, caplog):
    change_boxes(shapes, lambda number, place: 130 if place == 0 and number == 84 else number)
    row = {"image_id": 0, "category_id": 10, "bbox": [8, 10, 44, 44], "score": 0.9}
    (tmp_path / "found.json").write_text(json.dumps([row]))
    code, out, _ = command_line("evaluate", shapes, "--predictions", "found.json")
    assert code == 0 and "Noted: 1 x box outside its image" in out
    [notice] = caplog.messages
    assert "in 4 of 4 samples: 1 x box outside its image (" in notice and "1.png of 128 x 120: 130" in notice


def test_the_parent_category_of_roboflow_is_left_out(glip_, command_line, birds, tmp_path):
    def add_parent(tree):
        tree["categories"] = [{**row, "supercategory": "birds"} for row in tree["categories"]]
        tree["categories"].insert(0, {"id": 0, "name": "birds", "supercategory": "none"})

    edit(birds, add_parent)
    reason = "1 x category without a box that only groups all others: left out"
    code, out, _ = glip_("check", "birds", "--root", birds)
    assert code == 0 and f"{reason}\n           birds\n" in out and "rarest    tit 0, owl 3" in out
    row = {"image_id": 0, "category_id": 5, "bbox": [10, 10, 40, 40.5], "score": 0.9}
    (tmp_path / "found.json").write_text(json.dumps([row]))
    out = command_line("evaluate", "birds", "--root", birds, "--predictions", "found.json")[1]
    assert f"Noted: {reason} (birds)." in out and "| owl |" in out and "| birds |" not in out
    edit(birds, lambda tree: tree["annotations"].append({"image_id": 0, "category_id": 0, "bbox": [1, 1, 9, 9]}))
    out = glip_("check", "birds", "--root", birds)[1]
    assert "left out" not in out and "rarest    tit 0, birds 1, owl 3" in out, "it has a box"


def test_a_yolo_set_is_used_as_its_coco_json(glip_, command_line, model, shapes, tmp_path):
    """Converted, checked, shown, evaluated with the same figures, trained on and validated by its ``data.yaml``."""
    code, out, err = glip_("convert", shapes, "ds", "--to", "yolo")
    assert code == 0 and "ds: 4 samples as yolo; images are links to where they are (cp -rL" in out, err
    code, out, _ = glip_("check", "ds/data.yaml")
    assert code == 0 and "4 samples" in out and "no problems" in out, out
    assert glip_("show", "ds/data.yaml:val", "--out", "sheet.png")[0] == 0
    figures = []
    for one in (shapes, "ds/data.yaml"):
        code, _, err = command_line("evaluate", model, one, "--out", "evaluated")
        assert code == 0, err
        [report] = Path("evaluated").rglob(f"{'ds_val' if figures else 'shapes_instances'}/report.json")
        figures.append(json.loads(report.read_text())["figures"])
    assert figures[0] == figures[1]
    quick = ("train.steps=1", "train.warmup=0", "data.workers=0", f"train.start={model}", "train.output=run")
    file = Path("ds/data.yaml")
    file.write_text(file.read_text().replace("val: images", "val: missing"))
    code, out, _ = glip_("check", file)
    assert code == 1 and "1 x folder or list of images that is not there" in out and "boxes     9" in out, out
    code, _, err = command_line("train", "finetune/own", "--data", file, *quick)
    assert code == 0, err
    code, _, err = command_line("train", "finetune/own", "--data", file, "--validate", file, *quick)
    assert code == 2 and "missing' of data.yaml are not there" in err and err.count("\n") == 1
