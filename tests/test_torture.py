"""Verbs that run long, killed inside a write, flooded and started twice at once: the short form of tools/torture.py."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from small import ROOT

VERBS = ("train, EMA", "label, two processes", "select", "detect", "evaluate")
BLOWS = ("in a write", "at a rename", "disk full", "two at once")


@pytest.mark.slow
@pytest.mark.parametrize(("verbs", "blows"), [(VERBS, BLOWS), (("serve", "demo"), ("kill", "term"))])
def test_nothing_is_lost_or_wrong_or_left_over(verbs, blows):
    if verbs == ("serve", "demo") and not (find_spec("uvicorn") and find_spec("gradio")):
        pytest.skip("glip serve and demo need their extras")
    command = [sys.executable, ROOT / "tools" / "torture.py", "--only", *verbs, "--blows", *blows]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    *_, total = (line for line in done.stdout.splitlines() if line.startswith("| **all**"))
    tried = len(verbs) * len(blows)
    assert (done.returncode, total) == (0, f"| **all** | | {tried} | {tried} | 0 | 0 | 0 |"), done.stderr
