"""Names and paths -> files and formats; every reader behind one door."""

import json

import pytest
from small import write_coco

from glip.data.catalog import data_root, find_set, known_sets, read_set, recognize
from glip.errors import ConfigError


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


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"images": []}', "7"])
def test_other_json_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"not valid JSON|not COCO, LVIS, MDETR, Label Studio or captions json"):
        recognize(tmp_path / "a.json")


def test_lines_under_another_name(tmp_path):
    (tmp_path / "odvg.json").write_text('{"filename": "a", "detection": {}}\n{"filename": "b", "detection": {}}\n')
    assert recognize(tmp_path / "odvg.json")[0] == "odvg"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_hides_no_format(name, tmp_path):
    (tmp_path / "coco.json").write_bytes(b'\xef\xbb\xbf{"images": [], "annotations": [], "categories": []}')
    assert recognize(tmp_path / "coco.json")[0] == "coco"
    line = b'{"image": "a", "phrases": [], "boxes": []}\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + line + line)
    assert recognize(tmp_path / name)[0] == "labels"
