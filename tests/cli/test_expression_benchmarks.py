"""glip evaluate on RefCOCO, gRefCOCO and OVDEval as they are distributed: sets by name, whole benchmarks, files."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

TOO_LONG = "the " + "very " * 300 + "red thing"


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "evaluate")


def expressions(root: Path, name: str, split: str, *captions: str) -> Path:
    """Three expressions, or the given ones, in MDETR's layout, two of them of one image."""
    (root / "mdetr_annotations").mkdir(parents=True, exist_ok=True)
    (root / "coco" / "train2014").mkdir(parents=True, exist_ok=True)
    images, rows = [], []
    for number, caption in enumerate(captions or ("a red thing", "the blue thing on the left", "green")):
        file = f"COCO_train2014_{number // 2:012}.jpg"
        Image.effect_noise((90, 60), 80).convert("RGB").save(root / "coco" / "train2014" / file)
        stated = {"id": number, "file_name": file, "width": 90, "height": 60, "original_id": number // 2}
        images.append({**stated, "caption": caption, "dataset_name": name})
        rows.append({"image_id": number, "bbox": [5, 5, 60, 40], "category_id": 1, "tokens_positive": [[0, 3]]})
    if name == "grefcoco":
        rows[-1] |= {"bbox": [0, 0, 0, 0], "category_id": -1}
    file = root / "mdetr_annotations" / f"finetune_{name}_{split}.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": []}))
    return file


def aspect(root: Path, name: str) -> None:
    folder = root / "ovdeval" / "images" / name
    folder.mkdir(parents=True)
    (root / "ovdeval" / "annotations").mkdir(exist_ok=True)
    names = ["red cup", "blue cup", "green cup", TOO_LONG]
    images, rows = [], []
    for number in range(2):
        Image.effect_noise((90, 60), 80).convert("RGB").save(folder / f"{number}.jpg")
        lists = {"text": [names[number]], "neg_text": names[2:]}
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 90, "height": 60, **lists})
        box = {"bbox": [5, 5, 60, 40], "area": 2400, "iscrowd": 0}
        rows.append({"id": number, "image_id": number, "category_id": number, **box})
    categories = [{"id": number, "name": text, "supercategory": "object"} for number, text in enumerate(names)]
    tree = {"images": images, "annotations": rows, "categories": categories}
    (root / "ovdeval" / "annotations" / f"{name}.json").write_text(json.dumps(tree))


def report_of(out: Path, name: str) -> dict:
    [file] = out.glob(f"**/{name}/report.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "splits", "figures"),
    [
        ("refcoco", ("val", "testB"), ["P@1 (GIoU)", "P@10 (GIoU)", "P@1 (IoU)", "P@10 (IoU)"]),
        ("grefcoco", ("val", "testA"), ["F1=1", "N_acc", "T_acc"]),
    ],
)
def test_a_benchmark_runs_whole_and_its_files_score_the_same(name, splits, figures, glip_, tiny_folder, tmp_path):
    for split in splits:
        expressions(tmp_path, name, split)
    code, out, err = glip_(tiny_folder, name, "--root", tmp_path, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"# {name}, 2 of 3 parts; missing, and not in the mean: {name}_" in out and "| mean of 2 of 3 |" in out
    report = report_of(tmp_path / "out", f"{name}_{splits[0]}")
    assert report["protocol"] == name and report["samples"] == 3 and set(figures) <= report["figures"].keys()
    [file] = tmp_path.glob(f"out/*/{name}_{splits[0]}/groundings.json")
    again = glip_(f"{name}_{splits[0]}", "--root", tmp_path, "--predictions", file, "--out", tmp_path / "again")
    assert again[0] == 0, again[2]
    assert report_of(tmp_path / "again", f"{name}_{splits[0]}")["figures"] == pytest.approx(report["figures"])
    code, _, err = glip_(name, "--root", tmp_path, "--predictions", file)
    assert code == 2 and "--predictions scores one set" in err


def test_an_expression_over_the_token_room_is_counted_and_never_cut(glip_, tiny_folder, tmp_path):
    """As a mistake, also where nothing is there: nobody has looked."""
    file = expressions(tmp_path, "grefcoco", "val", "a red thing", TOO_LONG)
    code, out, err = glip_(tiny_folder, file, "--images", tmp_path / "coco" / "train2014", "--out", tmp_path / "out")
    assert code == 0, err
    assert "Noted: 1 x caption that the model cannot read (sample 1, image 1" in out
    [folder] = tmp_path.glob("out/*/*")
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"]["N_acc"] == 0.0 and report["samples"] == 2
    assert [row["image_id"] for row in json.loads((folder / "groundings.json").read_text())] == [0]


def test_ovdeval_has_the_mean_of_its_aspects(glip_, tiny_folder, tmp_path):
    for name in ("color", "logo"):
        aspect(tmp_path, name)
    code, out, err = glip_(tiny_folder, "ovdeval", "--root", tmp_path, "--out", tmp_path / "out")
    assert code == 0, err
    assert "# ovdeval, 2 of 9 parts; missing, and not in the mean: ovdeval_object, " in out
    report = report_of(tmp_path / "out", "ovdeval_color")
    assert report["noted"]["text that the model cannot read: not asked for"] == 1
    assert next(iter(report["figures"])) == "NMS-AP" and "AP" in report["figures"]
    [file] = tmp_path.glob("out/*/ovdeval_color/results.json")
    listed = {(row["image_id"], row["category_id"]) for row in json.loads(file.read_text())}
    assert listed <= {(0, 0), (0, 2), (1, 1), (1, 2)} and listed, "an image is asked for its own names"
    [whole] = tmp_path.glob("out/*/ovdeval_logo/results.json")
    assert {row["category_id"] for row in json.loads(whole.read_text()) if row["image_id"] == 0} == {0, 1, 2}
    code, _, err = glip_("ovdeval_color", "--root", tmp_path, "--predictions", file, "--out", tmp_path / "again")
    assert code == 0, err
    assert report_of(tmp_path / "again", "ovdeval_color")["figures"] == pytest.approx(report["figures"])


@pytest.mark.parametrize(
    ("name", "protocol", "message"),
    [
        ("grefcoco", "any-box", "Protocol 'any-box' does not fit set .*, captions in grefcoco: take grefcoco"),
        ("refcoco", "grefcoco", "captions in refcoco: take refcoco"),
    ],
)
def test_protocols_that_do_not_fit(name, protocol, message, glip_, tiny_folder, tmp_path):
    expressions(tmp_path, name, "val")
    code, _, err = glip_(tiny_folder, f"{name}_val", "--root", tmp_path, "--protocol", protocol)
    assert code == 2 and re.search(message, err), err


def test_missing_images_are_an_error(glip_, tiny_folder, tmp_path):
    expressions(tmp_path, "refcoco", "val")
    (tmp_path / "coco" / "train2014" / f"COCO_train2014_{1:012}.jpg").unlink()
    code, _, err = glip_(tiny_folder, "refcoco_val", "--root", tmp_path)
    assert code == 2 and "1 of 3 images are not there, such as" in err
