"""Whether a model was trained on a set, from training to the report: annotation files given by path."""

import json
import shutil
from pathlib import Path

import pytest
from small import write_coco

from glip.cli.main import main


def said_of(capsys, *arguments) -> str:
    """What the report of an evaluation says."""
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", *map(str, arguments)])
    return capsys.readouterr().out.split("trained on this set: ")[1].split(".")[0]


@pytest.mark.slow
def test_trained_on_a_file(tmp_path, tiny_folder, capsys, monkeypatch):
    """Trained on a COCO json: it is known elsewhere too, with other boxes too; the start's data is never known."""
    monkeypatch.chdir(tmp_path)
    file, other = write_coco(tmp_path / "own"), write_coco(tmp_path / "other")
    tree = json.loads(other.read_text())
    other.write_text(json.dumps({**tree, "images": tree["images"][:3], "annotations": tree["annotations"][:4]}))
    Path("bare.yaml").write_text("data: {crop: 64, short_side: [64, 80]}")
    short = ("train.steps=2", "train.batch_size=1", "train.warmup=0", "--validate", str(other), "--device", "cpu")
    for run, start in (("run", f"train.start={tiny_folder}"), ("again", "train.start=run/model")):
        with pytest.raises(SystemExit, match="0"):
            main(["train", "bare.yaml", "--data", str(file), *short, start, f"train.output={run}"])
        config = json.loads(Path(run, "model", "config.json").read_text())
        assert config["trained_on"] == ["unknown", "own_instances"] and len(config["trained_on_data"]) == 4
    assert json.loads(Path("run", "model", "run.json").read_text())["step"] == 2
    noted = json.loads(Path("run", "run.json").read_text())["data"]
    assert noted["other_instances (validation)"]["content"] == "3 images, 4 boxes"
    capsys.readouterr()
    model = Path("run", "model")
    assert said_of(capsys, model, file) == "yes"
    moved = shutil.copytree(tmp_path / "own", tmp_path / "moved") / file.name
    assert said_of(capsys, model, moved) == "yes"
    tree["annotations"][0]["bbox"][0] += 1
    changed, less = moved.with_name("changed.json"), moved.with_name("less.json")
    changed.write_text(json.dumps(tree))
    assert said_of(capsys, model, changed) == "yes", "the same images with other boxes"
    assert said_of(capsys, model, other) == "validated on"
    less.write_text(json.dumps({**tree, "images": tree["images"][1:], "annotations": tree["annotations"][4:]}))
    assert said_of(capsys, model, less) == "unknown", "the start of the model has no fingerprints"
    assert said_of(capsys, tiny_folder, file) == "unknown"
