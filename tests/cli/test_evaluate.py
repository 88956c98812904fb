"""glip evaluate: the figures, what it writes, going on after a kill, two processes, files without a model, errors."""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import in_two_processes

from glip.data.catalog import find_set, read_set
from glip.detector import Detector
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.model.adapt import Adaptation, load_adaptation, save_adaptation
from glip.structures import Prompt

NAMES = ("red square", "blue circle", "green star")
BY_ID = ("blue circle", "red square", "green star")  # as the set lists them


@pytest.fixture
def glip_(command_line):
    return partial(command_line, "evaluate")


@pytest.fixture
def things(tmp_path) -> Path:
    """A COCO set of six images of three sizes; ids are not in order, one category has no box."""
    folder = tmp_path / "things"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    images, rows = [], []
    for number, (width, height) in enumerate([(90, 60), (60, 90), (90, 60), (64, 64), (90, 60), (64, 64)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": 40 - number, "file_name": f"{number}.png", "width": width, "height": height})
        for category in (7, 2)[: 1 + number % 2]:
            box = [5.0, 5.0, 30.0 + number, 40.0]
            row = {"id": len(rows) + 1, "image_id": 40 - number, "category_id": category, "bbox": box, "area": 1000.0}
            rows.append({**row, "iscrowd": int(number == 5)})
    categories = [{"id": id, "name": name} for id, name in zip((7, 2, 9), NAMES, strict=True)]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return folder / "boxes.json"


@pytest.fixture
def lvis(things) -> Path:
    tree = json.loads(things.read_text())
    for image in tree["images"]:
        image |= {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
    for category, frequency in zip(tree["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    tree["annotations"] = [row for row in tree["annotations"] if not row.pop("iscrowd")]
    (things.parent / "lvis.json").write_text(json.dumps(tree))
    return things.parent / "lvis.json"


@pytest.fixture
def captions(tmp_path) -> Path:
    """Grounding lines of two sentences each for two images."""
    (tmp_path / "said").mkdir()
    lines = []
    for number in range(2):
        Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "said" / f"{number}.png")
        for words in ("a red thing", "the blue thing"):
            region = {"bbox": [5, 5, 60, 40], "phrase": words, "tokens_positive": [[0, len(words)]]}
            row = {"filename": f"{number}.png", "height": 60, "width": 90}
            lines.append(row | {"grounding": {"caption": f"{words} on a wall", "regions": [region]}})
    (tmp_path / "said" / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "said" / "lines.jsonl"


def written(out: Path, name: str) -> Path:
    """The folder of a set: the model's is called after its weights."""
    [folder] = out.glob(f"tiny-*/{name}")
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_figures_are_those_of_the_library_and_of_the_results_file_alone(glip_, tiny_folder, things, tmp_path):
    code, out, err = glip_(tiny_folder, things, "--out", "results", "--draw")
    assert code == 0 and "# tiny on things_boxes" in out and "red square" in out, err
    folder = written(tmp_path / "results", "things_boxes")
    report = report_of(folder)
    plots = ["curves.png", "confidence.png", "confusion.png", "absent.png", "worst.png"]
    page = (folder / "report.md").read_text()
    assert report["plots"] == plots and all(f"![{name}]({name})" in page for name in plots)
    assert report["made"].keys() >= {"date", "command", "versions"} and f"Made on {report['made']['date'][:10]}" in page
    assert "| all classes |" in out and "Made on" not in out
    detector = Detector.from_pretrained(tiny_folder)
    samples = read_set(find_set(str(things))).samples
    score = average_precision(detect_all(detector, samples))
    assert report["figures"]["AP50"] == pytest.approx(score.ap50, abs=1e-6)
    assert report["figures"]["AP at false positive rate 0.01"] <= report["figures"]["AP"] + 1e-9
    rows = json.loads((folder / "results.json").read_text())
    assert {row["image_id"] for row in rows} <= set(range(35, 41)) and {row["category_id"] for row in rows} <= {2, 7, 9}
    assert {*plots, "report.md"} <= {file.name for file in folder.iterdir()}
    assert report["trained_on"] == "unknown" and report["samples"] == 6
    code, out, err = glip_(things, "--predictions", folder / "results.json", "--out", "again", "--quiet")
    assert code == 0 and "| AP50 |" in out and "##" not in out, err
    code, _, err = glip_(tiny_folder, things, "--out", "results", "--image-size", 64)
    assert code == 2 and "results made with inference" in err, "at another size there are other figures"
    again = report_of(tmp_path / "again" / "things_boxes")
    assert again["figures"] == pytest.approx(report["figures"], abs=1e-12)


def test_a_killed_evaluation_goes_on(glip_, tiny_folder, things, tmp_path, monkeypatch):
    whole = glip_(tiny_folder, things, "--out", "whole")
    encode, passes = Detector.encode_image, []

    def failing(self, images):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(Detector, "encode_image", failing)
    code, _, err = glip_(tiny_folder, things, "--out", "cut")
    assert code == 130 and "run the same command again" in err
    code, out, _ = glip_(tiny_folder, things, "--out", "cut")
    assert code == 0 and len(passes) == 4 + 3, "three of the six images are not looked at again"
    assert out == whole[1]
    code, out, _ = glip_(tiny_folder, things, "--out", "cut")
    assert len(passes) == 7 and out == whole[1], "all is there: nothing is computed again"


@pytest.mark.parametrize("protocol", ["any-box", "merged-boxes"])
def test_captions_have_recall(protocol, glip_, tiny_folder, captions, tmp_path):
    code, out, err = glip_(tiny_folder, captions, "--protocol", protocol, "--batch-size", 3)
    assert code == 0 and "R@1" in out, err
    folder = written(tmp_path / "runs" / "evaluate", "said_lines")
    recall = phrase_recall(detect_all(Detector.from_pretrained(tiny_folder), read_set(find_set(str(captions))).samples))
    assert report_of(folder)["figures"]["upper bound"] == pytest.approx(recall.upper_bound)
    assert len(json.loads((folder / "groundings.json").read_text())) == 4


def test_lvis_has_both_figures(glip_, tiny_folder, lvis, tmp_path):
    code, out, err = glip_(tiny_folder, lvis, "--max-names", 2)
    assert code == 0 and "Fixed AP" in out and "frequency" in out, err
    folder = written(tmp_path / "runs" / "evaluate", "things_lvis")
    figures = report_of(folder)["figures"]
    assert {"Fixed APr", "APr", "AR@300", "AP at false positive rate 0.05", "IL_MCC"} <= figures.keys()
    code, _, err = glip_(lvis, "--predictions", folder / "results.json", "--out", "again")
    again = report_of(tmp_path / "again" / "things_lvis")["figures"]
    assert again["AP"] == pytest.approx(figures["AP"], abs=1e-12), err
    glip_(tiny_folder, lvis, "--max-detections", 4, "--out", "capped")
    rows = json.loads((written(tmp_path / "capped", "things_lvis") / "results.json").read_text())
    assert set(Counter(row["image_id"] for row in rows).values()) == {4}, "all three names are one chunk"


@pytest.mark.parametrize("name", ["things", "lvis"])
def test_an_empty_results_file_scores_zero_with_a_notice(glip_, name, request, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    code, out, err = glip_(request.getfixturevalue(name), "--predictions", "none.json", "--out", "scored")
    assert code == 0 and "| AP | 0.000 |" in out and "results file without a result: every figure is 0" in out, err


def test_wordings_are_compared(glip_, tiny_folder, things, tmp_path):
    for folder, words in (("a", "a [box], flat and red"), ("b", "the [box]")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.yaml").write_text(f"red square: '{words}'\n")
    given = ("--prompts", "none", "--prompts", "a/words.yaml", "--prompts", "b/words.yaml")
    code, out, err = glip_(tiny_folder, things, *given, "--out", "o")
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("| things_boxes |")]
    assert any("| b/words.yaml | AP |" in line and ("+" in line or "-" in line) for line in lines)
    (folder,) = (tmp_path / "o").iterdir()
    names = ["comparison.md", "prompts-none-1", "prompts-words-2", "prompts-words-3"]
    assert sorted(part.name for part in folder.iterdir()) == names
    plain, asked = ((folder / name / "things_boxes" / "results.json").read_text() for name in names[1:3])
    assert plain != asked
    code, _, err = glip_(tiny_folder, things, *given, "--task", "task.safetensors")
    assert code == 2 and "which has texts of its own" in err
    (tmp_path / "words.yaml").write_text("owl: 'a [bird]'\n")
    code, _, err = glip_(tiny_folder, things, "--prompts", "words.yaml", "--out", "odd")
    assert code == 2 and "no class 'owl'" in err


def both(*arguments: object) -> list[tuple[int, str]]:
    """Run the command in two processes: exit code and standard error of each."""
    threads = str(torch.get_num_threads())  # sums in another order differ in the last digits
    words = ("-m", "glip", "evaluate", *arguments, "--device", "cpu")
    return [(done.returncode, done.stderr) for done in in_two_processes(*words, OMP_NUM_THREADS=threads)]


@pytest.mark.slow
def test_two_processes_equal_one(glip_, tiny_folder, things, captions, tmp_path):
    glip_(tiny_folder, things, captions, "--out", "one")
    ended = both(tiny_folder, things, captions, "--out", tmp_path / "two")
    assert [code for code, _ in ended] == [0, 0], ended
    files = ("things_boxes/results.json", "things_boxes/report.json", "said_lines/groundings.json")
    for name in (*files, "said_lines/report.json"):
        one, two = (next((tmp_path / folder).glob(f"tiny-*/{name}")).read_text() for folder in ("one", "two"))
        assert one.partition('"made"')[0] == two.partition('"made"')[0], name
    assert len(list((tmp_path / "two").glob("tiny-*/things_boxes/predictions/part-?-000000.npz"))) == 2


@pytest.mark.slow
def test_what_fails_in_one_process_ends_both_in_one_line(glip_, tiny_folder, things, tmp_path):
    """Only the main process compares with the answers that are there."""
    glip_(tiny_folder, things, "--out", tmp_path / "out", "--max-detections", 5)
    main_one, other = both(tiny_folder, things, "--out", tmp_path / "out")
    assert main_one[0] == other[0] == 2, (main_one, other)
    assert "made with detections" in main_one[1] and "Process 0 failed: " in other[1]
    assert "Traceback" not in main_one[1] + other[1]


def test_every_set_that_is_there(glip_, tiny_folder, things, tmp_path, monkeypatch):
    folder = things.parent.name
    (tmp_path / "datasets.yaml").write_text(
        f"mine_val: {{format: coco, annotations: {folder}/boxes.json, images: [{folder}/images]}}\n"
        f"mine_train: {{format: coco, annotations: {folder}/boxes.json, images: [{folder}/images]}}\n"
        "gone: {format: coco, annotations: gone.json, images: [gone]}\n"
    )
    monkeypatch.setattr("glip.data.catalog.config_folder", lambda: tmp_path / "none")
    code, out, err = glip_(tiny_folder, "--root", tmp_path)
    assert code == 0 and "# tiny on mine_val" in out and "mine_train" not in out, err


def change(file: Path, **parts) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model first, glip evaluate MODEL [SET ...], or --model before each of several models"),
        (["MODEL", "SET", "--batch-size", 0], "--batch-size: got 0"),
        (["MODEL", "SET", "--protocol", "any-box"], "lists of names in coco: take coco"),
        (["MODEL", "SET", "--predictions", "none.json"], "give the set alone"),
        (["MODEL", "SET", "--save-thresholds", "--prompts", "none", "--prompts", "b"], "one wording: got things_boxes"),
        (["MODEL", "SET", "SAID", "--save-thresholds"], "one wording: got things_boxes (coco), said_lines (any-box)"),
        (["MODEL", "SET", "--model", "MODEL"], "or --model before each of several models"),
        (["glip-nano", "SET", "--save-thresholds"], "'glip-nano' is no model folder: make one, glip convert glip-nano"),
        (["MODEL", "coco_val2017"], "instances_val2017.json and coco/val2017 are not there: put them into the data"),
        (["MODEL", "refcoco"], "it needs mdetr_annotations/finetune_refcoco_val.json and coco/train2014, ...: give"),
        (["MODEL", "odinw13"], "large/valid/annotations_without_background.json and odinw/AerialMaritimeDrone/large/"),
        (["SET", "--predictions", "r.json", "--save-thresholds"], "and no --model or --save-thresholds"),
        (["SET", "--model", "MODEL", "--model", "MODEL"], "is given twice: give each model once"),
        (["SET", "--model", "MODEL", "--model", "glip-x"], "model 'glip-x' is not known"),
        (["BARE", "--model", "MODEL", "--model", "glip-nano"], "Set 'things_bare': no box of a known class"),
    ],
)
def test_what_cannot_be_evaluated(arguments, message, glip_, tiny_folder, things, captions):
    """Refused before a model runs."""
    (bare := things.with_name("bare.json")).write_text(json.dumps(json.loads(things.read_text()) | {"annotations": []}))
    meant = {"MODEL": tiny_folder, "SET": things, "SAID": captions, "BARE": bare}
    code, out, err = glip_(*(meant.get(word, word) for word in arguments))
    assert code == 2 and message in err and err.count("\n") == 1 and not out, err


@pytest.fixture
def found(things, tiny_folder) -> Path:
    """The set with boxes where the model finds the first name: it is right there at any score."""
    tree, detector = json.loads(things.read_text()), Detector.from_pretrained(tiny_folder)
    rows = []
    for image in tree["images"]:
        detections = detector(things.parent / "images" / image["file_name"], list(BY_ID), threshold=0)
        x1, y1, x2, y2 = detections.select(detections.labels == 1).boxes[0].tolist()
        row = {"id": len(rows) + 1, "image_id": image["id"], "category_id": 7, "iscrowd": 0}
        rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    change(things, annotations=rows)
    return things


def test_thresholds_are_stored_with_the_model(glip_, tiny_folder, found, tmp_path, monkeypatch):
    """The detector uses them for these names only; the same command again has its predictions still."""
    own = shutil.copytree(tiny_folder, tmp_path / "own")
    code, out, err = glip_(own, found, "--save-thresholds")
    assert code == 0 and f"stored the threshold of best F1 of 1 class in {own}" in out, err
    stored = json.loads((own / "config.json").read_text())["thresholds"]
    assert stored == report_of(written(tmp_path / "runs" / "evaluate", "things_boxes"))["thresholds"]
    assert stored.keys() == {"red square"} and 0 < stored["red square"] < 1
    detector, image = Detector.from_pretrained(own), found.parent / "images" / "0.png"
    limit = torch.tensor([stored["red square"], 0.0])
    everything = Detector.from_pretrained(tiny_folder)(image, ["Red square", "owl"])
    assert detector(image, ["Red square", "owl"]).scores.tolist() == (
        everything.select(everything.scores >= limit[everything.labels]).scores.tolist()
    )
    assert len(detector(image, ["Red square", "owl"], threshold=0.0)) == len(everything)
    monkeypatch.setattr(Detector, "encode_image", None)
    code, out, _ = glip_(own, found)
    assert code == 0 and "trained on this set: validated on" in out
    tables = report_of(written(tmp_path / "runs" / "evaluate", "things_boxes"))["tables"]
    at_half = [rows for title, rows in tables.items() if "(IoU 0.5)" in title]
    kept, best = (next(row for row in rows if row["name"] == "red square") for rows in at_half)
    assert kept == pytest.approx(best) and kept["threshold"] == pytest.approx(stored["red square"])


def test_thresholds_are_stored_with_the_task(glip_, tiny_folder, found, tmp_path):
    detector = Detector.from_pretrained(tiny_folder)
    prompt = Prompt.from_names(BY_ID)
    task = Adaptation("linear", "tiny", detector.fingerprint, BY_ID, prompt, thresholds=(0.7, 0.7, 0.7))
    save_adaptation(tmp_path / "task.safetensors", task)
    given = (tiny_folder, found, "--task", "task.safetensors")
    code, _, err = glip_(tiny_folder, found, "--task", ".", "--save-thresholds")  # the folder of it
    assert code == 0, err
    stored = load_adaptation(tmp_path / "task.safetensors").thresholds
    assert stored[0] == stored[2] == 0.7 != stored[1]
    assert glip_(*given)[0] == 0 and len(list((tmp_path / "runs" / "evaluate").iterdir())) == 1
    change(found, categories=[{"id": 7, "name": "owl"}])
    code, _, err = glip_(*given, "--save-thresholds", "--out", "owls")
    assert code == 2 and "--save-thresholds: 'things_boxes' has other names than the task" in err


def test_models_are_compared(glip_, tiny_folder, found, tmp_path):
    other = Detector.from_pretrained(tiny_folder)
    with torch.no_grad():
        other.model.boxes.box.weight.mul_(0.5)
    other.save_pretrained(tmp_path / "other")
    code, out, err = glip_(found, "--model", tiny_folder, "--model", "other")
    assert code == 0, err
    runs = tmp_path / "runs" / "evaluate"
    scores = [report_of(folder)["figures"]["AP50"] for folder in runs.glob("*/things_boxes")]
    page = (runs / "comparison.md").read_text()
    assert page.startswith(f"# Compared with {tiny_folder}\n") and "Made on" in page
    [row] = [line for line in page.splitlines() if line.startswith("| things_boxes | other | AP50 |")]
    value, difference, low, high = map(float, row.split("|")[4:8])
    assert low <= difference <= high and abs(difference) == pytest.approx(max(scores) - min(scores), abs=1e-3)
    assert row in out and value == pytest.approx(min(scores), abs=1e-3)
    table = [line.split(" | ") for line in page.partition("## Per category")[2].splitlines() if "red square" in line]
    assert [row[2] for row in table] == [str(tiny_folder), "other"] and table[1][-1].startswith(("+", "-"))
    assert "| AP low (95 %) |" in out and "| things_boxes | other | AP |" in out


def test_an_unreadable_image_is_counted_and_its_boxes_missed(glip_, tiny_folder, things, tmp_path):
    glip_(tiny_folder, things, "--out", "good")
    (things.parent / "images" / "0.png").write_bytes(b"no image")
    change(things, images=[{"id": 99}, *json.loads(things.read_text())["images"]])
    code, out, _ = glip_(tiny_folder, things, "--out", "bad")
    assert code == 0 and "1 x unreadable image" in out and "1 x image without a file name (image 99)" in out
    good, bad = (report_of(written(tmp_path / folder, "things_boxes")) for folder in ("good", "bad"))
    boxes = [sum(row["boxes"] for row in report["tables"]["Per category"]) for report in (good, bad)]
    assert boxes[0] == boxes[1] and bad["figures"]["AR@100"] <= good["figures"]["AR@100"]


def test_odinw_has_a_mean_and_names_what_is_missing(glip_, tiny_folder, tmp_path):
    """Two of the thirteen tasks are there; one has a caption prompt for its only class."""
    for folder in ("odinw/CottontailRabbits", "odinw/pothole"):
        place = tmp_path / folder / "valid"
        place.mkdir(parents=True)
        Image.effect_noise((90, 60), 80).convert("RGB").save(place / "a.jpg")
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 60, 40], "area": 2400, "iscrowd": 0}
        tree = {"images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 60}], "annotations": [row]}
        tree["categories"] = [{"id": 1, "name": "whatever the file says"}]
        (place / "annotations_without_background.json").write_text(json.dumps(tree))
    code, out, err = glip_(tiny_folder, "odinw13", "--root", tmp_path)
    assert code == 0, err
    assert "# odinw13, 2 of 13 parts; missing, and not in the mean: AerialMaritimeDrone_large" in out
    assert "| mean of 2 of 13 |" in out and "| median of 2 of 13 |" in out
    names = [line.split(" on ")[1] for line in out.splitlines() if line.startswith("# tiny on ")]
    rows = [report_of(written(tmp_path / "runs" / "evaluate", name)) for name in names]
    assert len(rows) == 2 and all(row["tables"]["Per category"][0]["boxes"] == 1 for row in rows)
    code, _, err = glip_(tiny_folder, "odinw35", "--root", tmp_path / "nowhere")
    assert code == 2 and "none of its parts is under" in err and err.count("\n") == 1


def test_other_annotations_do_not_get_old_predictions(glip_, tiny_folder, things):
    glip_(tiny_folder, things)
    tree = json.loads(things.read_text())
    change(things, categories=[{**tree["categories"][0], "name": "owl"}, *tree["categories"][1:]])
    code, _, err = glip_(tiny_folder, things)
    assert code == 2 and "made with images and annotations" in err and err.count("\n") == 1


def test_sets_by_path_have_names_of_their_own(glip_, tiny_folder, things, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "boxes.json").write_text(things.read_text())
    (tmp_path / "far" / "copy").mkdir(parents=True)
    (tmp_path / "far" / "copy" / "boxes.json").write_text(things.read_text())
    images = ("--images", things.parent / "images")
    code, out, err = glip_(tiny_folder, things, tmp_path / "copy" / "boxes.json", *images)
    assert code == 0 and "# tiny on things_boxes" in out and "# tiny on copy_boxes" in out, err
    twins = tmp_path / "copy" / "boxes.json", tmp_path / "far" / "copy" / "boxes.json"
    code, _, err = glip_(tiny_folder, *twins, *images, "--out", "twins")
    assert code == 2 and "sets are called 'copy_boxes'" in err and not (tmp_path / "twins").exists()
