"""Check released weights against the published figures: COCO, LVIS minival, Flickr30K and ODinW (docs/parity.md).

    python tools/reproduce.py --weights FOLDER --root DATA [--device cuda] [--out runs/reproduce] [--plan]
    python tools/reproduce.py --model glip-t-c=PATH --root DATA [--sets coco lvis flickr30k odinw13]

Nothing is downloaded: --plan, and every run, says which files are missing and where to put them. The same command
goes on where a killed one stopped. The table is printed and written to OUT/reproduce.md after every set; the exit code
is 1 if a figure is off by more than 0.2 points, or nothing could be checked.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import isnan, nan
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from glip.config import EvaluateConfig  # noqa: E402
from glip.data.catalog import data_root, find_set, known_sets, missing_part, read_set  # noqa: E402
from glip.errors import ConfigError, GlipError  # noqa: E402
from glip.evaluate.evaluation import LVIS_NAMES, evaluate  # noqa: E402
from glip.evaluate.odinw import ODINW, tasks  # noqa: E402
from glip.evaluate.report import Row, made_line, markdown_table  # noqa: E402
from glip.files import atomic_write, file_name  # noqa: E402
from glip.model.weights import RELEASED  # noqa: E402

ALLOWED = 0.2  # points: published figures have one decimal, and a GPU adds in another order
SETS = {  # what is computed of a set, and the names under which it may be there: the first that is
    "coco": (("AP",), ("coco_val2017",)),
    "lvis": (("Fixed AP", "Fixed APr"), ("lvis_minival",)),
    "flickr30k": (("R@1", "R@5", "R@10"), ("flickr30k_test", "flickr_goldg_test")),
    "odinw13": (("AP",), ("odinw13",)),
}
PUBLISHED: Mapping[str, Mapping[str, Sequence[float]]] = {
    # Zero-shot, in percent, of the released files: the table of the release, where LVIS has APr alone; AP of A and B
    # and Flickr30K of C are the paper's. The paper's T and L are other models.
    "glip-t-a": {"coco": (42.9,), "lvis": (18.5, 14.2), "odinw13": (28.7,)},
    "glip-t-b": {"coco": (44.9,), "lvis": (17.8, 13.5), "odinw13": (33.2,)},
    "glip-t-c": {"coco": (46.7,), "lvis": (nan, 14.3), "flickr30k": (85.5, 95.4, 96.6), "odinw13": (44.4,)},
    "glip-t": {"coco": (46.6,), "lvis": (nan, 17.6), "odinw13": (42.7,)},
    "glip-l": {"coco": (51.4,), "lvis": (nan, 29.3), "odinw13": (51.2,)},
}


@dataclass(frozen=True)
class Job:
    """One model on one set; ``known_as`` is the set's name in the catalog, ``passes`` its prompts over all images."""

    model: str
    weights: Path
    set: str
    known_as: str
    samples: int
    passes: int

    @property
    def title(self) -> str:
        """Model and set."""
        return f"{self.model} on {self.known_as}"


def missing_of(name: str, root: str | None) -> str:
    """What a set lacks under the data root; "" if it is there. Of ODinW one task is enough."""
    if name not in ODINW:
        return missing_part(known_sets(root)[name], root)
    lacking = [part for task in tasks(ODINW[name]) if (part := missing_part(task.files(), root))]
    return lacking[0] if len(lacking) == len(tasks(ODINW[name])) else ""


def found_sets(chosen: Sequence[str], root: str | None) -> tuple[dict[str, str], list[str]]:
    """By set the name under which it is there; and what to put where for those that are not."""
    found, needed = dict[str, str](), list[str]()
    for name in chosen:
        lacking = {alias: missing_of(alias, root) for alias in SETS[name][1]}
        there = [alias for alias, part in lacking.items() if not part]
        if there:
            found[name] = there[0]
        else:
            needed.append(f"{name}: put {' or '.join(lacking.values())} into {data_root(root)}")
    for task in tasks(ODINW["odinw13"]) if "odinw13" in found else ():
        if part := missing_part(task.files(), root):
            needed.append(f"odinw13: put {part} into {data_root(root)} (the mean is over the tasks that are there)")
    return found, needed


def found_weights(folder: str | None, named: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """By model its weights; and which files of the release are not in the folder."""
    found, needed = dict[str, Path](), list[str]()
    for name, file in RELEASED.items() if folder else ():
        path = Path(str(folder), file)
        if path.is_file():
            found[name] = path
        else:
            needed.append(f"{name}: put {file} into {folder}")
    for one in named:
        name, _, place = one.partition("=")
        if name not in PUBLISHED or not place or not Path(place).exists():
            raise ConfigError(f"--model {one!r}: give {' | '.join(PUBLISHED)}, =, and the path of its weights")
        found[name] = Path(place)
    return found, needed


def size_of(name: str, root: str | None) -> tuple[int, int]:
    """Samples of a set, and passes of the network over them: LVIS's names are asked in several prompts."""
    entries = [task.files() for task in tasks(ODINW[name])] if name in ODINW else [find_set(name, root=root)]
    samples = passes = 0
    for entry in entries:
        if missing_part(entry, root):
            continue
        read = read_set(entry, root)
        samples += len(read.samples)
        passes += len(read.samples) * (-(-len(read.vocabulary) // LVIS_NAMES) if read.format == "lvis" else 1)
    return samples, passes


def planned(weights: Mapping[str, Path], sets: Mapping[str, str], root: str | None) -> list[Job]:
    """What can be checked, set by set of each model that has a published figure for it."""
    sizes = {name: size_of(alias, root) for name, alias in sets.items()}
    return [
        Job(model, path, name, alias, *sizes[name])
        for model, path in weights.items()
        for name, alias in sets.items()
        if name in PUBLISHED[model]
    ]


def stored(out: Path) -> int:
    """How many samples have predictions on disk."""
    return sum(len(np.load(part)["samples"]) for part in out.rglob("predictions/part-*.npz"))


def run(job: Job, out: Path, root: str | None, device: str | None) -> dict[str, float]:
    """Its figures in percent, as ``glip evaluate`` computes and stores them."""
    config = EvaluateConfig(root=root, out=str(out))
    folder = evaluate([str(job.weights)], [job.known_as], config, _silent, device=device)
    names = [task.name for task in tasks(ODINW[job.set])] if job.set in ODINW else [job.known_as]
    files = [file for name in names if (file := folder / file_name(name) / "report.json").is_file()]
    reports = [json.loads(file.read_text(encoding="utf-8"))["figures"] for file in files]
    return {figure: 100 * mean(one[figure] for one in reports) for figure in SETS[job.set][0]}


def _silent(page: str) -> None:
    """Reports are in files; only the table is printed."""


def rows_of(job: Job, figures: Mapping[str, float]) -> Iterator[Row]:
    """Ours beside the published figures."""
    for (figure, ours), published in zip(figures.items(), PUBLISHED[job.model][job.set], strict=True):
        if isnan(published):
            continue
        compared = {"ours": f"{ours:.1f}", "published": f"{published:.1f}", "difference": f"{ours - published:+.1f}"}
        verdict = "equal" if abs(ours - published) <= ALLOWED + 1e-9 else "differs"
        about: Row = {"model": job.model, "set": job.known_as, "samples": job.samples, "figure": figure}
        yield {**about, **compared, "verdict": verdict}


def check(jobs: Sequence[Job], out: Path, root: str | None, device: str | None) -> list[Row]:
    """Run job after job; the table grows, and with it what is known of the time."""
    rows, made, spent = list[Row](), 0.0, 0.0
    for number, job in enumerate(jobs):
        before, began = stored(out), time.monotonic()
        rows += rows_of(job, run(job, out, root, device))
        share = (stored(out) - before) / max(job.samples, 1)
        made, spent = made + share * job.passes, spent + (time.monotonic() - began if share else 0.0)
        left = sum(one.passes for one in jobs[number + 1 :])
        seconds = timedelta(seconds=round(left * spent / made)) if made and left else ""
        print(f"{number + 1} of {len(jobs)}: {job.title}" + (f"; about {seconds} left" if seconds else ""), flush=True)
        page = "\n".join(["# Released weights and published figures", "", *markdown_table(rows), made_line()])
        with atomic_write(out / "reproduce.md") as file:
            file.write(page)
    return rows


def main() -> int:
    """Say what is there, run it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FOLDER", help="the release's .pth files under their own names")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help="weights, or a model folder")
    parser.add_argument("--root", metavar="DATA", help="the data folder (default: GLIP_DATA, else this folder)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", default="runs/reproduce", metavar="FOLDER")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")
    parser.add_argument("--plan", action="store_true", help="say what is there and what is missing, and stop")
    args = parser.parse_args()
    try:
        weights, no_weights = found_weights(args.weights, args.model)
        sets, no_sets = found_sets(args.sets, args.root)
        jobs = planned(weights, sets, args.root)
        for line in (*no_weights, *no_sets):
            print(f"missing: {line}")
        for job in jobs:
            print(f"there: {job.title}, {job.samples} samples, {job.passes} passes", flush=True)
        rows = [] if args.plan else check(jobs, Path(args.out), args.root, args.device)
    except (GlipError, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: stopped: run the same command again, and it goes on from here", file=sys.stderr)
        return 130
    print("", *markdown_table(rows), sep="\n")
    return int(not jobs or any(row["verdict"] == "differs" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
