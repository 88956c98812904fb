"""From a config to sources: names of the table and plain paths, shares, replay, and sets that teach nothing refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import NAMES, TINY, VOCABULARY, scenes, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data.loader import Source
from glip.data.mixture import (
    build_sources,
    count_classes,
    data_fingerprint,
    draw_shots,
    hold_out,
    read_training_set,
    resolve,
    survey,
    with_replay,
)
from glip.data.sets import PackedSamples, SampleSet
from glip.data.writers import write_labels
from glip.errors import ConfigError, DataError
from glip.processor import Processor
from glip.structures import Prompt, Sample
from glip.text.class_prompts import read_prompts
from glip.text.tokens import Tokenizer

STAR = Prompt.parse("a star")
DRAWN = DatasetConfig(name="drawn", annotations="instances.json", images=("images",), weight=3.0)


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def data(root, *sets: DatasetConfig, **changes) -> DataConfig:
    return DataConfig(root=str(root), train=sets or (DRAWN,), **changes)


def change(root, **lists) -> None:
    tree = json.loads((root / "instances.json").read_text())
    (root / "instances.json").write_text(json.dumps({**tree, **lists}))


def test_a_set_is_a_name_a_path_or_written_out(root):
    (root / "datasets.yaml").write_text("mine: {format: coco, annotations: instances.json, images: [images]}")
    rows = (DRAWN, DatasetConfig(name="mine"), DatasetConfig(name="instances.json", first=2))
    made = build_sources(data(root, *rows, short_side=(50, 60)))
    (root / "t.jsonl").write_text("{}")
    assert resolve(DatasetConfig(name="t.jsonl", names="map.json"), data(root)).names == "map.json"
    assert [source.config.name for source in made] == ["drawn", "mine", "instances.json"]
    assert [len(source.samples) for source in made] == [4, 4, 2]
    assert made[0].config.short_side == (50, 60)


def test_prompts_of_the_table(root):
    table = "mine: {format: coco, annotations: instances.json, images: [images], prompts: p.yaml}"
    (root / "datasets.yaml").write_text(table)
    for side, flip in (("old", 0.5), ("left", 0.0)):
        (root / "p.yaml").write_text(f'"red circle": "the {side} [circle]"')
        (source,) = build_sources(data(root, DatasetConfig(name="mine")))
        assert source.prompts["red circle"].text == f"the {side} circle"
        assert source.config.flip == flip, "a flipped image is wrong for words that name a side"


def test_foreign_names_and_what_is_skipped(root):
    tree = json.loads((root / "instances.json").read_text())
    change(root, annotations=[*tree["annotations"], {"image_id": 0, "category_id": 999, "bbox": [0, 0, 5, 5]}])
    tree["categories"] = [{"id": 10, "name": "red bus"}, {"id": 20, "name": "zebra"}]
    (root / "other.json").write_text(json.dumps(tree))
    (root / "images" / "3.png").unlink()
    other = DatasetConfig(name="other", annotations="other.json", images=("images",))
    first, second = build_sources(data(root, DRAWN, other))
    assert first.foreign == ("zebra",) and set(second.foreign) == set(NAMES) - {"red circle"}
    assert sum(first.skipped.counts.values()) == 2 and len(first.samples) == 3
    assert any("3.png" in place for places in first.skipped.places.values() for place in places)


def test_replay_takes_its_share(root):
    old = "data: {short_side: [50, 60], train: [{name: other, weight: 5.0}, {name: drawn, weight: 9.0}]}"
    (root / "old.yaml").write_text(old)
    rows = with_replay(data(root, replay=0.25, replay_from=str(root / "old.yaml")))
    assert [(row.name, row.weight) for row in rows] == [("drawn", 0.75), ("other", 0.25)], "a set of both is one's own"
    assert rows[1].short_side == (50, 60), "remembered as it was learned"
    (root / "old.yaml").write_text("data: {train: [{name: drawn}]}")
    with pytest.raises(ConfigError, match="all its datasets are in data.train already"):
        with_replay(data(root, replay=0.5, replay_from=str(root / "old.yaml")))


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("aa", (1.0, 1.0), "'a' twice"),
        ("ab", (0.0, 0.0), "less than a thousandth of all, or all are 0"),
        ("ab", (-1.0, 2.0), "greater"),
        ("ab", (1.7e6, 500.0), "'b' is less than a thousandth"),
    ],
)
def test_mixtures_that_cannot_be(names, weights, message, root):
    with pytest.raises(ValueError, match=message):
        data(root, *(DatasetConfig(name=name, weight=weight) for name, weight in zip(names, weights, strict=True)))


def test_ids_that_match_nothing_are_an_error(root):
    tree = json.loads((root / "instances.json").read_text())
    change(root, categories=[{**row, "id": 1000 + row["id"]} for row in tree["categories"]])
    with pytest.raises(DataError, match="no box of a known class in 4 images .skipped: 9 x unknown category"):
        build_sources(data(root))


def test_captions_without_boxes_are_not_trained_on(root):
    change(root, annotations=[{"image_id": 0, "id": 1, "caption": "a red circle"}])
    captions = DatasetConfig(name="c", format="captions", annotations="instances.json", images=("images",))
    with pytest.raises(DataError, match="pseudo-label them first"):
        read_training_set(captions, data(root))


def test_many_missing_images_stop(root):
    tree = json.loads((root / "instances.json").read_text())
    lost = [{**tree["images"][0], "id": 100 + number, "file_name": f"lost{number}.png"} for number in range(20)]
    change(root, images=[*tree["images"], *lost])
    with pytest.raises(DataError, match=r"20 of 24 images are not there, such as '.*lost0.png'.*data.max_broken"):
        build_sources(data(root))
    assert len(build_sources(data(root, max_broken=0.9))[0].samples) == 4
    for file in (root / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"24 of 24 images are not there, such as '.*0\.png'"):
        build_sources(data(root, max_broken=1.0))


def test_held_out_names_go_with_their_boxes(root):
    names = ("red star", "starfish", "Purple car", "blue car")
    boxes = torch.arange(16.0).reshape(4, 4)
    given = Sample(Path("a.jpg"), boxes, ((0,), (1,), (2, 3), (2,)), vocabulary=names, crowd=(1,), absent=(0, 3))
    left = hold_out(given, ["star", "purple"])
    assert left.vocabulary == ("starfish", "blue car"), "a part of a word is no word"
    assert left.box_phrases == ((0,), (1,)) and left.boxes.tolist() == boxes[1:3].tolist()
    assert left.crowd == (0,) and left.absent == (1,)
    [made] = build_sources(data(root, DatasetConfig(name="instances.json", held_out=("star",))))
    left = tuple(name for name in NAMES if name != "blue star")
    assert all(one.vocabulary == left for one in made.samples)
    assert sum(len(one.boxes) for one in made.samples) == 7, "two of nine are blue stars"
    with pytest.raises(DataError, match=r"no box of a known class in 4 images \(none was skipped\): run glip data"):
        build_sources(data(root, DatasetConfig(name="instances.json", held_out=NAMES)))
    write_labels(
        SampleSet([Sample(root / "images/0.png", torch.empty(0, 4), (), prompt=STAR)]), root / "c.jsonl", [root]
    )
    with pytest.raises(DataError, match="has captions: held_out works on class names only"):
        build_sources(data(root, DatasetConfig(name="c.jsonl", images=(str(root),), held_out=("star",))))


# ---- gone through once before a run


@pytest.fixture(scope="module")
def processor():
    return Processor(TINY, Tokenizer(VOCABULARY))


def samples(names=NAMES):
    """The four scenes; name i of NAMES is called names[i]."""
    for number, (image, things) in enumerate(scenes()):
        labels = tuple((NAMES.index(f"{thing.colour} {thing.kind}"),) for thing in things)
        yield Sample(image, torch.tensor([thing.box for thing in things]), labels, vocabulary=names, image_id=number)


def source(made, **changes):
    return Source(DatasetConfig(name="mine"), PackedSamples(made), **changes)


def test_counts_and_what_does_not_fit(processor):
    assert survey(source(samples()), processor).summary == "mine: 4 images, 9 boxes"
    told = survey(source(samples()), Processor(replace(TINY, max_tokens=6), Tokenizer(VOCABULARY))).summary
    assert "skipped: boxes of 4 x image with more names than a caption holds" in told, "each shows two names or more"


def test_the_fingerprint_tells_a_changed_set(processor):
    first = survey(source(samples()), processor).fingerprint
    assert survey(source(samples()), processor).fingerprint == first
    moved = [replace(one, boxes=one.boxes + 0.5) for one in samples()]
    other = [replace(one, image_id=one.image_id + 10) for one in samples()]
    shuffled, longer = list(samples())[::-1], samples((*NAMES, "zebra"))
    changed = (list(samples())[1:], moved, samples(("red giraffe", *NAMES[1:])), other, shuffled, longer)
    marks = {survey(source(made), processor).fingerprint for made in changed}
    prompts = read_prompts({NAMES[0]: "a [giraffe]"}, NAMES)
    assert len(marks | {first, survey(source(samples(), prompts=prompts), processor).fingerprint}) == 8


def test_a_dataset_stored_elsewhere_has_the_same_fingerprint():
    here, there, other = (
        [replace(one, image=Path(folder) / f"{one.image_id}{suffix}") for one in samples()]
        for folder, suffix in (("/here/images", ".jpg"), ("/there", ".jpg"), ("/here/images", ".png"))
    )
    assert data_fingerprint(here) == data_fingerprint(PackedSamples(there)) != data_fingerprint(other)


def test_names_that_the_model_reads_alike(processor):
    told = survey(source(samples(("Cat", "cat", "café", "cafe"))), processor).summary
    assert told.endswith("; taken for one name: 'Cat', 'cat'; 'café', 'cafe'")
    names = ("แมว", "สุนัข", *NAMES[2:])
    with pytest.raises(ValueError, match="reads 'แมว' and 'สุนัข' alike, as the same tokens"):
        survey(source(samples(names)), processor)
    both = [replace(one, box_phrases=((2, 0), (2, 1))[: len(one.boxes)], boxes=one.boxes[:2]) for one in samples(names)]
    with pytest.raises(ValueError, match="alike"):
        survey(source(both), processor)  # also as the second name of a box
    prompts = read_prompts({"แมว": "a [cat]", "สุนัข": "a [dog]"}, names)
    assert survey(source(samples(names), prompts=prompts), processor).summary == "mine: 4 images, 9 boxes"


# ---- few shots of each class

ANIMALS = ("cat", "dog", "owl")


def shown(*labels, crowd=()):
    boxes = torch.tensor([[0.0, 0, 5, 5]]).repeat(len(labels), 1)
    return Sample(Path("image.jpg"), boxes, tuple((label,) for label in labels), vocabulary=ANIMALS, crowd=crowd)


SET = [shown(0, 0), shown(0, 1), shown(1), shown(2, 2, 2), shown(), shown(0, 2), shown(1, 1), shown(2)]


@pytest.mark.parametrize(("per", "shots"), [("image", 1), ("image", 2), ("image", 3), ("box", 4)])
def test_every_class_has_its_shots_and_no_image_is_taken_in_vain(per, shots):
    drawn = [draw_shots(SET, ANIMALS, shots, seed=seed, per=per) for seed in range(8)]
    assert drawn == [draw_shots(SET, ANIMALS, shots, seed=seed, per=per) for seed in range(8)]
    assert len({tuple(chosen) for chosen in drawn}) > 1 or shots > 2, "the seed decides"
    for chosen in drawn:
        had = sum((count_classes(SET[index], per) for index in chosen), Counter())
        assert all(had[label] >= shots for label in range(3)) and chosen == sorted(set(chosen)) and 4 not in chosen
    assert count_classes(shown(0, 0, 1, crowd=(0, 2)), "box") == {0: 1}, "groups do not count"


@pytest.mark.parametrize(
    ("names", "shots", "per", "message"),
    [
        (ANIMALS, 0, "image", "give 1 or more"),
        (ANIMALS, 4, "image", "4 images of each class cannot be drawn .'cat' 3, 'dog' 3, 'owl' 3"),
        (ANIMALS, 5, "box", "5 boxes of each class cannot be drawn .'cat' 4, 'dog' 4"),
        ((*ANIMALS, "newt"), 1, "image", "'newt' 0"),
    ],
)
def test_too_few_shots(names, shots, per, message):
    with pytest.raises(ValueError, match=message):
        draw_shots(SET, names, shots, seed=0, per=per)
