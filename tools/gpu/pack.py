"""Fill gpu_data/ with the inputs of the check that are outside the checkout, for a machine that only gets that."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from golden_cases import BIG_CASES, BIG_NAMES, TRAIN_NAMES

BESIDE = BIG_CASES[-1].parent.parent.parent  # holds golden/ and data/
_SETS = ("bccd", "raccoon")  # test sets, for the average precision of glip-nano
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def pack(target: Path, *, limit_mb: float, wheels: Sequence[str] = (), python: str = "", beside: Path = BESIDE) -> int:
    """Copy golden cases and small test sets, smallest first, and download wheels; what does not fit is named.

    Args:
        target: the folder, which is made new.
        limit_mb: its size at most; wheels come first.
        wheels: packages to download.
        python: the Python version of the machine that gets them.
        beside: where the inputs are.

    Returns:
        The exit code: 2 where nothing is to be had.
    """
    golden = [
        beside / "golden" / "cases" / f"{name}.npz"
        for name in (*BIG_NAMES, *TRAIN_NAMES)
        if not name.startswith("tiny")
    ]
    wanted = {file.stem: [file] for file in golden} | {name: test_files(beside / "data" / name) for name in _SETS}
    there = {name: files for name, files in wanted.items() if files and all(file.is_file() for file in files)}
    if not there and not wheels:
        print(f"error: neither golden cases nor datasets are under {beside}", file=sys.stderr)
        return 2
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if wheels and not download(target / "wheels", wheels, python):
        return 2
    for name, files in sorted(there.items(), key=lambda item: size(item[1])):
        if size([*target.rglob("*"), *files]) > limit_mb * 1e6:
            print(f"left out, does not fit into {limit_mb:g} MB: {name} ({size(files) / 1e6:.1f} MB)")
            continue
        for file in files:
            golden_case = file.suffix == ".npz"
            place = (
                target
                / ("golden" if golden_case else "data")
                / (file.name if golden_case else file.relative_to(beside / "data"))
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    for name in wanted.keys() - there.keys():
        print(f"not at hand: {name}")
    print(f"{target}: {size(target.rglob('*')) / 1e6:.1f} MB")
    return 0


def test_files(folder: Path) -> list[Path]:
    """The annotations of a set's test split and its images."""
    annotations = folder / "annotations" / "instances_test.json"
    if not annotations.is_file():
        return []
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    return [annotations, *(folder / "images" / image["file_name"] for image in images)]


def size(files: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(file.stat().st_size for file in files if file.is_file())


def download(folder: Path, names: Sequence[str], python: str) -> bool:
    """Wheels without their dependencies, for x86-64 Linux; whether all could be had."""
    version = ".".join(python.split(".")[:2])
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", version, "--implementation", "cp"]
    command += [word for platform in _PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    return subprocess.run([*command, *names]).returncode == 0
