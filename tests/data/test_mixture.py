"""From a config to sources: names of the table and plain paths, shares, replay, and sets that teach nothing refused."""

import json

import pytest
from small import NAMES, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data.mixture import build_sources, read_training_set, resolve, with_replay
from glip.errors import ConfigError

DRAWN = DatasetConfig(name="drawn", annotations="instances.json", images=("images",), weight=3.0)


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def data(root, *sets: DatasetConfig, **changes) -> DataConfig:
    return DataConfig(root=str(root), train=sets or (DRAWN,), **changes)


def sources(config: DataConfig):
    return build_sources(config, max_tokens=256, max_size=128)


def change(root, **lists) -> None:
    tree = json.loads((root / "instances.json").read_text())
    (root / "instances.json").write_text(json.dumps({**tree, **lists}))


def test_a_set_is_a_name_a_path_or_written_out(root):
    (root / "datasets.yaml").write_text("mine: {format: coco, annotations: instances.json, images: [images]}")
    rows = (DRAWN, DatasetConfig(name="mine"), DatasetConfig(name="instances.json"))
    made = sources(data(root, *rows))
    assert [source.name for source in made] == ["drawn", "mine", "instances.json"]
    assert [len(source.samples) for source in made] == [4, 4, 4]


def test_an_unknown_set_is_explained(root):
    with pytest.raises(ConfigError, match=r"set 'sbu_lables' is neither in .* nor a file \(did you mean 'sbu_labels'"):
        sources(data(root, DatasetConfig(name="sbu_lables")))


def test_prompts_of_the_table_are_kept(root):
    table = "mine: {format: coco, annotations: instances.json, images: [images], prompts: p.yaml}"
    (root / "datasets.yaml").write_text(table)
    (root / "p.yaml").write_text('"red circle": "a [red circle] on the ground"')
    config = data(root, DatasetConfig(name="mine"))
    assert resolve(config.train[0], config).prompts == "p.yaml"
    assert set(sources(config)[0].phrasing.prompts) == {"red circle"}


def test_prompts_that_name_a_side_forbid_flips(root):
    (root / "p.yaml").write_text('"red circle": "the left [circle]"')
    prompted = DatasetConfig(name="drawn", annotations="instances.json", images=("images",), prompts="p.yaml", flip=0.5)
    assert sources(data(root, prompted))[0].augmentation.flip == 0.0
    assert sources(data(root))[0].augmentation.flip == 0.5


def test_foreign_names_and_left_out_reach_the_sources(root):
    tree = json.loads((root / "instances.json").read_text())
    change(root, annotations=[*tree["annotations"], {"image_id": 0, "category_id": 999, "bbox": [0, 0, 5, 5]}])
    tree["categories"] = [{"id": 10, "name": "red bus"}, {"id": 20, "name": "zebra"}]
    (root / "other.json").write_text(json.dumps(tree))
    (root / "images" / "3.png").unlink()
    other = DatasetConfig(name="other", annotations="other.json", images=("images",))
    first, second = sources(data(root, DRAWN, other))
    assert first.phrasing.foreign == ("zebra",) and set(second.phrasing.foreign) == set(NAMES) - {"red circle"}
    assert sum(first.skipped.counts.values()) == 2 and len(first.samples) == 3
    assert any("3.png" in place for places in first.skipped.places.values() for place in places)


def test_the_first_samples_only(root):
    (source,) = sources(data(root, DatasetConfig(name="instances.json", first=2)))
    assert len(source.samples) == 2


def test_replay_takes_its_share(root):
    old = "data: {short_side: [50, 60], train: [{name: other, weight: 5.0}, {name: drawn, weight: 9.0}]}"
    (root / "old.yaml").write_text(old)
    rows = with_replay(data(root, replay=0.25, replay_from=str(root / "old.yaml")))
    assert [(row.name, row.weight) for row in rows] == [("drawn", 0.75), ("other", 0.25)], "a set of both is one's own"
    assert rows[1].short_side == (50, 60), "remembered as it was learned"


@pytest.mark.parametrize(("share", "config"), [(1.5, "pretrain/nano"), (0.3, "")])
def test_replay_of_nothing(share, config, root):
    with pytest.raises(ConfigError, match="data.replay: .*give a share"):
        with_replay(data(root, replay=share, replay_from=config))


def test_a_set_listed_twice(root):
    with pytest.raises(ValueError, match="'drawn' twice"):
        sources(data(root, DRAWN, DRAWN))


def test_no_image_there(root):
    for file in (root / "images").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"none of its 4 images is there, such as '.*0\.png'"):
        sources(data(root))


def test_ids_that_match_nothing_are_an_error(root):
    tree = json.loads((root / "instances.json").read_text())
    change(root, categories=[{**row, "id": 1000 + row["id"]} for row in tree["categories"]])
    with pytest.raises(ValueError, match="not one box of a known class in 4 images .*match none of its categories"):
        sources(data(root))


def test_an_empty_set(root):
    change(root, images=[], annotations=[])
    with pytest.raises(ValueError, match="no sample in it can be used"):
        sources(data(root))


def test_captions_without_boxes_are_not_trained_on(root):
    rows = {"annotations": [{"image_id": 0, "id": 1, "caption": "a red circle"}]}
    change(root, **rows)
    with pytest.raises(ValueError, match="captions without boxes: label them first"):
        read_training_set(
            DatasetConfig(name="c", format="captions", annotations="instances.json", images=("images",)), data(root)
        )


def test_fields_given_beside_a_name_win(root):
    (root / "t.jsonl").write_text("{}")
    assert resolve(DatasetConfig(name="t.jsonl", names="map.json"), data(root)).names == "map.json"


def test_many_missing_images_stop(root):
    tree = json.loads((root / "instances.json").read_text())
    lost = [{**tree["images"][0], "id": 100 + number, "file_name": f"lost{number}.png"} for number in range(20)]
    change(root, images=[*tree["images"], *lost])
    with pytest.raises(ValueError, match=r"20 of 24 images are not there, such as '.*lost0.png'.*data.max_broken"):
        sources(data(root))
    assert len(sources(data(root, max_broken=0.9))[0].samples) == 4


def test_replay_of_what_is_trained_anyway(root):
    (root / "old.yaml").write_text("data: {train: [{name: drawn}]}")
    with pytest.raises(ConfigError, match="all its sets are in data.train already"):
        with_replay(data(root, replay=0.5, replay_from=str(root / "old.yaml")))
