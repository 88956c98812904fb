"""Labelling: what the teacher says of each caption, whoever runs it, once and never lost."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alike import assert_alike
from PIL import Image

from glip.detector import Detector
from glip.pseudo.engine import label_all
from glip.pseudo.filters import PairRules
from glip.pseudo.label import LabelConfig, Labeller
from glip.pseudo.run import Workers, find_captions, run_labelling
from glip.pseudo.shards import find_shards, read_shard_images
from glip.pseudo.store import Store, read_rows
from glip.structures import Prompt
from glip.text.phrases import noun_phrases

OPEN = PairRules(min_bytes=0, min_side=0, same_image=-1)


def how(model: Path, **more: object) -> LabelConfig:
    return LabelConfig(**{"model": str(model), "threshold": 0.0, "max_detections": 5, "pairs": OPEN, **more})


def labels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def run(pool: Path, model: Path, out: Path, said: list[str] | None = None, **more: object):
    entry = find_captions(str(pool / "captions.jsonl"), (), None)
    workers = Workers(per_shard=4, engine=more.pop("engine", "local"), workers=2)
    return run_labelling(entry, how(model, **more), out, workers, (said if said is not None else []).append)


def test_what_is_stored_is_what_the_detector_says(pool, tiny_folder, tmp_path):
    done = run(pool, tiny_folder, tmp_path / "out")
    rows = list(read_rows(tmp_path / "out"))
    assert done.report["pairs"] == done.report["kept"] == len(rows) == 11 and done.report["images"] == 10
    detector = Detector.from_pretrained(tiny_folder, device="cpu")
    for row in rows[:4]:
        prompt = Prompt.from_caption(row["caption"], list(noun_phrases(row["caption"])))
        found = detector(str(pool / "images" / row["image"]), prompt, threshold=0.0, max_detections=5)
        assert [phrase["spans"] for phrase in row["phrases"]] == [[list(s) for s in p.spans] for p in prompt.phrases]
        stored = row["boxes"]
        boxes, scores = (torch.tensor([box[key] for box in stored]) for key in ("box", "score"))
        labels = torch.tensor([label for box in stored for label in box["phrases"]])
        assert_alike(replace(found, boxes=boxes, scores=scores, labels=labels), found, scores=2e-4, boxes=0.02)


def test_captions_of_a_image_share_its_encoding(pool, tiny_folder, tmp_path, monkeypatch):
    encoded: list[int] = []
    whole = Detector.encode_image
    monkeypatch.setattr(
        Detector, "encode_image", lambda self, images: encoded.append(len(images)) or whole(self, images)
    )
    run(pool, tiny_folder, tmp_path / "out")
    assert sum(encoded) == 10  # of eleven captions


@pytest.mark.slow
def test_a_killed_run_goes_on_and_does_each_shard_once(pool, tiny_folder, tmp_path, monkeypatch):
    run(pool, tiny_folder, tmp_path / "whole")
    done: list[str] = []
    once = Labeller.__call__

    def dying(self, shard):
        if len(done) == 1:
            done.append("death")
            raise KeyboardInterrupt
        done.append(shard.name)
        return once(self, shard)

    monkeypatch.setattr(Labeller, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run(pool, tiny_folder, tmp_path / "killed")
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert (report["shards"], report["shards in all"], report["pairs"]) == (1, 3, 5)  # told though interrupted
    run(pool, tiny_folder, tmp_path / "killed")
    assert done == ["captions-00000", "death", "captions-00001", "captions-00002"]
    assert labels(tmp_path / "killed") == labels(tmp_path / "whole")


def test_a_shard_without_its_mark_is_made_again(pool, tiny_folder, tmp_path):
    run(pool, tiny_folder, tmp_path)
    before = labels(tmp_path)
    (tmp_path / "captions-00001.report.json").unlink()
    (tmp_path / "captions-00001.jsonl").write_text('{"half a li')
    run(pool, tiny_folder, tmp_path)
    assert labels(tmp_path) == before


@pytest.mark.slow
def test_torchrun_shares_the_shards(pool, tiny_folder, tmp_path):
    run(pool, tiny_folder, tmp_path / "one")
    for rank in ("1", "0"):  # the main one last: it writes the report over all
        command = [
            sys.executable,
            "-m",
            "glip",
            "label",
            tiny_folder,
            pool / "captions.jsonl",
            "--out",
            tmp_path / "two",
        ]
        options = ["--engine", "torchrun", "--per-shard", "4", "--threshold", "0", "--max-detections", "5"]
        rules = ["--pairs", "min_bytes=0", "min_side=0", "same_image=-1", "--device", "cpu", "--threads", "1"]
        environment = {**os.environ, "RANK": rank, "WORLD_SIZE": "2"}
        subprocess.run([*map(str, command), *options, *rules], check=True, env=environment, capture_output=True)
    assert labels(tmp_path / "two") == labels(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "report.json").read_text())["pairs"] == 11


@pytest.mark.slow
def test_ray_gives_the_same_files(pool, tiny_folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    run(pool, tiny_folder, tmp_path / "one")
    command = [sys.executable, "-m", "glip", "label", tiny_folder, pool / "captions.jsonl", "--out", tmp_path / "two"]
    options = ["--engine", "ray", "--workers", "2", "--per-shard", "4", "--threshold", "0", "--max-detections", "5"]
    rules = ["--pairs", "min_bytes=0", "min_side=0", "same_image=-1", "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*map(str, command), *options, *rules], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert labels(tmp_path / "two") == labels(tmp_path / "one")


def test_parquet_holds_the_same_rows(pool, tiny_folder, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    run(pool, tiny_folder, tmp_path / "lines")
    run(pool, tiny_folder, tmp_path / "columns", form="parquet")
    assert list(read_rows(tmp_path / "columns")) == list(read_rows(tmp_path / "lines"))


def test_a_tar_is_a_shard_and_a_broken_image_is_counted(pool, tiny_folder, tmp_path):
    names = sorted((pool / "images").iterdir())[:3]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image" * 200)
    for part in (0, 1):
        with tarfile.open(tmp_path / f"{part:05d}.tar", "w") as archive:
            for number, path in enumerate([*names, tmp_path / "broken.jpg"] if part == 0 else names[:1]):
                archive.add(path, f"{number}.jpg")
                (tmp_path / "caption.txt").write_text("a red car and a blue star")
                archive.add(tmp_path / "caption.txt", f"{number}.txt")
    (tmp_path / "caption.txt").unlink()
    (tmp_path / "broken.jpg").unlink()
    entry = find_captions(str(tmp_path), (), None)
    assert [shard.name for shard in find_shards(entry, 2)] == ["00000", "00001"]
    done = run_labelling(entry, how(tiny_folder), tmp_path / "out", Workers(), print)
    report = done.report
    assert (report["pairs"], report["kept"]) == (5, 4) and not done.failed
    assert report["dropped"] == {"image that cannot be read": 1}
    assert "3.jpg" in report["places"]["image that cannot be read"][0]


def test_a_shard_that_cannot_be_read_fails_alone(pool, tiny_folder, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "bad.jsonl").write_text("no json at all\n")
    (source / "good.jsonl").write_text((pool / "captions.jsonl").read_text().splitlines()[0] + "\n")
    entry = find_captions(str(source), [str(pool / "images")], None)
    done = run_labelling(entry, how(tiny_folder), tmp_path / "out", Workers(), print)
    assert [failed.shard for failed in done.failed] == ["bad"] and done.report["pairs"] == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["failed"].keys() == {"bad"}
    (source / "bad.jsonl").write_text((pool / "captions.jsonl").read_text().splitlines()[1] + "\n")
    done = run_labelling(entry, how(tiny_folder), tmp_path / "out", Workers(), print)
    assert not done.failed and done.report["pairs"] == 2  # mended, and only that one was made


def test_threads_are_those_of_the_process_again(pool, tiny_folder, tmp_path):
    before = torch.get_num_threads()
    run(pool, tiny_folder, tmp_path, threads=before + 1)
    assert torch.get_num_threads() == before


def test_two_runs_do_not_write_to_one_place(pool, tiny_folder, tmp_path):
    with Store(tmp_path).locked(), pytest.raises(ValueError, match="another run writes to"):
        run(pool, tiny_folder, tmp_path)


def test_other_labels_are_not_mixed_in(pool, tiny_folder, tmp_path):
    run(pool, tiny_folder, tmp_path)
    with pytest.raises(ValueError, match="holds labels made with threshold 0.0, not 0.2"):
        run(pool, tiny_folder, tmp_path, threshold=0.2)


def test_odd_captions_are_counted_never_lost(pool, tiny_folder, tmp_path):
    name = json.loads((pool / "captions.jsonl").read_text().splitlines()[0])["image"]
    captions = [
        "a dog",
        "word " * 10_000,
        "<b>a dog</b>",
        "🐶🐶",
        "it",
        "ein Hund läuft 🐶 über 草地",
        "two\x00dogs here",
    ]
    lines = [json.dumps({"image": name, "caption": text}) for text in captions]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines) + "\n")
    entry = find_captions(str(tmp_path / "odd.jsonl"), [str(pool / "images")], None)
    done = run_labelling(entry, how(tiny_folder), tmp_path / "out", Workers(), print)
    report = done.report
    assert report["pairs"] == 7 == report["kept"] + sum(report["dropped"].values())
    assert {"caption of too many words", "caption with HTML", "caption without a letter"} <= report["dropped"].keys()


def test_a_image_of_too_many_pixels_is_not_decoded(tiny_folder, tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "huge.png")
    (tmp_path / "one.jsonl").write_text('{"image": "huge.png", "caption": "a dog on the grass"}\n')
    entry = find_captions(str(tmp_path / "one.jsonl"), [str(tmp_path)], None)
    report = run_labelling(entry, how(tiny_folder), tmp_path / "out", Workers(), print).report
    assert report["kept"] == 0 and sum(report["dropped"].values()) == 1


def test_shards_end_where_a_image_ends(pool):
    entry = find_captions(str(pool / "captions.jsonl"), (), None)
    shards = find_shards(entry, 1)
    assert len(shards) == 10
    second, _ = read_shard_images(shards[1])
    assert len(second) == 1 and second[0].captions[1] == "a red car and a blue star"


def test_nothing_left_to_do_loads_no_teacher(pool, tiny_folder, tmp_path, monkeypatch):
    run(pool, tiny_folder, tmp_path)
    monkeypatch.setattr(Labeller, "__init__", lambda *_: pytest.fail("a teacher was loaded"))
    entry = find_captions(str(pool / "captions.jsonl"), (), None)
    assert label_all(find_shards(entry, 4), how(tiny_folder), tmp_path, engine="local", workers=1, say=print) == []


def test_every_pair_is_stored_or_counted(pool, tiny_folder, tmp_path):
    lines = [json.loads(line) for line in (pool / "captions.jsonl").read_text().splitlines()]
    lines += [
        {"image": lines[0]["image"], "captions": ["it", "a dog", "two cats"]},
        {"image": "no.jpg", "captions": ["a", "a cow"]},
    ]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = find_captions(str(tmp_path / "more.jsonl"), [str(pool / "images")], None)
    rules = PairRules(min_bytes=0, same_image=0, min_words=1)  # the first image comes twice
    report = run_labelling(entry, how(tiny_folder, pairs=rules), tmp_path / "out", Workers(), print).report
    assert report["pairs"] == 16 == report["kept"] + sum(report["dropped"].values())
    assert report["dropped"]["image that looks like one before"] == 2 and (tmp_path / "out" / "report.png").is_file()
