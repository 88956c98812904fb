"""Check a GPU before a release: is it exact, how fast is it, what does training cost. See docs/gpu.md.

    python tools/check_gpu.py [--minutes 8] [--only PART ...] [--size tiny] [--out out/gpu]
    python tools/check_gpu.py --pack [--pack-mb 40] [--wheels NAME ...]

The parts run in order until the time is spent. Each writes its JSON file and the page check_gpu.md into the folder as
it goes; what failed, what needs a missing package and what did not fit is listed there. --pack copies the inputs of the
check that are outside the checkout into gpu_data/, for a machine that only gets the checkout.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN = (ROOT, ROOT / "tools", ROOT / "tests", ROOT / "tests" / "train")
sys.path[:0] = map(str, OWN)

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
_LONGEST_SHARE = 0.7  # of the time left, that one measurement may take while others wait
_STARTING = "starting"
_named: set[str] = set()  # reasons why results cannot be written


@dataclass
class Result:
    """What a part has measured so far. ``problems`` says why a measurement has no rows, or not all of them."""

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

        return pack(ROOT / "gpu_data", limit_mb=args.pack_mb, wheels=args.wheels, python=args.wheels_python)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the worker
    device, reason = choose_device(args.device)
    if device is None or (args.data and not args.data.is_dir()):
        print(f"error: {reason if device is None else f'--data {args.data} is no folder'}", file=sys.stderr)
        return 2
    tiny = args.size == "tiny"
    setup = Setup(device, tiny, args.repeats or (2 if tiny else 20), data_root(args), ROOT)
    environment = describe(device, reason)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()), flush=True)
    results = check(args.only or list(PARTS), setup, environment, time.monotonic() + 60 * args.minutes, args.out)
    print("\n" + page({name: vars(result) for name, result in results.items()}))
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
    known = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))] if available else []
    if wanted not in ("cpu", *known):
        return None, f"unknown device {wanted!r}; available: {', '.join(['cpu', *known])}" + (reason and f" ({reason})")
    return wanted, "" if wanted != "cpu" else "asked for with --device"


def data_root(args: argparse.Namespace) -> Path | None:
    """The folder of datasets, if there is one."""
    named = [args.data, ROOT / "gpu_data" / "data", os.environ.get("GLIP_DATA")]
    return next((Path(folder) for folder in named if folder and Path(folder).is_dir()), None)


def describe(device: str, reason: str) -> dict[str, str]:
    """The card, the versions and the command."""
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
    packages = ", ".join(f"{name} {version_of(name)}" for name in ("torchvision", "transformers", "timm"))
    found["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}, {packages}"
    commit = run_quietly(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    return {**found, "commit": commit or "unknown", "date": time.strftime("%Y-%m-%d")}


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def run_quietly(command: list[str]) -> str:
    """What a program prints; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def check(names: list[str], setup: Setup, environment: dict[str, str], deadline: float, out: Path) -> dict[str, Result]:
    """Run parts in order; what a part has is written as it comes."""
    results: dict[str, Result] = {}
    for name in names:
        result = results[name] = Result(environment)
        run_part(PARTS[name], result, setup, deadline, partial(write, out, name, result))
        print(f"{name}: {len(result.rows)} rows, {len(result.problems)} problems, {result.seconds:.0f} s", flush=True)
    return results


def run_part(part: Part, result: Result, setup: Setup, deadline: float, save: Callable[[], None]) -> None:
    """Run a part in a worker process, which is started again behind a measurement that it does not survive."""
    began = time.monotonic()
    waiting: list[str] | None = None  # not known before the worker has listed them
    while waiting is None or waiting:
        if time.monotonic() >= deadline:
            result.problems.update(dict.fromkeys(waiting or ["the whole part"], "did not fit into the time"))
            waiting = []
        else:
            waiting = Attendant(part, result, waiting, setup, deadline, save).attend()
        result.seconds = time.monotonic() - began
        save()


class Attendant:
    """Watches over one worker process: takes in what it measures, and ends it when it hangs.

    Args:
        part: what the worker runs.
        result: receives rows and problems.
        waiting: the measurements wanted; None for all.
        setup: of the check.
        deadline: the end of the check, on the monotonic clock.
        save: called whenever the result has changed.
    """

    def __init__(
        self,
        part: Part,
        result: Result,
        waiting: list[str] | None,
        setup: Setup,
        deadline: float,
        save: Callable[[], None],
    ) -> None:
        self.result, self.deadline, self.save = result, deadline, save
        self.left = list(waiting or ())
        self.current = _STARTING
        self.began = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        self.worker = context.Process(target=work, args=(sender, part, waiting, setup))
        self.worker.start()
        sender.close()

    def attend(self) -> list[str]:
        """Until the worker ends; gives the measurements that are still waiting."""
        try:
            while self.receiver.poll(self._patience()):
                kind, value = self.receiver.recv()
                if kind == "end":
                    self.worker.join(10)
                    return []
                self._take(kind, value)
            self._problem("was not finished in time", failed=time.monotonic() < self.deadline)
        except EOFError:
            self.worker.join()
            if self.worker.exitcode != _UNUSABLE:
                self._problem(f"its process ended with exit code {self.worker.exitcode}", failed=True)
        finally:
            self.worker.kill()
            self.worker.join()
        if self.current == _STARTING:  # it would not start again either
            self.result.problems.update(dict.fromkeys(self.left, "the worker did not start"))
            return []
        return self.left

    def _patience(self) -> float:
        """Seconds to wait: where others wait too, a measurement may take most of what is left, but not all."""
        share = _LONGEST_SHARE if self.left else 1.0
        end = self.began + share * (self.deadline - self.began)
        return max(0.0, min(self.deadline, end) - time.monotonic())

    def _take(self, kind: str, value: Any) -> None:
        if kind == "planned":
            self.left = list(value)
        elif kind == "begin":
            self.current, self.began = value, time.monotonic()
            self.left.remove(value)
            print(f"  {value} ...", end="", flush=True)
        elif kind == "done":
            print(f" {time.monotonic() - self.began:.1f} s", flush=True)
            self.current = ""
        elif kind == "row":
            self.result.rows.append(value)
            self.result.failed |= value.get("passed") is False
            self.save()
        else:
            self._problem(*value)

    def _problem(self, why: str, failed: bool) -> None:
        if self.current:
            self.result.problems[self.current] = why
            self.result.failed |= failed
            self.save()


def work(answers: Connection, part: Part, waiting: list[str] | None, setup: Setup) -> None:
    """The worker: measure, and send what comes of it."""
    if setup.cuda:
        torch.cuda.set_device(setup.device)
    for planned in plan(answers, part, waiting, setup):
        answers.send(("begin", planned.name))
        try:
            for row in planned.run():
                answers.send(("row", {"table": planned.table, **row}))
        except Exception as error:
            answers.send(("problem", explain(error)))
        try:
            release_memory(setup)
        except RuntimeError as error:
            answers.send(("problem", explain(error)))
            answers.close()
            os._exit(_UNUSABLE)
        answers.send(("done", None))
    answers.send(("end", None))


def plan(answers: Connection, part: Part, waiting: list[str] | None, setup: Setup) -> Iterator[Measurement]:
    """The measurements of a part that are wanted; their names are sent first."""
    module, function = part
    try:
        planned = list(getattr(importlib.import_module(module), function)(setup))
    except Exception as error:
        answers.send(("problem", explain(error)))
        return
    chosen = [one for one in planned if waiting is None or one.name in waiting]
    answers.send(("planned", [one.name for one in chosen]))
    yield from chosen


def explain(error: Exception) -> tuple[str, bool]:
    """Why a measurement gave nothing, and whether that fails the check."""
    if isinstance(error, Missing):
        return str(error), False
    if isinstance(error, ModuleNotFoundError) and not is_ours(str(error.name)):
        return f"package {error.name} is missing", False
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory", False
    traceback.print_exc()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return first_line(error) + where, True


def is_ours(module: str) -> bool:
    """Whether a module that cannot be imported is one of the checkout, which is a bug and no missing package."""
    top = module.split(".")[0]
    return any((folder / top).is_dir() or (folder / f"{top}.py").is_file() for folder in OWN)


def write(out: Path, name: str, result: Result) -> None:
    """The part's JSON file, and the page of all parts in the folder; a folder that cannot be written is named."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / f"{name}.json", json.dumps(vars(result), indent=1) + "\n")
        stored = {part: read_part(out / f"{part}.json") for part in PARTS}
        replace_file(out / "check_gpu.md", page({part: own for part, own in stored.items() if own}) + "\n")
    except OSError as error:
        if str(error) not in _named:
            _named.add(str(error))
            print(f"results cannot be written to {out} ({error}); they are printed at the end", file=sys.stderr)


def read_part(file: Path) -> dict[str, Any] | None:
    """What an earlier call has written; None where there is nothing, or nothing of ours."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and vars(Result({})).keys() == stored.keys() else None


def replace_file(file: Path, text: str) -> None:
    """Write a file whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main())
