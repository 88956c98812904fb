"""What README shows first is true: its badges, its moving image, and the notebooks, which run from a checkout."""

import configparser
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from draw_docs import draw_movie
from nbclient import NotebookClient
from PIL import Image
from small import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def drawn_by(book: nbformat.NotebookNode) -> list[int]:
    """The cells that show an image."""
    return [n for n, cell in enumerate(book.cells) if "image/png" in str(cell.get("outputs", ()))]


def test_badges_say_what_setup_cfg_says():
    metadata, front = configparser.ConfigParser(), (ROOT / "README.md").read_text(encoding="utf-8")
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", metadata["metadata"]["classifiers"])
    assert f"badge/Python-{'_|_'.join(versions)}-" in front
    assert f"badge/licence-{metadata['metadata']['license'].replace('-', '--')}-" in front


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_whole_and_small(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert cells and all(cell.execution_count for cell in cells), "execute it: CONTRIBUTING.md says how"
    assert drawn_by(book) and not [one for cell in cells for one in cell.outputs if one.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000 and not re.search(r"/(home|root|tmp|Users)/", text), "a path of the machine"
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"docs/notebooks/{path.name}" in front, "the README links each"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """As a reader runs them, with what they write apart; a cell's command that fails is an error."""
    (tmp_path / "docs" / "notebooks").mkdir(parents=True)
    for name in ("tools", "configs", "docs/images"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    book = nbformat.read(path, 4)
    shown = drawn_by(book)
    where = {"metadata": {"path": str(tmp_path / "docs" / "notebooks")}}
    NotebookClient(book, timeout=300, resources=where, coalesce_streams=True).execute()
    assert drawn_by(book) == shown


@pytest.mark.slow
def test_the_moving_image_is_what_the_tool_draws(tmp_path):
    draw_movie("glip-nano", tmp_path / "detect.gif")
    stored = ROOT / "docs" / "images" / "detect.gif"
    assert stored.stat().st_size <= 1_500_000
    with Image.open(stored) as kept, Image.open(tmp_path / "detect.gif") as drawn:
        assert kept.n_frames == drawn.n_frames and kept.info["loop"] == 0
        milliseconds = 0
        for frame in range(kept.n_frames):
            kept.seek(frame)
            drawn.seek(frame)
            milliseconds += kept.info["duration"]
            difference = np.abs(np.asarray(kept.convert("RGB"), int) - np.asarray(drawn.convert("RGB"), int))
            assert difference.mean() < 3, f"frame {frame}: draw it again with tools/draw_docs.py movie"
    assert 6_000 <= milliseconds <= 10_000
