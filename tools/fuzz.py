"""Read broken inputs of every kind, and count: each must work, or be refused with one sentence (GlipError).

    python tools/fuzz.py [KIND ...] [--count 2000] [--seed 0]
    python tools/fuzz.py KIND --only 137

An input depends on its kind, the seed and its number alone, so that ``--only`` reads one again. Those that fail are
kept in ``--out`` with the traceback. The exit code is 1 if something was unexpected or slow.
"""

import argparse
import faulthandler
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_doors import DOORS
from fuzz_kinds import KINDS
from fuzz_page import PAGE
from fuzz_runs import RUNS
from measuring import table

from glip.errors import GlipError

KINDS.update(DOORS | PAGE | RUNS)
SLOW, HUNG = 10.0, 600.0  # seconds: of the processor, and until it is ended
MEMORY = 6_000_000_000  # bytes of data that the process may hold
LONGEST = 1_000  # characters of an error


@dataclass
class Tally:
    """What became of the inputs of a kind; ``failed`` has the number of each unexpected one and what it raised."""

    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0
    peak: float = 0.0  # bytes above the start


def read_one(kind: str, seed: int, number: int, folder: Path) -> None:
    """Make an input in a folder and read it."""
    KINDS[kind](random.Random(f"{kind} {seed} {number}"), folder)


def outcome(kind: str, seed: int, number: int, folder: Path) -> str:
    """What became of an input: "worked", "refused", or a traceback where it raised no plain sentence."""
    try:
        read_one(kind, seed, number, folder)
    except (GlipError, OSError) as error:
        said = str(error)
        plain = 0 < len(said) < LONGEST and (said.isprintable() or isinstance(error, OSError))
        return "refused" if plain else f"no plain sentence: {said!r}\n{traceback.format_exc()}"
    except Exception:
        return traceback.format_exc()
    return "worked"


def fuzz(kind: str, count: int, seed: int = 0, out: Path | None = None) -> Tally:
    """Read ``count`` inputs of a kind; inputs that fail are kept in ``out``."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:  # what all inputs are made from is made first
        outcome(kind, seed, -1, Path(place))
    reset_peak()
    start = memory("VmRSS")
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="glip-fuzz-") as place:
            if out:
                (out / "current").write_text(f"{kind} --seed {seed} --only {number}\n")  # where a crash leaves it
            faulthandler.dump_traceback_later(HUNG, exit=True)
            began = time.process_time()
            found = outcome(kind, seed, number, Path(place))
            spent = time.process_time() - began
            faulthandler.cancel_dump_traceback_later()
            tally.slowest = max(tally.slowest, spent)
            found = f"slow: {spent:.1f} s" if spent > SLOW and found in ("worked", "refused") else found
            usual = "slow" if found.startswith("slow") else "unexpected"
            tally.counts[found if found in ("worked", "refused") else usual] += 1
            if found in ("worked", "refused"):
                continue
            tally.failed[number] = found
            if out:
                kept = out / f"{kind}-{seed}-{number}"
                shutil.copytree(place, kept, dirs_exist_ok=True, symlinks=True)
                (kept / "traceback.txt").write_text(found, errors="backslashreplace")
    tally.peak = max(0.0, memory("VmHWM") - start)
    return tally


def memory(key: str) -> float:
    """Bytes of this process: VmRSS now, VmHWM at most since ``reset_peak``; 0 where Linux's /proc is not there."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0.0)


def reset_peak() -> None:
    """Let VmHWM begin again."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def quiet() -> None:
    """No warnings and notices: every second input would print some."""
    warnings.simplefilter("ignore")
    logging.disable()


def main() -> int:
    """Fuzz the kinds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--count", type=int, default=2000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="read this input again, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of inputs that fail")
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"no kind {unknown[0]!r}: give any of {', '.join(KINDS)}")
    quiet()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only is not None:
        place = args.out / f"{args.kinds[0]}-{args.seed}-{args.only}-again"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        read_one(args.kinds[0], args.seed, args.only, place)
        return 0
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    rows, bad = [], 0
    for kind in args.kinds or KINDS:
        found = fuzz(kind, args.count, args.seed, args.out)
        counts = {key: found.counts[key] for key in ("worked", "refused", "unexpected", "slow")}
        bad += counts["unexpected"] + counts["slow"]
        row = {"kind": kind, "inputs": args.count, **{key: str(value) for key, value in counts.items()}}
        rows.append({**row, "slowest (CPU s)": found.slowest, "memory above the start (MB)": found.peak / 1e6})
        print(f"{kind}: {counts}, slowest {found.slowest:.1f} s", file=sys.stderr, flush=True)
        for number, error in list(found.failed.items())[:5]:
            print(f"  --only {number}: {error.strip().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    (args.out / "current").unlink(missing_ok=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
