"""Validation of a model in training: its figures are the ordinary evaluation's, and the model does not notice."""

from dataclasses import replace

import pytest
import torch
from scored import captioned, sample
from small import NAMES, scenes, seeded

from glip.data.world import Drawings, World
from glip.detector import Detector
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.evaluate.validate import Chosen, Validator
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
    model = seeded(tiny_config)
    found = Validator(tiny_config, tokenizer, {"drawn": drawn(), "said": said()}, shown=1)(model)
    detector = Detector(seeded(tiny_config), tiny_config, tokenizer, "cpu")
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


def test_the_model_does_not_notice(tiny_config, tokenizer):
    model = seeded(tiny_config).train()
    model.vision.eval()  # as frozen parts are
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    Validator(tiny_config, tokenizer, {"drawn": drawn()}, images=1, shown=1)(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_itself_again_after_an_error(tiny_config, tokenizer, tmp_path):
    model = seeded(tiny_config).train()
    (tmp_path / "cut.png").write_bytes(b"half an image")
    cut = [replace(one, image=tmp_path / "cut.png") for one in drawn()]
    validator = Validator(tiny_config, tokenizer, {"cut": cut})
    with pytest.raises(ValueError, match=r"set 'cut': nothing to score: .* 4 x unreadable image \(.*cut\.png") as told:
        validator(model)
    assert "\n" not in str(told.value)
    assert all(module.training for module in model.modules())


@pytest.mark.unchecked
def test_some_images_are_chosen_evenly():
    assert list(Chosen(range(10), 4)) == [0, 2, 5, 7]
    assert list(Chosen(range(3), 10)) == [0, 1, 2]
    with pytest.raises(IndexError):
        Chosen(range(10), 4)[4]


def test_a_set_with_nothing_to_score_is_refused_at_once(tiny_config, tokenizer):
    with pytest.raises(ValueError, match="lists no set"):
        Validator(tiny_config, tokenizer, {})
    bare = [replace(one, boxes=torch.empty(0, 4), box_phrases=()) for one in drawn()]
    with pytest.raises(ValueError, match="'bare': none of its 4 chosen images"):
        Validator(tiny_config, tokenizer, {"bare": bare})


def test_a_set_without_images_is_refused_at_once(tiny_config, tokenizer, tmp_path):
    lost = [replace(one, image=tmp_path / f"{index}.png") for index, one in enumerate(drawn())]
    with pytest.raises(ValueError, match=r"set 'lost': none of its 4 chosen images exists, such as '.*0\.png'") as told:
        Validator(tiny_config, tokenizer, {"lost": lost})
    assert "\n" not in str(told.value)
    found = Validator(tiny_config, tokenizer, {"some": [*lost[:2], *drawn()[2:]]})(seeded(tiny_config))
    assert found.skipped.counts == {"unreadable image": 2}


def test_the_drawn_world_mixes_lists_and_captions(tiny_config, tokenizer):
    world = Drawings(World("novel", 0.5, (96, 128)), 6)
    assert {one.prompt is None for one in world} == {True, False}
    found = Validator(tiny_config, tokenizer, {"novel": world}, shown=0)(seeded(tiny_config))
    assert {"novel/AP50", "novel/recall@1"} <= set(found.figures) and not found.images
