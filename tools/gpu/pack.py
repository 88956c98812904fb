"""Fill gpu_data/ with what the check reads from beside the checkout, for a machine that only gets the checkout."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from golden_cases import BIG_CASES, BIG_NAMES, TRAIN_NAMES

_SETS = ("bccd", "raccoon")  # test sets, for the average precision of glip-nano
_SIZES = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def pack(root: Path, *, limit_mb: float, wheels: Sequence[str], python: str) -> int:
    """Copy golden cases and small test sets, smallest first, and download wheels; what does not fit is named."""
    target, beside = root / "gpu_data", BIG_CASES[-1].parents[1]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if wheels:
        download(target / "wheels", wheels, python)
    golden = [BIG_CASES[-1] / f"{name}.npz" for name in (*BIG_NAMES, *TRAIN_NAMES) if not name.startswith("tiny")]
    wanted = [[file] for file in golden] + [test_files(beside / "data" / name) for name in _SETS]
    missing = [files for files in wanted if not files or not files[0].is_file()]
    for files in sorted((files for files in wanted if files not in missing), key=size):
        if size([*target.rglob("*"), *files]) > limit_mb * 1e6:
            print(f"left out, does not fit into {limit_mb:g} MB: {files[0].name} ({size(files) / 1e6:.1f} MB)")
            continue
        for file in files:
            place = target / ("golden" if file.suffix == ".npz" else "data") / relative(file, beside)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    if missing:
        print(f"{len(missing)} of {len(wanted)} inputs are not under {beside}")
    print(f"{target}: {size(target.rglob('*')) / 1e6:.1f} MB")
    return 0


def test_files(folder: Path) -> list[Path]:
    """The annotations of a set's test split and its images."""
    annotations = folder / "annotations" / "instances_test.json"
    if not annotations.is_file():
        return []
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    return [annotations, *(folder / "images" / image["file_name"] for image in images)]


def relative(file: Path, beside: Path) -> Path:
    """Where a file goes below golden/ or data/."""
    return Path(file.name) if file.suffix == ".npz" else file.relative_to(beside / "data")


def size(files: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(file.stat().st_size for file in files if file.is_file())


def download(folder: Path, names: Sequence[str], python: str) -> None:
    """Wheels without their dependencies, for x86-64 Linux."""
    version = ".".join(python.split(".")[:2])
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", version, "--implementation", "cp"]
    command += [word for size in _SIZES for word in ("--platform", f"{size}_x86_64")]
    subprocess.run([*command, *names], check=True)
