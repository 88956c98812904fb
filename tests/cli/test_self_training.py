"""``glip label``, ``select`` and ``self-train`` as a user runs them, from captions to a student."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small import NAMES, scenes

EASY = ["--threshold=0", "--device=cpu", "--threads=1", "--min-bytes=0", "--min-side=32", "--same-image=-1"]
KEEP = ["--min-score", "0", "--min-best-score", "0", "--max-per-phrase", "1"]


@pytest.fixture
def captions(tmp_path) -> Path:
    """Four drawn images with a caption each."""
    (tmp_path / "in" / "images").mkdir(parents=True)
    lines = []
    for number, (image, _) in enumerate(scenes()):
        image.save(tmp_path / "in" / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"we see a {NAMES[number]} on the ground"}))
    (tmp_path / "in" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in" / "captions.jsonl"


def test_from_captions_to_a_dataset_that_trains(command_line, captions, tiny_folder, tmp_path):
    label = ("label", tiny_folder, captions, "--out", "labels", "--max-detections", "4", *EASY)
    code, out, _ = command_line(*label)
    assert code == 0 and "4 of 4 pairs labelled" in out and (tmp_path / "labels" / "report.png").is_file()
    for _ in range(2):  # what is selected does not count as labels
        code, out, _ = command_line("select", "labels", *KEEP)
        assert code == 0 and "4 of 4 pairs kept" in out and "glip train CONFIG --data labels/selected.jsonl" in out
    assert json.loads((tmp_path / "labels" / "selected.summary.json").read_text())["kept_pairs"] == 4
    assert command_line(*label)[0] == 0, "labelling again has nothing to do"
    data = out.strip().splitlines()[-1].split("glip train CONFIG ")[1].split()  # as it is printed
    settings = ["train.steps=1", "train.warmup=0", "train.batch_size=2", "data.short_side=[64,64]"]
    code, out, _ = command_line("train", "tiny", *data, *settings, "train.output=student", "--device=cpu")
    assert code == 0 and "4 images, " in out
    convert = ("data", "convert", "labels/selected.jsonl", "labels.json", "--to", "mdetr")
    code, out, _ = command_line(*convert, *data[2:])
    assert code == 0 and "tokens_positive" in (tmp_path / "labels.json").read_text()


def test_selecting_from_unfinished_labels_says_what_is_missing(command_line, captions, tiny_folder, tmp_path):
    label = ("label", tiny_folder, captions, "--out", "labels", "--per-shard", "1", *EASY)
    assert command_line(*label)[0] == 0
    (tmp_path / "labels" / "captions-00002.report.json").unlink()
    again = "to label the rest run the same glip label command again"
    code, out, err = command_line("select", "labels", *KEEP)
    assert (
        code == 0
        and err == f"notice: 3 of 4 shards are labelled in 'labels', 1 missing: {again}\n"
        and "3 of 3 pairs kept" in out
    )
    for report in (tmp_path / "labels").glob("*.report.json"):
        report.unlink()
    code, _, err = command_line("select", "labels", *KEEP)
    assert code == 2 and "0 of 4 shards are labelled in 'labels', 4 missing" in err
    assert command_line(*label)[0] == 0 and command_line("select", "labels", *KEEP)[2] == ""


def test_precision_and_recall(command_line, captions, tiny_folder, tmp_path):
    assert command_line("label", tiny_folder, captions, "--out", "labels", *EASY)[0] == 0
    row = json.loads((tmp_path / "labels" / "captions-00000.jsonl").read_text().splitlines()[0])
    (tmp_path / "in" / "truth.jsonl").write_text(json.dumps(row) + "\n")  # the teacher's own boxes: recall is 1
    arguments = ("--ground-truth", "in/truth.jsonl", "--held-out-words", "circle")
    code, out, _ = command_line("select", "labels", *arguments, *KEEP)
    assert code == 0 and "held-out words: precision | recall" in out
    assert (tmp_path / "labels" / "quality.png").is_file()


def test_self_train_prints_its_table(command_line, captions, drawn_root, tiny_folder, tmp_path):
    tree = {
        "extends": "tiny",
        "data": {"root": str(drawn_root), "train": [{"name": "world_train"}], "short_side": [64, 64], "crop": 64},
        "train": {"steps": 1, "batch_size": 2, "warmup": 0},
    }
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(tree))
    arguments = ("student.yaml", captions, "--teacher", tiny_folder, "--out", "out", *EASY, *KEEP)
    code, out, err = command_line("self-train", *arguments, "--share", "0.4", "--no-box-loss", "train.lr=1e-3")
    assert code == 0, err
    assert "| student 1 |" in out and "round-1/student/model" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("label", "MODEL", "nothing", "--out", "o"), "'nothing'"),
        (("label", "MODEL", "in/captions.jsonl", "--out", "in/captions.jsonl"), "in/captions.jsonl"),
        (("label", "MODEL", "in/captions.jsonl", "--out", "o", "--threshold", "2"), "--threshold"),
        (("label", "MODEL", "in/captions.jsonl", "--out", "o", "--pipeline", "no_such_pipeline"), "no_such_pipeline"),
        (("label", "MODEL", "world_seen", "--out", "o"), "are not there"),
        (("select", "in"), "No such file or directory: 'in/manifest.json'"),
        (("select", "in", "--nms", "-0.1"), "--nms"),
        (("self-train", "tiny", "in/captions.jsonl", "--teacher", "t", "--out", "o", "--share", "1"), "--share"),
    ],
)
def test_bad_input_is_reported_in_one_line(command_line, captions, tiny_folder, arguments, named):
    code, _, err = command_line(*(tiny_folder if word == "MODEL" else word for word in arguments))
    assert code == 2 and named in err and err.strip().count("\n") == 0


@pytest.mark.slow
def test_a_terminated_run_reports_what_it_did(captions, tiny_folder, tmp_path):
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join(lines * 200) + "\n")  # every image again and again: many shards of one
    command = [sys.executable, "-m", "glip", "label", str(tiny_folder), str(captions), "--out", str(tmp_path / "out")]
    command += ["--per-shard", "1", "--max-repeats", "0", *EASY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("*.report.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    said = b"interrupted: the finished shards are saved; run the same command again to label the others"
    assert process.returncode == 143 and said in err and b"\r" not in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < report["shards"] < report["shards in all"] == 800
