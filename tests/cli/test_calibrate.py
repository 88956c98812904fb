"""glip calibrate: what it stores, that the same boxes are returned, and what it refuses."""

import json
import shutil

import pytest
import torch
from PIL import Image

from glip.detector import Detector
from glip.model.weights import pretrained_config
from glip.postprocess import tempered
from glip.train.start import load_config


def test_a_temperature_is_stored_and_the_same_boxes_are_returned(command_line, tiny_folder, shapes, tmp_path, image):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    before = Detector.from_pretrained(folder)
    code, out, err = command_line("calibrate", folder, shapes)
    assert code == 0 and "expected calibration error" in out and str(folder) in out, err
    after = Detector.from_pretrained(folder)
    assert after.config.inference.temperature != 1
    old, new = (one(image, ["red square", "cat"], threshold=0.0) for one in (before, after))
    assert torch.equal(old.boxes, new.boxes)
    assert torch.allclose(new.scores, tempered(old.scores, after.config.inference.temperature))
    command_line("calibrate", folder, shapes)
    again = pretrained_config(folder).inference.temperature
    assert again == pytest.approx(after.config.inference.temperature, rel=0.01), "of what is calibrated: no change"
    started = load_config("tiny", [f"train.start={folder}", f"train.output={tmp_path / 'run'}"])
    assert started.model.inference.temperature == 1.0, "other weights have other scores"


def test_what_cannot_be_calibrated(command_line, tiny_folder, shapes, tmp_path):
    captions, empty = tmp_path / "captions.jsonl", shapes.with_name("empty.json")
    region = {"bbox": [5, 5, 60, 40], "phrase": "a cat", "tokens_positive": [[0, 5]]}
    Image.new("RGB", (90, 60)).save(tmp_path / "0.png")
    row = {"filename": "0.png", "height": 60, "width": 90, "grounding": {"caption": "a cat", "regions": [region]}}
    captions.write_text(json.dumps(row))
    empty.write_text(json.dumps(json.loads(shapes.read_text()) | {"annotations": []}))
    for args, message in (
        (("glip-nano", shapes), "no model folder: make one, glip convert glip-nano FOLDER"),
        ((tiny_folder, captions), "one dataset with class names, scored as COCO's: got"),
        ((tiny_folder, empty), "no box of a known class"),
        ((tiny_folder, tmp_path / "none.json"), "none.json"),
    ):
        code, out, err = command_line("calibrate", *args)
        assert code == 2 and message in err and not out and len(err.splitlines()) == 1, err
