"""Validation of a model in training: its figures are the ordinary evaluation's, and the model does not notice."""

from dataclasses import replace

import pytest
import torch
from scored import captioned, sample
from small import NAMES, scenes, seeded

from glip.detector import Detector
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.evaluate.validate import Validator, evenly_spaced
from glip.structures import Sample


def drawn() -> list[Sample]:
    boxes = [[(thing.box, NAMES.index(f"{thing.colour} {thing.kind}")) for thing in things] for _, things in scenes()]
    return [replace(sample(NAMES, own), image=image) for own, (image, _) in zip(boxes, scenes(), strict=True)]


def said() -> list[Sample]:
    made = []
    for image, things in scenes():
        texts = [f"{thing.colour} {thing.kind}" for thing in things]
        boxes = [(thing.box, index) for index, thing in enumerate(things)]
        made.append(replace(captioned("a " + " above a ".join(texts), texts, boxes), image=image))
    return made


def test_figures_are_those_of_the_ordinary_evaluation(tiny_config, tokenizer):
    detector = Detector(seeded(tiny_config), tiny_config, tokenizer, "cpu")
    found = Validator({"drawn": drawn(), "said": said()}, shown=1)(detector)
    score = average_precision(detect_all(detector, drawn()))
    recall = phrase_recall(detect_all(detector, said()))
    assert found.figures == {
        "drawn/AP": score.ap,
        "drawn/AP50": score.ap50,
        **{f"said/recall@{rank}": value for rank, value in recall.at.items()},
    }
    assert found.best == pytest.approx((score.ap50 + recall.at[1]) / 2)
    assert set(found.images) == {"drawn/0", "said/0"}
    assert found.images["drawn/0"].width > 2 * 128
    both = Validator({"both": [*drawn(), *said()]}, shown=0)(detector)
    assert both.figures == {f"both/{name.split('/')[1]}": value for name, value in found.figures.items()}
    assert not both.images


def test_the_model_does_not_notice(tiny_config, tokenizer):
    model = seeded(tiny_config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    Validator({"drawn": drawn()}, images=1, shown=1)(Detector(model, tiny_config, tokenizer, "cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.unchecked
def test_some_images_are_chosen_evenly():
    assert list(evenly_spaced(range(10), 4)) == [0, 2, 5, 7]
    assert list(evenly_spaced(range(3), 10)) == [0, 1, 2]


def test_what_cannot_be_scored_is_refused(tiny_config, tokenizer, tmp_path):
    """Before the training where that can be seen: no box, or none of the image files."""
    (tmp_path / "cut.png").write_bytes(b"half an image")
    detector = Detector(seeded(tiny_config), tiny_config, tokenizer, "cpu")
    bare = [replace(one, boxes=torch.empty(0, 4), box_phrases=()) for one in drawn()]
    lost = [replace(one, image=tmp_path / f"{index}.png") for index, one in enumerate(drawn())]
    for samples, message in (
        (bare, "no box of a known class in 4 images"),
        (lost, "4 of 4 images are not there, such as '"),
    ):
        with pytest.raises(ValueError, match=f"'mine', images chosen of it: {message}"):
            Validator({"mine": samples})
    found = Validator({"some": [*lost[:2], *drawn()[2:]]})(detector)
    assert found.skipped.counts == {"unreadable image": 2}
    validator = Validator({"cut": [replace(one, image=tmp_path / "cut.png") for one in drawn()]})
    with pytest.raises(ValueError, match=r"set 'cut': none of 0 images .* 4 x unreadable image \(.*cut\.png") as told:
        validator(detector)
    assert "\n" not in str(told.value)
