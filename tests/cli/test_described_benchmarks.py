"""glip evaluate on SA-Co, D3 and OmniLabel as they are distributed: benchmarks by name, results files, what is long."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

TOO_LONG = "the " + "very " * 300 + "red thing"
BOX = [9.0, 6.0, 45.0, 30.0]  # of an image of 90 x 60


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "evaluate")


def write(path: Path, tree: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def draw(folder: Path, count: int = 2) -> list[dict[str, object]]:
    """Images as COCO's json lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.effect_noise((90, 60), 80).convert("RGB").save(folder / f"{number}.png")
    return [{"id": at, "file_name": f"{at}.png", "width": 90, "height": 60} for at in range(count)]


def saco(root: Path) -> None:
    """Two subsets of Gold with three annotators; each image has two phrases, its pairs are not neighbours."""
    for name, folder in (("crowded", "metaclip-images"), ("sa1b", "sa1b-images")):
        images = draw(root / "saco_gold" / folder)
        listed = [
            {**image, "id": 10 * number + image["id"], "text_input": text, "is_instance_exhaustive": 1}
            for number, text in enumerate(("red thing", "blue thing on the left"))
            for image in images
        ]
        share = [BOX[0] / 90, BOX[1] / 60, BOX[2] / 90, BOX[3] / 60]
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": share, "iscrowd": 0}
        tree = {"images": listed, "annotations": [row], "categories": [{"id": 1, "name": "object"}]}
        for annotator in "abc":
            write(root / "saco_gold" / "gt-annotations" / f"gold_{name}_merged_{annotator}_release_test.json", tree)


def d3(root: Path) -> None:
    """Two images of two groups; the descriptions of the second have more tokens than a model reads, or none does."""
    images = draw(root / "d3" / "d3_images")
    texts = {1: "red thing", 2: "thing without red", 3: "a blue thing on the left", 4: TOO_LONG}
    row = {"id": 0, "bbox": BOX, "area": 1350, "iscrowd": 0}
    for part, numbers in {"full": (1, 2, 3, 4), "pres": (1, 3, 4), "abs": (2,)}.items():
        rows = [{**row, "id": at, "image_id": number > 2, "category_id": number} for at, number in enumerate(numbers)]
        listed = [{"id": number, "name": texts[number]} for number in numbers]
        for one in rows:
            one["image_id"] = int(one["image_id"])
        tree = {"images": images, "annotations": rows, "categories": listed}
        write(root / "d3" / "d3_json" / f"d3_{part}_annotations.json", tree)
    groups = {0: {"img_id": [0], "inner_sent_id": [1, 2]}, 1: {"img_id": [1], "inner_sent_id": [3, 4]}}
    (root / "d3" / "d3_pkl").mkdir()
    (root / "d3" / "d3_pkl" / "groups.pkl").write_bytes(pickle.dumps(groups))


def omnilabel(root: Path) -> None:
    images = draw(root / "omnilabel" / "imgs")
    kinds = ("object_category", "object_description", "object_description")
    spaces = {"thing": [0, 1], "a red thing on the left": [0, 1], TOO_LONG: [1]}
    listed = [
        {"id": 20 - at, "text": text, "anno_info": {"type": kind}, "image_ids": space}
        for at, (kind, (text, space)) in enumerate(zip(kinds, spaces.items(), strict=True))
    ]
    rows = [{"id": 1 + at, "image_id": at, "bbox": BOX, "description_ids": [20, 19 - at]} for at in (0, 1)]
    tree = {"images": images, "descriptions": listed, "annotations": rows}
    write(root / "omnilabel" / "dataset_all_val_v0.1.4.json", tree)


def report_of(out: Path, name: str) -> dict:
    [file] = out.glob(f"**/{name}/report.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("made", "name", "part", "figures", "left_out"),
    [
        (saco, "saco_gold", "saco_gold_crowded", ["cgF1", "IL_MCC", "IL_FPR", "positive_micro_F1@0.5"], 0),
        (d3, "d3", "d3", ["AP", "AP presence", "AP absence", "AP very long"], 1),
        (omnilabel, "omnilabel_val", "omnilabel_val", ["AP", "AP categ", "AP descr-pos", "AR descr"], 1),
    ],
)
def test_a_benchmark_runs_whole_and_its_results_score_the_same(
    made, name, part, figures, left_out, glip_, tiny_folder, tmp_path
):
    """Words over the token room are counted, never cut."""
    made(tmp_path)
    code, out, err = glip_(tiny_folder, name, "--root", tmp_path, "--out", tmp_path / "out")
    assert code == 0, err
    report = report_of(tmp_path / "out", part)
    assert report["protocol"] == made.__name__ and set(figures) <= report["figures"].keys()
    assert next(iter(report["figures"])) == figures[0]
    assert report["noted"].get("text that the model cannot read: not asked for", 0) == left_out
    [file] = tmp_path.glob(f"out/*/{part}/results.json")
    rows = json.loads(file.read_text())
    if made is saco:
        assert "# saco_gold, 2 of 7 parts; missing, and not in the mean: saco_gold_metaclip, " in out
        assert "| mean of 2 of 7 |" in out and max(max(row["bbox"]) for row in rows) <= 1.0
        assert {row["image_id"] for row in rows} == {0, 1, 10, 11}
    elif made is d3:
        assert {(row["image_id"], row["category_id"]) for row in rows} == {(0, 1), (0, 2), (1, 3)}
    else:
        assert {(row["image_id"], *row["description_ids"]) for row in rows} == {(0, 20), (0, 19), (1, 20), (1, 19)}
    again = glip_(part, "--root", tmp_path, "--predictions", file, "--out", tmp_path / "again")
    assert again[0] == 0, again[2]
    assert report_of(tmp_path / "again", part)["figures"] == pytest.approx(report["figures"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d3", "--protocol", "coco"], "Protocol 'coco' does not fit set 'd3', lists of names in d3: take d3"),
        (["saco_gold_sa1b"], "1 of 4 images are not there, such as"),
        (["saco_silver"], "saco_silver: none of its parts is under"),
    ],
)
def test_what_cannot_be_scored(arguments, message, glip_, tiny_folder, tmp_path):
    d3(tmp_path)
    saco(tmp_path)
    (tmp_path / "saco_gold" / "sa1b-images" / "1.png").rename(tmp_path / "elsewhere.png")
    code, _, err = glip_(tiny_folder, *arguments, "--root", tmp_path)
    assert code == 2 and message.replace("1 of 4", "2 of 4") in err, err
