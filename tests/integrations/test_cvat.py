"""Our function in the driver of cvat-sdk; the server is a stub that keeps what it gets."""

import logging
from types import SimpleNamespace

import pytest

from glip.structures import Prompt

driver = pytest.importorskip("cvat_sdk.auto_annotation.driver", reason="cvat-sdk is not installed")
glip_cvat = pytest.importorskip("glip.integrations.cvat")
MANY = Prompt.from_names(["a cat", "a kitten", "a dog"], classes=[0, 0, 2], negatives=["a bus"])


@pytest.fixture
def annotate(monkeypatch, image):
    """What the driver uploads for a task of two images with the labels a dog (id 7) and a cat (id 5)."""

    def run(function, **options):
        rest = {"type": "rectangle", "attributes": [], "sublabels": []}
        labels = [SimpleNamespace(name=name, id=number, **rest) for name, number in (("a dog", 7), ("a cat", 5))]
        media = SimpleNamespace(load_image=lambda: image)
        samples = [SimpleNamespace(frame_index=index, frame_name=f"{index}.png", media=media) for index in (0, 4)]
        task = SimpleNamespace(labels=labels, samples=samples)
        monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: task)
        sent = []
        send = SimpleNamespace(update_annotations=lambda _, labeled_data_request: sent.append(labeled_data_request))
        client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=send))
        driver.annotate_task(client, 1, function, clear_existing=True, **options)
        return sent[0].shapes

    return run


def test_rectangles_with_the_ids_of_the_task(annotate, tiny_detector, image):
    function = glip_cvat.DetectionFunction(tiny_detector, MANY)
    assert [(label.id, label.name) for label in function.spec.labels] == [(0, "a cat"), (2, "a dog")]
    threshold = float(tiny_detector(image, MANY).scores[20])
    for given in (None, threshold):
        shapes, wanted = annotate(function, conf_threshold=given), tiny_detector(image, MANY, threshold=given)
        assert len(shapes) == 2 * len(wanted) and {shape.frame for shape in shapes} == {0, 4}
        first = shapes[: len(wanted)]
        assert [shape.points for shape in first] == wanted.boxes.tolist()
        assert [shape.label_id for shape in first] == [{0: 5, 2: 7}[number] for number in wanted.classes.tolist()]


def test_a_task_finds_what_it_learned(detectors, image):
    function, wanted = glip_cvat.DetectionFunction(detectors["plants"]), detectors["plants"](image)
    given = function.detect(SimpleNamespace(conf_threshold=None), image)
    assert [one.points for one in given] == wanted.boxes.tolist() and len(wanted) == 7


def test_parameters_of_the_command_line(tiny_folder):
    function = glip_cvat.create(names="a car. a tree", model=str(tiny_folder), device="cpu")
    assert [label.name for label in function.spec.labels] == ["a car", "a tree"]


def test_docs(run_docs):
    assert len(run_docs("CVAT")["shapes"]) > 3
