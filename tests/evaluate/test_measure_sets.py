"""tools/measure_sets.py: which strange names an image is asked for, and a table for a small model."""

import sys

import measure_sets as tool
from scored import detections, sample
from small import write_coco

from glip.evaluate.columns import to_arrays
from glip.evaluate.false_positives import false_positives

BOX = (10.0, 10.0, 50.0, 50.0)


def test_strange_names_share_no_word_with_the_sets_own():
    [one] = tool.with_foreign_names(
        [sample(["white pawn"], [(BOX, 0)])], ["white blood cell", "raccoon", "pothole", "raccoon"]
    )
    assert one.vocabulary == ("raccoon", "pothole") and not len(one.boxes) and one.box_phrases == ()
    found = false_positives(*to_arrays([(one, detections(one, [(BOX, 0.7, 1)]))]))
    assert tool.rates(found, 0.5) == "1.00 (0.500)" and tool.rates(None, 0.5) == "-"


def test_table(tiny_folder, drawn_root, tmp_path, monkeypatch, capsys):
    (tmp_path / "world").symlink_to(drawn_root / "world")
    for name in (*tool.SMALL, "coco_mini"):
        annotations = tmp_path / name / "annotations"
        annotations.mkdir(parents=True)
        write_coco(tmp_path / name).rename(annotations / "instances_test.json")
    words = ["--model", str(tiny_folder), "--data", str(tmp_path), "--images", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["measure_sets.py", *words, "--sets", "bccd", "world_novel_captions"])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.startswith("| bccd_test | 2 | ")]
    assert row.count("|") == 9 and row.endswith("| no |")
    assert any(line.startswith("| world_novel_captions | ") for line in lines) and lines[-1] == "Left out: nothing"
