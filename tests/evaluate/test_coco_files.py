"""Scoring from files: COCO's own figures, what a json of one's own may hold, and bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glip.data.coco import parse_coco
from glip.data.sets import SkipCounter
from glip.evaluate.coco import Score, score_results
from glip.evaluate.columns import UNKNOWN, GroundTruth, concatenate, read_results, read_truth, results_of
from glip.geometry.boxes import scale
from glip.structures import Detections, Prompt

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "eval" / "coco"
BOX = [10.0, 10.0, 40.0, 40.0]


def golden(case: str) -> Path:
    if not (GOLDEN / case).is_dir():
        pytest.skip("../shared/golden/eval is not there")
    return GOLDEN / case


def score_files(annotations: Path, predictions: Path, tally: SkipCounter | None = None) -> Score:
    tally = SkipCounter() if tally is None else tally
    truth = read_truth(parse_coco(annotations), tally)
    return score_results(truth, read_results(predictions, truth.images, truth.categories, tally))


@pytest.mark.parametrize("case", ["real80_plain", "real80_stress", "synth_stress"])
def test_golden_figures(case):
    """All twelve figures and every category, as pycocotools gives them."""
    folder = golden(case)
    truth = read_truth(parse_coco(folder / "annotations.json"), SkipCounter())
    score = score_files(folder / "annotations.json", folder / "predictions.json")
    expected = json.loads((folder / "expected.json").read_text())
    assert [*score.figures.values()] == pytest.approx([*expected["stats"].values()], abs=1e-9)
    with (folder / "per_category.csv").open() as file:
        table = {int(row["category_id"]): row for row in csv.DictReader(file)}
    assert {number for number, row in table.items() if row["AP"] != "-1"} <= set(truth.categories)
    for number, row in zip(truth.categories, score.categories, strict=True):
        expected_row = table.get(number, {"AP": "-1", "AP50": "-1", "num_gt_noncrowd": "0"})
        assert row["AP"] == pytest.approx(float(expected_row["AP"]), abs=1e-9), row
        assert row["AP50"] == pytest.approx(float(expected_row["AP50"]), abs=1e-9), row
        assert row["boxes"] == int(expected_row["num_gt_noncrowd"])


def test_golden_network_boxes_with_inclusive_widths():
    """The release's way from boxes in resized pixels to COCO's rows: +1 on widths, labels outside are dropped."""
    folder = golden("real80_from_network_boxes")
    truth = read_truth(parse_coco(folder / "annotations.json"), SkipCounter())
    sizes = {
        row["id"]: (row["height"], row["width"])
        for row in json.loads((folder / "annotations.json").read_text())["images"]
    }
    found, expected = np.load(folder / "network_detections.npz"), np.load(folder / "expected_results.npz")
    offsets, labels = found["det_offset"], found["labels"]
    prompt = Prompt.from_names([f"label {number}" for number in range(1, labels.max() + 1)])
    places = [*range(len(truth.categories)), *[UNKNOWN] * (len(prompt.phrases) - len(truth.categories))]
    parts = []
    for index, number in enumerate(found["image_id"].tolist()):
        rows = slice(offsets[index], offsets[index + 1])
        width, height = found["net_size_wh"][index].tolist()
        boxes = scale(torch.from_numpy(found["boxes_xyxy"][rows]), (height, width), sizes[number])
        scores, names = torch.from_numpy(found["scores"][rows]), torch.from_numpy(labels[rows] - 1)
        detections = Detections(boxes, scores, names, prompt, sizes[number])
        parts.append(results_of(detections, truth.images.index(number), places, inclusive=True))
    results = concatenate(parts)
    known = results.select(results.categories != UNKNOWN)
    assert np.array(truth.images)[known.images].tolist() == expected["image_id"].tolist()
    assert np.array(truth.categories)[known.categories].tolist() == expected["category_id"].tolist()
    assert known.boxes == pytest.approx(expected["bbox"], abs=1e-4)
    assert known.scores == pytest.approx(expected["score"], abs=1e-7)
    figures = json.loads((folder / "expected.json").read_text())["stats"]
    assert [*score_results(truth, results).figures.values()] == pytest.approx([*figures.values()], abs=1e-9)
    plain = results_of(detections, 0, places)
    assert plain.boxes[:, 2:] + 1 == pytest.approx(parts[-1].boxes[:, 2:], abs=1e-9)


def write(folder: Path, **changes: object) -> Path:
    tree = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "found"}, {"id": 3, "name": "missed"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 7, "bbox": BOX},
            {
                "id": 0,
                "image_id": 2,
                "category_id": 3,
                "bbox": BOX,
                "area": 5.0,
                "iscrowd": 0,
                "segmentation": [[1, 2]],
            },
        ],
    }
    file = folder / "annotations.json"
    file.write_text(json.dumps(tree | changes), encoding="utf-8")
    return file


def write_rows(folder: Path, *rows: object) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def right(**changes: object) -> dict[str, object]:
    return {"image_id": 1, "category_id": 7, "bbox": BOX, "score": 0.5} | changes


def test_a_file_of_ones_own(tmp_path):
    """The table in the order of the ids, ids from 0 that are given twice, areas as stated or else the box's."""
    truth = read_truth(parse_coco(write(tmp_path)), SkipCounter())
    assert (truth.categories, truth.names, truth.images) == ((3, 7), ("missed", "found"), (1, 2))
    assert truth.boxes.areas.tolist() == [1600.0, 5.0] and not truth.boxes.crowd.any() and truth.negatives is None
    score = score_files(tmp_path / "annotations.json", write_rows(tmp_path, right()))
    assert [(row["name"], row["AP50"]) for row in score.categories] == [("missed", 0.0), ("found", pytest.approx(1.0))]
    assert score.figures["APs"] == 0.0 and score.figures["APm"] == pytest.approx(1.0), (
        "by the stated areas: 5 is small, 1600 not"
    )


def test_ids_may_be_texts(tmp_path):
    rows = [{"image_id": "b/1.png", "category_id": "cat", "bbox": BOX}]
    file = write(tmp_path, images=[{"id": "b/1.png"}, {"id": 4}], categories=[{"id": "cat"}], annotations=rows)
    truth = read_truth(parse_coco(file), SkipCounter())
    assert truth.images == (4, "b/1.png") and truth.names == ("cat",)
    results = write_rows(tmp_path, right(image_id="b/1.png", category_id="cat"))
    assert score_files(file, results).ap == pytest.approx(1.0)


def test_what_cannot_be_scored_with_is_counted(tmp_path):
    good = {"image_id": 1, "category_id": 7, "bbox": BOX}
    bad = [
        {**good, "image_id": 5},
        {**good, "category_id": 5},
        {**good, "bbox": [1, 2, 3]},
        {**good, "bbox": [1, 2, -3, 4]},
        "no record",
        {**good, "category_id": [7]},
    ]
    tally = SkipCounter()
    images = [{"id": 1}, {"id": 1}, {"file_name": "x"}]
    categories = [{"id": 7}, {"name": "cat"}, {"name": "dog"}]
    truth = read_truth(
        parse_coco(write(tmp_path, annotations=[good, *bad], images=images, categories=categories)), tally
    )
    assert len(truth.boxes.areas) == 1 and truth.images == (1,) and truth.categories == (7,)
    assert tally.counts == {
        "image id seen before": 1,
        "image without an id": 1,
        "category without an id": 2,
        "annotation of an unknown image": 2,
        "annotation of an unknown category": 2,
        "annotation with a malformed box": 2,
        "annotation without an area (that of its box is taken)": 1,
    }
    assert tally.places["annotation with a malformed box"] == ["annotations[3]", "annotations[4]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "no annotation in it can be scored (it lists none): check it with glip data check"),
        ({"annotations": None}, "not COCO json: no list 'annotations' (it needs images, annotations, categories)"),
        ({"images": []}, "can be scored (2 x annotation of an unknown image)"),
        ({"categories": [{"id": 7}, {"id": 7}]}, "category id 7 is listed twice: give each category an id of its own"),
    ],
)
def test_files_without_a_truth(tmp_path, changes, message):
    file = write(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        read_truth(parse_coco(file), SkipCounter())
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_json(tmp_path):
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_truth(parse_coco(tmp_path / "broken.json"), SkipCounter())
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="not COCO json: no list 'images'"):
        read_truth(parse_coco(tmp_path / "list.json"), SkipCounter())
    with pytest.raises(FileNotFoundError, match="are not there"):
        read_truth(parse_coco(tmp_path / "nothing.json"), SkipCounter())


def test_groups_alone_are_nothing_to_score(tmp_path):
    file = write(tmp_path, annotations=[{"image_id": 1, "category_id": 7, "bbox": BOX, "iscrowd": 1}])
    with pytest.raises(ValueError, match=r"the 2 images have no box of any of the 2 names \('missed', 'found'\)"):
        score_files(file, write_rows(tmp_path, right()))


def test_bad_results_are_counted_and_change_nothing(tmp_path):
    bad = [
        right(image_id=99, score=0.9),
        right(category_id=99, score=0.9),
        right(bbox=[0, 0, -5, 5], score=0.9),
        right(score=float("nan")),
        right(bbox=[0, 0, float("inf"), 5], score=0.9),
    ]
    tally = SkipCounter()
    score = score_files(write(tmp_path), write_rows(tmp_path, *bad, right()), tally)
    assert {row["name"]: row["AP50"] for row in score.categories}["found"] == pytest.approx(1.0)
    assert sum(count for reason, count in tally.counts.items() if reason.startswith("result")) == 5


def test_results_of_another_set(tmp_path):
    truth: GroundTruth = read_truth(parse_coco(write(tmp_path)), SkipCounter())
    for row in (right(image_id="000000001"), right(category_id="found")):
        with pytest.raises(
            ValueError, match=r"not one of its results can be scored .*ids are such as 1, 2.*such as 3, 7"
        ):
            read_results(write_rows(tmp_path, row), truth.images, truth.categories, SkipCounter())


def test_federated_files_score_what_was_looked_for(tmp_path):
    """LVIS: the first image was looked through for "missed" too, the second only for what it has."""
    images = [{"id": 1, "neg_category_ids": [3, [5], 99]}, {"id": 2, "neg_category_ids": []}]
    file = write(tmp_path, images=images)
    truth = read_truth(parse_coco(file), SkipCounter())
    assert truth.negatives is not None and truth.negatives.tolist() == [[True, False], [False, False]]
    unasked = [right(image_id=2, category_id=7, score=0.9), right()]
    asked = [right(category_id=3, score=0.9), right(image_id=2, category_id=3)]
    score = score_files(file, write_rows(tmp_path, *unasked, *asked))
    assert [row["AP50"] for row in score.categories] == [pytest.approx(0.5), pytest.approx(1.0)]
