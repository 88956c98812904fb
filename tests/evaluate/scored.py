"""Samples and detections written by hand, and where the official figures are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from glip.structures import Detections, Prompt, Sample

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "eval"
SHARED = GOLDEN.parents[2] / ".." / "shared" / "golden" / "eval"
BLANK = Image.new("RGB", (100, 100))
Box = tuple[float, float, float, float]


def shared_case(name: str) -> Path:
    """The folder of a golden case that is beside the project; without it the test is skipped."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no shared data: {SHARED / name}")
    return SHARED / name


def sample(names: Sequence[str], boxes: Sequence[tuple[Box, int]] = ()) -> Sample:
    """An image with named boxes, of a detection set."""
    return Sample(
        BLANK,
        torch.tensor([box for box, _ in boxes], dtype=torch.float32).reshape(-1, 4),
        tuple((label,) for _, label in boxes),
        vocabulary=tuple(names),
    )


def captioned(caption: str, phrases: Sequence[str], boxes: Sequence[tuple[Box, int]]) -> Sample:
    """An image with a caption and boxes of its phrases."""
    return replace(sample((), boxes), prompt=Prompt.from_caption(caption, phrases))


def detections(of: Sample, rows: Sequence[tuple[Box, float, int]]) -> Detections:
    """Boxes, scores and labels as found with the words of a sample, best first."""
    ordered = sorted(rows, key=lambda row: -row[1])
    return Detections(
        torch.tensor([box for box, _, _ in ordered], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in ordered], dtype=torch.float32),
        torch.tensor([label for _, _, label in ordered], dtype=torch.long),
        of.prompt or Prompt.from_names(of.vocabulary),
        (100, 100),
    )
