"""Captioned images of the drawn world as people have them: files beside a list."""

import json
from pathlib import Path

import pytest
from draw_world import write_world
from drawn_world.scenes import World


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten drawn images: captions.jsonl, where the second has two captions, and their boxes in grounding.json."""
    folder = tmp_path_factory.mktemp("pool")
    write_world(folder, World("train", 1.0, (112, 150)), 10, first=700, both=False)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    lines.insert(2, json.dumps({**json.loads(lines[1]), "caption": "a red car and a blue star"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder
