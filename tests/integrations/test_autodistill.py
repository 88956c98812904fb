"""Our base model labels a folder by autodistill's own ``label``."""

import numpy as np
import pytest
import torch

autodistill = pytest.importorskip("autodistill.detection", reason="autodistill is not installed")
glip_autodistill = pytest.importorskip("glip.integrations.autodistill")
ONTOLOGY = autodistill.CaptionOntology({"a cat": "animal", "a bus": "vehicle", "a dog": "animal"})


def test_prompts_of_one_class_are_merged(tiny_detector, image):
    from glip.structures import Prompt

    base = glip_autodistill.GlipBaseModel(ONTOLOGY, tiny_detector, threshold=0.3)
    given = base.predict(np.asarray(image)[..., ::-1])  # BGR, as it gives it
    wanted = tiny_detector(image, Prompt.from_names(["a cat", "a bus", "a dog"], classes=[0, 1, 0]), threshold=0.3)
    assert len(wanted) > 5 and torch.equal(torch.from_numpy(given.xyxy), wanted.boxes)
    assert given.class_id.tolist() == wanted.classes.tolist() and set(given.class_id) == {0, 1}
    assert given["class_name"].tolist() == [("animal", "vehicle")[number] for number in given.class_id]
    assert np.array_equal(base.predict(image).xyxy, given.xyxy)


def test_label_writes_a_dataset(tiny_folder, image, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        image.rotate(90 * number, expand=True).save(tmp_path / "in" / f"{number}.png")
    base = glip_autodistill.GlipBaseModel(ONTOLOGY, tiny_folder)
    labelled = base.label(str(tmp_path / "in"), extension=".png", output_folder=str(tmp_path / "out"))
    texts = sorted((tmp_path / "out").glob("*/labels/*.txt"))
    assert len(labelled) == len(texts) == 5 and (tmp_path / "out" / "data.yaml").is_file()
    assert {line.split()[0] for text in texts for line in text.read_text().splitlines()} == {"0", "1"}


def test_docs(run_docs):
    assert len(run_docs("autodistill")["dataset"]) == 2
