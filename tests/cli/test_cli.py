"""glip detect, convert and config: what they print and write; one line and exit code 2 for every user's mistake."""

import csv
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file
from small import RELEASED, release_state

import glip
from glip.cli.main import main
from glip.data.image import load_image
from glip.data.labels import read_labels
from glip.errors import ConfigError, ImageError
from glip.model.weights import load_pretrained
from glip.recipes.detect_config import DetectConfig
from glip.recipes.detect_files import find_images
from glip.recipes.tiles import detect_in_tiles
from glip.signals import Interrupted
from glip.structures import Detections, Prompt
from glip.train.start import load_config

CAPTION = "a man in a red shirt rides a brown horse"
LINES = "out/results/detections.jsonl"
TABLE_AND_LINES = ("--format", "table", "--format", "jsonl")
BLOCKED = """
import sys
from importlib.machinery import ModuleSpec

class Broken:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in ("lvis", "cv2", "spacy") else None

    def create_module(self, spec):
        raise ImportError(f"{spec.name}: libGL.so.1 is not there")

sys.meta_path.insert(0, Broken())
import glip
from glip.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def shots(tmp_path, image):
    """A folder with three images and a text."""
    (tmp_path / "shots").mkdir()
    for name in ("b.png", "a.jpg", "c.bmp"):
        image.save(tmp_path / "shots" / name)
    (tmp_path / "shots" / "notes.txt").write_text("no image")
    return tmp_path / "shots"


@pytest.fixture
def detect(command_line, tiny_folder, shots):
    return lambda *arguments: command_line("detect", *arguments, "--model", tiny_folder, "--device", "cpu")


@pytest.fixture
def refused(command_line):
    """Run a command that must end with one line and exit code 2; gives the line."""

    def run(*arguments: object) -> str:
        code, out, err = command_line(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and err.endswith("\n"), err
        return err.strip()

    return run


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_detections_of_an_image(detect, tmp_path):
    code, out, err = detect("shots/a.jpg", "a red bus. dog", "--threshold", 0.7)  # few, so that scores have room
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("shots/a.jpg: ") and int(lines[0].split()[1]) == len(lines) - 4 > 0
    assert lines[1].split() == ["phrase", "score", "box", "(x1", "y1", "x2", "y2)"]
    assert all(line.startswith(("  a red bus   0.", "  dog         0.")) for line in lines[2:-2])
    assert lines[-2] == "  drawn in out/a.jpg" and lines[-1] == f"1 image, {len(lines) - 4} detections, drawn in out"
    assert names(tmp_path / "out") == ["a.jpg"]
    drawn = (tmp_path / "out" / "a.jpg").read_bytes()
    detect("shots/a.jpg", "a red bus. dog", "--threshold", 0.7, "--no-scores")
    assert (tmp_path / "out" / "a.jpg").read_bytes() != drawn
    code, out, _ = detect("shots/a.jpg", "man. red shirt", "--threshold", 1)
    assert code == 0 and "0 found" in out and out.endswith("1 image, 0 detections, drawn in out\n")
    read, advice = out.splitlines()[1:3]
    assert read == "  nothing found; the prompt was read as 2 names: man, red shirt" and "lower --threshold" in advice
    _, out, _ = detect("shots/a.jpg", "a small, red car", "--threshold", 1)
    assert "read as ONE name, 'a small, red car'; put '. ' between names\n" in out
    _, out, _ = detect("shots/a.jpg", "--caption", CAPTION, "--threshold", 1)
    assert "  not found: " in out and "red shirt" in out, "phrases of a sentence"


def test_tiles(detect, tiny_detector):
    """Those of ``detect_in_tiles``, which other tests are about."""
    _, out, _ = detect("shots/b.png", "dog", "--tile", 64, "--overlap", 0.1, "--out", "-")
    (wanted,) = detect_in_tiles(tiny_detector, ["shots/b.png"], Prompt.parse("dog"), tile=64, overlap=0.1)
    assert [one["score"] for one in json.loads(out)["detections"]] == [round(one.score, 4) for one in wanted]
    assert wanted != tiny_detector("shots/b.png", "dog")


def test_folders_and_patterns(detect, shots, tmp_path, image):
    code, out, _ = detect("shots", "dog", "--out", "drawn/deep")
    found = [line.split(":")[0] for line in out.splitlines() if line.startswith("shots")]
    assert code == 0 and found == ["shots/a.jpg", "shots/b.png", "shots/c.bmp"]
    assert names(tmp_path / "drawn" / "deep") == ["a.jpg", "b.png", "c.png"]
    (shots / "sub").mkdir()
    assert len(detect("shots/*.[jp]*", "shots/a.jpg", "dog", "--out", "-")[1].splitlines()) == 2
    image.resize((40, 30)).save(shots / "d.png")
    code, out, err = detect("shots", "dog", "--batch-size", 3, *TABLE_AND_LINES, "cat; bird")
    records = map(json.loads, (tmp_path / LINES).read_text().splitlines())
    found = Counter(item["phrase"] for record in records for item in record["detections"])
    assert code == 0 and "4/4" not in err and len(names(tmp_path / "out")) == 4 + 1 and found.total() > 0
    *table, last = out.splitlines()
    assert table[0].split() == ["phrase", "images", "detections", "best", "score"]
    assert {row.split()[0]: int(row.split()[2]) for row in table[1:4]} == found
    assert last == f"4 images, {found.total()} detections, drawn in out, {LINES}"
    code, out, _ = detect("shots", "dog", "--threshold", 1)
    assert "read as ONE name, 'dog'" in out and out.endswith("4 images, 0 detections, drawn in out\n")


@pytest.mark.parametrize("recursive", [False, True])
def test_a_link_to_itself_costs_only_itself(recursive, image, tmp_path):
    image.save(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = find_images([str(tmp_path)], DetectConfig(recursive=recursive))
    assert [path.name for path in found] == ["a.png", "loop.png"]
    with pytest.raises(ImageError, match="loop.png' cannot be read"):
        load_image(found[1])


def test_what_a_folder_holds_besides_is_told(shots, image, capsys):
    for name in ("d.avif", "e.JFIF", "f.jp2"):
        image.save(shots / name, {"d.avif": "AVIF", "e.JFIF": "JPEG", "f.jp2": "JPEG2000"}[name])
    (shots / "._a.jpg").write_bytes(b"of a Mac")
    for name in ("deep/deeper/x.png", "empty/y.txt", "other/z.heic", "g.csv", "h.eps", "i"):
        (shots / name).parent.mkdir(exist_ok=True, parents=True)
        (shots / name).touch()
    everything = ["a.jpg", "b.png", "c.bmp", "d.avif", "e.JFIF", "f.jp2"]
    assert [path.name for path in find_images([str(shots)], DetectConfig())] == everything
    line = f"notice: '{shots}': 4 other files (g.csv, h.eps, i, ...) skipped; 2 sub-folders (deep, other) with images"
    assert capsys.readouterr().err == f"{line} not searched: --recursive searches all\n"
    assert {path.name for path in find_images([f"{shots}/**"], DetectConfig())} == {*everything, "x.png", "z.heic"}
    assert "5 other files (" in capsys.readouterr().err
    named = find_images([f"{shots}/*.csv", f"{shots}/h.eps"], DetectConfig())
    assert [path.name for path in named] == ["g.csv", "h.eps"]
    with pytest.raises(ConfigError, match=r"no image: 1 sub-folder \(deeper\) with images not searched: --recursive"):
        find_images([str(shots / "deep")], DetectConfig())
    with pytest.raises(ConfigError, match=r"no image: 1 other file \(y.txt\) skipped; give image files, such as .jpg"):
        find_images([str(shots / "empty")], DetectConfig())


def test_json_lines(detect, tmp_path):
    code, out, _ = detect("shots/b.png", "shots/a.jpg", "a red bus. café", "--out", "deep", "--format", "jsonl")
    assert code == 0 and out.count("\n") == 1 and out.endswith(", drawn in deep, deep/results/detections.jsonl\n")
    lines = (tmp_path / "deep/results/detections.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["image"], second["image"]) == ("shots/b.png", "shots/a.jpg")
    assert (first["width"], first["height"]) == (150, 110)
    assert first["caption"] == "a red bus. café" and first["phrases"] == ["a red bus", "café"]
    found = first["detections"]
    assert len(found) > 10 and found[0]["score"] >= found[-1]["score"]
    for item in found:
        assert set(item) == {"box", "score", "label", "phrase", "spans"}
        assert item["phrase"] == first["phrases"][item["label"]]
        assert item["spans"] == [[[0, 9]], [[11, 15]]][item["label"]]
        assert 0 <= item["box"][0] <= item["box"][2] <= 150 and 0 <= item["box"][1] <= item["box"][3] <= 110


def test_every_format_is_read_back(detect, command_line, shots, tmp_path):
    """By pycocotools, csv, YOLO's rules, glip's own reader and Label Studio's."""
    (shots / "sub").mkdir()
    (shots / "b.png").rename(shots / "sub" / "a.png")
    formats = [word for form in ("json", "csv", "coco", "yolo", "labels", "jsonl") for word in ("--format", form)]
    limits = ("--max-detections", 5, "--nms", 0.5, "--image-size", 96, "--crops", "cut")
    code, out, err = detect("shots", "a red bus", "café", "--recursive", "--no-draw", *formats, *limits)
    assert code == 0 and names(tmp_path / "out") == ["results"]
    assert out.startswith("3 images, 15 detections, out/results/detections.jsonl, out/results/detections.json, ")
    assert "/coco.json, out/results/yolo, out/results/labels.jsonl, cut\nimage folder of coco.json and " in out
    assert out.endswith("and labels.jsonl (--images): shots\n")
    place = tmp_path / "out" / "results"
    records = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert json.loads((place / "detections.json").read_text()) == records
    assert [record["image"] for record in records] == ["shots/a.jpg", "shots/c.bmp", "shots/sub/a.png"]
    flat = [(record["image"], one) for record in records for one in record["detections"]]
    rows = list(csv.DictReader((place / "detections.csv").open(encoding="utf-8")))
    assert [(row["image"], row["phrase"], float(row["score"])) for row in rows] == [
        (image, one["phrase"], one["score"]) for image, one in flat
    ]
    coco = COCO(place / "coco.json")
    assert [row["file_name"] for row in coco.dataset["images"]] == ["a.jpg", "c.bmp", "sub/a.png"]
    assert [row["name"] for row in coco.dataset["categories"]] == ["a red bus", "café"]
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == len(coco.anns) == len(flat)
    for row, (_, one) in zip(coco.dataset["annotations"], flat, strict=True):
        assert row["category_id"] == one["label"] + 1 and row["bbox"][:2] == pytest.approx(one["box"][:2], abs=0.01)
    assert (place / "yolo/classes.txt").read_text(encoding="utf-8") == "a red bus\ncafé\n"
    written = ["a-2.png", "a-2.txt", "a.jpg", "a.txt", "c.bmp", "c.txt", "classes.txt", "data.yaml", "manifest.json"]
    assert names(place / "yolo") == written
    assert all((place / f"yolo/{name}.txt").read_text().count("\n") == 5 for name in ("a", "a-2", "c"))
    assert {path.parent.name for path in (tmp_path / "cut").glob("*/*.png")} <= {"a_red_bus", "café"}
    assert len(list((tmp_path / "cut").glob("*/*.png"))) == len(flat)
    found = read_labels(place / "labels.jsonl", [shots])
    assert not found.skipped and found.vocabulary == ("a red bus", "café")
    assert [sample.image for sample in found.samples] == [shots / "a.jpg", shots / "c.bmp", shots / "sub" / "a.png"]
    assert sum(len(sample.scores) for sample in found.samples) == len(flat)
    for file in ("labels.jsonl", "coco.json", "yolo", "yolo/data.yaml"):
        code, out, err = command_line("data", "check", place / file, "--images", "shots")
        assert err == "" and "3 samples" in out and "is not there" not in out
    to = ("--images", "shots", "--to", "label-studio", "tasks.json")
    assert command_line("data", "convert", place / "labels.jsonl", *to)[0] == 0
    code, _, err = detect("shots/a.jpg", "dog", "--format", "yolo")
    assert code == 2 and 'results/yolo\' holds results made with classes ["a red bus", "café"], not ["dog"]' in err


def test_a_sentence_becomes_a_grounding_set(detect, shots, tmp_path):
    code, *_ = detect("shots", "--caption", CAPTION, "--format", "labels", "--no-draw")
    found = read_labels(tmp_path / "out/results/labels.jsonl", [shots])
    assert code == 0 and not found.skipped and {sample.prompt.caption for sample in found.samples} == {CAPTION}
    assert all(sample.scores and set(sample.box_phrases) <= {(0,), (1,), (2,)} for sample in found.samples)


def test_nothing_found_is_written_too(detect, shots, tmp_path):
    formats = [word for form in ("json", "csv", "coco", "yolo", "labels") for word in ("--format", form)]
    assert detect("shots/a.jpg", "none.jpg", "dog", "--threshold", 1, *formats)[0] == 2
    place = tmp_path / "out" / "results"
    assert [one["detections"] for one in json.loads((place / "detections.json").read_text())] == [[]]
    assert len(COCO(place / "coco.json").imgs) == 1 and (place / "yolo/a.txt").read_text() == ""
    assert len(read_labels(place / "labels.jsonl", [shots]).samples) == 1
    assert (place / "detections.csv").read_text().count("\n") == 1


@pytest.mark.parametrize(("threshold", "advised"), [(1, True), (0, False)])
def test_no_threshold_below_the_least_is_advised(detect, shots, image, monkeypatch, threshold, advised):
    monkeypatch.setattr("glip.detector.Detector.stream", lambda self, images, prompt, **_: map(nothing, images))

    def nothing(image):
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), Prompt.parse("dog"), image.size)

    code, out, _ = detect(shots / "a.jpg", "dog", "--threshold", threshold, "--format", "coco", "--format", "table")
    assert code == 0 and "or try other words" in out and ("lower --threshold" in out) is advised
    assert out.endswith(f"image folder of coco.json (--images): {shots}\n"), "absolute, as it was given"


def test_sub_folders_without_what_was_drawn(shots, image, tmp_path):
    (shots / "deep").mkdir()
    (shots / "out").mkdir()
    image.save(shots / "deep" / "d.png")
    image.save(shots / "out" / "a.png")
    config = DetectConfig(recursive=True, out=str(shots / "out"))
    assert [path.name for path in find_images([str(shots)], config)] == ["a.jpg", "b.png", "c.bmp", "d.png"]
    assert [path.name for path in find_images([config.out], config)] == ["a.png"]


def test_lines_on_standard_output_draw_nothing(detect, tmp_path):
    code, out, err = detect("--out", "-", "shots/a.jpg", "shots/b.png", "--batch-size", 1, "--quiet", "dog")
    assert code == 0 and err == "" and names(tmp_path) == ["shots"], "options may stand anywhere"
    assert [json.loads(line)["phrases"] for line in out.splitlines()] == [["dog"]] * 2


def test_the_noun_phrases_of_a_sentence_are_detected(detect):
    code, out, err = detect("shots/a.jpg", "--caption", CAPTION, "--out", "-", "--format", "jsonl")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert found["caption"] == CAPTION and found["detections"]
    assert [phrase.removeprefix("a ") for phrase in found["phrases"]] == ["man", "red shirt", "brown horse"]
    for item in found["detections"]:
        [(start, end)] = item["spans"]
        assert CAPTION[start:end] == item["phrase"] == found["phrases"][item["label"]]


def test_drawn_images_never_replace_others(detect, shots, tmp_path, image):
    (tmp_path / "more").mkdir()
    image.save(tmp_path / "more" / "a.jpg")
    image.save(tmp_path / "more" / "a.png")
    code, out, _ = detect("shots/a.jpg", "more/a.jpg", "more/a.png", "dog")
    assert code == 0 and names(tmp_path / "out") == ["a-2.jpg", "a.jpg", "a.png"]
    before = (shots / "a.jpg").read_bytes()
    code, out, _ = detect("shots/a.jpg", "dog", "--out", "shots")
    assert code == 0 and "drawn in shots/a-2.jpg" in out and (shots / "a.jpg").read_bytes() == before


def test_broken_and_missing_images(detect, shots, tmp_path):
    (shots / "broken.png").write_bytes((shots / "b.png").read_bytes()[:200])
    code, out, err = detect("shots/none.jpg", "shots/a.jpg", "shots/broken.png", "dog")
    first, second, last = err.splitlines()
    assert code == 2 and first == "glip detect: image 'shots/none.jpg' is not there: check the path"
    assert second.startswith("glip detect: image 'shots/broken.png' ") and last == "2 of 3 images could not be read"
    assert out.startswith("shots/a.jpg: ") and names(tmp_path / "out") == ["a.jpg"]
    code, out, err = detect("x.jpg", "--caption", CAPTION, "--format", "jsonl", "--quiet")
    assert code == 2 and out == "" and err.splitlines()[-1] == "1 of 1 images could not be read"
    assert (tmp_path / LINES).read_text() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dog", "--threshold", "1.2"], "--threshold: got 1.2: give a number, 0 or more and at most 1"),
        (["dog", "--threshold", "high"], "argument --threshold: invalid float value: 'high' (see glip detect --help)"),
        (["dog", "--batch-size", "0"], "--batch-size: got 0: give a whole number, 1 or more"),
        (["dog", "--device", "cuda:77"], "device 'cuda:77' is not here: give one of cpu"),
        (["dog", "--model", "shots"], "'shots'"),
        (["dog", "--out", "shots/a.jpg"], "File exists: 'shots/a.jpg'"),
        (["dog", "--out", "-", "--format", "csv"], "--out '-' prints JSON lines and --format is csv: give --out a"),
        (["dog", "--format", "cocoo"], "argument --format: invalid choice: 'cocoo' (did you mean 'coco'?)"),
        (["dog", "--json", "x.json"], "unknown option --json (did you mean --format?)"),
        (["dog", "--imgsz", "640"], "unknown option --imgsz (did you mean --image-size?)"),
        (["dog", "--image-size", "3"], "--image-size: got 3: give a whole number, 32 or more and at most 8192"),
        (["dog", "--tile", "64", "--overlap", "0.9"], "--overlap: got 0.9: give a number, 0 or more and at most 0.8"),
        (["dog", "--colour", "red"], "unknown option --colour (see glip detect --help)"),
        (["dog", "--conf", ".3"], "unknown option --conf (did you mean --threshold?)"),
        (["dog", "--treshold", ".3"], "(did you mean --threshold?)"),
        (["--source", "x"], "unknown option --source: given without an option are IMAGE... PROMPT..."),
        (["shots/b.png"], "no prompt: give words after the images"),
        (["dog", "shots/b.png"], "file 'shots/b.png' comes after 'dog', which is none: give all images, then"),
        (["🐈"], "the model cannot read '🐈': write it in English"),
        (["--task", "none.safetensors"], "'none.safetensors'"),
        (["dog", "--task", "none.safetensors"], "'dog' is no image, and --task says what to find: leave one of them"),
        (["dog", "--caption", CAPTION], "'dog' is no image, and --caption says what to find: leave one of them out"),
        (["dog", "--model", "none"], "model 'none' is not known, and no such path exists: give one of glip-nano, "),
        *(([prompt], "glip detect: ") for prompt in ("", " . ", "cat. \u200b. dog", "word " * 300, "cat \udcff")),
        (["--caption", CAPTION, "--task", "x.safetensors"], "not allowed with argument"),
        (["--caption", "a red bus and " * 3000 + "a dog"], "256"),
        (["--caption", "a cat \udcff"], "UTF-8"),
    ],
)
def test_wrong_options_are_one_line(refused, shots, tiny_folder, options, words):
    model = [] if "--model" in options else ["--model", tiny_folder]
    line = refused("detect", "shots/a.jpg", *options, *model)
    assert line.startswith("glip") and words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["detect", "empty", "dog"], "'empty' contains no image: give image files, such as .jpg or .png"),
        (["detect"], "the following arguments are required: IMAGE... PROMPT... (see glip detect --help)"),
        (["detct", "a.jpg"], "invalid choice: 'detct' (did you mean 'detect'?)"),
        (["train", "--lr", "1", "x"], "unknown option --lr: settings are given as key=value, such as train.lr=1e-4"),
        (["convert", "wrong.pth", "again"], "wrong.pth"),
        (["config", "glip_tt"], "(did you mean 'glip_t'?)"),
        (["config", "tiny", "model.visoin.kind=swin"], "model.visoin: no such key (did you mean 'vision'?)"),
        (["config", "tiny", "train.steps"], "override 'train.steps': give key.path=value"),
        (["config", "tiny", ".steps=5"], "override '.steps=5': give key.path=value"),
        (["train", "broken.yaml"], "broken.yaml: not valid YAML"),
    ],
)
def test_wrong_commands_are_one_line(refused, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.pth").write_text("hello")
    (tmp_path / "broken.yaml").write_text("model: {vision: [\n- x")
    line = refused(*arguments)
    assert line.startswith(("glip: ", f"glip {arguments[0]}: ")) and words in line
    assert not (tmp_path / "again").exists()


def test_printed_config_is_a_config(command_line, tmp_path):
    code, out, err = command_line("config", "pretrain/nano", "train.steps=900", "model.name=mine")
    assert code == 0 and err == "" and "name: mine" in out and "  steps: 900" in out
    (tmp_path / "mine.yaml").write_text(out)
    assert load_config("mine.yaml") == load_config("pretrain/nano", ["train.steps=900", "model.name=mine"])


@pytest.mark.parametrize("half", [False, True])
def test_convert(half, tmp_path, command_line):
    config = replace(RELEASED, language=replace(RELEASED.language, vocabulary=300))
    torch.save({"model": {f"module.{key}": value for key, value in release_state(config).items()}}, "glip.pth")
    flags = ["--half"] if half else []
    code, out, _ = command_line("convert", "glip.pth", "first", *flags)
    assert code == 0 and out.startswith("first: ") and "M parameters" in out
    assert names(tmp_path / "first") == [".lock", "config.json", "model.safetensors", "run.json", "vocab.txt"]
    stored = load_file(tmp_path / "first" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16 if half else torch.float32}
    before, after = (load_pretrained(source).model.state_dict() for source in ("glip.pth", "first"))
    rounded = {key: value.half().float() if half else value for key, value in before.items()}
    assert all(torch.equal(value, after[key]) for key, value in rounded.items())
    assert command_line("convert", "first", "second", *flags)[0] == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second, "converting again changes nothing"


def test_files_that_cannot_be_written_are_one_line(refused, shots, tiny_folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/a.jpg")

    monkeypatch.setattr("glip.recipes.result_files.save_image", full)
    assert "No space left on device" in refused("detect", "shots/a.jpg", "dog", "--model", tiny_folder)


@pytest.mark.slow
def test_a_plain_terminal_and_absent_packages(tmp_path, tiny_folder):
    """In a process of its own: lvis, cv2 and others not importable, and a terminal that only knows ASCII."""
    Image.new("RGB", (40, 30)).save(tmp_path / "café.png")
    command = ["detect", "café.png", "🐈. dog", "--model", str(tiny_folder), "--threshold", "0.3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *command],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("ascii").startswith("caf\\xe9.png: ")
    assert (tmp_path / "out" / "café.png").is_file()


@pytest.mark.parametrize("flag", [(), ("--traceback",)])
def test_a_mistake_is_a_line_and_its_traceback_on_request(command_line, flag):
    code, _, err = command_line("config", "nothing", *flag)
    assert code == 2 and ("Traceback" in err) == bool(flag)
    assert err.splitlines()[-1].startswith("glip config: config 'nothing': no such file")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("x"), 1, "this is a bug in glip: please report it"),
        (KeyboardInterrupt(), 130, "interrupted: the same command starts over"),
        (Interrupted(15, "step 3 is done"), 143, "interrupted: step 3 is done"),
    ],
)
def test_bugs_and_interrupts(command_line, monkeypatch, error, code, words):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("glip.cli.config.run", fail)
    given, _, err = command_line("config")
    assert given == code and words in err and ("Traceback" in err) == (code == 1)


def test_what_glip_nano_knows_is_said_where_nobody_chose_it_and_warnings_are_lines(command_line, shots):
    chosen = ("--device", "cpu", "--threshold", 1, "--model", "glip-nano")
    with pytest.warns(UserWarning) as said:
        code, _, err = command_line("detect", "shots/a.jpg", "dog 🐈", *chosen[:-2])
        assert command_line("detect", "shots/a.jpg", "dog 🐈", *chosen)[::2] == (0, "")
    assert code == 0 and err.count("\n") == 1
    assert err.startswith("glip-nano was trained on drawings") and "for other photographs use glip-t" in err
    line = warnings.formatwarning(said[0].message, UserWarning, "x.py", 1)
    assert line == "glip detect: the model cannot read '🐈': to it such words are all alike\n"


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"glip {glip.__version__}\n"
