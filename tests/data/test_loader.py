"""Step n's batch depends on n alone; broken pictures are passed over, counted, and too many of them stop the run."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from small import NAMES, RELEASED, VOCABULARY, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data import loader
from glip.data.loader import MixtureDataset, build_sources, count_crowded, data_path, load_steps
from glip.data.picture import PictureError
from glip.detector import build_processor
from glip.structures import Batch
from glip.text.tokens import Tokenizer

DRAWN = DatasetConfig(name="drawn", annotations="instances.json", images="images", weight=3.0)
WORLD = DatasetConfig(name="world", weight=1.0)


@pytest.fixture(scope="module")
def processor():
    return build_processor(RELEASED, Tokenizer(VOCABULARY))


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def mixture(root, processor, *sets: DatasetConfig, steps=6, batch_size=4, **changes) -> MixtureDataset:
    data = DataConfig(root=str(root), train=sets or (DRAWN, WORLD), crop=64, short_side=(64, 96), **changes)
    sources = build_sources(data, max_tokens=256, max_size=128)
    return MixtureDataset(sources, processor, batch_size=batch_size, steps=steps, seed=5)


def equal(first: Batch, second: Batch) -> bool:
    targets = zip(first.targets, second.targets, strict=True)
    return (
        torch.equal(first.images.pixels, second.images.pixels)
        and first.text.prompts == second.text.prompts
        and all(torch.equal(a.boxes, b.boxes) and torch.equal(a.positive_map, b.positive_map) for a, b in targets)
    )


def test_steps_depend_on_seed_and_number_alone(root, processor):
    made = mixture(root, processor)
    first, again = [made[step] for step in range(3)], mixture(root, processor)
    assert all(equal(again[step], first[step]) for step in (2, 0, 1))
    assert not equal(first[0], first[1])
    again.seed = 6
    assert not equal(again[0], first[0])


def test_start_in_the_middle(root, processor):
    whole = list(load_steps(mixture(root, processor), start=0, workers=0))
    late = list(load_steps(mixture(root, processor), start=4, workers=0))
    assert len(whole) == 6 and len(late) == 2
    assert all(equal(a, b) for a, b in zip(whole[4:], late, strict=True))


def test_the_models_random_numbers_do_not_depend_on_the_loader(root, processor):
    state = torch.get_rng_state()
    next(load_steps(mixture(root, processor), start=0, workers=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_workers_change_nothing(root, processor):
    (root / "images" / "2.png").write_bytes(b"broken")
    alone = load_steps(mixture(root, processor), start=3, workers=0)
    spread = load_steps(mixture(root, processor), start=3, workers=2)
    assert all(equal(a, b) for a, b in itertools.zip_longest(alone, spread))


def test_sets_share_a_batch_by_their_weights(root, processor):
    made = mixture(root, processor, replace(DRAWN, weight=0.6), replace(WORLD, weight=0.4), batch_size=5, steps=20)
    for step in range(20):
        mine = sum(set(prompt.texts) <= set(NAMES) for prompt in made[step].text.prompts)
        assert mine == 3, "a batch holds the sets in their exact shares where these are whole numbers"


def test_shares_that_are_no_whole_numbers_are_right_on_average(root, processor):
    sets = replace(DRAWN, weight=0.7), replace(DRAWN, name="copy", weight=0.3)
    made = mixture(root, processor, *sets, batch_size=2)
    counts = []
    original = made._sample
    made._sample = lambda source, rng: counts.append(source.name) or original(source, rng)
    for step in range(100):
        made[step]
    assert 125 <= counts.count("drawn") <= 155


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0)])
def test_weights_that_share_nothing_out(weights, root, processor):
    with pytest.raises(ValueError, match="give each set a positive one"):
        mixture(root, processor, replace(DRAWN, weight=weights[0]), replace(WORLD, weight=weights[1]))


def test_a_set_listed_twice(root, processor):
    with pytest.raises(ValueError, match="'drawn' twice"):
        mixture(root, processor, DRAWN, DRAWN)


def test_foreign_names_and_left_out_reach_the_sources(root, processor):
    tree = json.loads((root / "instances.json").read_text())
    tree["annotations"].append({"image_id": 0, "category_id": 999, "bbox": [0, 0, 5, 5]})
    (root / "instances.json").write_text(json.dumps(tree))
    tree["categories"] = [{"id": 10, "name": "red bus"}, {"id": 20, "name": "zebra"}]
    (root / "other.json").write_text(json.dumps(tree))
    (root / "images" / "3.png").unlink()
    made = mixture(root, processor, DRAWN, replace(DRAWN, name="other", annotations="other.json"))
    first, other = made.sources
    assert first.phrasing.foreign == ("zebra",) and set(other.phrasing.foreign) == set(NAMES) - {"red circle"}
    assert first.left_out == {"unknown category": 1, "picture that is not there": 1} and len(first.samples) == 3


# ---- what cannot be read


def test_a_broken_picture_is_passed_over(root, processor, caplog):
    (root / "images" / "1.png").write_bytes(b"broken")
    made = mixture(root, processor, DRAWN, steps=12)
    first = list(load_steps(made, start=0, workers=0))
    assert len(first) == 12 and all(len(batch.targets) == 4 for batch in first)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'drawn'" in line and "1.png" in line
    assert made.sources[0].broken == {root / "images" / "1.png"}
    again = mixture(root, processor, DRAWN, steps=12)
    assert equal(again[9], first[9]), "which picture comes instead depends on the step alone"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_broken_stops_and_names_a_file(workers, root, processor):
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(PictureError, match=r"set 'drawn': 4 of its pictures cannot be read.*\.png") as told:
        next(load_steps(mixture(root, processor, DRAWN), start=0, workers=workers))
    assert "Traceback" not in str(told.value)


def test_too_many_broken_stop(root, processor, monkeypatch):
    monkeypatch.setattr(loader, "MAX_BROKEN", 1)
    for number in (0, 1):
        (root / "images" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(PictureError, match=r"set 'drawn': 2 of its pictures cannot be read.*[01]\.png"):
        list(load_steps(mixture(root, processor, DRAWN), start=0, workers=0))


def test_no_picture_there(root, processor):
    for file in (root / "images").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"none of its 4 pictures is there, such as '.*0\.png'"):
        mixture(root, processor)


def test_no_name_there(root, processor):
    tree = json.loads((root / "instances.json").read_text())
    (root / "instances.json").write_text(json.dumps({**tree, "categories": []}))
    with pytest.raises(ValueError, match="'drawn' names nothing"):
        mixture(root, processor)


def test_crowded_pictures_are_counted(root, processor):
    (source,) = mixture(root, processor, DRAWN, max_names=2).sources
    assert count_crowded(source, processor.count_tokens) == 1, "one of the four shows three names"
    tight = replace(source, phrasing=replace(source.phrasing, max_names=9, max_tokens=6))
    assert count_crowded(tight, processor.count_tokens) == 4


# ---- where data lies


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("GLIP_DATA", "/somewhere")
    assert str(data_path(DataConfig(), "a/b.json")) == "/somewhere/a/b.json"
    assert data_path(DataConfig(root=str(tmp_path)), "b.json") == tmp_path / "b.json"
    assert str(data_path(DataConfig(), "/own/b.json")) == "/own/b.json"
    monkeypatch.delenv("GLIP_DATA")
    assert str(data_path(DataConfig(), "b.json")) == "b.json"
