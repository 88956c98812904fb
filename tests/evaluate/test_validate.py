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
    made = []
    for image, things in scenes():
        boxes = [(thing.box, NAMES.index(f"{thing.colour} {thing.kind}")) for thing in things]
        made.append(replace(sample(NAMES, boxes), image=image))
    return made


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


def test_images_that_cannot_be_read(tiny_config, tokenizer, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"half an image")
    cut = [replace(one, image=tmp_path / "cut.png") for one in drawn()]
    validator = Validator({"cut": cut})
    with pytest.raises(ValueError, match=r"set 'cut': nothing to score: .* 4 x unreadable image \(.*cut\.png") as told:
        validator(Detector(seeded(tiny_config), tiny_config, tokenizer, "cpu"))
    assert "\n" not in str(told.value)


@pytest.mark.unchecked
def test_some_images_are_chosen_evenly():
    assert list(evenly_spaced(range(10), 4)) == [0, 2, 5, 7]
    assert list(evenly_spaced(range(3), 10)) == [0, 1, 2]


def test_a_set_with_nothing_to_score_is_refused_at_once():
    with pytest.raises(ValueError, match="lists no set"):
        Validator({})
    bare = [replace(one, boxes=torch.empty(0, 4), box_phrases=()) for one in drawn()]
    with pytest.raises(ValueError, match="'bare': none of its 4 chosen images"):
        Validator({"bare": bare})


def test_a_set_without_images_is_refused_at_once(tiny_config, tokenizer, tmp_path):
    lost = [replace(one, image=tmp_path / f"{index}.png") for index, one in enumerate(drawn())]
    with pytest.raises(ValueError, match=r"set 'lost': none of its 4 chosen images exists, such as '.*0\.png'") as told:
        Validator({"lost": lost})
    assert "\n" not in str(told.value)
    found = Validator({"some": [*lost[:2], *drawn()[2:]]})(Detector(seeded(tiny_config), tiny_config, tokenizer, "cpu"))
    assert found.skipped.counts == {"unreadable image": 2}
