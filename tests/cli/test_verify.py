"""What a folder's record says, and that ``glip verify`` finds every change since."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from small import write_coco

from glip.config import SelectConfig
from glip.files import read_json
from glip.model import weights
from glip.model.weights import ASSETS, BUNDLED, known_sha256, store_thresholds
from glip.provenance import made, read_record, record, sha256
from glip.pseudo.select import select
from glip.pseudo.store import write_shard

ROW = {"image": "0.png", "caption": "a dog", "id": 0, "width": 128, "height": 128}
ROW |= {"phrases": [{"text": "dog", "spans": [[2, 5]]}], "boxes": [{"box": [0, 0, 9, 9], "phrases": [0], "score": 0.9}]}
SMALL = """
extends: tiny.yaml
model: {vision: {depths: [1, 1, 1, 1]}, language: {layers: 1}, head: {blocks: 1, fusion_width: 64}}
data: {crop: 64, short_side: [64, 80], train: [{name: drawn, annotations: instances.json, images: [images]}]}
train: {steps: 2, batch_size: 1, warmup: 0, drops: [], output: run}
"""


def changed_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture
def results(tmp_path, command_line, model) -> Path:
    """What glip writes, each kind in a folder of its own."""
    folder = tmp_path / "results"
    shutil.copytree(model, folder / "model")
    write_coco(tmp_path / "data")
    data = ("data/instances.json", "--images", "data/images", "--device", "cpu")
    assert command_line("evaluate", folder / "model", *data, "--out", folder / "evaluate")[0] == 0
    assert command_line("tune", folder / "model", *data, "--epochs", "1", "--out", folder / "tune")[0] == 0
    write_shard(folder / "labels", "00003", "jsonl", [ROW], {"pairs": 1})
    select(folder / "labels", folder / "chosen" / "selected.jsonl", SelectConfig())
    return folder


def test_whatever_changed_is_named(results, command_line, tmp_path):
    code, out, err = command_line("verify", results)
    assert code == 0 and "chosen/selected.jsonl: as written\nevaluate/" in out and "all " in out, err
    assert "dataset data_instances: as it was (4 images, 9 boxes)" in out
    moved = results.rename(tmp_path / "elsewhere")
    names = ("model.safetensors", "config.json", "results.json", "manifest.json", "task.safetensors", "00003.jsonl")
    for name in (*names, "selected.jsonl"):
        [file] = moved.rglob(name)
        changed_byte(file)
        code, out, _ = command_line("verify", moved)
        assert code == 1 and out.count("changed since it was written (sha256 ") == 1, name
        assert f"{file.relative_to(moved)}: changed" in out and "1 of " in out
        assert command_line("verify", file)[0] == 1
        changed_byte(file)
        code, out, _ = command_line("verify", file)
        assert code == 0 and out.endswith(f"{name}: as written\nall 1 as written\n")
    (moved / "model" / "vocab.txt").unlink()
    assert "model/vocab.txt: missing" in command_line("verify", moved)[1]
    for name in ("evaluate/*/*/run.json", "labels/*.report.json", "chosen/*.summary.json"):
        [file] = moved.glob(name)
        file.write_text(json.dumps({**read_json(file), "made": []}))
        code, out, _ = command_line("verify", moved)
        assert code == 1 and f"{file.relative_to(moved)}: edited since it was written" in out


def test_a_training_and_its_data(tmp_path, command_line):
    annotations = write_coco(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    words = ("train", "small.yaml", f"data.root={tmp_path}/data", "--device", "cpu")
    assert command_line(*words)[0] == 0
    noted = read_record(tmp_path / "run" / "run.json")
    [start] = noted["made"]
    assert start["versions"].startswith("glip ") and "CPU threads" in start["machine"] and start["date"]
    assert noted["config"]["train"]["steps"] == 2 and noted["config"]["data"]["root"] == "data"
    assert str(tmp_path) not in json.dumps(noted), "no path of this machine"
    assert command_line(*words)[0] == 0 and len(read_record(tmp_path / "run" / "run.json")["made"]) == 1
    (tmp_path / "other").mkdir()
    for resumed in (False, True):
        record(tmp_path / "other" / "run.json", resumed=resumed, config={})
    assert len(read_record(tmp_path / "other" / "run.json")["made"]) == 2, "each resume has its date"
    assert command_line("verify", "run")[0] == 0
    tree = json.loads(annotations.read_text())
    shutil.copy(tmp_path / "data" / "images" / "0.png", tmp_path / "data" / "images" / "9.png")
    tree["images"].append({**tree["images"][0], "id": 9, "file_name": "9.png"})
    annotations.write_text(json.dumps(tree))
    code, out, _ = command_line("verify", "run")
    assert code == 1 and "dataset drawn: changed: 5 images, 9 boxes, not 4 images, 9 boxes\n1 of 7 changed" in out
    annotations.unlink()
    assert "dataset drawn: cannot be read: " in command_line("verify", "run")[1]


def test_what_has_no_record_is_refused(tmp_path, command_line):
    (tmp_path / "empty").mkdir()
    code, _, err = command_line("verify", "empty")
    assert code == 2 and "'empty' cannot be verified: no run.json" in err


def test_a_file_is_verified_from_within_its_folder(tmp_path, monkeypatch, command_line):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (tmp_path / "run" / name).write_text("a")
    record(tmp_path / "run" / "run.json", files=[tmp_path / "run/a.txt", tmp_path / "run/deep/b.txt"])
    for folder, name in (("run", "a.txt"), ("run/deep", "b.txt")):
        monkeypatch.chdir(tmp_path / folder)
        code, out, err = command_line("verify", name)
        assert code == 0 and out.endswith(f"{name}: as written\nall 1 as written\n"), out + err


def test_a_command_without_secrets_and_without_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["serve", "--token", "abc", "--api-key=def", "hub.password=ghi", f"{tmp_path}/a.jpg", "train.max_tokens=9"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/glip", *words, "https://me:xyz@host/a"])
    expected = (
        "glip serve --token '***' '--api-key=***' 'hub.password=***' a.jpg train.max_tokens=9 'https://***@host/a'"
    )
    assert made()["command"] == expected


def test_a_record_keeps_earlier_starts_of_other_commands(tmp_path, monkeypatch):
    path, file = tmp_path / "run.json", tmp_path / "a.txt"
    file.write_text("a")
    for steps in ("1", "1", "2"):
        monkeypatch.setattr("sys.argv", ["glip", "train", f"train.steps={steps}"])
        record(path, files=[file], config={"steps": steps})
    assert [one["command"][-1] for one in read_record(path)["made"]] == ["1", "2"]


def test_weights_that_are_shipped_or_downloaded_have_their_checksum(tmp_path, monkeypatch, command_line):
    file = ASSETS / BUNDLED / "model.safetensors"
    assert (file, sha256(file)) == known_sha256(BUNDLED)
    assert command_line("verify", "glip-nano")[:2] == (0, "model.safetensors: as written\nall 1 as written\n")
    blob = tmp_path / hashlib.sha256(b"weights").hexdigest()  # as the hub's cache names it
    monkeypatch.setattr(weights, "find_model", lambda name: blob)
    for content, code in ((b"weights", 0), (b"other", 1)):
        blob.write_bytes(content)
        assert command_line("verify", "glip-t")[0] == code


def test_thresholds_are_stored_with_the_record(model, tmp_path, command_line):
    shutil.copytree(model, tmp_path / "own")
    store_thresholds(tmp_path / "own", {"dog": 0.25}, "0123")
    assert command_line("verify", "own")[0] == 0
