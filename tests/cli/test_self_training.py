"""``glip label``, ``select`` and ``self-train`` as a person runs them, from captions to a student."""

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


EASY = (
    "--threshold",
    "0",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--pairs",
    "min_bytes=0",
    "min_side=32",
    "same_image=-1",
)


def test_from_captions_to_a_set_that_trains(command_line, captions, tiny_folder, tmp_path):
    code, out, _ = command_line("label", tiny_folder, captions, "--out", "labels", "--max-detections", "4", *EASY)
    assert code == 0 and "4 of 4 pairs labelled" in out and (tmp_path / "labels" / "report.png").is_file()
    code, out, _ = command_line("select", "labels", "--rules", "box=0.0", "image=0", "per_phrase=1")
    assert code == 0 and "4 of 4 pairs kept" in out and "glip train CONFIG --data labels/selected.jsonl" in out
    command = out.strip().splitlines()[-1].split("glip train CONFIG ")[1].split()  # as it is printed
    settings = (
        "train.steps=1",
        "train.warmup=0",
        "train.batch_size=2",
        "train.output=student",
        "data.short_side=[64,64]",
    )
    code, out, _ = command_line("train", "tiny", *command, *settings, "--device", "cpu")
    assert code == 0 and "4 images, " in out
    code, out, _ = command_line(
        "data", "convert", "labels/selected.jsonl", "labels.json", "--to", "mdetr", *command[2:]
    )
    assert code == 0 and "tokens_positive" in (tmp_path / "labels.json").read_text()


def test_teach_prints_its_table(command_line, captions, tiny_folder, drawn_root, tmp_path):
    tree = {
        "extends": "tiny",
        "data": {"root": str(drawn_root), "train": [{"name": "world_train"}], "short_side": [64, 64], "crop": 64},
        "train": {"steps": 1, "batch_size": 2, "warmup": 0},
    }
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(tree))
    arguments = ("student.yaml", captions, "--teacher", tiny_folder, "--out", "out", *EASY)
    code, out, err = command_line("self-train", *arguments, "--rules", "box=0", "image=0", "per_phrase=1")
    assert code == 0, err
    assert "| student 1 |" in out and "round-1/student/model" in out
    code, _, err = command_line("self-train", *arguments, "--engine", "torchrun")
    assert code == 2 and "runs in one process" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "--out", "o"), "neither in datasets.yaml nor a file"),
        (("in/captions.jsonl", "--out", "in/captions.jsonl"), "is a file: give a folder"),
        (("in/captions.jsonl", "--out", "o", "--threshold", "2"), "outside [0, 1]"),
        (("in/captions.jsonl", "--out", "o", "--threads", "-1"), "give 1 or more"),
        (("in/captions.jsonl", "--out", "o", "--pairs", "min_sides=3"), "did you mean 'min_side'?"),
        (("in/captions.jsonl", "--out", "o", "--pipeline", "no_such_pipeline"), "no_such_pipeline"),
    ],
)
def test_bad_input_is_told_in_one_line(command_line, captions, tiny_folder, arguments, said):
    code, _, err = command_line("label", tiny_folder, *arguments)
    assert code == 2 and said in err and err.strip().count("\n") == 0


def test_select_says_what_is_wrong(command_line, tmp_path):
    code, _, err = command_line("select", tmp_path)
    assert code == 2 and "holds no labels" in err
    code, _, err = command_line("select", tmp_path, "--rules", "boxes=1")
    assert code == 2 and "did you mean 'box'?" in err


@pytest.mark.slow
def test_a_terminated_run_tells_what_it_did(captions, tiny_folder, tmp_path):
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join(lines * 200) + "\n")  # every image again and again: many shards of one
    command = [sys.executable, "-m", "glip", "label", str(tiny_folder), str(captions), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--per-shard", "1", *EASY, "repeated_captions=0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("*.report.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and b"run the same command again" in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < report["shards"] < report["shards in all"] == 800
