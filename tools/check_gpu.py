"""Check a GPU before a release: is it exact, how fast is it, what does training cost. See docs/gpu.md.

    python tools/check_gpu.py [--minutes 8] [--only PART ...] [--size tiny] [--out out/gpu]
    python tools/check_gpu.py --pack [--pack-mb 40] [--wheels NAME ...]

The parts run in order until the time is spent. Each writes its JSON file and the page check_gpu.md into the folder as
it goes; what failed, what needs a missing package and what did not fit is listed there. --pack copies what the check
reads from beside the checkout into gpu_data/, for a machine that only gets the checkout.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "train"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from gpu.measure import Measurement, Missing, Row, Setup, first_line, release_memory  # noqa: E402
from gpu.page import page  # noqa: E402

Part = tuple[str, str]
# Module and function that list the measurements of each part, in the order in which time is spent.
PARTS: dict[str, Part] = {
    "parity": ("gpu.parity", "measurements"),
    "drift": ("gpu.drift", "measurements"),
    "speed": ("gpu.speed", "measurements"),
    "training": ("gpu.training", "measurements"),
    "labelling": ("gpu.labelling", "measurements"),
    "compiled": ("gpu.speed", "compiled"),
    "grounding-dino": ("gpu.speed", "dino"),
}
_UNUSABLE = 3  # exit code of a worker whose device an error has left unusable


@dataclass
class Result:
    """What a part has given so far. ``problems`` says of each measurement without rows why it has none."""

    environment: dict[str, str]
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    failed: bool = False


def main() -> int:
    """Run the parts that were asked for; 1 where something failed, 2 where the call was wrong."""
    args = parse(sys.argv[1:])
    if args.pack:
        from gpu.pack import pack

        return pack(ROOT, limit_mb=args.pack_mb, wheels=args.wheels, python=args.wheels_python)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the worker
    device, reason = choose_device(args.device)
    if device is None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    tiny = args.size == "tiny"
    setup = Setup(device, tiny, args.repeats or (2 if tiny else 20), data_root(args), ROOT)
    environment = describe(device, reason)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()), flush=True)
    results = check(args.only or list(PARTS), setup, environment, time.monotonic() + 60 * args.minutes, args.out)
    print("\n" + page({name: vars(result) for name, result in results.items()}))
    print(f"written to {args.out}")
    return int(any(result.failed for result in results.values()))


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (default: 8)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny tries the check itself")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: CUDA where there is one)")
    parser.add_argument("--repeats", type=int, help="timed runs of each measurement (default: 20; tiny: 2)")
    parser.add_argument("--data", type=Path, help="folder of datasets (default: gpu_data/data, GLIP_DATA)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="folder of results (default: out/gpu)")
    parser.add_argument("--pack", action="store_true", help="fill gpu_data/ and stop")
    parser.add_argument("--pack-mb", type=float, default=40.0, help="size of gpu_data/ (default: 40)")
    parser.add_argument(
        "--wheels", nargs="*", default=[], metavar="NAME", help="packages that --pack adds (default: none)"
    )
    parser.add_argument("--wheels-python", default=platform.python_version(), help="Python of the other machine")
    args = parser.parse_args(words)
    if args.minutes <= 0 or (args.repeats is not None and args.repeats < 1):
        parser.error("--minutes and --repeats must be above 0")
    return args


def choose_device(wanted: str | None) -> tuple[str | None, str]:
    """A device, and why it is not a GPU; no device where the one that was asked for is not there."""
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
    if wanted != "cpu" and not (available and torch.device(wanted).index in (None, *range(torch.cuda.device_count()))):
        return None, f"device {wanted!r} is not there ({reason or 'too few GPUs'}); leave --device out, or give cpu"
    return wanted, "" if wanted != "cpu" else "asked for with --device"


def data_root(args: argparse.Namespace) -> Path | None:
    """The folder of datasets, if there is one."""
    named = [args.data, ROOT / "gpu_data" / "data", os.environ.get("GLIP_DATA")]
    return next((Path(folder) for folder in named if folder and Path(folder).is_dir()), None)


def describe(device: str, reason: str) -> dict[str, str]:
    """The card, the versions and the command."""
    import timm
    import torchvision
    import transformers

    found = {"command": shlex.join(["python", "tools/check_gpu.py", *sys.argv[1:]])}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["device"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        found["driver"] = run_quietly(query).splitlines()[0] if run_quietly(query) else "unknown"
        found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    else:
        found["device"] = "CPU" + (f": {reason}" if reason else "")
    found["processor"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found["versions"] = (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"transformers {transformers.__version__}, timm {timm.__version__}"
    )
    commit = run_quietly(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    return {**found, "commit": commit or "unknown", "date": time.strftime("%Y-%m-%d")}


def run_quietly(command: list[str]) -> str:
    """What a program prints; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def check(names: list[str], setup: Setup, environment: dict[str, str], deadline: float, out: Path) -> dict[str, Result]:
    """Run parts in order; each is written as it ends."""
    results: dict[str, Result] = {}
    for name in names:
        result = results[name] = run_part(PARTS[name], environment, setup, deadline)
        write(out, name, results)
        print(f"{name}: {len(result.rows)} rows, {len(result.problems)} problems, {result.seconds:.0f} s", flush=True)
    return results


def run_part(part: Part, environment: dict[str, str], setup: Setup, deadline: float) -> Result:
    """Run a part in a worker process, which is started again behind a measurement that it does not survive."""
    result, began = Result(environment), time.monotonic()
    waiting: list[str] | None = None  # not known before the worker has listed them
    while waiting is None or waiting:
        waiting = attend(part, result, waiting, setup, deadline)
    result.seconds = time.monotonic() - began
    return result


def attend(part: Part, result: Result, waiting: list[str] | None, setup: Setup, deadline: float) -> list[str]:
    """Run the measurements of a part that are still waiting; gives those that are left if the worker ended early."""
    late = "did not fit into the time"
    if time.monotonic() >= deadline:
        result.problems.update(dict.fromkeys(waiting if waiting else ["the whole part"], late))
        return []
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(there, part, waiting, setup))
    worker.start()
    there.close()
    current, left, began = "starting", list(waiting or ()), time.monotonic()
    try:
        while here.poll(max(0.0, deadline - time.monotonic())):
            kind, value = here.recv()
            if kind == "planned":
                left = list(value)
            elif kind == "begin":
                current = value
                left.remove(value)
                print(f"  {value} ...", end="", flush=True)
                began = time.monotonic()
            elif kind == "done":
                print(f" {time.monotonic() - began:.1f} s", flush=True)
            elif kind == "rows":
                result.rows += value
                result.failed |= any(row.get("passed") is False for row in value)
            elif kind == "problem":
                result.problems[current], failed = value
                result.failed |= failed
            else:
                worker.join(10)
                return []
    except EOFError:
        worker.join()
        if worker.exitcode != _UNUSABLE:
            result.problems[current] = f"its process ended with exit code {worker.exitcode}"
            result.failed = True
        return left
    finally:
        worker.kill()
        worker.join()
    result.problems.update({current: "was not finished in time", **dict.fromkeys(left, late)})
    return []


def work(answers: Connection, part: Part, waiting: list[str] | None, setup: Setup) -> None:
    """The worker: measure, and tell what came of it."""
    for planned in plan(answers, part, waiting, setup):
        answers.send(("begin", planned.name))
        try:
            rows = planned.run()
            answers.send(("rows", [{"table": planned.table, **row} for row in rows]))
        except Exception as error:
            answers.send(("problem", explain(error)))
        answers.send(("done", None))
        try:
            release_memory(setup)
        except RuntimeError:
            answers.close()
            os._exit(_UNUSABLE)
    answers.send(("end", None))


def plan(answers: Connection, part: Part, waiting: list[str] | None, setup: Setup) -> Iterator[Measurement]:
    """The measurements of a part that are wanted, told to the parent."""
    module, function = part
    try:
        planned = list(getattr(importlib.import_module(module), function)(setup))
    except ImportError as error:
        answers.send(("problem", explain(error)))
        return
    chosen = [one for one in planned if waiting is None or one.name in waiting]
    answers.send(("planned", [one.name for one in chosen]))
    yield from chosen


def explain(error: Exception) -> tuple[str, bool]:
    """Why a measurement gave nothing, and whether that fails the check."""
    if isinstance(error, Missing):
        return str(error), False
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("glip"):
        return f"package {error.name} is missing", False
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory", False
    traceback.print_exc()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return first_line(error) + where, True


def write(out: Path, name: str, results: dict[str, Result]) -> None:
    """The part's JSON file, and the page of all parts in the folder; a folder that cannot be written is named."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / f"{name}.json", json.dumps(vars(results[name]), indent=1) + "\n")
        files = {part: out / f"{part}.json" for part in PARTS}
        stored = {part: json.loads(file.read_text()) for part, file in files.items() if file.is_file()}
        replace_file(out / "check_gpu.md", page(stored) + "\n")
    except OSError as error:
        print(f"results of {name} cannot be written to {out}: {error}; they are printed at the end", file=sys.stderr)


def replace_file(file: Path, text: str) -> None:
    """Write a file whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main())
