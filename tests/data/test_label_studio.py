"""Label Studio: what is written comes back the same, what people change comes back changed, others are read."""

import json
import math
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from small import same_samples

from glip.data.catalog import find_set, read_set
from glip.data.label_studio import LOCAL_FILES, interface_of, read_label_studio, write_label_studio
from glip.data.sets import SampleSet
from glip.structures import Phrase, Prompt, Sample, TarMember

NAMES = ("dog", "cat", "owl")
TWINS = Prompt(
    "a man, a man, two cats", (*(Phrase("a man", ((s, s + 5),)) for s in (0, 7)), Phrase("two", ((15, 18),)))
)
BOXES = torch.tensor([[0.1, 1 / 3, 20.7, 30], [5, 6, 99.99, 79.123456], [0, 0, 100, 80]])
OWN = {"boxes": BOXES, "box_phrases": ((2,), (0,), (1,)), "size": (100, 80)}


def grounding(folder: Path, name: str = "a.jpg", **fields: object) -> Sample:
    return Sample(folder / name, **(OWN | {"prompt": TWINS, "image_id": name} | fields))


def detection(folder: Path, name: str = "b.jpg", **fields: object) -> Sample:
    return Sample(folder / name, **(OWN | {"vocabulary": NAMES, "image_id": name} | fields))


def written(folder: Path, *samples: Sample) -> list[dict]:
    write_label_studio(SampleSet(samples), folder / "tasks.json", [folder])
    return json.loads((folder / "tasks.json").read_text())


def read(folder: Path, tasks: object) -> SampleSet:
    (folder / "export.json").write_text(json.dumps(tasks))
    return read_label_studio(folder / "export.json", [folder])


def rectangle(label: str, x: float, y: float, w: float, h: float, **more: object) -> dict:
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [label]}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "img", "value": value} | more


def foreign(*rows: dict, image: str = "/data/upload/3/0123abcd-a.jpg", **fields: object) -> dict:
    return {"id": 7, "data": {"image": image}, "annotations": [{"id": 1, "result": list(rows)}]} | fields


def test_all_of_a_sample_comes_back(tmp_path):
    listed = Prompt.from_names(["dog", "cat"], negatives=["owl"], classes=[4, 4])
    samples = [
        grounding(tmp_path, scores=(0.9, 0.123456789, 0.3)),
        grounding(tmp_path, "sub/é +&.jpg", box_phrases=((0, 2), (1,), (2,)), crowd=(1,), image_id=12),
        grounding(tmp_path, prompt=listed, boxes=torch.empty(0, 4), box_phrases=()),
        detection(tmp_path, absent=(1,), incomplete=(0, 2), size=(333, 777)),
        detection(tmp_path, "c.jpg", scores=(1.0, 0.5, 0.25), boxes=BOXES[[2, 1, 0]]),
        detection(tmp_path, "d.jpg", vocabulary=("bat", "bat", "a man #2")),
    ]
    lost = write_label_studio(SampleSet(samples), tmp_path / "tasks.json", [tmp_path])
    assert not lost, str(lost)
    found = read_label_studio(tmp_path / "tasks.json", [tmp_path])
    assert not found.skipped, str(found.skipped)
    same_samples(samples, list(found.samples))


def test_what_label_studio_gets(tmp_path):
    people, teacher = written(tmp_path, grounding(tmp_path, "sub/a b.jpg"), grounding(tmp_path, scores=(0.9, 0.5, 0.1)))
    assert [option["value"] for option in people["data"]["labels"]] == ["a man", "a man #2", "two"]
    assert len({option["background"] for option in people["data"]["labels"]}) == 3
    assert people["data"]["caption"] == TWINS.caption and "predictions" not in people and "annotations" not in teacher
    link = urlsplit(people["data"]["image"])
    assert link.path == "/data/local-files/" and parse_qs(link.query)["d"] == [f"{tmp_path.name}/sub/a b.jpg"]
    (answer,) = teacher["predictions"]
    assert answer["score"] == pytest.approx(0.5) and [row["score"] for row in answer["result"]] == [0.9, 0.5, 0.1]
    row = people["annotations"][0]["result"][2]
    assert row["value"] == {
        **{"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0},
        "rectanglelabels": ["a man #2"],
    }
    assert (row["original_width"], row["original_height"], row["type"]) == (100, 80, "rectanglelabels")
    view = ElementTree.parse(interface_of(tmp_path / "tasks.json")).getroot()
    control = view.find("RectangleLabels")
    assert control.get("name") == row["from_name"] and control.get("toName") == row["to_name"]
    assert view.find("Image").get("name") == row["to_name"] and control.get("choice") == "single"
    assert {view.find("Image").get("value"), view.find("Header").get("value"), control.get("value")} == {
        f"${key}" for key in people["data"] if key != "glip"
    }


def test_boxes_end_at_the_image(tmp_path):
    boxes = torch.tensor([[-5.0, 10, 50, 90], [120, 10, 130, 20], [1, 2, 3, 4]])
    given = SampleSet([grounding(tmp_path, boxes=boxes)])
    lost = write_label_studio(given, tmp_path / "tasks.json", [tmp_path])
    assert lost.counts == {"part of a box outside the image": 1, "box outside the image": 1}
    (found,) = read_label_studio(tmp_path / "tasks.json", [tmp_path]).samples
    assert found.boxes.tolist() == [[0, 10, 50, 80], [1, 2, 3, 4]] and found.box_phrases == ((2,), (1,))


def test_what_is_left_out(tmp_path):
    Image.new("RGB", (100, 80)).save(tmp_path / "a.jpg")
    plain = Sample(tmp_path / "a.jpg", torch.empty(0, 4), (), caption="a dog", image_id="a")
    samples = [plain, grounding(tmp_path, "gone.jpg", size=None), grounding(tmp_path, size=None)]
    lost = write_label_studio(SampleSet(samples), tmp_path / "tasks.json", [tmp_path])
    assert lost.counts == {"caption without phrases": 1, "image that cannot be read": 1}
    same_samples([grounding(tmp_path)], list(read_label_studio(tmp_path / "tasks.json", [tmp_path]).samples))
    lost = write_label_studio(SampleSet([plain]), tmp_path / "none.json", [tmp_path])
    assert json.loads((tmp_path / "none.json").read_text()) == [] and lost.counts == {"caption without phrases": 1}


def test_images_have_to_be_files(tmp_path):
    archived = grounding(tmp_path)
    archived = Sample(**(archived.__dict__ | {"image": TarMember(tmp_path / "0.tar", "a.jpg", 0, 9)}))
    with pytest.raises(ValueError, match="is in an archive, which Label Studio cannot say"):
        written(tmp_path, archived)
    with pytest.raises(ValueError, match="is not in the image folders"):
        written(tmp_path, grounding(tmp_path.parent))


def test_a_name_that_is_no_text_is_written_as_its_bytes(tmp_path):
    [task] = written(tmp_path, detection(tmp_path, "bad\udcff.jpg"))
    assert task["data"]["image"].endswith("bad%FF.jpg")


def test_corrections_come_back(tmp_path):
    (task,) = written(tmp_path, grounding(tmp_path, scores=(0.9, 0.5, 0.1)))
    moved, kept, _ = task["predictions"][0]["result"]
    moved["value"] |= {"x": 10, "width": 20, "rectanglelabels": ["a man #2"]}
    new = rectangle("two", 50, 50, 10, 10)
    task["annotations"] = [{"result": [moved, kept, new], "was_cancelled": False}]
    (found,) = read(tmp_path, [task]).samples
    assert found.box_phrases == ((1,), (0,), (2,)) and found.scores == () and found.prompt == TWINS
    assert found.boxes[0].tolist()[::2] == [10, 30] and found.boxes[2].tolist() == [50, 40, 60, 48]
    assert torch.equal(found.boxes[1], BOXES[1])
    (found,) = read(tmp_path, [task | {"annotations": [{"result": []}]}]).samples
    assert len(found.boxes) == 0 and found.prompt == TWINS, "people say that nothing is there"
    task["annotations"][0]["result"][1]["value"]["rectanglelabels"] = ["zebra"]
    found = read(tmp_path, [task])
    assert len(found.samples[0].boxes) == 2 and found.skipped.counts == {"box of an unknown phrase": 1}


def test_which_answer_counts(tmp_path):
    first, second, third = ({"result": [rectangle("dog", 0, 0, side, side)]} for side in (10, 20, 30))
    late, early = {"updated_at": "2024-05-02T00:00:00Z"}, {"updated_at": "2023-01-01T00:00:00Z"}
    size = {"data": {"image": "a.jpg"}}

    def width(**answers: object) -> float:
        for answer in (first, second, third):
            answer["result"][0] |= {"original_width": 100, "original_height": 100}
        return read(tmp_path, [size | answers]).samples[0].boxes[0, 2].item()

    assert width(annotations=[first, second, third]) == 30
    assert width(annotations=[first | early, second | late, third | early]) == 20
    assert width(annotations=[first | early | {"ground_truth": True}, second | late]) == 10
    assert width(annotations=[first, second | {"was_cancelled": True}]) == 10
    assert width(annotations=[first], predictions=[second, third]) == 10
    assert width(annotations=[], predictions=[second, third]) == 30
    many = read(tmp_path, [size | {"annotations": [first, second]}])
    assert sum(many.skipped.counts.values()) == 1


def test_skipped_and_untouched_tasks_are_counted(tmp_path):
    good = foreign(rectangle("dog", 0, 0, 10, 10, original_width=50, original_height=50))
    skipped = foreign(annotations=[{"result": [], "was_cancelled": True}], predictions=[{"result": []}])
    untouched = foreign(annotations=[], predictions=[])
    found = read(tmp_path, [skipped, good, untouched, 7, {"data": None, "annotations": [{"result": []}]}])
    assert len(found.samples) == 1
    assert found.skipped.counts == {
        "task that people skipped": 1,
        "task without annotation and prediction": 2,
        "image without a file name": 1,
    }


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/3/0123abcd-a.jpg",
        "http://localhost:8080/data/upload/3/0123abcd-a.jpg",
        "/data/local-files/?d=images/a.jpg",
        "/data/local-files/?d=deep/down/images%2Fa.jpg",
        "s3://bucket/of/images/a.jpg",
        "https://example.com/images/a.jpg?size=large",
        "a.jpg",
    ],
)
def test_images_are_found_again(image, tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg")
    (found,) = read(tmp_path, [foreign(rectangle("dog", 10, 20, 30, 40), image=image)]).samples
    assert found.image == tmp_path / "a.jpg" and found.size == (200, 100), "told from the image itself"
    assert torch.allclose(found.boxes, torch.tensor([[20.0, 20, 80, 60]])) and found.image_id == 7


def test_a_foreign_project_is_a_detection_set(tmp_path):
    size = {"original_width": 100, "original_height": 50}
    two = [rectangle("dog", 0, 0, 10, 10, **size), rectangle("cat", 50, 50, 10, 10, **size)]
    other = foreign(rectangle("owl", 0, 0, 50, 50, **size), {"type": "choices", "value": {"choices": ["good"]}})
    found = read(tmp_path, [foreign(*two), other, foreign()])
    assert found.vocabulary == ("dog", "cat", "owl")
    assert [sample.box_phrases for sample in found.samples] == [((0,), (1,)), ((2,),), ()]
    assert found.skipped.counts == {"mark that is no labelled rectangle": 1}


@pytest.mark.parametrize("turn", [90, 30, -45])
def test_a_turned_rectangle_becomes_the_one_around_it(turn, tmp_path):
    row = rectangle("dog", 40, 50, 20, 10, original_width=200, original_height=100)
    row["value"]["rotation"] = turn
    (found,) = read(tmp_path, [foreign(row)]).samples
    turned = complex(math.cos(math.radians(turn)), math.sin(math.radians(turn)))
    corners = [complex(80, 50) + complex(a, b) * turned for a in (0, 40) for b in (0, 10)]
    xs, ys = [c.real for c in corners], [c.imag for c in corners]
    assert found.boxes[0].tolist() == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-4)


def test_broken_marks_are_counted(tmp_path):
    size = {"original_width": 100, "original_height": 50}
    good, flat = rectangle("dog", 1, 1, 5, 5, **size), rectangle("dog", 1, 1, 0, 5, **size)
    rows = [good, flat, rectangle("dog", 1, 1, 5, 5, image_rotation=90, **size), {"type": "rectanglelabels"}, 7]
    rows += [rectangle("dog", 10**400, 1, 5, 5, **size), rectangle("dog", "1", 1, 5, 5, **size)]
    found = read(tmp_path, [foreign(*rows)])
    assert found.samples[0].boxes.shape == (1, 4)
    assert found.skipped.counts == {
        "box without area": 1,
        "box on an image that was turned in Label Studio": 1,
        "malformed box": 3,
    }
    gone = read(tmp_path, [foreign(good), foreign(rectangle("dog", 1, 1, 5, 5))])
    assert gone.skipped.counts == {"boxes in per cent of an image that cannot be read": 1}


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not Label Studio's JSON, a list of tasks: export the project as JSON"):
        read(tmp_path, {"images": []})
    with pytest.raises(ValueError, match="no sample in it can be used"):
        read(tmp_path, [])
    image = f"{LOCAL_FILES}?d=images/a.jpg"
    short = [{"image": image, "caption": "a cat", "glip": {}, "phrase": [], "annotation_id": 1}]
    (tmp_path / "short.json").write_text(json.dumps(short))
    with pytest.raises(ValueError, match="export the project as JSON, not JSON-MIN"):
        read_set(find_set(str(tmp_path / "short.json")))
