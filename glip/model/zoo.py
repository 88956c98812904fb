"""The checkpoints that glip loads, in ``configs/models.yaml``: their files, published figures and checksums."""

import os
import sys
from functools import cache
from pathlib import Path

from glip.errors import CheckpointError
from glip.experiment import config_folder, read_yaml
from glip.provenance import sha256
from glip.schema import checked, parse

TABLE = "models.yaml"


@checked
class Checkpoint:
    """A checkpoint; figures are percent as published for this very file, "" where they are not."""

    origin: str  # who made the file: glip, release or mmdetection
    licence: str  # of the repository
    figures: str  # where they are from
    parameters: float  # millions
    data: str  # what it was trained on
    name: str = ""  # what --model takes; "" for a file that is given by its path
    file: str = ""  # its public name; "" for what the package contains
    address: str = ""  # of its folder
    size: str = ""  # of the file
    limits: str = ""  # what it knows and does not, which is said where it is used
    coco: str = ""  # zero-shot AP on COCO val2017
    lvis: str = ""  # zero-shot Fixed AP on LVIS minival
    rare: str = ""  # APr there
    sha256: str = ""  # or its first digits


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """All of them, in the order of the table."""
    found = list[Checkpoint]()
    for origin, group in read_yaml(config_folder() / TABLE).items():
        shared = {"origin": origin, **{key: value for key, value in group.items() if key != "files"}}
        found += [parse(Checkpoint, shared | row, at=f"{TABLE}: {origin}") for row in group["files"]]
    return tuple(found)


def check_published(path: Path) -> None:
    """Refuse a file that has the name of a published checkpoint but other content.

    Raises:
        CheckpointError: its checksum is not the known one.
    """
    expected = next((one.sha256 for one in checkpoints() if one.file == path.name), "")
    if expected and not (found := sha256(path)).startswith(expected):
        raise CheckpointError(
            f"{str(path)!r} has sha256 {found[:12]}..., and {path.name} as published {expected[:12]}: download it "
            "again, or rename it if it is another checkpoint"
        )


def details_of(file: str) -> str:
    """Size and checksum of a published file in parentheses, where they are known."""
    known = next((one for one in checkpoints() if one.file == file), None)
    return f" ({known.size}, sha256 {known.sha256})" if known else ""


def say_limits(model: str | Path) -> None:
    """Print what a checkpoint does not know, if that must be said before its results are looked at."""
    limits = next((one.limits for one in checkpoints() if one.name == str(model)), "")
    if limits and os.environ.get("RANK", "0") == "0":  # one process of torchrun's
        print(f"{model} {limits}", file=sys.stderr)


def checkpoint_table(*, files: bool = False) -> list[str]:
    """The lines of a Markdown table: sizes, data, figures and licences, or addresses and checksums of the files."""
    columns = ["model", "size", "M parameters", "trained on", "COCO AP", "LVIS AP", "LVIS APr", "figures", "licence"]
    rows = [
        [one.name or one.file, one.size, str(one.parameters), one.data, one.coco, one.lvis, one.rare, one.figures]
        + [one.licence]
        for one in checkpoints()
    ]
    if files:
        columns = ["model", "file", "sha256"]
        rows = [[one.name, one.address + one.file, one.sha256] for one in checkpoints() if one.file]
    return ["| " + " | ".join(cell or "–" for cell in row) + " |" for row in [columns, ["---"] * len(columns), *rows]]
