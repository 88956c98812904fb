"""Names and paths -> files and formats; every reader behind one door."""

import json

import pytest
from small import write_coco

from glip.cli.main import main
from glip.data import catalog, records
from glip.data.catalog import data_root, dataset_name, find_set, known_sets, read_set, recognize
from glip.data.coco import parse_coco
from glip.data.sets import SkipCounter
from glip.errors import ConfigError, DataError
from glip.evaluate.columns import read_truth


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("GLIP_DATA", "/somewhere")
    assert str(data_root(None)) == "/somewhere" and data_root(tmp_path) == tmp_path
    monkeypatch.delenv("GLIP_DATA")
    assert str(data_root(None)) == "."


def test_the_table_knows_what_people_train_on():
    known = known_sets()
    assert {"coco_train2017", "lvis_val", "objects365_train", "flickr30k_test", "world_train"} <= set(known)
    assert all(entry.format and entry.annotations for entry in known.values())


def test_a_table_in_the_data_root_adds_and_replaces(root):
    (root / "datasets.yaml").write_text("mine: {annotations: a.json}\nsbu: {annotations: b.json}")
    known = known_sets(root)
    assert known["mine"].annotations == "a.json" and known["sbu"].annotations == "b.json" and "coco_val2017" in known


@pytest.mark.parametrize(
    ("text", "message"),
    [("mine: {anotations: a.json}", "did you mean 'annotations'"), ("[1, 2]", "give a map of keys"), ("{", "YAML")],
)
def test_a_broken_table_is_explained(text, message, root):
    (root / "datasets.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        known_sets(root)


def test_a_path_finds_its_images(root, monkeypatch):
    found = find_set(str(root / "instances.json"))
    assert found.images == (str(root / "images"),) and len(read_set(found).samples) == 4
    (root / "annotations").mkdir()
    (root / "instances.json").rename(root / "annotations" / "instances.json")
    assert find_set("annotations/instances.json", root=root).images == (str(root / "images"),)
    monkeypatch.chdir(root)
    assert len(read_set(find_set("annotations/instances.json"), "/elsewhere").samples) == 4
    (root / "images").rename(root / "val2017")
    samples = read_set(find_set("annotations/instances.json")).samples
    assert all(sample.image.parent == root / "val2017" and sample.image.is_file() for sample in samples)


def test_an_unknown_name_is_explained():
    with pytest.raises(ConfigError, match=r"neither in datasets.yaml nor a file \(did you mean 'coco_val2017'\?\)"):
        find_set("coco_val_2017")


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.json", {"images": [], "annotations": [], "categories": []}, "coco"),
        ("a.json", {"images": [{"neg_category_ids": []}], "annotations": [], "categories": []}, "lvis"),
        ("a.json", {"images": [{}], "annotations": [{"tokens_positive": []}], "categories": []}, "mdetr"),
        ("a.json", {"images": [{}], "annotations": [{"caption": "x"}]}, "captions"),
        ("a.json", {"data": [{"phrases": []}]}, "silver"),
        ("a.jsonl", {"filename": "x", "grounding": {}}, "odvg"),
        ("a.jsonl", {"image": "x", "phrases": [], "boxes": []}, "labels"),
        ("a.jsonl", {"image": "x", "caption": "y"}, "captions"),
        ("a.csv", {}, "captions"),
        ("a.tar", {}, "captions"),
        ("A.TAR", {}, "captions"),
        ("a.json", [{"image": "x", "caption": "y"}], "captions"),
        ("a.json", [{"id": 1, "data": {"image": "x"}, "annotations": []}], "label-studio"),
    ],
)
def test_formats_are_told_from_the_content(name, content, format, tmp_path):
    (tmp_path / name).write_text(json.dumps(content) + "\n")
    assert recognize(tmp_path / name)[0] == format


COCO = '{"images": [], "annotations": [], "categories": []}'


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        ("coco/annotations/val.json coco/val2017/0.jpg", "coco", r"annotation file in it \(annotations/val.json\)"),
        ("coco/annotations/val.json", "coco/annotations", r"annotation file in it \(val.json\)"),
        ("r/train/_a.coco.json r/valid/_a.coco.json", "r", r"\(train/_a.coco.json, valid/_a.coco.json\)"),
        ("a/b.json a/c.json a/d.json a/e.json a/f.json", "a", r"b.json, c.json, d.json, e.json, \.\.\.\)"),
        ("y/images/0.jpg y/labels/0.txt", "y", "looks like YOLO without class names: give its data.yaml"),
        ("v/train/0.xml v/train/0.jpg", "v", "looks like xml, .* Pascal VOC: give the folder that holds"),
        ("0.xml", "0.xml", "looks like xml, .* Pascal VOC"),
        ("coco.zip", "coco.zip", "a compressed archive: unpack it"),
        ("a/coco.tar.gz", "a", "a compressed archive: unpack it"),
        ("p/0.jpg p/readme.txt", "p", "images without annotations: .* glip detect"),
        ("0.PNG", "0.PNG", "images without annotations"),
        ("a.parquet", "a.parquet", "give it as jsonl"),
        ("a/readme.md", "a", "a folder without annotations"),
    ],
)
def test_what_is_no_dataset_is_called_what_it_is(files, asked, message, tmp_path):
    for file in files.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(COCO)
    with pytest.raises(DataError, match=message.replace("a: it", f"{asked}: it")):
        recognize(tmp_path / asked)


@pytest.mark.parametrize("name", ["a", "a.json", "a.jsonl", "a.csv", "a.tar"])
def test_what_is_empty_is_called_empty(name, tmp_path):
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: it is empty"):
        recognize(tmp_path / name)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "these are results"),
        ({"version": "5", "shapes": [], "imagePath": "0.jpg"}, r"\(its keys: version, shapes, imagePath\)"),
        ([{"a": 1}], r"\(its first record's keys: a\)"),
        ({"images": [], "annotations": []}, "not COCO json: no list 'categories'"),
        ({"images": [], "categories": []}, "not COCO json: no list 'annotations'"),
    ],
)
def test_json_of_another_kind_is_called_what_it_is(tree, message, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        read_set(find_set(str(tmp_path / "a.json")))


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_results_of_detect_are_no_captions(form, tmp_path):
    line = json.dumps({"image": "a.jpg", "caption": "a dog", "phrases": ["a dog"], "detections": []})
    (tmp_path / f"a.{form}").write_text(f"{line}\n" if form == "jsonl" else f"[{line}]")
    with pytest.raises(DataError, match="results of glip detect: run it again with --format labels"):
        recognize(tmp_path / f"a.{form}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(text, "not valid JSON") for text in (b"{", b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000 + b"9", b"{'a': 1}")]
    + [(text, "not COCO, LVIS, MDETR, Label Studio or captions json") for text in (b"[]", b'{"images": []}', b"7")],
)
def test_other_json_is_refused(content, problem, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        recognize(tmp_path / "a.json")


def test_a_byte_order_mark_hides_no_format(tmp_path):
    (tmp_path / "coco.json").write_bytes(b'\xef\xbb\xbf{"images": [], "annotations": [], "categories": []}')
    assert recognize(tmp_path / "coco.json")[0] == "coco"
    for name in ("a.json", "a.jsonl"):  # lines of json come under both names
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"image": "a", "phrases": [], "boxes": []}\n{"image": "b"}\n')
        assert recognize(tmp_path / name)[0] == "labels"


@pytest.fixture
def parsed(monkeypatch):
    """The files parsed so far."""
    files = []

    def parse(path):
        files.append(path.name)
        return whole(path)

    whole = records.parse_file
    for module in (records, catalog):
        monkeypatch.setattr(module, "parse_file", parse)
    return files


def test_train_and_evaluate_parse_once(tmp_path, parsed, monkeypatch):
    """The commands themselves: one training step on a file, its model evaluated on the same file, and results."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path)
    file = ("instances.json", "--images", "images")
    small = ("model.vision.depths=[1,1,1,1]", "model.language.layers=1", "model.head.blocks=1", "data.crop=64")
    short = ("data.short_side=[64,64]", "train.steps=1", "train.warmup=0", "train.batch_size=1", "train.output=run")
    (tmp_path / "results.json").write_text('[{"image_id": 0, "category_id": 10, "bbox": [1, 1, 4, 4], "score": 0.9}]')
    train, evaluate = ["train", "tiny", "--data", *file, *small, *short], ["evaluate", "run/model", *file]
    for command in (train, evaluate, ["evaluate", *file, "--predictions", "results.json"]):
        parsed.clear()
        with pytest.raises(SystemExit, match="0"):
            main(command)
        assert parsed == ["instances.json"]


def test_ground_truth_of_a_parsed_file_is_that_of_the_file(tmp_path, parsed):
    file = write_coco(tmp_path)
    assert read_set(find_set(str(file))).annotations is None, "training does not keep the columns"
    read = read_set(find_set(str(file)), to_score=True)
    first, second = (read_truth(one, SkipCounter()) for one in (read.annotations, parse_coco(file)))
    assert parsed == ["instances.json"] * 3
    assert read.format == "coco" and first.images == second.images == (0, 1, 2, 3)
    assert first.boxes.boxes.tolist() == second.boxes.boxes.tolist() and len(first.boxes.areas) == 9


def test_ground_truth_with_whole_floats_as_ids_is_that_with_numbers(tmp_path):
    file = write_coco(tmp_path)
    tree = json.loads(
        file.read_text(), object_hook=lambda row: {k: float(v) if "id" in k else v for k, v in row.items()}
    )
    expected, found = (read_truth(one, SkipCounter()) for one in (parse_coco(file), parse_coco(file, tree)))
    assert repr(found) == repr(expected) and "1.0" not in repr(found.images + found.categories)


def test_a_set_with_images_that_cannot_be_told_apart_is_not_scored(tmp_path, capsys):
    file = write_coco(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir()
        (tmp_path / "images" / folder / "0.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(file), "--predictions", "results.json", "--out", str(tmp_path / "out")])
    assert "1 x image name that fits several files (give the folder" in capsys.readouterr().err


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
