"""A folder of images and class names become a dataset: what is asked, what is kept, in every format, once."""

import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alike import assert_alike
from PIL import Image

from glip.cli.main import main
from glip.config import SetConfig
from glip.data.catalog import read_set
from glip.detector import Detector
from glip.errors import ConfigError, DataError, GlipError
from glip.experiment import read_yaml
from glip.files import read_json
from glip.pseudo.label import Labeller
from glip.pseudo.ontology import read_ontology
from glip.pseudo.store import read_rows
from glip.recipes.label_folder import OWN, label_folder
from glip.structures import Detections, Sample

NAMES = {"car": ["a car", "a van"], "star": {"threshold": 0.7}, "cup": None}
GIVEN = {"names": NAMES, "negatives": ["a tree"]}


@pytest.fixture
def photos(pool: Path, tmp_path: Path) -> Path:
    """Four images, one of them in a sub-folder, one that is broken, and a file that is no image."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, path in enumerate(sorted((pool / "images").iterdir())[:4]):
        shutil.copy(path, folder / ("sub" if number > 2 else ".") / path.name)
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(photos, tiny_folder, tmp_path):
    """Label the photos into a folder; the thresholds are so low that the tiny model finds something."""

    def label(out="out", names=GIVEN, config=OWN, **options):
        own = replace(config, per_shard=2, threads=1, max_detections=20)
        return label_folder(tiny_folder, photos, names, tmp_path / out, config=own, device="cpu", **options)

    return label


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return int(caught.value.code or 0)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "report" not in path.name]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}


# ---- what is asked


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("names.yaml", "names:\n  car: [a car, a van]\n  dog:\nnegatives: [a cat]\n", {"car": 2, "dog": 1}),
        ("names.yml", "[car, dog]", {"car": 1, "dog": 1}),
        ("names.yaml", "names: {car: a motor car, dog: {prompts: [a dog], threshold: 0.4}}", {"car": 1, "dog": 1}),
        ("names.json", '{"names": ["negatives", "names"]}', {"negatives": 1, "names": 1}),
        ("classes.txt", "car\n\npolice car\n", {"car": 1, "police car": 1}),
    ],
)
def test_forms_of_names(tmp_path, file, text, names):
    (tmp_path / file).write_text(text)
    found = read_ontology(tmp_path / file)
    assert {name: len(one.prompts) for name, one in found.names.items()} == names
    own = {name: [*one.prompts] for name, one in found.names.items()}
    assert read_ontology({"names": own}).names.keys() == names.keys()


def test_several_prompts_are_one_class_and_negatives_come_last():
    assert read_ontology("car. person").prompt.texts == ("car", "person")
    prompt = read_ontology(GIVEN).prompt
    assert prompt.texts == ("a car", "a van", "star", "cup", "a tree") and prompt.classes == (0, 0, 1, 2, 3)
    assert pickle.loads(pickle.dumps(read_ontology(GIVEN))).prompt == prompt, "Ray sends it to its actors"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[car, dog, car]", r"names\.yaml\.names: 'car' is asked twice: leave one out"),
        ("names: {car: [a], car: [b]}", r"names\.yaml: not valid YAML: key 'car' twice .*line 1, column 19"),
        ("names: {car: [a Car], van: [a  car]}", r"'a car' is asked twice"),
        ("{names: [tree], negatives: [tree]}", r"'tree' is asked twice"),
        ("names: []", r"names: got \{\}: give a map of keys that is not empty"),
        ("", r"names\.yaml\.names: got None: give a map of keys"),
        ("{car: [a car]}", r"names\.yaml: missing key 'names'"),
        ("{names: [a], negative: [b]}", r"negative: no such key \(did you mean 'negatives'\?\)"),
        ("names: {car: {prompt: [a]}}", r"prompt: no such key \(did you mean 'prompts'\?\)"),
        ("names: {car: {prompts: []}}", r"car\.prompts: got \[\]: give a list that is not empty"),
        ("names: {car: ['  ']}", r"'  ' has no letter"),
        ("names: {car: {threshold: 40}}", r"car\.threshold: got 40: give a number, 0 or more and at most 1"),
        ("names: {car: 3}", r"names\.car: got 3: give a map of keys"),
        ("names: [car, no]", r"names\[1\]: got False: give text that is not empty"),
        ("names: {0: car}", r"names\[0\]: got 0: give text that is not empty"),
    ],
)
def test_wrong_names_are_one_sentence(tmp_path, text, message):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_ontology(tmp_path / "names.yaml")
    assert "\n" not in str(caught.value)


def test_a_key_of_a_merged_map_may_be_set_again(tmp_path):
    (tmp_path / "a.yaml").write_text("one: &one {key: 1}\ntwo: {deep: &two {<<: *one, key: 2}}\nthree: {<<: *two}")
    assert read_yaml(tmp_path / "a.yaml") == {"one": {"key": 1}, "two": {"deep": {"key": 2}}, "three": {"key": 2}}


@pytest.mark.parametrize("missing", ["names.yaml", "classes.txt"])
def test_a_file_that_is_not_there_is_no_name(missing):
    with pytest.raises(FileNotFoundError, match=missing):
        read_ontology(missing)


def test_thresholds_are_the_class_s_own_else_stored_else_usual():
    found = read_ontology({"names": {"car": {"threshold": 0.0}, "Dog": ["a dog"], "bus": ["a Bus"], "cup": None}})
    assert found.thresholds(0.5, {"car": 0.9, "dog": 0.3, "a bus": 0.2}) == {
        "car": 0,
        "Dog": 0.3,
        "bus": 0.2,
        "cup": 0.5,
    }


def test_a_better_box_of_a_negative_removes_a_box_of_a_class():
    ontology = read_ontology({"names": ["a", "b"], "negatives": ["x", "y"]})
    here, near, far = [0.0, 0, 100, 100], [0.0, 0, 100, 90], [200.0, 200, 300, 300]
    boxes = torch.tensor([here, near, here, far, far])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0, 3, 1, 1, 2])
    kept = ontology.without_negatives(Detections(boxes, scores, labels, ontology.prompt, (400, 400)), 0.6)
    assert [found.score for found in kept] == pytest.approx([0.9, 0.6]), "one is better, over the other is no negative"
    none = Detections(boxes[:0], scores[:0], labels[:0], ontology.prompt, (400, 400))
    assert len(ontology.without_negatives(none, 0.6)) == 0


# ---- what is kept


def test_labels_are_what_the_detector_finds_over_the_thresholds(run, photos, tiny_folder, tmp_path, monkeypatch):
    drawn = list[Sample]()
    monkeypatch.setattr(
        "glip.pseudo.store.contact_sheet", lambda samples: drawn.extend(samples) or Image.new("RGB", (9, 9))
    )
    report = run(threshold=0.75)
    shown = [(label, score) for one in drawn for (label,), score in zip(one.box_phrases, one.scores, strict=True)]
    assert shown and all(score >= (0.75, 0.7, 0.75)[label] for label, score in shown), "on report.png too"
    assert (report["pairs"], report["kept"], report["skipped"]) == (5, 4, {"image that cannot be read": 1})
    [place] = report["places"]["image that cannot be read"]
    assert place.count("broken.jpg") == 2 and "is not an image that Pillow can read" in place, "the reason too"
    labels = read_set(SetConfig(annotations=str(tmp_path / "out" / "labels.jsonl"), images=(str(photos),)))
    assert labels.vocabulary == ("car", "star", "cup") and labels.format == "labels" and not labels.skipped
    assert [sample.image_id for sample in labels.samples][3].startswith("sub/"), "sub-folders too, names are relative"
    ontology, detector = read_ontology(GIVEN), Detector.from_pretrained(tiny_folder, device="cpu")
    counts = dict.fromkeys(NAMES, 0)
    for sample in labels.samples:
        found = detector(sample.image, ontology.prompt, threshold=0.0, max_detections=20)
        found = ontology.without_negatives(found, detector.config.inference.nms)
        limits = torch.tensor([0.75, 0.7, 0.75])
        found = found.select(found.scores >= limits[found.classes])
        own = Detections(sample.boxes, torch.tensor(sample.scores), found.labels, found.prompt, found.size)
        if len(own) or len(found):
            assert_alike(own, found, scores=2e-4, boxes=0.02)
        assert [label for (label,) in sample.box_phrases] == found.classes.tolist()
        for (label,) in sample.box_phrases:
            counts[labels.vocabulary[label]] += 1
    assert {name: row["boxes"] for name, row in report["classes"].items()} == counts and sum(counts.values()) > 3
    assert report["classes"]["star"]["threshold"] == 0.7 and Image.open(tmp_path / "out" / "review.png").width > 396


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_changes_nothing(run, photos, tmp_path, monkeypatch, capsys):
    run("whole", threshold=0.75, formats=["labels", "coco"])
    once, done = Labeller.__call__, list[str]()

    def dying(self, shard):
        if len(done) == 1:
            done.append("death")
            raise KeyboardInterrupt
        done.append(shard.name)
        return once(self, shard)

    monkeypatch.setattr(Labeller, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run("killed", threshold=0.75, formats=["labels", "coco"])
    assert not (tmp_path / "killed" / "labels.jsonl").exists(), "only what is complete is a dataset"
    report = read_json(tmp_path / "killed" / "report.json")
    assert (report["shards"], report["shards in all"]) == (1, 3), "written though interrupted"
    shutil.copy(photos / "broken.jpg", photos / "a-new-one.jpg")
    run("killed", threshold=0.75, formats=["labels", "coco"])
    assert done == ["images-00000", "death", "images-00001", "images-00002"]
    assert "notice: 1 image added since this run began" in capsys.readouterr().err
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert whole.pop("manifest.json") != killed.pop("manifest.json")
    assert whole.pop("run.json") != killed.pop("run.json") and whole == killed


def test_changed_labels_are_found_by_verify(run, tmp_path, capsys):
    run("named", threshold=0.75, formats=["labels", "coco"])
    coco = tmp_path / "named" / "coco.json"
    run("named", threshold=0.6)
    assert coco.stat().st_mtime >= (tmp_path / "named" / "labels.jsonl").stat().st_mtime, "other formats are renewed"
    coco.write_text(coco.read_text().replace("0.", "1.", 1))
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path / "named")])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "coco.json: changed since it was written" in out
    assert "labels.jsonl: as written" in out


def test_other_thresholds_need_no_second_detection(run, tmp_path, monkeypatch):
    few = run(threshold=0.8)["classes"]["car"]["boxes"]
    monkeypatch.setattr(Labeller, "__init__", lambda *_: pytest.fail("labelled again"))
    assert run(threshold=0.7)["classes"]["car"]["boxes"] > few
    with pytest.raises(DataError, match=r"names.car \[\"a car\", \"a van\"\], not \[\"a bus\"\]"):
        run(names={"names": {**NAMES, "car": "a bus"}, "negatives": ["a tree"]})


def test_many_names_are_asked_in_chunks_and_text_is_encoded_once(run, tmp_path, monkeypatch):
    asked = list[int]()
    encode = Detector.encode_text
    monkeypatch.setattr(Detector, "encode_text", lambda *args: asked.append(1) or encode(*args))
    names = [f"a thing of kind {number} that has a long name" for number in range(60)]
    report = run(names=names, threshold=0.2, config=replace(OWN, per_shard=9))
    assert report["classes"].keys() == set(names) and len(asked) == 2, "once to check them, once to label"


def test_every_format_is_read_back(run, photos, tmp_path):
    from pycocotools.coco import COCO

    report = run(threshold=0.2, formats=["labels", "coco", "yolo", "label-studio"])
    total = sum(row["boxes"] for row in report["classes"].values())
    coco = COCO(tmp_path / "out" / "coco.json")
    assert len(coco.anns) == total and [one["name"] for one in coco.cats.values()] == [*NAMES] and len(coco.imgs) == 4
    for name in ("labels.jsonl", "coco.json", "yolo", "tasks.json"):
        found = read_set(SetConfig(annotations=str(tmp_path / "out" / name), images=(str(photos),)))
        assert sum(len(sample.boxes) for sample in found.samples) == total and len(found.samples) == 4, name
    before = files_of(tmp_path / "out")
    run(threshold=0.2, formats=["labels", "coco", "yolo", "label-studio"])
    assert files_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match=r"formats\[0\]: got 'cocos' \(did you mean 'coco'\?\)"):
        run(formats=["cocos"])


def test_parquet_has_the_same_rows_and_select_keeps_the_names(run, photos, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    run("lines", threshold=0.2)
    run("columns", threshold=0.2, config=replace(OWN, form="parquet"))
    assert list(read_rows(tmp_path / "columns")) == list(read_rows(tmp_path / "lines"))
    out = tmp_path / "selected.jsonl"
    assert glip("select", tmp_path / "columns", "--out", out, "--min-score=0.8", "--min-best-score=0") == 0
    assert read_set(SetConfig(annotations=str(out), images=(str(photos),))).vocabulary == ("car", "star", "cup")
    assert out.read_text().count('"names"') == 1


# ---- on the command line


@pytest.mark.slow
def test_a_folder_labelled_on_the_command_line_is_a_sound_dataset(photos, tmp_path, capsys):
    for path in (photos / "sub").iterdir():
        path.unlink()
    (photos / "notes.txt").touch()
    out = str(tmp_path / "out")
    flags = ["--threshold", "0.1", "--device", "cpu", "--format", "labels", "--format", "yolo"]
    assert (
        glip("label", "glip-nano", photos, "--names", "a car. a cup. a fish. a tree. a star", "--out", out, *flags) == 0
    )
    said, notice = capsys.readouterr()
    assert f"notice: '{photos}': 1 other file (notes.txt) skipped\n" in notice
    assert re.search(r": 3 of 4 images, \d+ candidates in 3 images", said)
    assert re.search(r"\| a car \| 0\.100 \| \d+ \| \d+ \| 0\.\d{3} \|", said)
    assert f"written: {out}/labels.jsonl, {out}/yolo" in said and "3 of 4 images labelled; what was skipped" in said
    for name in ("labels.jsonl", "yolo"):
        assert glip("data", "check", f"{out}/{name}", "--images", photos) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--names", "a", "--min-words", "0"], "--min-words is for captions: leave it out with --names"),
        (["--names", "a", "--images", "x"], "--images is for captions: leave it out with --names"),
        (["--format", "coco"], "--format needs --names"),
        (["--names", "a", "--threshold", "7"], "--threshold: got 7.0: give a number, 0 or more and at most 1"),
        (["--names", ". ."], "names: got {}"),
        (["--names", "\U0001f511"], "the model cannot read"),
    ],
)
def test_wrong_options_are_one_sentence(photos, tmp_path, capsys, flags, message):
    assert glip("label", "glip-nano", photos, "--out", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "folder", "message"),
    [
        ("a car", "photos/notes.txt", "is no folder: class names label the images of a folder"),
        ("a car", "empty", "contains no image"),
        ("a car", "photos/dead", "contains no image"),
        ("word " * 300, "photos", "tokens"),
    ],
)
def test_what_cannot_be_labelled_is_one_sentence(photos, tiny_folder, tmp_path, names, folder, message):
    for name in ("empty", "photos/dead"):
        (tmp_path / name).mkdir()
    with pytest.raises(GlipError, match=message):
        label_folder(tiny_folder, tmp_path / folder, names, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
