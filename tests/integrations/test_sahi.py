"""Our model in SAHI's own runner."""

import sys

import numpy as np
import pytest
import torch

from glip.errors import GlipError
from glip.structures import Prompt

MANY = Prompt.from_names(["a cat", "a kitten", "a dog"], classes=[0, 0, 1])


def test_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "glip.integrations.sahi", raising=False)
    monkeypatch.setitem(sys.modules, "sahi.models.base", None)
    with pytest.raises(GlipError, match=r"sahi\S* is not installed: pip install .*\[sahi\]"):
        import glip.integrations.sahi  # noqa: F401


def test_slices(tiny_detector, image):
    predict = pytest.importorskip("sahi.predict", reason="SAHI is not installed")
    from glip.integrations.sahi import GlipDetectionModel

    pixels, threshold = np.asarray(image), float(tiny_detector(image, MANY).scores[20])
    model = GlipDetectionModel(model=tiny_detector, prompt=MANY, confidence_threshold=threshold, device="cpu")
    assert model.category_mapping == {0: "a cat", 1: "a dog"}
    for batch_size in (1, 3):
        sliced = predict.get_sliced_prediction(
            pixels,
            model,
            slice_height=80,
            slice_width=80,
            perform_standard_pred=False,
            postprocess_match_threshold=1.0,
            batch_size=batch_size,
            verbose=0,
        )
        got = sorted((one.score.value, *one.bbox.to_xyxy()) for one in sliced.object_prediction_list)
        assert 100 < max(right for *_, right, _ in got) <= 150, "in pixels of the whole image"
        assert {one.category.name for one in sliced.object_prediction_list} <= {"a cat", "a dog"} and len(got) > 20
    whole = predict.get_prediction(pixels, model).object_prediction_list
    wanted = tiny_detector(image, MANY, threshold=threshold)
    assert [one.category.id for one in whole] == wanted.classes.tolist()
    assert torch.allclose(torch.tensor([one.bbox.to_xyxy() for one in whole]), wanted.boxes, atol=1e-3)


def test_a_task_finds_what_it_learned(detectors, image):
    predict = pytest.importorskip("sahi.predict", reason="SAHI is not installed")
    from glip.integrations.sahi import GlipDetectionModel

    model = GlipDetectionModel(model=detectors["plants"], confidence_threshold=0.0, device="cpu")
    given = predict.get_prediction(np.asarray(image), model).object_prediction_list
    assert [one.score.value for one in given] == detectors["plants"](image, threshold=0.0).scores.tolist()


def test_docs(run_docs):
    pytest.importorskip("sahi", reason="SAHI is not installed")
    assert len(run_docs("SAHI")["found"].object_prediction_list) >= 3
