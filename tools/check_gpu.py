"""Check a GPU before a release: is it exact, how fast is it, what does training cost. See docs/gpu.md.

    python tools/check_gpu.py [--minutes 8] [--only PART ...] [--size tiny] [--out out/gpu]
    python tools/check_gpu.py --pack [--pack-mb 40] [--wheels NAME ...]

The parts run in order until the time is spent. Each writes its JSON file and the page check_gpu.md into the folder as
it goes; what failed, what needs a missing package and what did not fit is listed there. --pack copies the inputs of the
check that are outside the checkout into gpu_data/, for a machine that only gets the checkout.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN = (ROOT, ROOT / "tools", ROOT / "tests", ROOT / "tests" / "train")
sys.path[:0] = map(str, OWN)

import gpu_parity  # noqa: E402
import gpu_speed  # noqa: E402
import torch  # noqa: E402
from golden_cases import BIG_CASES, BIG_NAMES, TRAIN_NAMES  # noqa: E402
from measuring import Measurement, Missing, Row, Setup, table  # noqa: E402

from glip.files import atomic_write  # noqa: E402

PARTS: dict[str, Callable[[Setup], Iterator[Measurement]]] = {  # in the order in which time is spent
    "parity": gpu_parity.parity,
    "drift": gpu_parity.drift,
    "speed": gpu_speed.speed,
    "training": gpu_speed.training,
    "labelling": gpu_speed.labelling,
    "compiled": gpu_speed.compiled,
    "grounding-dino": gpu_speed.grounding_dino_passes,
}
LONGEST_SHARE = 0.7  # of the time left, that one measurement may take while others wait
BESIDE = BIG_CASES[-1].parent.parent.parent  # holds golden/ and data/, which --pack copies
PACKED_SETS = ("bccd", "raccoon")  # test sets, for the average precision of glip-nano
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


@dataclass
class Result:
    """What a part has measured so far. ``problems`` says why a measurement has no rows, or not all of them."""

    environment: dict[str, str]
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    failed: bool = False


def main() -> int:
    """Run the chosen parts; returns 1 where something failed, 2 where the call was wrong."""
    args = parse(sys.argv[1:])
    if args.pack:
        return pack(ROOT / "gpu_data", limit_mb=args.pack_mb, wheels=args.wheels, python=args.wheels_python)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the worker
    device, reason = choose_device(args.device)
    if device is None or (args.data and not args.data.is_dir()):
        print(f"error: {reason if device is None else f'--data {args.data} is no folder'}", file=sys.stderr)
        return 2
    roots = (args.data, ROOT / "gpu_data" / "data", os.environ.get("GLIP_DATA"))
    data = next((Path(folder) for folder in roots if folder and Path(folder).is_dir()), None)
    tiny = args.size == "tiny"
    setup = Setup(device, args.repeats or (2 if tiny else 20), data, tiny)
    environment, deadline = describe(device, reason), time.monotonic() + 60 * args.minutes
    print("\n".join(f"{key}: {value}" for key, value in environment.items()), flush=True)
    results: dict[str, Result] = {}
    for name in args.only or PARTS:
        result = results[name] = Result(environment)
        for _ in run_part(list(PARTS[name](setup)), result, setup, deadline):
            write(args.out, name, result)
        print(f"{name}: {len(result.rows)} rows, {len(result.problems)} problems, {result.seconds:.0f} s", flush=True)
    print("\n" + page({name: vars(result) for name, result in results.items()}))
    return int(any(result.failed for result in results.values()))


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (default: 8)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny tries the check itself")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: CUDA where available)")
    parser.add_argument("--repeats", type=int, help="timed runs of each measurement (default: 20; tiny: 2)")
    parser.add_argument("--data", type=Path, help="folder of datasets (default: gpu_data/data, GLIP_DATA)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="folder of results (default: out/gpu)")
    parser.add_argument("--pack", action="store_true", help="fill gpu_data/ and stop")
    parser.add_argument("--pack-mb", type=float, default=40.0, help="size of gpu_data/ (default: 40)")
    parser.add_argument("--wheels", nargs="*", default=[], metavar="NAME", help="packages that --pack adds")
    parser.add_argument("--wheels-python", default=platform.python_version(), help="Python of the other machine")
    args = parser.parse_args(words)
    if args.minutes <= 0 or (args.repeats is not None and args.repeats < 1):
        parser.error("--minutes and --repeats must be above 0")
    return args


# ---- where it runs


def choose_device(wanted: str | None) -> tuple[str | None, str]:
    """A device, and why it is not a GPU; None where the wanted device is not there."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    reason = ""
    if not available:
        built = "" if torch.version.cuda else "this torch was built without CUDA"
        warned = next((" ".join(str(warning.message).split())[:300] for warning in caught), "")
        reason = built or warned or "torch finds no CUDA device"
    if wanted is None:
        return ("cuda" if available else "cpu"), reason
    known = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))] if available else []
    if wanted not in ("cpu", *known):
        return None, f"unknown device {wanted!r}; available: {', '.join(['cpu', *known])}" + (reason and f" ({reason})")
    return wanted, "" if wanted != "cpu" else "chosen by --device"


def describe(device: str, reason: str) -> dict[str, str]:
    """The card, the versions and the command."""
    found = {"command": shlex.join(["python", "tools/check_gpu.py", *sys.argv[1:]])}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        drivers = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["device"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        found["driver"] = drivers.partition("\n")[0]
        found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    else:
        found["device"] = "CPU" + (f": {reason}" if reason else "")
    found["processor"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    packages = {one.name.lower(): one.version for one in distributions()}
    named = (f"{name} {packages.get(name, 'missing')}" for name in ("torchvision", "transformers", "timm"))
    found["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}, {', '.join(named)}"
    found["commit"] = output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return {**found, "date": time.strftime("%Y-%m-%d")}


def output_of(*command: str) -> str:
    """What a program prints; "unknown" where it is missing or fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
    return "unknown"


# ---- running measurements in a worker process, which is started again after one that it does not survive


def run_part(planned: Sequence[Measurement], result: Result, setup: Setup, deadline: float) -> Iterator[None]:
    """Run measurements until the deadline; yields after each and at the end."""
    began, pool, worker = time.monotonic(), None, 0
    for number, measurement in enumerate(planned, start=1):
        start = time.monotonic()
        if start >= deadline:
            result.problems[measurement.name] = "did not fit into the time"
            continue
        if pool is None:
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            worker = pool.submit(os.getpid).result()
        print(f"  {measurement.name} ...", end="", flush=True)
        share = LONGEST_SHARE if number < len(planned) else 1.0
        rows, usable = list[Row](), False
        problem: tuple[str, bool] | None = ("its process died", True)
        try:
            rows, usable, problem = pool.submit(measure, measurement, setup).result(share * (deadline - start))
        except TimeoutError:
            problem = ("was not finished in time", True)
        except BrokenProcessPool:
            pass
        result.rows += [{"table": measurement.table, **row} for row in rows]
        result.failed |= any(row.get("passed") is False for row in rows)
        if problem:
            result.problems[measurement.name], failed = problem
            result.failed |= failed and time.monotonic() < deadline
        if not usable:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            pool = None
        print(f" {time.monotonic() - start:.1f} s", flush=True)
        yield
    if pool:
        pool.shutdown()
    result.seconds = time.monotonic() - began
    yield


def measure(measurement: Measurement, setup: Setup) -> tuple[list[Row], bool, tuple[str, bool] | None]:
    """In the worker: the rows, whether the device is still usable, and what went wrong (True: which is a failure)."""
    rows, usable, problem = list[Row](), True, None
    if setup.cuda:
        torch.cuda.set_device(setup.device)
    try:
        rows.extend(measurement.run())
    except Exception as error:
        problem = explain(error)
    try:
        gc.collect()
        if setup.cuda:  # raises where an earlier error has left the device unusable
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError as error:
        problem, usable = problem or explain(error), False
    return rows, usable, problem


def explain(error: Exception) -> tuple[str, bool]:
    """Why a measurement gave nothing, and whether that fails the check."""
    if isinstance(error, Missing):
        return str(error), False
    if isinstance(error, ModuleNotFoundError):
        top = str(error.name).split(".")[0]
        if not any((folder / top).is_dir() or (folder / f"{top}.py").is_file() for folder in OWN):  # else it is a bug
            return f"package {error.name} is missing", False
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory", False
    traceback.print_exc()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}", True


# ---- results


def write(out: Path, name: str, result: Result) -> None:
    """Write the part's JSON file, and the page of all parts in the folder; a folder that cannot be written is named."""
    stored: dict[str, Any] = {}
    try:
        with atomic_write(out / f"{name}.json") as file:
            json.dump(vars(result), file, indent=1)
        for part in PARTS:
            with suppress(OSError, ValueError, TypeError):  # what earlier calls have written; not any other file
                stored[part] = vars(Result(**json.loads((out / f"{part}.json").read_text(encoding="utf-8"))))
        with atomic_write(out / "check_gpu.md") as file:
            file.write(page(stored) + "\n")
    except OSError as error:
        print(f"results cannot be written to {out} ({error}); they are printed at the end", file=sys.stderr)


def page(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown; card, versions and command are repeated where they change."""
    lines, heading = list[str](), ""
    for name, part in parts.items():
        own = "\n".join(f"- {key}: {value}" for key, value in part["environment"].items())
        lines += ([own, ""] if own != heading else []) + [f"## {name}", "", f"{part['seconds']:.0f} s.", ""]
        heading = own
        for title in dict.fromkeys(row["table"] for row in part["rows"]):
            rows = [{k: v for k, v in row.items() if k != "table"} for row in part["rows"] if row["table"] == title]
            lines += [f"### {title}", "", *table(rows), ""]
        problems = [{"not measured": what, "why": why.replace("|", "/")} for what, why in part["problems"].items()]
        lines += [*table(problems), ""] if problems else []
    return "\n".join(lines)


# ---- inputs for a machine that only gets the checkout


def pack(target: Path, *, limit_mb: float, wheels: Sequence[str] = (), python: str = "", beside: Path = BESIDE) -> int:
    """Copy golden cases and small test sets, smallest first, and download wheels; what does not fit is named.

    Args:
        target: the folder, which is emptied first.
        limit_mb: its size at most; wheels come first.
        wheels: packages to download, without their dependencies, for x86-64 Linux.
        python: the Python version of the machine that gets them.
        beside: where the inputs are.

    Returns:
        The exit code: 2 where nothing can be had.
    """
    golden = {n: [beside / "golden" / "cases" / f"{n}.npz"] for n in (*BIG_NAMES, TRAIN_NAMES[0])}
    wanted = golden | {name: test_files(beside / "data" / name) for name in PACKED_SETS}
    there = {name: files for name, files in wanted.items() if files and all(file.is_file() for file in files)}
    if not there and not wheels:
        print(f"error: neither golden cases nor datasets are under {beside}", file=sys.stderr)
        return 2
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", ".".join(python.split(".")[:2]), "--implementation", "cp"]
        command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
        if subprocess.run([*command, "-d", str(target / "wheels"), *wheels]).returncode:
            return 2
    for name, files in sorted(there.items(), key=lambda item: megabytes(item[1])):
        if megabytes([*target.rglob("*"), *files]) > limit_mb:
            print(f"left out, does not fit into {limit_mb:g} MB: {name} ({megabytes(files):.1f} MB)")
            continue
        for file in files:
            place = target / (Path("golden", file.name) if name in golden else file.relative_to(beside))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    print("".join(f"missing: {name}\n" for name in wanted.keys() - there.keys()), end="")
    print(f"{target}: {megabytes(target.rglob('*')):.1f} MB")
    return 0


def test_files(folder: Path) -> list[Path]:
    """The annotations of a set's test split and its images."""
    annotations = folder / "annotations" / "instances_test.json"
    if not annotations.is_file():
        return []
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    return [annotations, *(folder / "images" / image["file_name"] for image in images)]


def megabytes(files: Iterable[Path]) -> float:
    """The size of files."""
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
