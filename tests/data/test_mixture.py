"""From a config to sources: names of the table and plain paths, shares, replay, and sets that teach nothing refused."""

import json
from pathlib import Path

import pytest
import torch
from small import NAMES, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data.mixture import build_sources, hold_out, read_training_set, resolve, with_replay
from glip.data.sets import PackedSamples
from glip.errors import ConfigError, DataError
from glip.structures import Prompt, Sample

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
    with pytest.raises(ConfigError, match=r"'mien' is neither in datasets.yaml nor a file \(did you mean 'mine'"):
        build_sources(data(root, DatasetConfig(name="mien")))


def test_a_set_is_packed_once(root, monkeypatch):
    packed = []
    pack = PackedSamples.__init__
    monkeypatch.setattr(PackedSamples, "__init__", lambda self, samples: packed.append(self) or pack(self, samples))
    build_sources(data(root))
    assert len(packed) == 1


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
    with pytest.raises(DataError, match="no box of a known class in 4 images .9 x unknown category"):
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


# ---- names held out of training


def test_held_out_names_go_with_their_boxes():
    names = ("red star", "starfish", "Purple car", "blue car")
    boxes = torch.arange(16.0).reshape(4, 4)
    sample = Sample(Path("a.jpg"), boxes, ((0,), (1,), (2, 3), (2,)), vocabulary=names, crowd=(1,), absent=(0, 3))
    left = hold_out(sample, ["star", "purple"])
    assert left.vocabulary == ("starfish", "blue car"), "a part of a word is no word"
    assert left.box_phrases == ((0,), (1,)) and left.boxes.tolist() == boxes[1:3].tolist()
    assert left.crowd == (0,) and left.absent == (1,)
    with pytest.raises(DataError, match="has a caption"):
        hold_out(Sample(Path("a.jpg"), torch.empty(0, 4), (), prompt=Prompt.parse("a star")), ["star"])


def test_a_set_without_some_names(root):
    [source] = build_sources(data(root, DatasetConfig(name="instances.json", held_out=("star",))))
    left = tuple(name for name in NAMES if name != "blue star")
    assert all(sample.vocabulary == left for sample in source.samples)
    assert sum(len(sample.boxes) for sample in source.samples) == 7, "two of nine are blue stars"
    with pytest.raises(DataError, match="no box of a known class in 4 images"):
        build_sources(data(root, DatasetConfig(name="instances.json", held_out=NAMES)))
