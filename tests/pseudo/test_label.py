"""Labelling stores what the teacher finds for each caption, with any engine, once and without loss."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alike import assert_alike
from PIL import Image

from glip.config import LabelConfig
from glip.detector import Detector
from glip.errors import DataError
from glip.files import LockedError, exclusive
from glip.pseudo import run as run_module
from glip.pseudo import store
from glip.pseudo.label import Labeller, find_captions, find_shards, make_packs, read_shard, split_detections
from glip.pseudo.run import run_labelling
from glip.pseudo.store import read_rows
from glip.structures import Detections, Prompt
from glip.text.phrases import noun_phrases
from glip.text.prompt import join_prompts
from glip.visualize import contact_sheet, figure

OPTIONS = {"threshold": 0.0, "max_detections": 5, "per_shard": 4, "threads": 1}
OPTIONS |= {"min_bytes": 0, "min_side": 0, "same_image": -1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


def labels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def label(captions: Path, model: Path, out: Path, images: Path | None = None, **more: object) -> dict[str, object]:
    entry = find_captions(str(captions), [str(images)] if images else [], None)
    config = LabelConfig(**{**OPTIONS, **more})
    return run_labelling(entry, model, config, out, device="cpu", say=lambda _: None)


@pytest.fixture
def run(pool, tiny_folder):
    """Label the pool into a folder; options may be given."""
    return lambda out, **more: label(pool / "captions.jsonl", tiny_folder, out, **more)


def test_what_is_stored_is_what_the_detector_finds(pool, run, tiny_folder, tmp_path, monkeypatch):
    encoded: list[int] = []
    encode = Detector.encode_image
    monkeypatch.setattr(
        Detector, "encode_image", lambda self, images: encoded.append(len(images)) or encode(self, images)
    )
    report = run(tmp_path / "out")
    assert sum(encoded) == 10, "each image is encoded once, though one has two captions"
    rows = list(read_rows(tmp_path / "out"))
    assert report["pairs"] == report["kept"] == len(rows) == 11 and report["images"] == 10
    detector = Detector.from_pretrained(tiny_folder, device="cpu")
    for row in rows[:4]:
        prompt = Prompt.from_caption(row["caption"], list(noun_phrases(row["caption"])))
        found = detector(str(pool / "images" / row["image"]), prompt, threshold=0.0, max_detections=5)
        assert [phrase["spans"] for phrase in row["phrases"]] == [[list(s) for s in p.spans] for p in prompt.phrases]
        boxes, scores = (torch.tensor([box[key] for box in row["boxes"]]) for key in ("box", "score"))
        numbers = torch.tensor([number for box in row["boxes"] for number in box["phrases"]])
        assert_alike(replace(found, boxes=boxes, scores=scores, labels=numbers), found, scores=2e-4, boxes=0.02)


@pytest.mark.slow
def test_a_shard_without_its_report_is_labelled_again(run, tmp_path, monkeypatch):
    run(tmp_path)
    before = labels(tmp_path)
    (tmp_path / "captions-00001.report.json").unlink()
    (tmp_path / "captions-00001.jsonl").write_text('{"half a li')
    run(tmp_path)
    assert labels(tmp_path) == before
    monkeypatch.setattr(Labeller, "__init__", lambda *_: pytest.fail("nothing is left to label"))
    assert run(tmp_path)["pairs"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torchrun", "ray"])
def test_every_engine_writes_the_same_files(pool, run, tiny_folder, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    run(tmp_path / "one")
    command = [sys.executable, "-m", "glip", "label", tiny_folder, pool / "captions.jsonl", "--out", tmp_path / "two"]
    command += ["--engine", engine, "--workers", "2", "--device", "cpu", *FLAGS]
    for rank in ("1", "0") if engine == "torchrun" else ("0",):
        environment = {**os.environ, "RANK": rank, "WORLD_SIZE": "2"}
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    assert labels(tmp_path / "two") == labels(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "report.json").read_text())["pairs"] == 11


def test_parquet_holds_the_same_rows(run, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    run(tmp_path / "lines")
    run(tmp_path / "columns", form="parquet")
    assert list(read_rows(tmp_path / "columns")) == list(read_rows(tmp_path / "lines"))


def test_a_tar_is_a_shard_and_a_broken_image_is_counted(pool, tiny_folder, tmp_path):
    good = min((pool / "images").iterdir())
    (tmp_path / "extra").mkdir()
    broken, caption = tmp_path / "extra" / "broken.jpg", tmp_path / "extra" / "caption.txt"
    broken.write_bytes(b"\xff\xd8 not an image" * 200)
    caption.write_text("a red car and a blue star")
    for part, images in enumerate([(good, broken), (good,)]):
        with tarfile.open(tmp_path / f"{part:05d}.tar", "w") as archive:
            for number, path in enumerate(images):
                archive.add(path, f"{number}.jpg")
                archive.add(caption, f"{number}.txt")
    entry = find_captions(str(tmp_path), [], None)
    assert entry.images == (str(tmp_path),), "another folder of tars beside it has a 00000.tar too"
    assert [shard.name for shard in find_shards(entry, 2)] == ["00000", "00001"]
    before = torch.get_num_threads()
    report = label(tmp_path, tiny_folder, tmp_path / "out", threads=before + 1)
    assert torch.get_num_threads() == before
    assert (report["pairs"], report["kept"], report["failed"]) == (3, 2, {})
    assert report["skipped"] == {"image that cannot be read": 1}
    assert "1.jpg" in report["places"]["image that cannot be read"][0]


def test_a_shard_that_cannot_be_read_fails_alone(pool, tiny_folder, tmp_path):
    first, second = (pool / "captions.jsonl").read_text().splitlines()[:2]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jsonl").write_text("no json at all\n")
    (tmp_path / "in" / "good.jsonl").write_text(first + "\n")
    report = label(tmp_path / "in", tiny_folder, tmp_path / "out", pool / "images")
    assert report["failed"].keys() == {"bad"} and report["pairs"] == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    (tmp_path / "in" / "bad.jsonl").write_text(second + "\n")
    report = label(tmp_path / "in", tiny_folder, tmp_path / "out", pool / "images")
    assert not report["failed"] and report["pairs"] == 2, "repaired, and only that one is labelled"


def test_the_last_process_reports_what_failed_in_the_others(pool, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jsonl").write_text("no json at all\n")
    (tmp_path / "in" / "good.jsonl").write_text((pool / "captions.jsonl").read_text().splitlines()[0] + "\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        report = label(tmp_path / "in", tiny_folder, tmp_path / "out", pool / "images", engine="torchrun")
        assert report["failed"].keys() == {"bad"} and report["shards"] == int(rank)


def test_a_folder_belongs_to_one_run_with_the_same_options(run, tmp_path):
    with exclusive(tmp_path), pytest.raises(LockedError):
        run(tmp_path)
    run(tmp_path)
    with pytest.raises(DataError, match=r"threshold 0.0, not 0.2"):
        run(tmp_path, threshold=0.2)


def test_every_pair_is_stored_or_counted(pool, tiny_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(pool / "images", images)
    Image.new("1", (30_000, 30_000)).save(images / "huge.png")  # never decoded
    first, second = sorted(path.name for path in (pool / "images").iterdir())[:2]
    odd = ["word " * 10_000, "<b>a dog</b>", "🐶🐶", "it", "ein Hund läuft 🐶 über 草地", "two\x00dogs here"]
    rows = [(first, ["a dog", *odd]), (second, ["a car"]), (first, ["two cats"])]  # the first image comes twice
    rows += [("huge.png", ["a dog on the grass"]), ("no.jpg", ["a cow"])]
    lines = [json.dumps({"image": name, "captions": captions}) for name, captions in rows]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    report = label(tmp_path / "odd.jsonl", tiny_folder, tmp_path / "out", images, same_image=0)
    assert report["pairs"] == 11 == report["kept"] + sum(report["skipped"].values())
    assert report["skipped"]["near-duplicate image"] == 1 and report["skipped"]["image that cannot be read"] == 2
    assert {"caption with too many words", "caption with HTML", "caption without letters"} <= report["skipped"].keys()
    assert (tmp_path / "out" / "report.png").is_file()


@pytest.mark.parametrize(("keep", "kept"), [(False, 1), (True, 4)])
def test_web_captions(pool, tiny_folder, tmp_path, keep, kept):
    said = [
        "a red key &amp; a \U0001f511 bell",
        "红色的钥匙",
        "Москва\u2764\ufe0fcar here",
        "#key @me IMG_1.JPG",
        "草地 犬",
    ]
    names = sorted(path.name for path in (pool / "images").iterdir())
    lines = [json.dumps({"image": name, "caption": text}) for name, text in zip(names, said, strict=False)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    report = label(tmp_path / "web.jsonl", tiny_folder, tmp_path / "out", pool / "images", keep_unknown_words=keep)
    assert report["kept"] == kept and report["skipped"].pop("caption with too few noun phrases") == 1
    assert report["skipped"] == ({} if keep else {"caption whose phrases the tokenizer cannot read": 3})
    first = next(read_rows(tmp_path / "out"))
    assert first["caption"] == "a red key & a \U0001f511 bell"
    assert [first["caption"][slice(*phrase["spans"][0])] for phrase in first["phrases"]] == ["red key", "bell"]


def test_captions_without_a_single_image_are_refused(pool, tiny_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none of the 10 images is there, such as '.*empty/.*': give their folder"):
        label(pool / "captions.jsonl", tiny_folder, tmp_path / "out", tmp_path / "empty")
    report = label(pool / "captions.jsonl", tiny_folder, tmp_path / "out", pool / "images")
    assert report["pairs"] == 11, "the same output folder is free for the right one"


@pytest.mark.parametrize(
    ("given", "workers", "threads", "expected"),
    [("1", 1, 0, 1), ("", 2, 0, 4), ("3", 2, 0, 3), ("9", 2, 0, 4), ("1", 2, 5, 5)],
)
def test_workers_share_the_cores_and_heed_omp_num_threads(monkeypatch, given, workers, threads, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(given))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert run_module._threads(LabelConfig(workers=workers, threads=threads, engine="ray")) == expected


def test_a_long_shard_shows_its_progress(pool, tiny_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("glip.console._SECONDS", 1e-9)
    label(pool / "captions.jsonl", tiny_folder, tmp_path / "out", per_shard=10)
    assert "captions-00000: 10 of 10 images, " in capfd.readouterr().err


def test_shards_end_where_an_image_ends(pool, tmp_path):
    shards = find_shards(find_captions(str(pool / "captions.jsonl"), [], None), 1)
    assert len(shards) == 10
    [second], _ = read_shard(shards[1])
    assert [sample.caption for sample in second][1] == "a red car and a blue star"
    (tmp_path / "many").mkdir()
    for name in ("a.jsonl", "a.json", "b.jsonl"):  # two differ only in their suffix
        shutil.copy(pool / "captions.jsonl", tmp_path / "many" / name)
    entry = find_captions(str(tmp_path / "many"), [str(pool / "images")], None)
    assert sorted(shard.name for shard in find_shards(entry, 1)) == ["a.json", "a.jsonl", "b"]


# ---- several captions of one image in one prompt


PROMPTS = [
    Prompt.from_caption("a dog and a cat.", ["dog", "cat"]),
    Prompt.from_caption("the cat sleeps ", ["cat"]),
    Prompt.from_caption("two birds over a house", ["two birds", "house"]),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("together", "max_tokens", "sizes"), [(1, 99, [1, 1, 1]), (2, 99, [2, 1]), (9, 99, [3]), (9, 8, [2, 1])]
)
def test_packs_end_where_nothing_fits(together, max_tokens, sizes):
    counter = SimpleNamespace(max_tokens=max_tokens, count_tokens=lambda text: len(text.split()))
    packs = list(make_packs(PROMPTS, counter, together))
    assert [len(pack) for pack in packs] == sizes
    assert [prompt for pack in packs for prompt in pack] == PROMPTS


def test_detections_go_back_to_their_caption():
    labels = torch.tensor([2, 0, 4, 1, 3, 0])
    found = Detections(torch.rand(6, 4), torch.linspace(0.9, 0.4, 6), labels, join_prompts(PROMPTS), (9, 9))
    first, second, third = split_detections(found, PROMPTS, 2)
    assert first.labels.tolist() == [0, 1] and first.prompt is PROMPTS[0]  # its third detection is over the limit
    assert second.labels.tolist() == [0] and third.labels.tolist() == [1, 0]
    assert torch.equal(third.scores, found.scores[[2, 4]]) and torch.equal(third.boxes, found.boxes[[2, 4]])


def test_the_report_shows_each_image_once_and_no_empty_panel(run, tmp_path, monkeypatch):
    shown, titles = [], []
    monkeypatch.setattr(store, "_CONFIDENT", 0.0)
    monkeypatch.setattr(store, "contact_sheet", lambda samples: shown.extend(samples) or contact_sheet(samples))

    @contextmanager
    def kept(*args):
        with figure(*args) as canvas:
            yield canvas
            titles.extend(panel.get_title() for panel in canvas.axes)

    monkeypatch.setattr(store, "figure", kept)
    run(tmp_path / "out")
    assert len({str(sample.image) for sample in shown}) == len(shown) == 8
    assert len(titles) == 3 and not any("skipped" in title for title in titles), "nothing was skipped"
