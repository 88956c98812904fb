"""Kills and floods every verb that runs long, and checks that nothing is lost: the promises of docs/reliability.md.

    python tools/torture.py [--only train label] [--blows kill write] [--tries 1] [--long] [--workers 2] [--seed 0]

Every verb runs once without disturbance. Then it is struck again and again, with a blow of another kind at a random
moment, and the same command is run until it ends by itself: its files must be those of the first run, bit for bit where
nothing in them is a time. The columns lost, wrong and left over must be 0. ``--long`` repeats for hours.

Inputs are drawn. The imports are done once, and every run is a process forked from this one; each process of a run of
two is forked with the environment of torchrun. A new verb is one entry of ``VERBS``.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import small_inputs
from torture_parts import (
    OUT,
    PATIENCE,
    Count,
    Run,
    Verb,
    become_nobody,
    contents,
    count_events,
    die_at,
    limit,
    limit_memory,
    note_events,
    set_clock_back,
    wait_for,
)
from torture_server import SERVER_BLOWS, Page, Served


def _train(*more: object) -> Callable[[Path], Sequence[object]]:
    return lambda at: ["train", at / "train.yaml", f"train.output={OUT}", "--device=cpu", *more]


def _label(*more: object) -> Callable[[Path], Sequence[object]]:
    fixed = ["--threads=1", "--device=cpu", f"--out={OUT}", *small_inputs.LABEL]
    return lambda at: ["label", at / "model", at / "world" / "captions.jsonl", *fixed, *more]


def _evaluate(at: Path) -> Sequence[object]:
    return ["evaluate", at / "model", at / "coco" / "instances.json", f"--out={OUT}", "--draw", "--device=cpu"]


def _detect(at: Path) -> Sequence[object]:
    forms = [f"--format={form}" for form in ("jsonl", "json", "csv", "coco", "yolo", "labels")]
    fixed = [f"--model={at / 'model'}", f"--out={OUT}", f"--crops={OUT}/crops", "--device=cpu", "--threshold=0"]
    return ["detect", at / "coco" / "images", "red circle. blue star", *forms, *fixed]


def _detect_video(at: Path) -> Sequence[object]:
    fixed = [f"--model={at / 'model'}", f"--out={OUT}", "--device=cpu", "--threshold=0", "--batch-size=2"]
    return ["detect", at / "clip.mp4", "red circle. blue star", "--format=jsonl", "--format=csv", *fixed]


def _label_names(at: Path) -> Sequence[object]:
    fixed = [f"--out={OUT}", "--per-shard=2", "--threads=1", "--device=cpu", "--format=coco", "--format=labels"]
    return ["label", at / "model", at / "coco" / "images", "--names=red circle. blue star", "--threshold=0", *fixed]


def _self_train(at: Path) -> Sequence[object]:
    captions, sets = at / "world" / "captions.jsonl", at / "coco" / "instances.json"
    fixed = [f"--teacher={at / 'model'}", f"--out={OUT}", f"--evaluate={sets}", "--threads=1", "--device=cpu"]
    return ["self-train", at / "train.yaml", captions, *fixed, *small_inputs.LABEL, *small_inputs.SELECT]


def _export(form: str) -> Verb:
    return Verb(lambda at: ["export", at / "resnet", OUT, f"--format={form}"], package="onnxscript")


VERBS: dict[str, Verb] = {
    "train": Verb(_train()),
    "train, accumulated": Verb(_train("train.batch_size=4", "train.micro_batch=2")),
    "train, EMA": Verb(
        lambda at: (
            [
                *_train("train.ema=0.9", "train.loggers=[tensorboard]", "train.keep_every=3", "train.validate_every=3")(
                    at
                ),
                *["--validate", at / "coco" / "instances.json"],
            ]
        )
    ),
    "train, two processes": Verb(_train(), processes=2),
    "tune": Verb(
        lambda at: ["tune", at / "model", at / "coco" / "instances.json", f"--out={OUT}", "--epochs=3", "--device=cpu"]
    ),
    "evaluate": Verb(_evaluate),
    "evaluate, two processes": Verb(_evaluate, processes=2),
    "label": Verb(_label()),
    "label, two processes": Verb(_label("--engine=torchrun"), processes=2),
    "label, Ray": Verb(
        _label("--engine=ray", "--workers=2"), package="ray", blows=("kill", "term", "int twice", "two at once")
    ),
    "select": Verb(lambda at: ["select", at / "labels", f"--out={OUT}/selected.jsonl", *small_inputs.SELECT]),
    "self-train": Verb(_self_train),
    "label, names": Verb(_label_names),
    "detect": Verb(_detect),
    "detect, video": Verb(_detect_video, package="av"),
    "export": _export("onnx"),
    "export, torch": _export("torch"),
    "serve": Verb(
        lambda at: ["serve", f"--model={at / 'model'}", "--device=cpu"], package="uvicorn", blows=tuple(SERVER_BLOWS)
    ),
    "demo": Verb(
        lambda at: ["demo", f"--model={at / 'model'}", "--device=cpu"], package="gradio", blows=tuple(SERVER_BLOWS)
    ),
}
SERVERS = {"serve": Served, "demo": Page}


# ---- a verb under blows


class Tortured:
    """A verb, its inputs, and what it gives without disturbance."""

    def __init__(self, name: str, place: Path, seed: int) -> None:
        self.name, self.verb, self.place = name, VERBS[name], place / re.sub(r"\W+", "-", name)
        self.arguments, self.random = [str(part) for part in self.verb.arguments(place / "inputs")], random.Random(seed)
        self.counts = dict[str, Count]()
        events = self.place / "events"
        events.mkdir(parents=True)
        began = time.monotonic()
        first = self.new_run()
        codes = first.start(partial(count_events, partial(note_events, events))).wait()
        assert not any(codes), f"{name} fails without any blow, {codes}: {first.words()[-3000:]}"
        self.seconds, self.whole = time.monotonic() - began, contents(first.folder / OUT)
        self.events = {path.name: path.stat().st_size for path in events.iterdir()}
        sizes = [path.stat().st_size for path in (first.folder / OUT).rglob("*") if path.is_file()]
        self.largest, self.size = max(sizes), sum(sizes)
        shutil.rmtree(first.folder)

    def new_run(self) -> Run:
        """A run in an empty folder, which has the same name each time, since some files hold full paths."""
        folder = self.place / "run"
        folder.mkdir()
        folder.chmod(0o777)
        return Run(self.verb, folder, self.arguments)

    def strike(self, blow: str) -> None:
        """One blow, and the run to its end."""
        count, run = self.counts.setdefault(blow, Count()), self.new_run()
        try:
            codes = BLOWS[blow](self, run)
            if codes is None:
                self.counts.pop(blow)
                return
            count.tried += 1
            self._check_end(blow, run, codes, count)
            self._resume(run, count)
        except Exception as error:
            count.wrong += 1
            count.problems.append(f"{self.name}, {blow}: {type(error).__name__}: {error}")
        if count.problems:
            run.folder.rename(self.place / f"{blow}-{count.tried}".replace(" ", "-"))  # to look at
        shutil.rmtree(run.folder, ignore_errors=True)

    def _check_end(self, blow: str, run: Run, codes: list[int], count: Count) -> None:
        """No traceback, and where the disk was the problem a sentence that names the file; every file is whole."""
        words = run.words()
        contents(run.folder / OUT)
        clear = "could not be written" in words or not any(codes)
        unclear = blow in ("disk full", "small disk", "read only") and not clear
        if unclear or ("Traceback" in words and self.verb.processes == 1):
            count.wrong += 1
            count.problems.append(f"{self.name}, {blow}: {codes}, {words.strip()[-300:]}")

    def _resume(self, run: Run, count: Count) -> None:
        again = Run(self.verb, run.folder, self.arguments, number=9)
        codes = again.start(set_clock_back if count is self.counts.get("clock back") else lambda: None).wait()
        problems = [f"exit {codes}: {again.words().strip()[-300:]}"] * any(codes)
        count.resumed += not any(codes)
        found = contents(run.folder / OUT)
        lost = sorted(self.whole.keys() - found.keys())
        wrong = sorted(name for name in found if found[name] != self.whole.get(name))
        left = [path.name for path in (run.folder / OUT).rglob("*.partial")]
        count.lost, count.wrong, count.left = count.lost + len(lost), count.wrong + len(wrong), count.left + len(left)
        problems += [f"lost {lost}"] * bool(lost) + [f"wrong {wrong}"] * bool(wrong) + [f"left {left}"] * bool(left)
        count.problems += [f"{self.name}: {problem}" for problem in problems]
        with suppress(OSError, FileNotFoundError):
            subprocess.run(["umount", run.folder / OUT], stderr=subprocess.DEVNULL, check=False)

    def moment(self) -> float:
        """Seconds after the start."""
        return self.random.uniform(0.02, self.seconds)


Blow = Callable[[Tortured, Run], list[int] | None]  # the exit codes; None: not possible here


def by_signal(number: int, times: int, tortured: Tortured, run: Run) -> list[int]:
    """A signal at a random moment, to one of the processes if it kills, else to all."""
    run.start()
    time.sleep(tortured.moment())
    for place in range(times):
        time.sleep(0.05 * place)
        chosen = [tortured.random.choice(run.pids)] if number == signal.SIGKILL else run.pids
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    return run.wait()


def in_a_write(tortured: Tortured, run: Run) -> list[int]:
    """SIGKILL when the first half of a random file is written."""
    cut = tortured.random.randint(1, max(1, tortured.events.get("open", 1)))
    return run.start(partial(count_events, lambda *_: None, cut)).wait()


def at_a_rename(tortured: Tortured, run: Run) -> list[int]:
    """SIGKILL just before or after a random file gets its name."""
    moment = tortured.random.choice(["before", "after"]), tortured.random.randint(1, tortured.events["after"])
    return run.start(partial(count_events, partial(die_at, moment))).wait()


def at_a_size(ending: Any, tortured: Tortured, run: Run) -> list[int]:
    """No file may grow beyond a random size: an error, or death in the midst of a write by the kernel."""
    size = int(max(4_000, tortured.largest ** tortured.random.uniform(0.5, 1.0)))  # the log of the run needs some
    return run.start(partial(limit, resource.RLIMIT_FSIZE, size, ending)).wait()


def out_of_memory(tortured: Tortured, run: Run) -> list[int]:
    """Little more memory than at the start."""
    return run.start(partial(limit_memory, tortured.random.randint(1, 150) << 20)).wait()


def on_a_small_disk(tortured: Tortured, run: Run) -> list[int] | None:
    """A disk of its own that is too small; it is enlarged afterwards."""
    (run.folder / OUT).mkdir()
    kilobytes = 8 + int(tortured.size * tortured.random.uniform(0.1, 0.9) / 1000)
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k,mode=777", "tmpfs", str(run.folder / OUT)]
    if subprocess.run(["mount", *options], stderr=subprocess.DEVNULL, check=False).returncode:
        return None
    codes = run.start().wait()
    subprocess.run(["mount", "-o", "remount,size=1g", run.folder / OUT], check=True)
    return codes


def read_only(_: Tortured, run: Run) -> list[int]:
    """The output folder belongs to another user."""
    (run.folder / OUT).mkdir(mode=0o555)
    codes = run.start(become_nobody).wait()
    (run.folder / OUT).chmod(0o755)
    return codes


def two_at_once(_: Tortured, run: Run) -> list[int]:
    """A second run in the folder while the first one is in the midst of its first write: it ends with a sentence."""
    run.start(partial(count_events, partial(wait_for, run.folder / "go")))
    other, began = Run(run.verb, run.folder, run.arguments, number=1), time.monotonic()
    while not any(run.folder.rglob("*.lock")) and time.monotonic() - began < PATIENCE:
        time.sleep(0.01)
    refused = other.start().wait()
    (run.folder / "go").touch()
    first = run.wait()
    is_clear = 2 in refused and "another run writes to" in other.words()
    assert is_clear and not any(first), f"the two ended with {first} and {refused}: {other.words()[-300:]}"
    return first


BLOWS: dict[str, Blow] = {
    "kill": partial(by_signal, signal.SIGKILL, 1),
    "in a write": in_a_write,
    "at a rename": at_a_rename,
    "at a size": partial(at_a_size, signal.SIG_DFL),
    "term": partial(by_signal, signal.SIGTERM, 1),
    "int twice": partial(by_signal, signal.SIGINT, 2),
    "clock back": partial(by_signal, signal.SIGKILL, 1),
    "memory": out_of_memory,
    "disk full": partial(at_a_size, signal.SIG_IGN),
    "small disk": on_a_small_disk,
    "read only": read_only,
    "two at once": two_at_once,
}


def torture(job: tuple[str, Sequence[str], int, Path, int]) -> tuple[str, dict[str, Count]]:
    """All blows on one verb; gives why there are none, or "", and the counts by blow."""
    name, blows, tries, place, seed = job
    verb = VERBS[name]
    if verb.package and find_spec(verb.package) is None:
        return f"{verb.package} is not installed", {}
    try:
        tortured = SERVERS[name](verb, place, seed) if name in SERVERS else Tortured(name, place, seed)
    except AssertionError as error:
        return f"{name}: {error}", {"none": Count(tried=1, wrong=1, problems=[str(error)])}
    for _ in range(tries):
        for blow in blows:
            if blow in (verb.blows or BLOWS):
                tortured.strike(blow)
    return "", tortured.counts


def report(found: Iterable[tuple[str, dict[str, Count]]], names: Sequence[str]) -> bool:
    """Print the table as it comes and then what is wrong; gives whether anything is."""
    columns, total, problems = ("tried", "resumed", "lost", "wrong", "left"), Counter[str](), list[str]()
    print(f"| verb | blow | {' | '.join(columns)} over |\n|---|---|{'---|' * len(columns)}")
    for name, (skipped, counts) in zip(names, found, strict=True):
        if skipped:
            print(f"| {name} | none: {skipped[:100]} |{' |' * len(columns)}")
        for blow, count in counts.items():
            print(f"| {name} | {blow} | {' | '.join(str(getattr(count, column)) for column in columns)} |", flush=True)
            total.update({column: getattr(count, column) for column in columns})
            problems += count.problems
    print(f"| **all** | | {' | '.join(str(total[column]) for column in columns)} |")
    print(*problems, sep="\n", file=sys.stderr)
    return bool(problems) or total["resumed"] < total["tried"]


def main() -> None:
    """Torture the verbs and print the table; exit code 1 where anything is lost, wrong or left over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=VERBS, default=list(VERBS), metavar="VERB", help=", ".join(VERBS))
    blows = list(dict.fromkeys([*BLOWS, *SERVER_BLOWS]))
    parser.add_argument("--blows", nargs="+", choices=blows, default=blows, metavar="BLOW", help=", ".join(blows))
    parser.add_argument("--tries", type=int, default=1, help="blows of each kind for each verb (default: 1)")
    parser.add_argument("--long", action="store_true", help="50 of each kind: hours")
    parser.add_argument("--workers", type=int, default=2, help="verbs tortured at once (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="torture-"))
    place.chmod(0o755)
    small_inputs.warm_up()
    tries = 50 if args.long else args.tries
    child = get_context("fork").Process(target=small_inputs.make, args=(place / "inputs",))  # torch here stays unused
    child.start()
    child.join()
    jobs = [(name, args.blows, tries, place, args.seed) for name in args.only]
    with get_context("fork").Pool(args.workers, maxtasksperchild=1) as pool:
        failed = report(pool.imap(torture, jobs, chunksize=1), args.only)
    if not failed:
        shutil.rmtree(place)
    sys.exit(failed)


if __name__ == "__main__":
    main()
