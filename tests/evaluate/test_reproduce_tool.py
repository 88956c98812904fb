"""tools/reproduce.py on stand-ins: what is missing, the table, and going on after a kill."""

import sys
from pathlib import Path

import pytest
import reproduce
import stand_ins

from glip.data.catalog import find_set, missing_part, read_set
from glip.detector import Detector
from glip.evaluate.odinw import read_task, tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    stand_ins.write_sets(root, images=3, side=96)
    return root


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
    return reproduce.main()


def test_stand_ins_are_read_as_the_real_sets_are(data):
    for name in ("coco_val2017", "lvis_minival", "flickr30k_test"):
        entry = find_set(name, root=data)
        read = read_set(entry, data)
        assert len(read.samples) >= 3 and not read.skipped, read.skipped
        assert all(sample.image.is_file() for sample in read.samples)
    assert not any(missing_part(task.files(), data) for task in tasks(13))
    assert all(not read_task(task, data).skipped for task in tasks(13))


def test_what_is_missing_is_said_with_its_place(data, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--plan", "--root", tmp_path, "--weights", tmp_path / "weights") == 1
    out = capsys.readouterr().out
    assert f"missing: glip-l: put glip_large_model.pth into {tmp_path / 'weights'}" in out
    assert f"missing: coco: put coco/annotations/instances_val2017.json and coco/val2017 into {tmp_path}" in out
    assert "missing: flickr30k: put flickr30k/flickr30k_entities and flickr30k/flickr30k_images and flickr30k" in out
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "glip_tiny_model_o365_goldg.pth").touch()
    call(monkeypatch, "--plan", "--root", data, "--weights", tmp_path / "weights")
    out = capsys.readouterr().out
    assert "there: glip-t-c on lvis_minival, 3 samples, 9 passes" in out and "missing: lvis" not in out
    assert call(monkeypatch, "--model", "glip-x=somewhere") == 2
    assert "--model 'glip-x=somewhere': give glip-t-a | " in capsys.readouterr().err


@pytest.mark.slow
def test_it_goes_on_after_a_kill_and_compares(data, tiny_folder, tmp_path, monkeypatch, capsys):
    model = f"glip-t-c={tiny_folder}"
    ask = ["--model", model, "--root", data, "--out", tmp_path / "out", "--sets", "coco"]
    both = [*ask, "flickr30k", "--device", "cpu"]
    encode, passes = Detector.encode_image, []

    def failing(self, images):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(Detector, "encode_image", failing)
    assert call(monkeypatch, *both) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert call(monkeypatch, *both) == 1, "random weights are not the released ones"
    assert len(passes) == 3 + 1 + 3, "two of the three images of COCO were there"
    out = capsys.readouterr().out
    assert "1 of 2: glip-t-c on coco_val2017; about 0:" in out and "2 of 2: glip-t-c on flickr30k_test\n" in out
    page = (tmp_path / "out" / "reproduce.md").read_text()
    assert page.count("| glip-t-c | flickr30k") == 3 and "| 46.7 |" in page and "| differs |" in page
    assert call(monkeypatch, *both) == 1 and len(passes) == 7, "nothing is computed again"
    monkeypatch.setitem(reproduce.PUBLISHED["glip-t-c"], "coco", (0.1,))
    monkeypatch.setattr(reproduce, "run", lambda job, *where: {"AP": 0.3})
    assert call(monkeypatch, *ask) == 0, "0.2 points are allowed"
