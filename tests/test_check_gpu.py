"""tools/check_gpu.py: whole on a CPU, and what goes wrong is named while the rest goes on."""

import json
import os
import subprocess
import sys
import time
import warnings
from functools import partial

import check_gpu
import pytest
import torch
from check_gpu import pack, page
from measuring import Measurement, Setup
from part_for_tests import measure
from small import ROOT


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu(tmp_path):
    (tmp_path / "data").mkdir()
    words = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--minutes", "20", "--data", tmp_path / "data"]
    command = [sys.executable, ROOT / "tools" / "check_gpu.py", *words, "--out", tmp_path / "new" / "out"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests need the other processors
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT, env=alone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = {name: json.loads((tmp_path / "new" / "out" / f"{name}.json").read_text()) for name in check_gpu.PARTS}
    problems = {what: why for part in parts.values() for what, why in part["problems"].items()}
    assert set(problems.values()) == {"CUDA graphs need a GPU"}
    rows = {name: part["rows"] for name, part in parts.items()}
    assert all(rows.values()) and all(row.get("passed") is not False for own in rows.values() for row in own)
    assert {row["case"] for row in rows["parity"] if "logits" in row} >= {"tiny_det", "tiny_nofuse_det"}
    assert any("passed" in str(row.get("result")) for row in rows["parity"]), "tests of devices ran"
    assert {row["precision"] for row in rows["drift"] if "case" in row} == {"bfloat16"}
    stages = {row["stage"]: row for row in rows["speed"] if "stage" in row}
    assert stages["fusion"]["GFLOP"] > stages["text"]["GFLOP"] > 0 and stages["backbone"]["MB"] > 1
    assert {row["parallel"] for row in rows["training"] if "parallel" in row} == {"none", "ddp", "fsdp"}
    text = (tmp_path / "new" / "out" / "check_gpu.md").read_text()
    assert "device: CPU" in text and f"torch {torch.__version__}" in text and text.strip() in done.stdout


def measured(*names: str, seconds: float) -> tuple[check_gpu.Result, list[int]]:
    """The result of some measurements, and how many rows it had at each change."""
    planned = [Measurement(name, "Table", partial(measure, name)) for name in names]
    result = check_gpu.Result({})
    changes = check_gpu.run_part(planned, result, Setup("cpu", 1, tiny=True), time.monotonic() + seconds)
    return result, [len(result.rows) for _ in changes]


@pytest.mark.slow
def test_what_goes_wrong_is_named_and_the_rest_goes_on():
    wrong = ("broken", "out of memory", "lacking", "without package", "dying", "failing")
    result, counts = measured("working", *wrong, "working", seconds=300)
    assert [row["figure"] for row in result.rows] == [1.5, 9.0, 1.5]
    assert result.failed, "a row that has not passed, an error and a death fail the check"
    assert result.problems.pop("broken").startswith("ValueError: two lines of text (part_for_tests.py:")
    assert result.problems == {
        "out of memory": "out of memory",
        "lacking": "a file is not on this machine",
        "without package": "package no_such_package is missing",
        "dying": "its process died",
    }
    assert result.seconds < 250, "it ends when all is done"
    assert {1, 2, 3} <= set(counts), "rows are there as they come"
    text = page({"part": vars(result)})
    assert "| 9 | **no** |" in text and "| dying | its process died |" in text
    ours = ModuleNotFoundError("No module named 'golden_cases.x'", name="golden_cases.x")
    assert check_gpu.explain(ours)[1], "a missing module of the checkout is a bug"


@pytest.mark.slow
def test_a_measurement_that_hangs_is_ended_and_the_next_has_its_turn():
    result, _ = measured("endless", "working", seconds=60)
    assert result.problems == {"endless": "was not finished in time"} and result.failed
    assert [row["figure"] for row in result.rows] == [1.5]


def test_what_does_not_fit_is_listed():
    result, _ = measured("working", seconds=-1)
    assert result.problems == {"working": "did not fit into the time"} and not result.failed


def test_why_there_is_no_gpu(monkeypatch):
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    device, reason = check_gpu.choose_device(None)
    assert device == "cpu" and "driver on your system is too old" in reason
    assert reason in check_gpu.describe(device, reason)["device"]
    assert check_gpu.choose_device("cuda:7")[0] is None


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    result = check_gpu.Result({"device": "CPU"}, rows=[{"table": "T", "figure": 1.0}])
    check_gpu.write(tmp_path / "file" / "out", "speed", result)
    assert "cannot be written to" in capsys.readouterr().err


def test_parts_of_several_calls_share_a_page(tmp_path):
    for part, card in (("speed", "one card"), ("parity", "another card")):
        result = check_gpu.Result({"device": card}, rows=[{"table": f"About {part}", "figure": 0.25}])
        check_gpu.write(tmp_path, part, result)
    (tmp_path / "training.json").write_text("not ours")
    check_gpu.write(tmp_path, "parity", result)
    text = (tmp_path / "check_gpu.md").read_text()
    assert text.index("another card") < text.index("About parity") < text.index("one card") < text.index("About speed")


def test_packing(tmp_path, capsys):
    (tmp_path / "golden" / "cases").mkdir(parents=True)
    for name, count in (("t_a_det3", 3000), ("t_c_det3", 1000)):
        (tmp_path / "golden" / "cases" / f"{name}.npz").write_bytes(bytes(count))
    for folder in ("annotations", "images"):
        (tmp_path / "data" / "bccd" / folder).mkdir(parents=True)
    (tmp_path / "data" / "bccd" / "images" / "1.jpg").write_bytes(bytes(10))
    listed = {"images": [{"file_name": "1.jpg"}]}
    (tmp_path / "data" / "bccd" / "annotations" / "instances_test.json").write_text(json.dumps(listed))
    assert pack(tmp_path / "out", limit_mb=0.002, beside=tmp_path) == 0
    packed = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert packed == {"golden/t_c_det3.npz", "data/bccd/images/1.jpg", "data/bccd/annotations/instances_test.json"}
    out = capsys.readouterr().out
    assert "left out, does not fit into 0.002 MB: t_a_det3" in out and "missing: raccoon" in out
    assert pack(tmp_path / "out", limit_mb=1, beside=tmp_path / "nowhere") == 2
    assert (tmp_path / "out" / "golden").is_dir(), "what was there stays"


@pytest.mark.parametrize("words", [("--minutes", "0"), ("--repeats", "0"), ("--only", "nothing")])
def test_wrong_calls(words, capsys):
    with pytest.raises(SystemExit) as ended:
        check_gpu.parse(list(words))
    assert ended.value.code == 2


def test_every_figure_of_the_docs_has_card_versions_and_command():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    figures = text.split("\n## Last figures\n", 1)[1]
    assert figures.lstrip().startswith("- command: "), "nothing stands before the first card"
    for block in figures.split("- command: ")[1:]:
        head, *tables = block.split("\n## ")
        assert tables and all(f"- {key}: " in head for key in ("device", "versions", "commit", "date")), head
