"""The command line as a person runs it, in an empty folder."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small import TINY, VOCABULARY, seeded, write_coco

from glip.cli.main import main
from glip.model.glip import GLIP
from glip.model.weights import save_pretrained


@pytest.fixture
def command_line(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run a verb of ``glip`` in an empty folder without a data root: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_DATA", raising=False)

    before = signal.getsignal(signal.SIGINT)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        signal.signal(signal.SIGINT, before)  # which an interrupted verb leaves ignored
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random weights in a folder."""
    config = replace(
        TINY,
        image=replace(TINY.image, min_size=96, max_size=128),
        inference=replace(TINY.inference, threshold=0.0, candidate_threshold=0.0, max_detections=30),
    )
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, seeded(config), config, VOCABULARY)
    return folder


@pytest.fixture
def shapes(tmp_path) -> Path:
    return write_coco(tmp_path / "shapes")


@pytest.fixture
def seen(monkeypatch):
    """How many images each call of an image encoder has had."""
    counts = []
    encode = GLIP.encode_image
    monkeypatch.setattr(GLIP, "encode_image", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels))
    return counts
