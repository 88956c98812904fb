"""Our model in FiftyOne: its labels, its model zoo, and apply_model where its database starts."""

import numpy as np
import pytest
import torch

from glip.structures import Prompt

fo = pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
glip_fiftyone = pytest.importorskip("glip.integrations.fiftyone")
MANY = Prompt.from_names(["a cat", "a kitten", "a dog"], classes=[0, 0, 1])


def same(given, wanted, size) -> bool:
    boxes = torch.tensor([one.bounding_box for one in given.detections])
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * torch.tensor([*size, *size])
    names = [("a cat", "a dog")[number] for number in wanted.classes.tolist()]
    assert [one.label for one in given.detections] == names and len(names) > 5
    assert [one.confidence for one in given.detections] == pytest.approx(wanted.scores.tolist(), abs=1e-4)
    return torch.allclose(boxes, wanted.boxes, atol=1e-3)


def test_labels(tiny_detector, image):
    pixels, threshold = np.asarray(image), float(tiny_detector(image, MANY).scores[20])
    model = glip_fiftyone.GlipModel(tiny_detector, MANY, threshold)
    wanted = tiny_detector(image, MANY, threshold=threshold)
    assert same(model.predict(pixels), wanted, image.size)
    assert all(same(one, wanted, image.size) for one in model.predict_all([pixels, pixels]))
    assert glip_fiftyone.GlipModel(tiny_detector, MANY, 1.0).predict(pixels).detections == []


def test_a_task_finds_what_it_learned(detectors, image):
    given = glip_fiftyone.GlipModel(detectors["plants"]).predict(np.asarray(image)).detections
    assert [one.confidence for one in given] == detectors["plants"](image).scores.tolist()


def test_model_zoo(image, tmp_path, monkeypatch):
    import fiftyone.zoo as foz

    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path))
    glip_fiftyone.write_zoo(tmp_path)
    assert {"glip-nano", "glip-t"} <= set(foz.list_zoo_models())
    model = foz.load_zoo_model("glip-nano", prompt="a red house. a tree", threshold=0.2, device="cpu")
    assert isinstance(model, glip_fiftyone.GlipModel) and model.threshold == 0.2
    assert (tmp_path / "glip_models" / "glip-nano" / "config.json").is_file()


def test_apply_model(tiny_detector, image, tmp_path):
    try:
        dataset = fo.Dataset()
    except Exception as error:  # no MongoDB for this system, or no network in tests
        pytest.skip(f"FiftyOne's database does not start here: {str(error)[:80]}")
    image.save(tmp_path / "a.png")
    dataset.add_sample(fo.Sample(filepath=str(tmp_path / "a.png")))
    dataset.apply_model(glip_fiftyone.GlipModel(tiny_detector, MANY), label_field="glip", batch_size=2)
    assert same(dataset.first()["glip"], tiny_detector(image, MANY), image.size)


def test_docs(run_docs):
    assert len(run_docs("FiftyOne")["labels"].detections) >= 3
