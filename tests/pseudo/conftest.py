"""Captioned images of the drawn world as people have them: files beside a list."""

import importlib.util
import json
from pathlib import Path

import pytest

from glip.data.world import World

TOOL = Path(__file__).resolve().parents[2] / "tools" / "draw_captions.py"


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten drawn images: captions.jsonl, where the second has two captions, and truth.jsonl."""
    spec = importlib.util.spec_from_file_location("draw_captions", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder = tmp_path_factory.mktemp("pool")
    tool.draw_captions(folder, World("train", 1.0, (112, 150)), 700, 10)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    lines.insert(2, json.dumps({**json.loads(lines[1]), "caption": "a red car and a blue star"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder
