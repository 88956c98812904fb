"""RefCOCO's and gRefCOCO's figures: those of the official evaluators, and what no golden case holds."""

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scored import GOLDEN, detections, shared_case

from glip.data.expressions import read_grefcoco, read_refcoco
from glip.data.sets import SkipCounter
from glip.evaluate.expressions import (
    PRECISIONS,
    expression_row,
    found_of,
    grec_by_threshold,
    grec_figures,
    precision,
    read_found,
)
from glip.structures import Prompt, Sample

SETS = ("refcoco", "refcoco+", "refcocog")
BOX = (10.0, 10.0, 50.0, 50.0)


@pytest.fixture
def case(tmp_path):
    """Unpacks a golden case: the shared one, or a part of it that is in the project."""

    def unpack(name: str, *, shared: bool = False) -> Path:
        if shared:
            return shared_case(name)
        with zipfile.ZipFile(GOLDEN / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
        return tmp_path

    return unpack


def pairs_of(folder: Path, split: str, read, predictions: str) -> tuple[list, SkipCounter]:
    asked, tally = read(folder / f"finetune_{split}.json", [folder]), SkipCounter()
    assert not asked.skipped
    return list(zip(asked.samples, read_found(folder / predictions, asked.samples, tally), strict=True)), tally


def by_evaluator(figures: dict[str, dict[str, float]]) -> dict[str, object]:
    """Our figures as both evaluators report them: a data set that is not there has 0, also in mmdetection's mean."""
    table = {name: [figures.get(name, {}).get(figure, 0.0) for figure in PRECISIONS] for name in SETS}
    listed = {f"{name}_precision@{k}": row[3 + at] for name, row in table.items() for at, k in enumerate((1, 5, 10))}
    listed["mean_precision"] = sum(listed.values()) / 9
    return {"mdetr": {name: pytest.approx(row[:3], abs=1e-9) for name, row in table.items()}, "mmdetection": listed}


@pytest.mark.parametrize(
    ("split", "shared"), [("refcocog_test", False), ("refcoco_testA", True), ("refcoco+_val", True)]
)
def test_golden_refcoco(split, shared, case):
    folder = case("refcoco", shared=shared)
    expected = json.loads((folder / "expected.json").read_text())[split]
    pairs, tally = pairs_of(folder, split, read_refcoco, f"predictions_{split}.json")
    got = by_evaluator(precision(pairs))
    assert expected["mdetr"] == got["mdetr"]
    assert got["mmdetection"] == pytest.approx(expected["mmdetection"], abs=1e-9)
    assert "not best first" in str(tally)
    order = [pair[1][1].argsort(descending=True, stable=True) for pair in pairs]
    best_first = [(one, (found[0][by], found[1][by])) for (one, found), by in zip(pairs, order, strict=True)]
    got = by_evaluator(precision(best_first))["mmdetection"]
    assert got == pytest.approx(expected["mmdetection_after_stable_sort_by_score"], abs=1e-9)
    listed = [row["image_id"] for row in json.loads((folder / f"predictions_{split}.json").read_text())][:-5]
    kept = [pair for pair in pairs if pair[0].image_id in listed]
    got = by_evaluator(precision(kept))["mmdetection"]
    last = "mmdetection_if_the_last_5_rows_of_the_prediction_file_are_missing"
    assert got == pytest.approx(expected[last], abs=1e-9)


@pytest.mark.parametrize("split", ["refcoco_testA", "refcoco+_val", "refcocog_test"])
def test_golden_every_expression(split, case):
    folder = case("refcoco", shared=True)
    pairs, _ = pairs_of(folder, split, read_refcoco, f"predictions_{split}.json")
    with (folder / f"per_expression_{split}.csv").open() as file:
        rows = {int(row["image_id"]): row for row in csv.DictReader(file)}
    for sample, found in pairs:
        row = rows[sample.image_id]
        hits = [float(row[f"{who}_hit@{k}"]) for who in ("mdetr", "mmdet") for k in (1, 5, 10)]
        assert list(precision([(sample, found)])["all"].values()) == hits, row


def test_golden_grefcoco(case):
    folder = case("grefcoco")
    pairs, _ = pairs_of(folder, "grefcoco_testA", read_grefcoco, "predictions_testA.json")
    official = json.loads((folder / "expected.json").read_text())["official"]
    assert grec_figures(pairs) == pytest.approx({"F1=1": official.pop("F1_score"), **official}, abs=1e-9)
    assert grec_by_threshold(pairs)[4] == {"threshold": 0.5, **grec_figures(pairs, threshold=0.5)}


def test_golden_grefcoco_every_expression(case):
    folder = case("grefcoco", shared=True)
    pairs, _ = pairs_of(folder, "grefcoco_testA", read_grefcoco, "predictions_testA.json")
    with (folder / "per_expression.csv").open() as file:
        right = {int(row["image_id"]): float(row["correct"]) for row in csv.DictReader(file)}
    assert {sample.image_id: grec_figures([(sample, found)])["F1=1"] for sample, found in pairs} == right


def expression(*boxes, name="refcoco") -> Sample:
    prompt = Prompt.from_caption("the red cup", [[(0, 11)]])
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(Path("a.jpg"), rows, ((0,),) * len(rows), prompt=prompt, image_id=7, kinds=((name,),))


def found(*rows):
    return torch.tensor([row[:4] for row in rows]).reshape(-1, 4), torch.tensor([row[4] for row in rows])


def test_a_skipped_expression_is_a_mistake_also_where_nothing_is_there():
    """For "nothing" that was not looked for there is no credit; without any box found there is."""
    assert set(precision([(expression(BOX), None)])["all"].values()) == {0.0}
    empty = expression(name="grefcoco")
    assert grec_figures([(empty, None)]) == {"F1=1": 0.0, "N_acc": 0.0, "T_acc": -1.0}
    assert grec_figures([(empty, found())]) == {"F1=1": 1.0, "N_acc": 1.0, "T_acc": -1.0}
    assert grec_figures([(expression(BOX), None), (expression(BOX), found((*BOX, 0.8)))])["T_acc"] == 0.5


@pytest.mark.parametrize(("box", "hit"), [(BOX, 1.0), (BOX[:2] * 2, 0.0)])
def test_points_without_overlap(box, hit):
    """GIoU of a point with itself is 0 / 0: a miss at every k for RefCOCO, a match for gRefCOCO, as officially."""
    pair = expression(box), found((*box, 0.9), (*box, 0.8))
    assert precision([pair])["all"]["P@10 (GIoU)"] == hit
    assert grec_figures([(expression(box), found((*box, 0.9)))])["F1=1"] == 1.0


def test_detections_are_taken_best_first_and_rows_read_back(tmp_path):
    sample = expression(BOX)
    boxes, scores = found_of(sample, detections(sample, [((0, 0, 5, 5), 0.2, 0), (BOX, 0.9, 0)]))
    assert scores.tolist() == pytest.approx([0.9, 0.2])
    assert found_of(sample, None) is None
    (tmp_path / "rows.json").write_text(json.dumps([expression_row(sample, (boxes, scores))]))
    [again] = read_found(tmp_path / "rows.json", [sample], SkipCounter())
    assert torch.equal(again[0], boxes) and torch.equal(again[1], scores)
    nothing = expression_row(sample, found())
    assert nothing == {"image_id": 7, "boxes": [[0.0] * 4], "scores": [0.0]}


ROW = {"image_id": 7, "boxes": [[10, 10, 50, 50]], "scores": [0.5]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "1 of 1 expressions have no prediction, such as that of image_id 7"),
        ([{**ROW, "image_id": 8}], "1 of 1 expressions have no prediction"),
        ([ROW, ROW], "row 1 .image_id 7.: its expression has a row already"),
        ([{**ROW, "boxes": []}], "it has 0 boxes and 1 scores"),
        ([{**ROW, "scores": [0.5, 0.4]}], "it has 1 boxes and 2 scores"),
        ([{**ROW, "boxes": [], "scores": []}], "where nothing was found"),
        ([{**ROW, "boxes": [[10, 10, 5, 50]]}], "a box ends before it begins: give x1, y1, x2, y2"),
        ([{"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}], "rows.json"),
        ({}, "rows.json"),
    ],
)
def test_files_that_are_no_predictions(rows, message, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_found(tmp_path / "rows.json", [expression(BOX)], SkipCounter())


def test_rows_of_other_expressions_are_counted(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROW, {**ROW, "image_id": 8}]))
    tally = SkipCounter()
    assert len(read_found(tmp_path / "rows.json", [expression(BOX)], tally)) == 1
    assert tally.counts == {"prediction for an unknown expression": 1}


def test_several_data_sets_have_a_row_each():
    pairs = [(expression(BOX), found((*BOX, 0.9))), (expression(BOX, name="refcocog"), None)]
    figures = precision(pairs)
    assert {name: own["P@1 (IoU)"] for name, own in figures.items()} == {"all": 0.5, "refcoco": 1.0, "refcocog": 0.0}
    assert precision([(replace(pairs[0][0], kinds=(("refcoco+",),)), pairs[0][1])]).keys() == {"all", "refcoco+"}
