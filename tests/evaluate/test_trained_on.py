"""Whether a model was trained on a set, from training to the report: annotation files given by path."""

import json
import shutil
from pathlib import Path

import pytest
from small import write_coco

from glip.cli.main import main


def told(capsys, *arguments) -> str:
    """What the report of an evaluation says."""
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", *map(str, arguments)])
    return capsys.readouterr().out.split("trained on this set: ")[1].split(".")[0]


def test_trained_on_a_file(tmp_path, tiny_folder, capsys, monkeypatch):
    """Trained for two steps on a COCO json: it is recognized elsewhere too, and a changed copy is not."""
    monkeypatch.chdir(tmp_path)
    file = write_coco(tmp_path / "own")
    Path("bare.yaml").write_text("data: {crop: 64}")
    short = ("train.output=run", "train.steps=2", "train.batch_size=1", "train.warmup=0")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "bare.yaml", "--data", str(file), *short, f"train.start={tiny_folder}", "--device", "cpu"])
    model = Path("run", "model")
    capsys.readouterr()
    assert told(capsys, model, file) == "yes"
    moved = shutil.copytree(tmp_path / "own", tmp_path / "moved") / file.name
    assert told(capsys, model, moved) == "yes"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"][0] += 1
    changed = moved.with_name("changed.json")
    changed.write_text(json.dumps(tree))
    assert told(capsys, model, changed) == "no"
    assert told(capsys, tiny_folder, file) == "unknown", "a model without fingerprints"
