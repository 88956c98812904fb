"""What the commands print reads well, and a log file gets lines, no frames of a bar."""

import sys
from types import SimpleNamespace

import pytest

from glip import console


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "image", "0 images"), (1, "box", "1 box"), (2, "box", "2 boxes"), (1, "image", "1 image")],
)
def test_a_count_and_its_noun(number, noun, text):
    assert console.counted(number, noun) == text


def test_a_log_gets_a_line_now_and_then(capfd, monkeypatch):
    assert list(console.ProgressBar(range(5), desc="short", unit="image")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr().err == "", "what takes less than a minute needs no line"
    monkeypatch.setattr(console, "_SECONDS", 1e-9)
    with console.ProgressBar(total=4, desc="long", unit="image") as bar:
        bar.update(2)
        console.ProgressBar.write("another line", file=sys.stderr)
    first, *others = capfd.readouterr().err.split("\n")
    assert first.startswith("long: 2 of 4 images, ") and first.endswith(" left") and others == ["another line", ""]


def test_a_terminal_gets_a_bar(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=sys.stderr.write, flush=lambda: None))
    list(console.ProgressBar(range(5), desc="short", unit="image"))
    shown = capfd.readouterr().err
    assert "\rshort:   0%|" in shown and shown.endswith(" \r"), "and the next line begins where it was"
