"""Killed at any moment, a write included, and started again, a run ends bit-identical to one never stopped."""

import random
import subprocess
import sys
from pathlib import Path

import torch
from runs import metrics, same

PROGRAM = Path(__file__).with_name("killed_run.py")
MOMENTS = ["save:1", "save:2", "fsync:3", "replace:2", "fsync:4", "replace:3"]


def test_killed_at_any_moment(tmp_path):
    random.seed(0)
    times = [f"{random.uniform(0.05, 0.5):.2f}" for _ in range(3)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = {}
    for output, kills in ((whole, []), (killed, [*MOMENTS, *times])):
        done = subprocess.run([sys.executable, PROGRAM, output, *kills], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ended[output] = done.stdout
    assert ended[whole] == "[0]\n"
    assert ended[killed].startswith("[" + "-9, " * len(MOMENTS)) and ended[killed].endswith(", 0]\n")
    names = {"last.pt", "step-4.pt", "step-8.pt", "metrics.jsonl", "experiment.yaml"}
    assert {file.name for file in killed.iterdir()} == {file.name for file in whole.iterdir()} == names
    for name in ("last.pt", "step-4.pt", "step-8.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        first.pop("config"), second.pop("config")  # the output folders differ
        assert same(first, second), name
    assert metrics(whole) == metrics(killed)
