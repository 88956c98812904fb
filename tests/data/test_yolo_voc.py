"""YOLO and Pascal VOC: read as ultralytics, Roboflow, darknet and LabelImg write them, and written."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from glip.data.catalog import dataset_name, find_set, read_set
from glip.data.check import check
from glip.data.sets import SampleSet
from glip.data.writers import write_voc, write_yolo
from glip.structures import Prompt, Sample

NAMES = "names: {0: dog, 1: cat}\n"
BOX, POLYGON = "0 0.5 0.5 0.2 0.4", "1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6"  # of an image of 100 x 50: pixels
CORNERS = {BOX: [40, 15, 60, 35], POLYGON: [10, 10, 50, 30]}


def lay(folder: Path, **files: str | None) -> Path:
    """Files below a folder, by their path; images where there is no text."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text) if text is not None else Image.new("RGB", (100, 50)).save(file)
    return folder


def names_and_boxes(found: SampleSet) -> list[tuple[str, list[list[float]], list[str]]]:
    labels = [[found.vocabulary[label] for (label,) in sample.box_phrases] for sample in found.samples]
    return [
        (Path(one.image).name, [[round(edge, 3) for edge in box] for box in one.boxes.tolist()], own)
        for one, own in zip(found.samples, labels, strict=True)
    ]


def read(folder: Path, name: str = "", split: str = "", **files: str | None) -> SampleSet:
    return read_set(find_set(str(lay(folder, **files) / name) if name else str(lay(folder, **files)), split=split))


DOG, CAT = ("a.jpg", [CORNERS[BOX]], ["dog"]), ("b.jpg", [CORNERS[POLYGON]], ["cat"])
TWO = {"images/train/a.jpg": None, "labels/train/a.txt": BOX, "images/val/b.jpg": None, "labels/val/b.txt": POLYGON}
ROBOFLOW = {"train/images/a.jpg": None, "train/labels/a.txt": BOX, "valid/images/b.jpg": None}
ROBOFLOW |= {"valid/labels/b.txt": POLYGON}
SPLIT = "train: images/train\nval: images/val\n"


@pytest.mark.parametrize(
    "files",
    [
        TWO | {"data.yaml": f"{SPLIT}{NAMES}nc: 2"},
        TWO | {"data.yaml": "path: .\ntrain: [images/train]\nval: ./images/val/\nnames: [dog, cat]"},
        TWO | {"data.yaml": f"path: ../elsewhere/ds\n{SPLIT}{NAMES}"},
        TWO | {"data.yaml": f"train: /content/ds/images/train\nvalidation: /content/ds/images/val\n{NAMES}"},
        TWO | {"data.yaml": f"train: t.txt\nval: v.txt\n{NAMES}", "t.txt": "./images/train/a.jpg\n", "v.txt": "b.jpg"},
        ROBOFLOW | {"data.yaml": f"train: ../train/images\nval: ../valid/images\n{NAMES}nc: 2"},
    ],
    ids=["folders", "lists", "moved", "absolute", "txt", "roboflow"],
)
def test_data_yaml(files, tmp_path):
    lay(tmp_path, **files)
    for name in ("data.yaml", ""):  # the file, or its folder
        assert names_and_boxes(read(tmp_path, name)) == [DOG, CAT]
        assert names_and_boxes(read(tmp_path, name, "train")) == [DOG]
        assert names_and_boxes(read_set(find_set(f"{tmp_path / name}:val", split="train"))) == [CAT]
    found = read(tmp_path, "data.yaml")
    assert found.format == "yolo" and found.samples[0].size == (100, 50) and not found.skipped
    assert dataset_name(f"{tmp_path}/data.yaml:val") == dataset_name(f"{tmp_path}/data.yaml", None, "val")
    assert dataset_name(f"{tmp_path}/data.yaml:val") == f"{tmp_path.name}_val"


@pytest.mark.parametrize(
    "files",
    [
        {"a.jpg": None, "a.txt": BOX, "b.jpg": None, "b.txt": POLYGON, "classes.txt": "dog\ncat\n"},
        {"images/a.jpg": None, "labels/a.txt": BOX, "images/b.jpg": None, "labels/b.txt": POLYGON}
        | {"classes.txt": "dog\ncat", "notes.json": "{}"},
        {"images/a.jpg": None, "images/a.txt": BOX, "images/b.jpg": None, "images/b.txt": POLYGON}
        | {"obj.names": "dog\ncat\n\n"},
        {"images/a.jpg": None, "labels/a.txt": BOX, "images/b.jpg": None, "labels/b.txt": POLYGON}
        | {"data.yaml": "nc: 2\nnames: [dog, cat]\n"},
    ],
    ids=["labelimg", "label-studio", "darknet", "supervision"],
)
def test_folders_with_a_file_of_names(files, tmp_path):
    assert names_and_boxes(read(tmp_path, **files)) == [DOG, CAT]


def test_keypoints_are_no_polygons(tmp_path):
    files = {"data.yaml": f"train: images\nkpt_shape: [2, 3]\n{NAMES}", "images/a.jpg": None}
    files["labels/a.txt"] = f"{BOX} .1 .1 2 .2 .2 2"
    assert names_and_boxes(read(tmp_path, **files)) == [DOG]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 40 15 60 35", "label outside 0..1: boxes are relative to the image"),
        ("0 nan 0.5 0.2 0.4", "label outside 0..1: boxes are relative to the image"),
        ("2 0.5 0.5 0.2 0.4", "label with a class number that has no name"),
        ("0.5 0.5 0.5 0.2 0.4", "label with a class number that has no name"),
        ("0 0.5 0.5 0.2", "label of wrong length: give 5 numbers, or those of a polygon"),
        ("0 0.5 0.5 0.2 0.4 0.9", "label of wrong length: give 5 numbers, or those of a polygon"),
        ("dog 0.5 0.5 0.2 0.4", "label with something that is no number"),
        ("0 0.5 0.5 0 0.4", "box without area"),
    ],
)
def test_a_bad_label_costs_only_itself(line, reason, tmp_path):
    files = TWO | {"data.yaml": SPLIT + NAMES, "labels/train/a.txt": f"{line}\n\n{BOX}\n"}
    found = read(tmp_path, **files)
    assert names_and_boxes(found) == [DOG, CAT]
    assert found.skipped.counts == {reason: 1} and found.skipped.places[reason] == ["image a.jpg, line 1"]
    assert check(found).problems.counts[reason] == 1


def test_images_without_objects(tmp_path):
    more = {"images/train/empty.jpg": None, "labels/train/empty.txt": "", "images/train/none.jpg": None}
    found = read(tmp_path, **TWO, **more, **{"data.yaml": SPLIT + NAMES})
    assert [len(sample.boxes) for sample in found.samples] == [1, 0, 0, 1]
    reason = "image without a label file: taken as one without objects"
    assert found.skipped.counts == {reason: 1} and found.skipped.places[reason] == ["image none.jpg"]
    report = check(found)
    assert not report.problems and report.remarks.counts == {reason: 1}


def test_images_that_cannot_be_read(tmp_path):
    files = {"data.yaml": f"train: t.txt\n{NAMES}", "t.txt": "images/a.jpg\nimages/gone.jpg\nimages/bad.jpg\n"}
    files |= {"images/a.jpg": None, "labels/a.txt": BOX, "labels/gone.txt": BOX, "images/bad.jpg": "x"}
    report = check(read(tmp_path, **files, **{"labels/bad.txt": BOX}))
    assert report.boxes == 1 and report.problems.counts == {
        "image that cannot be read, to which its labels are relative": 1,
        "image that is not there": 1,
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data.yaml": "train: images/train"}, "data.yaml: it has no class names"),
        ({"data.yaml": "train: images/train\nnc: 2"}, "it has no class names"),
        ({"data.yaml": f"{SPLIT}nc: 3\n{NAMES}"}, "it has 2 names for nc: 3"),
        ({"data.yaml": f"{SPLIT}names: [dog, dog]"}, "category name 'dog' is listed twice"),
        ({"data.yaml": f"{SPLIT}{NAMES}"}, "no images of the split 'test': it has train, val"),
        ({"data.yaml": f"test: ../nowhere/images\n{NAMES}"}, r"nowhere/images. of data.yaml are not there"),
        ({"data.yaml": f"test: images/test\n{NAMES}", "images/test/a.jpg": None}, "none of its 1 images has a label"),
        ({"data.yaml": f"test: labels\n{NAMES}"}, "no sample in it can be used .it lists none"),
        ({"data.yaml": "- 1"}, "it has no class names"),
        ({"data.yaml": "{"}, "not valid YAML"),
    ],
)  # fmt: skip
def test_data_yaml_that_cannot_be_used(files, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path, "data.yaml", "test", **TWO, **files)


# ---- Pascal VOC


SIZE = "<size><width>100</width><height>50</height></size>"


def scene(file: str = "a.jpg", /, size: str = SIZE, **change: str) -> str:
    own = {"name": "dog", "xmin": "41", "ymin": "16", "xmax": "60", "ymax": "35", "difficult": "0"} | change
    box = "".join(f"<{key}>{own[key]}</{key}>" for key in ("xmin", "ymin", "xmax", "ymax"))
    thing = f"<name>{own['name']}</name><truncated>1</truncated><difficult>{own['difficult']}</difficult>"
    return f"<annotation><filename>{file}</filename>{size}<object>{thing}<bndbox>{box}</bndbox></object></annotation>"


SECOND = scene("b.jpg", name="cat", xmin="11", ymin="11", xmax="50.0", ymax="30")
RENAMED = SECOND.replace("b.jpg", "x/old.jpg")
LISTS = {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/val.txt": "b -1\n"}
OFFICIAL = {"Annotations/a.xml": scene(), "Annotations/b.xml": SECOND}
OFFICIAL |= {"JPEGImages/a.jpg": None, "JPEGImages/b.jpg": None}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (OFFICIAL, ""),
        (OFFICIAL, "Annotations"),
        ({"train/a.jpg": None, "train/a.xml": scene(), "train/b.jpg": None, "train/b.xml": SECOND}, "train"),
        ({"annotations/a.xml": scene(), "annotations/b.xml": SECOND, "images/a.jpg": None, "images/b.jpg": None}, ""),
        (OFFICIAL | {"Annotations/a.xml": scene(size=""), "Annotations/b.xml": RENAMED}, ""),
    ],
    ids=["official", "annotations", "roboflow", "lower case", "no size, renamed"],
)  # fmt: skip
def test_voc(files, name, tmp_path):
    found = read(tmp_path, name, **files)
    assert sorted(names_and_boxes(found)) == [DOG, CAT], "the first pixel is 1, the last one included"
    assert found.format == "voc" and found.vocabulary == ("cat", "dog") and not check(found).problems


def test_splits_of_voc_have_all_names(tmp_path):
    found = read(tmp_path, "", "val", **OFFICIAL, **LISTS)
    assert names_and_boxes(found) == [CAT] and found.vocabulary == ("cat", "dog")
    assert names_and_boxes(read_set(find_set(f"{tmp_path}:train", split="val"))) == [DOG]
    with pytest.raises(ValueError, match="no split 'test' in ImageSets/Main: it has train, val"):
        read(tmp_path, "", "test")
    assert read(tmp_path, "", "val", **{"classes.txt": "owl\ndog\ncat\n"}).vocabulary == ("owl", "dog", "cat")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (scene()[:-3], "annotations that are not xml"),  # test_read_flickr30k.py has more
        (scene(xmin="left"), "malformed box"),
        (scene(xmax="41", xmin="60"), "box without area"),
        (scene().replace("bndbox", "polygon"), "annotation without a box"),
        (scene().replace("<name>dog</name>", ""), "unknown category"),
    ],
)
def test_a_bad_file_of_voc_costs_only_itself(text, reason, tmp_path):
    found = read(tmp_path, **OFFICIAL, **{"Annotations/x.xml": text.replace("a.jpg", "b.jpg")})
    assert found.skipped.counts == {reason: 1} and found.skipped.places[reason][0].startswith("file x.xml")
    assert sum(len(sample.boxes) for sample in found.samples) == 2


def test_difficult_objects_are_not_scored_and_zero_is_no_pixel(tmp_path):
    found = read(tmp_path, **OFFICIAL | {"Annotations/a.xml": scene(difficult="1", xmin="0", ymin="1")})
    assert found.samples[0].crowd == (0,) and found.samples[0].boxes.tolist() == [[0, 0, 60, 35]]


# ---- written and read again


def samples(folder: Path) -> SampleSet:
    lay(folder, **{"sub/a.jpg": None, "b.png": None, "c.jpg": None})
    boxes = torch.tensor([[10, 5.25, 50, 25], [3, 4, 5, 6]])
    fields = {"vocabulary": ("dog", 'a <cat>: "é"', "owl"), "size": (100, 50)}
    first = Sample(folder / "sub/a.jpg", boxes, ((0,), (1,)), image_id=1, **fields)
    second = Sample(folder / "b.png", torch.tensor([[90, 40, 120, 50.0]]), ((1,),), image_id=2, crowd=(0,), **fields)
    empty = Sample(folder / "c.jpg", torch.zeros(0, 4), (), image_id=3, **fields)
    return SampleSet([first, second, empty], fields["vocabulary"])


@pytest.mark.parametrize(
    ("write", "places"),
    [
        (write_yolo, ("labels/sub/a.txt", "images/sub/a.jpg")),
        (write_voc, ("Annotations/sub_a.xml", "JPEGImages/sub_a.jpg")),
    ],
)
def test_written_and_read_again(write, places, tmp_path):
    given, out = samples(tmp_path / "in"), tmp_path / "deep" / "out"
    lost = write(given, out, [tmp_path / "in"])
    assert all((out / place).is_file() for place in places) and (out / places[1]).samefile(given.samples[0].image)
    found = read(out)
    assert found.vocabulary == given.vocabulary and len(found.samples) == 3 and not check(found).problems
    by_image = {sample.image.resolve().name: sample for sample in found.samples}
    is_voc = write is write_voc
    torch.testing.assert_close(by_image["a.jpg"].boxes, given.samples[0].boxes, atol=0.5 if is_voc else 1e-4, rtol=0)
    assert by_image["a.jpg"].box_phrases == ((0,), (1,)) and len(by_image["c.jpg"].boxes) == 0
    assert by_image["b.png"].crowd == ((0,) if is_voc else ())
    more = {"fraction of a pixel of a box": 1} if is_voc else {"box of a crowd": 1}
    assert lost.counts == {"part of a box outside the image": 1, **more}
    with pytest.raises(ValueError, match="out' is there already: give a new folder"):
        write(given, out, [tmp_path / "in"])


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_what_a_folder_cannot_say(write, tmp_path):
    given = samples(tmp_path / "in")
    lay(tmp_path / "in", **{"b.jpg": None})
    own = {"boxes": torch.zeros(0, 4), "box_phrases": (), "image_id": 9}
    twin = Sample(**given.samples[0].__dict__ | own | {"image": tmp_path / "in/b.jpg"})
    gone = Sample(**given.samples[0].__dict__ | own | {"image": tmp_path / "in/gone.jpg"})
    lost = write(SampleSet([*given.samples, twin, gone], given.vocabulary), tmp_path / "out", [tmp_path / "in"])
    assert lost.counts["image whose name another one has, but for the ending"] == 1
    assert lost.counts["image that is not there, or cannot be read"] == 1
    prompt = Prompt.from_caption("a dog", ["a dog"])
    said = Sample(**given.samples[0].__dict__ | {"prompt": prompt, "vocabulary": (), "box_phrases": ((0,), (0,))})
    with pytest.raises(ValueError, match="has a caption, which .* cannot say: write --to mdetr, odvg or labels"):
        write(SampleSet([said]), tmp_path / "other", [tmp_path / "in"])
    assert sorted(os.listdir(tmp_path)) == ["in", "out"], "whole or not at all"
