"""An annotation file is parsed once by each command, and a dataset given by path has a name of its own."""

import pytest
from small import write_coco

from glip.cli.main import main
from glip.data import catalog, coco, records
from glip.data.catalog import dataset_name, find_set, read_set
from glip.data.sets import PackedSamples, SkipCounter
from glip.evaluate.columns import read_truth


@pytest.fixture
def parsed(monkeypatch):
    """The files parsed so far."""
    files = []

    def parse(path):
        files.append(path.name)
        return whole(path)

    whole = records.parse_json
    for module in (records, catalog):
        monkeypatch.setattr(module, "parse_json", parse)
    return files


def test_evaluate_parses_once(tmp_path, parsed, capsys):
    file = write_coco(tmp_path)
    (tmp_path / "results.json").write_text(
        '[{"image_id": 0, "category_id": 10, "bbox": [8, 10, 44, 44], "score": 0.9}]'
    )
    arguments = ["evaluate", str(file), "--predictions", str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "AP50" in capsys.readouterr().out
    assert parsed == ["instances.json"]


def test_check_and_training_parse_once(tmp_path, parsed):
    file = write_coco(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(file)])
    assert parsed == ["instances.json"]
    read = read_set(find_set(str(file)))
    assert parsed == ["instances.json"] * 2 and read.annotations is None, "training does not keep the columns"


def test_train_and_evaluate_parse_once(tmp_path, parsed, monkeypatch):
    """The commands themselves: one training step on a file, then its model evaluated on the same file."""
    monkeypatch.chdir(tmp_path)
    file = write_coco(tmp_path)
    small = ("model.vision.depths=[1,1,1,1]", "model.language.layers=1", "model.head.blocks=1", "data.crop=64")
    short = ("data.short_side=[64,64]", "train.steps=1", "train.warmup=0", "train.batch_size=1", "train.output=run")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "tiny", "--data", str(file), "--images", str(tmp_path / "images"), *small, *short])
    assert parsed == ["instances.json"]
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "run/model", str(file), "--images", str(tmp_path / "images"), "--out", "evaluated"])
    assert parsed == ["instances.json"] * 2


def test_ground_truth_of_a_parsed_file_is_that_of_the_file(tmp_path):
    file = write_coco(tmp_path)
    read = read_set(find_set(str(file)), to_score=True)
    first, second = (read_truth(one, SkipCounter()) for one in (read.annotations, coco.parse_coco(file)))
    assert read.format == "coco" and first.images == second.images == (0, 1, 2, 3)
    assert first.boxes.boxes.tolist() == second.boxes.boxes.tolist() and len(first.boxes.areas) == 9
    assert isinstance(read.samples, PackedSamples) and coco.is_federated(read.annotations) is False


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("raccoon/annotations/instances_test.json", "raccoon_test"),
        ("raccoon/instances_test.json", "raccoon_test"),
        ("coco/annotations/lvis_v1_val.json", "coco_lvis_v1_val"),
        ("mine/instances.json", "mine_instances"),
    ],
)
def test_names_of_files_do_not_collide(file, name, tmp_path):
    assert dataset_name(file, tmp_path) == name and dataset_name("coco_val2017") == "coco_val2017"
