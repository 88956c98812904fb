"""Each adapter runs through its own tool; a snippet of docs/integrations.md is run as a reader would run it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_docs import ROOT, blocks

from glip.config import InferenceConfig
from glip.model.adapt import Adaptation
from glip.structures import Prompt


@pytest.fixture
def run_docs(tmp_path, monkeypatch) -> Callable[[str], dict[str, object]]:
    """Runs the Python blocks below a heading, in a folder with the project's docs; gives their names."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)

    def run(heading: str) -> dict[str, object]:
        _, page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")
        code = [block.code for block in blocks(page.split("\n## ")[0]) if block.language == "python"]
        assert code, heading
        names: dict[str, object] = {"__name__": "__main__"}
        exec("\n".join(code), names)
        return names

    return run


@pytest.fixture(scope="module")
def detectors(tiny_detector):
    """The model and a task of it; a GLIP that answers in no time."""
    detector = tiny_detector.resized(64)
    detector.config = replace(detector.config, inference=InferenceConfig(threshold=0.0, max_detections=7))
    prompt = Prompt.from_names(["a tree", "a house"])
    offsets = torch.randn_like(detector.encode_text(prompt).hidden[0])
    task = Adaptation("prompt", "tiny", detector.fingerprint, ("oak", "home"), prompt, offsets)
    return {"": detector, "plants": detector.adapted(task)}
