"""Killed at any moment, a write included, and started again, a run ends bit-identical to one never stopped."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_run import STEPS, start_run
from runs import metrics, same

PROGRAM = Path(__file__).with_name("killed_run.py")
# the first one lies between the two files of step 4
MOMENTS = ["save:5", "save:1", "save:2", "fsync:3", "replace:2", "replace:3"]


@pytest.mark.unchecked  # the checker draws random numbers, whose state is compared
@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    random.seed(0)
    times = [f"{random.uniform(0.05, 0.4):.2f}" for _ in range(2)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start_run(whole)
    command = [sys.executable, PROGRAM, killed, *MOMENTS, *times]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[" + "-9, " * len(MOMENTS)) and done.stdout.endswith(", 0]\n")
    names = {"last.pt", "step-4.pt", "metrics.jsonl", "experiment.yaml"}
    assert {file.name for file in killed.iterdir()} == {file.name for file in whole.iterdir()} == names
    for name in ("last.pt", "step-4.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        first.pop("made_from"), second.pop("made_from")  # the output folders differ
        assert same(first, second), name
    assert first["progress"]["step"] == 4 and len(metrics(whole)) == STEPS
    assert metrics(whole) == metrics(killed)
