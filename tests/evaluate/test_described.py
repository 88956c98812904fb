"""SA-Co's, D3's and OmniLabel's figures: those of the official evaluators, and what no golden case holds."""

import csv
import json
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scored import GOLDEN

from glip.config import SetConfig
from glip.data.catalog import read_set, recognize
from glip.data.sets import SkipCounter
from glip.evaluate import columns
from glip.evaluate.benchmark import SCORERS

FILES = {  # of each golden case: format, annotations, results
    "gold": ("saco", "gold/gold_synth_merged_a_release_test.json", "gold/coco_predictions_bbox.json"),
    "single": ("saco", "single/silver_synth_merged_test.json", "single/coco_predictions_bbox.json"),
    "all_negative": ("saco", "all_negative/silver_synth_merged_test.json", "all_negative/coco_predictions_bbox.json"),
    **{part: ("d3", f"d3_{part}_annotations.json", "predictions.json") for part in ("full", "pres", "abs")},
    "omnilabel": ("omnilabel", "dataset_synth_val.json", "predictions.json"),
}
ZIPS = {"saco": "saco", "d3": "dod", "omnilabel": "omnilabel"}


@pytest.fixture
def case(tmp_path):
    """Unpacks a golden case: its folder, and its ground truth and results as they are read."""

    def unpack(name: str):
        format, annotations, results = FILES[name]
        with zipfile.ZipFile(GOLDEN / f"{ZIPS[format]}.zip") as archive:
            archive.extractall(tmp_path)
        assert recognize(tmp_path / annotations)[0] == format
        return tmp_path, *read(format, tmp_path / annotations, tmp_path / results)

    return unpack


def read(format: str, annotations: Path, results: Path, names: str = ""):
    config = SetConfig(format=format, annotations=str(annotations), images=(str(annotations.parent),), names=names)
    tally, found = SkipCounter(), read_set(config, to_score=True)
    truth = SCORERS[format].truth(found, tally)
    return truth, columns.read_results(results, truth.images, truth.categories, tally)


@pytest.mark.parametrize("name", ["gold", "single", "all_negative"])
def test_golden_saco(name, case):
    """All 26 figures, and the counts at each overlap; of Gold any annotator's file stands for the three."""
    folder, truth, results = case(name)
    figures, tables = SCORERS["saco"].score(truth, results)
    expected = json.loads((folder / name / "expected.json").read_text())
    official = {key.removeprefix("cgF1_eval_bbox_"): value for key, value in expected["figures"].items()}
    assert list(figures) == list(official) and figures == pytest.approx(official, abs=1e-9)
    for ours, theirs in {"right": "TPs", "wrong": "FPs", "missed": "FNs"}.items():
        assert [row[ours] for row in tables["By overlap"]] == expected["per_threshold"][theirs]
    with (folder / name / "per_pair.csv").open() as file:
        pairs = {int(row["image_id"]) for row in csv.DictReader(file)}
    assert {number for number, own in zip(truth.images, truth.counted, strict=True) if own} == pairs
    config = SetConfig(annotations=str(folder / FILES[name][1]), images=(str(folder),))
    assert {sample.image_id for sample in read_set(config).samples} == pairs, "others are not asked for"
    if name == "gold":
        other = read("saco", folder / FILES[name][1].replace("_a_", "_c_"), folder / FILES[name][2])
        assert SCORERS["saco"].score(*other)[0] == figures


@pytest.mark.parametrize("name", ["full", "pres", "abs"])
def test_golden_d3(name, case):
    folder, truth, results = case(name)
    figures, tables = SCORERS["d3"].score(truth, results)
    every = json.loads((folder / "expected.json").read_text())
    expected = every[name]
    assert {key: figures[key] for key in expected["stats"]} == pytest.approx(expected["stats"], abs=1e-9)
    lengths = {key: figures[f"AP {key}"] for key in expected["mAP_by_length"]}
    assert lengths == pytest.approx(expected["mAP_by_length"], abs=1e-9)
    rows = dict(zip(map(str, truth.categories), tables["Per description"], strict=True))
    assert {key: row["AP"] for key, row in rows.items()} == pytest.approx(expected["per_category_ap"], abs=1e-9)
    parts = {"AP presence": "pres", "AP absence": "abs"} if name == "full" else {}
    official = {key: every[part]["stats"]["AP"] for key, part in parts.items()}
    assert {key: figures[key] for key in figures.keys() & {"AP presence", "AP absence"}} == pytest.approx(official)


def test_golden_omnilabel(case):
    """The 13 printed figures in their order; and without the annotation 0, which the evaluator does not credit."""
    folder, truth, results = case("omnilabel")
    expected = json.loads((folder / "expected.json").read_text())
    figures, _ = SCORERS["omnilabel"].score(truth, results)
    assert [*figures.values()] == pytest.approx([*expected["values"].values()], abs=1e-9)
    figures, _ = SCORERS["omnilabel"].score(replace(truth, boxes=replace(truth.boxes, zero=None)), results)
    assert [*figures.values()] == pytest.approx([*expected["values_if_annotation_ids_start_at_1"].values()], abs=1e-9)
    figures, _ = SCORERS["omnilabel"].score(truth, results.select(np.zeros(len(results), dtype=bool)))
    assert set(figures.values()) == {0.0}, "an empty list of results is scored"


# ---- written by hand


def write(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def pairs(*boxes: list[float] | None, **changes: object) -> dict[str, object]:
    """SA-Co's json of pairs of one image; a pair without a box is negative."""
    shared = {"file_name": "a.png", "width": 100, "height": 100, "is_instance_exhaustive": 1, **changes}
    images = [{"id": number, "text_input": f"cup {number}", **shared} for number in range(len(boxes))]
    rows = [
        {"id": at, "image_id": at, "category_id": 1, "bbox": box, "iscrowd": 0} for at, box in enumerate(boxes) if box
    ]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "object"}]}


BOX, NEAR = [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.4]


def test_the_annotator_who_agrees_most_decides(tmp_path):
    """Of equals the first; nothing there and nothing found beats all."""
    views = {"a": pairs(NEAR, NEAR, BOX), "b": pairs(BOX, None, None), "c": pairs(None, BOX, BOX)}
    for one, tree in views.items():
        write(tmp_path / f"gold_x_merged_{one}_release_test.json", tree)
    rows = [{"image_id": at, "category_id": 1, "bbox": BOX, "score": 0.5} for at in (0, 1)]
    annotations, results = tmp_path / "gold_x_merged_b_release_test.json", write(tmp_path / "results.json", rows)
    figures, tables = SCORERS["saco"].score(*read("saco", annotations, results))
    assert [tables["By overlap"][-1][key] for key in ("right", "wrong", "missed")] == [2, 0, 0]
    assert figures["IL_MCC"] == pytest.approx(1.0) and figures["positive_macro_F1"] == pytest.approx(1.0, abs=1e-3)


def described(**changes: object) -> dict[str, object]:
    """OmniLabel's json: two images, an annotation 0 that two descriptions name, an image without a size."""
    listed = [
        {"id": 0, "text": "cup", "anno_info": {"type": "object_category"}, "image_ids": [0, 1]},
        {"id": 5, "text": "a red cup", "anno_info": {"type": "object_description"}, "image_ids": [0]},
        {"id": 4, "text": "the cup (left)", "anno_info": {"type": "object_description"}, "image_ids": [0, 1]},
    ]
    rows = [{"id": 0, "image_id": 0, "bbox": [10, 10, 50, 50], "description_ids": [5, 4]}]
    rows += [{"id": at, "image_id": at, "bbox": [10, 10, 50, 50], "description_ids": [0]} for at in (1, 0)]
    rows[2]["id"] = 7
    images = [{"id": number, "file_name": f"{number}.png"} for number in (0, 1)]
    return {"images": images, "descriptions": listed, "annotations": rows, **changes}


def test_the_annotation_0_credits_no_description(tmp_path):
    """It stands in two cells of a group: neither detection is right, as in the evaluator, and no other box is lost."""
    file = write(tmp_path / "dataset_x_val.json", described())
    found = {"image_id": 0, "bbox": [10, 10, 50, 50], "description_ids": [5, 4, 0], "scores": [0.9, 0.8, 0.7]}
    short = {"image_id": 1, "bbox": [10, 10, 50, 50], "description_ids": [0, 4], "scores": [0.5]}
    truth, results = read("omnilabel", file, write(tmp_path / "results.json", [found, short]))
    assert len(results) == 4, "a description without a score is no result"
    figures, tables = SCORERS["omnilabel"].score(truth, results)
    assert figures["AP descr"] == figures["AP"] == 0.0 and figures["AP categ"] == pytest.approx(1.0)
    assert [row["boxes"] for row in tables["Groups"]][:3] == [2, 2, 2] and figures["AP descr-l"] == -1.0
    clear, _ = SCORERS["omnilabel"].score(replace(truth, boxes=replace(truth.boxes, zero=None)), results)
    assert clear["AP descr"] == pytest.approx(1.0)


@pytest.mark.parametrize("odd", [{"text": "x"}, "no record", {"id": [1]}, {"id": 9, "text": "x", "anno_info": "free"}])
def test_odd_descriptions_are_not_scored_and_end_nothing(odd, tmp_path):
    tree = described()
    tree["descriptions"].append(odd)
    results = write(tmp_path / "results.json", [{"image_id": 1, "bbox": BOX, "description_ids": [0], "scores": [0.5]}])
    truth, _ = read("omnilabel", write(tmp_path / "dataset_x_val.json", tree), results)
    assert truth.free.tolist()[:3] == [False, True, True] and not truth.free[3:].any()


def test_each_image_is_asked_for_its_own_descriptions(tmp_path):
    """As they are written, brackets too; ids and indices of images and descriptions may be 0."""
    config = SetConfig(annotations=str(write(tmp_path / "x.json", described())), images=(str(tmp_path),))
    found = read_set(config, to_score=True)
    assert found.format == "omnilabel" and found.asked == {0: (0, 5, 4), 1: (0, 4)}
    assert [sample.vocabulary for sample in found.samples] == [
        ("cup", "a red cup", "the cup (left)"),
        ("cup", "the cup (left)"),
    ]
    assert [sample.box_phrases for sample in found.samples] == [((1,), (2,), (0,)), ((0,),)]


D3 = {
    "images": [{"id": number, "file_name": f"{number}.png", "width": 90, "height": 90} for number in (0, 1)],
    "categories": [{"id": number, "name": f"cup without {number}"} for number in (1, 2, 3)],
    "annotations": [{"id": 1, "image_id": 0, "category_id": 2, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0}],
}
GROUPS = {0: {"id": 0, "img_id": [0], "inner_sent_id": [3, 1]}, 1: {"id": 1, "img_id": [1], "inner_sent_id": [2]}}


@pytest.mark.parametrize("form", ["groups.pkl", "groups.json", ""])
def test_each_image_is_asked_for_the_descriptions_of_its_group(form, tmp_path):
    file, names = write(tmp_path / "d3_full_annotations.json", D3), tmp_path / form
    if form == "groups.pkl":
        names.write_bytes(pickle.dumps(GROUPS))
    elif form:
        write(names, GROUPS)
    config = SetConfig(annotations=str(file), images=(str(tmp_path),), names=str(names) if form else "")
    found = read_set(config, to_score=True)
    asked = [found.ids_of(sample) for sample in found.samples]
    assert asked == ([(1, 3), (2,)] if form else [(1, 2, 3)] * 2)
    assert "2 x file that is not beside the full one" in str(found.skipped)
    assert ("inter-group" in str(found.skipped)) is (not form)


def faulty(folder: Path, kind: str) -> tuple[str, Path, str]:
    """The format, annotations and names of a set with a fault."""
    names = ""
    if kind in ("lacking", "words", "fewer"):
        views = {"a": pairs(BOX, BOX), "b": pairs(BOX, BOX)} | ({} if kind == "lacking" else {"c": pairs(BOX, BOX)})
        if kind == "words":
            views["c"]["images"][1]["text_input"] = "dog"
        elif kind == "fewer":
            views["c"]["images"].pop()
        for one, tree in views.items():
            write(folder / f"x_merged_{one}_test.json", tree)
        return "saco", folder / "x_merged_a_test.json", names
    trees = {
        "coco as saco": ("saco", D3),
        "pixels": ("saco", pairs([5.0, 5.0, 50.0, 50.0])),
        "coco as omnilabel": ("omnilabel", D3),
        "test split": ("omnilabel", {key: value for key, value in described().items() if key != "annotations"}),
    }
    format, tree = trees.get(kind, ("d3", D3))
    file = write(folder / ("d3_full_annotations.json" if format == "d3" else "x.json"), tree)
    if format == "d3":
        groups = {"code": OrderedDict(GROUPS), "no groups": {0: {"id": 0}}, "other": {0: GROUPS[0]}}
        groups["no ids"] = {0: {"img_id": [0, [1]], "inner_sent_id": [1, "2"]}}
        (folder / "groups.pkl").write_bytes(b"]]]s." if kind == "broken" else pickle.dumps(groups[kind]))
        names = str(folder / "groups.pkl")
    return format, file, names


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("coco as saco", "x.json: image 0 has no text_input or no is_instance_exhaustive: SA-Co takes the files of"),
        ("pixels", "boxes in pixels, not in fractions of width and height"),
        ("lacking", "annotators a, b and c belong side by side: '.*x_merged_c_test.json' is not there"),
        ("words", "x_merged_c_test.json and x_merged_a_test.json do not match: image 1 is another pair"),
        ("fewer", "do not match: 1 images are in the latter only"),
        ("coco as omnilabel", "not OmniLabel json: no list 'descriptions'"),
        ("test split", "not OmniLabel json: no list 'annotations'"),
        ("code", "groups.pkl: not the groups of D3 .it holds collections.OrderedDict, and only numbers"),
        ("no groups", "groups.pkl: not the groups of D3 .no img_id or inner_sent_id"),
        ("no ids", "groups.pkl: not the groups of D3 .no img_id or inner_sent_id"),
        ("broken", "groups.pkl: not the groups of D3 .list indices must be"),
        ("other", "groups.pkl is not of d3_full_annotations.json: id 1 is in only one of the two"),
    ],
)
def test_files_of_another_benchmark_or_version(kind, message, tmp_path):
    format, file, names = faulty(tmp_path, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_set(SetConfig(format=format, annotations=str(file), images=(str(tmp_path),), names=names), to_score=True)


@pytest.mark.parametrize(
    ("format", "tree", "row", "message"),
    [
        (
            "saco",
            pairs(BOX),
            {"category_id": 1, "bbox": [5, 5, 50, 50], "score": 0.9},
            "the results have boxes in pixels",
        ),
        ("omnilabel", described(), {"category_id": 422, "bbox": [5, 5, 50, 50], "score": 0.9}, "not one result in it"),
    ],
)
def test_results_of_another_benchmark(format, tree, row, message, tmp_path):
    results = write(tmp_path / "results.json", [{"image_id": 0, **row}])
    with pytest.raises(ValueError, match=message):
        SCORERS[format].score(*read(format, write(tmp_path / "x.json", tree), results))
