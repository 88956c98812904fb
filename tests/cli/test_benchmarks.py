"""glip evaluate on RefCOCO, gRefCOCO, OVDEval, SA-Co, D3 and OmniLabel as they are distributed, whole and by part."""

import json
import pickle
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

TOO_LONG = "the " + "very " * 300 + "red thing"
BOX = [9.0, 6.0, 45.0, 30.0]  # of an image of 90 x 60
UNREAD = "text that the model cannot read: not asked for"


@pytest.fixture
def glip_(command_line, tmp_path):
    """Evaluate with the data in the empty folder."""
    return partial(command_line, "evaluate", "--root", tmp_path, "--out", tmp_path / "out")


def write(path: Path, **tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def draw(folder: Path, names: Sequence[str] = ("0.png", "1.png")) -> list[dict[str, object]]:
    """Images as COCO's json lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise((90, 60), 80).convert("RGB").save(folder / name)
    return [{"id": at, "file_name": name, "width": 90, "height": 60} for at, name in enumerate(names)]


def expressions(root: Path, name: str, split: str, *captions: str) -> Path:
    """Three expressions, or the given ones, in MDETR's layout, two of them of one image."""
    captions = captions or ("a red thing", "the blue thing on the left", "green")
    listed = draw(root / "coco/train2014", [f"COCO_train2014_{at // 2:012}.jpg" for at in range(len(captions))])
    images = [
        {**image, "original_id": at // 2, "caption": caption, "dataset_name": name}
        for at, (image, caption) in enumerate(zip(listed, captions, strict=True))
    ]
    row = {"bbox": BOX, "category_id": 1, "tokens_positive": [[0, 3]]}
    rows = [{**row, "image_id": at} for at in range(len(captions))]
    if name == "grefcoco":
        rows[-1] |= {"bbox": [0, 0, 0, 0], "category_id": -1}
    file = root / "mdetr_annotations" / f"finetune_{name}_{split}.json"
    return write(file, images=images, annotations=rows, categories=[])


def refcoco(root: Path) -> None:
    for split in ("val", "testB"):
        expressions(root, "refcoco", split)


def grefcoco(root: Path) -> None:
    for split in ("val", "testA"):
        expressions(root, "grefcoco", split)


def ovdeval(root: Path) -> None:
    """Two aspects; an image is asked for its own name and two others, of which one has too many tokens."""
    names = ["red cup", "blue cup", "green cup", TOO_LONG]
    categories = [{"id": number, "name": text, "supercategory": "object"} for number, text in enumerate(names)]
    for aspect in ("color", "logo"):
        images = draw(root / "ovdeval" / "images" / aspect)
        images = [{**image, "text": [names[at]], "neg_text": names[2:]} for at, image in enumerate(images)]
        row = {"bbox": BOX, "area": 1350, "iscrowd": 0}
        rows = [{**row, "id": at, "image_id": at, "category_id": at} for at in (0, 1)]
        file = root / "ovdeval" / "annotations" / f"{aspect}.json"
        write(file, images=images, annotations=rows, categories=categories)


def saco(root: Path) -> None:
    """Two subsets of Gold with three annotators; each image has two phrases, its pairs are not neighbours."""
    for name, folder in (("crowded", "metaclip-images"), ("sa1b", "sa1b-images")):
        images = draw(root / "saco_gold" / folder)
        listed = [
            {**image, "id": 10 * number + at, "text_input": text, "is_instance_exhaustive": 1}
            for number, text in enumerate(("red thing", "blue thing on the left"))
            for at, image in enumerate(images)
        ]
        share = [BOX[0] / 90, BOX[1] / 60, BOX[2] / 90, BOX[3] / 60]
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": share, "iscrowd": 0}
        for annotator in "abc":
            file = root / "saco_gold" / "gt-annotations" / f"gold_{name}_merged_{annotator}_release_test.json"
            write(file, images=listed, annotations=[row], categories=[{"id": 1, "name": "object"}])


def d3(root: Path) -> None:
    """Two images of two groups; one description of the second has more tokens than a model reads."""
    images = draw(root / "d3" / "d3_images")
    texts = {1: "red thing", 2: "thing without red", 3: "a blue thing on the left", 4: TOO_LONG}
    row = {"id": 0, "bbox": BOX, "area": 1350, "iscrowd": 0}
    for part, numbers in {"full": (1, 2, 3, 4), "pres": (1, 3, 4), "abs": (2,)}.items():
        rows = [{**row, "id": at, "image_id": int(of > 2), "category_id": of} for at, of in enumerate(numbers)]
        listed = [{"id": number, "name": texts[number]} for number in numbers]
        file = root / "d3" / "d3_json" / f"d3_{part}_annotations.json"
        write(file, images=images, annotations=rows, categories=listed)
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
    write(root / "omnilabel" / "dataset_all_val_v0.1.4.json", images=images, descriptions=listed, annotations=rows)


def report_of(out: Path, name: str) -> dict:
    [file] = out.glob(f"**/{name}/report.json")
    return json.loads(file.read_text())


def asked(row: dict) -> tuple[int, ...]:
    """What a line of a results file answers: an image and a category, a description, or (there is only one) nothing."""
    return row["image_id"], *row.get("description_ids", [row["category_id"]] if "category_id" in row else [])


@pytest.mark.parametrize(
    ("make", "name", "part", "figures", "unread", "wanted", "said"),
    [
        (refcoco, "refcoco", "refcoco_val", ["P@1 (GIoU)", "P@10 (GIoU)", "P@1 (IoU)"], 0, {(0,), (1,), (2,)},
         "# refcoco, 2 of 3 parts; missing, and not in the mean: refcoco_testA"),
        (grefcoco, "grefcoco", "grefcoco_val", ["F1=1", "N_acc", "T_acc"], 0, {(0,), (1,), (2,)},
         "# grefcoco, 2 of 3 parts; missing, and not in the mean: grefcoco_testB"),
        (ovdeval, "ovdeval", "ovdeval_color", ["NMS-AP", "AP"], 1, {(0, 0), (0, 2), (1, 1), (1, 2)},
         "# ovdeval, 2 of 9 parts; missing, and not in the mean: ovdeval_object, "),
        (saco, "saco_gold", "saco_gold_crowded", ["cgF1", "IL_MCC", "IL_FPR", "positive_micro_F1@0.5"], 0,
         {(0, 1), (1, 1), (10, 1), (11, 1)},
         "# saco_gold, 2 of 7 parts; missing, and not in the mean: saco_gold_metaclip, "),
        (d3, "d3", "d3", ["AP", "AP presence", "AP absence", "AP very long"], 1, {(0, 1), (0, 2), (1, 3)}, ""),
        (omnilabel, "omnilabel_val", "omnilabel_val", ["AP", "AP categ", "AP descr-pos", "AR descr"], 1,
         {(0, 20), (0, 19), (1, 20), (1, 19)}, ""),
    ],
)  # fmt: skip
def test_a_benchmark_runs_whole_and_its_results_score_the_same(
    make: Callable[[Path], None], name, part, figures, unread, wanted, said, glip_, tiny_folder, tmp_path
):
    """Words over the token room are counted, never cut; an image is asked for its own names."""
    make(tmp_path)
    code, out, err = glip_(tiny_folder, name)
    assert code == 0 and said in out and ("| mean of 2 of " in out) == bool(said), err
    report = report_of(tmp_path / "out", part)
    assert report["protocol"] == make.__name__ and set(figures) <= report["figures"].keys()
    assert next(iter(report["figures"])) == figures[0] and report["noted"].get(UNREAD, 0) == unread
    [file] = tmp_path.glob(f"out/*/{part}/{'groundings' if 'refcoco' in name else 'results'}.json")
    rows = json.loads(file.read_text())
    assert rows and {asked(row) for row in rows} <= wanted and (make is not saco or max(rows[0]["bbox"]) <= 1.0)
    assert {row["image_id"] for row in rows} == {place[0] for place in wanted}
    for whole in tmp_path.glob("out/*/ovdeval_logo/results.json"):  # an aspect that asks for all of its names
        assert {asked(row) for row in json.loads(whole.read_text())} == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    again = glip_(part, "--predictions", file, "--out", tmp_path / "again")
    assert again[0] == 0, again[2]
    assert report_of(tmp_path / "again", part)["figures"] == pytest.approx(report["figures"])
    code, _, err = glip_(name, "--predictions", file)
    assert said == "" or (code == 2 and "--predictions scores one set" in err)


def test_an_expression_over_the_token_room_is_counted_and_never_cut(glip_, tiny_folder, tmp_path):
    """As a mistake, also where nothing is there: nobody has looked."""
    file = expressions(tmp_path, "grefcoco", "val", "a red thing", TOO_LONG)
    code, out, err = glip_(tiny_folder, file, "--images", tmp_path / "coco" / "train2014")
    assert code == 0, err
    assert "Noted: 1 x caption that the model cannot read (sample 1, image 1" in out
    [folder] = tmp_path.glob("out/*/*")
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"]["N_acc"] == 0.0 and report["samples"] == 2
    assert [row["image_id"] for row in json.loads((folder / "groundings.json").read_text())] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grefcoco_val", "--protocol", "any-box"], "'any-box' does not fit set .*, captions in grefcoco: take gref"),
        (["refcoco_val", "--protocol", "grefcoco"], "captions in refcoco: take refcoco"),
        (["d3", "--protocol", "coco"], "Protocol 'coco' does not fit set 'd3', lists of names in d3: take d3"),
        (["saco_gold_sa1b"], "2 of 4 images are not there, such as"),
        (["saco_silver"], "saco_silver: none of its parts is under"),
    ],
)
def test_what_cannot_be_scored(arguments, message, glip_, tiny_folder, tmp_path):
    for make in (refcoco, grefcoco, d3, saco):
        make(tmp_path)
    (tmp_path / "saco_gold" / "sa1b-images" / "1.png").unlink()
    code, _, err = glip_(tiny_folder, *arguments)
    assert code == 2 and re.search(message, err), err
