"""Detections in other forms, each read back by the tool it is for; a tool that is not installed is skipped or named."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from glip.errors import GlipError, ImageError
from glip.geometry.boxes import iou
from glip.model.adapt import Adaptation
from glip.structures import Detections, Prompt

PROMPT = Prompt.from_names(["a car", "a tree"])
BOXES = [[10.5, 20.25, 50.5, 40.25], [0, 0, 100, 80], [99.5, 79.5, 100, 80]]


@pytest.fixture
def found() -> Detections:
    scores, labels = torch.tensor([0.9, 0.75, 0.5]), torch.tensor([1, 0, 1])
    return Detections(torch.tensor(BOXES), scores, labels, PROMPT, (80, 100))


@pytest.fixture
def both(found) -> list[Detections]:
    """With detections, and without."""
    return [found, found[:0]]


def ultralytics_labels(text: str, names: list[str]) -> np.ndarray:
    """Its rules (``verify_image_label``): five numbers a line, classes below their count, the others in 0..1."""
    rows = [line.split() for line in text.splitlines()]
    assert all(len(row) == 5 and row[0].isdigit() for row in rows)
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    assert (table[:, 1:] <= 1).all() and (table >= 0).all() and (table[:, 0] < len(names)).all()
    return table


def test_a_result_is_shown_short(found, tiny_detector):
    assert repr(found) == "Detections(3: a tree 0.90, a car 0.75, a tree 0.50)"
    assert repr(found[[0, 1, 2, 0]]) == "Detections(4: a tree 0.90, a car 0.75, a tree 0.50, ...)"
    assert repr(found[:0]) == "Detections(0)" and repr(tiny_detector) == "Detector('tiny', cpu, float32)"
    task = Adaptation("full", "tiny", tiny_detector.fingerprint, ("a car", "a tree"), PROMPT)
    assert repr(tiny_detector.adapted(task)) == "Detector('tiny', cpu, float32, task 'a car, a tree')"


def test_filter_and_above(found):
    assert found.filter(lambda one: one.phrase == "a tree") == found[[0, 2]]
    assert found.above(0.75) == found[:2] and len(found.filter(lambda one: False)) == 0


def test_synonyms_are_merged_to_their_class(tiny_detector, image):
    prompt = Prompt.from_synonyms({"bat_(animal)": ["bat", "flying_fox"], "hot_dog": []})
    assert prompt.texts == ("bat", "flying fox", "hot dog") and prompt.classes == (0, 0, 1)
    for max_names in (None, 1):  # in one chunk, or in several
        found = tiny_detector(image, prompt, max_names=max_names)
        merged = found.by_class()
        assert {one.phrase for one in found} >= {"flying fox", "hot dog"}  # a bat or not: the random weights decide
        assert {one.phrase for one in merged} == {"bat", "hot dog"}
        assert merged.classes.tolist() == merged.labels.tolist() == found.classes.tolist()
        for number in (0, 1):
            own = found.boxes[found.classes == number]
            assert (iou(own, own, inclusive=True).fill_diagonal_(0) <= 0.6).all(), "suppressed across the names"
    assert len(found[:0].by_class()) == 0
    with pytest.raises(GlipError, match="names nothing"):
        Prompt.from_synonyms({})


def test_dicts_are_those_of_the_pipeline(both):
    first, *_ = both[0].to_dicts()
    assert first == {"score": pytest.approx(0.9), "label": "a tree", "box": dict(xmin=10, ymin=20, xmax=50, ymax=40)}
    assert json.loads(json.dumps(both[0].to_dicts())) == both[0].to_dicts() and both[1].to_dicts() == []


def test_supervision_reads_it(both):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    given, none = (one.to_supervision() for one in both)
    assert isinstance(given, supervision.Detections) and given.xyxy.dtype == np.float32
    assert np.array_equal(given.xyxy, np.float32(BOXES)) and given.class_id.tolist() == [1, 0, 1]
    assert given["class_name"].tolist() == ["a tree", "a car", "a tree"] and len(given.with_nms(0.5)) == 3
    assert len(none) == 0 and none.xyxy.shape == (0, 4) and none["class_name"].tolist() == []
    assert len(supervision.Detections.merge([given, none])) == 3
    drawn = supervision.LabelAnnotator().annotate(np.zeros((80, 100, 3), np.uint8), given)
    assert drawn.any()


def test_pandas_reads_it(both):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table, none = (one.to_dataframe() for one in both)
    assert list(table.columns) == ["phrase", "label", "score", "x1", "y1", "x2", "y2"]
    assert table.groupby("phrase")["score"].max().to_dict() == pytest.approx({"a car": 0.75, "a tree": 0.9})
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == BOXES
    assert len(pandas.concat([table, none])) == 3 and (none.dtypes[1:] == table.dtypes[1:]).all()


def test_pycocotools_reads_it(both):
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 3}, {"id": 5}]}
    truth.createIndex()
    rows = both[0].to_coco(7, [5, 3])
    assert rows == both[0].to_coco(7, {"a car": 5, "a tree": 3}) and both[1].to_coco(7, [5, 3]) == []
    read = truth.loadRes(rows)
    assert [one["bbox"] for one in read.loadAnns(read.getAnnIds(catIds=[3]))] == [
        [10.5, 20.25, 40, 20],
        [99.5, 79.5, 0.5, 0.5],
    ]
    for ids, words in (
        ([1], r"got \[1\]: give one for each of a car, a tree"),
        ({"a tree": 1}, "got {'a tree': 1}: give one for each of a car"),
    ):
        with pytest.raises(GlipError, match=f"category_ids: {words}"):
            both[0].to_coco(7, ids)


def test_yolo_is_what_ultralytics_reads(both):
    rows = ultralytics_labels(both[0].to_yolo(), list(PROMPT.texts))
    assert rows[:, 0].tolist() == [1, 0, 1] and both[1].to_yolo() == ""
    assert np.allclose(rows[0, 1:], [0.305, 0.378125, 0.4, 0.25]) and np.allclose(rows[1, 1:], [0.5, 0.5, 1, 1])


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_a_package_that_is_not_installed_is_named(found, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    convert = {"supervision": found.to_supervision, "pandas": found.to_dataframe}[package]
    with pytest.raises(GlipError, match=rf"{package} is not installed: pip install .*\[{package}\]"):
        convert()


def test_drawing_and_crops(found, tmp_path):
    image = Image.new("RGB", (100, 80), (10, 200, 30))
    image.save(tmp_path / "a.png")
    for given in (image, str(tmp_path / "a.png"), np.asarray(image)):
        assert [crop.size for crop in found.crops(given)] == [(41, 21), (100, 80), (1, 1)]
        assert found.draw(given).getcolors() is None or len(found.draw(given).getcolors()) > 1
    edge = Detections(torch.tensor([[100.0, 80, 100, 80]]), torch.ones(1), torch.tensor([0]), PROMPT, (80, 100))
    assert edge.crops(image)[0].getpixel((0, 0)) == (10, 200, 30), "at least one pixel"
    with pytest.raises(ImageError, match="image of 50 x 80 pixels with detections of another of 100 x 80"):
        found.draw(image.resize((50, 80)))


def test_another_image_size(tiny_detector, image):
    large = tiny_detector.resized(2 * tiny_detector.config.image.min_size)
    sizes = [one.encode_image(image).resized[0] for one in (tiny_detector, large)]
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] / sizes[0][1] == pytest.approx(2, abs=0.05)
    assert large(image, "dog") != tiny_detector(image, "dog") and large.model is tiny_detector.model
    with pytest.raises(GlipError, match="short_side: got 3: give a whole number, 32 or more and at most 8192"):
        tiny_detector.resized(3)
